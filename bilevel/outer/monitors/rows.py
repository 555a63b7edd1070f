"""What a log holds: a row of numbers for each look."""

import time
from collections.abc import Callable, Iterable, Mapping

import jax
import numpy as np

from bilevel.outer.callbacks import Callback, History
from bilevel.outer.state import TrainingState

Row = dict[str, float]

#: Numbers by name, of a state: what a log shows beside the losses.
Measure = Callable[[TrainingState], Mapping[str, float]]


def as_measures(measures: Iterable[Measure]) -> tuple[Measure, ...]:
    """`measures`, if they are functions."""
    measures = tuple(measures) if isinstance(measures, Iterable) else (measures,)
    for measure in measures:
        if not callable(measure):
            raise ValueError(f"`measures` must be functions of a state, got {measure!r}.")
    return measures


def log(measures: tuple[Measure, ...], write: Callable[[Row], None], state: TrainingState) -> Callback:
    """The callback that hands the row of each look to `write`.

    Of several processes the first writes. All measure, as a measure may have to ask the others.
    """
    rows = _Rows(measures, state)

    def look(state: TrainingState, history: History) -> None:
        row = rows.next(state, history)
        if writes():
            write(row)

    return look


def writes() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


class _Rows:
    """It remembers when the last look was."""

    def __init__(self, measures: tuple[Measure, ...], state: TrainingState):
        self.measures = measures
        self.step = int(state.step)
        self.begin = self.now = time.perf_counter()

    def next(self, state: TrainingState, history: History) -> Row:
        step, now = int(state.step), time.perf_counter()
        count = step - self.step
        rate = count / max(now - self.now, 1e-9)
        self.step, self.now = step, now
        row = {"step": step, "time": time.time(), "seconds": now - self.begin, "steps_per_second": rate}
        row |= _of_history({name: values[-count:] for name, values in history.items()})
        for measure in self.measures:
            found = {name: float(value) for name, value in measure(state).items()}
            if twice := row.keys() & found.keys():
                raise ValueError(f"`measures` give {sorted(twice)} twice. Let one of them use other names.")
            row |= found
        return row


def _of_history(fresh: History) -> Row:
    """What became of the steps since the last look."""
    taken = ~fresh["refused"]
    mean = lambda values: float(np.mean(values)) if len(values) else float("nan")
    row = {
        "loss": mean(fresh["loss"][taken]),
        "gradient_norm": mean(fresh["gradient_norm"][taken]),
        "optimality": float(np.max(fresh["optimality"])),
        "inner_steps": mean(fresh["inner_steps"]),
        "failed_solves": int(np.sum(~fresh["inner_success"])),
        "refused_steps": int(np.sum(fresh["refused"])),
    }
    if "validation_loss" in fresh:
        row["validation_loss"] = float(fresh["validation_loss"][-1])
    return row
