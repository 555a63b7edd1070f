"""Block alternation on a user's own two-block objective, and on one that has structure."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.prox import L1, UnitBall, block_separable
from tests.compiling import compiled

rng = np.random.default_rng(0)
SAMPLES, ATOMS, FEATURES = 12, 2, 4
X = jnp.asarray(rng.normal(size=(SAMPLES, FEATURES)) * np.array([3.0, 2.0, 1.0, 0.5]))
START = {"codes": jnp.zeros((SAMPLES, ATOMS)), "dictionary": jnp.asarray(rng.normal(size=(ATOMS, FEATURES)) / 4)}
TOL = jnp.asarray(1e-11)


def loss(ridge, params, data):
    """½ ‖X − C D‖² + ½ ridge ‖C‖²."""
    squares = 0.5 * jnp.sum((data - params["codes"] @ params["dictionary"]) ** 2)
    return squares + 0.5 * ridge * jnp.sum(params["codes"] ** 2)


def objective(ridge=0.1, l1=0.5, start=START):
    nonsmooth = block_separable({"codes": L1(l1), "dictionary": UnitBall()})
    return bl.objectives.FunctionObjective(loss, ridge, start=start, nonsmooth=nonsmooth)


@compiled
def solve(objective, data, solver, init=None):
    return bl.argmin(objective, data, solver=solver, init=init, throw=False)


@functools.cache
def solved():
    return solve(objective(), X, bl.solvers.BlockAlternation(TOL))


def values_of(solution):
    stats = solution.stats
    values = np.concatenate([[stats["objective_at_start"]], np.ravel(stats["objective"])])
    return values[np.isfinite(values)]


def test_it_converges_and_never_rises():
    solution = solved()
    assert solution.result == bl.RESULTS.successful
    values, rounds = values_of(solution), int(solution.stats["num_steps"])
    assert len(values) == 2 * rounds + 1
    assert np.all(np.diff(values) <= 1e-13 * np.abs(values[1:]))
    assert values[-1] < 0.5 * values[0]
    assert solution.stats["objective"].shape == solution.stats["block_steps"].shape == (1000, 2)
    assert np.all(np.isnan(solution.stats["objective"][rounds:]))
    assert np.all(solution.stats["block_steps"][:rounds] >= 1)
    np.testing.assert_allclose(values[-1], objective()(solution.params, X), rtol=1e-13)


def test_each_block_is_optimal_for_the_other():
    """By NumPy: the conditions of L1 on the codes, of the ball on the atoms."""
    C, D = (np.asarray(solved().params[name]) for name in ("codes", "dictionary"))
    residual = C @ D - np.asarray(X)
    slope = residual @ D.T + 0.1 * C
    np.testing.assert_allclose(slope[C != 0], -0.5 * np.sign(C[C != 0]), atol=1e-8)
    assert np.all(np.abs(slope[C == 0]) <= 0.5 + 1e-8)
    assert 0 < np.mean(C == 0) < 0.8
    # −∇ is a multiple ≥ 0 of each atom on the sphere.
    pull, norms = -C.T @ residual, np.linalg.norm(D, axis=1)
    np.testing.assert_allclose(norms, 1, rtol=1e-12)
    along = np.sum(pull * D, axis=1, keepdims=True)
    assert np.all(along > 0)
    np.testing.assert_allclose(pull, along * D, atol=1e-7)


@compiled
def outer(ridge, l1, data, init, diff, cotangent):
    solution = bl.argmin(objective(ridge, l1), data, init=init, solver=bl.solvers.BlockAlternation(TOL), diff=diff)
    return sum(
        jnp.vdot(c, y) for c, y in zip(jax.tree.leaves(cotangent), jax.tree.leaves(solution.params), strict=True)
    )


COTANGENT = jax.tree.map(lambda x: jnp.asarray(np.random.default_rng(1).normal(size=x.shape)), START)
hypergradient = compiled(lambda *args: jax.grad(outer.__wrapped__, argnums=(0, 1, 2))(*args))


def test_the_hypergradient_is_that_of_finite_differences():
    init = solved().params
    args = (jnp.asarray(0.1), jnp.asarray(0.5), X)
    grads = hypergradient(*args, init, bl.Implicit(), COTANGENT)
    directions = jnp.asarray(1.0), jnp.asarray(-0.7), jnp.asarray(np.random.default_rng(2).normal(size=X.shape))
    slope = sum(float(jnp.vdot(g, d)) for g, d in zip(grads, directions, strict=True))
    at = lambda step: float(
        outer(*(a + step * d for a, d in zip(args, directions, strict=True)), init, bl.Implicit(), COTANGENT)
    )
    # Rounds of alternation gain little each, so that the solutions are far less exact than the tolerance.
    differences = [(at(step) - at(-step)) / (2 * step) for step in (1e-2, 1e-3, 1e-4)]
    assert min(abs(slope - d) for d in differences) <= 1e-5 * abs(slope)


def test_a_leaf_of_the_objective_that_acts_on_one_block_only_moves_them_all():
    """`l1` is in the codes' optimality alone, and the other block's right-hand side is zero whatever it is."""
    init, args = solved().params, (jnp.asarray(0.1), jnp.asarray(0.5), X)
    expected = hypergradient(*args, init, bl.Implicit(), COTANGENT)[1]
    of_l1 = compiled(jax.grad(lambda l1: outer.__wrapped__(args[0], l1, X, init, bl.Implicit(), COTANGENT)))
    assert float(of_l1(args[1])) == pytest.approx(float(expected), rel=1e-8)


def test_unrolled_derivatives_agree():
    """From the solution, whose rounds each contract: 60 of them."""
    init = solved().params
    solver = bl.solvers.BlockAlternation(tol=1e-300, max_steps=60, block_steps=5)

    def last(l1, diff):
        codes = bl.argmin(objective(0.1, l1), X, init=init, solver=solver, diff=diff, throw=False).params
        return jnp.sum(jnp.sin(codes["codes"]))

    unrolled = compiled(jax.jacfwd(last))(jnp.asarray(0.5), bl.Unrolled())
    implicit = compiled(jax.grad(last))(jnp.asarray(0.5), bl.Implicit(on_failure="ignore"))
    assert float(unrolled) == pytest.approx(float(implicit), rel=1e-3)


def test_vmap_is_a_loop():
    solver, strengths = bl.solvers.BlockAlternation(TOL), jnp.asarray([0.4, 0.6])
    one = lambda l1: bl.argmin(objective(0.1, l1), X, solver=solver, throw=False).params
    batched = compiled(jax.vmap(one))(strengths)
    for i, l1 in enumerate(strengths):
        single = solve(objective(0.1, l1), X, solver).params
        jax.tree.map(lambda b, s, i=i: np.testing.assert_allclose(b[i], s, atol=1e-7), batched, single)


def test_32_bits_stay_32_bits():
    single = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32) if eqx.is_inexact_array(x) else x, tree)
    solution = solve(single(objective()), single(X), bl.solvers.BlockAlternation())
    assert solution.result == bl.RESULTS.successful
    assert {x.dtype for x in jax.tree.leaves(solution.params)} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(values_of(solution)[-1], values_of(solved())[-1], rtol=1e-5)
    values = values_of(solution)
    assert np.all(np.diff(values) <= 3e-6 * np.abs(values[1:]))


def test_a_lipschitz_constant_that_is_too_small_is_doubled():
    """f = x⁴ is flat at the start of a block and steep where it goes: power iteration sees nothing there."""
    quartic = lambda _, p, data: jnp.sum((p[0] - 3) ** 4) + jnp.sum((p[1] - p[0]) ** 2)
    start = jnp.full(3, 2.999), jnp.full(3, 50.0)
    problem = bl.objectives.FunctionObjective(quartic, start=start, nonsmooth=L1((0.1, 0.0)))
    solution = solve(problem, None, bl.solvers.BlockAlternation(1e-9))
    assert solution.result == bl.RESULTS.successful
    assert np.all(np.diff(values_of(solution)) <= 1e-13)
    # 4 (x − 3)³ + 0.1 = 0, and y = x.
    np.testing.assert_allclose(solution.params[0], 3 - 0.025 ** (1 / 3), rtol=1e-5)
    np.testing.assert_allclose(solution.params[0], solution.params[1], rtol=1e-6)


def test_jumps_save_rounds():
    """Two blocks that are tied to each other closely, and to where they should be loosely: 250 rounds without jumps."""
    loose, start = 0.01, (jnp.zeros(3), jnp.full(3, 50.0))
    tied = lambda _, p, data: 0.5 * jnp.sum(loose * p[0] ** 2 + (p[0] - p[1]) ** 2 + loose * (p[1] - 1) ** 2) + 1
    value = lambda x, y: 1.5 * (loose * x**2 + (x - y) ** 2 + loose * (y - 1) ** 2) + 1
    y, plain = 50.0, []
    for _ in range(400):
        x = y / (1 + loose)
        y = (x + loose) / (1 + loose)
        plain.append(value(x, y))
    near = plain[-1] + 1e-4
    problem = bl.objectives.FunctionObjective(tied, start=start)
    history = np.asarray(solve(problem, None, bl.solvers.BlockAlternation(1e-9, 400)).stats["objective"])
    values = history[np.isfinite(history)]
    assert np.all(np.diff(values) <= 1e-13 * values[1:])
    rounds = 1 + np.argmax(history[:, -1] <= near)
    assert np.min(values) <= near and 5 * rounds <= 1 + np.argmax(np.array(plain) <= near)


def test_what_is_not_a_number_is_refused_and_said():
    broken = bl.objectives.FunctionObjective(lambda _, p, data: jnp.sum(p[0]) * jnp.nan + p[1] ** 2, start=(X, 1.0))
    solution = solve(broken, None, bl.solvers.BlockAlternation())
    assert solution.result == bl.RESULTS.nonfinite_solution
    np.testing.assert_array_equal(solution.params[0], X)


def test_options_are_checked():
    with pytest.raises(ValueError, match="`block_steps` must be a whole number"):
        bl.solvers.BlockAlternation(block_steps=0)
    with pytest.raises(ValueError, match="`block_tol` must be finite and positive"):
        bl.solvers.BlockAlternation(block_tol=-0.1)
    with pytest.raises(ValueError, match="`forcing` must be finite and positive"):
        bl.solvers.BlockAlternation(forcing=0.0)
