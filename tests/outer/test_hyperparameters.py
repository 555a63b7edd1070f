"""A whole hyperparameter search: the strength of Ridge by the held-out error, against a fine grid."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import Array, Float, PyTree

import bilevel as bl
from tests.outer.examples import Split, held_out_error, ridge_by_hand, split_of


class LogRidge(bl.objectives.AbstractExactObjective):
    """Ridge with alpha = exp(log_alpha): a user's own parametrization."""

    log_alpha: Float[Array, "*features"]

    @property
    def ridge(self) -> bl.objectives.Ridge:
        return bl.objectives.Ridge(jnp.exp(self.log_alpha))

    def smooth(self, params: PyTree, data: PyTree) -> Array:
        return self.ridge.smooth(params, data)

    def init(self, data: PyTree) -> PyTree:
        return self.ridge.init(data)

    def minimizer(self, data: PyTree) -> PyTree:
        return self.ridge.minimizer(data)


def search(log_alpha: np.ndarray, batch: Split) -> bl.Fitted:
    variables = bl.Variables(LogRidge(jnp.asarray(log_alpha)))
    problem = bl.BilevelProblem(held_out_error, variables, inner_data=lambda batch: batch.fit)
    return bl.Trainer(problem, optax.adam(0.2)).fit(batch, 150)


GRID = np.linspace(-6, 4, 81)


@pytest.mark.parametrize("start", [-5.0, 3.0])
def test_one_strength_is_as_good_as_that_of_a_fine_grid(start):
    batch = split_of(seed=2, features=8, samples=16)
    grid = np.array([ridge_by_hand(np.full(8, np.exp(x)), batch)[0] for x in GRID])
    best = int(np.argmin(grid))
    # Neither too little nor too much of it will do.
    assert grid[0] > 1.05 * grid[best]
    assert grid[-1] > 1.05 * grid[best]
    fitted = search(np.asarray(start), batch)
    alpha = np.exp(fitted.variables.objective.log_alpha)
    assert ridge_by_hand(np.full(8, alpha), batch)[0] <= 1.01 * grid[best]
    assert fitted.history["loss"][-1] <= 1.01 * grid[best] < fitted.history["loss"][0]


def test_a_strength_for_each_feature_is_as_good_as_that_of_a_fine_grid():
    batch = split_of(seed=3, features=2, samples=16)
    coarse = GRID[::2]
    grid = np.array([[ridge_by_hand(np.exp([a, b]), batch)[0] for b in coarse] for a in coarse])
    fitted = search(np.zeros(2), batch)
    loss, _ = ridge_by_hand(np.exp(np.asarray(fitted.variables.objective.log_alpha)), batch)
    assert loss <= 1.01 * grid.min() < fitted.history["loss"][0]
    # One strength for both would have been worse.
    assert np.min(np.diag(grid)) > 1.01 * loss


def test_the_user_s_parametrization_is_itself_a_leaf():
    objective = LogRidge(jnp.zeros(3))
    gradient = eqx.filter_jit(eqx.filter_grad(lambda o, b: held_out_error(None, bl.argmin(o, b.fit).params, b)))
    expected = ridge_by_hand(np.ones(3), split_of())[1]
    np.testing.assert_allclose(gradient(objective, split_of()).log_alpha, expected, rtol=1e-6)
    assert jax.tree.leaves(objective)[0].shape == (3,)
