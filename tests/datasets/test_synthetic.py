import numpy as np
import pytest
from scipy.stats import chisquare

from bilevel.datasets import corrupt_labels, make_simplex, make_sparse_coding, make_sparse_regression


def test_sparse_coding_data_are_what_they_say():
    data = make_sparse_coding(2000, 10, 15, 3, dtype=np.float64)
    np.testing.assert_allclose(data.X, data.codes @ data.dictionary, atol=1e-14)
    np.testing.assert_allclose(np.linalg.norm(data.dictionary, axis=1), 1)
    np.testing.assert_array_equal((data.codes != 0).sum(axis=1), 3)
    sizes = np.abs(data.codes[data.codes != 0])
    assert 0.5 <= sizes.min() < 0.51 and 1.49 < sizes.max() <= 1.5
    assert chisquare((data.codes != 0).sum(axis=0)).pvalue > 1e-3  # no atom is preferred
    noisy = make_sparse_coding(2000, 10, 15, 3, noise=0.1, dtype=np.float64)
    assert np.std(noisy.X - noisy.codes @ noisy.dictionary) == pytest.approx(0.1, rel=0.03)


@pytest.mark.parametrize("correlation", [0.0, 0.9, -0.5])
def test_sparse_regression_has_its_correlation_and_its_noise(correlation):
    data = make_sparse_regression(20_000, 6, 2, correlation=correlation, signal_to_noise=3, dtype=np.float64)
    i = np.arange(6)
    np.testing.assert_allclose(np.corrcoef(data.X.T), correlation ** np.abs(i[:, None] - i), atol=0.04)
    np.testing.assert_allclose(data.X.std(axis=0), 1, atol=0.03)
    signal = data.X @ data.weights
    assert np.linalg.norm(signal) / np.linalg.norm(data.y - signal) == pytest.approx(3, rel=1e-12)
    assert sorted(np.abs(data.weights)) == [0, 0, 0, 0, 1, 1]


def test_sparse_regression_without_noise():
    data = make_sparse_regression(signal_to_noise=np.inf, dtype=np.float64)
    np.testing.assert_allclose(data.y, data.X @ data.weights, atol=1e-13)


def test_simplex_data_are_mixtures_of_their_archetypes():
    corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    data = make_simplex(20_000, corners, concentration=0.3, dtype=np.float64)
    np.testing.assert_array_equal(data.archetypes, corners)
    np.testing.assert_allclose(data.X, data.weights @ corners, atol=1e-14)
    np.testing.assert_allclose(data.weights.sum(axis=1), 1)
    assert data.weights.min() >= 0
    # Of a symmetric Dirichlet distribution of k weights: mean 1/k, variance (k − 1) / (k² (kα + 1)).
    np.testing.assert_allclose(data.weights.mean(axis=0), 1 / 3, atol=0.01)
    np.testing.assert_allclose(data.weights.var(axis=0), 2 / (9 * 1.9), rtol=0.03)
    drawn = make_simplex(10, 4, 7)
    np.testing.assert_allclose(np.linalg.norm(drawn.archetypes, axis=1), 1, rtol=1e-6)
    assert drawn.X.shape == (10, 7) and drawn.archetypes.shape == (4, 7) and drawn.X.dtype == np.float32


def test_exactly_the_corrupted_labels_are_wrong():
    labels = np.random.default_rng(0).integers(0, 5, 9001)
    found = corrupt_labels(labels, 0.5)
    np.testing.assert_array_equal(found.labels != labels, found.corrupted)
    assert found.corrupted.sum() == 4500 and found.labels.dtype == labels.dtype
    table = np.zeros((5, 5), int)
    np.add.at(table, (labels[found.corrupted], found.labels[found.corrupted]), 1)
    for true, row in enumerate(table):
        assert chisquare(np.delete(row, true)).pvalue > 1e-3  # every wrong label is as likely


def test_the_fewest_and_the_most_wrong_labels():
    labels = np.array([0, 1, 1, 0], np.uint8)
    assert not corrupt_labels(labels, 0).corrupted.any()
    np.testing.assert_array_equal(corrupt_labels(labels, 1).labels, [1, 0, 0, 1])
    assert corrupt_labels(np.zeros(4, int), 1, num_classes=2).labels.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("make", [make_sparse_coding, make_sparse_regression, make_simplex])
def test_the_seed_decides(make):
    first, again, other = (make(seed=seed) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first.X, other.X)


BAD = [
    (lambda: make_sparse_coding(num_samples=0), "num_samples"),
    (lambda: make_sparse_coding(num_atoms=3, num_nonzero=4), "num_nonzero"),
    (lambda: make_sparse_coding(noise=-1), "noise"),
    (lambda: make_sparse_coding(noise=np.nan), "noise"),
    (lambda: make_sparse_regression(num_features=2.5), "num_features"),
    (lambda: make_sparse_regression(num_features=3), "num_nonzero"),
    (lambda: make_sparse_regression(correlation=1), "correlation"),
    (lambda: make_sparse_regression(signal_to_noise=0), "signal_to_noise"),
    (lambda: make_sparse_regression(signal_to_noise=np.nan), "signal_to_noise"),
    (lambda: make_simplex(archetypes=0), "archetypes"),
    (lambda: make_simplex(num_features=1), "num_features"),
    (lambda: make_simplex(archetypes=np.ones(3)), "archetypes"),
    (lambda: make_simplex(archetypes=[[np.nan, 0]]), "archetypes"),
    (lambda: make_simplex(concentration=0), "concentration"),
    (lambda: make_simplex(concentration=np.inf), "concentration"),
    (lambda: corrupt_labels([0.0, 1.0], 0.5), "labels"),
    (lambda: corrupt_labels([], 0.5), "labels"),
    (lambda: corrupt_labels([-1, 1], 0.5), "labels"),
    (lambda: corrupt_labels([[0, 1]], 0.5), "labels"),
    (lambda: corrupt_labels([0, 0], 0.5), "num_classes"),
    (lambda: corrupt_labels([0, 3], 0.5, num_classes=3), "num_classes"),
    (lambda: corrupt_labels([0, 1], 1.5), "fraction"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"`{message}`"):
        call()
