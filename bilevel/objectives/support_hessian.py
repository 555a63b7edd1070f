"""The Hessian of a penalized linear model, restricted to the support of each target's weights."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax.experimental.sparse import BCOO
from jaxtyping import Array, Bool, Float, Int, PyTree, Scalar

from bilevel.core.linear_solve import solve as solve_linear
from bilevel.core.operators import AbstractSymmetricOperator, block_widths, cholesky_solve
from bilevel.core.tree import pseudorandom_like
from bilevel.objectives.design import Design, columns, correlate
from bilevel.objectives.ridge import LinearModel

#: The most numbers that the blocks of one chunk of targets may take: 2²³ of them are 64 MiB in 64 bits.
CHUNK_SIZE = 2**23
#: The most numbers that one target's block and its columns may take; wider supports are solved by conjugate gradient.
BLOCK_SIZE = 2**26


class SupportHessian(AbstractSymmetricOperator):
    """For each target, with support S, M = diag `curvature` (I for None) and A = diag `l2`,

        H = S (Xᵀ M X / n + A) S + (I − S).

    The solve gathers the columns of each support into a block of the smallest of a few widths that holds the largest
    support, and factors it by Cholesky, in the primal (width × width) or, where a support is larger than n, in the
    dual (n × n). So nothing of the size features × features is formed, and a sparse X stays sparse. A target whose
    block is singular gets NaN alone.
    """

    X: Design
    l2: Float[Array, " features"]
    support: Bool[Array, "*targets features"]
    curvature: Float[Array, " samples"] | None = None

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        return LinearModel(jax.ShapeDtypeStruct(self.support.shape, self.X.dtype))  # pyright: ignore[reportArgumentType]

    def damped(self, ridge: Scalar) -> "SupportHessian":
        return eqx.tree_at(lambda hessian: hessian.l2, self, self.l2 + ridge.astype(self.l2.dtype))

    def blockwise(self, solve: Callable[..., PyTree], *vectors: LinearModel) -> LinearModel:
        def of_target(support: Array, *rows: Array) -> Array:
            block = SupportHessian(self.X, self.l2, support, self.curvature)
            function = lx.FunctionLinearOperator(block.mv, block.in_structure(), lx.positive_semidefinite_tag)
            return solve(function, *map(LinearModel, rows)).weight

        weights = [vector.weight for vector in vectors]
        if self.support.ndim == 1:
            return LinearModel(of_target(self.support, *weights))
        return LinearModel(jax.vmap(of_target)(self.support, *weights))

    def mv(self, vector: LinearModel) -> LinearModel:
        weight = vector.weight
        inside = jnp.where(self.support, weight, 0)
        predictions = (self.X @ inside.T).T
        if self.curvature is not None:
            predictions = predictions * jnp.broadcast_to(self.curvature, predictions.shape)
        bent = correlate(self.X, predictions.T).T / self.X.shape[0] + jnp.broadcast_to(self.l2, inside.shape) * inside
        return LinearModel(jnp.where(self.support, bent, weight))

    def solve(self, vector: LinearModel) -> LinearModel:
        rows = vector.weight.reshape(-1, self.X.shape[1])
        support = self.support.reshape(rows.shape)
        n, features = self.X.shape
        widths = [w for w in block_widths(min(n, features)) if self._numbers(w) <= BLOCK_SIZE or w <= 32]
        branches: list[Callable[[Array], Array]]
        branches = [lambda rows, w=width: self._primal(rows, support, w) for width in widths]
        if widths[-1] < features:
            # A support may be wider than any of the blocks.
            dual = widths[-1] == n and 3 * n * n <= BLOCK_SIZE
            branches.append(lambda rows: self._dual(rows, support) if dual else self._iterate(rows, support))
        largest = jnp.max(jnp.sum(support, axis=1))
        branch = jnp.searchsorted(jnp.asarray(widths), largest.astype(jnp.asarray(widths).dtype))
        return LinearModel(jax.lax.switch(branch, branches, rows).reshape(vector.weight.shape))

    def _numbers(self, width: int) -> int:
        """How many numbers a block of this width takes, besides what is there anyway."""
        return width * (width + (self.X.shape[0] if isinstance(self.X, BCOO) else 0))

    def _columns(self, at: Int[Array, " width"]) -> Float[Array, "samples width"]:
        """√M X[:, at]. Not to be differentiated, for the root's sake."""
        return columns(self.X, at) * (1 if self.curvature is None else jnp.sqrt(self.curvature)[:, None])

    def _each(self, one: Callable[..., Array], numbers: int, *rows: Array) -> Array:
        """`one(*row)` for each row, as many at a time as take `CHUNK_SIZE` numbers (one, if it takes more)."""
        chunk = max(1, min(len(rows[0]), CHUNK_SIZE // numbers))
        if chunk >= len(rows[0]):
            return jax.vmap(one)(*rows)
        return jax.lax.map(lambda row: one(*row), rows, batch_size=chunk)

    def _primal(
        self, rows: Float[Array, "rows features"], support: Bool[Array, "rows features"], width: int
    ) -> Float[Array, "rows features"]:
        n, features = self.X.shape
        # One Gram matrix for all where it costs less than the blocks, and no more memory than X.
        shared = not isinstance(self.X, BCOO) and features <= n and len(rows) * width**2 >= features**2
        gram = None
        if shared:
            scaled = self._columns(jnp.arange(features))
            gram = scaled.T @ scaled

        def one(row: Float[Array, " features"], support: Bool[Array, " features"]) -> Float[Array, " features"]:
            # The support's indices, filled up with `features`, whose rows become those of the identity.
            at = jnp.nonzero(support, size=width, fill_value=features)[0]
            if gram is None:
                block = (chosen := self._columns(at)).T @ chosen
            else:
                block = gram.at[at[:, None], at[None, :]].get(mode="fill", fill_value=0)
            matrix = block / n + jnp.diag(self.l2.at[at].get(mode="fill", fill_value=1))
            right = row.at[at].get(mode="fill", fill_value=0)
            return row.at[at].set(cholesky_solve(matrix, right), mode="drop")

        return self._each(one, width * (width + (0 if shared else n)), rows, support)

    # With Z the coordinates of S on which A is 0 (none, as a rule; or all of S, where it has no more than n, as other
    # targets may have), P the others, and u = X w / n, the system H w = r is
    #
    #     A_P w_P + X_Pᵀ u = r_P,     A_Z w_Z + X_Zᵀ u = r_Z,     n u = X_Z w_Z + X_P w_P.
    #
    # w_P from the first, put into the third, gives u = K⁻¹ (X_Z w_Z + X_P A_P⁻¹ r_P) with K = n I + X_P A_P⁻¹ X_Pᵀ; and
    # that, put into the second,
    #
    #     (X_Zᵀ K⁻¹ X_Z + A_Z) w_Z = r_Z − X_Zᵀ K⁻¹ X_P A_P⁻¹ r_P.
    #
    # Two systems of size n at most (Z of more than n coordinates is singular), whatever the size of S. M enters by
    # √M X in place of X.
    def _dual(
        self, rows: Float[Array, "rows features"], support: Bool[Array, "rows features"]
    ) -> Float[Array, "rows features"]:
        n, features = self.X.shape

        def one(row: Float[Array, " features"], support: Bool[Array, " features"]) -> Float[Array, " features"]:
            curved = support & (self.l2 > 0) & (jnp.sum(support) > n)
            flat = jnp.nonzero(support & ~curved, size=n, fill_value=features)[0]
            inverse = jnp.where(curved, 1 / jnp.where(curved, self.l2, 1), 0)
            gram = self._weighted_gram(inverse)
            chosen, scaled = self._columns(flat), inverse * row
            right = jnp.concatenate([chosen, self._predict(scaled)[:, None]], axis=1)
            solved = cholesky_solve(n * jnp.eye(n, dtype=row.dtype) + gram, right)
            small = chosen.T @ solved[:, :n] + jnp.diag(self.l2.at[flat].get(mode="fill", fill_value=1))
            rest = row.at[flat].get(mode="fill", fill_value=0) - chosen.T @ solved[:, n]
            on_flat = cholesky_solve(small, rest)
            pulled = self._correlate(solved[:, :n] @ on_flat + solved[:, n])
            answer = jnp.where(curved, scaled - inverse * pulled, row).at[flat].set(on_flat, mode="drop")
            # K / n has the condition number of H in units in which A_P is I. Where rounding, multiplied by it, leaves
            # less than two digits, the answer would be noise.
            noise = jnp.finfo(row.dtype).eps * jnp.linalg.norm(gram) / n
            good = (noise <= 0.01) & (jnp.sum(support & ~curved) <= n)
            return jnp.where(support & ~good, jnp.nan, answer)

        return self._each(one, 4 * n * n, rows, support)

    def _weighted_gram(self, weights: Float[Array, " features"]) -> Float[Array, "samples samples"]:
        """√M X diag(weights) Xᵀ √M, a few columns at a time, so that a sparse X is never dense as a whole."""
        n, features = self.X.shape
        width = min(features, max(n, 256))

        def add(i: Array, total: Float[Array, "samples samples"]) -> Float[Array, "samples samples"]:
            at = jnp.minimum(i * width + jnp.arange(width), features)
            some = self._columns(at)
            return total + (some * weights.at[at].get(mode="fill", fill_value=0)[None, :]) @ some.T

        return jax.lax.fori_loop(0, -(-features // width), add, jnp.zeros((n, n), self.X.dtype))

    def _predict(self, weight: Float[Array, " features"]) -> Float[Array, " samples"]:
        """√M X weight."""
        return (self.X @ weight) * (1 if self.curvature is None else jnp.sqrt(self.curvature))

    def _correlate(self, values: Float[Array, " samples"]) -> Float[Array, " features"]:
        """Xᵀ √M values."""
        return correlate(self.X, values * (1 if self.curvature is None else jnp.sqrt(self.curvature)))

    def _iterate(
        self, rows: Float[Array, "rows features"], support: Bool[Array, "rows features"]
    ) -> Float[Array, "rows features"]:
        """By conjugate gradient, for what is too large to factor."""

        def one(row: Float[Array, " features"], support: Bool[Array, " features"]) -> Float[Array, " features"]:
            block = SupportHessian(self.X, self.l2, support, self.curvature)
            function = lx.FunctionLinearOperator(block.mv, block.in_structure(), lx.positive_semidefinite_tag)
            # A singular system may have an answer for this `row`, but it has none for a vector at random.
            probed = solve_linear(function, pseudorandom_like(LinearModel(row)))
            regular = jnp.all(jnp.isfinite(probed.weight))
            answer: Array = solve_linear(function, LinearModel(row)).weight
            return jnp.where(support, jnp.where(regular, answer, jnp.nan), row)

        return jax.lax.map(lambda pair: one(*pair), (rows, support))
