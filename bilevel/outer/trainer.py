"""Train the outer variables by hypergradients, in compiled chunks of steps."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, Key, PyTree, Scalar

from bilevel.core import tree
from bilevel.differentiation import AbstractDifferentiation, Implicit, argmin
from bilevel.outer.callbacks import Callbacks, check_callbacks
from bilevel.outer.checks import (
    check_count,
    check_data,
    check_function,
    check_key,
    check_like,
    check_options,
)
from bilevel.outer.evaluation import evaluator, sharded_evaluator
from bilevel.outer.feeds import ArrayFeed, LoaderFeed
from bilevel.outer.loop import Fitted, train
from bilevel.outer.prepared import Prepared, prepare
from bilevel.outer.problem import BilevelProblem, OuterLoss, Variables, number
from bilevel.outer.record import Record, Validation
from bilevel.outer.runners import CompiledRunner, FedRunner, Runner
from bilevel.outer.saving import Cut, Saver
from bilevel.outer.start import begin, check_state
from bilevel.outer.state import StepMetrics, TrainingState
from bilevel.outer.warm_starts import with_own
from bilevel.scale import Batches, Checkpoints, DeviceMesh, num_samples
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
      is kept for each sample: as many bytes as the solution of all the data. A path keeps them in a file, for data
      that come from disk or go to a mesh.
    - `mesh`: a `jax.sharding.Mesh` with an axis `"data"`, among whose devices the samples of each batch are shared out;
      a number is that of devices.
      They solve and differentiate their inner problems by themselves, and add up their gradients, once a step. So
      samples must be independent, and the outer loss a mean over them, plus terms of the variables alone. A second
      axis, `"atoms"`, stores matrices of the variables in rows, where a device has not the memory to keep a large
      dictionary and what the optimizer remembers of it.
    - `shards`: into how many ranges samples are cut, each with its own part of a batch, shuffled within; by default as
      many as devices. The same number gives the same batches on any mesh, and without one: results differ by rounding.

    A step is refused if its loss, its gradient or the variables after it are not finite: variables, optimizer and warm
    start stay as they were, and the next step takes the next batch.
    """

    problem: BilevelProblem
    optimizer: optax.GradientTransformation
    batch_size: int | None = None
    solver: AbstractSolver | None = eqx.field(converter=tree.to_arrays, default=None)
    diff: AbstractDifferentiation = Implicit()
    warm_start: bool | str | Path = True
    mesh: DeviceMesh | None = eqx.field(converter=DeviceMesh.of, default=None, kw_only=True)
    shards: int | None = eqx.field(default=None, kw_only=True)

    def __check_init__(self):
        if not isinstance(self.problem, BilevelProblem):
            raise ValueError(f"`problem` must be a BilevelProblem, got {type(self.problem).__name__}.")
        if not isinstance(self.optimizer, optax.GradientTransformation):
            raise ValueError(f"`optimizer` must be an Optax transformation, got {type(self.optimizer).__name__}.")
        if not isinstance(self.warm_start, bool | str | Path):
            raise ValueError(f"`warm_start` must be True, False or a path, got {self.warm_start!r}.")
        check_count("batch_size", self.batch_size, optional=True)
        check_count("shards", self.shards, optional=True)
        if self.mesh is not None and not self.problem.variables.objective.samplewise:
            raise ValueError(
                f"`mesh` shares out samples, but those of {type(self.problem.variables.objective).__name__} are not "
                "independent: its inner problem is one for all of them. Train without a mesh."
            )

    def init(self, data: PyTree, key: Key[Array, ""]) -> TrainingState:
        """The state before the first step."""
        check_key(key)
        return self._start(self._prepared(data), key, self.warm_start)

    def step(self, state: TrainingState, data: PyTree) -> tuple[TrainingState, StepMetrics]:
        """One step on the next batch of `data`, on one device. Pure; compile it, or a loop of it."""
        data = tree.to_arrays(data)
        state, rows = self._next_rows(state, data)
        batch = data if rows is None else jax.tree.map(lambda x: x[rows], data)
        start = self._warm_start_of(state, rows)
        alone = dataclasses.replace(self, mesh=None)
        variables, memory, params, metrics = alone._update(state.variables, state.optimizer, batch, start, None)
        warm_start = self._store(state, rows, params)
        if rows is not None:
            suspect = jnp.where(metrics.suspect < 0, -1, rows[metrics.suspect]).astype(jnp.int32)
            metrics = eqx.tree_at(lambda m: m.suspect, metrics, suspect)
        return TrainingState(variables, memory, warm_start, state.order, state.step + 1, state.key), metrics

    def _update(
        self, variables: Variables, memory: PyTree, batch: PyTree, start: PyTree, weights: Array | None
    ) -> tuple[Variables, PyTree, PyTree, StepMetrics]:
        """Variables, the optimizer's memory and inner solutions after a step; as they were, if it is refused."""
        trained, rest = self.problem.split(variables)
        options: dict[str, Any] = dict(solver=self.solver, diff=self.diff)
        if self.mesh is None:
            evaluate = evaluator(self.problem, batch, start, **options)
        else:
            evaluate = sharded_evaluator(self.problem, self.mesh, batch, start, weights, **options)
        found = evaluate(trained, rest)
        # What a line search, or a rate that follows the loss, asks for; other optimizers let it pass.
        extra: dict[str, Any] = dict(
            value=found.loss, grad=found.gradient, value_fn=lambda trained: evaluate(trained, rest).loss
        )
        # Optax mixes dtypes; the caller's own code may be held to a stricter rule.
        with jax.numpy_dtype_promotion("standard"):
            optimizer = optax.with_extra_args_support(self.optimizer)
            updates, moved_memory = optimizer.update(found.gradient, memory, trained, **extra)
        moved = self.problem.project(eqx.combine(eqx.apply_updates(trained, updates), rest))
        good = tree.all_finite((found.loss, found.gradient, eqx.filter(moved, eqx.is_inexact_array)))
        variables, memory = tree.where(good, (moved, moved_memory), (variables, memory))
        if self.mesh is not None:
            variables, memory = self.mesh.keep((variables, memory))
        params = found.params if start is None else tree.where(good, found.params, start)
        norm = tree.norm(found.gradient)
        metrics = StepMetrics(found.loss, norm, found.optimality, found.num_steps, found.success, ~good, found.suspect)
        return variables, memory, params, metrics

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
        checkpoint: str | Path | Checkpoints | None = None,
        resume: bool | int = False,
        on_failure: Literal["raise", "skip"] = "raise",
    ) -> Fitted:
        """Take `num_steps` training steps, compiled in chunks of `every`; Python is not returned to in between.

        **Arguments:**

        - `data`: what the outer loss sees; samples first in every array where there are batches. Arrays; or, read batch
          by batch, arrays on disk (memory maps, Zarr, `NpyShards`), or a loader of Grain that makes the batches.
        - `key`, `state`: a fresh start from a key (`jax.random.key(0)` by default), or going on from a state.
        - `every`: steps between two looks from outside (progress, validation, callback, checkpoint); by default an
          epoch, and a twentieth of `num_steps` for full batches and loaders.
        - `validation`: data for the validation loss, which is the outer loss unless `validation_loss` is given; the
          variables that are best at it are kept. `patience` ends training after that many looks without a new best.
        - `callback`: a function, or a sequence of them, called at each look with the state and the history. It returns
          True to stop, a state to go on from that, or None. `bilevel.monitors` has logs and more.
        - `progress`: whether to show a progress bar with the current losses; a string is its label.
        - `checkpoint`: where training is saved, at looks and at its end, and when the process is asked to end by
          SIGTERM, which then raises `SystemExit`: a path, or `Checkpoints`, which says how often and how many are kept.
        - `resume`: go on from the last checkpoint, or from that of a step, as if nothing had happened: bit for bit, and
          on another number of devices up to rounding. `num_steps` counts from where training began at first. Where
          there is no checkpoint yet, it begins.
        - `on_failure`: whether a refused step or a failed inner solve raises `InnerSolveError`, with its number and
          likely cause, or is skipped; then the history says it, and a validation loss that cannot be had is NaN.

        **Returns:** `Fitted`. Its `history` has an entry a step for each field of `StepMetrics`, and an entry a look
        for `validation_step` and `validation_loss`.

        **Raises:** `ValueError` for bad input; `InnerSolveError`; `CheckpointError` where a checkpoint can't be
        written, or is damaged, or of another training.
        """
        check_count("num_steps", num_steps)
        check_count("every", every, optional=True)
        check_count("patience", patience, optional=True)
        check_callbacks(callback)
        check_function("validation_loss", validation_loss)
        check_options(progress, on_failure, checkpoint, resume)
        if validation is None and (patience is not None or validation_loss is not None):
            raise ValueError("`patience` and `validation_loss` need `validation`: pass data to validate on.")
        prepared = self._prepared(data)
        state = self._begin(prepared, key, state)
        if every is None:
            every = -(-num_steps // LOOKS) if self.batch_size is None else self.steps_per_epoch(prepared.shapes)
        chunk = min(num_steps, every)
        record = Record(None if validation is None else self._validator(validation, validation_loss, state), state)
        runner = self._runner(state, prepared, chunk)
        looks: dict[str, Any] = dict(
            patience=patience, callback=callback, progress=progress, throw=on_failure == "raise"
        )
        if checkpoint is None:
            return train(runner, record, num_steps, chunk=chunk, saver=None, **looks)
        with self._saver(checkpoint, prepared) as saver:
            saver.resume(runner, record, resume)
            return train(runner, record, num_steps, chunk=chunk, saver=saver, **looks)

    def steps_per_epoch(self, data: PyTree) -> int:
        """How many steps see every sample."""
        return 1 if self.batch_size is None else -(-num_samples(data) // self.batch_size)

    def _prepared(self, data: PyTree) -> Prepared:
        return prepare(self.problem, data, self.batch_size, self.mesh, self.warm_start)

    def _batches(self, shapes: PyTree) -> Batches:
        size = num_samples(shapes)
        batch_size = size if self.batch_size is None else self.batch_size
        shards = self.shards or (1 if self.mesh is None else self.mesh.size)
        return Batches(size, batch_size, min(shards, batch_size))

    def _begin(self, prepared: Prepared, key: Key[Array, ""] | None, state: TrainingState | None) -> TrainingState:
        if state is None:
            key = jax.random.key(0) if key is None else key
            check_key(key)
            return self._start(prepared, key, self.warm_start)
        if key is not None:
            raise ValueError("`key` and `state` exclude each other: a state has a key of its own.")
        if not isinstance(state, TrainingState):
            raise ValueError(f"`state` must be a TrainingState, got {type(state).__name__}.")
        if prepared.fed:
            check_state(state, prepared, self._start(prepared, state.key, warm_start=False), self.problem)
            return with_own(state) if self.warm_start else dataclasses.replace(state, warm_start=None)
        check_like("state", eqx.filter_eval_shape(_start, self, prepared.data, state.key), tree.to_arrays(state))
        return tree.to_arrays(state)

    def _start(self, prepared: Prepared, key: Key[Array, ""], warm_start: bool | str | Path) -> TrainingState:
        """`init`, of data that were prepared."""
        if not prepared.fed:
            return _start_jit(self, prepared.data, key)
        batches, shuffled = self._batches(prepared.shapes), self.batch_size is not None
        return begin(self.problem, self.optimizer, prepared, key, batches, shuffled, warm_start)

    def _runner(self, state: TrainingState, prepared: Prepared, chunk: int) -> Runner:
        if not prepared.fed:
            return CompiledRunner(self.step, state, prepared.data, chunk)
        if prepared.loaded:
            feed = LoaderFeed(prepared.data, self.mesh)
        else:
            in_memory = jax.tree.map(lambda x: np.asarray(x) if eqx.is_array(x) else x, prepared.data)
            batches, shuffled = self._batches(prepared.shapes), self.batch_size is not None
            feed = ArrayFeed(in_memory, batches, self.mesh, shuffled, tree.dtype(state.variables))
        trainer = self if self.mesh is None else self.mesh.place(self)
        return FedRunner(trainer._update, state, feed, self.mesh)

    def _saver(self, checkpoint: str | Path | Checkpoints, prepared: Prepared) -> Saver:
        options = checkpoint if isinstance(checkpoint, Checkpoints) else Checkpoints(checkpoint)
        facts: dict[str, Any] = {"batch_size": self.batch_size, "warm_start": self.warm_start is not False}
        if prepared.loaded:
            # Each process goes on from where its own loader stood.
            return Saver(options, None, facts | {"processes of the loader": jax.process_count()})
        if self.batch_size is None and not prepared.fed:
            return Saver(options, None, facts)
        batches = self._batches(prepared.shapes)
        owned = list(range(batches.shards)) if self.mesh is None else self.mesh.owned(batches)
        by_sample = self.problem.variables.objective.samplewise and self.warm_start is not False
        facts |= {"num_samples": batches.num_samples, "shards": batches.shards}
        return Saver(options, Cut(batches, owned, by_sample, self.batch_size is not None), facts)

    def _validator(self, validation: PyTree, loss: OuterLoss | None, state: TrainingState) -> Validation:
        data = tree.to_arrays(validation)
        check_data("validation", self.problem, data)
        loss = self.problem.outer_loss if loss is None else loss
        start = state.variables.objective.init(self.problem.inner_data(data))
        return Validation(lambda variables, start: _validate(self, loss, variables, data, start), start)

    def _next_rows(self, state: TrainingState, data: PyTree) -> tuple[TrainingState, Int[Array, " batch"] | None]:
        if self.batch_size is None:
            return state, None
        batches = self._batches(data)
        epoch, place = jnp.divmod(state.step, batches.steps_per_epoch)
        order = jax.lax.cond(place == 0, lambda: batches.order(state.key, epoch), lambda: state.order)
        return eqx.tree_at(lambda s: s.order, state, order), order[batches.places(place)]

    def _warm_start_of(self, state: TrainingState, rows: Int[Array, " batch"] | None) -> PyTree:
        if rows is None or not state.variables.objective.samplewise:
            return state.warm_start
        return jax.tree.map(lambda x: x[rows], state.warm_start)

    def _store(self, state: TrainingState, rows: Int[Array, " batch"] | None, params: PyTree) -> PyTree:
        if not self.warm_start:
            return None
        if rows is None or not state.variables.objective.samplewise:
            return params
        return jax.tree.map(lambda all, new: all.at[rows].set(new), state.warm_start, params)


def _start(trainer: Trainer, data: PyTree, key: Key[Array, ""]) -> TrainingState:
    problem = trainer.problem
    variables = problem.project(problem.variables)
    warm_start = variables.objective.init(problem.inner_data(data)) if trainer.warm_start else None
    size = 0 if trainer.batch_size is None else num_samples(data)
    memory = tree.numbers_to_arrays(trainer.optimizer.init(problem.split(variables)[0]))
    order = jnp.arange(size, dtype=jnp.int32)
    return TrainingState(variables, memory, warm_start, order, jnp.asarray(0, jnp.int32), key)


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
