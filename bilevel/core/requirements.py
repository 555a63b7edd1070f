"""Conditions on values, checked where they are known: `ValueError` when concrete, `error_if` when traced."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool

T = TypeVar("T")


class Requirement(NamedTuple):
    """`holds`, or else `message` names the argument, what came, and what to do."""

    holds: Bool[Array, ""]
    message: str


def finite(name: str, value: Any) -> Requirement:
    """Every entry of `value` is a number."""
    value = _real(name, value)
    with eagerly(value):
        bad = ~jnp.isfinite(value)
        holds, count = ~jnp.any(bad), jnp.sum(bad)
    number = "" if is_traced(count) else f"{int(count)} "
    return Requirement(holds, f"`{name}` has {number}entries that are NaN or infinite. Remove or impute them.")


def nonnegative(name: str, value: Any) -> Requirement:
    """Every entry of `value` is finite and ≥ 0."""
    return _within(name, value, lambda x: x >= 0, "finite and not negative")


def positive(name: str, value: Any) -> Requirement:
    """Every entry of `value` is finite and > 0."""
    return _within(name, value, lambda x: x > 0, "finite and positive")


def ordered(low_name: str, low: Any, high_name: str, high: Any) -> Requirement:
    """A number lies between low and high, entry by entry; NaN is neither."""
    low, high = _real(low_name, low), _real(high_name, high)
    with eagerly(low, high), jax.numpy_dtype_promotion("standard"):
        low, high = jnp.broadcast_arrays(low, high)
        good = (low <= high) & (low < jnp.inf) & (high > -jnp.inf)
        holds = jnp.all(good)
        came = _first_violation(good, low, high)
    message = f"`{low_name}` must not be above `{high_name}`{came}. A number must lie between: swap or move the bounds."
    return Requirement(holds, message)


def check_whole(name: str, value: Any, least: int = 1) -> None:
    """Raise `ValueError` unless `value` is a Python int of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"`{name}` must be a whole number of at least {least}, got {value!r}.")


def raise_where_violated(requirements: Iterable[Requirement]) -> None:
    """Raise `ValueError` for the first requirement that is known not to hold; traced ones are passed over."""
    for requirement in requirements:
        if not is_traced(requirement.holds) and not requirement.holds:
            raise ValueError(requirement.message)


def guard(tree: T, requirements: Iterable[Requirement]) -> T:
    """`tree`, through an `error_if` for every requirement that is traced."""
    for requirement in requirements:
        if is_traced(requirement.holds):
            tree = eqx.error_if(tree, ~requirement.holds, requirement.message)
    return tree


def all_hold(requirements: Iterable[Requirement]) -> Bool[Array, ""]:
    """Whether every requirement holds, as a value."""
    holds = jnp.asarray(True)
    for requirement in requirements:
        holds = holds & requirement.holds
    return holds


def as_float_array(name: str, value: Any, *, ndim: int | None = None) -> Array:
    """`value` as an array of real floating numbers, or `ValueError`; `ndim` is the number of axes it must have."""
    array = _real(name, value)
    # A Python integer such as `alpha=1` is a number; an integer array is most likely a mistake.
    is_float = jnp.issubdtype(array.dtype, jnp.floating)
    if not is_float and array.ndim > 0:
        raise ValueError(f"`{name}` must have a floating dtype, got {array.dtype}. Try `{name}.astype(float)`.")
    with eagerly(array):
        # Not weakly typed: a weak and a strong 0.5 would be two types to the compiler.
        array = array.astype(array.dtype if is_float else jnp.result_type(float))
    if ndim is not None and array.ndim != ndim:
        raise ValueError(f"`{name}` must have {ndim} axes, got shape {array.shape}.")
    return array


def is_traced(x: object) -> bool:
    """Whether `x` has no value yet because a transformation such as `jit` is tracing."""
    return isinstance(x, Tracer)


def eagerly(*values: object) -> AbstractContextManager:
    """Within this context what is computed from `values` is known at once, also inside `jit`, if none is traced."""
    traced = any(map(is_traced, jax.tree.leaves(values)))
    return nullcontext() if traced else jax.ensure_compile_time_eval()


def _real(name: str, value: Any) -> Array:
    """`value` as an array of real numbers, or `ValueError`."""
    try:
        with eagerly(value):
            array = jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{name}` must be an array of numbers, got {type(value).__name__}.") from error
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise ValueError(f"`{name}` must be real, got dtype {array.dtype}. Pass real and imaginary parts apart.")
    return array


def _within(name: str, value: Any, predicate: Callable[[Array], Array], bound: str) -> Requirement:
    value = _real(name, value)
    with eagerly(value):
        good = predicate(value) & jnp.isfinite(value)
        holds = jnp.all(good)
        came = _first_violation(good, value)
    return Requirement(holds, f"`{name}` must be {bound}{came}. Pass a value in that range, or optimize its logarithm.")


def _first_violation(good: Array, *values: Array) -> str:
    """Which entries came where `good` is first false, in words; nothing where that is not known, or never the case."""
    if is_traced(good) or jnp.all(good):
        return ""
    index = tuple(int(i) for i in jnp.argwhere(~good)[0])
    # The number alone, where the value carries a tangent.
    return (
        ", got "
        + " and ".join(str(jax.lax.stop_gradient(value)[index]) for value in values)
        + (f" at index {index}" if index else "")
    )
