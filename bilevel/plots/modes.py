"""The ways of differentiating: error against time, and against memory."""

from typing import TYPE_CHECKING, Any

import numpy as np

from bilevel.plots.axes import new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_modes(comparison: Any, *, against: str = "seconds", ax: "Axes | None" = None) -> "Axes":
    """Relative error of each row of a `bilevel.ModeComparison` against `"seconds"` or `"temporary_bytes"`."""
    labels = {"seconds": "seconds for value and gradient", "temporary_bytes": "temporary memory (MB)"}
    if against not in labels:
        raise ValueError(f"`against` must be one of {tuple(labels)}, got {against!r}.")
    ax = new_axes(ax)
    for index, row in enumerate(row for row in comparison.rows if np.isfinite(row.relative_error)):
        across = row.seconds if against == "seconds" else max(row.temporary_bytes, 1) / 2**20
        # Errors below rounding are all alike.
        ax.plot([across], [max(row.relative_error, 1e-16)], "o", ms=8, color=f"C{index % 10}", label=row.mode)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel(labels[against])
    ax.set_ylabel("relative error of the hypergradient")
    ax.grid(alpha=0.3, which="both")
    ax.legend(frameon=False)
    return ax
