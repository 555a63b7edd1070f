"""Every solver on every problem that it serves: solution, optimality, derivatives in both modes, units, compilation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from tests.laws import Outcome, along_all, cotangent_of, error, outcome, traces
from tests.problems import Problem, raveled
from tests.solvers.members import PAIRS, Member, pair_name

every = pytest.mark.parametrize(("member", "problem"), PAIRS, ids=pair_name)


@functools.cache
def _known(name: str, index: int) -> list[np.ndarray]:
    problem = next(problem for _, problem in PAIRS if problem.name == name)
    return problem.known_derivative(problem.direction_of(index))


def at_known(member: Member, problem: Problem) -> Outcome:
    solved = outcome(problem, member.solver())
    assert solved.solution.result == bl.RESULTS.successful, bl.RESULTS[solved.solution.result]
    return solved


@every
def test_reaches_the_known_solution(member: Member, problem: Problem):
    solved = at_known(member, problem)
    assert error(solved.params, problem.solve(*map(np.asarray, problem.leaves))) <= 1e-9
    assert solved.solution.stats["optimality"] <= 1e-11 * (1 + 1e-12)


@every
def test_derivative_in_each_leaf_is_the_known_one(member: Member, problem: Problem):
    for index, name in enumerate(problem.names):
        pushed = outcome(problem, member.solver(), directions=problem.direction_of(index)).pushed
        assert error(pushed, *_known(problem.name, index)) <= 1e-6, name


@every
def test_reverse_mode_is_forward_mode(member: Member, problem: Problem):
    for index, name in enumerate(problem.names):
        directions = problem.direction_of(index)
        solved = outcome(problem, member.solver(), directions=directions)
        forward = np.vdot(solved.pushed, raveled(cotangent_of(problem)))
        reverse = sum(np.vdot(*pair) for pair in zip(jax.tree.leaves(solved.pulled), directions, strict=True))
        assert error(reverse, forward) <= 1e-8, name


@pytest.mark.parametrize("a", [1e-3, 1e3])
@pytest.mark.parametrize(("member", "problem"), [(m, p) for m, p in PAIRS if m.scale_free and p.powers], ids=pair_name)
def test_multiplying_the_objective_changes_nothing(member: Member, problem: Problem, a: float):
    assert problem.powers is not None
    before = at_known(member, problem)
    # dθ scales as θ does.
    scaled = lambda arrays: [a**power * np.asarray(x) for x, power in zip(arrays, problem.powers, strict=True)]
    after = outcome(problem, member.solver(), leaves=scaled(problem.leaves), directions=scaled(along_all(problem)))
    assert after.solution.result == bl.RESULTS.successful, bl.RESULTS[after.solution.result]
    assert error(after.params, before.params) <= 1e-6
    assert error(after.pushed, before.pushed) <= 1e-6


#: Others for each leaf, lest they cancel.
FACTORS = np.linspace(0.8, 0.95, 8)


@every
def test_new_values_do_not_recompile(member: Member, problem: Problem):
    at_known(member, problem)
    traced = traces["solve_and_differentiate"]
    leaves = [factor * np.asarray(leaf) for factor, leaf in zip(FACTORS, problem.leaves, strict=False)]
    solved = outcome(problem, member.solver(tol=jnp.asarray(1e-6)), leaves=leaves)
    assert traces["solve_and_differentiate"] == traced
    assert error(solved.params, problem.solve(*leaves)) <= 1e-4
    assert error(solved.params, problem.solve(*map(np.asarray, problem.leaves))) > 1e-3
