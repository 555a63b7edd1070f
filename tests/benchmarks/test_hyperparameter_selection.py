"""Where the searches look, and what they evaluate there."""

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.hyperparameter_selection import Trace, coarse_to_fine, value
from bilevel.estimators import RidgeTuned
from bilevel.estimators.folds import folds


def test_beginnings_of_the_order_are_coarser_grids():
    assert coarse_to_fine(np.arange(8)).tolist() == [0, 4, 2, 6, 1, 5, 3, 7]
    assert sorted(coarse_to_fine(np.arange(100))[:13]) == list(range(0, 100, 8))


def test_the_best_loss_by_a_time():
    trace = Trace(np.array([1.0, 2.0]), np.array([5.0, 3.0]))
    assert [trace.at(seconds) for seconds in (1, 1.5, 9)] == [5, 5, 3] and np.isnan(trace.at(0.5))


def test_searches_evaluate_the_loss_of_the_estimators():
    """Of ridge regression without intercept, in closed form."""
    rng = np.random.default_rng(0)
    X, y, parts = rng.normal(size=(12, 3)), rng.normal(size=(12, 1)), (np.arange(6), np.arange(6, 12))
    data = folds(X, y, [parts, parts[::-1]], False).out(None)
    weights, losses = jnp.zeros((2, 1, data.train[0].shape[2])), []
    for train, held_out in (parts, parts[::-1]):
        A = X[train]
        w = np.linalg.solve(A.T @ A / 6 + np.exp(-1) * np.eye(3), A.T @ y[train] / 6)
        losses.append(np.mean((X[held_out] @ w - y[held_out]) ** 2))
    loss, _ = value(RidgeTuned()._family(X.dtype), jnp.array([-1.0]), data, weights)
    assert float(loss) == pytest.approx(np.mean(losses), rel=1e-10)
