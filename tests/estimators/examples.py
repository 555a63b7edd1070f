"""Data and small models for the tests of the estimators."""

import warnings
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from bilevel.estimators import DictionaryLearning, TaskDrivenDictionaryClassifier, TaskDrivenDictionaryRegressor

ALL = [DictionaryLearning, TaskDrivenDictionaryClassifier, TaskDrivenDictionaryRegressor]
SAMPLES, FEATURES = 24, 5


def samples(count: int = SAMPLES, features: int = FEATURES, dtype: Any = np.float64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, features)).astype(dtype)


def targets_of(estimator: type, X: np.ndarray) -> np.ndarray | None:
    """Three classes, or a number, or nothing."""
    if estimator is TaskDrivenDictionaryClassifier:
        return np.digitize(X[:, 0] - X[:, 1], [-0.7, 0.7])
    return np.tanh(X[:, 0] - X[:, 1]) if estimator is TaskDrivenDictionaryRegressor else None


def small(estimator: type, **options: Any) -> Any:
    return estimator(**dict(n_components=3, max_iter=10, random_state=0) | options)


def fitted(estimator: type, X: Any = None, y: Any = None, **options: Any) -> Any:
    """A small model of that kind, of the samples."""
    X = samples() if X is None else X
    return small(estimator, **options).fit(X, targets_of(estimator, np.asarray(X)) if y is None else y)


def outputs(model: Any, X: np.ndarray) -> list[np.ndarray]:
    """All that a model says of samples."""
    names = ("transform", "predict", "decision_function", "predict_proba")
    return [getattr(model, name)(X) for name in names if getattr(model, name, None) is not None]


def digits(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Some of the handwritten digits, in an order drawn by lot."""
    X, y = load_digits(return_X_y=True)
    rows = np.random.default_rng(seed).permutation(len(X))[:count]
    return X[rows] / 16, y[rows]


def hidden_signal(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Samples of eight sparse orthogonal components; the target is made of two of the four weak ones."""
    rng = np.random.default_rng(seed)
    components = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    codes = rng.normal(size=(count, 8)) * (rng.random((count, 8)) < 0.4)
    codes[:, 4:] *= 0.5
    noise = 0.05 * rng.normal(size=(count, 9))
    return codes @ components + noise[:, :8], codes[:, 4] - 2 * codes[:, 5] + noise[:, 8]


def without_warnings(function: Any, *args: Any) -> Any:
    """Call it, and let it warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args)
