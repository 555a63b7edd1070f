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
    """NumPy arrays and floating numbers become JAX arrays, so that a new value never recompiles."""
    is_numeric = lambda x: isinstance(x, float | np.floating | np.ndarray)
    return jax.tree.map(lambda x: _strongly_typed(x) if is_numeric(x) else x, tree)


def float_arrays(tree: T) -> T:
    """Every leaf that is a number or an array becomes an inexact array, of the default dtype where it was none."""

    def of_leaf(x: Any) -> Any:
        if not (isinstance(x, int | float | np.number | np.ndarray) or eqx.is_array(x)):
            return x
        x = _strongly_typed(x)
        return x if jnp.issubdtype(x.dtype, jnp.inexact) else _strongly_typed(x, float)

    return jax.tree.map(of_leaf, tree)


def stored(x: Any) -> np.ndarray:
    """An array as NumPy keeps it; of a random key, its data."""
    return np.asarray(jax.random.key_data(x) if is_key(x) else x)


def restored(data: Any, like: Any) -> Array:
    """An array of what `stored` made of one of the kind of `like`."""
    return (
        jax.random.wrap_key_data(jnp.asarray(data), impl=jax.random.key_impl(like))
        if is_key(like)
        else jnp.asarray(data)
    )


def is_key(x: Any) -> bool:
    """Whether this is an array of keys of the new style."""
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def numbers_to_arrays(tree: T) -> T:
    """All numbers become arrays, whole ones too, so that a program can change them."""
    is_number = lambda x: isinstance(x, int | float | np.number | np.ndarray) and not isinstance(x, bool)
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)) if is_number(x) else x, tree)


def dtype(tree: PyTree) -> Any:
    """The floating dtype that the inexact leaves of `tree` share (the widest, where they differ)."""
    leaves = [x.dtype for x in jax.tree.leaves(tree) if eqx.is_inexact_array(x)]
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*leaves) if leaves else jnp.result_type(float)


def broadcast(name: str, prefix: PyTree, tree: PyTree) -> PyTree:
    """`prefix`, a tree prefix of `tree` (a single number, say), with the leaves, shapes and dtypes of `tree`.

    Raises `ValueError`, with the `name` of the prefix, where it does not fit.
    """

    def of_leaf(p: Any, x: Array) -> Array:
        p = jnp.asarray(p)
        try:
            return jnp.broadcast_to(p.astype(x.dtype), x.shape)
        except ValueError as error:
            raise ValueError(
                f"`{name}` of shape {p.shape} does not broadcast to the unknown it applies to, of shape {x.shape}. "
                "Pass a number, or an array that broadcasts."
            ) from error

    try:
        full = jax.tree.broadcast(prefix, tree)
    except ValueError as error:
        raise ValueError(
            f"`{name}` must be a number, an array or a tree prefix of the unknown: got {jax.tree.structure(prefix)}, "
            f"but the unknown is {jax.tree.structure(tree)}."
        ) from error
    return jax.tree.map(of_leaf, full, tree)


def max_abs(tree: PyTree) -> Scalar:
    """‖tree‖_∞; zero for an empty tree."""
    largest = jnp.zeros((), dtype(tree))
    for leaf in jax.tree.leaves(tree):
        largest = jnp.maximum(largest, jnp.max(jnp.abs(leaf), initial=0).astype(largest.dtype))
    return largest


def scale(factor: Array, tree: PyTree) -> PyTree:
    """factor · tree, in the dtypes of the leaves."""
    return jax.tree.map(lambda x: factor.astype(x.dtype) * x, tree)


def pseudorandom_like(tree: PyTree) -> PyTree:
    """A fixed vector with a part along every eigenvector that anyone is likely to meet."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(0), max(len(leaves), 1))
    return jax.tree.unflatten(
        structure, [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=False)]
    )


def norm(tree: PyTree) -> Scalar:
    """‖tree‖₂; squares neither overflow nor underflow, lest what is small pass for zero. Not to be differentiated."""
    # One value for the unit and for what is measured in it. Without this the norm of a residual that vanishes came out
    # as 1, on CPUs with JAX 0.12 and little optimization, as if XLA computed it twice, with different rounding.
    tree = jax.lax.optimization_barrier(tree)
    largest = max_abs(tree)
    unit = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    squares = [jnp.sum((x / unit.astype(x.dtype)) ** 2).astype(unit.dtype) for x in jax.tree.leaves(tree)]
    return unit * jnp.sqrt(sum(squares, jnp.zeros_like(unit)))


def all_finite(tree: PyTree) -> Array:
    """Whether every inexact leaf is finite."""
    leaves = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree) if eqx.is_inexact_array(x)]
    return jnp.all(jnp.asarray(leaves)) if leaves else jnp.asarray(True)


def where(condition: Array, a: T, b: T) -> T:
    """Leaf by leaf `jnp.where`; leaves that are not arrays come from `a`."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y) if eqx.is_array(x) else x, a, b)


def nan_unless(good: Array, tree: T) -> T:
    """`tree`, all NaN unless `good`; so are derivatives through it, in both modes.

    By a factor: of `where(good, x, nan)` reverse mode sees the slope 0, a number.
    """
    factor = jnp.where(good, 1.0, jnp.nan)
    return jax.tree.map(lambda x: factor.astype(x.dtype) * x if eqx.is_inexact_array(x) else x, tree)


def nan_derivatives_unless(good: Array, tree: T) -> T:
    """`tree` as it is; derivatives through it are NaN unless `good`."""
    return jax.tree.map(lambda x: _with_slope(x, jnp.where(good, 1.0, jnp.nan)) if eqx.is_inexact_array(x) else x, tree)


@jax.custom_jvp
def _with_slope(x: Array, slope: Array) -> Array:
    del slope
    return x


@_with_slope.defjvp
def _with_slope_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    x, slope = primals
    return _with_slope(x, slope), slope.astype(x.dtype) * tangents[0]


def nothing(tree: PyTree) -> Scalar:
    """Zero, as the sum of none of the entries of `tree`: to JAX, a linear function of each of its leaves."""
    first, *rest = (jnp.sum(jnp.ravel(leaf)[:0]) for leaf in jax.tree.leaves(tree))
    return sum(rest, start=first)


def constant(tree: T) -> T:
    """`tree`, held constant under differentiation."""
    return jax.tree.map(lambda x: jax.lax.stop_gradient(x) if eqx.is_inexact_array(x) else x, tree)


def _strongly_typed(x: Any, dtype: Any = None) -> Array:
    """`x` as an array, concrete where `x` is; a weak and a strong 0.5 would be two types to the compiler."""
    with eagerly(x):
        x = jnp.asarray(x)
        return x.astype(dtype or x.dtype)
