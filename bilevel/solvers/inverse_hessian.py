"""The estimate of the inverse Hessian that limited-memory BFGS leaves behind."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree, Scalar

from bilevel.core import tree


class InverseHessian(eqx.Module):
    """B ≈ ∇²f⁻¹, symmetric and positive definite, from m pairs  sᵢ = yᵢ₊₁ − yᵢ,  zᵢ = ∇f(yᵢ₊₁) − ∇f(yᵢ),  old to new:

        B₀ = γ I,     Bᵢ₊₁ = (I − ρᵢ sᵢ zᵢᵀ) Bᵢ (I − ρᵢ zᵢ sᵢᵀ) + ρᵢ sᵢ sᵢᵀ,     ρᵢ = 1 / sᵢᵀzᵢ.

    So B z = s for the last pair. A pair with ρ = 0 is none.

    **Attributes:**

    - `moves`, `changes`: sᵢ and zᵢ, a pytree like the unknown, with an axis for i before the others.
    - `rho`, `gamma`: ρᵢ and γ.

    !!! cite
        J. Nocedal, S. Wright: Numerical Optimization, 2nd edition, algorithm 7.4. 2006.
    """

    moves: PyTree
    changes: PyTree
    rho: Float[Array, " pairs"]
    gamma: Scalar

    @classmethod
    def from_circle(
        cls, moves: PyTree, changes: PyTree, gamma: Scalar, oldest: Int[Array, ""], scale: Scalar
    ) -> "InverseHessian":
        """From circular buffers for f / scale; pairs that curve upward by no more than rounding are left out."""
        in_order = lambda t: jax.tree.map(lambda x: jnp.roll(x, -oldest, axis=0), t)
        moves, changes = in_order(moves), tree.scale(scale, in_order(changes))
        products = jax.vmap(optax.tree.vdot)(moves, changes)
        lengths = jax.vmap(optax.tree.norm)(moves) * jax.vmap(optax.tree.norm)(changes)
        good = products > float(jnp.finfo(gamma.dtype).eps) * lengths
        rho = jnp.where(good, 1 / jnp.where(good, products, 1), 0)
        return cls(moves, changes, rho, gamma / scale)

    # With qᵢ = (I − ρᵢ zᵢ sᵢᵀ) qᵢ₊₁ from new to old and αᵢ = ρᵢ sᵢᵀqᵢ₊₁ on the way, q₀ meets B₀; from old to new,
    # rᵢ₊₁ = (I − ρᵢ sᵢ zᵢᵀ) rᵢ + αᵢ sᵢ.
    def mv(self, vector: PyTree) -> PyTree:
        """B vector."""
        pairs = (self.moves, self.changes, self.rho)

        def newer_to_older(q: PyTree, pair: tuple[PyTree, PyTree, Scalar]) -> tuple[PyTree, Scalar]:
            s, z, rho = pair
            alpha = rho * optax.tree.vdot(s, q)
            return optax.tree.add_scale(q, -alpha, z), alpha

        def older_to_newer(r: PyTree, pair: tuple[tuple[PyTree, PyTree, Scalar], Scalar]) -> tuple[PyTree, None]:
            (s, z, rho), alpha = pair
            return optax.tree.add_scale(r, alpha - rho * optax.tree.vdot(z, r), s), None

        q, alphas = jax.lax.scan(newer_to_older, vector, pairs, reverse=True)
        return jax.lax.scan(older_to_newer, tree.scale(self.gamma, q), (pairs, alphas))[0]
