"""What only some penalties and constraints have: strengths on a tree, critical strengths, bounds, totals, errors."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.prox import L1, Box, ElasticNet, GroupL1, NonNegative, ShiftedL1, Simplex, UnitBall, UnitSphere
from tests.prox.members import SHIFT, simplex_by_bisection, soft

X = np.random.default_rng(5).normal(size=(3, 4))
WEIGHTS = np.array([0.5, 0.0, 0.25, 1.0])

VALUES = [
    (L1(0.3), 0.3 * np.abs(X).sum()),
    (L1(WEIGHTS), (WEIGHTS * np.abs(X)).sum()),
    (ShiftedL1(SHIFT, 0.3), 0.3 * np.abs(X - SHIFT).sum()),
    (ElasticNet(0.3, 0.2), 0.3 * np.abs(X).sum() + 0.1 * (X**2).sum()),
    (GroupL1(0.3), 0.3 * np.linalg.norm(X, axis=1).sum()),
    (GroupL1(0.3, axis=0), 0.3 * np.linalg.norm(X, axis=0).sum()),
    (GroupL1(0.3, axis=None), 0.3 * np.linalg.norm(X)),
    (GroupL1(np.array([[1.0], [0.0], [2.0]])), np.linalg.norm(X, axis=1) @ [1, 0, 2]),
]


@eqx.filter_jit
def prox(penalty, params, stepsize):
    return penalty.prox(params, stepsize)


@eqx.filter_jit
def value(penalty, params):
    return penalty.value(params)


@pytest.mark.parametrize(("penalty", "expected"), VALUES, ids=lambda x: type(x).__name__)
def test_values(penalty, expected):
    np.testing.assert_allclose(value(penalty, {"a": jnp.asarray(X), "b": [jnp.asarray(X)]}), 2 * expected, rtol=1e-14)


@pytest.mark.parametrize(
    ("make", "axis"),
    [(L1, ()), (lambda s: ElasticNet(s, 0.7), ()), (GroupL1, 1), (lambda s: GroupL1(s, axis=None), (0, 1))],
    ids=["L1", "ElasticNet", "GroupL1", "GroupL1 of all"],
)
def test_zero_is_the_solution_exactly_from_the_critical_strength_on(make, axis):
    gradient = {"a": jnp.asarray(X), "b": jnp.asarray(3 * X[:1])}
    critical = jax.jit(lambda g: make(1.0).critical_strength(g))(gradient)
    # A power of two, so that it rounds nothing.
    stepsize = 0.25
    step = lambda strength: prox(make(strength), jax.tree.map(lambda g: -stepsize * g, gradient), stepsize)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(step(critical)))
    assert any(np.any(leaf) for leaf in jax.tree.leaves(step(critical * (1 - 1e-12))))


@pytest.mark.parametrize("make", [L1, lambda s: ShiftedL1(0.0, s), lambda s: ElasticNet(s, 0.0), GroupL1])
def test_a_strength_may_be_a_tree_prefix(make):
    a, b = jnp.asarray(X), {"c": jnp.asarray(X[:2]), "d": jnp.asarray(X[2:])}
    penalty = make((0.1, 0.0))
    first, second = prox(penalty, (a, b), 2.0)
    np.testing.assert_allclose(first, prox(make(0.1), a, 2.0), rtol=1e-14)
    assert jax.tree.all(jax.tree.map(np.array_equal, second, b))
    np.testing.assert_allclose(value(penalty, (a, b)), value(make(0.1), a), rtol=1e-14)


def test_bounds_may_be_tree_prefixes():
    a, b = jnp.asarray(X), jnp.asarray(5 * X)
    low, high = prox(Box((-0.5, -jnp.inf), 1), (a, b), 1.0)
    np.testing.assert_array_equal(low, np.clip(a, -0.5, 1))
    np.testing.assert_array_equal(high, np.minimum(b, 1))


def test_a_strength_may_be_mapped():
    strengths = jnp.asarray([0.0, 0.1, 0.5])
    mapped = eqx.filter_jit(eqx.filter_vmap(lambda s: L1(s).prox(jnp.asarray(X), 2.0)))(strengths)
    np.testing.assert_allclose(mapped, np.stack([soft(X, 2 * s) for s in np.asarray(strengths)]), rtol=1e-14)


UNFIT = [
    (L1(np.ones((5, 3, 4))), "strength"),
    (L1((0.1, 0.2)), "strength"),
    (ElasticNet(np.ones((5, 3, 4)), 1.0), "l1"),
    (ElasticNet(1.0, np.ones((5, 3, 4))), "l2"),
    (ShiftedL1(np.ones(5)), "shift"),
    (GroupL1(np.ones(4)), "strength"),
    (Box(np.zeros(3), np.ones(3)), "lower"),
    (Box(0.0, np.ones(3)), "upper"),
]


@pytest.mark.parametrize(("penalty", "name"), UNFIT)
def test_numbers_that_do_not_fit_the_leaves_are_named(penalty, name):
    with pytest.raises(ValueError, match=f"`{name}` .*(broadcast|tree prefix)"):
        penalty.prox(jnp.asarray(X), 1.0)


def test_where_it_rests_a_coordinate_moves_with_what_holds_it():
    x, ones = jnp.asarray([-1.0, 0.0, 0.5, 1.0, 2.0]), jnp.ones(5)
    push = lambda make, number: jax.jit(lambda n: jax.jvp(lambda n: make(n).prox(x, 1.0), (n,), (ones,))[1])(number)
    np.testing.assert_array_equal(push(lambda n: Box(n, 1.0), jnp.zeros(5)), [1, 1, 0, 0, 0])
    np.testing.assert_array_equal(push(lambda n: Box(0.0, n), jnp.ones(5)), [0, 0, 0, 1, 1])
    # At the ties |x − shift| = strength too.
    np.testing.assert_array_equal(push(lambda n: ShiftedL1(n, 0.5), jnp.full(5, 0.5)), [0, 1, 1, 1, 0])
    # Fixed between equal bounds, nothing is free.
    fixed = eqx.filter_jit(lambda box: jax.jvp(box.project, (x,), (ones,)))(Box(0.5, 0.5))
    np.testing.assert_array_equal(fixed, [np.full(5, 0.5), np.zeros(5)])


@pytest.mark.parametrize("size", [1, 10_000])
def test_the_simplex_holds_its_total(size):
    x = np.random.default_rng(6).normal(size=size)
    for shift, spread in ((0, 1), (1e6, 1), (0, 1e-6)):
        row = jnp.asarray(shift + spread * x, jnp.float32)
        projected = np.asarray(prox(Simplex(3.0), row, 1.0), np.float64)
        assert projected.min() >= 0
        np.testing.assert_allclose(projected.sum(), 3, rtol=1e-5)
        np.testing.assert_allclose(projected, simplex_by_bisection(np.asarray(row, np.float64), 3.0), atol=1e-6)


def test_membership_is_relative():
    for penalty, inside in ((Box(0.0, 1e-6), 1e-6), (Box(0.0, 1e6), 1e6)):
        assert value(penalty, jnp.asarray([0.0, inside * (1 + 1e-12)])) == 0
        assert value(penalty, jnp.asarray([0.0, inside * 1.01])) == jnp.inf
    assert value(UnitSphere(), jnp.zeros(3)) == jnp.inf
    assert value(UnitBall(), jnp.zeros(3)) == 0
    assert value(NonNegative(), jnp.full(3, -1e-20)) == jnp.inf


BAD = [
    *((L1, (bad,), "strength") for bad in (-1.0, np.nan, np.inf, "0.1", 1j, (0.1, -0.1), np.array([0.1, -2]))),
    *((GroupL1, (bad,), "strength") for bad in (-1.0, np.nan, "0.1")),
    *((ElasticNet, (bad, 1.0), "l1") for bad in (-1.0, np.nan, "0.1")),
    *((ElasticNet, (1.0, bad), "l2") for bad in (-1.0, np.nan, "0.1")),
    *((ShiftedL1, (bad, 1.0), "shift") for bad in (np.nan, np.inf, "0.1")),
    *((ShiftedL1, (0.0, bad), "strength") for bad in (-1.0, "0.1")),
    *((Simplex, (bad,), "total") for bad in (0.0, -1.0, np.nan, "1", np.ones(3))),
    *((Box, bad, "lower") for bad in ((1.0, 0.0), (np.nan, 1.0), ("0", 1.0), ((0.0, 2.0), 1.0), (1, (0.0, 2)))),
    *((Box, bad, "upper") for bad in ((0.0, np.nan), (0.0, "1"), (np.inf, np.inf), (-np.inf, -np.inf))),
]


@pytest.mark.parametrize(("make", "arguments", "name"), BAD)
def test_bad_numbers_are_named(make, arguments, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        make(*arguments)
    with pytest.raises(ValueError, match=f"`{name}`"):
        jax.jit(lambda: make(*arguments).prox(jnp.asarray(X), 1.0))()
