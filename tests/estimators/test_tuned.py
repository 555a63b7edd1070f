"""RidgeTuned and ElasticNetTuned against scikit-learn's grids, finite differences, and scikit-learn's own checks."""

import pickle
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.datasets import load_diabetes, make_regression
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import ElasticNet, ElasticNetCV, LassoCV, Ridge, RidgeCV
from sklearn.model_selection import GridSearchCV, KFold, PredefinedSplit, ShuffleSplit, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from bilevel.estimators import ElasticNetTuned, RidgeTuned, folds, tuned
from tests.compiling import compilations, compiled

ALL = [RidgeTuned, ElasticNetTuned]
every_estimator = pytest.mark.parametrize("estimator", ALL)
SAMPLES, FEATURES = 60, 8


@pytest.fixture(scope="module", autouse=True)
def cheap_programs():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuned, "_evaluate", compiled(tuned._evaluate.__wrapped__))
        yield


def data(samples: int = SAMPLES, features: int = FEATURES, seed: int = 0, dtype: Any = np.float64) -> tuple:
    """Half of the features matter."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(samples, features)) + 3
    y = X[:, : features // 2].sum(axis=1) + rng.normal(size=samples)
    return X.astype(dtype), y.astype(dtype)


def diabetes() -> tuple[np.ndarray, np.ndarray]:
    X, y = load_diabetes(return_X_y=True)
    return StandardScaler().fit_transform(X), y


def relevant(seed: int, samples: int = 60, features: int = 40, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """A problem made for a strength of each feature: five features matter, the others are noise."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(samples + 1000, features))
    return X, X[:, :5] @ rng.choice([-2.0, 2.0], size=5) + noise * rng.normal(size=len(X))


# --- Against scikit-learn ---------------------------------------------------------------------------------------------


