"""Finite differences tell whether a derivative is that of the algorithm, of the solution, of both or of neither."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.differentiation.check import STEPS, LeafCheck, Plateau, _plateau
from tests.problems import CODES, RIDGES, raveled

S = bl.solvers


def outer(objective, params, data):
    return jnp.sum(jnp.sin(raveled_jax(params) + 0.3))


def raveled_jax(params):
    leaf = params.weight if isinstance(params, bl.objectives.LinearModel) else params
    return jnp.ravel(leaf)


FEW = S.GradientDescent(max_steps=4, stepsize=0.1)
CASES = {
    "implicit, converged": (RIDGES[1], None, bl.Implicit(), (True, True)),
    "implicit, stopped early": (RIDGES[1], FEW, bl.Implicit(), (False, False)),
    "unrolled, stopped early": (RIDGES[1], FEW, bl.Unrolled(), (True, False)),
    "one step": (RIDGES[1], S.GradientDescent(acceleration=False), bl.OneStep(), (False, False)),
    "implicit, codes": (CODES, None, bl.Implicit(), (True, True)),
}


@pytest.mark.parametrize(("problem", "solver", "diff", "expected"), CASES.values(), ids=CASES)
def test_two_answers(problem, solver, diff, expected):
    check = bl.check_hypergradient(outer, problem.objective, problem.data, solver=solver, diff=diff)
    assert (check.agrees_with_algorithm, check.agrees_with_solution) == expected, str(check)
    # One line for each leaf, which is named.
    assert len(check.leaves) == len(problem.leaves)
    assert all(leaf.name.startswith(("objective", "data")) for leaf in check.leaves)
    assert str(check).count("\n") == len(check.leaves)
    assert ("OFF" in str(check)) == (expected != (True, True))


class Wrong(bl.AbstractDifferentiation):
    """Right but for a factor in the data alone."""

    def apply(self, solver, objective, data, init):
        factor = lambda x: x + 0.01 * (x - jnp.asarray(np.asarray(RIDGES[1].data[0])))
        return bl.Implicit().apply(solver, objective, (factor(data[0]), data[1]), init)


def test_the_leaf_that_is_off_is_named():
    check = bl.check_hypergradient(outer, RIDGES[1].objective, RIDGES[1].data, solver=S.LBFGS(tol=1e-12), diff=Wrong())
    assert not check.agrees_with_algorithm or not check.agrees_with_solution
    named = {leaf.name: leaf.agrees_with_solution for leaf in check.leaves}
    assert named == {"objective.alpha": True, "data[0]": False, "data[1]": True}


def test_the_plateau_is_where_the_quotients_settle():
    # Curvature at large steps, noise at small ones.
    steps, rng = np.array(STEPS), np.random.default_rng(0)
    quotients = 2 + 5 * steps**2 + 1e-9 / steps * rng.normal(size=len(steps))
    plateau = _plateau(quotients)
    assert abs(plateau.value - 2) <= 1e-4 and plateau.error <= 1e-3 and 1e-7 < plateau.step < 1e-2
    assert _plateau(np.full(len(steps), np.nan)).error == np.inf


def test_differences_that_never_settle_agree_with_nothing():
    leaf = lambda value, error: LeafCheck(
        "x", 0.0, Plateau(value, error, 1e-3), Plateau(value, error, 1e-3), 1e-4, 1e-6
    )
    # A jump; and rounding about zero.
    assert not leaf(30.0, 70.0).agrees_with_solution and not leaf(30.0, 70.0).agrees_with_algorithm
    assert leaf(1e-9, 1e-9).agrees_with_solution


def test_a_leaf_on_its_bound_moves_to_one_side():
    lasso = bl.objectives.ElasticNet(0.1, 0.0)
    loss = lambda o, model, d: jnp.sum(model.weight**2)
    check = bl.check_hypergradient(loss, lasso, RIDGES[0].data, solver=S.ProximalGradient(tol=1e-12))
    assert check.agrees_with_solution and check.agrees_with_algorithm, str(check)


def test_losses_may_return_more_and_params_may_be_modules():
    loss = lambda o, params, d: (jnp.sum(params.weight**2), "more")
    assert bl.check_hypergradient(loss, RIDGES[0].objective, RIDGES[0].data).agrees_with_solution
    assert eqx.is_array(RIDGES[0].objective.alpha) and raveled(RIDGES[0].objective).shape == (1,)
