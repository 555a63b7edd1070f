"""The state before the first step of a training whose data are fed to it batch by batch."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Key, PyTree

from bilevel.core import tree
from bilevel.outer.checks import check_like
from bilevel.outer.prepared import Prepared
from bilevel.outer.problem import BilevelProblem
from bilevel.outer.state import TrainingState
from bilevel.outer.warm_starts import allocate
from bilevel.scale import Batches, num_samples, shapes_of, take


def begin(
    problem: BilevelProblem,
    optimizer: optax.GradientTransformation,
    prepared: Prepared,
    key: Key[Array, ""],
    batches: Batches,
    shuffled: bool,
    warm_start: bool | str | Path,
) -> TrainingState:
    """As `Trainer.init`; where inner solves start is found batch by batch."""
    variables = problem.project(problem.variables)
    memory = tree.numbers_to_arrays(optimizer.init(problem.split(variables)[0]))
    order = jnp.arange(batches.num_samples if shuffled else 0, dtype=jnp.int32)
    init = lambda batch: variables.objective.init(problem.inner_data(tree.to_arrays(batch)))
    if warm_start is False or (prepared.loaded and variables.objective.samplewise):
        starts = None
    elif not variables.objective.samplewise:
        starts = init(prepared.first)
    else:
        path = None if warm_start is True else Path(warm_start)
        starts = _starts(init, prepared.data, init(prepared.first), batches, path)
    return TrainingState(variables, memory, starts, order, jnp.asarray(0, jnp.int32), key)


def check_state(state: TrainingState, prepared: Prepared, fresh: TrainingState, problem: BilevelProblem) -> None:
    """Whether a training can go on from `state`, if one without warm starts would begin with `fresh`."""
    check_like("state", fresh, dataclasses.replace(state, warm_start=None))
    if state.warm_start is None:
        # Solves start anew, from here on.
        return
    objective = problem.variables.objective
    if objective.samplewise and prepared.loaded:
        raise ValueError("`state` has warm starts, which the samples of a loader have no numbers to be found by.")
    wanted = jax.eval_shape(lambda first: objective.init(problem.inner_data(first)), prepared.first)
    if objective.samplewise:
        of_all = lambda x: jax.ShapeDtypeStruct((num_samples(prepared.data), *x.shape[1:]), x.dtype)
        wanted = jax.tree.map(of_all, wanted)
    check_like("state.warm_start", wanted, shapes_of(state.warm_start))


def _starts(init: Any, data: PyTree, like: PyTree, batches: Batches, path: Path | None) -> PyTree:
    """Where the solve of each sample starts. What is zero is not written: memory that nobody touched is none."""
    stored = allocate(like, batches.num_samples, path)
    for first in range(0, batches.num_samples, batches.batch_size):
        starts = init(take(data, np.arange(first, min(first + batches.batch_size, batches.num_samples))))
        for array, values in zip(jax.tree.leaves(stored), jax.tree.leaves(starts), strict=True):
            if np.any(values):
                array[first : first + len(values)] = values
    return stored
