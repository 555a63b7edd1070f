"""The gallery of atoms."""

from typing import TYPE_CHECKING, Any

import numpy as np

from bilevel.plots.arrays import shaped
from bilevel.plots.axes import new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_atoms(
    dictionary: Any,
    image_shape: tuple[int, int],
    *,
    beside: Any = None,
    columns: int | None = None,
    title: str | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Each atom as an image, in a grid; red is positive, blue negative, white zero, each atom scaled by itself.

    An atom's sign is arbitrary, as its codes may have either; it is shown with the sign in which its pixels sum to
    more than zero.

    **Arguments:** `dictionary` (atoms, features); `image_shape`, with as many pixels as there are features; `beside`,
    if given, (atoms, features): what stands to the right of each atom, in the atom's sign and scaled by itself, as
    `encoder.T`; `columns` of the grid, about as wide as high by default.
    """
    atoms = shaped(dictionary, "dictionary", "atoms", "features")
    count, size = atoms.shape
    height, width = image_shape
    if height * width != size:
        raise ValueError(f"`image_shape` {image_shape} has {height * width} pixels, but atoms have {size} features.")
    images, signs = atoms.reshape(count, height, width), np.where(atoms.sum(axis=1) >= 0, 1, -1)
    pictures, gap = [_scaled(images, signs)], 1
    if beside is not None:
        others = shaped(beside, "beside", ("atoms", count), ("features", size)).reshape(images.shape)
        # One pixel within a pair, more between pairs.
        pictures, gap = [*pictures, np.full((count, height, 1), np.nan), _scaled(others, signs)], 4
    cells = np.concatenate(pictures, axis=2)
    high, wide = height + gap, cells.shape[2] + gap
    ax = new_axes(ax)
    columns = int(np.ceil(np.sqrt(count * high / wide))) if columns is None else columns
    rows = -(-count // columns)
    canvas = np.full((rows * high + gap, columns * wide + gap), np.nan)
    for index, cell in enumerate(cells):
        top, left = high * (index // columns) + gap, wide * (index % columns) + gap
        canvas[top : top + height, left : left + cell.shape[1]] = cell
    ax.imshow(canvas, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    ax.set_axis_off()
    if title is not None:
        ax.set_title(title)
    return ax


def _scaled(images: np.ndarray, signs: np.ndarray) -> np.ndarray:
    scale = np.maximum(np.abs(images).max(axis=(1, 2)), 1e-12) * signs
    return images / scale[:, None, None]
