"""A penalty for each block of the unknown."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree, Scalar, ScalarLike

from bilevel.core import tree
from bilevel.core.requirements import Requirement
from bilevel.prox.base import AbstractPenalty, AbstractPolyhedralPenalty


# A sum over blocks has the prox of each term in its own block, and lies on a face where every term does.
class AbstractBlockSeparable(AbstractPenalty):
    """g(y) = Σ over blocks b of g_b(y_b), with prox (prox g_b)(y_b) block by block."""

    blocks: PyTree[AbstractPenalty | None]

    def requirements(self) -> list[Requirement]:
        return [r for block in _leaves(self.blocks) if block is not None for r in block.requirements()]

    def value(self, params: PyTree) -> Scalar:
        values = [g.value(y) for g, y in self._pairs(params)[0] if g is not None]
        return sum(values, jnp.zeros((), tree.dtype(params)))

    def prox(self, params: PyTree, stepsize: ScalarLike) -> PyTree:
        return self._map(lambda g, y: g.prox(y, stepsize), lambda y: y, params)

    def margin(self, params: PyTree, stepsize: ScalarLike) -> PyTree:
        nowhere = lambda y: jax.tree.map(lambda x: jnp.full_like(x, jnp.inf), y)
        return self._map(lambda g, y: g.margin(y, stepsize), nowhere, params)

    def _map(self, penalized: Any, free: Any, *trees: PyTree) -> PyTree:
        """`penalized(g_b, *the blocks of the trees)` for every block, `free(*blocks)` for those without penalty."""
        groups, structure = self._pairs(*trees)
        return structure.unflatten([free(*y) if g is None else penalized(g, *y) for g, *y in groups])

    def _pairs(self, *trees: PyTree) -> tuple[list[tuple], Any]:
        structure = jax.tree.structure(self.blocks, is_leaf=_is_block)
        try:
            split = [structure.flatten_up_to(tree) for tree in trees]
        except ValueError as error:
            raise ValueError(
                f"`blocks` must be a tree prefix of the unknown: got {structure}, but the unknown is "
                f"{jax.tree.structure(trees[0])}."
            ) from error
        return list(zip(_leaves(self.blocks), *split, strict=True)), structure


class BlockSeparable(AbstractBlockSeparable):
    """g(y) = Σ over blocks b of g_b(y_b): to every block of the unknown a penalty of its own, or None.

    `blocks` is a tree prefix of `params`: `BlockSeparable({"codes": L1(1.0), "dictionary": UnitBall()})`. Some of the
    penalties may be curved; where all are polyhedral, prefer `PolyhedralBlockSeparable`, which knows the faces.
    """

    def __check_init__(self):
        _check(self.blocks, AbstractPenalty, "a penalty such as bilevel.prox.L1(0.1), or None")


class PolyhedralBlockSeparable(AbstractBlockSeparable, AbstractPolyhedralPenalty):
    """`BlockSeparable` of polyhedral penalties only: its faces are products of theirs.

    So implicit differentiation restricts the Hessian to the support, which is symmetric, instead of linearizing the
    proximal fixed point.
    """

    def __check_init__(self):
        wanted = "a polyhedral penalty such as bilevel.prox.L1(0.1), or None (BlockSeparable takes curved ones)"
        _check(self.blocks, AbstractPolyhedralPenalty, wanted)

    def support(self, params: PyTree) -> PyTree:
        everything = lambda y: jax.tree.map(lambda x: jnp.ones_like(x, bool), y)
        return self._map(lambda g, y: g.support(y), everything, params)

    def restrict(self, params: PyTree, direction: PyTree) -> PyTree:
        return self._map(lambda g, y, d: g.restrict(y, d), lambda y, d: d, params, direction)

    def curvature(self, params: PyTree) -> PyTree:
        return self._map(lambda g, y: g.curvature(y), lambda y: jax.tree.map(jnp.zeros_like, y), params)


def block_separable(blocks: PyTree[AbstractPenalty | None]) -> BlockSeparable | PolyhedralBlockSeparable:
    """`PolyhedralBlockSeparable` where every penalty of `blocks` is polyhedral, else `BlockSeparable`."""
    polyhedral = all(g is None or isinstance(g, AbstractPolyhedralPenalty) for g in _leaves(blocks))
    return PolyhedralBlockSeparable(blocks) if polyhedral else BlockSeparable(blocks)


def _is_block(x: Any) -> bool:
    return x is None or isinstance(x, AbstractPenalty)


def _leaves(blocks: PyTree) -> list:
    return jax.tree.leaves(blocks, is_leaf=_is_block)


def _check(blocks: PyTree, kind: type, wanted: str) -> None:
    for block in _leaves(blocks):
        if not (block is None or isinstance(block, kind)):
            raise ValueError(f"`blocks` must have at every leaf {wanted}; got {type(block).__name__}.")
