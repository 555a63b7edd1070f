"""The training loop: steps, and between them validation, early stopping, progress, callbacks, checkpoints."""

from collections.abc import Callable
from typing import NamedTuple

import jax
from tqdm import tqdm

from bilevel.outer.problem import Variables
from bilevel.outer.record import Record
from bilevel.outer.runners import History, Runner
from bilevel.outer.saving import Saver
from bilevel.outer.state import TrainingState

#: Called between chunks with the state and the history so far; True ends training.
Callback = Callable[[TrainingState, History], bool | None]


class Fitted(NamedTuple):
    """What training gives: the best variables (by validation; else the last), the last state, the history."""

    variables: Variables
    state: TrainingState
    history: History


def train(
    runner: Runner,
    record: Record,
    num_steps: int,
    *,
    chunk: int,
    patience: int | None,
    callback: Callback | None,
    progress: bool | str,
    throw: bool,
    saver: Saver | None,
) -> Fitted:
    """Steps, in chunks, until `num_steps` are taken; see `Trainer.fit`."""
    label = progress if isinstance(progress, str) else "training"
    with tqdm(
        total=num_steps, initial=record.taken, desc=label, disable=not progress or jax.process_index() > 0, leave=False
    ) as bar:
        while record.taken < num_steps and not record.ended(patience):
            # Looks fall on the same steps in a run that was resumed.
            count = min(chunk - record.taken % chunk, num_steps - record.taken)
            record.add(runner.advance(count))
            if throw:
                record.raise_on_failed_step()
            record.validate(runner)
            if throw:
                record.raise_on_failed_validation()
            bar.update(count)
            bar.set_postfix(record.latest())
            if callback is not None and callback(runner.state, record.history()):
                break
            if saver is not None:
                saver.look(runner, record)
        if saver is not None:
            saver.finish(runner, record)
    state = runner.state
    return Fitted(state.variables if record.validation is None else record.best_variables, state, record.history())
