"""Archetypes among the data, in the plane."""

from typing import TYPE_CHECKING, Any

import numpy as np

from bilevel.plots.arrays import shaped
from bilevel.plots.axes import new_axes
from bilevel.plots.colors import BLUE, VERMILION

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_archetypes(X: Any, archetypes: Any, *, ax: "Axes | None" = None) -> "Axes":
    """The data, the archetypes with their numbers, the hull of the archetypes, and thinly that of the data.

    Archetypes lie inside the hull of the data; data outside the hull of the archetypes are represented with an error.
    For data with more features, project both on a plane first, by `sklearn.decomposition.PCA(2)` say.

    **Arguments:** `X` (samples, 2); `archetypes` (archetypes, 2).
    """
    X = shaped(X, "X", "samples", ("features", 2))
    archetypes = shaped(archetypes, "archetypes", "archetypes", ("features", 2))
    ax = new_axes(ax)
    size = float(np.clip(4000 / len(X), 2, 18))
    ax.scatter(*X.T, s=size, color="0.55", alpha=0.6, linewidths=0, label="data", zorder=1)
    ax.plot(*_closed(_hull(X)).T, color="0.55", lw=0.8, ls=":", label="hull of the data", zorder=2)
    corners = _hull(archetypes)
    if len(corners) > 2:
        ax.fill(*corners.T, color=BLUE, alpha=0.08, lw=0, zorder=0)
    ax.plot(*_closed(corners).T, color=BLUE, lw=1.5, label="hull of the archetypes", zorder=3)
    ax.plot(*archetypes.T, "o", ms=13, color=VERMILION, mec="white", label="archetypes", zorder=4)
    for index, point in enumerate(archetypes):
        ax.annotate(str(1 + index), point, color="white", ha="center", va="center", size=8, weight="bold", zorder=5)
    ax.set_aspect("equal")
    ax.set_xlabel("first feature")
    ax.set_ylabel("second feature")
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def _hull(points: np.ndarray) -> np.ndarray:
    """The corners of the convex hull, counterclockwise; the two ends of points on a line."""
    from scipy.spatial import ConvexHull, QhullError

    try:
        return points[ConvexHull(points).vertices]
    except QhullError:
        along = np.linalg.svd(points - points.mean(axis=0))[2][0]
        order = points @ along
        return points[[np.argmin(order), np.argmax(order)]]


def _closed(corners: np.ndarray) -> np.ndarray:
    return np.concatenate([corners, corners[:1]])
