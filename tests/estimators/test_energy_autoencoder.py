"""The energy auto-encoder as scikit-learn's tools see it, and what it promises beside."""

import pickle

import jax
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from bilevel.estimators import EnergyAutoencoder
from tests.estimators.examples import FEATURES, SAMPLES, samples


@parametrize_with_checks([EnergyAutoencoder(n_components=3, max_iter=5)])
def test_scikit_learn_s_checks(estimator, check):
    check(estimator)


#: Few rounds are enough for most of what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore:After .* rounds:sklearn.exceptions.ConvergenceWarning")


def small(**options):
    return EnergyAutoencoder(**dict(n_components=4, max_iter=10, random_state=0) | options)


def energy(model, X, Z):
    squares = np.sum((X - Z @ model.dictionary_) ** 2) + np.sum((Z - X @ model.encoder_) ** 2)
    return 5 * squares + np.sum(np.abs(Z))


def test_it_never_rises_and_stays_in_the_balls():
    X = samples()
    model = small(tol=0.0).fit(X)
    history = model.objective_history_
    assert history.shape == (10, 3) == (model.n_iter_, 3)
    assert np.all(np.diff(history.ravel()) <= 1e-12 * history.ravel()[1:])
    assert np.max(np.linalg.norm(model.dictionary_, axis=1)) <= 1 + 1e-12
    assert np.max(np.linalg.norm(model.encoder_, axis=1)) <= 1 + 1e-12
    assert model.dictionary_.shape == (4, FEATURES)
    assert model.encoder_.shape == (FEATURES, 4)
    # The codes of `transform` are the best there are, so better than those of the last round.
    assert energy(model, X, model.transform(X)) <= history[-1, -1] * (1 + 1e-12)


def test_it_stops_at_its_tolerance():
    model = small(tol=0.05).fit(samples())
    assert model.n_iter_ < 10
    assert model.optimality_ <= 0.05


def test_codes_are_better_than_those_of_the_encoder_alone_which_minimize_its_own_energy():
    X = samples()
    model = small().fit(X)
    exact, fast = model.transform(X), model.encode(X)
    assert energy(model, X, exact) < energy(model, X, fast) < energy(model, X, 0 * exact)
    own = lambda Z: 5 * np.sum((Z - X @ model.encoder_) ** 2) + np.sum(np.abs(Z))
    rng = np.random.default_rng(0)
    for size in (1e-3, 0.1, 1.0):
        assert own(fast) <= own(fast + size * rng.normal(size=fast.shape))
    assert np.any(fast == 0)
    np.testing.assert_allclose(model.inverse_transform(exact), exact @ model.dictionary_)


def test_batches_lead_where_rounds_on_all_samples_do():
    rng = np.random.default_rng(1)
    X = (rng.normal(size=(320, 4)) * (rng.random((320, 4)) < 0.4)) @ np.linalg.qr(rng.normal(size=(FEATURES, 4)))[0].T
    loss = lambda model: energy(model, X, model.transform(X))
    model = small().partial_fit(X[:40])
    first = loss(model)
    for start in (40, 80, 120, 160, 200, 240, 280) * 3:
        model.partial_fit(X[start : start + 40])
    assert model.n_samples_seen_ == 22 * 40
    assert loss(model) <= 0.7 * first
    # Twenty-two batches are worth more than two rounds on all samples.
    assert loss(model) <= loss(small(max_iter=2).fit(X))
    assert np.max(np.linalg.norm(model.dictionary_, axis=1)) <= 1 + 1e-12
    assert np.max(np.linalg.norm(model.encoder_, axis=1)) <= 1 + 1e-12


def test_a_sample_of_zeros_has_the_code_zero():
    X = samples()
    X[[0, 5]] = 0
    model = small().fit(X)
    np.testing.assert_array_equal(model.transform(X)[[0, 5]], 0)
    np.testing.assert_array_equal(model.encode(X)[[0, 5]], 0)
    assert np.all(np.isfinite(model.dictionary_))
    everything = small().fit(np.zeros((SAMPLES, FEATURES)))
    np.testing.assert_array_equal(everything.transform(X * 0), 0)


def test_there_may_be_more_components_than_samples():
    model = small(n_components=SAMPLES + 6).fit(samples())
    assert model.transform(samples()).shape == (SAMPLES, SAMPLES + 6)


def test_precision_is_that_of_the_data():
    for dtype in (np.float32, np.float64):
        X = samples(dtype=dtype)
        with jax.enable_x64(False):
            model = small().fit(X)
        results = [model.dictionary_, model.encoder_, model.objective_history_, model.transform(X), model.encode(X)]
        assert {x.dtype for x in results} == {np.dtype(dtype)}


def test_the_seed_decides():
    a, b, other = (small(random_state=seed).fit(samples()) for seed in (0, 0, 1))
    np.testing.assert_array_equal(a.dictionary_, b.dictionary_)
    np.testing.assert_array_equal(a.encoder_, b.encoder_)
    assert not np.allclose(a.dictionary_, other.dictionary_)


def test_clones_pickles_pipelines_grids_and_frames():
    X = samples()
    model = small().fit(X)
    for other in (clone(model).fit(X), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(other.transform(X), model.transform(X))
    scaled = make_pipeline(StandardScaler(), small()).fit(X)
    np.testing.assert_array_equal(
        scaled.transform(X), small().fit(StandardScaler().fit_transform(X)).transform(StandardScaler().fit_transform(X))
    )
    score = lambda model, X, y=None: -np.sum((X - model.inverse_transform(model.transform(X))) ** 2)
    search = GridSearchCV(small(), {"decoder_weight": [0.01, 10.0]}, scoring=score, cv=2).fit(X)
    assert search.best_params_ == {"decoder_weight": 10.0}
    frame = pd.DataFrame(X, columns=list("abcde"))
    codes = small().set_output(transform="pandas").fit(frame).transform(frame)
    assert list(codes.columns) == [f"energyautoencoder{i}" for i in range(4)]
    np.testing.assert_array_equal(codes, model.transform(X))


@pytest.mark.parametrize(
    ("name", "value"),
    [("n_components", 0), ("decoder_weight", 0.0), ("encoder_weight", -1.0), ("max_iter", 0), ("tol", np.nan)],
)
def test_bad_parameters_are_named(name, value):
    with pytest.raises(ValueError, match=f"^`{name}` must be"):
        small(**{name: value}).fit(samples())


def test_bad_samples_are_refused():
    model = small().fit(samples())
    with pytest.raises(ValueError, match="NaN"):
        small().fit(np.full((4, 3), np.nan))
    for method in (model.transform, model.encode, model.partial_fit):
        with pytest.raises(ValueError, match=r"X has 4 features, but .* is expecting 5"):
            method(samples(features=4))
    with pytest.raises(ValueError, match="X has 3 components, but the dictionary has 4 atoms"):
        model.inverse_transform(np.ones((2, 3)))
    with pytest.raises(NotFittedError):
        small().encode(samples())


@pytest.mark.filterwarnings("error")
def test_too_few_rounds_are_told():
    with pytest.warns(ConvergenceWarning, match=r"After 2 rounds .* above the tolerance 1.0e-06"):
        small(max_iter=2, tol=1e-6).fit(samples())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("scale", [1e200, 1e-200])
def test_what_cannot_be_squared_is_an_error(scale: float):
    with pytest.raises(ValueError, match="Nothing finite can be fitted to X"):
        small(max_iter=2).fit(scale * samples())
