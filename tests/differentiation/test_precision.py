"""32 bits in, 32 bits out, in 64-bit mode too; and derivatives that are right to 32 bits."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.solvers.loop import default_tol
from tests.laws import error, outcome
from tests.problems import CLAMP, CODES, DESIGN, RESPONSE, RIDGES, ROBUST_CODES, Problem, least_squares_loss, raveled
from tests.solvers.members import COVER, Member, pair_name

single = jnp.float32
# Above the floor that 32 bits set, of about 1e-7 times the root of the number of unknowns.
TOL = jnp.asarray(2e-6, single)


@pytest.mark.parametrize(("member", "problem"), COVER, ids=pair_name)
def test_keeps_32_bits_and_is_right_to_them(member: Member, problem: Problem):
    solved = outcome(problem, member.solver(tol=TOL), dtype=single)
    assert solved.solution.result == bl.RESULTS.successful, bl.RESULTS[solved.solution.result]
    assert solved.params.dtype == solved.pushed.dtype == single
    assert {leaf.dtype for leaf in jax.tree.leaves(solved.pulled)} == {jnp.dtype(single)}
    double = outcome(problem, member.solver())
    assert error(solved.params, double.params) <= 1e-3
    assert error(solved.pushed, double.pushed) <= 1e-3
    # What vanishes at the solution (the derivative in a factor of the objective) is measured beside the other leaves.
    whole = np.linalg.norm(raveled(double.pulled))
    for leaf, expected in zip(*map(jax.tree.leaves, (solved.pulled, double.pulled)), strict=True):
        assert np.linalg.norm(np.asarray(leaf) - np.asarray(expected)) <= 1e-3 * max(
            np.linalg.norm(expected), 0.05 * whole
        )


X, y = (leaf.astype(single) for leaf in RIDGES[0].data)
D, signals = CODES.objective.dictionary.astype(single), CODES.data.astype(single)
regression = (jnp.asarray(DESIGN, single), jnp.asarray(RESPONSE, single))


@pytest.mark.parametrize(
    ("objective", "data"),
    [
        (bl.objectives.Ridge(0.3), (X, y)),
        (bl.objectives.Ridge(np.linspace(0.2, 0.8, 6)), (X, y)),
        (bl.objectives.SparseCoding(D, l1=0.3, l2=0.1), signals),
        (bl.objectives.Clamp(CLAMP.objective.z0.astype(single), mu=0.7, c=0.8), None),
        (
            bl.objectives.FunctionObjective(
                least_squares_loss, single(0.1), start=jnp.zeros((3, 4), single), nonsmooth=bl.prox.L1(2.0)
            ),
            regression,
        ),
    ],
    ids=["Ridge", "Ridge, alpha per feature", "SparseCoding", "Clamp", "L1"],
)
def test_a_python_number_does_not_widen(objective: bl.objectives.AbstractObjective, data: tuple):
    params = eqx.filter_eval_shape(bl.argmin, objective, data).params
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(single)}


def test_a_python_number_among_the_hyperparameters_does_not_widen():
    # A user's own function mixes dtypes as it likes: 64-bit rho with 32-bit params.
    objective = bl.objectives.FunctionObjective(least_squares_loss, 0.1, start=jnp.zeros((3, 4), single))
    with jax.numpy_dtype_promotion("standard"):
        assert eqx.filter_eval_shape(bl.argmin, objective, regression).params.dtype == single


@pytest.mark.parametrize("problem", [CODES, ROBUST_CODES], ids=pair_name)
@pytest.mark.parametrize("a", [1e-3, 1e3])
def test_multiplying_the_objective_changes_nothing_in_32_bits(problem: Problem, a: float):
    solver = bl.solvers.ProximalGradient(tol=TOL)
    before = outcome(problem, solver, dtype=single)
    scaled = [a**power * np.asarray(leaf) for leaf, power in zip(problem.leaves, problem.powers, strict=True)]
    after = outcome(problem, solver, leaves=scaled, directions=[0 * leaf for leaf in scaled], dtype=single)
    assert after.solution.result == bl.RESULTS.successful, bl.RESULTS[after.solution.result]
    assert error(after.params, before.params) <= 1e-4


def test_the_default_tolerance_follows_the_precision():
    assert default_tol(jnp.zeros(1)) == 1e-8
    assert default_tol(jnp.zeros(1, single)) == 1e-5
