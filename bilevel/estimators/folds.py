"""Linear regression on the folds of a cross-validation, compressed to what its losses depend on."""

from collections.abc import Iterable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevel.scale import DeviceMesh, Shared

Split = tuple[np.ndarray, np.ndarray]


# With X = Q R,  ‖X w − y‖² = ‖R w − Qᵀy‖² + ‖y‖² − ‖Qᵀy‖²:  no more rows than features, whatever the number of
# samples. The intercept that is best for given w makes the mean residual on the training samples zero, so centering
# both parts of a fold by the means of its training part is all that it asks for. Zero rows and zero columns change
# no loss and no weight, so that all folds, and data of about the same size, are of one shape: one program for all.
class Folds(eqx.Module):
    """Parts A w ≈ B of each fold, with  ½ ‖A w − B‖² / rows  (training) and  ‖A w − B‖² + rest  (validation) the
    halved, and the mean, squared error of weights w, summed over targets.

    Folds of zeros, which change no sum over folds, may follow the `count` that there are.
    """

    train: tuple[Float[Array | np.ndarray, "folds rows features"], Float[Array | np.ndarray, "folds rows targets"]]
    validation: tuple[Float[Array | np.ndarray, "folds rows features"], Float[Array | np.ndarray, "folds rows targets"]]
    rest: Float[Array | np.ndarray, " folds"]
    count: int = eqx.field(static=True)

    def out(self, mesh: DeviceMesh | None) -> "Folds":
        """The same, shared out among the devices of a mesh."""
        return jax.tree.map(lambda x: Shared.out(x, mesh).filled, self)


class Centered(NamedTuple):
    """Samples less the means of the training samples among them."""

    X: np.ndarray
    y: np.ndarray
    X_mean: np.ndarray
    y_mean: np.ndarray


def centered(X: np.ndarray, y: np.ndarray, rows: np.ndarray, by: np.ndarray, fit_intercept: bool) -> Centered:
    """The samples `rows`, less the means of the samples `by` where there is an intercept."""
    if fit_intercept:
        X_mean, y_mean = X[by].mean(axis=0), y[by].mean(axis=0)
    else:
        X_mean, y_mean = np.zeros_like(X[0]), np.zeros_like(y[0])
    return Centered(X[rows] - X_mean, y[rows] - y_mean, X_mean, y_mean)


def folds(X: np.ndarray, y: np.ndarray, splits: Iterable[Split], fit_intercept: bool) -> Folds:
    """The folds of (train, validation) indices, for X (samples, features) and y (samples, targets)."""
    pairs = list(splits)
    for train, validation in pairs:
        if len(train) == 0 or len(validation) == 0:
            raise ValueError("`cv` has a split without training samples, or without others. Use fewer splits.")
    # Wide enough for all samples at once, too.
    rows, width = round_up(min(X.shape)), round_up(X.shape[1])

    def part(of: np.ndarray, by: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        samples = centered(X, y, of, by, fit_intercept)
        return compressed(samples.X, samples.y, rows, width)

    A, B, _ = zip(*(part(train, train) for train, _ in pairs), strict=True)
    C, D, rest = zip(*(part(validation, train) for train, validation in pairs), strict=True)
    scale = np.sqrt(np.asarray(rows, X.dtype))
    validation = np.stack(C), np.stack(D)
    return Folds((scale * np.stack(A), scale * np.stack(B)), validation, np.asarray(rest, X.dtype), len(pairs))


def everything(X: np.ndarray, y: np.ndarray, fit_intercept: bool, like: Folds) -> tuple[Folds, Centered]:
    """All samples as the training part of every fold, of the shapes of `like`."""
    samples = np.arange(len(X))
    whole = centered(X, y, samples, samples, fit_intercept)
    rows, width = like.train[0].shape[1:]
    A, B, _ = compressed(whole.X, whole.y, rows, width)
    scale = np.sqrt(np.asarray(rows, X.dtype))
    train = np.broadcast_to(scale * A, like.train[0].shape), np.broadcast_to(scale * B, like.train[1].shape)
    return eqx.tree_at(lambda f: f.train, like, train), whole


def compressed(X: np.ndarray, y: np.ndarray, rows: int, width: int) -> tuple[np.ndarray, np.ndarray, float]:
    """(A, B, rest) of shapes (rows, width) and (rows, targets):  ‖X w − y‖² / n = ‖A w − B‖² + rest  for all w."""
    root, rest = np.sqrt(np.asarray(len(X), X.dtype)), 0.0
    A, B = X, y
    if len(X) > rows:
        Q, A = np.linalg.qr(X)
        B = Q.T @ y
        rest = float(np.sum((y - Q @ B) ** 2) / len(X))
    pad = lambda M, columns: np.pad(M / root, ((0, rows - len(M)), (0, columns - M.shape[1])))
    return pad(A, width), pad(B, y.shape[1]), rest


def round_up(size: int) -> int:
    """The smallest of 16, 32, 48, 64, 80, …, 128, 160, …, at least `size`: at most a quarter more, beyond 64."""
    unit = 2 ** max(4, size.bit_length() - 3)
    return -(-size // unit) * unit


def validation_loss(weights: Float[Array, "folds targets features"], folds: Folds) -> Array:
    """The mean over folds of the mean squared error on their validation samples, summed over targets."""
    A, B = folds.validation
    residuals = jnp.einsum("krf,ktf->krt", A, weights) - B
    return jnp.sum(jnp.sum(residuals**2, axis=(1, 2)) + folds.rest) / folds.count


def curvature(folds: Folds) -> float:
    """The largest eigenvalue of XᵀX / n over the training parts; 1 for X = 0."""
    A = np.asarray(folds.train[0], np.float64)
    largest = max(float(np.linalg.norm(part, 2)) for part in A) ** 2 / A.shape[1]
    return largest or 1.0


def correlation(folds: Folds) -> float:
    """The largest |Xᵀ y| / n over the training parts; 1 for 0."""
    A, B = (np.asarray(part, np.float64) for part in folds.train)
    largest = max(float(np.max(np.abs(a.T @ b))) for a, b in zip(A, B, strict=True)) / A.shape[1]
    return largest or 1.0
