"""Real data that ship with packages, images as patches."""

from bilevel.datasets.digits import Digits as Digits, load_digits as load_digits
from bilevel.datasets.images import (
    load_photograph as load_photograph,
    read_image as read_image,
    to_gray as to_gray,
)
from bilevel.datasets.patches import Patches as Patches, extract_patches as extract_patches
