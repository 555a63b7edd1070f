"""Newton's method converges quadratically, and from afar by shorter steps; the laws of all solvers are elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from tests.compiling import compiled
from tests.problems import LOGISTIC, RIDGES

NEWTON = bl.solvers.Newton()


@compiled
def solve(objective: bl.objectives.AbstractObjective, data: jax.Array | None) -> bl.Solution:
    return bl.argmin(objective, data, solver=NEWTON, throw=False)


def test_a_quadratic_takes_one_step():
    assert solve(RIDGES[0].objective, RIDGES[0].data).stats["num_steps"] == 1


def test_a_handful_of_steps():
    solution = solve(LOGISTIC.objective, LOGISTIC.data)
    assert solution.result == bl.RESULTS.successful
    assert solution.stats["num_steps"] <= 5


def test_where_whole_steps_diverge_shorter_ones_converge():
    # A whole step for log cosh y is y ← y − sinh y cosh y, which from 1.09 on is further away than before.
    function = lambda _, params, data: jnp.sum(jnp.log(jnp.cosh(params - 1)))
    solution = solve(bl.objectives.FunctionObjective(function, start=jnp.asarray([4.0, -2.0, 1.5])), None)
    assert solution.result == bl.RESULTS.successful
    np.testing.assert_allclose(solution.params, 1, atol=1e-7)


def test_a_maximum_is_no_solution():
    function = lambda _, params, data: -jnp.sum(jnp.cos(params))
    solution = solve(bl.objectives.FunctionObjective(function, start=jnp.asarray([2.5])), None)
    assert solution.result != bl.RESULTS.successful


@pytest.mark.parametrize("max_steps", [0, 1.0])
def test_bad_options_are_named(max_steps):
    with pytest.raises(ValueError, match="`max_steps` must be a whole number of at least 1"):
        bl.solvers.Newton(max_steps=max_steps)
