"""Logs in files of text, a line for each look, that a resumed training goes on with."""

import contextlib
import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import equinox as eqx

from bilevel.outer.callbacks import AbstractMonitor, Callback
from bilevel.outer.monitors.rows import Measure, Row, as_measures, log, writes
from bilevel.outer.state import TrainingState


class CSVLog(AbstractMonitor):
    """Writes a row of comma-separated values to the file `path` at each look, below a line of names.

    - `step`: how many steps were taken; `time`: in seconds since 1970; `seconds`: since this training began;
      `steps_per_second`.
    - Of the steps since the last look: the mean `loss` and `gradient_norm` of those that were not refused; the worst
      `optimality` of their inner solves, their mean `inner_steps`, how many `failed_solves` there were and how many
      `refused_steps`.
    - `validation_loss`, where there is validation.
    - What the `measures` give: functions of the state to numbers by name, such as `bilevel.monitors.Sparsity()`.

    Each row is on the disk before training goes on. A training that starts from the state after step n keeps the rows
    up to n and drops what is after them, a torn last line too: the log of a resumed training is that of an undisturbed
    one, but for the times. One that starts anew, from step 0, thus starts the log anew.

    **Raises:** `OSError`, with the file's name, where it cannot be written; `ValueError` where it holds something else.
    """

    path: Path = eqx.field(converter=Path)
    measures: tuple[Measure, ...] = eqx.field(converter=as_measures, default=())

    def start(self, state: TrainingState) -> Callback:
        _resume(self.path, b"step,", lambda line: int(line.split(b",")[0]), state)
        return log(self.measures, self._write, state)

    def _write(self, row: Row) -> None:
        with _appending(self.path) as file:
            file.seek(0)
            names = file.readline()
            if not names:
                file.write(_csv(row))
            elif names != _csv(row):
                raise ValueError(
                    f"The log {self.path} has the columns {names.decode().strip()}, but now they are "
                    f"{','.join(row)}. Log to another file, or the same."
                )
            file.write(_csv(row.values()))


class JSONLines(AbstractMonitor):
    """Writes a JSON object to the file `path` at each look, one a line, with the names and rules of `CSVLog`.

    What is not finite is null, as JSON has no word for it.
    """

    path: Path = eqx.field(converter=Path)
    measures: tuple[Measure, ...] = eqx.field(converter=as_measures, default=())

    def start(self, state: TrainingState) -> Callback:
        _resume(self.path, b'{"step": ', lambda line: json.loads(line)["step"], state)
        return log(self.measures, self._write, state)

    def _write(self, row: Row) -> None:
        known = {name: value if math.isfinite(value) else None for name, value in row.items()}
        with _appending(self.path) as file:
            file.write(json.dumps(known).encode() + b"\n")


def _csv(values: Iterable[Any]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue().encode()


def _resume(path: Path, begins: bytes, step_of: Callable[[bytes], int], state: TrainingState) -> None:
    """Cut off the rows after the state's step, and what is no whole row. Steps grow from row to row."""
    if not writes():
        return
    with named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with _appending(path) as file:
        file.seek(0)
        if not begins.startswith(file.read(len(begins))):
            raise ValueError(f"{path} is not a log of this kind. Choose another path, or move it away.")
        file.seek(0)
        rows = end = 0
        for line in file:
            if not line.endswith(b"\n"):
                break
            if line.startswith(b"step,"):
                end += len(line)
                continue
            try:
                kept = step_of(line) <= int(state.step)
            except (ValueError, KeyError, TypeError):
                break
            if not kept:
                break
            rows, end = rows + 1, end + len(line)
        file.truncate(end if rows else 0)


@contextlib.contextmanager
def _appending(path: Path) -> Iterator[io.BufferedRandom]:
    # Opened for each row, so that none is lost with a process that is killed, and no file is left open.
    with named(path), open(path, "a+b") as file:
        yield file


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Say of an `OSError` which log it hit, and what to do."""
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno,
            f"This log cannot be written: {error.strerror}. Likely causes: a full disk, or a place that is read-only. "
            "Make room or choose another path, and go on from the last state that was saved",
            str(path),
        ) from error
