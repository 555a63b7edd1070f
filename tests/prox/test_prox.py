"""What every prox keeps: it solves its problem, in its precision, on every tree, at every scale."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.prox import AbstractConstraint
from tests.prox.members import MEMBERS, POINTS, STEPSIZE, Member
from tests.prox.transforms import prox, pull, push, still, traces, value

name = lambda member: member.name
every = pytest.mark.parametrize("member", MEMBERS, ids=name)
projection = pytest.mark.parametrize(
    "member", [m for m in MEMBERS if isinstance(m.penalty, AbstractConstraint)], ids=name
)


@every
def test_is_the_closed_form(member: Member):
    expected = np.stack([member.solution(x) for x in POINTS])
    np.testing.assert_allclose(prox(member.penalty, jnp.asarray(POINTS)), expected, rtol=1e-12, atol=1e-14)


@every
def test_minimizes_its_objective(member: Member):
    def objective(y):
        squares = 0.5 * jnp.sum((y - POINTS) ** 2, axis=(1, 2))
        return squares + STEPSIZE * value(member.penalty, y)

    best = objective(prox(member.penalty, jnp.asarray(POINTS)))
    assert np.all(np.isfinite(best))
    rng = np.random.default_rng(2)
    for scale in (1e-4, 1e-2, 1.0, 10.0):
        # Whatever the prox returns is in the set, where there is one.
        rival = prox(member.penalty, jnp.asarray(POINTS + scale * rng.normal(size=POINTS.shape)))
        assert np.all(best <= objective(rival) + 1e-12)


@projection
def test_projects_onto_the_set(member: Member):
    projected = prox(member.penalty, jnp.asarray(POINTS))
    np.testing.assert_allclose(prox(member.penalty, projected), projected, rtol=1e-14, atol=1e-15)
    np.testing.assert_array_equal(value(member.penalty, projected), 0)
    outside = np.max(np.abs(POINTS - projected), axis=(1, 2)) > 1e-3
    assert np.any(outside)
    np.testing.assert_array_equal(value(member.penalty, jnp.asarray(POINTS))[outside], np.inf)


@pytest.mark.parametrize("member", [m for m in MEMBERS if m.convex], ids=name)
def test_does_not_expand(member: Member):
    after = np.asarray(prox(member.penalty, jnp.asarray(POINTS))).reshape(len(POINTS), -1)
    before = POINTS.reshape(len(POINTS), -1)
    distances = lambda points: np.linalg.norm(points[:, None] - points[None, :], axis=-1)
    assert np.all(distances(after) <= distances(before) + 1e-12)


@every
def test_works_leaf_by_leaf_and_under_vmap(member: Member):
    x, y, z = jnp.asarray(POINTS[:3])
    tree = eqx.filter_jit(lambda penalty: penalty.prox({"a": x, "b": (y, [z])}, STEPSIZE))(member.penalty)
    assert jax.tree.structure(tree) == jax.tree.structure({"a": 0, "b": (0, [0])})
    batched = prox(member.penalty, jnp.asarray(POINTS))
    np.testing.assert_allclose(jnp.stack(jax.tree.leaves(tree)), batched[:3], rtol=1e-14, atol=1e-15)


@every
def test_keeps_32_bits(member: Member):
    points = jnp.asarray(POINTS, jnp.float32)
    single, _, pulled = pull(member.penalty, points, points)
    assert single.dtype == pulled.dtype == jnp.float32
    shapes = [
        eqx.filter_eval_shape(value, member.penalty, points),
        eqx.filter_eval_shape(push, member.penalty, points, still(member.penalty), points),
    ]
    assert {shape.dtype for shape in shapes} == {jnp.dtype(jnp.float32)}
    double = prox(member.penalty, jnp.asarray(POINTS))
    # A tie in 64 bits is none in 32, but the prox is continuous (on the sphere, where it is defined).
    np.testing.assert_allclose(single, double, atol=3e-6)


@every
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_is_right_at_extreme_scales(member: Member, scale: float):
    points = jnp.asarray(scale * POINTS, jnp.float32)
    projected, *pulled = pull(member.penalty, points, jnp.ones_like(points))
    # In 64 bits these scales are harmless, so that the witness is right.
    expected = np.stack([member.solution(x) for x in np.asarray(points, np.float64)])
    np.testing.assert_allclose(projected, expected, rtol=1e-5, atol=1e-6 * min(scale, 1.0))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(pulled))


@every
def test_does_not_hide_nan(member: Member):
    hurt = POINTS.copy()
    hurt[:, 1, 2] = np.nan
    np.testing.assert_array_equal(np.isnan(prox(member.penalty, jnp.asarray(hurt))[:, 1, 2]), True)


@every
def test_new_numbers_do_not_recompile(member: Member):
    numbers, structure = jax.tree.flatten(member.penalty)
    before = prox(member.penalty, jnp.asarray(POINTS))
    traced = traces["prox"]
    changed = prox(jax.tree.unflatten(structure, [0.5 * x for x in numbers]), jnp.asarray(POINTS))
    assert traces["prox"] == traced
    assert np.array_equal(before, changed) == (not numbers)
