"""Logistic regression, binary and multinomial, smooth or sparse."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, ArrayLike, Float, Int, Scalar

from bilevel.core.requirements import Requirement, eagerly, is_traced, nonnegative, positive
from bilevel.objectives.base import AbstractObjective, check_float
from bilevel.objectives.class_hessian import SoftmaxHessian
from bilevel.objectives.design import (
    Design,
    as_strength,
    check_design,
    check_pair,
    check_rows,
    check_strength,
    largest_curvature,
)
from bilevel.objectives.ridge import LinearModel
from bilevel.objectives.support_hessian import SupportHessian
from bilevel.prox import L1

OF_SIGNS = "For integer classes pass `n_classes`; 0 and 1 become −1.0 and +1.0 by `2.0 * y - 1`."

Data = tuple[Design, Float[Array, " samples"] | Int[Array, " samples"]]


class LogisticRegression(AbstractObjective):
    """min over W of  (1/n) Σᵢ loss(W xᵢ, yᵢ) + ½ Σⱼ l2ⱼ ‖W_{·j}‖² + Σⱼ l1ⱼ ‖W_{·j}‖₁,  for data (X, y) of n samples.

    - Binary, for `n_classes=None`: W is one row w, labels are the floating numbers −1 and +1, and the loss is
      log(1 + exp(−yᵢ w·xᵢ)).
    - Multinomial, else: W has a row for each class, labels are integers from 0 to `n_classes` − 1, and the loss is
      log Σₖ exp(W xᵢ)ₖ − (W xᵢ)_{yᵢ}. It does not change when all rows move together, so every l2 must be positive.

    With `l1=None` the problem is smooth, and L-BFGS serves it. `l1` and `l2` are numbers or one for each feature. X is
    an array or a sparse matrix (`jax.experimental.sparse.BCOO`). There is no intercept: append a feature of ones, or
    center the data. The unknown is a `LinearModel`, so that `solution.params(X)` gives the logits. Classes that can be
    told apart without error have no solution without l2 or l1.

    In logarithmic form, which is never negative: `LogisticRegression(l2=jnp.exp(log_l2))`, differentiated in `log_l2`.

    !!! cite
        D. Cox: The regression analysis of binary sequences. 1958.
        D. Böhning: Multinomial logistic regression algorithm. 1992.
    """

    l2: Float[Array, "*features"]
    l1: Float[Array, "*features"] | None
    n_classes: int | None = eqx.field(static=True)

    def __init__(self, l2: ArrayLike = 0.0, l1: ArrayLike | None = None, *, n_classes: int | None = None):
        self.l2 = as_strength("l2", l2)
        self.l1 = None if l1 is None else as_strength("l1", l1)
        if n_classes is not None and (type(n_classes) is not int or n_classes < 2):
            raise ValueError(f"`n_classes` must be None (labels −1 and +1) or a whole number ≥ 2, got {n_classes!r}.")
        self.n_classes = n_classes

    def requirements(self) -> list[Requirement]:
        second = [(nonnegative if self.n_classes is None else positive)("l2", self.l2)]
        return second if self.l1 is None else [*second, nonnegative("l1", self.l1)]

    def check_data(self, data: Data) -> None:
        X, y = check_pair(data)
        check_design("X", X)
        if self.n_classes is None:
            _check_signs(y, X)
        else:
            _check_classes(y, self.n_classes)
        check_rows("y", y, X)
        check_strength("l2", self.l2, X)
        if self.l1 is not None:
            check_strength("l1", self.l1, X)

    def data_requirements(self, data: Data) -> list[Requirement]:
        _, y = data
        count = self.n_classes
        if count is None:
            message = f"`y` must hold the labels −1.0 and +1.0, got {{}}. {OF_SIGNS}"
            # Under tracing a label may be perturbed, for a derivative in it; but it is not 0.
            return [_labels(y, lambda y: (y == 0) if is_traced(y) else (jnp.abs(y) != 1), message)]
        message = f"`y` must be below `n_classes`={count} and not negative, got {{}}. Labels count from 0."
        return [_labels(y, lambda y: (y < 0) | (y >= count), message)]

    def smooth(self, params: LinearModel, data: Data) -> Scalar:
        """The mean loss + ½ Σⱼ l2ⱼ ‖W_{·j}‖²."""
        X, y = data
        logits, weight = params(X), params.weight
        if self.n_classes is None:
            losses = jax.nn.softplus(-y * logits)
        else:
            chosen = jnp.take_along_axis(logits, y[:, None], axis=1)[:, 0]
            losses = jax.nn.logsumexp(logits, axis=1) - chosen
        l2 = jnp.broadcast_to(self.l2.astype(X.dtype), weight.shape)
        return jnp.sum(losses) / X.shape[0] + 0.5 * jnp.sum(l2 * weight**2)

    def penalty(self) -> L1 | None:
        return None if self.l1 is None else L1(self.l1)

    def init(self, data: Data) -> LinearModel:
        X, _ = data
        classes = () if self.n_classes is None else (self.n_classes,)
        return LinearModel(jnp.zeros((*classes, X.shape[1]), X.dtype))

    # The second derivative of log(1 + exp(−y t)) in t is y² σ(y t) σ(−y t) ≤ y² / 4; that of the multinomial loss,
    # diag p − p pᵀ, is at most ½ I, as each row of it sums to 2 pₖ (1 − pₖ) ≤ ½ in absolute value.
    def lipschitz(self, data: Data) -> Scalar | None:
        X, y = data
        largest = largest_curvature(X)
        if largest is None:
            return None
        bound = 0.5 if self.n_classes is not None else jnp.max(y**2) / 4
        return bound * largest + jnp.max(self.l2.astype(X.dtype))

    def hessian(self, params: LinearModel, data: Data) -> lx.AbstractLinearOperator:
        X, y = data
        support, penalty = None, self.penalty()
        if penalty is not None:
            at = self.prox_gradient(params, data, self.local_lipschitz(params, data))
            support = penalty.support(at).weight
        l2 = jnp.broadcast_to(self.l2.astype(X.dtype), X.shape[1:])
        if self.n_classes is not None:
            return SoftmaxHessian(X, l2, jax.nn.softmax(params(X), axis=1), support)
        support = jnp.ones(X.shape[1], bool) if support is None else support
        margins = y * params(X)
        curvature = y**2 * jax.nn.sigmoid(margins) * jax.nn.sigmoid(-margins)
        return SupportHessian(X, l2, support, curvature)


def _check_signs(y: Array, X: Design) -> None:
    if eqx.is_array(y) and not jnp.issubdtype(y.dtype, jnp.floating):
        raise ValueError(f"`y` must hold the labels −1.0 and +1.0, got dtype {y.dtype}. {OF_SIGNS}")
    check_float("y", y, ("samples",), X.dtype)


def _check_classes(y: Array, n_classes: int) -> None:
    if not eqx.is_array(y) or not jnp.issubdtype(y.dtype, jnp.integer) or y.ndim != 1:
        came = f"{y.dtype}{list(y.shape)}" if eqx.is_array(y) else type(y).__name__
        hint = f"Labels are integers from 0 to {n_classes - 1}."
        raise ValueError(f"`y` must be an integer array of shape (samples,), got {came}. {hint}")


def _labels(y: Array, is_wrong: Callable[[Array], Array], message: str) -> Requirement:
    """That no label is wrong; the message names the first that is, where labels are known."""
    with eagerly(y):
        wrong = is_wrong(y)
        holds = ~jnp.any(wrong)
        came = "others" if is_traced(holds) or holds else str(y[wrong][0])
    return Requirement(holds, message.format(came))
