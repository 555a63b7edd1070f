"""Where a dictionary starts: unit atoms of the kind that was asked for, no two alike, none zero."""

import numpy as np
import pytest

from bilevel.estimators.initialization import NAMES, initial_dictionary


def samples(count=20, features=5, dtype=np.float64):
    return np.random.default_rng(0).normal(size=(count, features)).astype(dtype)


def start(X, n_components, init, seed=0):
    return initial_dictionary(X, n_components, init, np.random.RandomState(seed))


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def largest_cosine(atoms):
    """Of two different atoms, signs aside."""
    return np.max(np.tril(np.abs(atoms @ atoms.T), -1))


def test_svd_takes_the_top_singular_vectors():
    X = samples()
    eigenvalues, vectors = np.linalg.eigh(X.T @ X)
    expected = vectors.T[np.argsort(-eigenvalues)][:3]
    atoms = start(X, 3, "svd")
    np.testing.assert_allclose(np.abs(np.sum(atoms * expected, axis=1)), 1, rtol=1e-12)
    np.testing.assert_array_equal(atoms, start(X, 3, "svd", seed=1))


def test_svd_stops_at_the_rank_and_goes_on_with_samples():
    X = samples()
    X = X[:, :2] @ X[:2]
    atoms = start(X, 4, "svd")
    # Two singular vectors span all samples; the others are samples.
    np.testing.assert_allclose(X, X @ atoms[:2].T @ atoms[:2], atol=1e-12)
    np.testing.assert_allclose(np.max(np.abs(atoms[2:] @ unit(X).T), axis=1), 1, rtol=1e-12)


@pytest.mark.parametrize("init", ["random", "k-means++"])
def test_atoms_are_different_samples(init):
    X = samples()
    atoms = start(X, 8, init)
    rows = [int(np.argmax(atom @ unit(X).T)) for atom in atoms]
    np.testing.assert_allclose(atoms, unit(X)[rows], rtol=1e-12)
    assert len(set(rows)) == 8
    assert not np.array_equal(atoms, start(X, 8, init, seed=1))


def test_k_means_plus_plus_takes_a_sample_of_each_cluster():
    centers = 10 * np.eye(5)
    X = np.repeat(centers, 30, axis=0) + 0.1 * samples(150)
    clusters = np.argmax(np.abs(start(X, 5, "k-means++")), axis=1)
    assert set(clusters) == set(range(5))


def test_an_array_is_scaled_and_left_alone():
    init = 3 * samples(4)
    before = init.copy()
    np.testing.assert_allclose(start(samples(), 4, init), unit(before), rtol=1e-14)
    np.testing.assert_array_equal(init, before)
    np.testing.assert_array_equal(start(samples(), 4, init.tolist()), start(samples(), 4, init))


@pytest.mark.parametrize("init", [*NAMES, "array"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("count", "features", "n_components"), [(20, 5, 3), (20, 5, 12), (4, 5, 12), (4, 5, 5), (1, 3, 7)]
)
def test_atoms_have_unit_length_and_no_two_are_alike(init, dtype, count, features, n_components):
    X = samples(count, features, dtype)
    atoms = start(X, n_components, np.ones((n_components, features)) if init == "array" else init)
    assert atoms.shape == (n_components, features)
    assert atoms.dtype == dtype
    np.testing.assert_allclose(np.linalg.norm(atoms, axis=1), 1, rtol=1e-6)
    assert largest_cosine(atoms) < 1 - 1e-5


@pytest.mark.parametrize("init", NAMES)
@pytest.mark.parametrize("X", [np.zeros((6, 4)), np.ones((6, 4)), np.eye(4)[[0, 0, 0, 1]]], ids=["0", "1", "few"])
def test_samples_that_are_zero_or_alike_still_give_different_atoms(init, X):
    atoms = start(X, 3, init)
    np.testing.assert_allclose(np.linalg.norm(atoms, axis=1), 1, rtol=1e-12)
    assert largest_cosine(atoms) < 1 - 1e-5


def test_atoms_of_zeros_become_random_directions():
    init = samples(3)
    init[1] = 0
    atoms = start(samples(), 3, init)
    np.testing.assert_allclose(atoms[[0, 2]], unit(init[[0, 2]]), rtol=1e-14)
    np.testing.assert_allclose(np.linalg.norm(atoms[1]), 1, rtol=1e-14)
    assert not np.allclose(atoms[1], start(samples(), 3, init, seed=1)[1])


BAD = {
    "an unknown name": ("pca", "must be one of .* got 'pca'"),
    "a wrong shape": (np.ones((3, 4)), r"must have shape \(n_components, n_features\) = \(3, 5\), got \(3, 4\)"),
    "a number": (1.0, r"must have shape .* got \(\)"),
    "NaN": (np.full((3, 5), np.nan), "NaN or infinite"),
    "words": ([["a"] * 5] * 3, "must be one of .* or an array of numbers, got list"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    init, message = BAD[name]
    with pytest.raises(ValueError, match=f"^`init` .*{message}"):
        start(samples(), 3, init)
