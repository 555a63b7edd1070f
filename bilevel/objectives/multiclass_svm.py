"""The multiclass support vector machine, in its dual: one point of a simplex for each sample."""

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Scalar

from bilevel.core.requirements import Requirement, as_float_array, positive
from bilevel.objectives.base import AbstractObjective, check_float
from bilevel.objectives.class_hessian import SimplexHessian
from bilevel.objectives.design import check_rows, largest_of_gram
from bilevel.prox import Simplex

Data = tuple[Float[Array, "samples features"], Float[Array, "samples classes"]]
Dual = Float[Array, "samples classes"]


# The primal is  min over W of  ½ θ ‖W‖²_F + Σᵢ max over classes j of [ (Wᵀxᵢ)ⱼ + 1 − Yᵢⱼ ] − ⟨Yᵢ, Wᵀxᵢ⟩, with the
# hinge loss of Crammer and Singer: zero for a sample whose own class leads all others by 1. A maximum of numbers is
# that of their averages, over the weights βᵢ of a simplex, so it is
#
#     min over W, max over β, of  ½ θ ‖W‖²_F + Σᵢ ⟨βᵢ − Yᵢ, Wᵀxᵢ⟩ + Σᵢ (1 − ⟨βᵢ, Yᵢ⟩).
#
# The order may change, as the function is convex in W and linear in β over a compact set. In W it is least where
# θ W + Xᵀ(β − Y) = 0, which is W(β) = Xᵀ(Y − β) / θ; there the second term is −θ ‖W(β)‖²_F, and what is left to
# maximize is n − f(β), with
#
#     f(β) = ½ θ ‖W(β)‖²_F + ⟨β, Y⟩,     ∇f(β) = Y − X W(β),     ∇²f = X Xᵀ / θ for each class.
class MulticlassSVM(AbstractObjective):
    """min over β of  ½ θ ‖W(β)‖²_F + ⟨β, Y⟩  with  W(β) = Xᵀ(Y − β) / θ  and every row of β in the simplex.

    That is the dual of  min over W of ½ θ ‖W‖²_F + Σᵢ maxⱼ [ (Wᵀxᵢ)ⱼ + 1 − Yᵢⱼ ] − ⟨Yᵢ, Wᵀxᵢ⟩, whose solution is
    `primal(β, data)` and whose least value is n minus the dual's. Data are (X, Y), with Y the one-hot labels. There is
    no intercept: append a feature of ones, or center the data.

    W is unique, and so is β as a rule. With more samples than features many β may share one W: then the Hessian on
    their faces is singular, and there is no derivative of β.

    In logarithmic form, which is never negative: `MulticlassSVM(jnp.exp(log_theta))`, differentiated in `log_theta`.

    !!! cite
        K. Crammer, Y. Singer: On the algorithmic implementation of multiclass kernel-based vector machines. 2001.
        M. Blondel et al.: Efficient and modular implicit differentiation. 2022. Section 4.1.
    """

    theta: Scalar

    def __init__(self, theta: ArrayLike):
        self.theta = as_float_array("theta", theta, ndim=0)

    def requirements(self) -> list[Requirement]:
        return [positive("theta", self.theta)]

    def check_data(self, data: Data) -> None:
        if not isinstance(data, tuple | list) or len(data) != 2:
            raise ValueError(f"`data` must be a pair (X, Y), got {type(data).__name__}.")
        X = check_float("X", data[0], ("samples", "features"))
        Y = data[1]
        if jnp.ndim(Y) == 1:
            raise ValueError(f"`Y` must be one-hot, got shape {jnp.shape(Y)}. Try `jax.nn.one_hot(Y, n_classes)`.")
        check_rows("Y", check_float("Y", Y, ("samples", "classes"), X.dtype), X)

    def primal(self, params: Dual, data: Data) -> Float[Array, "features classes"]:
        """W(β) = Xᵀ(Y − β) / θ: a sample x has the scores Wᵀx, and the class of the largest."""
        X, Y = data
        return X.T @ (Y - params) / self.theta.astype(X.dtype)

    def smooth(self, params: Dual, data: Data) -> Scalar:
        _, Y = data
        W = self.primal(params, data)
        return 0.5 * self.theta.astype(W.dtype) * jnp.sum(W**2) + jnp.sum(params * Y)

    def penalty(self) -> Simplex:
        return Simplex()

    def init(self, data: Data) -> Dual:
        _, Y = data
        return jnp.full(Y.shape, 1 / Y.shape[1], Y.dtype)

    def lipschitz(self, data: Data) -> Scalar:
        X, _ = data
        return largest_of_gram(X) / self.theta.astype(X.dtype)

    def hessian(self, params: Dual, data: Data) -> SimplexHessian:
        X, _ = data
        at = self.prox_gradient(params, data, self.local_lipschitz(params, data))
        return SimplexHessian(X, self.theta.astype(X.dtype), self.penalty().support(at), jnp.zeros((), X.dtype))
