"""`Truncated(k)` is k terms of the Neumann series of the implicit derivative; `OneStep` one, which suffices Newton."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from tests.compiling import compiled
from tests.laws import Outcome, along_all, cotangent_of, error, outcome
from tests.problems import CODES, LOGISTIC, PENALIZED, RIDGES, Problem, raveled
from tests.solvers.members import TOL

S = bl.solvers
RIDGE, L1 = RIDGES[0], PENALIZED[0]
DESCENT = S.GradientDescent(tol=TOL, acceleration=False)
PROXIMAL = S.ProximalGradient(tol=TOL, acceleration=False)
CODER = S.SparseCoder(tol=TOL)


@functools.cache
def implicit(name: str) -> Outcome:
    problem = next(problem for problem in (RIDGE, CODES, L1, LOGISTIC, RIDGES[1]) if problem.name == name)
    # To the last digits: the default solver at its default tolerance is not a witness.
    solver = CODER if problem is CODES else PROXIMAL if problem is L1 else S.Newton(tol=TOL)
    return outcome(problem, solver)


# A step is y ↦ prox(y − ∇f(y; θ) / L), whose derivative at the solution is J (I − H / L) in y and −J b / L in θ, with
# b = ∂∇f/∂θ dθ and J the projection on the support. So k steps give −Σ_{i<k} (J (I − H / L))ⁱ J b / L.
def neumann(hessian: np.ndarray, support: np.ndarray, right: np.ndarray, lipschitz: float, num_terms: int):
    A = support[:, None] * (np.eye(len(hessian)) - hessian / lipschitz)
    term = -1 / lipschitz * support * right
    return sum(np.linalg.matrix_power(A, i) @ term for i in range(num_terms))


def ridge_terms(num_terms: int) -> tuple[np.ndarray, float]:
    """The series for RIDGE along all leaves, and its rate."""
    (alpha, X, y), (d_alpha, d_X, d_y) = map(np.asarray, RIDGE.leaves), along_all(RIDGE)
    n = len(X)
    H = X.T @ X / n + alpha * np.eye(X.shape[1])
    w = np.linalg.solve(H, X.T @ y / n)
    b = d_X.T @ (X @ w - y) / n + X.T @ (d_X @ w - d_y) / n + d_alpha * w
    lipschitz = np.linalg.norm(X, 2) ** 2 / n + alpha
    rate = 1 - np.linalg.eigvalsh(H)[0] / lipschitz
    return neumann(H, np.ones(len(w)), b, lipschitz, num_terms), rate


def code_terms(num_terms: int) -> np.ndarray:
    """The series for CODES along all leaves, sample by sample."""
    (D, l1, l2, X), (d_D, d_l1, d_l2, d_X) = map(np.asarray, CODES.leaves), along_all(CODES)
    codes = CODES.solve(D, l1, l2, X).reshape(len(X), len(D))
    H = D @ D.T + l2 * np.eye(len(D))
    motions = []
    for c, x, d_x in zip(codes, X, d_X, strict=True):
        residual, d_residual = c @ D - x, c @ d_D - d_x
        b = d_D @ residual + D @ d_residual + d_l2 * c + d_l1 * np.sign(c)
        motions.append(neumann(H, c != 0, b, np.linalg.norm(D, 2) ** 2 + l2, num_terms))
    return np.ravel(motions)


@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_is_the_neumann_series_of_gradient_descent(num_steps: int):
    solved = outcome(RIDGE, DESCENT, bl.Truncated(num_steps))
    assert error(solved.pushed, ridge_terms(num_steps)[0]) <= 1e-9


@pytest.mark.parametrize("num_steps", [1, 7])
def test_is_the_neumann_series_of_proximal_gradient(num_steps: int):
    solved = outcome(CODES, PROXIMAL, bl.Truncated(num_steps))
    assert error(solved.pushed, code_terms(num_steps)) <= 1e-9


def test_a_sparse_coder_takes_single_steps():
    # Its first step has no momentum; the following ones have.
    assert error(outcome(CODES, CODER, bl.Truncated(1)).pushed, code_terms(1)) <= 1e-9
    far, near = (error(outcome(CODES, CODER, bl.Truncated(k)).pushed, code_terms(10_000)) for k in (7, 300))
    assert near <= 1e-3 < 0.1 < far


def test_the_error_falls_at_the_rate_of_the_solver():
    known = implicit(RIDGE.name).pushed
    for num_steps in (2, 7, 40):
        rate = ridge_terms(1)[1]
        wrong = np.linalg.norm(outcome(RIDGE, DESCENT, bl.Truncated(num_steps)).pushed - known)
        assert wrong <= rate**num_steps * np.linalg.norm(known)


CASES = {
    "GradientDescent": (RIDGE, DESCENT, bl.Truncated(7), 1.0),
    "SparseCoder": (CODES, CODER, bl.Truncated(300), 1e-3),
    # It searches for its steps, as it does not know L; at a solution there is nothing to be found.
    "line search": (L1, S.ProximalGradient(tol=TOL), bl.Truncated(200), 1e-6),
    "Exact": (RIDGES[1], S.Exact(), bl.Truncated(1), 1e-10),
    "one step of Newton": (LOGISTIC, S.Newton(tol=TOL), bl.OneStep(), 1e-8),
    "one step of gradient descent": (RIDGE, DESCENT, bl.OneStep(), 1.0),
}
every = pytest.mark.parametrize(("problem", "solver", "diff", "bound"), CASES.values(), ids=CASES)


@every
def test_value_result_and_stats_do_not_depend_on_it(problem: Problem, solver, diff, bound: float):
    solved, known = (outcome(problem, solver, diff) for diff in (diff, bl.Implicit()))
    np.testing.assert_array_equal(solved.params, known.params)
    assert solved.solution.result == bl.RESULTS.successful
    for name, value in solved.solution.stats.items():
        np.testing.assert_array_equal(value, known.solution.stats[name])


@every
def test_nears_the_implicit_derivative_in_both_modes(problem: Problem, solver, diff, bound: float):
    solved, known = outcome(problem, solver, diff), implicit(problem.name)
    assert error(solved.pushed, known.pushed) <= bound
    forward = np.vdot(solved.pushed, raveled(cotangent_of(problem)))
    reverse = sum(np.vdot(*pair) for pair in zip(jax.tree.leaves(solved.pulled), along_all(problem), strict=True))
    assert error(reverse, forward) <= 1e-8


def test_one_step_suffices_newton_and_not_gradient_descent():
    known = implicit(RIDGE.name)
    one = outcome(RIDGE, DESCENT, bl.OneStep())
    assert error(one.pushed, known.pushed) > 0.3
    np.testing.assert_array_equal(one.pushed, outcome(RIDGE, DESCENT, bl.Truncated(1)).pushed)
    newton = outcome(RIDGE, S.Newton(tol=TOL), bl.OneStep())
    assert error(newton.pushed, known.pushed) <= 1e-8
    for leaf, expected in zip(*map(jax.tree.leaves, (newton.pulled, known.pulled)), strict=True):
        assert error(leaf, expected) <= 1e-8


DIFFS = [bl.Truncated(7), bl.OneStep()]


@pytest.mark.parametrize("diff", DIFFS, ids=lambda diff: type(diff).__name__)
def test_a_failed_solve_has_no_derivative_unless_the_caller_asks_for_it(diff: bl.AbstractDifferentiation):
    solver = S.ProximalGradient(tol=1e-300, max_steps=3)
    failed = outcome(CODES, solver, diff)
    assert failed.solution.result == bl.RESULTS.not_converged
    assert np.all(np.isfinite(failed.params))
    assert np.all(np.isnan(failed.pushed))
    assert all(np.all(np.isnan(leaf)) for leaf in jax.tree.leaves(failed.pulled))
    lenient = bl.OneStep("ignore") if isinstance(diff, bl.OneStep) else bl.Truncated(7, "ignore")
    assert np.all(np.isfinite(outcome(CODES, solver, lenient).pushed))


def test_nothing_reaches_the_start_and_next_to_nothing_the_stepsize():
    X, y = RIDGE.data

    @compiled
    def pulled(start: jax.Array, stepsize: jax.Array, X: jax.Array) -> tuple:
        def total(start: jax.Array, stepsize: jax.Array, X: jax.Array) -> jax.Array:
            solver = S.GradientDescent(tol=TOL, stepsize=stepsize)
            init = bl.objectives.LinearModel(start)
            solution = bl.argmin(RIDGE.objective, (X, y), solver=solver, init=init, diff=bl.Truncated(5))
            return jnp.sum(solution.params.weight)

        return jax.grad(total, argnums=(0, 1, 2))(start, stepsize, X)

    start, stepsize, X = pulled(jnp.ones(6), jnp.asarray(0.1), X)
    np.testing.assert_array_equal(start, 0)
    assert 0 < abs(stepsize) <= 1e-8
    assert np.linalg.norm(X) > 1e-2


@pytest.mark.parametrize("make", [S.LBFGS, S.BFGS, S.NonlinearCG, S.AndersonAcceleration])
def test_refuses_solvers_that_learn_from_differences(make):
    with pytest.raises(ValueError, match=rf"{make.__name__} has no derivative of a given number of steps(.|\n)*Try"):
        bl.argmin(RIDGE.objective, RIDGE.data, solver=make(), diff=bl.Truncated(3))


@pytest.mark.parametrize("num_steps", [0, -1, 1.5, True, None])
def test_bad_options_are_named(num_steps):
    with pytest.raises(ValueError, match="`num_steps` must be a whole number of at least 1"):
        bl.Truncated(num_steps)
    for make in (lambda: bl.Truncated(1, "silence"), lambda: bl.OneStep("silence")):
        with pytest.raises(ValueError, match=r"`on_failure` must be one of .* got 'silence'"):
            make()


@pytest.mark.parametrize("diff", [bl.Truncated(3), bl.OneStep(), bl.Shine()], ids=["Truncated", "OneStep", "Shine"])
def test_a_second_derivative_is_refused(diff: bl.AbstractDifferentiation):
    solver = S.LBFGS() if isinstance(diff, bl.Shine) else DESCENT
    value = lambda alpha: jnp.sum(
        bl.argmin(bl.objectives.Ridge(alpha), RIDGE.data, solver=solver, diff=diff).params.weight ** 2
    )
    assert np.isfinite(compiled(jax.grad(value))(jnp.asarray(0.3)))
    for twice in (jax.hessian(value), jax.grad(jax.grad(value)), jax.jacfwd(jax.jacfwd(value))):
        with pytest.raises(NotImplementedError, match="first derivatives only"):
            compiled(twice)(jnp.asarray(0.3))
