"""Colors that are told apart by colorblind readers, and in gray."""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.cm import ScalarMappable

# M. Okabe, K. Ito: Color universal design. 2008. Without yellow, which is too light for lines.
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
)
SERIES = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GRAY = "#8C8C8C"


def series(index: int) -> dict[str, Any]:
    """Color and marker of the index-th of several series."""
    return {"color": SERIES[index % len(SERIES)], "marker": MARKERS[index % len(MARKERS)]}


def on_log_scale(values: np.ndarray) -> "ScalarMappable":
    """The colors of positive numbers, by their logarithm; the lightest end, which paper swallows, is left out."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, LogNorm

    colors = ListedColormap(colormaps["viridis"](np.linspace(0, 0.9, 256)))
    low, high = values.min(), values.max()
    # A norm needs a range.
    return ScalarMappable(LogNorm(low, high) if low < high else LogNorm(low / 2, 2 * high), colors)
