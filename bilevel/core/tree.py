"""Pytree algebra that `optax.tree` lacks."""

from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree, Scalar

from bilevel.core.requirements import eagerly

T = TypeVar("T")


def to_arrays(tree: T) -> T:
    """Python and NumPy numbers of the floating kind become JAX arrays, so that a new value never recompiles."""
    is_number = lambda x: isinstance(x, float | np.ndarray | np.floating) and not isinstance(x, bool)
    return jax.tree.map(lambda x: jnp.asarray(x, dtype=jnp.asarray(x).dtype) if is_number(x) else x, tree)


def float_arrays(tree: T) -> T:
    """Every leaf that is a number or an array of integers becomes an array of the default floating dtype."""

    def of_leaf(x: Any) -> Any:
        if isinstance(x, int | float | np.ndarray | np.number) or eqx.is_array(x):
            with eagerly(x):
                x = jnp.asarray(x)
                # Not weakly typed: a weak and a strong 0.5 would be two types to the compiler.
                return x.astype(x.dtype if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.result_type(float))
        return x

    return jax.tree.map(of_leaf, tree)


def dtype(tree: PyTree) -> Any:
    """The floating dtype that the inexact leaves of `tree` share (the widest, where they differ)."""
    leaves = [x.dtype for x in jax.tree.leaves(tree) if eqx.is_inexact_array(x)]
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*leaves) if leaves else jnp.result_type(float)


def broadcast(prefix: PyTree, tree: PyTree) -> PyTree:
    """`prefix`, a tree prefix of `tree` (a single number, say), with the leaves, shapes and dtypes of `tree`."""
    full = jax.tree.broadcast(prefix, tree)
    return jax.tree.map(lambda p, x: jnp.broadcast_to(jnp.asarray(p).astype(x.dtype), x.shape), full, tree)


def max_abs(tree: PyTree) -> Scalar:
    """‖tree‖_∞; zero for an empty tree."""
    largest = jnp.zeros((), dtype(tree))
    for leaf in jax.tree.leaves(tree):
        largest = jnp.maximum(largest, jnp.max(jnp.abs(leaf), initial=0).astype(largest.dtype))
    return largest


def all_finite(tree: PyTree) -> Array:
    """Whether every inexact leaf is finite."""
    leaves = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree) if eqx.is_inexact_array(x)]
    return jnp.all(jnp.asarray(leaves)) if leaves else jnp.asarray(True)


def where(condition: Array, a: T, b: T) -> T:
    """Leaf by leaf `jnp.where`; leaves that are not arrays come from `a`."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y) if eqx.is_array(x) else x, a, b)
