"""A Hessian that is block-diagonal over samples, each block restricted to its sample's support."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Bool, Float, Scalar

from bilevel.core.operators import AbstractSymmetricOperator, block_widths, cholesky_solve
from bilevel.kernels import on_cpu, solve_samples

#: The most numbers that the blocks of one chunk of samples may take: 2²³ of them are 64 MiB in 64 bits.
CHUNK_SIZE = 2**23


class SampleHessian(AbstractSymmetricOperator):
    """For each sample i, with support S and M the Hessian of its loss in the reconstruction (I for squared error),

        A_i = S (D M_i Dᵀ + l2 I) S + (I − S).

    On CPUs a compiled loop factors one sample's block after the other. Elsewhere each support is gathered into a block
    of the smallest of a few widths that holds the largest support, and the blocks are factored by Cholesky, in chunks
    of samples, so that all blocks together never exceed `CHUNK_SIZE` numbers (one sample's block, if that is larger).
    Either way a sample's accuracy depends on no other sample, and one whose block is singular gets NaN alone.
    """

    dictionary: Float[Array, "atoms features"]
    l2: Scalar
    support: Bool[Array, "samples atoms"]
    data: Float[Array, "samples features"]
    reconstruction: Float[Array, "samples features"] | None
    loss: Callable[[Array, Array], Scalar] | None

    def in_structure(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.support.shape, self.dictionary.dtype)

    def damped(self, ridge: Scalar) -> "SampleHessian":
        return eqx.tree_at(lambda hessian: hessian.l2, self, self.l2 + ridge.astype(self.l2.dtype))

    def blockwise(
        self, solve: Callable[..., Array], *vectors: Float[Array, "samples atoms"]
    ) -> Float[Array, "samples atoms"]:
        def of_sample(vectors: tuple, support: Array, x: Array, reconstruction: Array | None) -> Array:
            support, x, reconstruction = jax.tree.map(lambda array: array[None], (support, x, reconstruction))
            block = SampleHessian(self.dictionary, self.l2, support, x, reconstruction, self.loss)
            apply = lambda v: block.mv(v[None])[0]
            structure = jax.ShapeDtypeStruct(self.support.shape[1:], self.dictionary.dtype)
            return solve(lx.FunctionLinearOperator(apply, structure, lx.positive_semidefinite_tag), *vectors)

        return jax.vmap(of_sample)(vectors, self.support, self.data, self.reconstruction)

    def mv(self, vector: Float[Array, "samples atoms"]) -> Float[Array, "samples atoms"]:
        inside = jnp.where(self.support, vector, 0)
        bent = self._bend(inside @ self.dictionary) @ self.dictionary.T + self.l2 * inside
        return jnp.where(self.support, bent, vector)

    def _bend(self, directions: Float[Array, "samples features"]) -> Float[Array, "samples features"]:
        """M_i · direction_i for each sample."""
        return jax.vmap(self._bend_one)(self.data, self.reconstruction, directions)

    def _bend_one(
        self,
        x: Float[Array, " features"],
        reconstruction: Float[Array, " features"] | None,
        direction: Float[Array, " features"],
    ) -> Float[Array, " features"]:
        if self.loss is None or reconstruction is None:
            return direction
        loss = self.loss
        slope = lambda r: jax.grad(loss, argnums=1)(x, r)
        return jax.jvp(slope, (reconstruction,), (direction,))[1]

    def solve(self, vector: Float[Array, "samples atoms"]) -> Float[Array, "samples atoms"]:
        if self.loss is not None:
            return self._solve_by_width(vector)
        gram = self.dictionary @ self.dictionary.T
        by_kernel = lambda *args: solve_samples(gram, self.l2, *args)
        by_width = lambda _, vector: self._solve_by_width(vector)
        return on_cpu(by_kernel, by_width, self.support, vector)

    def _solve_by_width(self, vector: Float[Array, "samples atoms"]) -> Float[Array, "samples atoms"]:
        atoms = self.support.shape[1]
        widths = block_widths(atoms)
        largest = jnp.max(jnp.sum(self.support, axis=1))
        branch = jnp.searchsorted(jnp.asarray(widths), largest.astype(jnp.asarray(widths).dtype))
        solvers = [lambda v, w=width: self._solve_in_chunks(v, w) for width in widths]
        return jax.lax.switch(branch, solvers, vector)

    def _solve_in_chunks(self, vector: Float[Array, "samples atoms"], width: int) -> Float[Array, "samples atoms"]:
        samples, features = self.data.shape
        numbers_per_sample = width * (width if self.loss is None else width + 2 * features)
        chunk = max(1, min(samples, CHUNK_SIZE // numbers_per_sample))
        gram = self.dictionary @ self.dictionary.T
        one = lambda sample: self._solve_sample(*sample, gram=gram, width=width)
        inputs = (vector, self.support, self.data, self.reconstruction)
        if chunk >= samples:
            return jax.vmap(one)(inputs)
        return jax.lax.map(one, inputs, batch_size=chunk)

    def _solve_sample(
        self,
        vector: Float[Array, " atoms"],
        support: Bool[Array, " atoms"],
        x: Float[Array, " features"],
        reconstruction: Float[Array, " features"] | None,
        gram: Float[Array, "atoms atoms"],
        width: int,
    ) -> Float[Array, " atoms"]:
        if width == len(support):
            block = gram if self.loss is None else self._block(self.dictionary, x, reconstruction)
            return self._solve_block(block, support, vector)
        # The support's indices, filled up to `width` with other atoms, whose rows become those of the identity.
        real, at = jax.lax.top_k(support.astype(jnp.int32), width)
        if self.loss is None:
            block = gram[at[:, None], at[None, :]]
        else:
            block = self._block(self.dictionary[at], x, reconstruction)
        return vector.at[at].set(self._solve_block(block, real > 0, vector[at]))

    def _solve_block(
        self, block: Float[Array, "width width"], real: Bool[Array, " width"], vector: Float[Array, " width"]
    ) -> Float[Array, " width"]:
        matrix = jnp.where(real[:, None] & real[None, :], block, 0) + jnp.diag(jnp.where(real, self.l2, 1))
        return jnp.where(real, cholesky_solve(matrix, jnp.where(real, vector, 0)), vector)

    def _block(
        self,
        atoms: Float[Array, "width features"],
        x: Float[Array, " features"],
        reconstruction: Float[Array, " features"] | None,
    ) -> Float[Array, "width width"]:
        """D M Dᵀ for these atoms."""
        return jax.vmap(lambda d: self._bend_one(x, reconstruction, d))(atoms) @ atoms.T
