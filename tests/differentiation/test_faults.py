"""Cases in which implicit derivatives of other libraries are wrong without a word: here right, or an error."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import make_regression
from sklearn.linear_model import Lasso

import bilevel as bl
from tests.compiling import compilations, compiled
from tests.problems import CODES, RIDGES
from tests.witnesses import code_gradients

O, S = bl.objectives, bl.solvers


def lasso_data(samples: int, features: int) -> tuple:
    X, y = make_regression(samples, features, n_informative=10, noise=10.0, random_state=0)
    return X, y / np.std(y)


def slope_of_lasso(X: np.ndarray, y: np.ndarray, l1: float) -> tuple[np.ndarray, float]:
    """scikit-learn's weights, polished on their support, and d/dl1 of ½ Σ w²:  −wᵀ (X_SᵀX_S / n)⁻¹ sign(w_S)."""
    w = Lasso(alpha=l1, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(X, y).coef_
    S, n = np.flatnonzero(np.abs(w) > 1e-9), len(X)
    gram, signs = X[:, S].T @ X[:, S] / n, np.sign(w[S])
    w_S = np.linalg.solve(gram, X[:, S].T @ y / n - l1 * signs)
    return w_S, -w_S @ np.linalg.solve(gram, signs)


@compiled
def slope_in_l1(l1, data, solver, throw=True):
    def value(l1):
        return 0.5 * jnp.sum(bl.argmin(O.ElasticNet(l1), data, solver=solver, throw=throw).params.weight ** 2)

    return jax.grad(value)(l1)


def test_1_an_inner_solve_that_stopped_early_raises_or_is_nan_or_is_estimated():
    X, y = lasso_data(60, 20)
    data, l1, few = (jnp.asarray(X), jnp.asarray(y)), jnp.asarray(0.1), S.ProximalGradient(max_steps=5, tol=1e-12)
    with pytest.raises(eqx.EquinoxRuntimeError, match="used up `max_steps`"):
        jax.block_until_ready(slope_in_l1(l1, data, few))
    assert np.isnan(slope_in_l1(l1, data, few, throw=False))
    loss = lambda objective, model, data: 0.5 * jnp.sum(model.weight**2)
    run = lambda **options: bl.hypergradient(loss, O.ElasticNet(l1), data, solver=few, on_failure="ignore", **options)
    _, truth = slope_of_lasso(X, y, 0.1)
    done, corrected = run(), run(correct=True)
    true = abs(float(done.gradient.l1) - truth) / abs(truth)
    assert done.certificate.result == bl.RESULTS.not_converged
    np.testing.assert_allclose(done.certificate.relative_error, true, rtol=0.5)
    np.testing.assert_allclose(corrected.gradient.l1, truth, rtol=1e-10)


@pytest.mark.parametrize("divisor", [2, 10, 100])
def test_2_a_wide_lasso(divisor: int):
    X, y = lasso_data(100, 1000)
    l1 = np.max(np.abs(X.T @ y)) / 100 / divisor
    w, truth = slope_of_lasso(X, y, l1)
    solver = S.ProximalGradient(tol=1e-10, max_steps=50_000)
    found = slope_in_l1(jnp.asarray(l1), (jnp.asarray(X), jnp.asarray(y)), solver)
    assert len(w) < 100
    np.testing.assert_allclose(found, truth, rtol=1e-6)


@pytest.mark.parametrize("a", [1e-3, 1e-2, 1.0, 1e2, 1e3])
def test_3_multiplying_the_objective_leaves_the_derivative(a: float):
    # X, y times a and l1 times a²: the same solution, the same derivative in l1 / a².
    X, y = lasso_data(60, 20)
    _, truth = slope_of_lasso(X, y, 0.1)
    found = slope_in_l1(
        jnp.asarray(a**2 * 0.1), (jnp.asarray(a * X), jnp.asarray(a * y)), S.ProximalGradient(tol=1e-12)
    )
    np.testing.assert_allclose(a**2 * found, truth, rtol=1e-8)


def test_4_samples_of_a_batch_do_not_share_a_tolerance():
    cotangent = jnp.logspace(-3, 3, len(CODES.data))[:, None] * jnp.ones(CODES.objective.init(CODES.data).shape)

    @compiled
    def pulled(X, cotangent):
        value = lambda X: jnp.sum(cotangent * bl.argmin(CODES.objective, X).params)
        return jax.grad(value)(X)

    D, _, l2, X = map(np.asarray, CODES.leaves)
    codes = CODES.solve(*map(np.asarray, CODES.leaves)).reshape(cotangent.shape)
    *_, in_X = code_gradients(D, float(l2), X, codes, np.asarray(cotangent))
    found = pulled(CODES.data, cotangent)
    assert np.all(np.linalg.norm(found - in_X, axis=1) <= 1e-8 * np.linalg.norm(in_X, axis=1))


def test_5_a_second_call_outside_jit_compiles_nothing():
    X, y = RIDGES[0].data
    call = lambda alpha: bl.argmin(O.Ridge(alpha), (X, y), solver=S.LBFGS(tol=1e-9))
    call(0.3)
    before = compilations()
    call(0.4)
    assert compilations() == before


def test_6_derivatives_at_zero_and_at_ties_are_numbers():
    push = lambda penalty, x: jax.jvp(lambda x: penalty.prox(x, 1.0), (x,), (jnp.ones_like(x),))[1]
    # Inside the ball nothing is moved, and within the threshold all is 0; a center has no nearest point on the sphere.
    np.testing.assert_array_equal(push(bl.prox.UnitBall(), jnp.zeros((2, 3))), 1)
    np.testing.assert_array_equal(push(bl.prox.GroupL1(1.0), jnp.zeros((2, 3))), 0)
    assert np.all(np.isfinite(push(bl.prox.UnitSphere(), jnp.zeros((2, 3)))))
    np.testing.assert_array_equal(push(bl.prox.Box(0.0, 1.0), jnp.asarray([0.0, 0.5, 1.0])), [0, 1, 0])


def test_7_forward_mode_closures_and_modules_with_functions():
    X, y = RIDGES[0].data
    model = eqx.nn.MLP(6, 1, 3, 1, activation=jnp.tanh, key=jax.random.key(0))

    @compiled
    def slopes(rho):
        def solve(rho):
            # Closes over what is traced; the unknown has function leaves.
            function = lambda _, net, data: (
                jnp.mean((jax.vmap(net)(data[0])[:, 0] - data[1]) ** 2) + rho * optax_norm(net)
            )
            objective = O.FunctionObjective(function, start=model)
            solution = bl.argmin(objective, (X, y), solver=S.BFGS(tol=1e-10, max_steps=2000), throw=False)
            return jnp.sum(jax.vmap(solution.params)(X)), solution.result

        (_, pushed, result) = jax.jvp(solve, (rho,), (jnp.ones_like(rho),), has_aux=True)
        return pushed, jax.grad(solve, has_aux=True)(rho)[0], result, solve(rho + 1e-5)[0], solve(rho - 1e-5)[0]

    optax_norm = lambda net: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(eqx.filter(net, eqx.is_inexact_array)))
    forward, reverse, result, above, below = slopes(jnp.asarray(0.3))
    assert result == bl.RESULTS.successful
    np.testing.assert_allclose(forward, reverse, rtol=1e-8)
    np.testing.assert_allclose(forward, (above - below) / 2e-5, rtol=1e-4)


