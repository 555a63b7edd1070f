"""`Shine` applies the inverse Hessian that L-BFGS estimated; refined by conjugate gradient it is `Implicit`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.solvers.inverse_hessian import InverseHessian
from tests.compiling import compiled
from tests.laws import Outcome, along_all, cotangent_of, error, outcome
from tests.problems import CODES, LOGISTIC, RIDGES, raveled
from tests.solvers.members import TOL

S = bl.solvers
SOLVER = S.LBFGS(tol=TOL)


@functools.cache
def estimate() -> tuple[bl.Solution, InverseHessian]:
    solve = compiled(lambda data, init: SOLVER.run_with_inverse_hessian(LOGISTIC.objective, data, init))
    return solve(LOGISTIC.data, jnp.zeros(6))


def logistic_hessian(w: np.ndarray) -> np.ndarray:
    X, y = map(np.asarray, LOGISTIC.data)
    p = 1 / (1 + np.exp(y * (X @ w)))
    return X.T @ ((p * (1 - p))[:, None] * X) + 0.5 * np.eye(len(w))


def dense(inverse: InverseHessian) -> np.ndarray:
    """The recurrence of the docstring, on matrices."""
    S, Z = np.asarray(inverse.moves), np.asarray(inverse.changes)
    B, I = float(inverse.gamma) * np.eye(S.shape[1]), np.eye(S.shape[1])
    for s, z, rho in zip(S, Z, np.asarray(inverse.rho), strict=True):
        B = (I - rho * np.outer(s, z)) @ B @ (I - rho * np.outer(z, s)) + rho * np.outer(s, s)
    return B


def test_the_two_loops_are_the_recurrence():
    _, inverse = estimate()
    B = compiled(lambda inverse: jax.vmap(inverse.mv)(jnp.eye(6)))(inverse)
    np.testing.assert_allclose(B, dense(inverse), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(B, B.T, rtol=1e-10, atol=1e-12)
    assert np.all(np.linalg.eigvalsh(B) > 0)


def test_the_estimate_is_in_the_units_of_the_objective_and_ends_with_the_last_step():
    solution, inverse = estimate()
    H = logistic_hessian(np.asarray(solution.params))
    kept = np.flatnonzero(inverse.rho)
    for i in kept[-3:]:
        # What the last steps have seen of the Hessian, at points that are not quite the solution.
        s, z = np.asarray(inverse.moves[i]), np.asarray(inverse.changes[i])
        np.testing.assert_allclose(z, H @ s, rtol=1e-2, atol=1e-2 * np.linalg.norm(z))
    last = kept[-1]
    np.testing.assert_allclose(inverse.mv(inverse.changes[last]), inverse.moves[last], rtol=1e-8)


def test_from_a_circle_in_the_order_of_age_without_pairs_that_do_not_curve():
    moves, changes = jnp.asarray([[3.0, 0], [1, 0], [0, 2]]), jnp.asarray([[6.0, 0], [0, 0], [0, 8]])
    one = jnp.asarray(1.0)
    inverse = InverseHessian.from_circle(moves, changes, one, jnp.asarray(1), 10 * one)
    np.testing.assert_array_equal(inverse.moves, moves[np.array([1, 2, 0])])
    np.testing.assert_array_equal(inverse.changes, 10 * changes[np.array([1, 2, 0])])
    np.testing.assert_allclose(inverse.rho, [0, 1 / 160, 1 / 180])
    np.testing.assert_allclose(inverse.mv(jnp.asarray([20.0, 40.0])), [1.0, 1.0])


@functools.cache
def refined(num_refinements: int) -> Outcome:
    return outcome(LOGISTIC, SOLVER, bl.Shine(num_refinements))


def implicit() -> Outcome:
    return outcome(LOGISTIC, SOLVER)


def test_without_refinement_it_is_the_estimate_times_the_gradient():
    solution, inverse = estimate()
    names = ["rho", "scale", "start", "X", "y"]
    (rho, scale, _, X, y), directions = map(np.asarray, LOGISTIC.leaves[:2] + LOGISTIC.leaves[2:]), along_all(LOGISTIC)
    d = dict(zip(names, directions, strict=True))
    w = np.asarray(solution.params)

    def gradient(rho, scale, X, y):
        return scale * (-X.T @ (y / (1 + np.exp(y * (X @ w)))) + rho * w)

    at = lambda t: gradient(rho + t * d["rho"], scale + t * d["scale"], X + t * d["X"], y + t * d["y"])
    expected = -dense(inverse) @ (at(1e-5) - at(-1e-5)) / 2e-5
    assert error(refined(0).pushed, expected) <= 1e-7
    np.testing.assert_array_equal(refined(0).params, implicit().params)


def test_refinement_leads_to_the_implicit_derivative_in_both_modes():
    known = implicit()
    forward = [error(refined(n).pushed, known.pushed) for n in (0, 2, 12)]
    assert 1e-4 < forward[0] < 0.2
    assert forward[1] < 0.1 * forward[0]
    assert forward[2] <= 1e-9
    for leaf, expected in zip(*map(jax.tree.leaves, (refined(12).pulled, known.pulled)), strict=True):
        assert error(leaf, expected) <= 1e-9


def test_reverse_mode_is_forward_mode_without_refinement():
    forward = np.vdot(refined(0).pushed, raveled(cotangent_of(LOGISTIC)))
    leaves = zip(jax.tree.leaves(refined(0).pulled), along_all(LOGISTIC), strict=True)
    assert error(sum(np.vdot(*pair) for pair in leaves), forward) <= 1e-10


def test_unknowns_that_are_modules():
    known, solved = (outcome(RIDGES[1], SOLVER, diff) for diff in (bl.Implicit(), bl.Shine(30)))
    assert error(solved.pushed, known.pushed) <= 1e-8


def test_a_failed_solve_has_no_derivative_unless_the_caller_asks_for_it():
    solver = S.LBFGS(tol=1e-300, max_steps=2)
    failed = outcome(LOGISTIC, solver, bl.Shine())
    assert failed.solution.result == bl.RESULTS.not_converged
    assert np.all(np.isfinite(failed.params)) and np.all(np.isnan(failed.pushed))
    asked = outcome(LOGISTIC, solver, bl.Shine(on_failure="ignore"))
    assert np.all(np.isfinite(asked.pushed))


def test_refuses_other_solvers_and_penalties():
    with pytest.raises(ValueError, match=r"Shine doesn't work with BFGS(.|\n)*LBFGS\(\)"):
        bl.argmin(RIDGES[0].objective, RIDGES[0].data, solver=S.BFGS(), diff=bl.Shine())
    with pytest.raises(ValueError, match=r"LBFGS doesn't work with SparseCoding: it has a penalty"):
        bl.argmin(CODES.objective, CODES.data, solver=S.LBFGS(), diff=bl.Shine())
    with pytest.raises(ValueError, match="`num_refinements` must be a whole number"):
        bl.Shine(-1)
