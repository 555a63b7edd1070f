"""The training loop: steps, and between them validation, early stopping, progress, callbacks, checkpoints."""

from typing import NamedTuple

import jax
from tqdm import tqdm

from bilevel.outer.callbacks import Callback, Callbacks, begin, call
from bilevel.outer.problem import Variables
from bilevel.outer.record import Record
from bilevel.outer.runners import History, Runner
from bilevel.outer.saving import Saver
from bilevel.outer.state import TrainingState


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
    callback: Callbacks | None,
    progress: bool | str,
    throw: bool,
    saver: Saver | None,
) -> Fitted:
    """Steps, in chunks, until `num_steps` are taken; see `Trainer.fit`."""
    callbacks = begin(callback, runner.state)
    label = progress if isinstance(progress, str) else "training"
    shown = bool(progress) and jax.process_index() == 0
    with tqdm(total=num_steps, initial=record.taken, desc=label, disable=not shown, leave=False) as bar:
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
            record.stopped = bool(callbacks) and _call(callbacks, runner, record)
            if saver is not None:
                saver.look(runner, record)
        if saver is not None:
            saver.finish(runner, record)
    state = runner.state
    return Fitted(state.variables if record.validation is None else record.best_variables, state, record.history())


def _call(callbacks: list[Callback], runner: Runner, record: Record) -> bool:
    """Call them, and go on from the state that they leave. Whether to stop."""
    before = runner.state
    after, stop = call(callbacks, before, record.history())
    if after is not before:
        runner.state = after
    return stop
