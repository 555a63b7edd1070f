"""A solve that fails says so: a result within `jit`, an exception at the door, NaN for derivatives. Never a number."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from tests.compiling import compiled
from tests.laws import outcome
from tests.problems import CODES, LOGISTIC, RIDGES, Problem
from tests.solvers.members import EACH, EXACT, Member, pair_name

S = bl.solvers
#: Two steps, to a tolerance that nothing meets.
HOPELESS = {"max_steps": 2, "tol": 1e-300}
CAN_FAIL = [(member, RIDGES[1] if member.serves(RIDGES[1]) else problem) for member, problem in EACH]
CAN_FAIL = [(member, problem) for member, problem in CAN_FAIL if member is not EXACT]


@pytest.mark.parametrize(("member", "problem"), CAN_FAIL, ids=pair_name)
def test_without_throw_the_result_says_so_and_derivatives_are_nan(member: Member, problem: Problem):
    failed = outcome(problem, member.solver(**HOPELESS))
    assert failed.solution.result == bl.RESULTS.not_converged
    assert np.all(np.isfinite(failed.params))
    assert failed.solution.stats["optimality"] > failed.solution.stats["tol"]
    assert np.all(np.isnan(failed.pushed))
    # In reverse mode too. On a start no solution ever depends.
    for name, leaf in zip(problem.names, jax.tree.leaves(failed.pulled), strict=True):
        assert np.all(leaf == 0 if ".start" in name else np.isnan(leaf)), name


@pytest.mark.parametrize("problem", [RIDGES[0], CODES], ids=pair_name)
def test_the_formula_at_a_failed_solution_where_the_caller_asks_for_it(problem: Problem):
    solver = S.ProximalGradient(max_steps=150, tol=1e-300)
    failed = outcome(problem, solver, bl.Implicit(on_failure="ignore"))
    assert failed.solution.result == bl.RESULTS.not_converged
    known = outcome(problem)
    # As near as the solution is, which is not near enough for 1e-300.
    assert np.linalg.norm(failed.pushed - known.pushed) <= 1e-2 * np.linalg.norm(known.pushed)


@pytest.mark.parametrize(
    ("problem", "solver"),
    [(RIDGES[0], S.LBFGS(**HOPELESS)), (CODES, S.ProximalGradient(**HOPELESS)), (CODES, S.SparseCoder(**HOPELESS))],
    ids=["LBFGS", "ProximalGradient", "SparseCoder"],
)
def test_raises_outside_jit(problem: Problem, solver: S.AbstractSolver):
    with pytest.raises(bl.InnerSolveError, match=r"used up `max_steps`(.|\n)*After \d+ steps .* error is .*tolerance"):
        bl.argmin(problem.objective, problem.data, solver=solver)


def test_raises_within_jit():
    solve = compiled(lambda data: bl.argmin(LOGISTIC.objective, data, solver=S.LBFGS(**HOPELESS)).params)
    with pytest.raises(eqx.EquinoxRuntimeError, match="used up `max_steps`"):
        jax.block_until_ready(solve(LOGISTIC.data))


UNBOUNDED = {
    "linear": lambda _, p, data: jnp.sum(p),
    "concave": lambda _, p, data: -jnp.sum(p**4) - jnp.sum(p),
    "logarithm": lambda _, p, data: jnp.sum(jnp.log(p)),
    "exponential": lambda _, p, data: -jnp.sum(jnp.exp(-p)),
    "NaN": lambda _, p, data: jnp.sum(p**2) * jnp.nan,
}


@pytest.mark.parametrize(
    ("name", "solver"),
    [
        *((name, S.GradientDescent(stepsize=1.0)) for name in UNBOUNDED),
        ("linear", S.LBFGS()),
        ("linear", S.GradientDescent()),
    ],
    ids=[*UNBOUNDED, "linear by LBFGS", "linear by a line search"],
)
def test_what_has_no_minimum_is_no_success(name: str, solver: S.AbstractSolver):
    objective = bl.objectives.FunctionObjective(UNBOUNDED[name], start=-jnp.ones(3))
    solve = compiled(lambda objective: bl.argmin(objective, solver=solver, throw=False).result)
    assert solve(objective) in (bl.RESULTS.nonfinite_solution, bl.RESULTS.not_converged, bl.RESULTS.stalled)


def test_a_step_that_is_too_large_is_named():
    solver = S.GradientDescent(stepsize=100.0, acceleration=False)
    with pytest.raises(bl.InnerSolveError, match=r"NaN or infinity(.|\n)*step size"):
        bl.argmin(RIDGES[0].objective, RIDGES[0].data, solver=solver)
