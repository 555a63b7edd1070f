"""Archetypal analysis, against vertices that made the samples, closed forms and dense NumPy."""

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

from bilevel.estimators import ArchetypalAnalysis, archetypal_analysis
from tests.compiling import compiled

PROGRAMS = ("_alternate", "_solve_weights", "_verify", "_furthest_sum", "_nearest_in_hull")


@pytest.fixture(scope="module", autouse=True)
def cheap():
    with pytest.MonkeyPatch.context() as patch:
        for name in PROGRAMS:
            patch.setattr(archetypal_analysis, name, compiled(getattr(archetypal_analysis, name).__wrapped__))
        yield


def mixtures_of(vertices, count=60, alpha=0.3, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    rows = rng.dirichlet(np.full(len(vertices), alpha), size=count) @ vertices
    return rows + noise * rng.normal(size=rows.shape)


TRIANGLE = np.array([[0.0, 0.0], [4.0, 1.0], [1.0, 3.0]])
X = mixtures_of(TRIANGLE, noise=0.1)


def small(**options):
    return ArchetypalAnalysis(**dict(n_archetypes=3, random_state=0) | options)


@parametrize_with_checks([ArchetypalAnalysis(2)])
def test_scikit_learn_s_checks(estimator, check):
    check(estimator)


def test_the_vertices_of_noiseless_samples_are_found():
    rows = mixtures_of(TRIANGLE, 300)
    model = small().fit(rows)
    distances = np.linalg.norm(model.archetypes_[None] - TRIANGLE[:, None], axis=2)
    # Each vertex by another archetype; the triangle's sides are 3 to 4 long.
    assert sorted(np.argmin(distances, axis=1)) == [0, 1, 2]
    assert np.max(np.min(distances, axis=1)) <= 0.02
    assert model.reconstruction_err_ <= 1e-3


def test_constraints_descent_and_stationarity_in_numpy():
    model = small(tol=1e-4).fit(X)
    A, B = model.weights_, model.mixtures_
    for rows in (A, B):
        assert np.min(rows) >= 0
        np.testing.assert_allclose(rows.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(model.archetypes_, B @ X, atol=1e-12)
    history = model.loss_history_
    assert len(history) == model.n_iter_ + 1
    assert np.all(np.diff(history) <= 1e-12 * history[:-1])
    residual = A @ B @ X - X
    loss = 0.5 * np.sum(residual**2)
    np.testing.assert_allclose([history[-1], 0.5 * model.reconstruction_err_**2], loss, rtol=1e-6)
    # Duality gaps, by the N × N product that the library never forms.
    gap = sum(
        np.sum(p * g) - np.sum(np.min(g, axis=1)) for p, g in ((A, residual @ (B @ X).T), (B, A.T @ residual @ X.T))
    )
    assert -1e-12 <= gap <= 1e-4 * loss
    assert model.optimality_ == pytest.approx(gap / loss, rel=1e-3, abs=1e-9)


def test_one_archetype_is_the_mean():
    model = small(n_archetypes=1).fit(X)
    np.testing.assert_allclose(model.archetypes_[0], X.mean(axis=0), atol=1e-10)
    np.testing.assert_array_equal(model.weights_, 1)


def test_constant_samples_are_all_archetypes_at_once():
    model = small().fit(np.full((60, 2), 7.0))
    np.testing.assert_allclose(model.archetypes_, 7)
    np.testing.assert_allclose(model.weights_, 1 / 3)
    assert model.reconstruction_err_ <= 1e-12


def test_duplicated_samples_change_no_archetype():
    rows = mixtures_of(TRIANGLE, 30, noise=0.1)
    init = rows[:3]
    # Every loss counts twice.
    once, twice = (small(init=init, tol=1e-6, max_iter=1000).fit(x) for x in (rows, np.repeat(rows, 2, axis=0)))
    np.testing.assert_allclose(twice.archetypes_, once.archetypes_, atol=1e-3)
    assert twice.reconstruction_err_**2 == pytest.approx(2 * once.reconstruction_err_**2, rel=1e-5)


def test_a_shift_changes_nothing_and_normalize_undoes_units():
    plain, shifted = small().fit(X), small().fit(X + 100)
    np.testing.assert_allclose(shifted.archetypes_ - 100, plain.archetypes_, atol=1e-6)
    one, other = (small(normalize=True).fit(X * units) for units in ([1, 1], [1000, 0.01]))
    np.testing.assert_allclose(other.archetypes_ / [1000, 0.01], one.archetypes_, atol=1e-6)
    np.testing.assert_allclose(other.weights_, one.weights_, atol=1e-6)


@pytest.mark.parametrize("init", ["furthest_sum", "k-means++", "random", "array"])
def test_every_start_converges_and_the_seed_decides(init):
    init = TRIANGLE + 0.2 if init == "array" else init
    one, again, state = (small(init=init, random_state=s).fit(X) for s in (0, 0, np.random.RandomState(0)))
    np.testing.assert_array_equal(one.archetypes_, again.archetypes_)
    np.testing.assert_array_equal(one.archetypes_, state.archetypes_)
    assert one.optimality_ <= one.tol


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_precision_is_kept_whatever_jax_is_set_to(dtype):
    with jax.enable_x64(False):
        model = small().fit(X.astype(dtype))
        results = [model.archetypes_, model.weights_, model.mixtures_, model.loss_history_, model.transform(X)]
    assert {x.dtype for x in results} == {np.dtype(dtype)}
    expected = small(tol=1e-6).fit(X)
    np.testing.assert_allclose(model.archetypes_, expected.archetypes_, atol=1e-2)
    assert model.reconstruction_err_ == pytest.approx(expected.reconstruction_err_, rel=1e-4)


def test_transform_is_the_projection_on_the_hull():
    model = small().fit(X)
    np.testing.assert_array_equal(model.fit_transform(X), model.transform(X))
    weights = model.transform(np.vstack([model.archetypes_, X[:57]]))
    np.testing.assert_allclose(weights[:3], np.eye(3), atol=1e-8)
    # The variational inequality of a projection, at every vertex.
    points = model.inverse_transform(weights[3:])
    slope = np.einsum("nd,nkd->nk", X[:57] - points, model.archetypes_[None] - points[:, None])
    assert np.max(slope) <= 1e-7
    assert model.score(X) == pytest.approx(-(model.reconstruction_err_**2))


def test_tools_of_scikit_learn():
    model = small().fit(X)
    for other in (clone(model).fit(X), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(other.transform(X), model.transform(X))
    scaled = make_pipeline(StandardScaler(), small()).fit(X)
    assert list(scaled.get_feature_names_out()) == [f"archetypalanalysis{i}" for i in range(3)]
    frame = pd.DataFrame(X, columns=["a", "b"])
    out = small().set_output(transform="pandas").fit_transform(frame)
    np.testing.assert_array_equal(out, model.transform(X))
    search = GridSearchCV(small(), {"n_archetypes": [1, 3]}, cv=2).fit(X)
    assert search.best_params_ == {"n_archetypes": 3}


def test_too_few_rounds_are_warned_of():
    with pytest.warns(ConvergenceWarning, match="duality gaps are .* larger max_iter"):
        small(max_iter=1, init="random", tol=1e-6).fit(X)


BAD = {
    "n_archetypes": [0, 2.5, "3", None, True],
    "max_iter": [0, 1.5, None],
    "tol": [-1.0, np.nan, "a"],
    "init": ["pca", np.ones((2, 2)), None, np.full((3, 2), np.nan), [["a", "b"]] * 3],
    "random_state": [-1, "seed"],
    "normalize": ["yes", None],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_bad_parameters_are_named(name, value):
    with pytest.raises(ValueError, match=f"^`{name}` must be|^`{name}` must have"):
        small(**{name: value}).fit(X)


def test_bad_samples_are_refused():
    with pytest.raises(ValueError, match="`n_archetypes` is 3, but there are 2 samples"):
        small().fit(X[:2])
    with pytest.raises(NotFittedError):
        small().transform(X)
    model = small().fit(X)
    with pytest.raises(ValueError, match=r"`X` must have shape .samples, 3."):
        model.inverse_transform(X)


def test_a_constant_feature_is_not_scaled_by_its_rounding():
    """0.1 is not a sum of powers of two: its mean is off by rounding, and its deviation is not 0."""
    constant = np.concatenate([X[:60], np.full((60, 1), 0.1)], axis=1)
    with_it, without = (small(normalize=True).fit(rows) for rows in (constant, X[:60]))
    np.testing.assert_allclose(with_it.reconstruction_err_, without.reconstruction_err_, rtol=1e-4)


def test_weights_that_are_no_numbers_are_refused():
    model = small().fit(X)
    with pytest.raises(ValueError, match="NaN"):
        model.inverse_transform([[np.nan, 1.0, 0.0]])
