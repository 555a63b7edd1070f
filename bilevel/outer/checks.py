"""Is what a training is given fit to train with? `ValueError`, with the argument's name, where it is not."""

from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from bilevel.core import tree
from bilevel.core.requirements import finite, raise_where_violated
from bilevel.outer.evaluation import losses
from bilevel.outer.problem import BilevelProblem
from bilevel.scale import Checkpoints

#: Of how many samples the loss is compared with that of each.
MOST_COMPARED = 64


def check_count(name: str, value: Any, *, optional: bool = False) -> None:
    """A Python int of at least 1, or None where it is optional."""
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if not is_count and not (optional and value is None):
        raise ValueError(f"`{name}` must be a Python int of at least 1, got {value!r}.")


def check_function(name: str, value: Any) -> None:
    """A function, or None."""
    if value is not None and not callable(value):
        raise ValueError(f"`{name}` must be a function, got {type(value).__name__}.")


def check_key(key: Any) -> None:
    """One key of the new style."""
    if not (tree.is_key(key) and key.shape == ()):
        raise ValueError(f"`key` must be a key such as jax.random.key(0), got {key!r}.")


def check_data(name: str, problem: BilevelProblem, data: PyTree) -> None:
    """Finite, and of shapes that the inner problem takes."""
    leaves = jax.tree_util.tree_leaves_with_path(data)
    inexact = [(f"{name}{jax.tree_util.keystr(path)}", x) for path, x in leaves if eqx.is_inexact_array(x)]
    raise_where_violated(finite(path, x) for path, x in inexact)
    check_shapes(problem, data)


def check_shapes(problem: BilevelProblem, data: PyTree) -> None:
    """Of shapes and dtypes that the inner problem takes."""
    problem.variables.objective.check_data(problem.inner_data(data))


def check_finite_in_memory(name: str, data: PyTree) -> None:
    """Finite, as `check_data` asks for, but without bringing the data to a device."""
    for path, x in jax.tree_util.tree_leaves_with_path(data):
        count = int(np.sum(~np.isfinite(x))) if np.issubdtype(x.dtype, np.inexact) else 0
        if count:
            where = f"`{name}{jax.tree_util.keystr(path)}`"
            raise ValueError(f"{where} has {count} entries that are NaN or infinite. Remove or impute them.")


def check_batches(problem: BilevelProblem, data: PyTree, batch_size: int | None) -> None:
    """Whether there are as many samples in every array, and enough of them for a batch."""
    if batch_size is None:
        return
    shapes = [jnp.shape(x) if isinstance(x, int | float) else x.shape for x in jax.tree.leaves(data)]
    if len({shape[:1] for shape in shapes}) != 1 or shapes[0] == ():
        raise ValueError(
            f"`data` must have the same number of samples in every array, as there are batches: got shapes {shapes}. "
            "What is no sample belongs into `Variables.task`, and `train` leaves it untrained."
        )
    if batch_size > shapes[0][0]:
        raise ValueError(
            f"`batch_size` is {batch_size}, but `data` has {shapes[0][0]} samples. Pass None for all of them."
        )
    seen = {jnp.shape(x)[:1] for x in jax.tree.leaves(jax.eval_shape(problem.inner_data, data))}
    if problem.variables.objective.samplewise and seen != {shapes[0][:1]}:
        raise ValueError(
            f"`inner_data` must keep the samples of a batch, as their inner solutions are kept from step to step: got "
            f"{seen} of {shapes[0][0]}. Select features with it, not samples, or pass `batch_size=None`."
        )


def check_like(name: str, wanted: PyTree, value: PyTree) -> None:
    """Whether `value` has the structure, shapes and dtypes of `wanted`."""
    describe = lambda leaves: {jax.tree_util.keystr(path): f"{x.dtype}{list(x.shape)}" for path, x in leaves}
    arrays = lambda tree: eqx.filter(tree, lambda x: eqx.is_array(x) or isinstance(x, jax.ShapeDtypeStruct))
    wanted, value = (describe(jax.tree_util.tree_leaves_with_path(arrays(t))) for t in (wanted, value))
    for path in [*wanted, *value]:
        if wanted.get(path) != value.get(path):
            raise ValueError(
                f"`{name}` belongs to another trainer or to other data: {name}{path} should be {wanted.get(path)}, got "
                f"{value.get(path)}."
            )


def check_mean(problem: BilevelProblem, data: PyTree) -> None:
    """Whether the outer loss is a mean over samples: that of a batch is the mean of those of each alone.

    For inner solutions drawn at random, as none need be found for this.
    """
    size = len(jax.tree.leaves(data)[0])
    some = jax.tree.map(lambda x: x[np.unique(np.linspace(0, size - 1, MOST_COMPARED).astype(int))], data)
    params = tree.pseudorandom_like(problem.variables.objective.init(problem.inner_data(some)))
    whole = problem.outer_loss(problem.variables, params, some)
    each = losses(problem, problem.variables, params, some)
    # What is not finite is seen to by the step that meets it.
    if jnp.abs(whole - jnp.mean(each)) > 1e3 * jnp.finfo(each.dtype).eps * jnp.mean(jnp.abs(each)):
        raise ValueError(
            "`outer_loss` must be a mean over samples, plus terms of the variables alone, as a mesh shares them out: "
            f"of {len(each)} samples it is {whole:.6g}, and the mean of those of each alone is {jnp.mean(each):.6g}."
        )


def check_options(progress: Any, on_failure: Any, checkpoint: Any, resume: Any) -> None:
    """The options of a fit that are words, switches and paths."""
    if not isinstance(progress, bool | str):
        raise ValueError(f"`progress` must be True, False or a label, got {progress!r}.")
    if on_failure not in ("raise", "skip"):
        raise ValueError(f'`on_failure` must be "raise" or "skip", got {on_failure!r}.')
    if not (checkpoint is None or isinstance(checkpoint, str | Path | Checkpoints)):
        raise ValueError(f"`checkpoint` must be a path or `Checkpoints`, got {checkpoint!r}.")
    if not isinstance(resume, bool | int) or resume < 0:
        raise ValueError(f"`resume` must be True, False or a step, got {resume!r}.")
    if checkpoint is None and resume is not False:
        raise ValueError("`resume` needs `checkpoint`: pass the directory to resume from.")
