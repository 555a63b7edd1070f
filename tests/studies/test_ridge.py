"""The ridge study: all solvers agree; a strength is tuned as well as on a fine grid, and never becomes negative."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge as SklearnRidge

from bilevel import objectives
from bilevel.studies import ridge, ridge_study, tune_ridge
from tests import witnesses
from tests.compiling import compiled

SMOOTH = {"exact", "gradient descent", "gradient descent, plain", "L-BFGS", "BFGS", "nonlinear CG", "Newton", "Optax"}
NAMES = SMOOTH | {"proximal gradient", "proximal gradient, plain", "Anderson acceleration", "block coordinate descent"}
SCIPY = {"SciPy, L-BFGS-B", "SciPy, BFGS", "SciPy, CG"}
ALPHAS = np.geomspace(0.05, 2.0, 10)


@pytest.fixture(scope="module", autouse=True)
def cheap_programs():
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_run_jit", "_value_and_gradient", "_losses"):
            patch.setattr(ridge, name, compiled(getattr(ridge, name).__wrapped__))
        yield


def diabetes():
    X, y = load_diabetes(return_X_y=True)
    return X / X.std(axis=0), y - y.mean()


@pytest.fixture(scope="module")
def study(cheap_programs):
    return ridge_study(diabetes(), ALPHAS)


def test_all_solvers_agree(study):
    X, y = diabetes()
    assert set(study.solutions) == NAMES | SCIPY
    expected = witnesses.ridge(ALPHAS, X, y)
    for name, solution in study.solutions.items():
        np.testing.assert_allclose(solution.weight, expected, atol=1e-6 * np.max(np.abs(expected)), err_msg=name)
        assert study.differences[name] <= 1e-6
        # SciPy's line searches end where differences of the objective are rounding.
        assert solution.success or name in SCIPY, name


def test_the_two_parts_of_the_objective(study):
    X, y = diabetes()
    w = np.asarray(study.solutions["exact"].weight)
    for solution in study.solutions.values():
        np.testing.assert_allclose(solution.data_term, np.mean((X @ w - y) ** 2) / 2, rtol=1e-6)
        np.testing.assert_allclose(solution.regularizer, np.sum(ALPHAS * w**2) / 2, rtol=1e-5)


def parts(seed: int) -> tuple:
    X, y = diabetes()
    order = np.random.default_rng(seed).permutation(len(X))
    train, validation = order[:60], order[60:200]
    X_mean, y_mean = X[train].mean(axis=0), y[train].mean()
    return tuple((X[rows] - X_mean, y[rows] - y_mean) for rows in (train, validation))


@pytest.mark.parametrize("seed", range(3))
def test_the_tuned_strength_is_as_good_as_a_fine_grid(seed):
    train, validation = parts(seed)
    tuning = tune_ridge(train, validation)
    assert tuning.loss <= 1.0001 * np.min(tuning.grid_losses)
    # scikit-learn's loss at the strength found, and at one of the grid.
    for alpha, loss in ((tuning.alpha, tuning.loss), (tuning.grid[100], tuning.grid_losses[100])):
        w = SklearnRidge(alpha=alpha * len(train[0]), fit_intercept=False).fit(*train).coef_
        np.testing.assert_allclose(loss, np.mean((validation[0] @ w - validation[1]) ** 2), rtol=1e-8)


def test_a_strength_for_each_feature_fits_the_validation_data_better():
    train, validation = parts(0)
    one = tune_ridge(train, validation)
    each = tune_ridge(train, validation, np.full(10, one.alpha))
    assert each.loss < 0.999 * one.loss
    assert each.alpha.shape == (10,) and np.all(each.alpha > 0)


@pytest.mark.parametrize("start", [1e-8, 1e-3, 1e4])
def test_no_start_makes_a_strength_negative(start):
    # The largest steps that the search may take, into the bounds on both sides.
    tuning = tune_ridge(*parts(0), start, bounds=(1e-12, 1e8))
    assert np.all(tuning.history["alpha"] > 0) and tuning.loss <= tuning.history["loss"][0]


def test_a_strength_is_no_parameter():
    """With α among the parameters, descent drives it down for ever, past −1.29; here it is not among them."""
    X, y = (jnp.asarray(part) for part in diabetes())

    def mixed(params):
        w, alpha = params
        return 0.5 * jnp.mean((X @ w - y) ** 2) + 0.5 * alpha * jnp.sum(w**2)

    def step(state):
        params, moments = state
        gradient = (
            X.T @ (X @ params[0] - y) / len(y) + params[1] * params[0],
            0.5 * jnp.sum(params[0] ** 2),
        )
        # Optax mixes integers with floats, an error under strict promotion.
        with jax.numpy_dtype_promotion("standard"):
            updates, moments = optimizer.update(gradient, moments)
        return optax.apply_updates(params, updates), moments

    optimizer = optax.adam(0.1)
    params = (jnp.zeros(10), jnp.asarray(1.0))
    state, advance = (params, optimizer.init(params)), compiled(step)
    for _ in range(40):
        state = advance(state)
    assert state[0][1] < -1.29 and mixed(state[0]) < mixed((state[0][0], jnp.asarray(0.0)))
    # Ours: the unknown holds weights alone, whatever solves; and a negative strength is refused at the door.
    problem = objectives.Ridge(1.0)
    unknown = problem.init((X, y))
    assert [leaf.shape for leaf in (unknown.weight,)] == [(10,)] and set(vars(unknown)) == {"weight"}
    with pytest.raises(ValueError, match="`alpha`"):
        objectives.Ridge(-1.29)
