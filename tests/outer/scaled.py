"""A training small enough to be repeated on meshes, in processes and from checkpoints; and what there is to compare."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

import bilevel as bl
from tests.outer.examples import UNIT_ATOMS, dictionary_and_task

SAMPLES, FEATURES, ATOMS = 101, 6, 8
#: One object for all: another one, though alike, would be another program.
ADAM = optax.adam(0.02)


def signals(samples: int = SAMPLES, seed: int = 0, dtype: Any = np.float64) -> tuple[np.ndarray, np.ndarray]:
    """Samples, and targets that are a function of them."""
    X = np.random.default_rng(seed).normal(size=(samples, FEATURES)).astype(dtype)
    return X, np.tanh(X[:, 0] - X[:, 1])


def loss(variables: bl.Variables, codes: Array, batch: tuple[Array, Array]) -> Array:
    """½ the mean squared error of a linear function of the codes, and a penalty on its weights."""
    return 0.5 * jnp.mean((codes @ variables.task - batch[1]) ** 2) + 1e-3 * jnp.sum(variables.task**2)


def problem(
    outer_loss: Any = loss, atoms: int = ATOMS, features: int = FEATURES, dtype: Any = None
) -> bl.BilevelProblem:
    rng = np.random.default_rng(1)
    dictionary = rng.normal(size=(atoms, features))
    dictionary /= np.linalg.norm(dictionary, axis=1, keepdims=True)
    variables = bl.Variables(bl.objectives.SparseCoding(dictionary, l1=0.2, l2=0.1), rng.normal(size=atoms))
    if dtype is not None:
        variables = jax.tree.map(lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x, variables)
    return bl.BilevelProblem(
        outer_loss, variables, inner_data=lambda batch: batch[0], train=dictionary_and_task, constraints=[UNIT_ATOMS]
    )


def trainer(batch_size: int | None = 16, **options: Any) -> bl.Trainer:
    return bl.Trainer(problem(), ADAM, batch_size, **options)


def mesh_of(*sizes: int) -> jax.sharding.Mesh:
    """The first devices, in a mesh of these sizes."""
    devices = np.asarray(jax.devices()[: int(np.prod(sizes))]).reshape(sizes)
    return jax.sharding.Mesh(devices, ("data", "atoms")[: len(sizes)])


def distance(a: bl.Variables, b: bl.Variables) -> float:
    """The largest relative difference of a trained array."""
    pairs = zip(dictionary_and_task(a), dictionary_and_task(b), strict=True)
    return max(float(np.linalg.norm(x - y) / np.linalg.norm(y)) for x, y in pairs)


def seen(fitted: bl.Fitted) -> dict[str, np.ndarray]:
    """All that a training ends with, by names."""
    state = eqx.tree_at(lambda s: s.key, fitted.state, jax.random.key_data(fitted.state.key))
    leaves = jax.tree_util.tree_leaves_with_path(eqx.filter((fitted.variables, state), eqx.is_array_like))
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves} | fitted.history
