"""Ridge regression: the inner problem whose every derivative is a closed form."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PyTree, Scalar

from bilevel.core.operators import AbstractSymmetricOperator, cholesky_solve
from bilevel.core.requirements import Requirement, nonnegative, positive, raise_where_violated
from bilevel.objectives.base import AbstractExactObjective, check_float
from bilevel.objectives.design import Design, as_strength, check_pair, check_rows, check_strength, largest_of_gram
from bilevel.objectives.least_squares import AbstractLeastSquares, LeastSquares

Data = tuple[Float[Array, "samples features"], Float[Array, "samples *targets"]]


class LinearModel(eqx.Module):
    """x ↦ W x. The targets' axis is missing where there is one target only."""

    weight: Float[Array, "*targets features"]

    def __call__(self, X: Design) -> Float[Array, "samples *targets"]:
        return X @ self.weight.T


class Ridge(AbstractExactObjective, AbstractLeastSquares):
    """min over W of  (1/2n) Σᵢ ‖W xᵢ − yᵢ‖² + ½ Σⱼ αⱼ ‖W_{·j}‖²,  for data (X, y) of n samples.

    `alpha` is one number or one for each feature. There is no intercept: center the data. The unknown is a
    `LinearModel`, so that `solution.params(X)` predicts. With one target for each sample,

        (XᵀX / n + diag α) w = Xᵀ y / n,

    solved by Cholesky in the smaller of the two dimensions. With more features than samples, every alpha must be
    positive.

    !!! cite
        A. Hoerl, R. Kennard: Ridge regression: biased estimation for nonorthogonal problems. 1970.
    """

    alpha: Float[Array, "*features"]

    def __init__(self, alpha: ArrayLike):
        self.alpha = as_strength("alpha", alpha)

    def requirements(self) -> list[Requirement]:
        return [nonnegative("alpha", self.alpha)]

    def check_data(self, data: Data) -> None:
        X, y = check_pair(data)
        check_float("X", X, ("samples", "features"))
        check_rows("y", check_float("y", y, ("samples", "targets")[: max(jnp.ndim(y), 1)], X.dtype), X)
        check_strength("alpha", self.alpha, X)
        if X.shape[0] < X.shape[1]:
            # Else the solution is not unique, or only the larger of the two systems has it.
            raise_where_violated([positive("alpha", self.alpha)])

    def data_term(self, params: LinearModel, data: Data) -> Scalar:
        """(1/2n) Σᵢ ‖W xᵢ − yᵢ‖²: half the mean over samples of the *squared* residual."""
        X, y = data
        return 0.5 * jnp.sum((params(X) - y) ** 2) / len(X)

    def regularizer(self, params: LinearModel) -> Scalar:
        """½ Σⱼ αⱼ ‖W_{·j}‖²."""
        return 0.5 * jnp.sum(_along_features(self.alpha, params.weight) * params.weight**2)

    def smooth(self, params: LinearModel, data: Data) -> Scalar:
        return self.data_term(params, data) + self.regularizer(params)

    def init(self, data: Data) -> LinearModel:
        X, y = data
        return LinearModel(jnp.zeros((*y.shape[1:], X.shape[1]), X.dtype))

    def lipschitz(self, data: Data) -> Scalar:
        X, _ = data
        return largest_of_gram(X) / len(X) + jnp.max(self.alpha.astype(X.dtype))

    def least_squares(self, data: Data) -> LeastSquares:
        X, y = data
        root = jnp.sqrt(jnp.asarray(len(X), X.dtype))
        return LeastSquares(X / root, y / root, jnp.broadcast_to(self.alpha.astype(X.dtype), X.shape[1:]))

    def hessian(self, params: LinearModel, data: Data) -> "RidgeHessian":
        return RidgeHessian(data[0], self.alpha.astype(data[0].dtype), params.weight.shape)

    def minimizer(self, data: Data) -> LinearModel:
        X, y = data
        start = self.init(data)
        return self.hessian(start, data).solve(LinearModel(y.T @ X / len(X)))


class RidgeHessian(AbstractSymmetricOperator):
    """W ↦ W (XᵀX / n + diag α): the same system for each target."""

    X: Float[Array, "samples features"]
    alpha: Float[Array, "*features"]
    shape: tuple[int, ...] = eqx.field(static=True)

    def damped(self, ridge: Scalar) -> "RidgeHessian":
        return RidgeHessian(self.X, self.alpha + ridge.astype(self.alpha.dtype), self.shape)

    def mv(self, vector: LinearModel) -> LinearModel:
        weight = vector.weight
        return LinearModel(weight @ self.X.T @ self.X / len(self.X) + _along_features(self.alpha, weight) * weight)

    def solve(self, vector: LinearModel) -> LinearModel:
        right = vector.weight.T
        solved = self._primal(right) if self.X.shape[0] >= self.X.shape[1] else self._dual(right)
        return LinearModel(solved.T)

    def _primal(self, right: Float[Array, "features *targets"]) -> Float[Array, "features *targets"]:
        n, features = self.X.shape
        matrix = self.X.T @ self.X / n + jnp.diag(jnp.broadcast_to(self.alpha, (features,)))
        return cholesky_solve(matrix, right)

    def _dual(self, right: Float[Array, "features *targets"]) -> Float[Array, "features *targets"]:
        # Woodbury, A = diag α:  (XᵀX/n + A)⁻¹ = A⁻¹ − A⁻¹ Xᵀ (n I + X A⁻¹ Xᵀ)⁻¹ X A⁻¹.
        n = len(self.X)
        divide = lambda M: (M.T / _along_features(self.alpha, M.T)).T
        scaled = divide(right)
        small = n * jnp.eye(n, dtype=self.X.dtype) + self.X @ divide(self.X.T)
        return scaled - divide(self.X.T @ cholesky_solve(small, self.X @ scaled))

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        return jax.eval_shape(lambda: LinearModel(jnp.zeros(self.shape, self.X.dtype)))


def _along_features(alpha: Float[Array, "*features"], weight: Float[Array, "*targets features"]) -> Array:
    return jnp.broadcast_to(alpha.astype(weight.dtype), weight.shape)
