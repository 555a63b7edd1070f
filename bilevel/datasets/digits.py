"""Handwritten digits, real and small, that ship with scikit-learn."""

from typing import Any, NamedTuple

import numpy as np
from sklearn.datasets import load_digits as _load


class Digits(NamedTuple):
    """`X` (samples, 64), each an image of 8×8 pixels as a row of unit length; `labels` (samples,), 0 to 9."""

    X: np.ndarray
    labels: np.ndarray
    image_shape: tuple[int, int] = (8, 8)


def load_digits(dtype: type = np.float32) -> Digits:
    """1,797 handwritten digits of 43 writers.

    The test part of "Optical Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak, 1998, UCI Machine Learning
    Repository (CC BY 4.0), as packaged by scikit-learn.
    """
    data: Any = _load()
    X = data.data.astype(dtype)
    return Digits(X / np.linalg.norm(X, axis=1, keepdims=True), data.target)
