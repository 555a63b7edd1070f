"""The state before the first step of a training whose data are fed to it batch by batch."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Key, PyTree

from bilevel.core import tree
from bilevel.outer.problem import BilevelProblem
from bilevel.outer.state import TrainingState
from bilevel.outer.warm_starts import allocate
from bilevel.scale import Batches, is_loader, take


def begin(
    problem: BilevelProblem,
    optimizer: optax.GradientTransformation,
    batches: Batches,
    data: PyTree,
    key: Key[Array, ""],
    shuffled: bool,
    warm_start: bool | str | Path,
) -> TrainingState:
    """As `Trainer.init`; where inner solves start is found batch by batch, too."""
    variables = problem.project(problem.variables)
    memory = optimizer.init(problem.split(variables)[0])
    order = jnp.arange(batches.num_samples if shuffled else 0, dtype=jnp.int32)
    init = lambda batch: variables.objective.init(problem.inner_data(tree.to_arrays(batch)))
    if warm_start is False or (is_loader(data) and variables.objective.samplewise):
        starts = None
    elif not variables.objective.samplewise:
        starts = init(_some(data, batches, 0))
    else:
        starts = _starts(init, data, batches, None if warm_start is True else Path(warm_start))
    return TrainingState(variables, memory, starts, order, jnp.asarray(0, jnp.int32), key)


def _some(data: PyTree, batches: Batches, first: int) -> PyTree:
    """Samples from number `first` on, up to a batch of them."""
    return take(data, np.arange(first, min(first + batches.batch_size, batches.num_samples)))


def _starts(init: Any, data: PyTree, batches: Batches, path: Path | None) -> PyTree:
    """Where the solve of each sample starts. What is zero is not written: memory that nobody touched is none."""
    stored = allocate(init(_some(data, batches, 0)), batches.num_samples, path)
    for first in range(0, batches.num_samples, batches.batch_size):
        starts = init(_some(data, batches, first))
        for array, values in zip(jax.tree.leaves(stored), jax.tree.leaves(starts), strict=True):
            if np.any(values):
                array[first : first + len(values)] = values
    return stored
