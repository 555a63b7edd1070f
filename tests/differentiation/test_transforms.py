"""`vmap`, `jit`, `grad` and their nestings change nothing."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from tests.compiling import compiled
from tests.laws import along_all, arguments_of, batched, error, outcome
from tests.problems import RIDGES, Problem, raveled
from tests.solvers.members import COVER, Member, pair_name

BATCH = 3


@pytest.mark.parametrize(("member", "problem"), COVER, ids=pair_name)
def test_vmap_over_hyperparameters_and_data_is_a_loop(member: Member, problem: Problem):
    stacked = [np.stack([(1 + 0.05 * k) * np.asarray(leaf) for k in range(BATCH)]) for leaf in problem.leaves]
    arguments = [arguments_of(problem, [leaf[k] for leaf in stacked]) for k in range(BATCH)]
    stack = lambda *trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    moving, directions, cotangent = (stack(*(a[i] for a in arguments)) for i in (0, 2, 3))
    # Each lane stops within the tolerance of the solution, and not at the same point of it as the loop.
    solver = member.solver(tol=jnp.asarray(1e-12))
    params, pushed, pulled = batched(solver, bl.Implicit(), moving, arguments[0][1], directions, cotangent)
    for k in range(BATCH):
        alone = outcome(problem, solver, leaves=[leaf[k] for leaf in stacked])
        row = lambda tree, k=k: raveled(jax.tree.map(lambda x: x[k], tree))
        assert error(row(params), alone.params) <= 1e-10
        assert error(row(pushed), alone.pushed) <= 1e-10
        assert error(row(pulled), raveled(alone.pulled)) <= 1e-10


X, y = RIDGES[0].data
ALPHAS = jnp.asarray([0.1, 0.5, 2.0])


def loss(alpha: jax.Array, y: jax.Array = y) -> jax.Array:
    return jnp.sum(bl.argmin(bl.objectives.Ridge(alpha), (X, y)).params(X) ** 2)


def known_slopes() -> np.ndarray:
    """d loss / d alpha at each of `ALPHAS`."""
    problem, slopes = RIDGES[0], []
    for alpha in np.asarray(ALPHAS):
        values = [alpha, *map(np.asarray, problem.data)]
        motion = problem.derivative(values, [np.asarray(1.0), 0 * values[1], 0 * values[2]])
        slopes.append(2 * (values[1] @ problem.solve(*values)) @ (values[1] @ motion))
    return np.array(slopes)


@pytest.mark.parametrize(
    "transformed",
    [
        jax.vmap(jax.grad(loss)),
        jax.vmap(jax.jit(jax.grad(loss))),
        jax.vmap(jax.grad(jax.jit(loss))),
        jax.vmap(jax.jacfwd(jax.jit(loss))),
        lambda alphas: jax.grad(lambda alphas: jnp.sum(jax.vmap(loss)(alphas)))(alphas),
        lambda alphas: jax.lax.map(jax.grad(loss), alphas),
        lambda alphas: jax.lax.scan(lambda carry, alpha: (carry, jax.grad(loss)(alpha)), None, alphas)[1],
        jax.vmap(jax.grad(jax.checkpoint(loss))),
    ],
    ids=["vmap grad", "vmap jit grad", "vmap grad jit", "vmap fwd jit", "grad vmap", "map", "scan", "checkpoint"],
)
def test_nestings(transformed):
    np.testing.assert_allclose(compiled(transformed)(ALPHAS), known_slopes(), rtol=1e-12)


def test_vmap_over_one_argument_alone():
    targets = jnp.stack([y, 2 * y, -y])
    values = compiled(jax.vmap(loss, in_axes=(None, 0)))(ALPHAS[0], targets)
    np.testing.assert_allclose(values, np.array([1.0, 4.0, 1.0]) * values[0], rtol=1e-12)
    slopes = compiled(jax.vmap(jax.grad(loss), in_axes=(None, 0)))(ALPHAS[0], targets)
    np.testing.assert_allclose(slopes, np.array([1.0, 4.0, 1.0]) * known_slopes()[0], rtol=1e-12)


def test_outside_jit():
    slope = jax.grad(loss)(ALPHAS[1])
    np.testing.assert_allclose(slope, known_slopes()[1], rtol=1e-12)


def test_argmin_within_argmin():
    # min over b of ½ (b − Σ w(α))² + ½ b², whose solution is Σ w(α) / 2, with w(α) an argmin itself.
    def function(alpha: jax.Array, b: jax.Array, data: tuple) -> jax.Array:
        weight = bl.argmin(bl.objectives.Ridge(alpha), data, throw=False).params.weight
        return 0.5 * (b - jnp.sum(weight)) ** 2 + 0.5 * b**2

    def nested(alpha: jax.Array) -> jax.Array:
        objective = bl.objectives.FunctionObjective(function, alpha, start=jnp.zeros(()))
        solver = bl.solvers.GradientDescent(stepsize=0.5)
        return bl.argmin(objective, (X, y), solver=solver, throw=False).params

    values = [0.5, *map(np.asarray, RIDGES[0].data)]
    motion = RIDGES[0].derivative(values, [np.asarray(1.0), 0 * values[1], 0 * values[2]])
    value, slope = compiled(jax.value_and_grad(nested))(jnp.asarray(0.5))
    np.testing.assert_allclose(value, 0.5 * np.sum(RIDGES[0].solve(*values)), rtol=1e-8)
    np.testing.assert_allclose(slope, 0.5 * np.sum(motion), rtol=1e-8)


def test_every_leaf_of_objective_and_data_has_a_gradient():
    problem = RIDGES[1]
    pulled = outcome(problem).pulled
    assert len(jax.tree.leaves(pulled)) == len(problem.leaves) == len(along_all(problem))
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(eqx.filter(pulled, eqx.is_array)))
