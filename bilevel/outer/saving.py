"""A training, saved and resumed: all that decides how it goes on, and all that it has seen."""

import signal
import sys
import threading
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from jaxtyping import PyTree

from bilevel.outer.naming import filled, named
from bilevel.outer.record import Record
from bilevel.outer.runners import Runner
from bilevel.outer.state import TrainingState
from bilevel.outer.warm_starts import blank
from bilevel.scale import Batches, CheckpointError, CheckpointFolder, Checkpoints, Rows, Saved, gathered


class Cut(NamedTuple):
    """How the samples of a training are cut into shards, which of these this process owns, whether there is an inner
    solution for each, and whether they are shuffled."""

    batches: Batches
    owned: list[int]
    by_sample: bool
    shuffled: bool


class Saver:
    """Saves a training when it is due, and when the process is asked to end; within a `with` block."""

    def __init__(self, options: Checkpoints, cut: Cut | None, facts: dict[str, Any]):
        self._folder, self._cut, self._facts = CheckpointFolder(options), cut, facts
        self._asked_to_end = False
        self._before: Any = None

    def __enter__(self) -> "Saver":
        # Signals are the main thread's business.
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
        try:
            self._folder.finish()
        except CheckpointError:
            # Of two errors the first one says more.
            if error is None:
                raise
        finally:
            self._folder.close()

    def _on_signal(self, *_: Any) -> None:
        self._asked_to_end = True

    def resume(self, runner: Runner, record: Record, which: bool | int) -> None:
        """Put a run where a checkpoint left it; nothing happens where there is none yet.

        Raises `CheckpointError` where it is damaged, of another training, or there though `which` is False.
        """
        steps = self._folder.steps
        if which is False:
            if steps:
                raise CheckpointError(
                    f"{self._folder.path} has checkpoints already, of steps {steps}: `resume=True` goes on from the "
                    "last one; for another training pass another directory."
                )
        elif steps or which is not True:
            self._restore(runner, record, steps[-1] if which is True else int(which))
        self._folder.begin(int(runner.state.step))

    def look(self, runner: Runner, record: Record) -> None:
        """Save, if it is time to. Raises `SystemExit` after saving where the process was asked to end."""
        step = record.first_step + record.taken
        ending, due = _anywhere(self._asked_to_end, self._folder.is_due(step))
        if ending or due:
            self._save(runner, record)
        if ending:
            self._folder.finish()
            where = f"step {step} is saved in {self._folder.path}; `resume=True` goes on from there"
            print(f"Asked to end by SIGTERM: {where}.", file=sys.stderr)
            raise SystemExit(128 + signal.SIGTERM)

    def finish(self, runner: Runner, record: Record) -> None:
        """Save the end."""
        if self._folder.last_step != record.first_step + record.taken:
            self._save(runner, record)

    def _save(self, runner: Runner, record: Record) -> None:
        state = runner.state
        facts = self._facts | {"record": record.facts(), "positions": _of_all(runner.position)}
        arrays = named("state", self._whole(state)) | record.arrays()
        loss = record.losses[-1] if record.losses else None
        self._folder.save(int(state.step), Saved(arrays, self._rows(state.warm_start), facts), loss)

    def _restore(self, runner: Runner, record: Record, step: int) -> None:
        described = self._folder.facts(step)
        facts = described["facts"]
        for name, value in self._facts.items():
            if facts.get(name) != value:
                raise CheckpointError(
                    f"The checkpoint of step {step} in {self._folder.path} is of another training: `{name}` was "
                    f"{facts.get(name)!r}, and is {value!r} now. Pass what it was, or another directory."
                )
        state = runner.state
        starts = jax.tree.map(blank, state.warm_start) if self._by_sample else None
        saved = self._folder.load(step, self._rows(starts), described)
        place = f"The checkpoint of step {step} in {self._folder.path}"
        variables, memory, key, number, whole = filled("state", self._whole(state), saved.arrays, place)
        record.restore(saved.arrays, facts["record"], place)
        order, cut = state.order, self._cut
        if cut is not None and cut.shuffled:
            order = cut.batches.order_after(key, int(number), cut.owned)
        runner.go_on(TrainingState(variables, memory, starts if self._by_sample else whole, order, number, key))
        if facts["positions"] is not None:
            runner.position = facts["positions"][jax.process_index()]

    def _rows(self, starts: PyTree) -> Rows | None:
        if not self._by_sample or starts is None:
            return None
        cut = cast(Cut, self._cut)
        return Rows([np.asarray(x) for x in jax.tree.leaves(starts)], cut.batches.ranges.tolist(), cut.owned)

    @property
    def _by_sample(self) -> bool:
        return self._cut is not None and self._cut.by_sample

    def _whole(self, state: TrainingState) -> tuple:
        """What every process has alike. An inner solution is among it where it is not kept for each sample; the order
        of samples is not, as it follows from key and step."""
        starts = None if self._by_sample else state.warm_start
        return state.variables, state.optimizer, state.key, state.step, starts


def _of_all(position: str | None) -> list[str] | None:
    """Where the loader of each process stands."""
    if position is None:
        return None
    text = np.frombuffer(position.encode(), np.uint8)
    lengths = gathered(np.asarray(len(text), np.int32))
    padded = np.zeros(int(np.max(lengths)), np.uint8)
    padded[: len(text)] = text
    return [bytes(text[:length]).decode() for text, length in zip(gathered(padded), lengths, strict=True)]


def _anywhere(*flags: bool) -> list[bool]:
    """Which of these hold in any process."""
    return np.any(gathered(np.asarray(flags)), axis=0).tolist()
