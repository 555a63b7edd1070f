"""Penalties that act on each coordinate by itself and put some of them to rest: L1, shifted L1, elastic net."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, PyTree, Scalar, ScalarLike

from bilevel.core import tree
from bilevel.core.requirements import Requirement, finite, nonnegative
from bilevel.prox.base import AbstractPolyhedralPenalty, AbstractSparsePenalty


class L1(AbstractPolyhedralPenalty, AbstractSparsePenalty):
    """g(y) = Σ strength · |y|, with prox the soft threshold sign(y) max(|y| − stepsize · strength, 0).

    !!! cite
        I. Daubechies, M. Defrise, C. De Mol: An iterative thresholding algorithm for linear inverse problems with a
        sparsity constraint. 2004.
    """

    strength: PyTree[ArrayLike] = eqx.field(converter=tree.float_arrays, default=1.0)

    def requirements(self) -> list[Requirement]:
        return [nonnegative("strength", s) for s in jax.tree.leaves(self.strength)]

    def value(self, params: PyTree) -> Scalar:
        return _weighted_sum(self.strength, jax.tree.map(jnp.abs, params))

    def prox(self, params: PyTree, stepsize: ScalarLike) -> PyTree:
        return _soft_threshold(params, self.strength, stepsize)

    def margin(self, params: PyTree, stepsize: ScalarLike) -> PyTree:
        return _margin_of_l1(params, self.strength, stepsize, "strength")

    def support(self, params: PyTree) -> PyTree:
        return _support_of_l1(self.strength, params)

    def critical_strength(self, gradient_at_zero: PyTree) -> Scalar:
        """‖∇f(0)‖_∞."""
        return tree.max_abs(gradient_at_zero)


class ShiftedL1(AbstractPolyhedralPenalty):
    """g(y) = Σ strength · |y − shift|: coordinates come to rest at `shift` instead of at 0.

    Where a coordinate rests it moves with `shift`, and the derivative of `prox` says so.
    """

    shift: PyTree[ArrayLike] = eqx.field(converter=tree.float_arrays)
    strength: PyTree[ArrayLike] = eqx.field(converter=tree.float_arrays, default=1.0)

    def requirements(self) -> list[Requirement]:
        shifts = [finite("shift", s) for s in jax.tree.leaves(self.shift)]
        return shifts + [nonnegative("strength", s) for s in jax.tree.leaves(self.strength)]

    def _from_shift(self, params: PyTree) -> PyTree:
        return jax.tree.map(jnp.subtract, params, tree.broadcast("shift", self.shift, params))

    def value(self, params: PyTree) -> Scalar:
        return _weighted_sum(self.strength, jax.tree.map(jnp.abs, self._from_shift(params)))

    def prox(self, params: PyTree, stepsize: ScalarLike) -> PyTree:
        # `shift` where the coordinate rests, exactly: shift + 0 and not shift + (x − shift) − ….
        moved = _soft_threshold(self._from_shift(params), self.strength, stepsize)
        return jax.tree.map(jnp.add, tree.broadcast("shift", self.shift, params), moved)

    def margin(self, params: PyTree, stepsize: ScalarLike) -> PyTree:
        return _margin_of_l1(self._from_shift(params), self.strength, stepsize, "strength")

    def support(self, params: PyTree) -> PyTree:
        return _support_of_l1(self.strength, self._from_shift(params))


class ElasticNet(AbstractPolyhedralPenalty, AbstractSparsePenalty):
    """g(y) = Σ l1 |y| + ½ l2 y², with prox the soft threshold by stepsize · l1, divided by 1 + stepsize · l2.

    !!! cite
        H. Zou, T. Hastie: Regularization and variable selection via the elastic net. 2005.
    """

    l1: PyTree[ArrayLike] = eqx.field(converter=tree.float_arrays, default=1.0)
    l2: PyTree[ArrayLike] = eqx.field(converter=tree.float_arrays, default=1.0)

    def requirements(self) -> list[Requirement]:
        first = [nonnegative("l1", s) for s in jax.tree.leaves(self.l1)]
        return first + [nonnegative("l2", s) for s in jax.tree.leaves(self.l2)]

    def value(self, params: PyTree) -> Scalar:
        absolute, squares = jax.tree.map(jnp.abs, params), jax.tree.map(jnp.square, params)
        return _weighted_sum(self.l1, absolute) + 0.5 * _weighted_sum(self.l2, squares)

    def prox(self, params: PyTree, stepsize: ScalarLike) -> PyTree:
        shrink = lambda x, l2: x / (1 + jnp.asarray(stepsize).astype(x.dtype) * l2)
        moved = _soft_threshold(params, self.l1, stepsize, "l1")
        return jax.tree.map(shrink, moved, tree.broadcast("l2", self.l2, params))

    def margin(self, params: PyTree, stepsize: ScalarLike) -> PyTree:
        return _margin_of_l1(params, self.l1, stepsize, "l1")

    def support(self, params: PyTree) -> PyTree:
        return _support_of_l1(self.l1, params)

    def curvature(self, params: PyTree) -> PyTree:
        return tree.broadcast("l2", self.l2, params)

    def critical_strength(self, gradient_at_zero: PyTree) -> Scalar:
        """‖∇f(0)‖_∞, for l1, whatever l2."""
        return tree.max_abs(gradient_at_zero)


def _soft_threshold(params: PyTree, strength: PyTree, stepsize: ScalarLike, name: str = "strength") -> PyTree:
    def of_leaf(x: Array, strength: Array) -> Array:
        threshold = jnp.asarray(stepsize).astype(x.dtype) * strength
        # With a threshold of 0 a zero moves freely: the identity, with its derivative.
        rests = (jnp.abs(x) <= threshold) & (threshold > 0)
        return jnp.where(rests, 0, x - threshold * jnp.sign(x))

    return jax.tree.map(of_leaf, params, tree.broadcast(name, strength, params))


def _margin_of_l1(params: PyTree, strength: PyTree, stepsize: ScalarLike, name: str) -> PyTree:
    def of_leaf(x: Array, strength: Array) -> Array:
        threshold = jnp.asarray(stepsize).astype(x.dtype) * strength
        return jnp.where(threshold > 0, jnp.abs(jnp.abs(x) - threshold), jnp.inf)

    return jax.tree.map(of_leaf, params, tree.broadcast(name, strength, params))


def _support_of_l1(strength: PyTree, params: PyTree) -> PyTree:
    return jax.tree.map(lambda s, x: (x != 0) | (s == 0), tree.broadcast("strength", strength, params), params)


def _weighted_sum(weights: PyTree, params: PyTree) -> Scalar:
    return jnp.asarray(optax.tree.sum(jax.tree.map(jnp.multiply, tree.broadcast("strength", weights, params), params)))
