"""A penalty for each block: in each block it is that block's own."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.prox import L1, AbstractPolyhedralPenalty, Box, ElasticNet, GroupL1, Simplex, UnitBall
from tests.compiling import compiled

P = bl.prox
_rng = np.random.default_rng(0)
Y = {
    "a": jnp.asarray(_rng.normal(size=(3, 4))),
    "b": (jnp.asarray(2 * _rng.normal(size=5)), jnp.ones(2)),
    "c": jnp.ones(2),
}
FLAT = {"a": ElasticNet(0.3, 0.7), "b": Simplex(2.0), "c": None}
CURVED = {"a": UnitBall(), "b": (Box(-0.5, 0.5), L1(0.2)), "c": GroupL1(0.1)}


def of(penalty, y):
    return penalty.value(y), penalty.prox(y, 0.5), penalty.margin(y, 0.5)


everything = compiled(of)


def same(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-14), a, b)


@pytest.mark.parametrize("blocks", [FLAT, CURVED], ids=["polyhedral", "curved"])
def test_each_block_has_its_own(blocks):
    y = P.block_separable(blocks).prox(Y, 0.5)
    value, moved, margin = everything(P.block_separable(blocks), y)
    parts = [(g, block) for g, block in _pairs(blocks, y) if g is not None]
    same(value, sum(g.value(block) for g, block in parts))
    for (g, block), out, distance in zip(
        _pairs(blocks, y), _blocks(blocks, moved), _blocks(blocks, margin), strict=True
    ):
        same(out, block if g is None else g.prox(block, 0.5))
        same(distance, jnp.full_like(block, jnp.inf) if g is None else g.margin(block, 0.5))


def _blocks(blocks, tree):
    structure = jax.tree.structure(blocks, is_leaf=lambda x: x is None or isinstance(x, P.AbstractPenalty))
    return structure.flatten_up_to(tree)


def _pairs(blocks, tree):
    return list(zip(_blocks(blocks, blocks), _blocks(blocks, tree), strict=True))


def test_it_is_polyhedral_where_all_of_it_is():
    assert type(P.block_separable(FLAT)) is P.PolyhedralBlockSeparable
    assert isinstance(P.block_separable(FLAT), AbstractPolyhedralPenalty)
    assert type(P.block_separable(CURVED)) is P.BlockSeparable
    assert not isinstance(P.block_separable(CURVED), AbstractPolyhedralPenalty)
    assert type(P.block_separable((None, L1()))) is P.PolyhedralBlockSeparable


def test_faces_are_products_of_faces():
    penalty = P.block_separable(FLAT)
    at = penalty.prox(Y, 0.5)
    direction = jax.tree.map(lambda x: jnp.asarray(_rng.normal(size=x.shape)), at)
    support, inside, curvature = compiled(lambda g, y, d: (g.support(y), g.restrict(y, d), g.curvature(y)))(
        penalty, at, direction
    )
    np.testing.assert_array_equal(support["a"], at["a"] != 0)
    np.testing.assert_array_equal(inside["a"], np.where(at["a"] != 0, direction["a"], 0))
    np.testing.assert_array_equal(curvature["a"], 0.7)
    for y, d in zip(at["b"], inside["b"], strict=True):
        assert abs(np.sum(d)) < 1e-14
        np.testing.assert_array_equal(d[np.asarray(y) == 0], 0)
    assert np.all(support["c"])
    same(inside["c"], direction["c"])
    same(curvature["c"], jnp.zeros(2))


def test_a_module_may_be_the_unknown():
    class Factors(eqx.Module):
        left: object
        right: object

    moved = P.block_separable(Factors(L1(10.0), None)).prox(Factors(jnp.ones(2), jnp.ones(3)), 1.0)
    same(moved, Factors(jnp.zeros(2), jnp.ones(3)))


def test_numbers_of_the_blocks_can_be_differentiated():
    total = lambda l1: jnp.sum(P.block_separable((L1(l1), UnitBall())).prox((jnp.ones(3), jnp.ones((2, 2))), 0.5)[0])
    assert jax.grad(total)(0.4) == pytest.approx(-1.5)


def test_keeps_32_bits():
    single = jax.tree.map(lambda x: x.astype(jnp.float32), Y)
    out = eqx.filter_eval_shape(of, P.block_separable(CURVED), single)
    assert {x.dtype for x in jax.tree.leaves(out)} == {jnp.dtype(jnp.float32)}


def test_bad_blocks_are_named():
    with pytest.raises(ValueError, match=r"`blocks` must have at every leaf a penalty .* got float"):
        P.BlockSeparable({"a": 0.3})
    with pytest.raises(ValueError, match=r"a polyhedral penalty .* got UnitBall"):
        P.PolyhedralBlockSeparable((L1(), UnitBall()))
    with pytest.raises(ValueError, match="`blocks` must be a tree prefix of the unknown"):
        P.block_separable({"a": L1()}).prox({"b": jnp.ones(2)}, 1.0)
    with pytest.raises(ValueError, match="`strength` must be finite and not negative"):
        P.block_separable((L1(-1.0), None))
