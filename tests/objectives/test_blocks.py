"""Blocks of an unknown, their problems, and quadratics by their Gram matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.objectives.blocks import children, largest_bound, subproblem, with_child
from bilevel.prox import L1, UnitBall, block_separable
from tests.compiling import compiled

rng = np.random.default_rng(0)


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
@pytest.mark.parametrize("rank", [1, 3, 40])
def test_the_bound_is_above_the_largest_eigenvalue_and_close(rank: int, scale: float):
    factor = rng.normal(size=(40, rank))
    matrix = factor @ factor.T
    ratio = largest_bound(jnp.asarray(scale * matrix)) / scale / np.linalg.eigvalsh(matrix)[-1]
    assert 1 - 1e-12 <= ratio <= 40 ** (1 / 64)


def test_the_bound_where_all_eigenvalues_are_one_or_zero():
    assert float(largest_bound(jnp.eye(1000))) == pytest.approx(1000 ** (1 / 64))
    assert float(largest_bound(jnp.zeros((3, 3)))) == 0


@pytest.mark.parametrize("side", ["left", "right", "both", "neither"])
def test_a_quadratic_is_least_squares_up_to_a_constant(side: str):
    X, W, V = (rng.normal(size=shape) for shape in ((6, 5), (6, 3), (4, 5)))
    W, V = (W if side in ("left", "both") else np.eye(6)), (V if side in ("right", "both") else np.eye(5))
    gram = lambda M, used: jnp.asarray(M) if used else None
    objective = bl.objectives.Quadratic(
        jnp.asarray(W.T @ X @ V.T), gram(W.T @ W, len(W.T) < 6), gram(V @ V.T, len(V) < 5)
    )
    a, b = (jnp.asarray(rng.normal(size=(W.shape[1], V.shape[0]))) for _ in range(2))
    squares = lambda Y: 0.5 * np.sum((X - W @ np.asarray(Y) @ V) ** 2)
    np.testing.assert_allclose(objective(a) - objective(b), squares(a) - squares(b), rtol=1e-12)
    np.testing.assert_allclose(objective.change(b, a), squares(a) - squares(b), rtol=1e-12)
    np.testing.assert_allclose(objective.gradient(a, None), W.T @ (W @ np.asarray(a) @ V - X) @ V.T, rtol=1e-12)
    exact = np.linalg.norm(W, 2) ** 2 * np.linalg.norm(V, 2) ** 2
    assert exact * (1 - 1e-12) <= objective.lipschitz(None) <= 1.2 * exact


def test_children_are_what_the_root_holds():
    tree = {"b": (1, 2), "a": [3]}
    assert children(tree) == [[3], (1, 2)]
    assert with_child(tree, 1, 5) == {"b": 5, "a": [3]}
    assert children(4.0) == [4.0]
    assert with_child(4.0, 0, 5.0) == 5.0


def test_the_problem_of_a_block_is_the_objective_with_the_others_held():
    product = lambda scale, p, data: scale * jnp.sum((data - p[0] @ p[1]) ** 2)
    params = jnp.asarray(rng.normal(size=(4, 2))), jnp.asarray(0.3 * rng.normal(size=(2, 3)))
    objective = bl.objectives.FunctionObjective(
        product, 2.0, start=params, nonsmooth=block_separable((L1(0.5), UnitBall()))
    )
    data = jnp.asarray(rng.normal(size=(4, 3)))
    for index, penalty in enumerate((L1(0.5), UnitBall())):
        problem, own = subproblem(objective, index, params, data)
        block = params[index]
        np.testing.assert_allclose(problem(block, own), objective(params, data), rtol=1e-14)
        whole = jax.grad(objective.smooth)(params, data)
        np.testing.assert_allclose(problem.gradient(block, own), whole[index], rtol=1e-13)
        np.testing.assert_allclose(problem.penalty().prox(3 * block, 0.1), penalty.prox(3 * block, 0.1), rtol=1e-14)
    assert compiled(lambda o: subproblem(o, 1, params, data)[0].init(None))(objective).shape == (2, 3)
