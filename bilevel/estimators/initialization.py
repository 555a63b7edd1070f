"""Where a dictionary starts."""

import numpy as np
from sklearn.cluster import kmeans_plusplus
from sklearn.utils.extmath import svd_flip

NAMES = ("svd", "random", "k-means++")


def initial_dictionary(
    X: np.ndarray, n_components: int, init: str | np.ndarray, random: np.random.RandomState
) -> np.ndarray:
    """`n_components` unit atoms, one a row.

    `init` is one of

    - `"svd"`: the top right singular vectors, filled up with random samples where there are too few;
    - `"random"`: random samples; `"k-means++"`: random samples that lie far from each other;
    - an array of shape (n_components, n_features).

    Atoms are scaled to unit length. One that is zero becomes a random direction, as no sample could use it; one that
    is parallel to an earlier one is turned a little, as the two would stay alike for ever.
    """
    atoms = _named(X, n_components, init, random) if isinstance(init, str) else _given(X, n_components, init)
    noise = random.standard_normal(atoms.shape).astype(atoms.dtype)
    atoms = _unit(np.where(np.any(atoms != 0, axis=1, keepdims=True), atoms, noise))
    cosines = np.tril(np.abs(atoms @ atoms.T), -1)
    alike = np.any(cosines > 1 - 1e-6, axis=1, keepdims=True)
    return np.where(alike, _unit(atoms + 0.1 * _unit(noise)), atoms)


def _named(X: np.ndarray, count: int, init: str, random: np.random.RandomState) -> np.ndarray:
    if init not in NAMES:
        raise ValueError(f"`init` must be one of {NAMES} or an array, got {init!r}.")
    if init == "svd":
        return _svd(X, count, random)
    if init == "k-means++" and count <= len(X):
        return kmeans_plusplus(X, count, random_state=random)[0]
    return _samples(X, count, random)


def _given(X: np.ndarray, count: int, init: np.ndarray) -> np.ndarray:
    shape = (count, X.shape[1])
    try:
        atoms = np.array(init, dtype=X.dtype)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`init` must be one of {NAMES} or an array of numbers, got {type(init).__name__}.") from error
    if atoms.shape != shape:
        raise ValueError(f"`init` must have shape (n_components, n_features) = {shape}, got {atoms.shape}.")
    if not np.all(np.isfinite(atoms)):
        raise ValueError("`init` has entries that are NaN or infinite.")
    return atoms


def _samples(X: np.ndarray, count: int, random: np.random.RandomState) -> np.ndarray:
    return X[random.choice(len(X), count, replace=count > len(X))]


def _svd(X: np.ndarray, count: int, random: np.random.RandomState) -> np.ndarray:
    left, values, right = np.linalg.svd(X, full_matrices=False)
    _, right = svd_flip(left, right)
    rank = int(np.sum(values > values[0] * max(X.shape) * np.finfo(X.dtype).eps))
    top = right[: min(count, rank)]
    return np.concatenate([top, _samples(X, count - len(top), random)])


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
