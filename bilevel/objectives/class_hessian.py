"""Hessians that couple classes: of the multiclass SVM's dual on its faces, and of multinomial logistic regression."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Bool, Float, PyTree, Scalar

from bilevel.core import tree
from bilevel.core.linear_solve import solve as solve_linear
from bilevel.core.operators import AbstractSymmetricOperator, block_widths, cholesky_solve
from bilevel.objectives.design import Design, columns, correlate
from bilevel.objectives.ridge import LinearModel
from bilevel.prox import Simplex

#: The largest matrix that is factored: beyond it a few dozen steps of conjugate gradient cost less than n³ / 3.
DIRECT_SIZE = 512
#: The most numbers that a factored matrix, and what it is built from, may take.
BLOCK_SIZE = 2**25


# The directions of sample i's face, supported on Sᵢ and summing to zero, have the orthonormal basis (Helmert's)
#
#     u_{ic} = (r e_c − Σ e_{c'} over the r classes c' < c of Sᵢ) / √(r (r + 1)),     c in Sᵢ but its first.
#
# In the coordinates a of v = Σ a_{ic} u_{ic}, the Hessian (X Xᵀ / θ) ⊗ I on the faces is an elementwise product:
#
#     M_{ic, jd} = (xᵢ·xⱼ) (u_{ic}·u_{jd}) / θ.
#
# Its rank is at most features × (classes − 1), so where it has an inverse no primal form is smaller.
class SimplexHessian(AbstractSymmetricOperator):
    """Q (X Xᵀ / θ + ridge) Q + (I − Q), with Q the projection of each row on {v : v = 0 off its support, Σ v = 0}.

    The solve gathers the directions of the faces, where they are at most `DIRECT_SIZE`, into a block of the smallest of
    a few widths that holds them, and factors it by Cholesky; else conjugate gradient serves. A singular
    system gives NaN either way.
    """

    X: Float[Array, "samples features"]
    theta: Scalar
    support: Bool[Array, "samples classes"]
    ridge: Scalar

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        return jax.ShapeDtypeStruct(self.support.shape, self.X.dtype)

    def damped(self, ridge: Scalar) -> "SimplexHessian":
        return eqx.tree_at(lambda hessian: hessian.ridge, self, self.ridge + ridge.astype(self.X.dtype))

    def mv(self, vector: Float[Array, "samples classes"]) -> Float[Array, "samples classes"]:
        inside = self._restrict(vector)
        bent = self.X @ (self.X.T @ inside) / self.theta + self.ridge * inside
        return self._restrict(bent) + vector - inside

    def solve(self, vector: Float[Array, "samples classes"]) -> Float[Array, "samples classes"]:
        n, classes = self.support.shape
        most = max(n * (classes - 1), 1)
        order = jnp.cumsum(self.support, axis=1) - 1
        fits = lambda w: w <= DIRECT_SIZE and w * (w + self.X.shape[1]) <= BLOCK_SIZE
        widths = [w for w in block_widths(min(most, DIRECT_SIZE)) if fits(w) or w <= 32]
        branches: list[Callable[[Array], Array]]
        branches = [lambda v, w=width: self._by_cholesky(v, order, w) for width in widths]
        if widths[-1] < most:
            branches.append(lambda v: self._iterate(v))
        inside = _switch(widths, branches, jnp.sum(self.support & (order > 0)), self._restrict(vector))
        return inside + vector - self._restrict(vector)

    def _iterate(self, vector: Float[Array, "samples classes"]) -> Float[Array, "samples classes"]:
        # A singular system may have an answer for this vector, but it has none for one at random.
        regular = jnp.all(jnp.isfinite(by_conjugate_gradient(self, tree.pseudorandom_like(vector))))
        return tree.nan_unless(regular, by_conjugate_gradient(self, vector))

    def _restrict(self, vector: Float[Array, "samples classes"]) -> Float[Array, "samples classes"]:
        return Simplex().restrict(self.support.astype(vector.dtype), vector)

    def _by_cholesky(self, vector: Array, order: Array, width: int) -> Array:
        """On the faces alone."""
        (n, classes), dtype = self.support.shape, vector.dtype
        at = jnp.nonzero((self.support & (order > 0)).ravel(), size=width, fill_value=n * classes)[0]
        sample, own = at // classes, at % classes
        take = lambda rows: rows.at[sample].get(mode="fill", fill_value=0)
        rank = jnp.take_along_axis(take(order), own[:, None], axis=1).astype(dtype)
        index = jnp.arange(classes)[None]
        basis = jnp.where(index == own[:, None], rank, -(index < own[:, None]).astype(dtype))
        basis = jnp.where(take(self.support), basis / jnp.sqrt(jnp.maximum(rank * (rank + 1), 1)), 0)
        if width <= n:
            gram = (rows := take(self.X)) @ rows.T
        else:
            gram = (self.X @ self.X.T).at[sample[:, None], sample[None]].get(mode="fill", fill_value=0)
        # What fills up the block are rows of the identity.
        diagonal = jnp.where(sample < n, self.ridge, 1)
        matrix = gram * (basis @ basis.T) / self.theta + jnp.diag(diagonal)
        coordinates = cholesky_solve(matrix, jnp.sum(basis * take(vector), axis=1))
        return jnp.zeros_like(vector).at[sample].add(coordinates[:, None] * basis, mode="drop")


# With P the probabilities, the loss of sample i bends its logits by diag pᵢ − pᵢ pᵢᵀ = Rᵢ Rᵢᵀ, Rᵢ = diag(√pᵢ) (I − √pᵢ
# √pᵢᵀ), as √pᵢ is a unit vector. It is 0 along 1, all logits together; l2 > 0 alone bends there. So, for weights c, d,
#
#     H_{cj, dk} = (1/n) Σᵢ x_{ij} x_{ik} (p_{ic} δ_{cd} − p_{ic} p_{id}) + l2ⱼ δ_{cj, dk} = (Zᵀ Z / n + A)_{cj, dk},
#
# with rows Z_{ia} = Rᵢ[:, a] ⊗ xᵢ. Where there are fewer samples than features, Woodbury's identity
#
#     (Zᵀ Z / n + A)⁻¹ = A⁻¹ − A⁻¹ Zᵀ (n I + Z A⁻¹ Zᵀ)⁻¹ Z A⁻¹
#
# has the smaller matrix, again an elementwise product:  (Z A⁻¹ Zᵀ)_{ia, kb} = (xᵢ · A⁻¹ x_k) (Rᵢᵀ R_k)_{ab}.
class SoftmaxHessian(AbstractSymmetricOperator):
    """S (Σᵢ (diag pᵢ − pᵢ pᵢᵀ) ⊗ xᵢ xᵢᵀ / n + diag l2) S + (I − S), with S the projection on the support (None: I).

    The solve factors one matrix of the size of the support, gathered into the smallest of a few widths that holds it;
    or, without a support and with fewer samples than features, one of size samples × classes; by Cholesky, up to
    `DIRECT_SIZE`. Beyond it conjugate gradient serves.
    """

    X: Design
    l2: Float[Array, " features"]
    probabilities: Float[Array, "samples classes"]
    support: Bool[Array, "classes features"] | None = None

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        shape = (self.probabilities.shape[1], self.X.shape[1])
        return LinearModel(jax.ShapeDtypeStruct(shape, self.X.dtype))  # pyright: ignore[reportArgumentType]

    def damped(self, ridge: Scalar) -> "SoftmaxHessian":
        return eqx.tree_at(lambda hessian: hessian.l2, self, self.l2 + ridge.astype(self.l2.dtype))

    def mv(self, vector: LinearModel) -> LinearModel:
        inside = vector.weight if self.support is None else jnp.where(self.support, vector.weight, 0)
        logits, p = self.X @ inside.T, self.probabilities
        bent = p * (logits - jnp.sum(p * logits, axis=1, keepdims=True))
        out = correlate(self.X, bent).T / self.X.shape[0] + self.l2[None] * inside
        return LinearModel(out if self.support is None else jnp.where(self.support, out, vector.weight))

    def solve(self, vector: LinearModel) -> LinearModel:
        (n, classes), features = self.probabilities.shape, self.X.shape[1]
        fits = lambda width: width <= DIRECT_SIZE and width * (width + 2 * n) <= BLOCK_SIZE
        if self.support is None:
            if n < features and n * classes <= DIRECT_SIZE:
                return LinearModel(self._dual(vector.weight))
            if fits(classes * features):
                return LinearModel(self._primal(vector.weight, jnp.arange(classes * features)))
            return by_conjugate_gradient(self, vector)
        support = self.support
        most = block_widths(min(classes * features, DIRECT_SIZE))
        widths = [w for w in most if fits(w) or w <= 32]
        indices = lambda w: jnp.nonzero(support.ravel(), size=w, fill_value=classes * features)[0]
        branches: list[Callable[[Array], Array]]
        branches = [lambda weight, w=width: self._primal(weight, indices(w)) for width in widths]
        if widths[-1] < classes * features:
            branches.append(lambda weight: by_conjugate_gradient(self, LinearModel(weight)).weight)
        return LinearModel(_switch(widths, branches, jnp.sum(support), vector.weight))

    def _primal(self, weight: Float[Array, "classes features"], at: Array) -> Float[Array, "classes features"]:
        """With `at` the indices of the support in the raveled weights, filled up with their number."""
        features = self.X.shape[1]
        own = at // features
        feature = jnp.where(at < weight.size, at % features, features)
        chosen = columns(self.X, feature)
        pulled = chosen * self.probabilities.at[:, own].get(mode="fill", fill_value=0)
        same = jnp.where(own[:, None] == own[None], pulled.T @ chosen, 0)
        matrix = (same - pulled.T @ pulled) / self.X.shape[0]
        matrix = matrix + jnp.diag(self.l2.at[feature].get(mode="fill", fill_value=1))
        right = weight.ravel().at[at].get(mode="fill", fill_value=0)
        return weight.ravel().at[at].set(cholesky_solve(matrix, right), mode="drop").reshape(weight.shape)

    def _dual(self, weight: Float[Array, "classes features"]) -> Float[Array, "classes features"]:
        (n, classes), root = self.probabilities.shape, jnp.sqrt(self.probabilities)
        # R[i, c, a]: not to be differentiated, for the root's sake.
        R = root[:, :, None] * (jnp.eye(classes, dtype=root.dtype)[None] - root[:, :, None] * root[:, None, :])
        rows = R.swapaxes(1, 2).reshape(n * classes, classes)
        scaled = weight / self.l2[None]
        X = columns(self.X, jnp.arange(self.X.shape[1]))
        gram = jnp.repeat(jnp.repeat((X / self.l2[None]) @ X.T, classes, axis=0), classes, axis=1)
        coupled = gram * (rows @ rows.T)
        right = jnp.einsum("ica,ic->ia", R, self.X @ scaled.T).reshape(-1)
        solved = cholesky_solve(n * jnp.eye(n * classes, dtype=X.dtype) + coupled, right).reshape(n, classes)
        answer = scaled - correlate(self.X, jnp.einsum("ica,ia->ic", R, solved)).T / self.l2[None]
        # In units in which A is I, coupled / n has the condition number of H: where rounding, multiplied by it, leaves
        # less than two digits, the answer would be noise.
        noise = jnp.finfo(X.dtype).eps * jnp.linalg.norm(coupled) / n
        return jnp.where(noise <= 0.01, answer, jnp.nan)


def by_conjugate_gradient(operator: AbstractSymmetricOperator, vector: PyTree) -> PyTree:
    """A⁻¹ vector; NaN where it did not get there."""
    tags = lx.positive_semidefinite_tag
    return solve_linear(lx.FunctionLinearOperator(operator.mv, operator.in_structure(), tags), vector)


def _switch(widths: list[int], branches: list[Callable[[Array], Array]], count: Array, operand: Array) -> Array:
    """The branch of the smallest width that holds `count`, the last one for more than all."""
    branch = jnp.searchsorted(jnp.asarray(widths), count.astype(jnp.asarray(widths).dtype))
    return jax.lax.switch(branch, branches, operand)
