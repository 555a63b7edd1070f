"""Bilevel problems for the tests, and what NumPy knows of them."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

import bilevel as bl

SAMPLES, FEATURES, ATOMS = 10, 4, 5

# --- The hyperparameters of Ridge, by the error on other samples ------------------------------------------------------


class Split(NamedTuple):
    """Samples to fit and samples to judge by."""

    fit: tuple[Array, Array]
    held_out: tuple[Array, Array]


def split_of(seed: int = 0, features: int = 3, noise: float = 1.0, samples: int = 12) -> Split:
    """A linear model with noise, of which the last features carry less."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=features) * np.linspace(1, 0, features)
    draw = lambda: rng.normal(size=(samples, features))
    parts = [(X, X @ weight + noise * rng.normal(size=samples)) for X in (draw(), draw())]
    return Split(*[(jnp.asarray(X), jnp.asarray(y)) for X, y in parts])


def held_out_error(variables: bl.Variables, model: Any, batch: Split) -> Array:
    """½ the mean squared error on the held-out samples."""
    X, y = batch.held_out
    return 0.5 * jnp.mean((model(X) - y) ** 2)


def ridge_problem(alpha: np.ndarray | float, **options: Any) -> bl.BilevelProblem:
    """min over alpha of the held-out error."""
    variables = bl.Variables(bl.objectives.Ridge(alpha))
    return bl.BilevelProblem(held_out_error, variables, inner_data=lambda batch: batch.fit, **options)


def ridge_by_hand(alpha: np.ndarray, batch: Split) -> tuple[float, np.ndarray]:
    """The held-out error and its gradient in alpha, one for each feature.

    w = M⁻¹ Xᵀy / n with M = XᵀX / n + diag α, so that ∂w/∂αⱼ = −M⁻¹ eⱼ wⱼ.
    """
    (X, y), (Z, t) = jax.tree.map(np.asarray, batch)
    matrix = X.T @ X / len(X) + np.diag(alpha)
    weight = np.linalg.solve(matrix, X.T @ y / len(X))
    residual = Z @ weight - t
    adjoint = np.linalg.solve(matrix, Z.T @ residual / len(Z))
    return 0.5 * float(np.mean(residual**2)), -adjoint * weight


# --- A dictionary and a linear head for its codes ---------------------------------------------------------------------


def signals(seed: int = 0, samples: int = SAMPLES) -> tuple[Array, Array]:
    """Samples, and targets that are a function of them."""
    X = np.random.default_rng(seed).normal(size=(samples, FEATURES))
    return jnp.asarray(X), jnp.asarray(np.tanh(X[:, 0] - X[:, 1]))


def coding_variables(task: PyTree = None, dtype: Any = None) -> bl.Variables:
    rng = np.random.default_rng(1)
    dictionary = rng.normal(size=(ATOMS, FEATURES))
    dictionary /= np.linalg.norm(dictionary, axis=1, keepdims=True)
    head = rng.normal(size=ATOMS) if task is None else task
    variables = bl.Variables(bl.objectives.SparseCoding(dictionary, l1=0.2, l2=0.1), head)
    cast = lambda x: x.astype(dtype or x.dtype) if eqx.is_inexact_array(x) else x
    return jax.tree.map(cast, variables)


def regression_loss(variables: bl.Variables, codes: Array, batch: tuple[Array, Array]) -> Array:
    """½ the mean squared error of a linear function of the codes."""
    return 0.5 * jnp.mean((codes @ variables.task - batch[1]) ** 2)


def dictionary_of(variables: bl.Variables) -> Any:
    return variables.objective.dictionary


def dictionary_and_task(variables: bl.Variables) -> Any:
    return variables.objective.dictionary, variables.task


UNIT_ATOMS = bl.Constrained(dictionary_of, bl.prox.UnitBall())


def coding_problem(loss: Any = regression_loss, **options: Any) -> bl.BilevelProblem:
    """min over dictionary and head of the error of a linear function of the codes."""
    options = dict(variables=coding_variables(), train=dictionary_and_task, constraints=[UNIT_ATOMS]) | options
    return bl.BilevelProblem(loss, inner_data=lambda batch: batch[0], **options)


# --- States -----------------------------------------------------------------------------------------------------------


def leaves_of(state: PyTree) -> list[np.ndarray]:
    """The arrays of a state, keys as numbers."""
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    arrays = jax.tree.leaves(eqx.filter(state, eqx.is_array))
    return [np.asarray(jax.random.key_data(x) if is_key(x) else x) for x in arrays]


def same(a: PyTree, b: PyTree) -> bool:
    """Equal bit for bit."""
    pairs = zip(leaves_of(a), leaves_of(b), strict=True)
    return all(x.dtype == y.dtype and np.array_equal(x, y, equal_nan=True) for x, y in pairs)
