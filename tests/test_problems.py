"""The witnesses are right themselves: closed forms against differences, solutions against the conditions they meet."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import witnesses
from tests.compiling import compiled
from tests.laws import error
from tests.problems import CLAMP, PROBLEMS, RIDGES, Problem, by_name

CLOSED_FORMS = [*RIDGES, CLAMP]


@pytest.mark.parametrize("problem", CLOSED_FORMS, ids=by_name)
def test_closed_forms_are_differences(problem: Problem):
    values = [np.asarray(leaf) for leaf in problem.leaves]
    for index, name in enumerate(problem.names):
        directions = problem.direction_of(index)
        difference = witnesses.central_difference(problem.solve, values, directions, 1e-6)
        assert error(difference, *problem.known_derivative(directions)) <= 1e-8, name


@pytest.mark.parametrize("problem", PROBLEMS, ids=by_name)
def test_differences_agree_over_the_sweep(problem: Problem):
    # So no step crosses a kink, and none drowns in rounding.
    for index, name in enumerate(problem.names):
        coarse, *finer = problem.known_derivative(problem.direction_of(index))
        assert all(error(fine, coarse) <= 1e-5 for fine in finer), name


@pytest.mark.parametrize("problem", PROBLEMS, ids=by_name)
def test_nothing_near_is_better(problem: Problem):
    leaves, structure = jax.tree.flatten(problem.objective.init(problem.data))
    arrays = [leaf for leaf in leaves if hasattr(leaf, "shape")]
    cuts = np.cumsum([leaf.size for leaf in arrays])[:-1]

    @compiled
    def value(flat: jax.Array) -> jax.Array:
        parts = iter(jnp.split(flat, cuts))
        whole = [next(parts).reshape(leaf.shape) if hasattr(leaf, "shape") else leaf for leaf in leaves]
        return problem.objective(jax.tree.unflatten(structure, whole), problem.data)

    best = problem.solve(*map(np.asarray, problem.leaves)).ravel()
    rng = np.random.default_rng(0)
    for size in (1e-2, 1.0):
        assert value(best) < value(best + size * rng.normal(size=best.size))


def test_projections_are_onto_their_sets():
    points = 2 * np.random.default_rng(0).normal(size=(20, 4))
    on_simplices = witnesses.onto_simplices(points, 2.0)
    np.testing.assert_allclose(on_simplices.sum(axis=1), 2.0, rtol=1e-12)
    assert np.min(on_simplices) == 0
    np.testing.assert_allclose(witnesses.onto_simplices(on_simplices, 2.0), on_simplices, atol=1e-15)
    norms = np.linalg.norm(witnesses.onto_balls(points), axis=1)
    np.testing.assert_allclose(norms, np.minimum(np.linalg.norm(points, axis=1), 1), rtol=1e-12)


def test_a_hopeless_witness_says_so():
    with pytest.raises(RuntimeError, match="did not converge"):
        witnesses.proximal_gradient(lambda y: np.ones(2), witnesses.no_prox, 1.0, np.zeros(2))
