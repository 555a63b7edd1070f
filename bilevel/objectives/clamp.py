"""The L1 + L2 clamp problem: a nonsmooth problem solved by a formula, with kinks where they can be seen."""

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Scalar

from bilevel.core.requirements import Requirement, as_float_array, finite, positive
from bilevel.objectives.base import AbstractExactObjective
from bilevel.prox import ShiftedL1


class Clamp(AbstractExactObjective):
    """min over z of  ‖z − z₀‖₁ + μ ‖z − c‖²,  whose solution is z₀ clamped to c ± 1/(2μ).

    With ∂‖z − z₀‖₁ = sign, a coordinate above z₀ solves 1 + 2μ(z − c) = 0, one below it −1 + 2μ(z − c) = 0, and one
    at z₀ stays while |2μ(z₀ − c)| ≤ 1. The derivatives are those of the clamp: dz = dz₀ inside the interval, on its
    ends dz = dc ∓ dμ/(2μ²); at a kink, where the two meet, the coordinate rests at z₀.

    Takes no data: `bl.argmin(Clamp(z0, mu=0.1))`.
    """

    z0: Float[Array, "..."]
    mu: Scalar
    c: Scalar

    def __init__(self, z0: ArrayLike, mu: ArrayLike, c: ArrayLike = 1.0):
        self.z0 = as_float_array("z0", z0)
        self.mu = as_float_array("mu", mu, ndim=0).astype(self.z0.dtype)
        self.c = as_float_array("c", c, ndim=0).astype(self.z0.dtype)

    def check_data(self, data: None = None) -> None:
        if data is not None:
            raise ValueError(f"`data` must be None for Clamp, which has all in its leaves; got {type(data).__name__}.")

    def requirements(self) -> list[Requirement]:
        return [finite("z0", self.z0), positive("mu", self.mu), finite("c", self.c)]

    def fit(self, params: Float[Array, "..."]) -> Scalar:
        """‖z − z₀‖₁."""
        return jnp.sum(jnp.abs(params - self.z0))

    def smooth(self, params: Float[Array, "..."], data: None = None) -> Scalar:
        """The regularizer μ ‖z − c‖²."""
        return self.mu * jnp.sum((params - self.c) ** 2)

    def penalty(self) -> ShiftedL1:
        return ShiftedL1(self.z0)

    def init(self, data: None = None) -> Float[Array, "..."]:
        return jnp.zeros_like(self.z0)

    def lipschitz(self, data: None = None) -> Scalar:
        return 2 * self.mu

    def minimizer(self, data: None = None) -> Float[Array, "..."]:
        radius = 1 / (2 * self.mu)
        lower, upper = self.c - radius, self.c + radius
        return jnp.where(self.z0 < lower, lower, jnp.where(self.z0 > upper, upper, self.z0))
