"""Train the outer variables by hypergradients, in compiled chunks of steps."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key, PyTree, Scalar

from bilevel.core import Solution, tree
from bilevel.differentiation import AbstractDifferentiation, Implicit, argmin
from bilevel.outer.callbacks import Callbacks, check_callbacks
from bilevel.outer.checks import check_batches, check_count, check_data, check_function, check_key, check_like
from bilevel.outer.loop import Fitted, Validation, train
from bilevel.outer.problem import BilevelProblem, OuterLoss, Variables, number
from bilevel.outer.state import StepMetrics, TrainingState
from bilevel.solvers import AbstractSolver

#: How often a training in full batches is looked at, unless `every` says otherwise.
LOOKS = 20


class Trainer(eqx.Module):
    """Stochastic (projected) hypergradient descent on a `BilevelProblem`.

    `init` and `step` are pure functions, for loops of your own; `fit` runs them in compiled chunks.

    **Arguments:**

    - `problem`: what to train.
    - `optimizer`: any Optax transformation. `optax.sgd` with the problem's constraints is projected gradient.
    - `batch_size`: how many samples a step sees, in an order drawn anew each epoch; None is all of them. The last
      batch of an epoch is filled up with samples from its beginning, so that every batch has one shape and each
      sample is seen in every epoch.
    - `solver`, `diff`: as in `argmin`.
    - `warm_start`: whether each inner solve starts from its last solution. Where samples are independent, one solution
      is kept for each sample: as many bytes as the solution of all the data.

    A step is refused if its loss, its gradient or the variables after it are not finite: variables, optimizer and warm
    start stay as they were, and the next step takes the next batch.
    """

    problem: BilevelProblem
    optimizer: optax.GradientTransformation
    batch_size: int | None = None
    solver: AbstractSolver | None = eqx.field(converter=tree.to_arrays, default=None)
    diff: AbstractDifferentiation = Implicit()
    warm_start: bool = True

    def __check_init__(self):
        if not isinstance(self.problem, BilevelProblem):
            raise ValueError(f"`problem` must be a BilevelProblem, got {type(self.problem).__name__}.")
        if not isinstance(self.optimizer, optax.GradientTransformation):
            raise ValueError(f"`optimizer` must be an Optax transformation, got {type(self.optimizer).__name__}.")
        check_count("batch_size", self.batch_size, optional=True)

    def init(self, data: PyTree, key: Key[Array, ""]) -> TrainingState:
        """The state before the first step."""
        data = tree.to_arrays(data)
        check_key(key)
        check_data("data", self.problem, data)
        check_batches(self.problem, data, self.batch_size)
        return _start_jit(self, data, key)

    def step(self, state: TrainingState, data: PyTree) -> tuple[TrainingState, StepMetrics]:
        """One step on the next batch of `data`. Pure; compile it, or a loop of it."""
        data = tree.to_arrays(data)
        state, rows = self._next_rows(state, data)
        batch = data if rows is None else jax.tree.map(lambda x: x[rows], data)
        start = self._warm_start_of(state, rows)
        trained, rest = self.problem.split(state.variables)

        def loss_of(trained: PyTree) -> tuple[Scalar, Solution]:
            variables = eqx.combine(trained, rest)
            options: dict[str, Any] = dict(init=start, solver=self.solver, diff=self.diff, throw=False)
            return self.problem.loss(variables, batch, **options)

        (loss, solution), gradient = eqx.filter_value_and_grad(loss_of, has_aux=True)(trained)
        # What a line search, or a rate that follows the loss, asks for; other optimizers let it pass.
        extra: dict[str, Any] = dict(value=loss, grad=gradient, value_fn=lambda trained: loss_of(trained)[0])
        # Optax mixes dtypes; the caller's own code may be held to a stricter rule.
        with jax.numpy_dtype_promotion("standard"):
            optimizer = optax.with_extra_args_support(self.optimizer)
            updates, memory = optimizer.update(gradient, state.optimizer, trained, **extra)
        variables = self.problem.project(eqx.combine(eqx.apply_updates(trained, updates), rest))
        warm_start = self._store(state, rows, solution)
        moved = TrainingState(variables, memory, warm_start, state.order, state.step, state.key)
        good = tree.all_finite((loss, gradient, eqx.filter(variables, eqx.is_inexact_array)))
        state = tree.where(good, moved, state)
        state = eqx.tree_at(lambda s: s.step, state, state.step + 1)
        optimality, steps = solution.stats["optimality"], solution.stats["num_steps"]
        success = jnp.asarray(solution.successful)
        return state, StepMetrics(loss, tree.norm(gradient), optimality, steps, success, ~good)

    def fit(
        self,
        data: PyTree,
        num_steps: int,
        *,
        key: Key[Array, ""] | None = None,
        state: TrainingState | None = None,
        every: int | None = None,
        validation: PyTree = None,
        validation_loss: OuterLoss | None = None,
        patience: int | None = None,
        callback: Callbacks | None = None,
        progress: bool | str = False,
        throw: bool = True,
    ) -> Fitted:
        """Take `num_steps` training steps, compiled in chunks of `every`; Python is not returned to in between.

        **Arguments:**

        - `data`: what the outer loss sees; samples first in every array where there are batches.
        - `key`, `state`: a fresh start from a key (`jax.random.key(0)` by default), or going on from a state.
        - `every`: steps between two looks from outside (progress, validation, callback); by default an epoch, and a
          twentieth of `num_steps` for full batches.
        - `validation`: data for the validation loss, which is the outer loss unless `validation_loss` is given; the
          variables that are best at it are kept. `patience` ends training after that many looks without a new best.
        - `callback`: a function, or a sequence of them, called at each look with the state and the history. It returns
          True to stop, a state to go on from that, or None. `bilevel.monitors` has logs and more.
        - `progress`: whether to show a progress bar with the current losses; a string is its label.
        - `throw`: whether a refused step or a failed inner solve raises `InnerSolveError`, with its number and likely
          cause. With False, the history says it; a validation loss that cannot be had is NaN.

        **Returns:** `Fitted`. Its `history` has an entry a step for each field of `StepMetrics`, and an entry a look
        for `validation_step` and `validation_loss`.
        """
        check_count("num_steps", num_steps)
        check_count("every", every, optional=True)
        check_count("patience", patience, optional=True)
        check_callbacks(callback)
        check_function("validation_loss", validation_loss)
        if not isinstance(progress, bool | str):
            raise ValueError(f"`progress` must be True, False or a label, got {progress!r}.")
        if validation is None and (patience is not None or validation_loss is not None):
            raise ValueError("`patience` and `validation_loss` need `validation`: pass data to validate on.")
        data = tree.to_arrays(data)
        state = self._begin(data, key, state)
        if every is None:
            every = -(-num_steps // LOOKS) if self.batch_size is None else self.steps_per_epoch(data)
        looks: dict[str, Any] = dict(patience=patience, callback=callback, progress=progress, throw=throw)
        validator = None if validation is None else self._validator(validation, validation_loss, state)
        return train(self.step, validator, state, data, num_steps, chunk=min(num_steps, every), **looks)

    def steps_per_epoch(self, data: PyTree) -> int:
        """How many steps see every sample."""
        return 1 if self.batch_size is None else -(-_num_samples(data) // self.batch_size)

    def _begin(self, data: PyTree, key: Key[Array, ""] | None, state: TrainingState | None) -> TrainingState:
        if state is None:
            return self.init(data, jax.random.key(0) if key is None else key)
        if key is not None:
            raise ValueError("`key` and `state` exclude each other: a state has a key of its own.")
        if not isinstance(state, TrainingState):
            raise ValueError(f"`state` must be a TrainingState, got {type(state).__name__}.")
        check_data("data", self.problem, data)
        check_batches(self.problem, data, self.batch_size)
        check_like("state", eqx.filter_eval_shape(_start, self, data, state.key), state)
        return state

    def _validator(self, validation: PyTree, loss: OuterLoss | None, state: TrainingState) -> Validation:
        data = tree.to_arrays(validation)
        check_data("validation", self.problem, data)
        loss = self.problem.outer_loss if loss is None else loss
        start = state.variables.objective.init(self.problem.inner_data(data))
        return Validation(lambda variables, start: _validate(self, loss, variables, data, start), start)

    def _next_rows(self, state: TrainingState, data: PyTree) -> tuple[TrainingState, Int[Array, " batch"] | None]:
        if self.batch_size is None:
            return state, None
        size, per_epoch = _num_samples(data), self.steps_per_epoch(data)
        place = state.step % per_epoch
        key = jax.random.fold_in(state.key, state.step // per_epoch)
        shuffle = lambda order: jax.random.permutation(key, size).astype(order.dtype)
        order = jax.lax.cond(place == 0, shuffle, lambda order: order, state.order)
        rows = order[(place * self.batch_size + jnp.arange(self.batch_size, dtype=place.dtype)) % size]
        return eqx.tree_at(lambda s: s.order, state, order), rows

    def _warm_start_of(self, state: TrainingState, rows: Int[Array, " batch"] | None) -> PyTree:
        if rows is None or not state.variables.objective.samplewise:
            return state.warm_start
        return jax.tree.map(lambda x: x[rows], state.warm_start)

    def _store(self, state: TrainingState, rows: Int[Array, " batch"] | None, solution: Solution) -> PyTree:
        if not self.warm_start:
            return None
        if rows is None or not state.variables.objective.samplewise:
            return solution.params
        return jax.tree.map(lambda all, new: all.at[rows].set(new), state.warm_start, solution.params)


def _num_samples(data: PyTree) -> int:
    return jnp.shape(jax.tree.leaves(data)[0])[0]


def _start(trainer: Trainer, data: PyTree, key: Key[Array, ""]) -> TrainingState:
    problem = trainer.problem
    variables = problem.project(problem.variables)
    warm_start = variables.objective.init(problem.inner_data(data)) if trainer.warm_start else None
    size = 0 if trainer.batch_size is None else _num_samples(data)
    memory = trainer.optimizer.init(problem.split(variables)[0])
    return TrainingState(variables, memory, warm_start, jnp.arange(size), jnp.asarray(0, jnp.int32), key)


_start_jit = eqx.filter_jit(_start)


@eqx.filter_jit
def _validate(
    trainer: Trainer, outer_loss: OuterLoss, variables: Variables, data: PyTree, start: PyTree
) -> tuple[Scalar, PyTree]:
    """The validation loss, NaN where the inner solve failed; and where to start the next time."""
    inner_data = trainer.problem.inner_data(data)
    solution = argmin(variables.objective, inner_data, init=start, solver=trainer.solver, throw=False)
    loss = number("validation_loss", outer_loss(variables, solution.params, data))
    good = jnp.asarray(solution.successful) & jnp.isfinite(loss)
    following = tree.where(good, solution.params, start) if trainer.warm_start else start
    return jnp.where(good, loss, jnp.nan), following
