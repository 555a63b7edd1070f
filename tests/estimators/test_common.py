"""What holds for every estimator: precision, seeds, atoms in the ball, dead atoms, stopping, bad parameters."""

import jax
import numpy as np
import pytest
from sklearn.decomposition import sparse_encode
from sklearn.exceptions import ConvergenceWarning, NotFittedError

from bilevel.estimators import DictionaryLearning, TaskDrivenDictionaryClassifier
from tests.compiling import compilations
from tests.estimators.examples import ALL, FEATURES, SAMPLES, fitted, outputs, samples, small, targets_of

every_estimator = pytest.mark.parametrize("estimator", ALL)


# --- Precision and reproducibility ------------------------------------------------------------------------------------


def floating_results(model, X):
    """All floating arrays that a model has or gives."""
    results = [*vars(model).values(), *outputs(model, X)]
    return [x for x in results if isinstance(x, np.ndarray) and np.issubdtype(x.dtype, np.floating)]


@every_estimator
def test_32_bits_stay_32_bits(estimator):
    X = samples(dtype=np.float32)
    y = targets_of(estimator, samples())
    model = fitted(estimator, X, y)
    results = floating_results(model, X)
    assert len(results) >= 2
    assert all(x.dtype == np.float32 for x in results)


@every_estimator
def test_64_bits_are_64_bits_whatever_jax_is_set_to(estimator):
    X, expected = samples(), fitted(estimator)
    with jax.enable_x64(False):
        model = fitted(estimator)
        results = floating_results(model, X)
        assert not jax.config.jax_enable_x64
    assert len(results) >= 2
    for a, b in zip(results, floating_results(expected, X), strict=True):
        assert a.dtype == np.float64
        np.testing.assert_array_equal(a, b)


@every_estimator
def test_the_seed_decides(estimator):
    # Batches and the start are drawn by lot.
    options = dict(init="random", batch_size=10)
    seeds = [0, 0, np.random.RandomState(0), 1]
    same, again, of_state, other = (fitted(estimator, **options, random_state=seed) for seed in seeds)
    np.testing.assert_array_equal(same.dictionary_, again.dictionary_)
    np.testing.assert_array_equal(same.dictionary_, of_state.dictionary_)
    assert not np.allclose(same.dictionary_, other.dictionary_)


@every_estimator
def test_nothing_that_is_given_is_changed(estimator):
    X, init = samples(), 2 * samples(3, seed=1)
    y = targets_of(estimator, X)
    copies = X.copy(), init.copy(), None if y is None else y.copy()
    model = fitted(estimator, X, y, init=init)
    outputs(model, X)
    for a, b in zip((X, init, y), copies, strict=True):
        np.testing.assert_array_equal(a, b)
    assert model.get_params()["init"] is init


@every_estimator
def test_other_numbers_need_no_other_program(estimator):
    fitted(estimator, batch_size=10)
    before = compilations()
    options = dict(l1=0.2, l2=0.3, tol=1e-3, learning_rate=0.02, max_iter=20, batch_size=10, random_state=1)
    if estimator is not DictionaryLearning:
        options["alpha"] = 0.1
    model = fitted(estimator, **options)
    assert model.n_iter_ == 20
    assert compilations() == before


# --- Codes and atoms --------------------------------------------------------------------------------------------------


@every_estimator
def test_codes_are_those_of_the_lasso(estimator):
    X = samples(seed=1)
    model = fitted(estimator, l1=0.3, l2=0.0)
    # scikit-learn's tolerance for the duality gap.
    expected = sparse_encode(X, model.dictionary_, algorithm="lasso_cd", alpha=0.3, max_iter=10_000)
    np.testing.assert_allclose(model.transform(X), expected, atol=1e-3)
    assert 0.2 < np.mean(expected == 0) < 0.9
    np.testing.assert_array_equal(model.transform(X) == 0, expected == 0)


@every_estimator
@pytest.mark.parametrize("init", ["svd", "random", "k-means++", "array"])
@pytest.mark.parametrize("size", [3, FEATURES + 2, SAMPLES + 4])
def test_every_atom_is_in_the_unit_ball(estimator, init, size):
    init = 5 * samples(size, seed=2) if init == "array" else init
    model = fitted(estimator, n_components=size, init=init)
    assert model.dictionary_.shape == (size, FEATURES)
    norms = np.linalg.norm(model.dictionary_, axis=1)
    assert np.all(norms <= 1 + 1e-12)
    # Not the matrix as a whole.
    assert np.sum(norms > 0.5) > size / 2
    codes = model.transform(samples())
    assert codes.shape == (SAMPLES, size)
    np.testing.assert_array_equal(model.usage_, np.count_nonzero(codes, axis=0))
    np.testing.assert_array_equal(model.dead_atoms_, np.flatnonzero(np.all(codes == 0, axis=0)))


def test_there_are_as_many_atoms_as_features_by_default():
    assert fitted(DictionaryLearning, n_components=None).dictionary_.shape == (FEATURES, FEATURES)


def with_a_dead_atom():
    """Samples, and an array to start from, whose last atom is orthogonal to all of them: its gradient is zero."""
    X = samples()
    X[:, -1] = 0
    return X, np.eye(FEATURES)[[0, 1, FEATURES - 1]]


