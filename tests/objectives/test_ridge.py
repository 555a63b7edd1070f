"""Ridge in every shape: closed forms, scikit-learn, and an alpha that no solver touches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Ridge as SklearnRidge

import bilevel as bl
from tests.compiling import compiled
from tests.laws import cotangent_of, error, outcome
from tests.problems import RIDGES, Problem, by_name, raveled
from tests.solvers.members import MEMBERS, Member, pair_name

every = pytest.mark.parametrize("problem", RIDGES, ids=by_name)


@every
def test_is_the_closed_form(problem: Problem):
    solved = outcome(problem)
    assert error(solved.params, problem.solve(*map(np.asarray, problem.leaves))) <= 1e-12
    for index, name in enumerate(problem.names):
        directions = problem.direction_of(index)
        solved = outcome(problem, directions=directions)
        assert error(solved.pushed, *problem.known_derivative(directions)) <= 1e-10, name
        forward = np.vdot(solved.pushed, raveled(cotangent_of(problem)))
        reverse = sum(np.vdot(*pair) for pair in zip(jax.tree.leaves(solved.pulled), directions, strict=True))
        assert error(reverse, forward) <= 1e-10, name


@pytest.mark.parametrize("problem", [p for p in RIDGES if p.objective.alpha.ndim == 0], ids=by_name)
def test_is_that_of_scikit_learn(problem: Problem):
    X, y = map(np.asarray, problem.data)
    # scikit-learn's loss is n times ours, twice over.
    model = SklearnRidge(alpha=len(X) * float(problem.objective.alpha), fit_intercept=False, tol=1e-14).fit(X, y)
    ours = bl.argmin(problem.objective, problem.data).params
    np.testing.assert_allclose(ours.weight, model.coef_, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(ours(problem.data[0]), model.predict(X), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("member", [m for m in MEMBERS if m.serves(RIDGES[1])], ids=pair_name)
def test_alpha_is_not_optimized_along(member: Member):
    # A hyperparameter among the unknowns of the inner problem goes where the *inner* objective is least, below zero.
    problem = RIDGES[1]
    before = np.array(problem.objective.alpha)
    solved = outcome(problem, member.solver())
    weight = solved.solution.params.weight
    assert [leaf.shape for leaf in jax.tree.leaves(solved.solution.params)] == [weight.shape]
    np.testing.assert_array_equal(problem.objective.alpha, before)
    # The solution is the one for the alpha that was given.
    assert np.linalg.norm(slope(before, weight, *problem.data)) <= 1e-9
    assert np.linalg.norm(slope(2 * before, weight, *problem.data)) > 1e-2


def slope(alpha: np.ndarray, weight: np.ndarray, X: np.ndarray, y: np.ndarray) -> np.ndarray:
    weight, X, y = map(np.asarray, (weight, X, y))
    return (X @ weight.T - y).T @ X / len(X) + alpha * weight


def test_alpha_cannot_be_passed_as_an_unknown():
    problem = RIDGES[0]
    start = {"weight": jnp.zeros(6), "alpha": jnp.asarray(0.3)}
    with pytest.raises(ValueError, match="`init` must be like"):
        bl.argmin(problem.objective, problem.data, init=start)


@every
def test_hessian_solves_itself(problem: Problem):
    @compiled
    def matrices_and_solve(objective, data, right):
        hessian = objective.hessian(right, data)
        generic = bl.objectives.AbstractObjective.hessian(objective, right, data)
        return hessian.as_matrix(), generic.as_matrix(), hessian.solve(right)

    right = cotangent_of(problem)
    matrix, generic, solved = matrices_and_solve(problem.objective, problem.data, right)
    np.testing.assert_allclose(matrix, generic, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(matrix @ raveled(solved), raveled(right), rtol=1e-10, atol=1e-12)


@every
def test_lipschitz_is_the_largest_curvature(problem: Problem):
    X, _ = map(np.asarray, problem.data)
    alpha = np.broadcast_to(problem.objective.alpha, X.shape[1])
    curvatures = np.linalg.eigvalsh(X.T @ X / len(X) + np.diag(alpha))
    bound = float(problem.objective.lipschitz(problem.data))
    assert curvatures[-1] * (1 - 1e-12) <= bound <= curvatures[-1] + np.ptp(alpha) + 1e-12
