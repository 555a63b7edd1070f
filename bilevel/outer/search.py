"""Few hyperparameters and costly evaluations: L-BFGS in a box, by SciPy."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize


class Search(NamedTuple):
    """The evaluated point of the smallest loss; `history`: `"point"`, `"loss"` and `"gradient"` of each evaluation.

    `failed`: whether the search ended at a loss or a gradient that was not finite, which is the last of the history.
    """

    point: np.ndarray
    loss: float
    history: dict[str, np.ndarray]
    failed: bool


def search(
    value_and_gradient: Callable[[np.ndarray], tuple[Any, Any]],
    start: np.ndarray,
    lower: np.ndarray | float,
    upper: np.ndarray | float,
    *,
    max_steps: int = 20,
    tol: float = 1e-4,
) -> Search:
    """Lower a loss over the box [lower, upper] by L-BFGS-B, from `start`, in `max_steps` evaluations at most.

    For hyperparameters by their logarithms, each evaluation one hypergradient: steps are of the order of 1, and the
    loss is measured in units of its first value, so that neither its scale nor that of the hyperparameters matters.
    Ends where a step, or a unit of every coordinate, lowers the loss by less than a fraction `tol`. The loss may have
    kinks, as validation losses of sparse models do: the best of the evaluated points is returned, not the last.

    !!! cite
        R. Byrd, P. Lu, J. Nocedal, C. Zhu: A limited memory algorithm for bound constrained optimization. 1995.
    """
    start = np.asarray(start, np.float64)
    low, high = (np.broadcast_to(np.asarray(bound, np.float64), start.shape).ravel() for bound in (lower, upper))
    points, losses, gradients = [], [], []

    def evaluate(flat: np.ndarray) -> None:
        if len(losses) >= max_steps:
            raise _Ended
        value, gradient = value_and_gradient(flat.reshape(start.shape))
        points.append(flat.reshape(start.shape).copy())
        losses.append(float(value))
        gradients.append(np.asarray(gradient, np.float64))
        if not (np.isfinite(losses[-1]) and np.all(np.isfinite(gradients[-1]))):
            raise _Ended

    def in_units(flat: np.ndarray) -> tuple[float, np.ndarray]:
        if not np.array_equal(flat, points[-1].ravel()):
            evaluate(flat)
        return losses[-1] / unit, gradients[-1].ravel() / unit

    try:
        first = np.clip(start.ravel(), low, high)
        evaluate(first)
        # The first step of L-BFGS is the gradient. In these units its largest coordinate is at least 1; were it
        # shorter, it could lower the loss by less than `tol` far from any minimum.
        scale = abs(losses[0]) or 1.0
        unit = min(scale, float(np.max(np.abs(gradients[0])))) or scale
        options: dict[str, Any] = dict(ftol=tol, gtol=tol * scale / unit, maxiter=max_steps)
        minimize(
            in_units, first, jac=True, method="L-BFGS-B", bounds=list(zip(low, high, strict=True)), options=options
        )
    except _Ended:
        pass
    history = {"point": np.array(points), "loss": np.array(losses), "gradient": np.array(gradients)}
    failed = not (np.isfinite(losses[-1]) and bool(np.all(np.isfinite(gradients[-1]))))
    best = int(np.argmin(np.where(np.isfinite(losses), losses, np.inf)))
    return Search(points[best], losses[best], history, failed)


class _Ended(Exception):
    """No more evaluations: all are taken, or one failed."""
