"""Synthetic data whose truth is known, and labels made wrong on purpose."""

from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike

from bilevel.core.requirements import check_whole


class SparseCodingData(NamedTuple):
    """X = `codes` · `dictionary` + noise."""

    X: Float[np.ndarray, "samples features"]
    dictionary: Float[np.ndarray, "atoms features"]
    codes: Float[np.ndarray, "samples atoms"]


class SparseRegression(NamedTuple):
    """y = X · `weights` + noise."""

    X: Float[np.ndarray, "samples features"]
    y: Float[np.ndarray, " samples"]
    weights: Float[np.ndarray, " features"]


class SimplexData(NamedTuple):
    """X = `weights` · `archetypes` + noise; each row of `weights` is on the simplex."""

    X: Float[np.ndarray, "samples features"]
    archetypes: Float[np.ndarray, "archetypes features"]
    weights: Float[np.ndarray, "samples archetypes"]


class CorruptedLabels(NamedTuple):
    """`labels`, of which those at `corrupted` are wrong."""

    labels: Int[np.ndarray, " samples"]
    corrupted: Bool[np.ndarray, " samples"]


def make_sparse_coding(
    num_samples: int = 1000,
    num_features: int = 64,
    num_atoms: int = 96,
    num_nonzero: int = 4,
    *,
    noise: float = 0.0,
    seed: int = 0,
    dtype: type = np.float32,
) -> SparseCodingData:
    """X = C D + ε with `num_nonzero` codes in each sample, each ±u with u uniform in [½, 3/2], and ε ~ N(0, noise²).

    The atoms are of unit length, uniform on the sphere. No code is near zero, so that supports can be found.
    """
    _check_counts(num_samples=num_samples, num_features=num_features, num_atoms=num_atoms, num_nonzero=num_nonzero)
    if num_nonzero > num_atoms:
        raise ValueError(f"`num_nonzero` must be at most `num_atoms`, {num_atoms}, got {num_nonzero}.")
    _check_range("noise", noise)
    random = np.random.default_rng(seed)
    dictionary = random.normal(size=(num_atoms, num_features))
    dictionary /= np.linalg.norm(dictionary, axis=1, keepdims=True)
    # The places of the smallest of random numbers: sets of this size, all equally likely.
    places = np.argsort(random.uniform(size=(num_samples, num_atoms)), axis=1)[:, :num_nonzero]
    values = random.choice([-1.0, 1.0], places.shape) * random.uniform(0.5, 1.5, places.shape)
    codes = np.zeros((num_samples, num_atoms))
    np.put_along_axis(codes, places, values, axis=1)
    X = codes @ dictionary + noise * random.normal(size=(num_samples, num_features))
    return SparseCodingData(X.astype(dtype), dictionary.astype(dtype), codes.astype(dtype))


def make_sparse_regression(
    num_samples: int = 200,
    num_features: int = 500,
    num_nonzero: int = 10,
    *,
    correlation: float = 0.0,
    signal_to_noise: float = 5.0,
    seed: int = 0,
    dtype: type = np.float32,
) -> SparseRegression:
    """y = X w + ε with `num_nonzero` weights of ±1, ‖X w‖ = `signal_to_noise` · ‖ε‖ exactly, and features of unit
    variance whose correlation falls with their distance:  corr(xᵢ, xⱼ) = ρ^|i − j|.

    `signal_to_noise = inf` is no noise. `sklearn.datasets.make_regression` is for uncorrelated features.
    """
    _check_counts(num_samples=num_samples, num_features=num_features, num_nonzero=num_nonzero)
    if num_nonzero > num_features:
        raise ValueError(f"`num_nonzero` must be at most `num_features`, {num_features}, got {num_nonzero}.")
    _check_range("correlation", correlation, -1.0, 1.0, strict=True)
    if not (_is_number(signal_to_noise) and signal_to_noise > 0):
        raise ValueError(f"`signal_to_noise` must be a positive number (or infinite), got {signal_to_noise!r}.")
    random = np.random.default_rng(seed)
    X = random.normal(size=(num_samples, num_features))
    # xⱼ = ρ xⱼ₋₁ + √(1 − ρ²) εⱼ  keeps the variance, and multiplies the covariance with all before by ρ.
    for j in range(1, num_features):
        X[:, j] = correlation * X[:, j - 1] + np.sqrt(1 - correlation**2) * X[:, j]
    weights = np.zeros(num_features)
    weights[random.choice(num_features, num_nonzero, replace=False)] = random.choice([-1.0, 1.0], num_nonzero)
    signal, error = X @ weights, random.normal(size=num_samples)
    y = signal + error * np.linalg.norm(signal) / (np.linalg.norm(error) * signal_to_noise)
    return SparseRegression(X.astype(dtype), y.astype(dtype), weights.astype(dtype))


