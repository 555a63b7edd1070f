"""Codes: which are zero, and how large the others are."""

from typing import TYPE_CHECKING, Any

import numpy as np

from bilevel.plots.arrays import shaped
from bilevel.plots.axes import new_axes
from bilevel.plots.colors import BLUE

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_sparsity(codes: Any, *, sort: bool = False, ax: "Axes | None" = None) -> "Axes":
    """Where codes are not zero: samples from left to right, atoms from top to bottom, and the fraction that is not.

    Where there are more samples than pixels, a pixel's gray is the fraction of its codes that are not zero.

    **Arguments:** `codes` (samples, atoms); `sort`: the atom that most samples use on top.
    """
    nonzero = shaped(codes, "codes", "samples", "atoms") != 0
    ax = new_axes(ax)
    if sort:
        nonzero = nonzero[:, np.argsort(-nonzero.sum(axis=0), kind="stable")]
    pattern = nonzero.T.astype(float)
    ax.imshow(pattern, cmap="Greys", vmin=0, vmax=1, aspect="auto", interpolation="antialiased")
    ax.set_xlabel("sample")
    ax.set_ylabel("atom, most used first" if sort else "atom")
    _note(ax, f"{100 * nonzero.mean():.1f} % nonzero")
    return ax


def plot_code_histogram(codes: Any, *, bins: int = 60, color: str = BLUE, ax: "Axes | None" = None) -> "Axes":
    """How many codes have which value, zeros apart: only their share is told. Counts are on a logarithmic scale.

    **Arguments:** `codes` (samples, atoms); `bins`, as many on either side of zero, which is a bin's edge.
    """
    values = shaped(codes, "codes", "samples", "atoms").ravel()
    ax = new_axes(ax)
    nonzero = values[values != 0]
    low, high = min(nonzero.min(initial=0), 0), max(nonzero.max(initial=0), 0)
    width = max((high - low) / bins, np.finfo(float).tiny)
    edges = width * np.arange(np.floor(low / width), np.ceil(high / width) + 1)
    if len(nonzero):
        ax.hist(nonzero, edges, color=color, log=True)
    ax.axvline(0, color="0.4", lw=0.8)
    ax.set_xlabel("code, where not zero")
    ax.set_ylabel("count")
    ax.grid(axis="y", alpha=0.3)
    ax.set_axisbelow(True)
    _note(ax, f"{100 * (1 - len(nonzero) / len(values)):.1f} % zero")
    return ax


def _note(ax: "Axes", text: str) -> None:
    """Above the axes, on the right, where nothing is drawn."""
    ax.annotate(text, (1, 1), xytext=(0, 4), xycoords="axes fraction", textcoords="offset points", ha="right")
