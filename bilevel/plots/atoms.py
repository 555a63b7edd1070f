"""The gallery of atoms."""

from typing import TYPE_CHECKING

import numpy as np

from bilevel.plots.axes import new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_atoms(
    dictionary: np.ndarray,
    image_shape: tuple[int, int],
    *,
    columns: int | None = None,
    title: str | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Each atom as an image, in a grid; red is positive, blue negative, white zero, each atom scaled by itself.

    An atom's sign is arbitrary, as its codes may have either; it is shown with the sign in which its pixels sum to
    more than zero.

    **Arguments:** `dictionary` (atoms, features); `image_shape`, with as many pixels as there are features; `columns`
    of the grid, about as many as rows by default.
    """
    count, size = dictionary.shape
    height, width = image_shape
    if height * width != size:
        raise ValueError(f"`image_shape` {image_shape} has {height * width} pixels, but atoms have {size} features.")
    ax = new_axes(ax)
    columns = int(np.ceil(np.sqrt(count))) if columns is None else columns
    rows = -(-count // columns)
    canvas = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1), np.nan)
    for index, atom in enumerate(dictionary):
        top, left = (height + 1) * (index // columns) + 1, (width + 1) * (index % columns) + 1
        scale = max(np.abs(atom).max(), 1e-12) * (1 if atom.sum() >= 0 else -1)
        canvas[top : top + height, left : left + width] = atom.reshape(image_shape) / scale
    ax.imshow(canvas, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    ax.set_axis_off()
    if title is not None:
        ax.set_title(title)
    return ax
