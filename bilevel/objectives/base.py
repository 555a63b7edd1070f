"""The contract of an inner objective f + g, and what follows from it: optimality, its error, the Hessian."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import optax
from jaxtyping import Array, Float, PyTree, Scalar

from bilevel.core import tree
from bilevel.core.operators import hessian_vector_product, power_iteration
from bilevel.core.policy import Policy
from bilevel.core.requirements import Requirement, is_traced, raise_where_violated
from bilevel.prox import AbstractPenalty, AbstractPolyhedralPenalty


class Units(eqx.Module):
    """The units of optimality for one objective and its data, so that no tolerance depends on their scale.

    **Attributes:**

    - `lipschitz`: L, a Lipschitz constant of ∇f (an estimate where the objective knows none), positive.
    - `curvature`: the same, but 0 where f is linear.
    - `gradient`: ‖∇f(start)‖ at the objective's own start; one number for each sample where samples are independent.
    """

    lipschitz: Scalar
    curvature: Scalar
    gradient: Array


class AbstractObjective(eqx.Module):
    """An inner problem  min over params of  f(params; self, data) + g(params; self).

    Its array leaves are what the outer level may differentiate: hyperparameters, a dictionary, weights. The unknown
    `params` is never one of them, so a hyperparameter cannot be optimized along with the parameters.

    To add one: `smooth` and `init`, `penalty` where there is one, `requirements` and `check_data` for good errors.
    """

    #: Whether the first axis of `params` and of `data` runs over independent samples.
    samplewise: ClassVar[bool] = False

    def __check_init__(self):
        raise_where_violated(self.requirements())

    @abc.abstractmethod
    def smooth(self, params: PyTree, data: PyTree) -> Scalar:
        """f: differentiable twice in `params`, once more in everything."""

    @abc.abstractmethod
    def init(self, data: PyTree) -> PyTree:
        """A start of the right structure, shapes and dtypes."""

    def penalty(self) -> AbstractPenalty | None:
        """g, built from the objective's own leaves; None for g = 0."""
        return None

    def requirements(self) -> list[Requirement]:
        """Conditions on the values of the objective's own leaves."""
        return []

    def check_data(self, data: PyTree) -> None:
        """Raise `ValueError` where shapes or dtypes of `data` do not fit; values are another matter."""

    def data_requirements(self, data: PyTree) -> list[Requirement]:
        """Conditions on the values of `data`, beyond that they are finite."""
        return []

    def lipschitz(self, data: PyTree) -> Scalar | None:
        """A Lipschitz constant of ∇f over all `params`, where one is known."""
        return None

    def hoist(self, params: PyTree, data: PyTree) -> "AbstractObjective":
        """The same objective, with traced values that its functions close over as leaves of their own."""
        return self

    def __call__(self, params: PyTree, data: PyTree = None) -> Scalar:
        """f + g."""
        penalty = self.penalty()
        smooth = self.smooth(params, data)
        return smooth if penalty is None else smooth + penalty.value(params)

    def gradient(self, params: PyTree, data: PyTree) -> PyTree:
        """∇f in `params`."""
        return jax.grad(self.smooth)(params, data)

    def local_lipschitz(self, params: PyTree, data: PyTree) -> Scalar:
        """`lipschitz` where it is known, else the largest |eigenvalue| of ∇²f(params); 1 where that is 0.

        Held constant under differentiation: optimality vanishes at a solution for every L, so that no derivative of
        a solution depends on it.
        """
        return _or_one(self._curvature(params, data))

    def _curvature(self, params: PyTree, data: PyTree) -> Scalar:
        known = self.lipschitz(data)
        if known is None:
            apply = lambda v: hessian_vector_product(lambda p: self.smooth(p, data), params, v)
            known = power_iteration(apply, tree.pseudorandom_like(params))
        return jax.lax.stop_gradient(known)

    def prox_gradient(self, params: PyTree, data: PyTree, lipschitz: Scalar) -> PyTree:
        """T(y) = prox(y − ∇f(y) / L, 1 / L), whose fixed points are the solutions. Zeros of T(y) are exact."""
        stepsize = 1 / lipschitz
        moved = optax.tree.add_scale(params, -stepsize, self.gradient(params, data))
        penalty = self.penalty()
        return moved if penalty is None else penalty.prox(moved, stepsize)

    def optimality(self, params: PyTree, data: PyTree, lipschitz: Scalar) -> PyTree:
        """F(y) = L (y − T(y)), in the units of ∇f and equal to it where g = 0: zero exactly at a solution."""
        if self.penalty() is None:
            return self.gradient(params, data)
        return optax.tree.scale(lipschitz, optax.tree.sub(params, self.prox_gradient(params, data, lipschitz)))

    def units(self, params: PyTree, data: PyTree) -> Units:
        """What `optimality_error` is measured in; computed once, for a whole solve."""
        # At the caller's start where ∇f has a kink at the objective's own.
        start, here = (self.norms(self.gradient(p, data)) for p in (self.init(data), params))
        curvature = self._curvature(params, data)
        return Units(_or_one(curvature), curvature, jnp.where(jnp.isfinite(start), start, here))

    def optimality_error(self, params: PyTree, data: PyTree, units: Units) -> Scalar:
        """The largest of `optimality_errors`."""
        return jnp.max(self.optimality_errors(params, data, units))

    def optimality_errors(self, params: PyTree, data: PyTree, units: Units) -> Array:
        """‖F(y)‖ / (‖∇f(start)‖ + L ‖y‖), one for each sample where samples are independent.

        The same for an objective scaled by any number, and for rescaled `params`. The second term of the denominator
        is the size at which rounding perturbs ∇f, so that a tolerance well above machine epsilon can be met. It is
        absent where f is linear, lest running off to infinity look like convergence.
        """
        residual = self.norms(self.optimality(params, data, units.lipschitz))
        scale = units.gradient + units.curvature * self.norms(params)
        # Where the scale vanishes, so must the residual. NaN stays NaN, and is no success.
        vanishing = jnp.where(residual == 0, 0, jnp.inf)
        relative = jnp.where(scale == 0, vanishing, residual / jnp.where(scale == 0, 1, scale))
        return jnp.where(jnp.isfinite(scale), relative, jnp.nan)

    def hessian(self, params: PyTree, data: PyTree) -> lx.AbstractLinearOperator:
        """Π (∇²f + κ) Π + (I − Π), symmetric, with Π the projection on the face of g on which `params` moves.

        The face is that of T(params), whose resting coordinates are exact even where those of `params` are not.
        Only for g = None and polyhedral penalties.
        """
        restrict, curvature = self.face(params, data)

        def apply(vector: PyTree) -> PyTree:
            inside = restrict(vector)
            bent = hessian_vector_product(lambda p: self.smooth(p, data), params, inside)
            bent = jax.tree.map(lambda b, k, v: b + k * v, bent, curvature, inside)
            return jax.tree.map(lambda b, v, i: b + v - i, restrict(bent), vector, inside)

        structure = jax.eval_shape(lambda: params)
        return lx.FunctionLinearOperator(apply, structure, tags=lx.positive_semidefinite_tag)

    def face(self, params: PyTree, data: PyTree) -> tuple[Any, PyTree]:
        """The projection Π on the directions in which the solution near `params` moves, and the curvature κ of g."""
        penalty = self.penalty()
        if penalty is None:
            return (lambda vector: vector), jax.tree.map(jnp.zeros_like, params)
        if not isinstance(penalty, AbstractPolyhedralPenalty):
            raise ValueError(f"{type(penalty).__name__} is curved: it has no faces, so there is no Hessian on one.")
        at = self.prox_gradient(params, data, self.local_lipschitz(params, data))
        return (lambda vector: penalty.restrict(at, vector)), penalty.curvature(params)

    def respond(self, params: PyTree, data: PyTree, tangent: tuple[Any, Any], on_failure: Policy) -> PyTree | None:
        """How a solution moves along a tangent of (objective, data), None for what does not move, by a formula.

        None: by the linearized optimality, as always where there is no better way. `on_failure`: what is to happen
        where a system has no solution.
        """
        del params, data, tangent, on_failure
        return None

    def relative(self, difference: PyTree, whole: PyTree) -> Array:
        """‖difference‖ / ‖whole‖, 0 for 0 / 0; one for each sample where samples are independent."""
        above, below = self.norms(difference), self.norms(whole)
        vanishing = jnp.where(above == 0, 0, jnp.inf)
        return jnp.where(below == 0, vanishing, above / jnp.where(below == 0, 1, below))

    def norms(self, values: PyTree) -> Array:
        """‖values‖₂, one for each sample where samples are independent."""
        rows = len(jax.tree.leaves(values)[0]) if self.samplewise else 1
        flat = jnp.concatenate([leaf.reshape(rows, -1) for leaf in jax.tree.leaves(values)], axis=1)
        norms = row_norms(flat)
        return norms if self.samplewise else norms[0]


