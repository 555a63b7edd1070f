"""The training loop: compiled chunks of steps, and between them validation, early stopping, progress, callbacks."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree, Scalar
from tqdm import tqdm

from bilevel.core import InnerSolveError
from bilevel.outer.callbacks import Callbacks, History, begin, call
from bilevel.outer.problem import Variables
from bilevel.outer.state import StepMetrics, TrainingState

#: One training step.
Step = Callable[[TrainingState, PyTree], tuple[TrainingState, StepMetrics]]


class Validation(NamedTuple):
    """`evaluate(variables, start)` gives the validation loss and the next start; the first one is `start`."""

    evaluate: Callable[[Variables, PyTree], tuple[Scalar, PyTree]]
    start: PyTree


class Fitted(NamedTuple):
    """What training gives: the best variables (by validation; else the last), the last state, the history."""

    variables: Variables
    state: TrainingState
    history: History


def train(
    step: Step,
    validation: Validation | None,
    state: TrainingState,
    data: PyTree,
    num_steps: int,
    *,
    chunk: int,
    patience: int | None,
    callback: Callbacks | None,
    progress: bool | str,
    throw: bool,
) -> Fitted:
    """`num_steps` times `step`, in chunks; see `Trainer.fit`."""
    record = _Record(validation, state)
    callbacks = begin(callback, state)
    label = progress if isinstance(progress, str) else "training"
    with tqdm(total=num_steps, desc=label, disable=not progress, leave=False) as bar:
        while record.taken < num_steps:
            count = min(chunk, num_steps - record.taken)
            state, metrics = _run_chunk(step, state, data, jnp.asarray(count, jnp.int32), chunk)
            record.add(metrics, count)
            if throw:
                record.raise_on_failed_step()
            record.validate(state)
            if throw:
                record.raise_on_failed_validation()
            bar.update(count)
            bar.set_postfix(record.latest())
            state, stop = call(callbacks, state, record.history()) if callbacks else (state, False)
            if stop or (patience is not None and record.since_best >= patience):
                break
    return Fitted(state.variables if validation is None else record.best_variables, state, record.history())


@eqx.filter_jit
def _run_chunk(
    step: Step, state: TrainingState, data: PyTree, count: Int[Array, ""], chunk: int
) -> tuple[TrainingState, StepMetrics]:
    """`count` steps, in a program for up to `chunk` of them, so that a last, shorter chunk compiles nothing new."""
    arrays, static = eqx.partition(state, eqx.is_array)

    # A program of its own only so that `fori_loop` does not trace it again.
    @jax.jit
    def one(arrays: PyTree) -> tuple[PyTree, StepMetrics]:
        state, metrics = step(eqx.combine(arrays, static), data)
        return eqx.filter(state, eqx.is_array), metrics

    def body(index: Int[Array, ""], carry: tuple[PyTree, StepMetrics]) -> tuple[PyTree, StepMetrics]:
        arrays, metrics = one(carry[0])
        return arrays, jax.tree.map(lambda all, new: all.at[index].set(new), carry[1], metrics)

    _, shapes = jax.eval_shape(one, arrays)
    metrics = jax.tree.map(lambda s: jnp.zeros((chunk, *s.shape), s.dtype), shapes)
    arrays, metrics = jax.lax.fori_loop(0, count, body, (arrays, metrics))
    return eqx.combine(arrays, static), metrics


class _Record:
    """What is seen of training from outside: the metrics of its steps, the validation losses, the best so far."""

    def __init__(self, validation: Validation | None, state: TrainingState):
        self.validation = validation
        self.first_step, self.taken = int(state.step), 0
        self.metrics: list[History] = []
        self.losses: list[float] = []
        self.steps: list[int] = []
        self.best_variables, self.best_loss, self.since_best = state.variables, np.inf, 0

    def add(self, metrics: StepMetrics, count: int) -> None:
        names = [field.name for field in dataclasses.fields(metrics)]
        self.metrics.append({name: np.asarray(getattr(metrics, name))[:count] for name in names})
        self.taken += count

    def validate(self, state: TrainingState) -> None:
        if self.validation is None:
            return
        loss, start = self.validation.evaluate(state.variables, self.validation.start)
        self.validation = self.validation._replace(start=start)
        self.losses.append(float(loss))
        self.steps.append(int(state.step))
        better = self.losses[-1] < self.best_loss
        self.since_best = 0 if better else self.since_best + 1
        if better:
            self.best_loss = self.losses[-1]
        # Where no loss was ever finite there is no best, and the last is as good as any.
        if better or np.isinf(self.best_loss):
            self.best_variables = state.variables

    def raise_on_failed_step(self) -> None:
        last = self.metrics[-1]
        failed = np.flatnonzero(last["refused"] | ~last["inner_success"])
        if failed.size:
            at = failed[0]
            raise InnerSolveError(
                f"Step {self.first_step + self.taken - len(last['loss']) + at} of training failed: the inner solve's "
                f"relative optimality error is {last['optimality'][at]:.2e} after {last['inner_steps'][at]} steps, the "
                f"outer loss {last['loss'][at]:.3g}, the norm of its gradient {last['gradient_norm'][at]:.3g}. Likely "
                "causes: a learning rate too large, an inner tolerance out of reach, or a singular Hessian (duplicated "
                "atoms with l2 = 0). Try a smaller learning rate, a solver with a larger `max_steps` or `tol`, or "
                "l2 > 0; `throw=False` goes on without such steps."
            )

    def raise_on_failed_validation(self) -> None:
        if self.losses and np.isnan(self.losses[-1]):
            raise InnerSolveError(
                f"No validation loss after step {self.steps[-1] - 1}: it is not finite, or the inner solve on the "
                "validation data missed its tolerance. Try a solver with a larger `max_steps` or `tol`, or look for "
                "outliers in `validation`; `throw=False` goes on, and records NaN."
            )

    def latest(self) -> dict[str, str]:
        """For the progress bar."""
        validation = {"validation": f"{self.losses[-1]:.4g}"} if self.losses else {}
        return {"loss": f"{self.metrics[-1]['loss'][-1]:.4g}", **validation}

    def history(self) -> History:
        history = {name: np.concatenate([m[name] for m in self.metrics]) for name in self.metrics[0]}
        if self.validation is not None:
            history["validation_loss"] = np.asarray(self.losses)
            history["validation_step"] = np.asarray(self.steps)
        return history
