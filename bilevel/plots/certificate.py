"""What is known of a hypergradient's error."""

from typing import TYPE_CHECKING, Any

import numpy as np

from bilevel.core import RESULTS
from bilevel.plots.axes import new_axes
from bilevel.plots.colors import BLUE, SKY, VERMILION

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROWS = {
    "relative_error": "relative error of\nthe hypergradient,\nestimated",
    "optimality": "optimality error of\nthe inner solution",
    "adjoint_residual": "residual of\nthe adjoint system",
    "margin": "margin of\nthe support",
}
#: Errors below this are rounding, and drawn here.
FLOOR = 1e-17


def plot_certificate(certificate: Any, *, true_error: float | None = None, ax: "Axes | None" = None) -> "Axes":
    """A `bilevel.Certificate`: its four numbers as diamonds, and those of every sample, where it has them, as dots.

    Samples whose support is not settled are in another color. A bar marks the tolerance of the inner solution; what
    failed, if anything, stands above the axes.

    **Arguments:** `certificate`; `true_error`, the relative error that the hypergradient has, where it is known.
    """
    if np.ndim(certificate.relative_error):
        shape = np.shape(certificate.relative_error)
        raise ValueError(f"`certificate` is a batch of shape {shape}; take one of them by `jax.tree.map`.")
    ax = new_axes(ax)
    if certificate.samples is not None:
        _draw_samples(ax, certificate.samples)
    for row, name in enumerate(ROWS):
        value = float(getattr(certificate, name))
        if np.isfinite(value):
            ax.plot(
                [max(value, FLOOR)],
                [row],
                "D",
                ms=8,
                color=BLUE,
                mec="white",
                zorder=3,
                label="of all" if row == 0 else None,
            )
        else:
            missing = "no kinks" if name == "margin" and value > 0 else "not known"
            ax.annotate(missing, (0.5, row), xycoords=("axes fraction", "data"), ha="center", va="center", color="0.4")
    ax.plot([float(certificate.tol)], [1], "|", ms=17, mew=2, color="0.2", label="tolerance")
    if true_error is not None:
        ax.plot([max(true_error, FLOOR)], [0], "x", ms=9, mew=2, color="0.2", label="true error", zorder=4)
    ax.set_xscale("log")
    ax.set_yticks(range(len(ROWS)), list(ROWS.values()))
    ax.set_ylim(len(ROWS) - 0.5, -0.5)
    ax.set_xlabel("relative size")
    ax.grid(axis="x", alpha=0.3)
    ax.tick_params(axis="y", length=0)
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1), labelspacing=0.9)
    if certificate.result != RESULTS.successful:
        said = RESULTS[certificate.result].split(". ")[0]
        ax.annotate(said, (0, 1), xytext=(0, 4), xycoords="axes fraction", textcoords="offset points", color=VERMILION)
    return ax


def _draw_samples(ax: "Axes", samples: Any) -> None:
    at_risk = np.asarray(samples.at_risk) > 0
    # Spread over the row by multiples of the golden section, so that dots do not hide each other.
    spread = 0.5 * (np.arange(len(at_risk)) * 0.6180339887498949 % 1 - 0.5)
    for row, name in enumerate(ROWS):
        values = np.asarray(getattr(samples, name), float)
        for which, color, label in ((~at_risk, SKY, "sample"), (at_risk, VERMILION, "sample, support at risk")):
            shown = which & np.isfinite(values)
            if shown.any():
                ax.plot(
                    np.maximum(values[shown], FLOOR), row + spread[shown], "o", ms=3, alpha=0.6, mew=0, color=color,
                    label=label if row == 0 else None,
                )  # fmt: skip
