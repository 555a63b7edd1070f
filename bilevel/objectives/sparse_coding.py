"""Elastic-net sparse codes of samples in a dictionary: the inner problem of task-driven dictionary learning."""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Scalar

from bilevel.core.policy import Policy
from bilevel.core.requirements import Requirement, as_float_array, finite, nonnegative
from bilevel.objectives.base import check_float, hoisted
from bilevel.objectives.design import largest_of_gram
from bilevel.objectives.least_squares import AbstractLeastSquares, LeastSquares
from bilevel.objectives.sample_hessian import SampleHessian
from bilevel.objectives.sample_response import Inputs, moving, respond
from bilevel.prox import L1

Data = Float[Array, "samples features"]
Codes = Float[Array, "samples atoms"]


class SparseCoding(AbstractLeastSquares):
    """min over codes C of  Σᵢ loss(xᵢ, (C D)ᵢ) + l1 ‖C‖₁ + ½ l2 ‖C‖²_F,  for samples X, one a row.

    `loss(x, reconstruction)` takes one sample and its reconstruction, both of shape `(features,)`, to a number; it
    must be convex and twice differentiable in the reconstruction, and may be an Equinox module with parameters. `None`
    is the squared error ½‖x − Dᵀc‖², which has the fast path. The parametrization l1 · (|c| + ½ γ c²) of the
    literature is l2 = l1 γ.

    Atoms are the rows of `dictionary`; their norms are the caller's business.

    !!! cite
        J. Mairal, F. Bach, J. Ponce: Task-driven dictionary learning. 2012.
    """

    samplewise: ClassVar[bool] = True

    dictionary: Float[Array, "atoms features"]
    l1: Scalar
    l2: Scalar
    loss: Callable[[Array, Array], Scalar] | None

    def __init__(
        self,
        dictionary: ArrayLike,
        l1: ArrayLike,
        l2: ArrayLike = 0.0,
        loss: Callable[[Array, Array], Scalar] | None = None,
    ):
        dictionary = as_float_array("dictionary", dictionary)
        self.dictionary = check_float("dictionary", dictionary, ("atoms", "features"))
        self.l1 = as_float_array("l1", l1, ndim=0).astype(dictionary.dtype)
        self.l2 = as_float_array("l2", l2, ndim=0).astype(dictionary.dtype)
        if loss is not None and not callable(loss):
            raise ValueError(f"`loss` must be None or a function of (x, reconstruction), got {loss!r}.")
        self.loss = loss

    def requirements(self) -> list[Requirement]:
        return [finite("dictionary", self.dictionary), nonnegative("l1", self.l1), nonnegative("l2", self.l2)]

    def hoist(self, params: Codes, data: Data) -> "SparseCoding":
        if self.loss is None:
            return self
        loss = hoisted(self.loss, data[0], data[0])
        return eqx.tree_at(lambda o: o.loss, self, loss)

    def check_data(self, data: Data) -> None:
        X = check_float("X", data, ("samples", "features"), self.dictionary.dtype)
        if X.shape[1] != self.dictionary.shape[1]:
            raise ValueError(
                f"`X` has {X.shape[1]} features, but the atoms of `dictionary` have {self.dictionary.shape[1]}. "
                "Samples and atoms are rows."
            )

    def sample_loss(self, x: Float[Array, " features"], reconstruction: Float[Array, " features"]) -> Scalar:
        """The reconstruction loss of one sample."""
        return 0.5 * jnp.sum((x - reconstruction) ** 2) if self.loss is None else self.loss(x, reconstruction)

    def smooth(self, params: Codes, data: Data) -> Scalar:
        losses = jax.vmap(self.sample_loss)(data, params @ self.dictionary)
        return jnp.sum(losses) + 0.5 * self.l2 * jnp.sum(params**2)

    def penalty(self) -> L1:
        return L1(self.l1)

    def init(self, data: Data) -> Codes:
        return jnp.zeros((data.shape[0], self.dictionary.shape[0]), data.dtype)

    def lipschitz(self, data: Data) -> Scalar | None:
        if self.loss is not None:
            return None
        return largest_of_gram(self.dictionary) + self.l2

    def least_squares(self, data: Data) -> LeastSquares | None:
        ridge = jnp.broadcast_to(self.l2, self.dictionary.shape[:1])
        return LeastSquares(self.dictionary.T, data.T, ridge) if self.loss is None else None

    def gram(self) -> Float[Array, "atoms atoms"]:
        """D Dᵀ."""
        return self.dictionary @ self.dictionary.T

    def correlations(self, data: Data) -> Codes:
        """X Dᵀ. With the squared error, codes depend on it and on D Dᵀ alone."""
        return data @ self.dictionary.T

    def hessian(self, params: Codes, data: Data) -> SampleHessian:
        reconstruction = None if self.loss is None else params @ self.dictionary
        return SampleHessian(self.dictionary, self.l2, self._support(params, data), data, reconstruction, self.loss)

    def face(self, params: Codes, data: Data) -> tuple[Any, Codes]:
        support = self._support(params, data)
        return (lambda vector: jnp.where(support, vector, 0)), jnp.zeros_like(params)

    def respond(self, params: Codes, data: Data, tangent: tuple[Any, Any], on_failure: Policy) -> Codes | None:
        if self.loss is not None:
            return None
        inputs = self._inputs(data)
        support, signs = moving(inputs, params)
        operator = SampleHessian(self.dictionary, self.l2, support, data, None, None)
        along = Inputs(tangent[0].dictionary, tangent[0].l1, tangent[0].l2, tangent[1])
        return respond(inputs, params, support, signs, operator, along, on_failure)

    def _inputs(self, data: Data) -> Inputs:
        return Inputs(self.dictionary, self.l1, self.l2, data)

    def _support(self, params: Codes, data: Data) -> Bool[Array, "samples atoms"]:
        """The coordinates on which T(params) moves."""
        if self.loss is None:
            return moving(self._inputs(data), params)[0]
        return self.penalty().support(self.prox_gradient(params, data, self.local_lipschitz(params, data)))
