"""Sparse codes against scikit-learn, and their Hessian against the generic one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.decomposition import sparse_encode
from sklearn.linear_model import ElasticNet

import bilevel as bl
from bilevel.objectives.sample_hessian import SampleHessian
from tests.compiling import compiled
from tests.problems import (
    CODES,
    DICTIONARY,
    ROBUST_CODES,
    SIGNALS,
    LogCosh,
    Problem,
    by_name,
    codes_by_proximal_gradient,
)

solve = compiled(lambda coding, X: bl.argmin(coding, X).params)


def test_is_sparse_encode_of_scikit_learn():
    ours = solve(bl.objectives.SparseCoding(DICTIONARY, jnp.asarray(0.3), jnp.asarray(0.0)), jnp.asarray(SIGNALS))
    theirs = sparse_encode(SIGNALS, DICTIONARY, algorithm="lasso_lars", alpha=0.3, max_iter=1000)
    np.testing.assert_allclose(ours, theirs, atol=1e-9)
    np.testing.assert_array_equal(ours == 0, abs(theirs) < 1e-12)


def test_is_the_elastic_net_of_scikit_learn():
    l1, l2 = 0.3, 0.1
    # scikit-learn's objective is ours over the number of features.
    strength = (l1 + l2) / DICTIONARY.shape[1]
    model = ElasticNet(strength, l1_ratio=l1 / (l1 + l2), fit_intercept=False, tol=1e-15, max_iter=100_000)
    theirs = np.stack([model.fit(DICTIONARY.T, x).coef_ for x in SIGNALS])
    ours = solve(CODES.objective, CODES.data)
    np.testing.assert_allclose(ours, theirs, atol=1e-7)
    np.testing.assert_array_equal(ours == 0, theirs == 0)


@pytest.mark.parametrize("problem", [CODES, ROBUST_CODES], ids=by_name)
@pytest.mark.parametrize("chunk_size", [2**23, 300], ids=["at once", "in chunks"])
def test_hessian_is_the_generic_one_and_solves_itself(problem: Problem, chunk_size: int, monkeypatch):
    monkeypatch.setattr("bilevel.objectives.sample_hessian.CHUNK_SIZE", chunk_size)
    codes = jnp.asarray(problem.solve(*map(np.asarray, problem.leaves)).reshape(len(SIGNALS), -1))
    right = jnp.asarray(np.random.default_rng(0).normal(size=codes.shape))

    @compiled
    def both(objective, codes, right):
        hessian = objective.hessian(codes, problem.data)
        assert isinstance(hessian, SampleHessian)
        generic = bl.objectives.AbstractObjective.hessian(objective, codes, problem.data)
        solved = hessian.solve(right)
        return hessian.mv(right), generic.mv(right), solved, generic.mv(solved)

    product, generic_product, _, back = both(problem.objective, codes, right)
    np.testing.assert_allclose(product, generic_product, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(back, right, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("atoms", [3, 32, 33, 70])
def test_the_width_of_the_blocks_follows_the_largest_support(atoms: int):
    rng = np.random.default_rng(atoms)
    dictionary, data, right = (rng.normal(size=shape) for shape in ((atoms, 80), (4, 80), (4, atoms)))
    for largest in sorted({0, 1, min(atoms, 31), min(atoms, 32), atoms}):
        support = np.zeros((4, atoms), bool)
        for row, size in enumerate((largest, largest // 2, min(largest, 1), 0)):
            support[row, rng.permutation(atoms)[:size]] = True
        solved = np.asarray(_solve_hessian(dictionary, support, data, right))
        for row in range(4):
            on = support[row]
            matrix = dictionary[on] @ dictionary[on].T + 0.1 * np.eye(on.sum())
            np.testing.assert_allclose(solved[row][on], np.linalg.solve(matrix, right[row][on]), rtol=1e-9)
            np.testing.assert_array_equal(solved[row][~on], right[row][~on])


@compiled
def _solve_hessian(dictionary: jax.Array, support: jax.Array, data: jax.Array, right: jax.Array) -> jax.Array:
    return SampleHessian(dictionary, jnp.asarray(0.1), support, data, None, None).solve(right)


def test_a_loss_may_close_over_what_is_traced():
    coding, X = CODES.objective, CODES.data

    @compiled
    def codes(width, direction):
        def solve(width):
            loss = lambda x, reconstruction: LogCosh(width)(x, reconstruction)
            coding_with = bl.objectives.SparseCoding(coding.dictionary, coding.l1, coding.l2, loss)
            return bl.argmin(coding_with, X, solver=bl.solvers.ProximalGradient(tol=1e-11), throw=False).params

        return jax.jvp(solve, (width,), (direction,))

    values, motion = codes(jnp.asarray(0.8), jnp.asarray(1.0))
    leaves = [np.asarray(coding.dictionary), 0.3, 0.1]
    solve = lambda width: codes_by_proximal_gradient(*leaves, width, np.asarray(X))
    np.testing.assert_allclose(np.ravel(values), solve(0.8), atol=1e-9)
    np.testing.assert_allclose(np.ravel(motion), (solve(0.8 + 1e-5) - solve(0.8 - 1e-5)) / 2e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-15, 1e-8, 1e8, 1e15])
def test_codes_of_samples_of_any_scale_in_32_bits(scale: float):
    # Multiplied along with l1, samples have their codes multiplied.
    D, X = np.float32(CODES.objective.dictionary), np.float32(CODES.data)
    code = compiled(lambda X, l1: bl.argmin(bl.objectives.SparseCoding(D, l1, 0.1), X, throw=False))
    plain, scaled = code(jnp.asarray(X), np.float32(0.3)), code(jnp.asarray(scale * X), np.float32(scale * 0.3))
    assert plain.result == bl.RESULTS.successful and scaled.result == bl.RESULTS.successful
    np.testing.assert_allclose(scaled.params / np.float32(scale), plain.params, atol=1e-4)


def test_least_squares_without_any_penalty_and_more_atoms_than_features():
    # Many solutions: whichever comes, it reconstructs the samples, and there is no derivative.
    coding = bl.objectives.SparseCoding(CODES.objective.dictionary, 0.0, 0.0)

    @compiled
    def solve(coding, X):
        codes = lambda X: bl.argmin(coding, X, throw=False)
        return codes(X), jax.jvp(lambda X: codes(X).params, (X,), (jnp.ones_like(X),))[1]

    solution, motion = solve(coding, CODES.data)
    assert solution.result == bl.RESULTS.successful
    np.testing.assert_allclose(solution.params @ coding.dictionary, CODES.data, atol=1e-6)
    assert np.all(np.isnan(motion))
