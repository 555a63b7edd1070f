"""Rows in the unit ball, by multipliers: the conditions of optimality in NumPy, hostile factors, every precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.objectives import Quadratic
from bilevel.prox import L1, UnitBall
from tests.compiling import compiled


@compiled
def solve(linear, left, start, solver):
    return bl.argmin(Quadratic(linear, left=left, nonsmooth=UnitBall()), init=start, solver=solver, throw=False)


def problem(pull: float, condition: float = 10.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """C and A with the given condition number; the larger `pull`, the more rows are bounded."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(9, 9)))
    A = basis @ np.diag(np.geomspace(1, condition, 9)) @ basis.T
    return A @ (pull * rng.normal(size=(9, 5)) / np.sqrt(5)), (A + A.T) / 2


def check_optimal(C: np.ndarray, A: np.ndarray, Y: np.ndarray, atol: float) -> None:
    """C − A Y = M Y with M diagonal and ≥ 0, and 0 for rows within the ball."""
    norms, pull = np.linalg.norm(Y, axis=1), C - A @ Y
    assert np.all(norms <= 1 + 1e-12 if Y.dtype == np.float64 else 1 + 1e-6)
    multipliers = np.sum(pull * Y, axis=1)
    at_bound = norms > 1 - 10 * atol
    np.testing.assert_allclose(pull[~at_bound], 0, atol=atol * np.max(np.abs(C)))
    np.testing.assert_allclose(pull[at_bound], (multipliers[:, None] * Y)[at_bound], atol=atol * np.max(np.abs(C)))
    assert np.all(multipliers[at_bound] >= -atol * np.max(np.abs(C)))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("pull", [0.3, 1.0, 30.0], ids=["none", "some", "all"])
def test_the_conditions_hold(pull: float, dtype: str):
    C, A = (x.astype(dtype) for x in problem(pull))
    done = solve(jnp.asarray(C), jnp.asarray(A), jnp.zeros((9, 5), dtype), bl.solvers.LagrangeDual())
    assert done.result == bl.RESULTS.successful and done.params.dtype == dtype
    assert done.stats["num_steps"] <= 12
    Y = np.asarray(done.params)
    bounded = np.sum(np.linalg.norm(Y, axis=1) > 1 - 1e-6)
    assert {0.3: bounded == 0, 1.0: 0 < bounded < 9, 30.0: bounded == 9}[pull]
    check_optimal(C, A, Y, atol=1e-9 if dtype == "float64" else 1e-4)


def test_condition_numbers_do_not_matter():
    C, A = problem(1.0, condition=1e9)
    done = solve(jnp.asarray(C), jnp.asarray(A), jnp.zeros((9, 5)), bl.solvers.LagrangeDual())
    assert done.result == bl.RESULTS.successful and done.stats["num_steps"] <= 20
    check_optimal(C, A, np.asarray(done.params), atol=1e-7)


@pytest.mark.parametrize("kind", ["a row that nothing uses", "two equal rows", "nothing at all"])
def test_singular_factors(kind: str):
    C, A = problem(2.0)
    start = np.random.default_rng(1).normal(size=(9, 5)) / 10
    if kind == "a row that nothing uses":
        A[3], A[:, 3], C[3] = 0, 0, 0
    elif kind == "two equal rows":
        A[4], C[4] = A[3], C[3]
        A[:, 4] = A[:, 3]
    else:
        A, C = 0 * A, 0 * C
    done = solve(jnp.asarray(C), jnp.asarray(A), jnp.asarray(start), bl.solvers.LagrangeDual())
    Y = np.asarray(done.params)
    assert done.result == bl.RESULTS.successful
    check_optimal(C, A, Y, atol=1e-6)
    if kind != "two equal rows":
        np.testing.assert_array_equal(Y[3], start[3])


def test_it_is_what_gradient_steps_find_and_never_rises_above_the_start():
    C, A = problem(1.0)
    by_steps = solve(jnp.asarray(C), jnp.asarray(A), jnp.zeros((9, 5)), bl.solvers.ProximalGradient(tol=1e-11))
    done = solve(jnp.asarray(C), jnp.asarray(A), by_steps.params, bl.solvers.LagrangeDual())
    np.testing.assert_allclose(done.params, by_steps.params, atol=1e-9)
    value = jax.jit(lambda Y: Quadratic(jnp.asarray(C), left=jnp.asarray(A), nonsmooth=UnitBall())(Y))
    before = float(value(by_steps.params))
    assert value(done.params) <= before + 1e-14 * abs(before)


def test_what_is_no_number_is_told():
    C, A = problem(1.0)
    A[2, 2] = np.nan
    objective = lambda A: Quadratic(jnp.asarray(C), left=A, nonsmooth=UnitBall())
    run = jax.jit(lambda A: bl.solvers.LagrangeDual().run(objective(A), None, jnp.zeros((9, 5))))
    assert run(jnp.asarray(A)).result != bl.RESULTS.successful


def test_other_objectives_are_refused():
    C, A = (jnp.asarray(x) for x in problem(1.0))
    others = (
        Quadratic(C, left=A, nonsmooth=L1(0.1)),
        Quadratic(C, left=A, right=jnp.eye(5), nonsmooth=UnitBall()),
        Quadratic(C, left=A, nonsmooth=UnitBall(axis=0)),
    )
    for objective in others:
        with pytest.raises(ValueError, match="LagrangeDual doesn't work with Quadratic"):
            bl.argmin(objective, init=jnp.zeros((9, 5)), solver=bl.solvers.LagrangeDual())
