"""Derivatives of every prox, at generic points and at kinks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.prox import AbstractPolyhedralPenalty
from tests.prox.members import DIRECTIONS, GENERIC, MEMBERS, NAMES, POINTS, STEPSIZE, Member, tangent_of
from tests.prox.transforms import moved, prox, push, push_and_pull, restrict, still

name = lambda member: member.name
every = pytest.mark.parametrize("member", MEMBERS, ids=name)
polyhedral = pytest.mark.parametrize(
    "member", [m for m in MEMBERS if isinstance(m.penalty, AbstractPolyhedralPenalty)], ids=name
)
# The cube root of machine epsilon balances the two errors of a central difference.
EPS = 6e-6


def arrays():
    """Points, directions and cotangents."""
    return map(jnp.asarray, (POINTS, DIRECTIONS, np.random.default_rng(3).normal(size=POINTS.shape)))


@every
@pytest.mark.parametrize("direction", ["params", "own numbers", "both"])
def test_jvp_is_a_finite_difference(member: Member, direction: str):
    points, directions, _ = arrays()
    tangent = still(member.penalty) if direction == "params" else tangent_of(member.penalty)
    directions = 0 * directions if direction == "own numbers" else directions
    after = prox(moved(member.penalty, tangent, EPS), points + EPS * directions)
    before = prox(moved(member.penalty, tangent, -EPS), points - EPS * directions)
    pushed = push(member.penalty, points, tangent, directions)
    generic = slice(len(GENERIC))
    np.testing.assert_allclose(pushed[generic], ((after - before) / (2 * EPS))[generic], rtol=1e-8, atol=1e-8)


@every
def test_jvp_is_that_of_the_side_on_which_the_output_rests(member: Member):
    points, directions, _ = arrays()
    pushed = push(member.penalty, points, still(member.penalty), directions)
    expected = [member.derivative(x, d) for x, d in zip(POINTS, DIRECTIONS, strict=True)]
    right = np.isclose(pushed, np.stack(expected), rtol=1e-12, atol=1e-14).all(axis=(1, 2))
    assert [point for point, agrees in zip(NAMES, right, strict=True) if not agrees] == []


@every
def test_vjp_is_the_transposed_jvp(member: Member):
    points, directions, cotangents = arrays()
    tangent = tangent_of(member.penalty)
    pushed, pulled, _ = push_and_pull(member.penalty, points, cotangents, tangent, directions)
    backward = sum(np.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (pulled, (tangent, directions))), strict=True))
    np.testing.assert_allclose(np.vdot(cotangents, pushed), backward, rtol=1e-12)


@every
def test_second_derivatives(member: Member):
    points, directions, cotangents = arrays()
    tangent = tangent_of(member.penalty)
    variables, along = (member.penalty, points, cotangents), (tangent, directions, directions)
    _, pulled, bent = push_and_pull(*variables, tangent, directions)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((pulled, bent)))
    after, before = (push_and_pull(*moved(variables, along, eps), tangent, directions)[1][1] for eps in (EPS, -EPS))
    difference = (after - before) / (2 * EPS)
    generic = slice(len(GENERIC))
    np.testing.assert_allclose(bent[1][generic], difference[generic], rtol=1e-7, atol=1e-7)


@polyhedral
def test_restrict_is_a_projector(member: Member):
    points, directions, cotangents = arrays()
    at = prox(member.penalty, points)
    inside = restrict(member.penalty, at, directions)
    np.testing.assert_allclose(restrict(member.penalty, at, inside), inside, rtol=1e-14, atol=1e-15)
    other = restrict(member.penalty, at, cotangents)
    np.testing.assert_allclose(np.vdot(inside, cotangents), np.vdot(directions, other), rtol=1e-12)


@polyhedral
def test_restrict_is_the_jvp_of_prox_without_the_curvature(member: Member):
    points, directions, _ = arrays()
    at = prox(member.penalty, points)
    pushed = push(member.penalty, points, still(member.penalty), directions)
    shrink = 1 + STEPSIZE * jax.vmap(member.penalty.curvature)(at)
    np.testing.assert_allclose(restrict(member.penalty, at, directions), shrink * pushed, rtol=1e-12, atol=1e-14)
    # A row of the simplex with one nonzero is free in name, but its sum holds it.
    free = jax.vmap(member.penalty.support)(at)
    assert free.dtype == bool
    np.testing.assert_array_equal(np.asarray(pushed)[~np.asarray(free)], 0)
    assert np.any(free)
    assert not np.all(free)
    np.testing.assert_array_equal(restrict(member.penalty, at, jnp.where(free, 0, directions)), 0)
