"""`ScipyMinimize` runs on the host: outside `jit` with derivatives, within not at all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from tests.laws import along_all, arguments_of, error, solve_and_differentiate
from tests.problems import CODES, LOGISTIC, MODULES, RIDGES, Problem, raveled
from tests.solvers.members import pair_name

SOLVER = bl.solvers.ScipyMinimize()
RIDGE = RIDGES[0]


@pytest.mark.parametrize("problem", [LOGISTIC, MODULES], ids=pair_name)
def test_reaches_the_known_solution(problem: Problem):
    solution = bl.argmin(problem.objective, problem.data, solver=SOLVER)
    assert error(raveled(solution.params), problem.solve(*map(np.asarray, problem.leaves))) <= 1e-7
    assert solution.stats["optimality"] <= 1e-8


def test_derivatives_outside_jit():
    solution, pushed, pulled = solve_and_differentiate(SOLVER, bl.Implicit(), *arguments_of(RIDGE))
    assert error(raveled(solution.params), RIDGE.solve(*map(np.asarray, RIDGE.leaves))) <= 1e-7
    assert error(raveled(pushed), *RIDGE.known_derivative(along_all(RIDGE))) <= 1e-6
    forward = np.vdot(raveled(pushed), raveled(arguments_of(RIDGE)[3]))
    reverse = sum(np.vdot(*pair) for pair in zip(jax.tree.leaves(pulled), along_all(RIDGE), strict=True))
    assert error(reverse, forward) <= 1e-8


@pytest.mark.parametrize("method", ["BFGS", "CG"])
def test_other_methods(method: str):
    solution = bl.argmin(RIDGE.objective, RIDGE.data, solver=bl.solvers.ScipyMinimize(method, tol=1e-6))
    assert error(raveled(solution.params), RIDGE.solve(*map(np.asarray, RIDGE.leaves))) <= 1e-5


def solve(alpha: jax.Array) -> jax.Array:
    return bl.argmin(bl.objectives.Ridge(alpha), RIDGE.data, solver=SOLVER).params.weight


@pytest.mark.parametrize("transform", [jax.jit, jax.vmap], ids=["jit", "vmap"])
def test_within_jit_and_vmap_it_says_what_to_do(transform):
    with pytest.raises(ValueError, match=r"outside `jit` and `vmap` only(.|\n)*use LBFGS\(\)"):
        transform(solve)(jnp.ones(()) if transform is jax.jit else jnp.ones(2))


def test_cannot_be_unrolled():
    with pytest.raises(ValueError, match="cannot be unrolled"):
        bl.argmin(RIDGE.objective, RIDGE.data, solver=SOLVER, diff=bl.Unrolled())


def test_refuses_penalties():
    with pytest.raises(ValueError, match=r"ScipyMinimize doesn't work with SparseCoding: it has a penalty"):
        bl.argmin(CODES.objective, CODES.data, solver=SOLVER)


def test_says_when_it_fails():
    solver = bl.solvers.ScipyMinimize(max_steps=1)
    assert bl.argmin(RIDGE.objective, RIDGE.data, solver=solver, throw=False).result == bl.RESULTS.not_converged
    with pytest.raises(bl.InnerSolveError, match="used up `max_steps`"):
        bl.argmin(RIDGE.objective, RIDGE.data, solver=solver)
