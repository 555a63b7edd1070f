import numpy as np
import pytest

from bilevel.datasets import load_digits


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_digits_are_unit_rows_with_their_labels(dtype):
    digits = load_digits(dtype)
    assert digits.X.shape == (1797, 64) and digits.X.dtype == dtype
    np.testing.assert_allclose(np.linalg.norm(digits.X, axis=1), 1, rtol=1e-6)
    assert sorted(set(digits.labels)) == list(range(10))
    assert np.prod(digits.image_shape) == digits.X.shape[1]
