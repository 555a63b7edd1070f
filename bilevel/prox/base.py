"""The contracts of penalties and constraints: functions g that know their own geometry."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Scalar, ScalarLike

from bilevel.core import tree
from bilevel.core.requirements import Requirement, raise_where_violated


class AbstractPenalty(eqx.Module):
    """A function g, possibly nonsmooth, with a proximal operator.

    Works leaf by leaf on any pytree. A strength may be a number or a tree prefix of `params`, with arrays that
    broadcast to the leaves: `L1((0.1, 0.0))` penalizes the first of two blocks only.

    At a kink the derivative of `prox` is that of the side on which the output **rests**: at a tie |x| = strength
    the soft threshold has derivative 0, on the boundary of a set the projection has the derivative of the boundary.
    It is never NaN, unless `params` is.
    """

    def __check_init__(self):
        raise_where_violated(self.requirements())

    @abc.abstractmethod
    def requirements(self) -> list[Requirement]:
        """Conditions on the penalty's own numbers."""

    @abc.abstractmethod
    def value(self, params: PyTree) -> Scalar:
        """g(params)."""

    @abc.abstractmethod
    def prox(self, params: PyTree, stepsize: ScalarLike) -> PyTree:
        """argmin over y of  ½‖y − params‖² + stepsize · g(y)."""

    @abc.abstractmethod
    def margin(self, params: PyTree, stepsize: ScalarLike) -> PyTree:
        """How far each coordinate of `params`, or group of them (axes kept), is from the nearest kink of `prox`.

        Within that distance the support of `prox(params)` does not change.
        """


class AbstractPolyhedralPenalty(AbstractPenalty):
    """A penalty whose epigraph is a polyhedron, plus possibly a quadratic.

    Near a solution that is not degenerate, `params` moves within one face of the polyhedron. The derivative of the
    prox there is Π / (1 + stepsize κ), with Π the orthogonal projection on the directions of the face and κ the
    curvature of the quadratic; that is all which implicit differentiation has to know.
    """

    @abc.abstractmethod
    def support(self, params: PyTree) -> PyTree:
        """True for the coordinates which are free to move."""

    def restrict(self, params: PyTree, direction: PyTree) -> PyTree:
        """Π direction: the orthogonal projection on the directions in which `params` can move within its face."""
        return jax.tree.map(lambda s, d: jnp.where(s, d, 0), self.support(params), direction)

    def curvature(self, params: PyTree) -> PyTree:
        """κ, the second derivative of g within the face, coordinate by coordinate."""
        return jax.tree.map(jnp.zeros_like, params)


class AbstractConstraint(AbstractPenalty):
    """The indicator of a set: 0 inside, infinite outside. Its prox is the projection, whatever the step."""

    @abc.abstractmethod
    def project(self, params: PyTree) -> PyTree:
        """The nearest point of the set."""

    def prox(self, params: PyTree, stepsize: ScalarLike = 1.0) -> PyTree:
        del stepsize
        return self.project(params)

    def value(self, params: PyTree) -> Scalar:
        """0 where `params` is in the set up to rounding (√ε relative), else infinity."""
        params = jax.lax.stop_gradient(params)
        gap = tree.max_abs(jax.tree.map(jnp.subtract, params, self.project(params)))
        room = jnp.sqrt(jnp.finfo(gap.dtype).eps) * tree.max_abs(params)
        return jnp.where(gap <= room, 0.0, jnp.inf).astype(gap.dtype)


class AbstractSparsePenalty(AbstractPenalty):
    """A penalty that makes zeros, and knows from which strength on all is zero."""

    @abc.abstractmethod
    def critical_strength(self, gradient_at_zero: PyTree) -> Scalar:
        """The smallest strength at which 0 is a solution, given ∇f(0)."""


def polar(x: Array, axis: int | None) -> tuple[Array, Array]:
    """(u, ‖x‖₂) with x = ‖x‖ u, along `axis` (of all of x for None), axes kept; u = 0 at x = 0.

    ‖x‖ = m ‖x / m‖ for every m > 0, so the scale m = max |x| can be held constant under differentiation of any order.
    With it nothing overflows or underflows, and no derivative is NaN.
    """
    scale = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=axis, keepdims=True, initial=0))
    scaled = x / jnp.where(scale == 0, 1, scale)
    squared = jnp.sum(scaled**2, axis=axis, keepdims=True)
    norm = jnp.sqrt(jnp.where(squared == 0, 1, squared))
    return scaled / norm, jnp.where(squared == 0, 0, scale * norm)