def test_an_atom_that_no_sample_can_use_becomes_another():
    X, init = with_a_dead_atom()
    model = fitted(DictionaryLearning, X, init=init)
    assert len(model.dead_atoms_) == 0
    assert np.all(model.usage_ > 0)
    assert abs(model.dictionary_[2, -1]) < 0.5


@pytest.mark.parametrize("estimator", ALL[1:])
def test_an_array_is_where_the_joint_stage_begins(estimator):
    X, init = with_a_dead_atom()
    model = fitted(estimator, X, init=3 * init)
    np.testing.assert_array_equal(model.unsupervised_dictionary_, init)
    np.testing.assert_array_equal(model.dictionary_[2], init[2])
    assert not np.allclose(model.dictionary_[:2], init[:2], atol=1e-3)
    np.testing.assert_array_equal(model.dead_atoms_, [2])


@every_estimator
def test_atoms_that_must_die_are_reported(estimator):
    model = fitted(estimator, l1=100.0)
    np.testing.assert_array_equal(model.dead_atoms_, [0, 1, 2])
    assert not np.any(model.transform(samples()))


# --- Training ---------------------------------------------------------------------------------------------------------


@every_estimator
def test_the_history_falls_and_counts_epochs(estimator):
    # Three steps an epoch, the last one filled up.
    model = fitted(estimator, max_iter=40, tol=0.0, batch_size=10)
    losses = model.history_["loss"]
    assert len(losses) == 3 * model.n_iter_
    assert losses[-3:].mean() < losses[:3].mean()


@every_estimator
def test_training_stops_when_the_loss_stalls(estimator):
    assert fitted(estimator, max_iter=50, tol=1.0).n_iter_ == 20
    assert fitted(estimator, max_iter=25, tol=1e-9, learning_rate=1e-4).n_iter_ == 25


@every_estimator
def test_verbose_shows_a_bar(estimator, capfd):
    fitted(estimator, verbose=True)
    assert f"{estimator.__name__}, 3 atoms" in capfd.readouterr().err
    fitted(estimator)
    assert capfd.readouterr().err == ""


@pytest.mark.filterwarnings("ignore:.*encountered in.*:RuntimeWarning")
def test_steps_that_fail_are_warned_of():
    X = samples()
    X[3] *= 1e200
    with pytest.warns(ConvergenceWarning) as caught:
        fitted(DictionaryLearning, X, init="random")
    messages = [str(w.message) for w in caught]
    assert any("training steps failed" in m and "learning_rate" in m for m in messages)


# --- Bad parameters ---------------------------------------------------------------------------------------------------

WHOLE = [0, -1, 2.5, True, "3", np.nan]
NUMBER = [-0.1, np.nan, np.inf, "a", True, 1j]
BAD = {
    "n_components": WHOLE,
    "max_iter": [*WHOLE, None],
    "batch_size": WHOLE,
    "l1": [*NUMBER, None],
    "l2": [*NUMBER, None],
    "tol": [*NUMBER, None],
    "learning_rate": [*NUMBER, None, 0.0],
    "init": ["pca", np.ones((2, 2)), None, [["a"] * FEATURES] * 3],
    "random_state": [-1, 0.5, "seed", True, np.random.default_rng(0)],
    "verbose": ["yes", None, 0.5],
}


@every_estimator
@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_bad_parameters_are_named(estimator, name, value):
    with pytest.raises(ValueError, match=f"^`{name}` must be|^`{name}` must have"):
        fitted(estimator, **{name: value})


@pytest.mark.parametrize("estimator", ALL[1:])
@pytest.mark.parametrize("value", [*NUMBER, None])
def test_a_bad_alpha_is_named(estimator, value):
    with pytest.raises(ValueError, match=r"^`alpha` must be finite and not negative"):
        fitted(estimator, alpha=value)


@every_estimator
def test_numpy_numbers_are_numbers(estimator):
    options = dict(n_components=np.int64(3), max_iter=np.int32(10), batch_size=np.int64(10), l1=np.float32(0.1))
    model = fitted(estimator, **options, verbose=np.bool_(False), random_state=np.int64(0))
    assert model.dictionary_.shape == (3, FEATURES)


BAD_SAMPLES = {
    "NaN": (np.full((4, 3), np.nan), "NaN"),
    "no sample": (np.zeros((0, 3)), "0 sample"),
    "one axis": (np.zeros(4), "2D array"),
    "complex": (np.zeros((4, 3), complex), "Complex"),
    "words": (np.full((4, 3), "a"), "could not convert|numeric"),
}


@every_estimator
@pytest.mark.parametrize("name", BAD_SAMPLES)
def test_bad_samples_are_refused(estimator, name):
    X, message = BAD_SAMPLES[name]
    with pytest.raises(ValueError, match=message):
        small(estimator).fit(X, np.arange(len(X)) % 2)


@every_estimator
def test_samples_of_other_features_are_refused(estimator):
    with pytest.raises(ValueError, match=r"X has 4 features, but .* is expecting 5"):
        fitted(estimator).transform(samples(features=4))


@every_estimator
def test_an_estimator_that_was_not_fitted_says_so(estimator):
    with pytest.raises(NotFittedError):
        outputs(small(estimator), samples())


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="`y` has one class only"):
        fitted(TaskDrivenDictionaryClassifier, y=np.ones(SAMPLES, int))
