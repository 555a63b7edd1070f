"""A solver refuses what it does not serve, by a message that names both and what is missing."""

import re

import jax.numpy as jnp
import pytest

import bilevel as bl
from tests.problems import LOGISTIC, PROBLEMS, RIDGES, Problem
from tests.solvers.members import MEMBERS, Member, pair_name

S = bl.solvers
REFUSED = [(member, problem) for member in MEMBERS for problem in PROBLEMS if not member.serves(problem)]
# On a penalty this one hovers about the kinks; it refuses constraints only.
HOVERS = [pair for pair in REFUSED if pair[0].make is S.OptaxSolver and "constraint" not in pair[1].kinds]
MISSING = {
    "smooth": "it has a penalty, so it is not smooth|subgradients do not see a constraint",
    "exact": "it has no formula `minimizer`",
    "constraint": "its penalty is not a constraint",
    "simplex": "its penalty is not a Simplex",
    "codes": "it is not SparseCoding|its loss is not the squared error",
    "least squares": "it is not least squares|its loss is not the squared error",
}


@pytest.mark.parametrize(("member", "problem"), [pair for pair in REFUSED if pair not in HOVERS], ids=pair_name)
def test_names_both_and_what_is_missing(member: Member, problem: Problem):
    both = f"{member.name} doesn't work with {type(problem.objective).__name__}"
    with pytest.raises(ValueError, match=f"^{both}: ({MISSING[member.kind]}).* Try .*\\(\\)"):
        bl.argmin(problem.objective, problem.data, solver=member.solver())


def test_coordinate_descent_refuses_penalties_that_are_not_separable():
    class Grouped(bl.objectives.AbstractLeastSquares):
        smooth, init, least_squares = (lambda *_: jnp.zeros(2),) * 3

        def penalty(self):
            return bl.prox.GroupL1(1.0)

    message = re.escape("BlockCoordinateDescent doesn't work with Grouped: GroupL1 is not separable")
    with pytest.raises(ValueError, match=message):
        bl.argmin(Grouped(), solver=S.BlockCoordinateDescent())


@pytest.mark.parametrize("problem", [RIDGES[0], LOGISTIC], ids=pair_name)
def test_every_problem_has_a_default_solver_that_serves_it(problem: Problem):
    bl.differentiation.default_solver(problem.objective).check(problem.objective)
