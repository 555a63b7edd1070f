"""The norms of atoms, and their bound."""

from typing import TYPE_CHECKING, Any

import numpy as np

from bilevel.plots.arrays import shaped
from bilevel.plots.axes import new_axes
from bilevel.plots.colors import BLUE, VERMILION

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_norms(
    rows: Any,
    *,
    bound: float | None = 1.0,
    rtol: float = 1e-6,
    label: str = "atom",
    ax: "Axes | None" = None,
) -> "Axes":
    """‖dᵢ‖₂ of every atom dᵢ, with the bound that they must keep; those above it in another color.

    **Arguments:** `rows` (atoms, features), a dictionary, or an encoder (features, atoms), whose rows are bounded as
    well; `bound`, None where there is none; `rtol`, the excess over the bound that is rounding; `label`, what a row is.
    """
    norms = np.linalg.norm(shaped(rows, "rows", "atoms", "features"), axis=1)
    ax = new_axes(ax)
    index = np.arange(len(norms))
    above = np.zeros(len(norms), bool) if bound is None else norms > bound * (1 + rtol)
    ax.plot(index[~above], norms[~above], "o", ms=3.5, color=BLUE)
    if bound is not None:
        ax.axhline(bound, color="0.2", lw=1, ls="--", zorder=3, label=f"bound {bound:g}")
    if above.any():
        ax.plot(index[above], norms[above], "D", ms=4.5, color=VERMILION, label=f"{above.sum()} above the bound")
    ax.set_ylim(0, 1.12 * max(norms.max(), bound or 0, np.finfo(float).tiny))
    ax.margins(x=0.02)
    ax.grid(axis="y", alpha=0.3)
    ax.set_xlabel(label)
    ax.set_ylabel("Euclidean norm")
    if bound is not None:
        ax.legend(frameon=False, loc="lower right")
    return ax
