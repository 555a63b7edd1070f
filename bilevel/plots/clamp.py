"""The clamp study, min over z of ‖z − z₀‖₁ + μ‖z − c‖², for many μ."""

from typing import TYPE_CHECKING, Any

import numpy as np

from bilevel.plots.arrays import shaped
from bilevel.plots.axes import new_axes
from bilevel.plots.colors import on_log_scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes

QUANTITIES = {
    "fit": "fit  ‖z − z₀‖₁",
    "regularizer": "regularizer  μ‖z − c‖²",
    "total": "total  ‖z − z₀‖₁ + μ‖z − c‖²",
    "gradient_norm": "norm of the generalized gradient",
}


def plot_clamp_curves(
    values: Any, mu: Any, *, quantity: str = "total", colorbar: bool = True, ax: "Axes | None" = None
) -> "Axes":
    """One quantity along the iterations, one line for each μ.

    The horizontal axis is logarithmic from the first step on, and holds the start; the gradient norm is on a
    logarithmic scale too, without the iterates at which it is zero.

    **Arguments:** `values` (strengths, iterates), from the start on; `mu` (strengths,); `quantity`, what they are:
    `"fit"`, `"regularizer"`, `"total"` or `"gradient_norm"`, as the fields of the study's curves.
    """
    if quantity not in QUANTITIES:
        raise ValueError(f"`quantity` must be one of {tuple(QUANTITIES)}, got {quantity!r}.")
    mu = _strengths(mu)
    values = shaped(values, "values", ("strengths", len(mu)), "iterates", finite=False)
    ax = new_axes(ax)
    if quantity == "gradient_norm":
        values = np.where(values > 0, values, np.nan)
        ax.set_yscale("log")
    colors = on_log_scale(mu)
    # The large ones first: they are those that Adam's steps keep tossing about, over all others.
    for strength, row in sorted(zip(mu, values, strict=True), key=lambda pair: -pair[0]):
        ax.plot(np.arange(len(row)), row, lw=1.5, color=colors.to_rgba(strength))
    ax.set_xscale("symlog", linthresh=1, linscale=0.5)
    ax.set_xlim(0, max(values.shape[1] - 1, 1))
    ax.set_xlabel("iteration")
    ax.set_ylabel(QUANTITIES[quantity])
    ax.grid(alpha=0.3)
    if colorbar:
        _colorbar(ax, colors)
    return ax


def plot_clamp_solutions(z: Any, z0: Any, mu: Any, *, colorbar: bool = True, ax: "Axes | None" = None) -> "Axes":
    """The solution z against z₀, one line for each μ; dashed where z would be z₀.

    **Arguments:** `z` (strengths, n); `z0` (n,); `mu` (strengths,).
    """
    z, z0, mu = _solutions(z, z0, mu)
    ax = new_axes(ax)
    order, colors = np.argsort(z0, kind="stable"), on_log_scale(mu)
    for strength, row in zip(mu, z, strict=True):
        ax.plot(z0[order], row[order], lw=1.5, color=colors.to_rgba(strength))
    ax.plot(z0[order], z0[order], color="0.2", lw=0.8, ls="--", label="z = z₀")
    ax.set_xlabel("z₀")
    ax.set_ylabel("z")
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)
    if colorbar:
        _colorbar(ax, colors)
    return ax


def plot_clamp_map(z: Any, z0: Any, mu: Any, *, c: float = 1.0, ax: "Axes | None" = None) -> "Axes":
    """The solution z as a color over z₀ and μ; white is z = c.

    **Arguments:** `z` (strengths, n); `z0` (n,); `mu` (strengths,); `c`, a number.
    """
    z, z0, mu = _solutions(z, z0, mu)
    ax = new_axes(ax)
    across, up = np.argsort(z0, kind="stable"), np.argsort(mu, kind="stable")
    reach = np.abs(z - c).max() or 1.0
    mesh = ax.pcolormesh(
        z0[across], mu[up], z[up][:, across], cmap="RdBu_r", vmin=c - reach, vmax=c + reach, shading="nearest"
    )
    ax.set_yscale("log")
    _number(ax.yaxis)
    ax.set_xlabel("z₀")
    ax.set_ylabel("μ")
    ax.figure.colorbar(mesh, ax=ax, label="z, white where z = c")
    return ax


def _strengths(mu: Any) -> np.ndarray:
    mu = shaped(mu, "mu", "strengths")
    if not np.all(mu > 0):
        raise ValueError(f"`mu` must be positive, got {mu.min()}.")
    return mu


def _solutions(z: Any, z0: Any, mu: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    mu, z0 = _strengths(mu), shaped(z0, "z0", "n")
    return shaped(z, "z", ("strengths", len(mu)), ("n", len(z0))), z0, mu


def _colorbar(ax: "Axes", colors: Any) -> None:
    _number(ax.figure.colorbar(colors, ax=ax, label="μ").ax.yaxis)


def _number(axis: Any) -> None:
    """Ticks at 1, 2 and 5 times powers of ten, as plain numbers; matplotlib's own where that gives too few."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

    low, high = sorted(axis.get_view_interval())
    if high < 5 * low:
        return
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FormatStrFormatter("%g"))
