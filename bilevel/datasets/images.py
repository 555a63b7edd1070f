"""Gray images between 0 and 1, from files and from packages."""

from numbers import Integral
from os import PathLike
from typing import Any

import numpy as np
from jaxtyping import Float

from bilevel.core.packages import require
from bilevel.datasets.packages import packaged_file

#: The luma of ITU-R BT.601, by which JPEG and Pillow turn red, green and blue into gray, too.
LUMA = (0.299, 0.587, 0.114)

# By name: the distribution that it ships with, its package, and the file in it.
_PHOTOGRAPHS = {
    "astronaut": ("scikit-image", "skimage", "data/astronaut.png"),
    "barbara": ("sporco", "sporco", "data/barbara.png"),
    "brick": ("scikit-image", "skimage", "data/brick.png"),
    "camera": ("scikit-image", "skimage", "data/camera.png"),
    "chelsea": ("scikit-image", "skimage", "data/chelsea.png"),
    "china": ("scikit-learn", "sklearn", "datasets/images/china.jpg"),
    "coffee": ("scikit-image", "skimage", "data/coffee.png"),
    "flower": ("scikit-learn", "sklearn", "datasets/images/flower.jpg"),
    "grass": ("scikit-image", "skimage", "data/grass.png"),
    "gravel": ("scikit-image", "skimage", "data/gravel.png"),
}


def load_photograph(
    name: str, *, size: int | None = None, dtype: type = np.float32
) -> Float[np.ndarray, "height width"]:
    """A photograph in gray, 0 is black and 1 is white.

    | `name` | height × width | from | licence |
    |---|---|---|---|
    | `"barbara"` | 574 × 702 | sporco; attributed to Allen Gersho, from hlevkin.com | believed by sporco to be freely \
redistributable; no licence stated |
    | `"china"` | 427 × 640 | scikit-learn; danielbuechele, Flickr 6061409035 | CC BY 2.0 |
    | `"flower"` | 427 × 640 | scikit-learn; vultilion, Flickr 6056698931 | CC BY 2.0 |
    | `"astronaut"` | 512 × 512 | scikit-image; NASA | public domain |
    | `"camera"` | 512 × 512 | scikit-image; Lav Varshney | CC0 |
    | `"chelsea"`, a cat | 300 × 451 | scikit-image; Stéfan van der Walt | CC0 |
    | `"coffee"` | 400 × 600 | scikit-image; Rachel Michetti, Pikolo Espresso Bar | CC0 |
    | `"brick"`, `"grass"`, `"gravel"` | 512 × 512 | scikit-image; CC0Textures | CC0 |

    **Arguments:** `size`: cut out the middle, as many pixels high and wide. "Barbara 512²" is
    `load_photograph("barbara", size=512)`.

    **Raises:** `ValueError` for a name that is not in the table, or a `size` larger than the photograph; `ImportError`
    where the package is missing. Those of scikit-learn are always there (reading them takes Pillow); the others are in
    the `data` extra.
    """
    if name not in _PHOTOGRAPHS:
        raise ValueError(f"`name` must be one of {tuple(_PHOTOGRAPHS)}, got {name!r}.")
    distribution, package, file = _PHOTOGRAPHS[name]
    image = read_image(packaged_file(package, file, distribution), dtype)
    if size is None:
        return image
    if not isinstance(size, Integral) or not 1 <= int(size) <= min(image.shape):
        raise ValueError(f"`size` must be between 1 and {min(image.shape)} for {name!r} {image.shape}, got {size!r}.")
    top, left = ((length - size) // 2 for length in image.shape)
    return image[top : top + size, left : left + size]


def read_image(path: str | PathLike[str], dtype: type = np.float32) -> Float[np.ndarray, "height width"]:
    """The image of a file in gray, 0 is black and 1 is white.

    Colors become gray by their luma, 0.299 red + 0.587 green + 0.114 blue; transparency is ignored; of several frames
    the first is read; images of floating numbers are left as they are.
    """
    require("PIL", "Image files are read by Pillow.", "data")
    from PIL import Image

    with Image.open(path) as file:
        if file.mode == "F":
            return np.asarray(file, dtype)
        if file.mode.startswith("I"):  # gray in 16 bits
            return (np.asarray(file, float) / (2**16 - 1)).astype(dtype)
        if file.mode in ("1", "L", "LA"):
            return (np.asarray(file.convert("L"), float) / (2**8 - 1)).astype(dtype)
        return to_gray(np.asarray(file.convert("RGB"), float) / (2**8 - 1)).astype(dtype)


def to_gray(image: Any) -> Float[np.ndarray, "height width"]:
    """0.299 red + 0.587 green + 0.114 blue of (height, width, 3); what is gray already, (height, width), as it is.

    A fourth channel, transparency, is ignored.
    """
    image = np.asarray(image)
    if image.ndim == 2:
        return image
    if image.ndim != 3 or image.shape[2] not in (3, 4):
        raise ValueError(
            f"`image` must have shape (height, width) or (height, width, 3), got {image.shape}. Channels come last."
        )
    dtype = image.dtype if np.issubdtype(image.dtype, np.floating) else np.float64
    return image[..., :3] @ np.asarray(LUMA, dtype)
