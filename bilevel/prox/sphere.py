"""Vectors of bounded or of unit length: each row by itself, or the whole leaf."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, ScalarLike

from bilevel.core.requirements import Requirement
from bilevel.prox.base import AbstractConstraint, polar

# Optax's projections take the whole tree as one vector, have derivative ½ on the boundary of the ball and NaN at the
# center of the sphere; these act per row, with one rule at every kink.


class UnitBall(AbstractConstraint):
    """‖y‖₂ ≤ 1, for each row (`axis=-1`), along another axis, or for the whole leaf (`axis=None`).

    On the boundary the derivative is that of the boundary: tangent directions pass, the radial one does not.
    """

    axis: int | None = eqx.field(static=True, default=-1)

    def requirements(self) -> list[Requirement]:
        return []

    def project(self, params: PyTree) -> PyTree:
        def of_leaf(x: Array) -> Array:
            direction, norm = polar(x, self.axis)
            return jnp.where(norm >= 1, direction, x)

        return jax.tree.map(of_leaf, params)

    def margin(self, params: PyTree, stepsize: ScalarLike) -> PyTree:
        del stepsize
        return jax.tree.map(lambda x: jnp.abs(polar(x, self.axis)[1] - 1), params)


class UnitSphere(AbstractConstraint):
    """‖y‖₂ = 1, for each row (`axis=-1`), along another axis, or for the whole leaf (`axis=None`). Not convex.

    The zero vector has no nearest point; it goes to the first coordinate vector, with derivative 0.
    """

    axis: int | None = eqx.field(static=True, default=-1)

    def requirements(self) -> list[Requirement]:
        return []

    def project(self, params: PyTree) -> PyTree:
        def of_leaf(x: Array) -> Array:
            direction, norm = polar(x, self.axis)
            if self.axis is None:
                index = jnp.arange(x.size).reshape(x.shape)
            else:
                index = jax.lax.broadcasted_iota(int, x.shape, self.axis % x.ndim)
            return jnp.where(norm == 0, (index == 0).astype(x.dtype), direction)

        return jax.tree.map(of_leaf, params)

    def margin(self, params: PyTree, stepsize: ScalarLike) -> PyTree:
        """The distance from 0, the only kink."""
        del stepsize
        return jax.tree.map(lambda x: polar(x, self.axis)[1], params)
