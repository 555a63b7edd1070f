"""Figures that several benchmarks draw, and how all of them look."""

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.results import Rows, cell
from bilevel.plots.colors import GRAY, VERMILION

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure


def tidy(ax: "Axes") -> None:
    """A light grid, and no frame."""
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)


def plain_ticks(axis: "Axis") -> None:
    """Ticks of a logarithmic axis as plain numbers: at 1, 2 and 5 where few powers of ten are in view, else at these.

    Call it when everything is drawn."""
    low, high = axis.get_view_interval()
    few = np.log10(high / low) < 2
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=8))
    if few or (low >= 1e-3 and high <= 1e5):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())


def ranking(rows: Rows, label: str, seconds: str, error: str, title: str) -> "Figure":
    """Seconds as points on a line each, with the error that was achieved; rows without a time are left out.

    No bars: on a logarithmic axis their length would depend on where it begins."""
    ordered = sorted((row for row in rows if isinstance(row[seconds], float)), key=lambda row: -row[seconds])
    names, values = [row[label] for row in ordered], np.array([row[seconds] for row in ordered])
    figure, ax = plt.subplots(figsize=(7.5, 1.1 + 0.42 * len(ordered)), layout="constrained")
    colors = [VERMILION if name.startswith("bilevel") else GRAY for name in names]
    ax.hlines(names, 0, values, color=colors, lw=1.5)
    ax.scatter(values, names, color=colors, s=60, zorder=3)
    for name, value, row in zip(names, values, ordered, strict=True):
        note = f"{cell(row[seconds])} s, {error} {row[error]:.0e}"
        ax.annotate(note, (value, name), xytext=(8, 0), textcoords="offset points", va="center", fontsize=9)
    # Room for the words right of the slowest.
    room = (values.max() / values.min()) ** 0.6
    ax.set(xscale="log", xlabel="seconds", title=title, xlim=(values.min() / 2, values.max() * max(room, 8)))
    ax.margins(y=0.8 / len(ordered))
    ax.grid(axis="x", alpha=0.3)
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right", "left"]].set_visible(False)
    plain_ticks(ax.xaxis)
    return figure
