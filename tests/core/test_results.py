"""Outcomes as values, and their messages."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from bilevel.core import RESULTS, Solution

FAILURES = ["not_converged", "stalled", "nonfinite_solution", "invalid_input"]


def test_success_has_no_message():
    assert RESULTS[RESULTS.successful] == ""


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_says_what_to_try(name):
    message = RESULTS[getattr(RESULTS, name)]
    assert message.startswith("The ")
    assert "Try " in message


def test_failures_of_linear_solves_keep_their_words():
    assert RESULTS[RESULTS.promote(lx.RESULTS.singular)] == lx.RESULTS[lx.RESULTS.singular]
    assert RESULTS.promote(lx.RESULTS.successful) == RESULTS.successful


def test_a_result_is_chosen_inside_jit():
    @eqx.filter_jit
    def solve(error):
        result = RESULTS.where(error < 1, RESULTS.successful, RESULTS.not_converged)
        return Solution(error, result, {"num_steps": jnp.asarray(3)})

    good, bad = solve(jnp.asarray(0.5)), solve(jnp.asarray(2.0))
    assert bool(good.successful)
    assert not bool(bad.successful)
    assert RESULTS[bad.result] == RESULTS[RESULTS.not_converged]


def test_a_solution_is_a_pytree():
    solution = Solution({"w": jnp.ones(2)}, RESULTS.stalled, {"num_steps": jnp.asarray(3)})
    doubled = jax.tree.map(lambda x: 2 * x, eqx.filter(solution, eqx.is_inexact_array))
    np.testing.assert_array_equal(doubled.params["w"], 2)
    successes = eqx.filter_vmap(
        lambda e: Solution(e, RESULTS.where(e < 1, RESULTS.successful, RESULTS.stalled), {}).successful
    )(jnp.asarray([0.0, 2.0]))
    np.testing.assert_array_equal(successes, [True, False])
