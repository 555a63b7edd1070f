"""Solutions and derivatives of inner problems in dense NumPy, in 64 bits, which share no code with the library."""

from collections.abc import Callable, Sequence

import numpy as np

Vector = np.ndarray


def proximal_gradient(
    gradient: Callable[[Vector], Vector],
    prox: Callable[[Vector, float], Vector],
    lipschitz: float,
    start: Vector,
) -> Vector:
    """The fixed point of y = prox(y − ∇f(y) / L, 1 / L), to the last digits."""
    y = start
    for _ in range(100_000):
        new = prox(y - gradient(y) / lipschitz, 1 / lipschitz)
        if np.max(np.abs(new - y)) <= 1e-15 * np.max(np.abs(new), initial=1e-3):
            return new
        y = new
    raise RuntimeError("The witness did not converge: the problem is too ill-conditioned for it.")


def no_prox(y: Vector, stepsize: float) -> Vector:
    return y


def soft_threshold(y: Vector, threshold: float | Vector) -> Vector:
    return np.sign(y) * np.maximum(np.abs(y) - threshold, 0)


def group_threshold(y: Vector, threshold: float) -> Vector:
    """The soft threshold of the norm of each row."""
    norms = np.linalg.norm(y, axis=1, keepdims=True)
    return np.where(norms > threshold, y * (1 - threshold / np.maximum(norms, threshold)), 0)


def onto_balls(y: Vector) -> Vector:
    """Each row's nearest point of norm at most 1."""
    return y / np.maximum(np.linalg.norm(y, axis=1, keepdims=True), 1)


def onto_simplices(y: Vector, total: float) -> Vector:
    """Each row's nearest point with entries that are not negative and sum to `total`."""
    decreasing = -np.sort(-y, axis=1)
    thresholds = (np.cumsum(decreasing, axis=1) - total) / np.arange(1, y.shape[1] + 1)
    return np.maximum(y - np.max(thresholds, axis=1, keepdims=True), 0)


def ridge(alpha: Vector, X: Vector, y: Vector) -> Vector:
    """(XᵀX / n + diag α)⁻¹ Xᵀ y / n, transposed: a row for each target."""
    return np.linalg.solve(_ridge_matrix(alpha, X), X.T @ y / len(X)).T


def ridge_derivative(values: Sequence[Vector], directions: Sequence[Vector]) -> Vector:
    """M dw = dXᵀ (y − X w) / n + Xᵀ (dy − dX w) / n − dα w, with M = XᵀX / n + diag α."""
    (alpha, X, y), (d_alpha, d_X, d_y) = values, directions
    w = ridge(alpha, X, y).T
    right = (d_X.T @ (y - X @ w) + X.T @ (d_y - d_X @ w)) / len(X) - (d_alpha * w.T).T
    return np.linalg.solve(_ridge_matrix(alpha, X), right).T


def _ridge_matrix(alpha: Vector, X: Vector) -> Vector:
    return X.T @ X / len(X) + np.diag(np.broadcast_to(alpha, X.shape[1]))


def code_gradients(D: Vector, l2: float, X: Vector, C: Vector, V: Vector) -> tuple[Vector, float, float, Vector]:
    """Of ⟨V, codes⟩ in dictionary, l1, l2 and X, at codes C: from β_S = (D_S D_Sᵀ + l2 I)⁻¹ v_S on each support S."""
    in_D, in_l1, in_l2, in_X = np.zeros_like(D), 0.0, 0.0, np.zeros_like(X)
    for x, c, v, row in zip(X, C, V, in_X, strict=True):
        S = np.flatnonzero(c)
        beta = np.zeros_like(c)
        beta[S] = np.linalg.solve(D[S] @ D[S].T + l2 * np.eye(len(S)), v[S])
        in_D -= np.outer(beta, D.T @ c - x) + np.outer(c, D.T @ beta)
        in_l1 -= beta @ np.sign(c)
        in_l2 -= beta @ c
        row[:] = D.T @ beta
    return in_D, in_l1, in_l2, in_X


def clamp(z0: Vector, mu: Vector, c: Vector) -> Vector:
    return np.clip(z0, c - 1 / (2 * mu), c + 1 / (2 * mu))


def clamp_derivative(values: Sequence[Vector], directions: Sequence[Vector]) -> Vector:
    """dz₀ inside the interval, dc ∓ dμ / (2μ²) above and below it."""
    (z0, mu, c), (d_z0, d_mu, d_c) = values, directions
    side = np.sign(z0 - c) * (np.abs(z0 - c) > 1 / (2 * mu))
    return np.where(side == 0, d_z0, d_c - side * d_mu / (2 * mu**2))


def central_difference(
    solve: Callable[..., Vector], values: Sequence[Vector], directions: Sequence[Vector], step: float
) -> Vector:
    """(solve(θ + step · dθ) − solve(θ − step · dθ)) / (2 step)."""
    moved = lambda s: solve(*(v + s * d for v, d in zip(values, directions, strict=True)))
    return (moved(step) - moved(-step)) / (2 * step)
