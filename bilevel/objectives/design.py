"""Designs: matrices X of n samples, one a row, dense or sparse (JAX's BCOO)."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax.experimental.sparse import BCOO
from jaxtyping import Array, ArrayLike, Float, Int, Scalar

from bilevel.core.requirements import as_float_array
from bilevel.objectives.base import check_float, check_precision

Design = Float[Array, "samples features"] | BCOO


def check_pair(data: Any) -> tuple[Any, Any]:
    """`data` as a pair, or `ValueError`."""
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise ValueError(f"`data` must be a pair (X, y), got {type(data).__name__}.")
    return data[0], data[1]


def check_design(name: str, value: Any) -> Design:
    """`value` as a dense or sparse matrix of floating numbers without an empty axis, or `ValueError`."""
    if not isinstance(value, BCOO):
        if not eqx.is_array(value):
            raise ValueError(
                f"`{name}` must be an array of shape (samples, features) or a sparse BCOO matrix, got "
                f"{type(value).__name__}. SciPy's become one by `jax.experimental.sparse.BCOO.from_scipy_sparse`."
            )
        return check_float(name, value, ("samples", "features"))
    if value.ndim != 2 or value.n_sparse != 2:
        raise ValueError(
            f"`{name}` must be a sparse matrix (samples, features) with both axes sparse, got shape {value.shape} with "
            f"{value.n_batch} batch axes and {value.n_dense} dense ones. Try `BCOO.fromdense(matrix)`."
        )
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(f"`{name}` must have a floating dtype, got {value.dtype}. Try `{name}.astype(float)`.")
    check_precision(name, value.data)
    if 0 in value.shape:
        raise ValueError(f"`{name}` is empty: its shape (samples, features) is {value.shape}. Pass at least one entry.")
    return value


def as_strength(name: str, value: ArrayLike) -> Float[Array, "*features"]:
    """`value` as a number or one for each feature, or `ValueError`."""
    strength = as_float_array(name, value)
    if strength.ndim > 1:
        raise ValueError(f"`{name}` must be a number or one for each feature, got shape {strength.shape}.")
    return strength


def check_strength(name: str, strength: Array, X: Design) -> None:
    """Raise `ValueError` where `strength` is neither a number nor one for each feature of X."""
    if strength.ndim == 1 and len(strength) != X.shape[1]:
        raise ValueError(f"`{name}` has {len(strength)} entries, but `X` has {X.shape[1]} features.")


def check_rows(name: str, value: Array, X: Design) -> None:
    """Raise `ValueError` where `value` has not one row for each sample of X."""
    if len(value) != X.shape[0]:
        raise ValueError(
            f"`{name}` has {len(value)} samples, but `X` has {X.shape[0]}. Pass one row of `{name}` for each of `X`."
        )


def largest_curvature(X: Design) -> Scalar | None:
    """The largest eigenvalue of XᵀX / n, from the smaller Gram matrix; None for a sparse X, whose Gram matrices may be
    large and dense, and of which power iteration would give no bound."""
    if isinstance(X, BCOO):
        return None
    return largest_of_gram(X) / len(X)


def largest_of_gram(rows: Float[Array, "rows columns"]) -> Scalar:
    """The largest eigenvalue of XᵀX, which is that of X Xᵀ: from the smaller of the two."""
    gram = rows.T @ rows if rows.shape[0] >= rows.shape[1] else rows @ rows.T
    return jnp.linalg.eigvalsh(gram)[-1]


def correlate(X: Design, values: Float[Array, "samples *targets"]) -> Float[Array, "features *targets"]:
    """Xᵀ values."""
    # BCOO is annotated as though it had no transpose.
    return X.T @ values  # pyright: ignore[reportOptionalOperand]


def columns(X: Design, at: Int[Array, " width"]) -> Float[Array, "samples width"]:
    """X[:, at], dense; zeros where `at` is the number of features, which stands for no column."""
    width = len(at)
    if not isinstance(X, BCOO):
        return X.at[:, at].get(mode="fill", fill_value=0)
    # One pass over the stored entries, each scattered to the place of its column, or dropped. Entries that are stored
    # twice add up, and those that pad the matrix lie outside it, as everywhere in BCOO.
    row, column = X.indices[:, 0], X.indices[:, 1]
    place = jnp.full(X.shape[1], width, row.dtype).at[at].set(jnp.arange(width, dtype=row.dtype), mode="drop")
    to = place.at[column].get(mode="fill", fill_value=width)
    chosen = jnp.zeros((X.shape[0], width), X.dtype).at[row, to].add(X.data, mode="drop")
    # A column that is asked for more than once went to one of its places only.
    return chosen.at[:, place.at[at].get(mode="fill", fill_value=width)].get(mode="fill", fill_value=0)
