"""What training calls at each look from outside: functions, and monitors, which make a function for each training."""

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import equinox as eqx

from bilevel.core import tree
from bilevel.outer.checks import check_like
from bilevel.outer.runners import History
from bilevel.outer.state import TrainingState

#: Called between chunks with the state and the history so far. True ends training; with a state, training goes on from
#: that.
Callback = Callable[[TrainingState, History], TrainingState | bool | None]


class AbstractMonitor(eqx.Module):
    """A callback that must know where training begins: a log, which goes on where a resumed training does."""

    @abc.abstractmethod
    def start(self, state: TrainingState) -> Callback:
        """The callback of one training, which starts from `state`. What it cannot do it says now, by an exception."""


Callbacks: TypeAlias = Callback | AbstractMonitor | Sequence[Callback | AbstractMonitor]


def check_callbacks(callback: Any) -> None:
    """A function, a monitor, a sequence of them, or None."""
    for each in _listed(callback):
        if not (callable(each) or isinstance(each, AbstractMonitor)):
            raise ValueError(f"`callback` must be a function, a monitor or a sequence of them, got {each!r}.")


def begin(callback: Callbacks | None, state: TrainingState) -> list[Callback]:
    """The functions to call in a training that starts from `state`."""
    return [each.start(state) if isinstance(each, AbstractMonitor) else each for each in _listed(callback)]


def call(callbacks: Sequence[Callback], state: TrainingState, history: History) -> tuple[TrainingState, bool]:
    """The state with which to go on, and whether to stop. Each sees the state that those before it leave."""
    stop = False
    for callback in callbacks:
        answer = callback(state, history)
        if isinstance(answer, TrainingState):
            # Warm starts may be in memory that no device has room for.
            arrays = tree.to_arrays(dataclasses.replace(answer, warm_start=None))
            answer = dataclasses.replace(arrays, warm_start=answer.warm_start)
            check_like("callback(state, history)", state, answer)
            state = answer
        else:
            stop = stop or bool(answer)
    return state, stop


def _listed(callback: Any) -> list:
    if callback is None:
        return []
    return list(callback) if isinstance(callback, Sequence) else [callback]
