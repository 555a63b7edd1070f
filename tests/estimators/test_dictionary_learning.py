"""The unsupervised dictionary, against scikit-learn's and against the one that made the samples."""

import numpy as np
from sklearn.decomposition import MiniBatchDictionaryLearning, sparse_encode

from bilevel.estimators import DictionaryLearning
from bilevel.estimators.initialization import initial_dictionary
from tests.estimators.examples import digits, fitted, samples


def objective(dictionary: np.ndarray, X: np.ndarray, l1: float) -> float:
    """The mean over samples of ½‖x − Dᵀc‖² + l1 ‖c‖₁ at its best codes, by scikit-learn's LARS."""
    codes = sparse_encode(X, dictionary, algorithm="lasso_lars", alpha=l1)
    return float(np.mean(0.5 * np.sum((X - codes @ dictionary) ** 2, axis=1) + l1 * np.sum(np.abs(codes), axis=1)))


def test_on_digits_it_is_as_good_as_scikit_learn_s():
    X, _ = digits(600)
    l1, epochs = 0.1, 30
    options = dict(n_components=8, batch_size=100, max_iter=epochs, random_state=0, tol=0.0)
    ours = DictionaryLearning(**options, l1=l1, l2=0.0).fit(X)
    theirs = MiniBatchDictionaryLearning(**options, alpha=l1, fit_algorithm="cd", max_no_improvement=None).fit(X)
    assert objective(ours.dictionary_, X, l1) <= 1.03 * objective(theirs.components_, X, l1)


def test_the_dictionary_that_made_the_samples_is_found():
    rng = np.random.default_rng(2)
    atoms = rng.normal(size=(6, 8))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    X = (rng.normal(size=(300, 6)) * (rng.random((300, 6)) < 0.3)) @ atoms
    nearness = lambda dictionary: np.min(np.max(np.abs(atoms @ dictionary.T), axis=1))
    model = DictionaryLearning(6, l1=0.05, l2=1e-3, max_iter=60, batch_size=50, random_state=0).fit(X)
    assert nearness(initial_dictionary(X, 6, "svd", np.random.RandomState(0))) < 0.9
    assert nearness(model.dictionary_) > 0.99


def test_the_learning_rate_is_used():
    slow, fast = (fitted(DictionaryLearning, learning_rate=rate) for rate in (1e-6, 0.1))
    start = fitted(DictionaryLearning, learning_rate=1e-300).dictionary_
    np.testing.assert_allclose(slow.dictionary_, start, atol=1e-4)
    assert not np.allclose(fast.dictionary_, start, atol=1e-2)


def test_labels_are_ignored():
    X = samples()
    plain, labelled = fitted(DictionaryLearning), DictionaryLearning(3, max_iter=10, random_state=0).fit(X, X[:, 0])
    np.testing.assert_array_equal(plain.dictionary_, labelled.dictionary_)
    np.testing.assert_array_equal(
        plain.transform(X), DictionaryLearning(3, max_iter=10, random_state=0).fit_transform(X)
    )
