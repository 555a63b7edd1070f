"""Values with a first derivative of a given kind, and no second one."""

from typing import NoReturn, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

T = TypeVar("T")


# `value + further − stop_gradient(further)` would round, and be NaN where `further` is.
@jax.custom_jvp
def with_derivative_of(value: PyTree, further: PyTree) -> PyTree:
    """`value`, which depends on its inputs as `further` does."""
    del further
    return value


@with_derivative_of.defjvp
def _(primals: tuple[PyTree, PyTree], tangents: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
    return primals[0], tangents[1]


def once(values: T) -> T:
    """`values`, which may be differentiated once; a second time raises, where silence would be wrong."""
    arrays, rest = eqx.partition(values, eqx.is_inexact_array)
    return eqx.combine(_once(arrays), rest)


@jax.custom_jvp
def _once(arrays: PyTree) -> PyTree:
    return arrays


@_once.defjvp
def _(primals: tuple[PyTree], tangents: tuple[PyTree]) -> tuple[PyTree, PyTree]:
    # A factor of 1, so that JAX finds nothing that the derivative does without.
    one = lambda x: jnp.where(jnp.isnan(x), 1, 1).astype(x.dtype)
    guarded = _never(primals[0])
    return guarded, jax.tree.map(lambda x, t: one(x) * t, guarded, tangents[0])


@jax.custom_jvp
def _never(arrays: PyTree) -> PyTree:
    return arrays


@_never.defjvp
def _(primals: tuple[PyTree], tangents: tuple[PyTree]) -> NoReturn:
    raise NotImplementedError(
        "`Truncated`, `OneStep` and `Shine` give first derivatives only: they hold constant how the solution moves, "
        "which second derivatives need. Use `Implicit()` or `Unrolled()`."
    )
