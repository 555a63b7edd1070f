"""What every objective owes to the contract: optimality vanishes at solutions and only there, in its own units."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from tests.compiling import compiled
from tests.laws import error
from tests.problems import CLAMP, LOGISTIC, PENALIZED, PROBLEMS, Problem, by_name, raveled
from tests.solvers.members import MEMBERS

every = pytest.mark.parametrize("problem", [p for p in PROBLEMS if p.name != "Equinox modules"], ids=by_name)


@compiled
def optimality_and_error(objective, params, data):
    units = objective.units(params, data)
    return objective.optimality(params, data, units.lipschitz), objective.optimality_error(params, data, units)


def known_params(problem: Problem):
    start = problem.objective.init(problem.data)
    leaf, structure = jax.tree.flatten(start)
    solution = problem.solve(*map(np.asarray, problem.leaves))
    return jax.tree.unflatten(structure, [jnp.asarray(solution.reshape(leaf[0].shape))])


@every
def test_optimality_vanishes_at_the_known_solution_and_only_there(problem: Problem):
    solution = known_params(problem)
    optimality, relative = optimality_and_error(problem.objective, solution, problem.data)
    assert np.max(np.abs(raveled(optimality))) <= 1e-12
    assert relative <= 1e-14
    rng = np.random.default_rng(0)
    for size in (1e-3, 1e-6):
        moved = jax.tree.map(lambda p, s=size: p + s * jnp.asarray(rng.normal(size=p.shape)), solution)
        _, relative = optimality_and_error(problem.objective, moved, problem.data)
        # Of the order of the move: neither blind nor a judge of rounding.
        assert 1e-3 * size <= relative <= 10 * size


@every
def test_start_is_like_the_solution(problem: Problem):
    shape_of = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert shape_of(problem.objective.init(problem.data)) == shape_of(known_params(problem))


@pytest.mark.parametrize("problem", [LOGISTIC, PENALIZED[0]], ids=by_name)
def test_curvature_is_found_whatever_its_size(problem: Problem):
    @compiled
    def curvature(scale, params, data):
        function = lambda h, params, data: scale * problem.objective.smooth(params, data)
        return bl.objectives.FunctionObjective(function).local_lipschitz(params, data)

    params = jax.tree.map(lambda p: p + 0.1, known_params(problem))
    hessian = jax.hessian(lambda flat: problem.objective.smooth(flat.reshape(params.shape), problem.data))
    known = np.linalg.eigvalsh(compiled(hessian)(params.ravel()))[-1]
    for scale in (1e-30, 1.0, 1e30):
        found = float(curvature(jnp.asarray(scale), params, problem.data))
        assert 0.8 * known <= found / scale <= known * (1 + 1e-6)


def test_a_linear_function_has_no_curvature():
    objective = bl.objectives.FunctionObjective(lambda h, p, d: jnp.sum(p), start=jnp.zeros(3))
    units = objective.units(jnp.ones(3), None)
    assert (units.lipschitz, units.curvature) == (1, 0)
    # To run off to infinity is not to converge.
    np.testing.assert_allclose(objective.optimality_error(jnp.full(3, -1e12), None, units), 1, rtol=1e-12)


def test_the_minimum_of_a_linear_function_over_a_box_is_a_corner():
    # No curvature, so any step will do; and the derivative is that of the corner.
    @compiled
    def corner(bounds):
        costs = jnp.asarray([1.0, -2.0, 3.0])
        nonsmooth = bl.prox.Box(*bounds)
        linear = lambda h, p, d: jnp.sum(costs * p)
        return bl.argmin(bl.objectives.FunctionObjective(linear, start=jnp.zeros(3), nonsmooth=nonsmooth)).params

    bounds = (jnp.asarray([-1.0, -1.0, -2.0]), jnp.asarray([1.0, 4.0, 1.0]))
    np.testing.assert_allclose(corner(bounds), [-1.0, 4.0, -2.0])
    pushed = compiled(lambda b, t: jax.jvp(corner.__wrapped__, (b,), (t,))[1])(bounds, (jnp.ones(3), 2 * jnp.ones(3)))
    np.testing.assert_allclose(pushed, [1.0, 2.0, 1.0])


@pytest.mark.parametrize("problem", [CLAMP, PENALIZED[0], PENALIZED[2]], ids=by_name)
def test_a_start_at_the_solution_stays(problem: Problem):
    solver = next(member for member in MEMBERS if member.serves(problem)).solver()
    again = compiled(lambda init: bl.argmin(problem.objective, problem.data, solver=solver, init=init))
    solution = known_params(problem)
    solved = again(solution)
    # One to find out, and one more where a line search hands over to a fixed step.
    assert solved.stats["num_steps"] <= 2
    assert error(raveled(solved.params), raveled(solution)) <= 1e-12