def hoisted(function: Callable, *example: PyTree) -> Callable:
    """`function`, with the traced values that it closes over as leaves; itself where it closes over none.

    So a function that closes over nothing traced does not compile anew at each call.
    """
    converted = eqx.filter_closure_convert(function, *example)
    return converted if any(map(is_traced, jax.tree.leaves(converted))) else function


class AbstractExactObjective(AbstractObjective):
    """An objective with a formula for its minimizer."""

    @abc.abstractmethod
    def minimizer(self, data: PyTree) -> PyTree:
        """argmin over params of f + g."""


def row_norms(rows: Float[Array, "rows columns"]) -> Float[Array, " rows"]:
    """‖row‖₂ of each row; squares neither overflow nor underflow, lest what vanishes by rounding look solved."""
    # One value of `rows` for the scale and for what is measured in it, as in `core.tree.norm`.
    rows = jax.lax.optimization_barrier(rows)
    largest = jnp.max(jnp.abs(rows), axis=1, initial=0)
    scale = jnp.where(largest > 0, largest, 1)
    return scale * jnp.sqrt(jnp.sum((rows / scale[:, None]) ** 2, axis=1))


def _or_one(curvature: Scalar) -> Scalar:
    return jnp.where(curvature > jnp.finfo(curvature.dtype).tiny, curvature, 1)


