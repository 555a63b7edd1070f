"""An image, its reconstruction, and what the two differ by."""

from typing import TYPE_CHECKING, Any

import numpy as np

from bilevel.plots.arrays import shaped
from bilevel.plots.axes import new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_reconstruction(
    original: Any, reconstruction: Any, *, peak: float | None = None, ax: "Axes | None" = None
) -> "Axes":
    """An image, its reconstruction in the same grays, and reconstruction − original: red where it is too bright.
    Its colors are saturated in the most wrong 0.5 % of the pixels, which would else leave the others pale.

    Below the second stands the peak signal-to-noise ratio,

        PSNR = 10 log₁₀(peak² / mean((original − reconstruction)²)) dB.

    **Arguments:** `original`, `reconstruction` (height, width), in the same units; `peak`, the range of values that an
    image could have, 255 or 1 say; the range of the original's by default.
    """
    original = shaped(original, "original", "height", "width")
    height, width = original.shape
    reconstruction = shaped(reconstruction, "reconstruction", ("height", height), ("width", width))
    error = reconstruction - original
    low, high = float(original.min()), float(original.max())
    peak = high - low if peak is None else peak
    ax = new_axes(ax)
    gap = 0.06 * width
    grays = {"cmap": "gray", "vmin": low, "vmax": high}
    # A perfect reconstruction has no scale of its own.
    scale = float(np.quantile(np.abs(error), 0.995)) or float(np.abs(error).max()) or 1.0
    lefts = [k * (width + gap) for k in range(3)]
    show = lambda left, image, **style: ax.imshow(
        image, extent=(left, left + width, height, 0), interpolation="antialiased", **style
    )
    show(lefts[0], original, **grays)
    show(lefts[1], reconstruction, **grays)
    drawn = show(lefts[2], error, cmap="RdBu_r", vmin=-scale, vmax=scale)
    ax.set(xlim=(0, lefts[-1] + width), ylim=(height, 0), yticks=[])
    labels = ("original", f"reconstruction\nPSNR {_psnr(error, peak)} dB", "error")
    ax.set_xticks([left + width / 2 for left in lefts], labels)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.figure.colorbar(
        drawn, cax=ax.inset_axes((1.015, 0.1, 0.015, 0.8)), extend="both", label="reconstruction − original"
    )
    return ax


def _psnr(error: np.ndarray, peak: float) -> str:
    mean_square = np.mean(error**2)
    return "∞" if mean_square == 0 else f"{10 * np.log10(peak**2 / mean_square):.1f}"
