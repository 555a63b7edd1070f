"""Outside `jit` too, new values do not compile anew. (Within, `test_laws.py` counts for every solver and problem.)"""

import jax
import jax.numpy as jnp
import pytest

import bilevel as bl
from tests.compiling import compilations
from tests.problems import CODES, RIDGES, least_squares_loss

S, O = bl.solvers, bl.objectives
X, y = RIDGES[0].data
REGRESSION = (jnp.ones((5, 3)), jnp.ones((5, 4)))


def function_objective(rho: float) -> O.FunctionObjective:
    return O.FunctionObjective(least_squares_loss, rho, start=jnp.zeros((3, 4)), nonsmooth=bl.prox.L1(rho))


# Python numbers, as a user writes them: for each call others.
CALLS = {
    "Ridge": lambda v: bl.argmin(O.Ridge(v), (X, y)),
    "SparseCoding": lambda v: bl.argmin(O.SparseCoding(CODES.objective.dictionary, v, 0.1 * v), CODES.data),
    "tol": lambda v: bl.argmin(O.Ridge(0.3), (X, y), solver=S.BFGS(tol=1e-6 * v)),
    "stepsize and tol": lambda v: bl.argmin(O.Ridge(0.3), (X, y), solver=S.GradientDescent(stepsize=v, tol=1e-6 * v)),
    "function, penalty and tol": lambda v: bl.argmin(
        function_objective(v), REGRESSION, solver=S.ProximalGradient(stepsize=0.1 * v, tol=1e-6 * v)
    ),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_new_numbers_do_not_recompile(call):
    assert call(0.3).result == bl.RESULTS.successful  # compiles here, unless a test before it did
    before = compilations()
    for value in (0.31, 0.32):
        assert call(value).result == bl.RESULTS.successful
    assert compilations() == before


def test_a_new_function_compiles_and_the_same_one_does_not():
    make = lambda: lambda hyperparams, params, data: jnp.sum((params - hyperparams) ** 2)
    solver = S.GradientDescent(stepsize=0.5)
    solve = lambda function: bl.argmin(O.FunctionObjective(function, 1.0, start=jnp.zeros(2)), solver=solver)
    function = make()
    solve(function)
    before = compilations()
    solve(function)
    assert compilations() == before
    solve(make())
    assert compilations() > before


def test_gradients_outside_jit_do_not_recompile():
    slope = jax.grad(lambda alpha: jnp.sum(bl.argmin(O.Ridge(alpha), (X, y)).params.weight))
    slope(0.3)
    before = compilations()
    assert float(slope(0.4)) != float(slope(0.5))
    assert compilations() == before