def test_8_two_steps_without_errors_wanted_are_not_a_derivative():
    # min (y² − θ)²: y = √θ, of derivative 1 / (2 √θ); two steps of Newton's method are not there yet.
    objective = lambda theta: O.FunctionObjective(lambda t, y, _: (y**2 - t) ** 2, theta, start=jnp.asarray(1.0))
    slope = lambda solver: compiled(
        jax.grad(lambda theta: bl.argmin(objective(theta), solver=solver, throw=False).params)
    )(jnp.asarray(3.0))
    assert np.isnan(slope(S.LBFGS(max_steps=2)))
    np.testing.assert_allclose(slope(S.LBFGS(tol=1e-12)), 0.5 / np.sqrt(3), rtol=1e-8)


def test_8_nor_two_steps_of_gradient_descent():
    # The same problem: the formula of implicit differentiation, 4 y / (12 y² − 4 θ), holds at y = √θ alone. A library
    # that is told not to raise evaluates it wherever the two steps end, without a word.
    objective = O.FunctionObjective(lambda t, y, _: (y**2 - t) ** 2, jnp.asarray(3.0), start=jnp.asarray(1.0))
    two = S.GradientDescent(max_steps=2, tol=1e-12)
    slope = compiled(
        jax.grad(
            lambda t: bl.argmin(eqx.tree_at(lambda o: o.hyperparams, objective, t), solver=two, throw=False).params
        )
    )
    assert np.isnan(slope(jnp.asarray(3.0)))
    done = bl.hypergradient(lambda _, y, data: y, objective, solver=two, on_failure="ignore")
    truth = 0.5 / np.sqrt(3)
    true = abs(float(jax.tree.leaves(done.gradient)[0]) - truth) / truth
    assert true > 1e-3 and done.certificate.result == bl.RESULTS.not_converged
    assert true / 10 <= done.certificate.relative_error <= 10 * true
