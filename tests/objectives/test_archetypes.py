"""Archetypes: gaps, columns and starts in dense NumPy; derivatives of the weights by the conditions on their faces."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.objectives.archetypes import furthest_sum
from tests import witnesses
from tests.compiling import compiled
from tests.laws import error

SOLVER = bl.solvers.ProximalGradient(tol=jnp.asarray(1e-12), max_steps=20_000)
_rng = np.random.default_rng(0)
Z, X = _rng.normal(size=(3, 4)), _rng.normal(size=(8, 4))


def solve(archetypes, data):
    return bl.argmin(bl.objectives.ArchetypeWeights(archetypes), data, solver=SOLVER, throw=False).params


@compiled
def solve_and_differentiate(archetypes, data, direction, cotangent):
    """A, its motion, and the derivatives of ⟨cotangent, A⟩."""
    weights, push = jax.linearize(solve, archetypes, data)
    return weights, push(*direction), jax.linear_transpose(push, archetypes, data)(cotangent)


def known_weights(archetypes, data):
    return witnesses.proximal_gradient(
        lambda A: (A @ archetypes - data) @ archetypes.T,
        lambda A, _: witnesses.onto_simplices(A, 1.0),
        np.linalg.norm(archetypes, 2) ** 2,
        np.full((len(data), len(archetypes)), 1 / len(archetypes)),
    )


def known_motion(A, archetypes, data, d_archetypes, d_data):
    """For each sample, on its support S:  Z_S Z_Sᵀ da − dλ 1 = dZ_S r + Z_S (dx − dZᵀ a),  1ᵀ da = 0,  r = x − Zᵀ a."""
    motion = np.zeros_like(A)
    for a, x, dx, row in zip(A, data, d_data, motion, strict=True):
        S = np.flatnonzero(a)
        system = np.block(
            [[archetypes[S] @ archetypes[S].T, np.ones((len(S), 1))], [np.ones((1, len(S))), np.zeros((1, 1))]]
        )
        right = d_archetypes[S] @ (x - a @ archetypes) + archetypes[S] @ (dx - a @ d_archetypes)
        row[S] = np.linalg.solve(system, [*right, 0])[:-1]
    return motion


def test_weights_and_their_derivative():
    d_Z, d_X, cotangent = (np.random.default_rng(1).normal(size=s) for s in (Z.shape, X.shape, (8, 3)))
    out = solve_and_differentiate(
        *map(jnp.asarray, (Z, X)), (jnp.asarray(d_Z), jnp.asarray(d_X)), jnp.asarray(cotangent)
    )
    A, d_A, pulled = jax.tree.map(np.asarray, out)
    assert error(A, known_weights(Z, X)) <= 1e-9
    # Faces of all kinds: vertices, edges, the inside.
    assert len(set(np.count_nonzero(A, axis=1))) >= 2
    expected = known_motion(A, Z, X, d_Z, d_X)
    assert error(d_A, expected) <= 1e-8
    assert error(np.vdot(pulled[0], d_Z) + np.vdot(pulled[1], d_X), np.vdot(cotangent, expected)) <= 1e-8
    difference = witnesses.central_difference(known_weights, (Z, X), (d_Z, d_X), 1e-6)
    assert error(d_A, difference) <= 1e-6


def test_at_a_tie_a_weight_that_rests_stays():
    # The first sample is a vertex, with slope zero towards the others: it lies on the kink of every face.
    data = np.vstack([Z[0], X[1:]])
    d_X = np.zeros_like(data)
    d_X[0] = np.random.default_rng(2).normal(size=4)
    out = solve_and_differentiate(*map(jnp.asarray, (Z, data)), (jnp.zeros((3, 4)), jnp.asarray(d_X)), jnp.ones((8, 3)))
    A, d_A, pulled = jax.tree.map(np.asarray, out)
    np.testing.assert_allclose(A[0], [1, 0, 0], atol=1e-10)
    assert all(np.all(np.isfinite(x)) for x in (d_A, *pulled))
    # On the face on which it rests, or on that of the plane: within the simplex's directions either way.
    np.testing.assert_allclose(d_A.sum(axis=1), 0, atol=1e-10)


POINTS = _rng.normal(size=(40, 4))


def test_gaps_and_loss_are_those_of_dense_numpy():
    A, B = _rng.dirichlet(np.ones(3), size=40), _rng.dirichlet(np.ones(40), size=3)
    residual = A @ B @ POINTS - POINTS
    slopes = residual @ (B @ POINTS).T, A.T @ residual @ POINTS.T
    objective = bl.objectives.Archetypes(3)
    measure = compiled(lambda p, X: (objective.gaps(p, X), objective(p, X), objective.gradient(p, X)))
    gaps, loss, gradient = measure((jnp.asarray(A), jnp.asarray(B)), jnp.asarray(POINTS))
    for gap, p, g, ours in zip(gaps, (A, B), slopes, gradient, strict=True):
        np.testing.assert_allclose(gap, np.sum(p * g) - np.sum(np.min(g, axis=1)), rtol=1e-10)
        np.testing.assert_allclose(ours, g, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(loss, 0.5 * np.sum(residual**2), rtol=1e-12)


@pytest.mark.parametrize("index", [0, 1])
def test_a_block_s_problem_is_the_whole_up_to_a_constant(index):
    objective = bl.objectives.Archetypes(3)
    rng = np.random.default_rng(4)
    blocks = lambda: [jnp.asarray(rng.dirichlet(np.ones(n), size=m)) for m, n in ((40, 3), (3, 40))]
    here, there = blocks(), blocks()
    moved = tuple(there[i] if i == index else here[i] for i in (0, 1))

    @compiled
    def differences(here, moved, data):
        problem, own = objective.subproblem(index, here, data)
        return objective(moved, data) - objective(here, data), problem(moved[index], own) - problem(here[index], own)

    whole, part = differences(tuple(here), moved, jnp.asarray(POINTS))
    np.testing.assert_allclose(part, whole, rtol=1e-9)


def test_points_of_a_hull_by_columns_are_those_by_all_samples():
    rng = np.random.default_rng(5)
    root = rng.normal(size=(3, 3))
    gram, linear = root @ root.T + np.eye(3), 3 * rng.normal(size=(3, 4))
    B = witnesses.proximal_gradient(
        lambda B: (gram @ B @ POINTS - linear) @ POINTS.T,
        lambda B, _: witnesses.onto_simplices(B, 1.0),
        np.linalg.norm(gram, 2) * np.linalg.norm(POINTS, 2) ** 2,
        np.full((3, 40), 1 / 40),
    )
    objective = bl.objectives.HullPoints(jnp.asarray(gram), jnp.asarray(linear))
    solver = bl.solvers.ColumnGeneration(tol=jnp.asarray(1e-8), max_steps=100)
    # From a mixture of all, which are more than the columns kept, and from one sample.
    run = compiled(lambda X, start: solver.run(objective, X, start))
    for start in (jnp.full((3, 40), 1 / 40), jnp.eye(3, 40)):
        found = run(jnp.asarray(POINTS), start)
        assert found.result == bl.RESULTS.successful
        assert error(np.asarray(found.params) @ POINTS, B @ POINTS) <= 1e-5
        np.testing.assert_allclose(found.params.sum(axis=1), 1, atol=1e-12)


@compiled
def points_in_hull(problem, X):
    return bl.solvers.ColumnGeneration(max_steps=2).run(problem, X, problem.init(X))


def test_points_in_the_hull_of_what_is_not_finite_are_no_solution():
    problem = bl.objectives.HullPoints(jnp.eye(2), jnp.ones((2, 3)))
    broken = jnp.asarray(np.random.default_rng(0).normal(size=(7, 3))).at[3, 1].set(jnp.nan)
    assert points_in_hull(problem, broken).result == bl.RESULTS.nonfinite_solution


def test_columns_serve_points_of_a_hull_only():
    with pytest.raises(ValueError, match=r"ColumnGeneration doesn't work with Clamp"):
        bl.argmin(bl.objectives.Clamp(jnp.zeros(2), 1.0), None, solver=bl.solvers.ColumnGeneration())


def test_furthest_sum_chooses_the_corners_once_each():
    corners = np.array([[0.0, 0.0], [9.0, 0.0], [0.0, 8.0], [9.0, 9.0]])
    rows = np.vstack([np.random.default_rng(6).uniform(2, 6, size=(36, 2)), corners])
    choose = compiled(lambda X, first: furthest_sum(X, 4, first))
    for first in (0, 20, 37):
        assert sorted(np.asarray(choose(jnp.asarray(rows), jnp.asarray(first)))) == [36, 37, 38, 39]
    # Of samples that are all alike, too, none is chosen twice.
    assert len(set(np.asarray(choose(jnp.ones((40, 2)), jnp.asarray(0))))) == 4


BAD = {
    "no count": (lambda: bl.objectives.Archetypes(0), "`n_archetypes` must be a whole number"),
    "few samples": (
        lambda: bl.argmin(bl.objectives.Archetypes(9), jnp.asarray(X)),
        "`n_archetypes` is 9, but `X` has 8",
    ),
    "NaN": (lambda: bl.objectives.ArchetypeWeights(np.full((2, 2), np.nan)), "`archetypes` has 4 entries"),
    "features": (lambda: solve(jnp.ones((2, 3)), jnp.asarray(X)), "`X` has 4 features, but `archetypes` have 3"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    attempt, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        attempt()