def make_simplex(
    num_samples: int = 300,
    archetypes: int | ArrayLike = 3,
    num_features: int = 2,
    *,
    concentration: float = 0.3,
    noise: float = 0.0,
    seed: int = 0,
    dtype: type = np.float32,
) -> SimplexData:
    """X = A Z + ε with rows of A from a symmetric Dirichlet distribution, and ε ~ N(0, noise²).

    **Arguments:** `archetypes`: Z itself, (archetypes, features), or how many; then they are drawn from the unit sphere
    in `num_features` ≥ 2 features, where none lies in the hull of the others. `concentration` of the Dirichlet
    distribution: below 1 most samples are near a corner or an edge, above it near the middle.
    """
    if not (_is_number(concentration) and 0 < concentration < np.inf):
        raise ValueError(f"`concentration` must be a positive number, got {concentration!r}.")
    _check_range("noise", noise)
    random = np.random.default_rng(seed)
    if isinstance(archetypes, Integral):
        _check_counts(archetypes=archetypes)
        check_whole("num_features", num_features, least=2)
        corners = random.normal(size=(int(archetypes), num_features))
        corners /= np.linalg.norm(corners, axis=1, keepdims=True)
    else:
        corners = np.asarray(archetypes, float)
        if corners.ndim != 2 or 0 in corners.shape or not np.isfinite(corners).all():
            raise ValueError(
                "`archetypes` must be how many there are, or a finite array (archetypes, features), got shape "
                f"{corners.shape}."
            )
    _check_counts(num_samples=num_samples)
    weights = random.dirichlet(np.full(len(corners), concentration), num_samples)
    X = weights @ corners + noise * random.normal(size=(num_samples, corners.shape[1]))
    return SimplexData(X.astype(dtype), corners.astype(dtype), weights.astype(dtype))


def corrupt_labels(
    labels: ArrayLike, fraction: float, *, num_classes: int | None = None, seed: int = 0
) -> CorruptedLabels:
    """A `fraction` of the labels, to the nearest whole number of them, each replaced by a **wrong** one at random.

    **Arguments:** `labels`: whole numbers 0, 1, …, below `num_classes`, which is the largest of them plus one by
    default.
    """
    given = np.asarray(labels)
    if given.ndim != 1 or given.size == 0 or not np.issubdtype(given.dtype, np.integer) or given.min() < 0:
        raise ValueError(
            f"`labels` must be whole numbers from 0 on, one for each sample, got {given.dtype}{list(given.shape)}."
        )
    classes = int(given.max()) + 1 if num_classes is None else num_classes
    if classes < 2 or given.max() >= classes:
        raise ValueError(f"`num_classes` must be at least 2 and more than every label, got {classes}.")
    _check_range("fraction", fraction, 0.0, 1.0)
    random = np.random.default_rng(seed)
    corrupted = np.zeros(len(given), bool)
    corrupted[random.choice(len(given), round(fraction * len(given)), replace=False)] = True
    # Further by 1 to classes − 1 around the circle of classes: every wrong label is as likely.
    moved = (given + random.integers(1, classes, len(given))) % classes
    return CorruptedLabels(np.where(corrupted, moved, given).astype(given.dtype), corrupted)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _check_counts(**counts: Any) -> None:
    for name, value in counts.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < 1:
            raise ValueError(f"`{name}` must be a whole number of at least 1, got {value!r}.")


def _check_range(name: str, value: Any, low: float = 0.0, high: float = np.inf, *, strict: bool = False) -> None:
    inside = _is_number(value) and np.isfinite(value) and (low < value < high if strict else low <= value <= high)
    if not inside:
        raise ValueError(f"`{name}` must be a number between {low:g} and {high:g}, got {value!r}.")