def check_precision(name: str, value: Array) -> None:
    """Raise `ValueError` for less than 32 bits."""
    if jnp.issubdtype(value.dtype, jnp.floating) and jnp.finfo(value.dtype).bits < 32:
        raise ValueError(
            f"`{name}` has dtype {value.dtype}, in which no solver meets a useful tolerance. Convert it: "
            f"`{name}.astype('float32')`."
        )


def check_float(name: str, value: Any, shape: tuple[str, ...], dtype: Any = None) -> Array:
    """`value` as an array with as many axes as `shape` names, none of them empty, or `ValueError`."""
    if not eqx.is_array(value):
        raise ValueError(f"`{name}` must be an array of shape ({', '.join(shape)}), got {type(value).__name__}.")
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(f"`{name}` must have a floating dtype, got {value.dtype}. Try `{name}.astype(float)`.")
    check_precision(name, value)
    if value.ndim != len(shape):
        raise ValueError(f"`{name}` must have shape ({', '.join(shape)}), got {value.shape}.")
    if 0 in value.shape:
        raise ValueError(
            f"`{name}` is empty: its shape ({', '.join(shape)}) is {value.shape}. Pass at least one entry."
        )
    if dtype is not None and value.dtype != dtype:
        raise ValueError(
            f"`{name}` has dtype {value.dtype}, but the objective has {jnp.dtype(dtype)}. Convert one of the two: "
            f"`{name}.astype({jnp.dtype(dtype)})`."
        )
    return value
