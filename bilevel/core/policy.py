"""What becomes of a value that a failed computation left behind."""

import warnings
from typing import Any, Literal, TypeVar, get_args

import equinox as eqx
import jax
from jaxtyping import Array, Bool

from bilevel.core import tree

T = TypeVar("T")

#: Raise, warn and go on, make it NaN, or go on in silence.
Policy = Literal["raise", "warn", "nan", "ignore"]


def check_policy(name: str, value: Any, *, optional: bool = False) -> None:
    """Raise `ValueError` where `value` is no policy, nor None where that is one too."""
    if value not in get_args(Policy) and not (optional and value is None):
        raise ValueError(f"`{name}` must be one of {get_args(Policy)}, got {value!r}.")


def enforce(policy: Policy, failed: Bool[Array, ""], value: T, message: str) -> T:
    """`value`; where it `failed`, what the policy makes of it. For values that may be traced."""
    if policy == "raise":
        return eqx.error_if(value, failed, message)
    if policy == "nan":
        return tree.nan_unless(~failed, value)
    if policy == "warn":

        def warn(failed: Any) -> None:
            if failed.any():
                warnings.warn(message, RuntimeWarning, stacklevel=2)

        jax.debug.callback(warn, failed)
    return value
