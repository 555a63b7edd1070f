"""The elastic net and the Lasso: sparse linear regression, for dense and sparse designs."""

import jax.numpy as jnp
from jax.experimental.sparse import BCOO
from jaxtyping import Array, ArrayLike, Float, Scalar

from bilevel.core.requirements import Requirement, nonnegative
from bilevel.core.tree import max_abs
from bilevel.objectives.base import check_float
from bilevel.objectives.design import (
    Design,
    as_strength,
    check_design,
    check_pair,
    check_rows,
    check_strength,
    correlate,
    largest_curvature,
)
from bilevel.objectives.least_squares import AbstractLeastSquares, LeastSquares
from bilevel.objectives.ridge import LinearModel
from bilevel.objectives.support_hessian import SupportHessian
from bilevel.prox import ElasticNet as ElasticNetPenalty

Data = tuple[Design, Float[Array, "samples *targets"]]


class ElasticNet(AbstractLeastSquares):
    """min over W of  (1/2n) Σᵢ ‖W xᵢ − yᵢ‖² + Σⱼ l1ⱼ ‖W_{·j}‖₁ + ½ Σⱼ l2ⱼ ‖W_{·j}‖²,  for data (X, y) of n samples.

    With `l2 = 0`, the default, this is the Lasso. `l1` and `l2` are numbers or one for each feature; with `l1` 0 for
    some of the features, those are always in use. X is an array or a sparse matrix (`jax.experimental.sparse.BCOO`),
    which is never made dense. There is no intercept: center the data. The unknown is a `LinearModel`, so that
    `solution.params(X)` predicts.

    On the support S of one target's weights w, whose signs are s, the solution satisfies
    (X_SᵀX_S / n + diag l2_S) w_S = X_Sᵀ y / n − l1_S s, and its derivatives are those of this system. Where it is
    singular (collinear features in use, l2 = 0) there is no derivative, and it is NaN.

    In logarithmic form, which is never negative: `ElasticNet(jnp.exp(log_l1))`, differentiated in `log_l1`. From
    `ElasticNet.max_l1(data)` on the solution is 0.

    !!! cite
        R. Tibshirani: Regression shrinkage and selection via the lasso. 1996.
        H. Zou, T. Hastie: Regularization and variable selection via the elastic net. 2005.
    """

    l1: Float[Array, "*features"]
    l2: Float[Array, "*features"]

    def __init__(self, l1: ArrayLike, l2: ArrayLike = 0.0):
        self.l1, self.l2 = as_strength("l1", l1), as_strength("l2", l2)

    def requirements(self) -> list[Requirement]:
        return [nonnegative("l1", self.l1), nonnegative("l2", self.l2)]

    def check_data(self, data: Data) -> None:
        X, y = check_pair(data)
        check_design("X", X)
        check_float("y", y, ("samples", "targets")[: max(jnp.ndim(y), 1)], X.dtype)
        check_rows("y", y, X)
        check_strength("l1", self.l1, X)
        check_strength("l2", self.l2, X)

    def smooth(self, params: LinearModel, data: Data) -> Scalar:
        """(1/2n) Σᵢ ‖W xᵢ − yᵢ‖²."""
        X, y = data
        return 0.5 * jnp.sum((params(X) - y) ** 2) / X.shape[0]

    # With l2 in the prox and not in f, the steps are as long as X alone permits, however large l2 is for some features.
    def penalty(self) -> ElasticNetPenalty:
        return ElasticNetPenalty(self.l1, self.l2)

    def init(self, data: Data) -> LinearModel:
        X, y = data
        return LinearModel(jnp.zeros((*y.shape[1:], X.shape[1]), X.dtype))

    def lipschitz(self, data: Data) -> Scalar | None:
        return largest_curvature(data[0])

    def least_squares(self, data: Data) -> LeastSquares:
        X, y = data
        if isinstance(X, BCOO):
            raise ValueError("`X` is sparse, and coordinate descent wants it dense. Try ProximalGradient().")
        root = jnp.sqrt(jnp.asarray(len(X), X.dtype))
        return LeastSquares(X / root, y / root, jnp.zeros(X.shape[1:], X.dtype))

    def hessian(self, params: LinearModel, data: Data) -> SupportHessian:
        X, _ = data
        at = self.prox_gradient(params, data, self.local_lipschitz(params, data))
        l2 = jnp.broadcast_to(self.l2.astype(X.dtype), X.shape[1:])
        return SupportHessian(X, l2, self.penalty().support(at).weight)

    @staticmethod
    def max_l1(data: Data) -> Scalar:
        """‖Xᵀ y‖_∞ / n, the smallest number `l1` for which 0 is a solution."""
        X, y = data
        return max_abs(correlate(X, y)) / X.shape[0]