@parametrize_with_checks([RidgeTuned(), RidgeTuned(per_feature=True), ElasticNetTuned()])
def test_scikit_learn_s_checks(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        check(estimator)


def test_ridge_reaches_the_fine_grid():
    X, y = diabetes()
    cv = KFold(5)
    model = RidgeTuned(cv=cv).fit(X, y)
    # scikit-learn's alpha is n times ours, n the size of a training part.
    best = RidgeCV(np.geomspace(1e-2, 1e3, 50), cv=cv, scoring="neg_mean_squared_error").fit(X, y)
    assert model.validation_loss_ <= -1.0001 * best.best_score_
    # The loss that is reported is the one that scikit-learn computes.
    same = Ridge(model.alpha_ * len(X) * 0.8)
    expected = -cross_val_score(same, X, y, cv=cv, scoring="neg_mean_squared_error").mean()
    np.testing.assert_allclose(model.validation_loss_, expected, rtol=1e-4)
    refitted = Ridge(model.alpha_ * len(X)).fit(X, y)
    np.testing.assert_allclose(model.coef_, refitted.coef_, rtol=1e-6)
    np.testing.assert_allclose(model.intercept_, refitted.intercept_)


@pytest.mark.parametrize("l1_ratio", [0.5, 1.0])
def test_elastic_net_reaches_the_fine_grid(l1_ratio):
    X, y = diabetes()
    cv = KFold(5)
    model = ElasticNetTuned(l1_ratio=l1_ratio, cv=cv).fit(X, y)
    best = ElasticNetCV(l1_ratio=l1_ratio, cv=cv, alphas=200, tol=1e-8).fit(X, y)
    assert model.validation_loss_ <= 1.001 * best.mse_path_.mean(axis=-1).min()
    same = ElasticNet(model.alpha_, l1_ratio=l1_ratio, tol=1e-12, max_iter=100_000)
    expected = -cross_val_score(same, X, y, cv=cv, scoring="neg_mean_squared_error").mean()
    np.testing.assert_allclose(model.validation_loss_, expected, rtol=1e-6)
    np.testing.assert_allclose(model.coef_, same.fit(X, y).coef_, atol=1e-4)
    assert model.l1_ratio_ == l1_ratio


def test_both_strengths_do_no_worse_than_one():
    X, y = diabetes()
    one = ElasticNetTuned(cv=KFold(5)).fit(X, y)
    both = ElasticNetTuned(l1_ratio=None, cv=KFold(5)).fit(X, y)
    assert both.validation_loss_ <= 1.0001 * one.validation_loss_
    assert 0 < both.l1_ratio_ < 1
    same = ElasticNet(both.alpha_, l1_ratio=both.l1_ratio_, tol=1e-12, max_iter=100_000).fit(X, y)
    np.testing.assert_allclose(both.coef_, same.coef_, atol=1e-4)


def test_lasso_selection_in_ten_hypergradients():
    # Two thirds of the size of benchmarks/hyperparameter_selection.py, which has 250 × 500.
    X, y = make_regression(167, 333, noise=40, random_state=42)
    cv = KFold(5, shuffle=True, random_state=42)
    model = ElasticNetTuned(l1_ratio=1.0, cv=cv, max_iter=10).fit(X, y)
    grid = LassoCV(cv=cv, alphas=100, max_iter=100_000).fit(X, y)
    assert model.n_iter_ <= 10
    assert model.validation_loss_ <= 1.001 * grid.mse_path_.mean(axis=-1).min()


@pytest.mark.parametrize("seed", range(5))
def test_a_strength_for_each_feature_beats_one_for_all(seed):
    X, y = relevant(seed)
    cv, train, test = KFold(5), slice(60), slice(60, None)
    one, each = (RidgeTuned(per_feature=p, cv=cv).fit(X[train], y[train]) for p in (False, True))
    error = lambda model: np.mean((model.predict(X[test]) - y[test]) ** 2)
    assert each.validation_loss_ < one.validation_loss_
    assert error(each) < error(one)
    # The five that matter are penalized least.
    assert np.max(each.alpha_[:5]) < np.median(each.alpha_[5:])


# --- The mathematics --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_feature", [False, True])
@pytest.mark.parametrize("model", [RidgeTuned(), ElasticNetTuned(l1_ratio=None)], ids=["ridge", "elastic net"])
def test_hypergradients_against_differences(model, per_feature):
    X, y = data()
    parts = folds.folds(X, y[:, None], KFold(5).split(X), True)
    strengths, width = (1 if isinstance(model, RidgeTuned) else 2), parts.train[0].shape[2]
    rng = np.random.default_rng(0)
    point = np.log(0.2) + 0.1 * rng.normal(size=(strengths, width) if per_feature else strengths)
    direction = rng.normal(size=point.shape)
    weights = np.zeros((5, 1, width))
    # The tolerance of the estimator is 1e-9, of weights, whose error is a multiple of it.
    _, gradient, _, success = model._evaluate(point, parts, weights)
    ends = [float(model._evaluate(point + step * direction, parts, weights)[0]) for step in (1e-3, -1e-3)]
    assert success
    np.testing.assert_allclose(np.sum(gradient * direction), (ends[0] - ends[1]) / 2e-3, rtol=1e-4)


@pytest.mark.parametrize(("samples", "features"), [(40, 5), (10, 30), (20, 20)])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_compression_changes_no_loss(samples, features, fit_intercept):
    X, y = data(samples, features)
    y = np.stack([y, X[:, 0] ** 2], axis=1)
    splits = list(KFold(4).split(X))
    parts = folds.folds(X, y, splits, fit_intercept)
    w = np.random.default_rng(1).normal(size=(2, features))
    padded = np.pad(w, ((0, 0), (0, parts.train[0].shape[2] - features)))
    expected, halves = [], []
    for train, validation in splits:
        b = (y[train] - X[train] @ w.T).mean(axis=0) if fit_intercept else 0
        expected.append(np.sum((X[validation] @ w.T + b - y[validation]) ** 2) / len(validation))
        halves.append(np.sum((X[train] @ w.T + b - y[train]) ** 2) / len(train))
    loss = folds.validation_loss(np.stack([padded] * 4), parts)
    np.testing.assert_allclose(loss, np.mean(expected))
    # The training parts agree up to a constant, so that differences of losses do.
    A, B = (np.asarray(part) for part in parts.train)
    at = lambda w: np.sum((A @ w.T - B) ** 2, axis=(1, 2)) / A.shape[1]
    at_zero = [np.sum((y[t] - fit_intercept * y[t].mean(axis=0)) ** 2) / len(t) for t, _ in splits]
    np.testing.assert_allclose(at(padded) - at(0 * padded), np.array(halves) - at_zero, rtol=1e-8)


@pytest.mark.parametrize("size", [1, 16, 17, 63, 64, 65, 100, 129, 1000, 1025])
def test_sizes_are_rounded_up_a_little(size):
    up = folds.round_up(size)
    assert size <= up < max(size + 16, 1.25 * size + 1)
    assert folds.round_up(up) == up


def test_data_of_about_the_same_size_need_no_other_program():
    RidgeTuned().fit(*data(60, 8))
    before = compilations()
    model = RidgeTuned(tol=1e-3, max_iter=3).fit(*data(75, 9))
    assert model.coef_.shape == (9,)
    # Shapes of single operations outside `jit` are cheap.
    assert compilations() - before < 12


# --- Manners ----------------------------------------------------------------------------------------------------------


@every_estimator
def test_one_held_out_part(estimator):
    X, y = data()
    held_out = np.arange(SAMPLES) >= 40
    model = estimator(cv=PredefinedSplit(np.where(held_out, 0, -1))).fit(X, y)
    again = estimator(cv=[(np.flatnonzero(~held_out), np.flatnonzero(held_out))]).fit(X, y)
    assert model.validation_loss_ == again.validation_loss_
    other = estimator(cv=ShuffleSplit(1, random_state=0)).fit(X, y)
    assert other.validation_loss_ != model.validation_loss_


@every_estimator
@pytest.mark.parametrize("per_feature", [False, True])
def test_precision_is_kept(estimator, per_feature):
    exact = estimator(per_feature=per_feature).fit(*data())
    single = estimator(per_feature=per_feature).fit(*data(dtype=np.float32))
    for name in ("coef_", "intercept_", "alpha_"):
        assert getattr(single, name).dtype == np.float32 and getattr(exact, name).dtype == np.float64
    assert single.predict(data(dtype=np.float32)[0]).dtype == np.float32
    if per_feature:
        # Of many strengths the loss has many minima, and rounding may lead to another one: but none above where the
        # search begins, at the best number for all features.
        for model in (single, exact):
            assert model.validation_loss_ <= (1 + 1e-4) * min(model.history_["grid_loss"])
    else:
        np.testing.assert_allclose(single.validation_loss_, exact.validation_loss_, rtol=1e-2)


@every_estimator
def test_several_targets(estimator):
    X, y = data()
    both = estimator().fit(X, np.stack([y, y], axis=1))
    one = estimator().fit(X, y)
    assert both.coef_.shape == (2, FEATURES) and both.intercept_.shape == (2,)
    np.testing.assert_allclose(both.predict(X), np.stack([one.predict(X)] * 2, axis=1), rtol=1e-4)
    np.testing.assert_allclose(both.validation_loss_, 2 * one.validation_loss_, rtol=1e-6)


@every_estimator
def test_clone_pickle_pipeline_grid_search_and_frames(estimator):
    X, y = data()
    model = estimator().fit(X, y)
    again, unpickled = clone(model).fit(X, y), pickle.loads(pickle.dumps(model))
    frame = pd.DataFrame(X, columns=list("abcdefgh"))
    framed = estimator().fit(frame, y)
    piped = make_pipeline(StandardScaler(), estimator()).fit(X, y)
    for other in (again, unpickled):
        np.testing.assert_array_equal(other.predict(X), model.predict(X))
    # A frame's columns lie one after the other in memory, so that sums are rounded in another order.
    np.testing.assert_allclose(framed.predict(frame), model.predict(X), rtol=1e-12)
    np.testing.assert_array_equal(framed.feature_names_in_, list("abcdefgh"))
    assert piped.score(X, y) > 0.8
    search = GridSearchCV(estimator(), {"fit_intercept": [True, False]}, cv=3).fit(X, y)
    assert set(search.best_params_) == {"fit_intercept"}


@pytest.mark.parametrize("model", [RidgeTuned(), ElasticNetTuned(l1_ratio=1.0)], ids=["ridge", "Lasso"])
def test_the_scale_of_the_data_does_not_matter(model):
    X, y = data()
    model = clone(model).fit(X, y)
    scaled = clone(model).fit(1e3 * X, 1e-4 * y)
    np.testing.assert_allclose(scaled.predict(1e3 * X), 1e-4 * model.predict(X), rtol=1e-3)


@every_estimator
@pytest.mark.parametrize("X", [np.ones((20, 3)), np.tile(np.arange(20.0)[:, None], 3)], ids=["constant", "duplicates"])
@pytest.mark.parametrize("y", [np.ones(20), np.arange(20.0)], ids=["constant", "line"])
def test_degenerate_data(estimator, X, y):
    model = estimator(cv=4).fit(X, y)
    assert np.all(np.isfinite(model.coef_)) and np.isfinite(model.validation_loss_)
    if np.ptp(X) == 0 or np.ptp(y) == 0:
        np.testing.assert_allclose(model.predict(X), y.mean(), atol=1e-8)


BAD = {
    "per_feature": ["yes", None, 0.5],
    "fit_intercept": ["yes", None],
    "max_iter": [0, -1, 2.5, None],
    "tol": [-1.0, np.nan, None],
}


@every_estimator
@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_bad_parameters_are_named(estimator, name, value):
    with pytest.raises(ValueError, match=f"^`{name}` must be"):
        estimator(**{name: value}).fit(*data())


@pytest.mark.parametrize("value", [0.0, -0.5, 1.5, "lasso", np.nan])
def test_a_bad_ratio_is_named(value):
    with pytest.raises(ValueError, match=r"^`l1_ratio` must be"):
        ElasticNetTuned(l1_ratio=value).fit(*data())


@every_estimator
def test_bad_input_is_refused(estimator):
    X, y = data()
    with pytest.raises(ValueError, match="n_splits=70"):
        estimator(cv=70).fit(X, y)
    with pytest.raises(ValueError, match="`cv` has a split without"):
        estimator(cv=[(np.arange(10), np.arange(0))]).fit(X, y)
    with pytest.raises(NotFittedError):
        estimator().predict(X)
    with pytest.raises(ValueError, match="NaN"):
        estimator().fit(X, np.full(len(y), np.nan))
