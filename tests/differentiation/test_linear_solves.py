"""The linear systems of implicit differentiation: right where the precision allows it, else NaN."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import bilevel as bl
from bilevel.core.linear_solve import LinearOptions, solve
from bilevel.core.operators import cholesky_solve
from tests.compiling import compiled
from tests.laws import error, outcome
from tests.problems import PENALIZED
from tests.solvers.members import TOL


def spectrum(size: int, condition: float, seed: int = 0) -> np.ndarray:
    """A symmetric matrix with eigenvalues from 1 down to 1 / condition."""
    basis, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))
    return (basis * np.geomspace(1, 1 / condition, size)) @ basis.T


def solved(matrix: jax.Array, right: jax.Array, symmetric: bool = True, solver=None) -> jax.Array:
    structure = jax.eval_shape(lambda: right)
    tags = lx.positive_semidefinite_tag if symmetric else ()
    return solve(lx.FunctionLinearOperator(lambda v: matrix @ v, structure, tags=tags), right, LinearOptions(solver))


cg = compiled(solved)
gmres = compiled(lambda matrix, right: solved(matrix, right, symmetric=False))
both = pytest.mark.parametrize("method", [cg, gmres], ids=["CG", "GMRES"])
RIGHT = np.random.default_rng(1).normal(size=60) * (np.arange(60) % 3 > 0)


@both
@pytest.mark.parametrize("condition", [1.0, 1e2, 1e4, 1e6])
def test_the_error_is_that_of_rounding(method, condition: float):
    # With zeros in b, which an entrywise relative tolerance takes for 0 / 0.
    matrix = spectrum(60, condition)
    assert error(method(jnp.asarray(matrix), jnp.asarray(RIGHT)), np.linalg.solve(matrix, RIGHT)) <= 1e-13 * condition


@both
@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_units_do_not_matter(method, scale: float, size: float):
    matrix = spectrum(60, 1e2)
    answer = method(jnp.asarray(scale * matrix), jnp.asarray(size * RIGHT))
    assert error(np.asarray(answer) * scale / size, np.linalg.solve(matrix, RIGHT)) <= 1e-11


@both
def test_32_bits(method):
    matrix = spectrum(60, 1e3)
    answer = method(jnp.asarray(matrix, jnp.float32), jnp.asarray(RIGHT, jnp.float32))
    assert answer.dtype == jnp.float32
    assert error(answer, np.linalg.solve(matrix, RIGHT)) <= 1e-3


def test_large_and_ill_conditioned():
    # By default, Lineax's conjugate gradient ends hundreds of times off here.
    matrix, right = spectrum(300, 1e4), np.random.default_rng(2).normal(size=300)
    assert error(cg(jnp.asarray(matrix), jnp.asarray(right)), np.linalg.solve(matrix, right)) <= 1e-10


@both
def test_zero_right_hand_side(method):
    np.testing.assert_array_equal(method(jnp.eye(60), jnp.zeros(60)), 0)


@both
def test_no_answer_is_nan(method):
    matrix = np.diag([1.0] * 59 + [0.0])
    assert np.all(np.isnan(method(jnp.asarray(matrix), jnp.ones(60))))
    assert np.all(np.isnan(method(jnp.eye(60), jnp.full(60, jnp.nan))))


def test_a_solver_of_the_callers_own():
    matrix = jnp.asarray(spectrum(60, 1e4))
    with_two_steps = lx.CG(rtol=1e-10, atol=1e-10, max_steps=2)
    assert np.all(np.isnan(compiled(solved)(matrix, jnp.asarray(RIGHT), solver=with_two_steps)))
    answer = compiled(solved)(matrix, jnp.asarray(RIGHT), solver=lx.Cholesky())
    assert error(answer, np.linalg.solve(matrix, RIGHT)) <= 1e-10


def test_derivatives_and_transposition():
    matrix = np.random.default_rng(3).normal(size=(6, 6)) + 4 * np.eye(6)
    right, cotangent = np.random.default_rng(4).normal(size=(2, 6))
    inverse = np.linalg.inv(matrix)
    value = lambda scale, b: jnp.vdot(cotangent, solved(scale * jnp.asarray(matrix), b, symmetric=False))
    first = compiled(jax.grad(value, (0, 1)))(jnp.ones(()), jnp.asarray(right))
    np.testing.assert_allclose(first[0], -cotangent @ inverse @ right, rtol=1e-11)
    np.testing.assert_allclose(first[1], inverse.T @ cotangent, rtol=1e-11)
    second = compiled(jax.grad(jax.grad(value)))(jnp.ones(()), jnp.asarray(right))
    np.testing.assert_allclose(second, 2 * cotangent @ inverse @ right, rtol=1e-11)


def test_one_lane_without_an_answer_leaves_the_others_theirs():
    matrices = jnp.stack([jnp.eye(4), jnp.zeros((4, 4)), 2 * jnp.eye(4)])
    total = lambda rights: jnp.sum(jax.vmap(solved)(matrices, rights))
    answers = compiled(jax.vmap(solved))(matrices, jnp.ones((3, 4)))
    slopes = compiled(jax.grad(total))(jnp.ones((3, 4)))
    expected = np.repeat([[1.0], [np.nan], [0.5]], 4, axis=1)
    np.testing.assert_allclose(answers, expected, rtol=1e-12)
    np.testing.assert_allclose(slopes, expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
@pytest.mark.parametrize("seed", range(5))
def test_cholesky_of_a_singular_matrix_is_nan_whether_it_breaks_down_or_not(seed: int, dtype):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(6, 9))
    rows[5] = rows[:5].T @ rng.normal(size=5)
    # Whatever the units of the coordinates.
    rows *= np.geomspace(1e-3, 1e3, 6)[:, None]
    answer = compiled(cholesky_solve)(jnp.asarray(rows @ rows.T, dtype), jnp.ones(6, dtype))
    assert np.all(np.isnan(answer))
    fine = jnp.asarray(rows[:5] @ rows[:5].T, dtype)
    assert np.all(np.isfinite(compiled(cholesky_solve)(fine, jnp.ones(5, dtype))))


def test_the_linear_solver_can_be_chosen():
    problem, solver = PENALIZED[0], bl.solvers.ProximalGradient(tol=TOL)
    usual = outcome(problem, solver)
    chosen = outcome(problem, solver, bl.Implicit(linear_solver=lx.Cholesky()))
    assert error(chosen.pushed, usual.pushed) <= 1e-10
