"""The objective over the rounds of block alternation."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bilevel.plots.arrays import shaped
from bilevel.plots.axes import new_axes
from bilevel.plots.colors import series

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_convergence(
    history: Any,
    *,
    blocks: Sequence[str] | None = None,
    start: float | None = None,
    optimum: float | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """The objective after the step on every block, within and across rounds; each step in the color of its block.

    A round is one unit of the horizontal axis, and ends at a whole number. The vertical scale is logarithmic where
    values are positive and span more than a decade.

    **Arguments:**

    - `history`: (rounds, blocks), as `objective_history_` of an estimator or `stats["objective"]` of
      `BlockAlternation`, where rounds that were not needed are NaN; (rounds,) where there is but one block.
    - `blocks`: their names.
    - `start`: the objective before the first step, `stats["objective_at_start"]`.
    - `optimum`: if given, how far the objective is above it is drawn.
    """
    values, names = _rounds(history, blocks)
    ax = new_axes(ax)
    count, across = values.shape[1], _positions(values)
    x, y = np.r_[0.0, across.ravel()], np.r_[np.nan if start is None else start, values.ravel()]
    if optimum is not None:
        y = np.where(y > optimum, y - optimum, np.nan)
    if optimum is not None or (np.nanmin(y) > 0 and np.nanmax(y) > 10 * np.nanmin(y)):
        ax.set_yscale("log")
    # Marks that would hide each other shrink.
    size = float(np.clip(300 / len(x), 1.5, 4.5))
    for block, name in enumerate(names):
        ends = np.arange(1 + block, len(x), count)
        # From where the step began to where it ended, and a gap.
        parts = [np.stack([p[ends - 1], p[ends], np.full(len(ends), np.nan)], axis=1).ravel() for p in (x, y)]
        ax.plot(*parts, lw=1.6, ms=size, markevery=slice(1, None, 3), label=name, **series(block))
    if start is not None:
        ax.plot(x[:1], y[:1], "o", ms=4.5, color="0.4", label="start")
    _mark_rounds(ax, len(values))
    ax.set_ylabel("objective" if optimum is None else "objective − optimum")
    return ax


def plot_decrease(
    history: Any, *, blocks: Sequence[str] | None = None, start: float | None = None, ax: "Axes | None" = None
) -> "Axes":
    """By how much the step on each block lowers the objective, round by round, on a logarithmic scale.

    A step that does not lower it leaves a gap. Arguments as of `plot_convergence`; without `start`, the first step's
    decrease is not known.
    """
    values, names = _rounds(history, blocks)
    ax = new_axes(ax)
    before = np.r_[np.nan if start is None else start, values.ravel()[:-1]].reshape(values.shape)
    decrease = np.where(before > values, before - values, np.nan)
    for block, name in enumerate(names):
        ax.plot(_positions(values)[:, block], decrease[:, block], lw=1.4, ms=4.5, label=name, **series(block))
    ax.set_yscale("log")
    _mark_rounds(ax, len(values))
    ax.set_ylabel("decrease of the objective by a step")
    return ax


def _rounds(history: Any, blocks: Sequence[str] | None) -> tuple[np.ndarray, list[str]]:
    """The rounds that were made, (rounds, blocks), and the names of the blocks."""
    if np.ndim(history) == 1:
        history = np.asarray(history)[:, None]
    values = shaped(history, "history", "rounds", "blocks", finite=False)
    values = values[: np.flatnonzero(np.r_[True, np.isfinite(values).any(axis=1)])[-1]]
    if len(values) == 0:
        raise ValueError("`history` has no finite value: no round was made, or the objective is not finite.")
    names = [f"block {1 + index}" for index in range(values.shape[1])] if blocks is None else list(blocks)
    if len(names) != values.shape[1]:
        raise ValueError(f"`blocks` has {len(names)} names, but `history` has {values.shape[1]} blocks.")
    return values, names


def _positions(values: np.ndarray) -> np.ndarray:
    return np.arange(1, values.size + 1).reshape(values.shape) / values.shape[1]


def _mark_rounds(ax: "Axes", rounds: int) -> None:
    from matplotlib.ticker import MaxNLocator, MultipleLocator, NullLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.xaxis.set_minor_locator(MultipleLocator(1) if rounds <= 50 else NullLocator())
    ax.grid(axis="x", which="both", alpha=0.3)
    ax.grid(axis="y", alpha=0.3)
    ax.set_xlabel("round")
    if len(ax.lines) > 1:
        ax.legend(frameon=False)
