"""Weights that are not negative and sum to a given total."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Scalar, ScalarLike

from bilevel.core.requirements import Requirement, as_float_array, positive
from bilevel.prox.base import AbstractConstraint, AbstractPolyhedralPenalty


def _number(total: Any) -> Array:
    return as_float_array("total", total, ndim=0)


class Simplex(AbstractConstraint, AbstractPolyhedralPenalty):
    """{y : y ≥ 0, Σ y = total}, for each row (`axis=-1`), along another axis, or for the whole leaf (`axis=None`).

    The directions of a face are those which leave the zeros alone and sum to zero over the rest.

    !!! cite
        J. Duchi, S. Shalev-Shwartz, Y. Singer, T. Chandra: Efficient projections onto the l1-ball for learning in high
        dimensions. 2008.
    """

    total: Scalar = eqx.field(converter=_number, default=1.0)
    axis: int | None = eqx.field(static=True, default=-1)

    def requirements(self) -> list[Requirement]:
        return [positive("total", self.total)]

    def project(self, params: PyTree) -> PyTree:
        return jax.tree.map(self._project_leaf, params)

    def _project_leaf(self, x: Array) -> Array:
        if self.axis is None:
            return self._project_vector(x.reshape(-1)).reshape(x.shape)
        return jnp.apply_along_axis(self._project_vector, self.axis, x)

    def _project_vector(self, x: Array) -> Array:
        # Optax's projection of a vector loses `total` to rounding where entries are much larger, and cannot be
        # differentiated under strict promotion. A shift changes nothing, and what is `total` below the largest is 0.
        total = self.total.astype(x.dtype)
        x = jnp.maximum(x - jax.lax.stop_gradient(jnp.max(x)), -total)
        rests = x <= _threshold(jax.lax.stop_gradient(x), jax.lax.stop_gradient(total))
        # With the resting entries known, τ is linear in the others: more exact, and with the right derivative.
        free_sum, count = jnp.sum(jnp.where(rests, 0, x)), jnp.sum(~rests).astype(x.dtype)
        projected = x - (free_sum - total) / count
        return jnp.where(rests | (projected <= 0), 0, projected)

    def margin(self, params: PyTree, stepsize: ScalarLike) -> PyTree:
        """Of the projection max(x − τ, 0), the distance |x − τ| from the threshold, itself moving with the others."""
        del stepsize

        def of_leaf(x: Array, projected: Array) -> Array:
            free = projected > 0
            count = jnp.sum(free, axis=self.axis, keepdims=True).astype(x.dtype)
            excess = jnp.sum(jnp.where(free, x - projected, 0), axis=self.axis, keepdims=True)
            return jnp.abs(x - excess / count)

        return jax.tree.map(of_leaf, params, self.project(params))

    def support(self, params: PyTree) -> PyTree:
        return jax.tree.map(lambda x: x > 0, params)

    def restrict(self, params: PyTree, direction: PyTree) -> PyTree:
        def of_leaf(free: Array, d: Array) -> Array:
            d = jnp.where(free, d, 0)
            count = jnp.maximum(jnp.sum(free, axis=self.axis, keepdims=True), 1).astype(d.dtype)
            return jnp.where(free, d - jnp.sum(d, axis=self.axis, keepdims=True) / count, 0)

        return jax.tree.map(of_leaf, self.support(params), direction)


# The projection is max(x − τ, 0) with φ(τ) = Σ max(x − τ, 0) = total. φ is convex, decreasing and piecewise linear, so
# Newton's steps from any τ with φ(τ) ≥ total rise to the root, which they reach exactly once no entry changes sides: a
# few passes over the entries, where sorting them costs more than ten.
def _threshold(x: Array, total: Array) -> Array:
    """τ, for a vector x with max x = 0."""

    def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        threshold, count, _ = state
        above = x > threshold
        new = jnp.sum(above)
        root = (jnp.sum(jnp.where(above, x, 0)) - total) / jnp.maximum(new, 1).astype(x.dtype)
        # Entries can only go to rest, also where rounding lowers the root. NaN ends it, too.
        return jnp.maximum(threshold, root), new, new < count

    start = jnp.maximum(-total, (jnp.sum(x) - total) / x.size)
    state = (start, jnp.asarray(x.size + 1), jnp.asarray(True))
    return jax.lax.while_loop(lambda state: state[2], step, state)[0]
