"""Groups of coordinates that come to rest together."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, PyTree, Scalar, ScalarLike

from bilevel.core import tree
from bilevel.core.requirements import Requirement, nonnegative
from bilevel.prox.base import AbstractSparsePenalty, polar


class GroupL1(AbstractSparsePenalty):
    """g(y) = strength · Σ over groups ‖y_group‖₂, with prox y · max(1 − stepsize · strength / ‖y‖, 0) per group.

    A group is a row (`axis=-1`), another axis, or the whole leaf (`axis=None`); the strength is a number, or one for
    each group. The norm is curved, so implicit differentiation linearizes the proximal fixed point instead of
    restricting a Hessian.

    !!! cite
        M. Yuan, Y. Lin: Model selection and estimation in regression with grouped variables. 2006.
    """

    strength: PyTree[ArrayLike] = eqx.field(converter=tree.float_arrays, default=1.0)
    axis: int | None = eqx.field(static=True, default=-1)

    def requirements(self) -> list[Requirement]:
        return [nonnegative("strength", s) for s in jax.tree.leaves(self.strength)]

    def value(self, params: PyTree) -> Scalar:
        norms = self._norms(params)
        strengths = tree.broadcast("strength", self.strength, norms)
        return jnp.asarray(optax.tree.sum(jax.tree.map(jnp.multiply, strengths, norms)))

    def prox(self, params: PyTree, stepsize: ScalarLike) -> PyTree:
        def of_leaf(x: Array, strength: Array) -> Array:
            threshold = jnp.asarray(stepsize).astype(x.dtype) * strength
            direction, norm = polar(x, self.axis)
            # The soft threshold, with the direction in place of the sign.
            rests = (norm <= threshold) & (threshold > 0)
            return jnp.where(rests, 0, x - threshold * direction)

        return jax.tree.map(of_leaf, params, tree.broadcast("strength", self.strength, self._norms(params)))

    def margin(self, params: PyTree, stepsize: ScalarLike) -> PyTree:
        def of_leaf(norm: Array, strength: Array) -> Array:
            threshold = jnp.asarray(stepsize).astype(norm.dtype) * strength
            return jnp.where(threshold > 0, jnp.abs(norm - threshold), jnp.inf)

        norms = self._norms(params)
        return jax.tree.map(of_leaf, norms, tree.broadcast("strength", self.strength, norms))

    def critical_strength(self, gradient_at_zero: PyTree) -> Scalar:
        """The largest ‖∇f(0)‖₂ of a group."""
        return tree.max_abs(self._norms(gradient_at_zero))

    def _norms(self, params: PyTree) -> PyTree:
        return jax.tree.map(lambda x: polar(x, self.axis)[1], params)
