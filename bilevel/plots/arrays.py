"""What a figure is drawn of: arrays whose shapes are checked at the door."""

from typing import Any

import numpy as np


def shaped(value: Any, name: str, *axes: str | tuple[str, int], finite: bool = True) -> np.ndarray:
    """`value` as a float array with these axes, or a `ValueError` that names it.

    **Arguments:** for each axis its name, or its name and size: `shaped(z, "z", "strengths", ("n", len(z0)))`;
    `finite`: whether NaN and infinity are refused.
    """
    try:
        array = np.asarray(value, float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{name}` must be an array of numbers, got {type(value).__name__}: {error}") from error
    names = [axis if isinstance(axis, str) else f"{axis[0]} = {axis[1]}" for axis in axes]
    sizes = [None if isinstance(axis, str) else axis[1] for axis in axes]
    fits = array.ndim == len(axes) and all(s is None or s == n for s, n in zip(sizes, array.shape, strict=True))
    if not fits:
        raise ValueError(f"`{name}` must have the shape ({', '.join(names)}), got {array.shape}.")
    if array.size == 0:
        raise ValueError(f"`{name}` is empty, of shape {array.shape}: there is nothing to draw.")
    if finite and not np.isfinite(array).all():
        raise ValueError(f"`{name}` has {np.sum(~np.isfinite(array))} entries that are not finite.")
    return array
