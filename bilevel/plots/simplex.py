"""Weights on a simplex, drawn in a regular polygon."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bilevel.plots.arrays import shaped
from bilevel.plots.axes import new_axes
from bilevel.plots.colors import BLUE

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_simplex(
    weights: Any,
    *,
    labels: Sequence[str] | None = None,
    color: Any = BLUE,
    atol: float = 1e-3,
    ax: "Axes | None" = None,
) -> "Axes":
    """Each sample's weights w as the point  Σⱼ wⱼ pⱼ  of the regular polygon with the corners p₁, …, p_k.

    Faithful for k ≤ 3. For more, several weights may share a point, inside; near a corner they do not.

    **Arguments:** `weights` (samples, k), each row on the simplex to `atol`; `labels` of the corners, their numbers by
    default; `color`, one for all or (samples,) numbers.
    """
    weights = shaped(weights, "weights", "samples", "archetypes")
    if not np.all(weights >= -atol) or not np.allclose(weights.sum(axis=1), 1, rtol=0, atol=atol):
        raise ValueError("`weights` must have rows on the simplex: nonnegative, with the sum 1.")
    count = weights.shape[1]
    names = [str(1 + index) for index in range(count)] if labels is None else list(labels)
    if len(names) != count:
        raise ValueError(f"`labels` has {len(names)} names, but `weights` has {count} columns.")
    ax = new_axes(ax)
    corners = simplex_corners(count)
    outline = np.concatenate([corners, corners[:1]])
    ax.plot(*outline.T, color="0.3", lw=1.2, zorder=1)
    # Lines from the center to the corners, which tell where one weight rules.
    for corner, name in zip(corners, names, strict=True):
        ax.plot([0, corner[0]], [0, corner[1]], color="0.85", lw=0.8, zorder=0)
        sides = [-1 if part < -0.1 else 1 if part > 0.1 else 0 for part in corner]
        ha, va = ("center", "left", "right")[sides[0]], ("center", "bottom", "top")[sides[1]]
        ax.annotate(name, 1.06 * corner, ha=ha, va=va)
    size = float(np.clip(6000 / len(weights), 4, 24))
    ax.scatter(
        *(weights @ corners).T,
        s=size,
        c=color,
        cmap=None if isinstance(color, str) else "viridis",
        zorder=2,
        alpha=0.7,
        linewidths=0,
    )
    ax.set(aspect="equal", xlim=(-1.25, 1.25), ylim=(-1.25, 1.25))
    ax.set_axis_off()
    return ax


def simplex_corners(count: int) -> np.ndarray:
    """The corners of the regular polygon, (count, 2), on the unit circle from its top on, clockwise."""
    angle = np.pi / 2 - 2 * np.pi * np.arange(count) / count
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)
