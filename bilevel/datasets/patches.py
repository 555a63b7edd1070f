"""Images as patches, and the way back."""

from numbers import Integral
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from bilevel.datasets.images import read_image


class Patches(NamedTuple):
    """The patches of an image, one a row, and what is needed to put them together again.

    A patch p is  scale · x + mean  with x its row of `X`.

    **Attributes:**

    - `X` (patches, pixels): row by row of the grid of patches, each patch row by row of its pixels.
    - `means` (patches,): what was subtracted from each; zeros where patches were not centered.
    - `scales` (patches,): what each was divided by; ones where they were not normalized.
    - `tops`, `lefts`: the first row and column of the patches; the grid is their product.
    - `patch_shape`: of each, (height, width).
    - `image_shape`: of the image.
    """

    X: Float[np.ndarray, "patches pixels"]
    means: Float[np.ndarray, " patches"]
    scales: Float[np.ndarray, " patches"]
    tops: Int[np.ndarray, " rows"]
    lefts: Int[np.ndarray, " columns"]
    patch_shape: tuple[int, int]
    image_shape: tuple[int, int]

    @property
    def covered_shape(self) -> tuple[int, int]:
        """The part of the image that has patches, from its top left corner on."""
        return int(self.tops[-1]) + self.patch_shape[0], int(self.lefts[-1]) + self.patch_shape[1]

    def to_image(self, X: Any = None) -> Float[np.ndarray, "height width"]:
        """The image of these patches, of shape `covered_shape`: each pixel is the mean of all patches that have it.

        This is the image that is nearest to the patches, in the sum of the squared differences. Of the patches as they
        are it is the image as it was: exactly where they neither overlap nor were centered or normalized, to rounding
        else.

        **Arguments:** `X` (patches, pixels): other rows to put in place of `self.X`, such as their reconstruction.

        **Raises:** `ValueError` for `X` of another shape, or not finite.
        """
        X = self.X if X is None else np.asarray(X)
        if X.shape != self.X.shape:
            raise ValueError(f"`X` must have shape {self.X.shape}, one row for each patch, got {X.shape}.")
        if not np.isfinite(X).all():
            raise ValueError(f"`X` is not finite in {np.sum(~np.isfinite(X).all(axis=1))} of its {len(X)} patches.")
        pixels = X * self.scales[:, None] + self.means[:, None]
        height, width = self.patch_shape
        grid = pixels.reshape(len(self.tops), len(self.lefts), height, width)
        total = np.zeros(self.covered_shape, pixels.dtype)
        # Pixel (i, j) of all patches at once: no two of them are the same pixel of the image.
        for i in range(height):
            for j in range(width):
                total[np.ix_(self.tops + i, self.lefts + j)] += grid[:, :, i, j]
        rows = sum(np.bincount(self.tops + i, minlength=total.shape[0]) for i in range(height))
        columns = sum(np.bincount(self.lefts + j, minlength=total.shape[1]) for j in range(width))
        return total / np.outer(rows, columns).astype(total.dtype)


def extract_patches(
    image: Any,
    patch_shape: int | tuple[int, int],
    *,
    stride: int | tuple[int, int] | None = None,
    cover: bool = False,
    center: bool = False,
    normalize: bool = False,
) -> Patches:
    """The patches of a gray image, side by side or overlapping, as rows; `Patches.to_image` leads back.

    **Arguments:**

    - `image`: an array (height, width), or the path of a file (`read_image`). Whole numbers become 32-bit floats.
    - `patch_shape`: (height, width), or one number for both.
    - `stride`: from one patch to the next, down and across, at most the patch's own length, which is the default:
      patches side by side. With 1 there is one patch at every pixel.
    - `cover`: what is left over at the right and at the bottom is left out, or, with `cover`, covered by patches that
      end at the edge, so that they overlap their neighbors there.
    - `center`: subtract each patch's mean.
    - `normalize`: divide each patch (after centering) by its length. A patch that is zero to rounding, such as a
      constant one that was centered, has no direction: its row is zero and its scale is one.

    **Raises:** `ValueError` for an image in color (see `to_gray`), not finite, or smaller than a patch, and a stride
    that would leave gaps.
    """
    image = _checked_image(read_image(image) if isinstance(image, str | PathLike) else image)
    height, width = shape = _pair("patch_shape", patch_shape)
    strides = shape if stride is None else _pair("stride", stride)
    if height > image.shape[0] or width > image.shape[1]:
        raise ValueError(f"`image` {image.shape} is smaller than a patch {shape}. Take smaller patches.")
    if strides[0] > height or strides[1] > width:
        raise ValueError(f"`stride` {strides} leaves gaps between patches {shape}. Take at most {shape}.")
    tops, lefts = (_starts(*axis, cover) for axis in zip(image.shape, shape, strides, strict=True))
    windows = np.lib.stride_tricks.sliding_window_view(image, shape)
    X = windows[np.ix_(tops, lefts)].reshape(len(tops) * len(lefts), height * width)
    largest = np.max(np.abs(X), axis=1)
    means, scales = np.zeros(len(X), X.dtype), np.ones(len(X), X.dtype)
    if center:
        means = X.mean(axis=1)
        X = X - means[:, None]
    if normalize:
        peaks = np.max(np.abs(X), axis=1)
        constant = peaks <= 4 * np.finfo(X.dtype).eps * largest
        peaks = np.where(constant, 1, peaks)
        # By the peaks first, so that no square is too large or too small for its type.
        scales = np.where(constant, 1, peaks * np.linalg.norm(X / peaks[:, None], axis=1))
        X = np.where(constant[:, None], 0, X / scales[:, None])
    return Patches(X, means, scales, tops, lefts, shape, (image.shape[0], image.shape[1]))


def _checked_image(image: Any) -> Float[np.ndarray, "height width"]:
    image = np.asarray(image)
    if image.ndim == 3 and image.shape[2] in (3, 4):
        raise ValueError(f"`image` {image.shape} is in color. Pass `bilevel.datasets.to_gray(image)`, or one channel.")
    if image.ndim != 2:
        raise ValueError(f"`image` must have shape (height, width), got {image.shape}.")
    if image.dtype.kind not in "biuf":
        raise ValueError(f"`image` must hold real numbers, got {image.dtype}.")
    image = image if image.dtype in (np.float32, np.float64) else image.astype(np.float32)
    if not np.isfinite(image).all():
        raise ValueError(f"`image` is not finite in {np.sum(~np.isfinite(image))} of its {image.size} pixels.")
    return image


def _pair(name: str, value: Any) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    whole = [isinstance(x, Integral) and not isinstance(x, bool) and int(x) >= 1 for x in pair]
    if len(pair) != 2 or not all(whole):
        raise ValueError(f"`{name}` must be a whole number of at least 1, or a pair of them, got {value!r}.")
    return int(pair[0]), int(pair[1])


def _starts(length: int, patch: int, stride: int, cover: bool) -> Int[np.ndarray, " starts"]:
    starts = np.arange(0, length - patch + 1, stride)
    at_the_edge = length - patch
    return np.append(starts, at_the_edge) if cover and starts[-1] < at_the_edge else starts
