"""Losses over training."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bilevel.plots.axes import new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_losses(
    losses: Sequence[np.ndarray],
    *,
    window: int = 1,
    label: str | None = None,
    color: str | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """One thin line for each run's loss at each step, a thick one for their median as far as all of them go.

    `window`: how many steps (an epoch's, say) are averaged into one point.
    """
    ax = new_axes(ax)
    means = [_averaged(np.asarray(run), window) for run in losses]
    shortest = min(len(run) for run in means)
    line = ax.plot(
        *_points(np.median([run[:shortest] for run in means], axis=0), window), lw=2, label=label, color=color
    )
    for run in means:
        ax.plot(*_points(run, window), lw=0.6, alpha=0.5, color=line[0].get_color())
    ax.set_xlabel("step")
    ax.set_ylabel("training loss")
    ax.set_yscale("log")
    ax.grid(alpha=0.3, which="both")
    return ax


def _averaged(run: np.ndarray, window: int) -> np.ndarray:
    whole = len(run) // window * window
    return run[:whole].reshape(-1, window).mean(axis=1) if whole else run


def _points(run: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    return window * (np.arange(len(run)) + 0.5), run
