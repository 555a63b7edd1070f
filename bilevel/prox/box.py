"""Bounds on each coordinate."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, PyTree, ScalarLike

from bilevel.core import tree
from bilevel.core.requirements import Requirement, ordered
from bilevel.prox.base import AbstractConstraint, AbstractPolyhedralPenalty


class Box(AbstractConstraint, AbstractPolyhedralPenalty):
    """lower ≤ y ≤ upper, coordinate by coordinate; a bound may be infinite.

    A coordinate on its bound rests there and moves with the bound. (`jnp.clip` has derivative ½ at a tie.)
    """

    lower: PyTree[ArrayLike] = eqx.field(converter=tree.float_arrays, default=0.0)
    upper: PyTree[ArrayLike] = eqx.field(converter=tree.float_arrays, default=1.0)

    def requirements(self) -> list[Requirement]:
        # One of the two may be a tree prefix of the other.
        finer = max(self.lower, self.upper, key=lambda bound: len(jax.tree.leaves(bound)))
        lower, upper = (jax.tree.leaves(jax.tree.broadcast(bound, finer)) for bound in (self.lower, self.upper))
        return [ordered("lower", low, "upper", high) for low, high in zip(lower, upper, strict=True)]

    def project(self, params: PyTree) -> PyTree:
        def of_leaf(x: Array, lower: Array, upper: Array) -> Array:
            return jnp.where(x <= lower, lower, jnp.where(x >= upper, upper, x))

        return jax.tree.map(of_leaf, params, *self._bounds(params))

    def margin(self, params: PyTree, stepsize: ScalarLike) -> PyTree:
        del stepsize
        distance = lambda x, lower, upper: jnp.minimum(jnp.abs(x - lower), jnp.abs(x - upper))
        return jax.tree.map(distance, params, *self._bounds(params))

    def support(self, params: PyTree) -> PyTree:
        return jax.tree.map(lambda x, lower, upper: (lower < x) & (x < upper), params, *self._bounds(params))

    def _bounds(self, params: PyTree) -> tuple[PyTree, PyTree]:
        return tree.broadcast("lower", self.lower, params), tree.broadcast("upper", self.upper, params)


class NonNegative(AbstractConstraint, AbstractPolyhedralPenalty):
    """y ≥ 0. A coordinate at 0 rests."""

    def requirements(self) -> list[Requirement]:
        return []

    def project(self, params: PyTree) -> PyTree:
        return optax.projections.projection_non_negative(params)

    def margin(self, params: PyTree, stepsize: ScalarLike) -> PyTree:
        del stepsize
        return jax.tree.map(jnp.abs, params)

    def support(self, params: PyTree) -> PyTree:
        return jax.tree.map(lambda x: x > 0, params)
