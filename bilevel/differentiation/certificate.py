"""How far a hypergradient is from the truth: a Newton step of the inner solution, and the hypergradient after it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree, Scalar, ScalarLike

from bilevel.core import RESULTS, Solution, tree
from bilevel.core.linear_solve import LinearOptions
from bilevel.core.operators import power_iteration
from bilevel.differentiation.linearized import Linearized
from bilevel.objectives import AbstractObjective
from bilevel.objectives.partitioned import partition
from bilevel.prox import AbstractPolyhedralPenalty

#: Φ(objective, params, data), a number; or a pair of it and something to pass on.
OuterLoss = Callable[[AbstractObjective, PyTree, PyTree], Any]

#: Below this fraction of the gradient in objective and data together, that in the objective counts as zero.
NEGLIGIBLE = 1e-6


class Certificate(eqx.Module):
    """What is known of a hypergradient's error.

    **Attributes:**

    - `optimality`, `tol`: the relative optimality error of the inner solution and its bound.
    - `adjoint_residual`: ‖v − A λ‖ / ‖v‖ of the linear system that was solved for the hypergradient; NaN where `diff`
      solves none that can be seen.
    - `relative_error`: the estimated relative error ‖g − g⁺‖ / ‖g⁺‖ of the hypergradient g, with g⁺ the one after a
      Newton step of the inner solution, its system solved anew. It is right to first order: where the step leads to
      the right support, within a few percent near a solution. (Where g⁺ is less than a millionth of the gradient in
      objective and data together, as a millionth of that.)
    - `margin`: the distance of the nearest coordinate to a kink of the penalty (to a change of support), as a fraction
      of the largest coordinate; infinite without kinks.
    - `at_risk`: the fraction of coordinates for which the Newton step is longer than that distance, to rounding. Where
      it is not 0 the support is not settled, and `relative_error` may mislead.
    - `samples`: the same for each sample where samples are independent, else None. The relative error is that of the
      gradient in the sample's data there.
    - `result`: what failed, if anything.
    """

    optimality: Scalar
    tol: Scalar
    adjoint_residual: Scalar
    relative_error: Scalar
    margin: Scalar
    at_risk: Scalar
    samples: "SampleCertificates | None"
    result: RESULTS

    def __str__(self) -> str:
        if self.relative_error.ndim:
            return f"Certificates of a batch of shape {self.relative_error.shape}; take one by `jax.tree.map`."
        lines = [
            f"estimated relative error  {float(self.relative_error):.1e}",
            f"inner optimality error    {float(self.optimality):.1e} (tolerance {float(self.tol):.1e})",
            f"adjoint residual          {float(self.adjoint_residual):.1e}",
            f"margin of the support     {float(self.margin):.1e} ({100 * float(self.at_risk):.2g} % of it at risk)",
        ]
        verdict = [] if self.result == RESULTS.successful else [RESULTS[self.result]]
        return "\n".join([*verdict, *lines])


class SampleCertificates(eqx.Module):
    """`Certificate`, sample by sample."""

    optimality: Float[Array, " samples"]
    adjoint_residual: Float[Array, " samples"]
    relative_error: Float[Array, " samples"]
    margin: Float[Array, " samples"]
    at_risk: Float[Array, " samples"]


class Evaluation(NamedTuple):
    """The outer loss at some inner params, and its total derivative if these were the solution.

    `finite`: whether the loss and its partial derivatives are.
    """

    value: Scalar
    aux: Any
    gradient: PyTree
    data_gradient: PyTree
    adjoint: PyTree
    residual: Array
    finite: Array


def check_outer_loss(outer_loss: Any) -> None:
    """Raise `ValueError` unless it is a function."""
    if not callable(outer_loss):
        raise ValueError(f"`outer_loss` must be a function of (objective, params, data), got {outer_loss!r}.")


def value_and_aux(out: Any) -> tuple[Scalar, Any]:
    """What an outer loss returned, as a pair; `ValueError` where it is neither a number nor a pair of one and more."""
    value: Any
    value, aux = out if isinstance(out, tuple) and len(out) == 2 else (out, None)
    if isinstance(value, int | float):
        return jnp.asarray(value, float), aux
    if eqx.is_array_like(value) and jnp.shape(value) == () and jnp.issubdtype(jnp.result_type(value), jnp.floating):
        return jnp.asarray(value), aux
    came = f"{jnp.result_type(value)}{list(jnp.shape(value))}" if eqx.is_array(value) else type(value).__name__
    raise ValueError(
        f"`outer_loss` must return a floating number, or a pair of one and anything else, got {came}. Take a mean or a "
        "sum."
    )


def evaluate(
    outer_loss: OuterLoss,
    objective: AbstractObjective,
    data: PyTree,
    params: PyTree,
    options: LinearOptions = LinearOptions(),
    init: PyTree = None,
) -> Evaluation:
    """dΦ/dθ = ∂Φ/∂θ + (∂F/∂θ)ᵀ b̄  with b̄ from the cotangent ∂Φ/∂y, by equation (3) of `linearized`."""
    moving, still = eqx.partition((objective, data), eqx.is_inexact_array)
    inner, arrays, restore = partition(objective, params)

    def loss(moving: PyTree, arrays: PyTree) -> tuple[Scalar, Any]:
        objective, data = eqx.combine(moving, still)
        return value_and_aux(outer_loss(objective, restore(arrays), data))

    value, pull, aux = jax.vjp(loss, moving, arrays, has_aux=True)
    direct, cotangent = pull(jnp.ones_like(value))
    linearized = Linearized.at(inner, arrays, data)
    pulled = linearized.pull(cotangent, options, init)

    def optimality(moving: PyTree) -> PyTree:
        objective, data = eqx.combine(moving, still)
        return linearized._replace(objective=partition(objective, params)[0], data=data).optimality()

    _, pull = jax.vjp(optimality, moving)
    gradient, data_gradient = optax.tree.add(direct, pull(pulled.cotangent)[0])
    finite = tree.all_finite((value, direct, cotangent))
    return Evaluation(value, aux, gradient, data_gradient, pulled.adjoint, pulled.residual, finite)


def newton_step(
    objective: AbstractObjective, data: PyTree, params: PyTree, options: LinearOptions = LinearOptions()
) -> PyTree:
    """−(∂F/∂y)⁻¹ F: what is missing to the solution, to first order."""
    inner, arrays, _ = partition(objective, params)
    linearized = Linearized.at(inner, arrays, data)
    return linearized.push(linearized.optimality(), options)


def certify(
    objective: AbstractObjective,
    data: PyTree,
    solution: Solution,
    step: PyTree,
    found: Evaluation,
    after: Evaluation,
    rtol: ScalarLike,
    *,
    solved: bool,
    damped: bool,
) -> Certificate:
    """The certificate of `found`, given the Newton step from its params and the evaluation `after` it.

    `solved`: whether the params are as the solver left them, so that its own verdict holds. `damped`: whether a ridge
    makes up for a singular Hessian.
    """
    # With a start, if it had none.
    objective = objective.hoist(solution.params, data)
    inner, arrays, _ = partition(objective, solution.params)
    optimality = inner.optimality_errors(arrays, data, inner.units(arrays, data))
    margin, after_step, at_risk = _margins(inner, data, arrays, step)
    samples = None
    if inner.samplewise:
        pair = found.data_gradient, after.data_gradient
        samples = SampleCertificates(
            optimality, found.residual, inner.relative(optax.tree.sub(*pair), pair[1]), margin, at_risk
        )
    tol = solution.stats["tol"].astype(optimality.dtype)
    worst, residual = jnp.max(optimality), jnp.max(found.residual)
    if solved:
        worst = solution.stats["optimality"]
    # The rounding of an ill-conditioned system may be the same before and after.
    error = jnp.maximum(relative_error(found, after), jnp.where(jnp.isnan(residual), 0, residual))
    regular = jnp.all(jnp.isfinite(after.residual)) & (damped or Linearized.at(inner, arrays, data).is_regular())
    result = _judge(solution, worst <= tol, found, regular, error <= rtol)
    result = RESULTS.where(_curves_down(inner, data, arrays), RESULTS.not_a_minimum, result)
    # One of many samples on a kink is no failure of all; `samples` shows it. A solution that is on a kink is so to
    # rounding after the Newton step, as the solver's tolerance leaves it off.
    on_kink = (after_step <= 4 * jnp.finfo(margin.dtype).eps) & (result == RESULTS.successful)
    if not inner.samplewise:
        result = RESULTS.where(on_kink, RESULTS.degenerate, result)  # pyright: ignore[reportArgumentType]
    return Certificate(worst, tol, residual, error, jnp.min(margin), jnp.mean(at_risk), samples, result)


def relative_error(found: Evaluation, after: Evaluation) -> Scalar:
    """‖g − g⁺‖ / ‖g⁺‖ in the leaves of the objective; in those of the data, where it has none."""
    pair = (found.gradient, after.gradient)
    if not jax.tree.leaves(pair):
        pair = (found.data_gradient, after.data_gradient)
    above, below = tree.norm(optax.tree.sub(*pair)), tree.norm(pair[1])
    below = jnp.maximum(below, NEGLIGIBLE * tree.norm((after.gradient, after.data_gradient)))
    return jnp.where(above == 0, 0, above / jnp.where(below == 0, 1, below))


def _judge(solution: Solution, met: Array, found: Evaluation, regular: Array, accurate: Array) -> RESULTS:
    solved = tree.all_finite((found.gradient, found.data_gradient))
    result: RESULTS = RESULTS.inaccurate
    result = RESULTS.where(accurate, RESULTS.successful, result)  # pyright: ignore[reportArgumentType]
    result = RESULTS.where(solved, result, RESULTS.adjoint_not_solved)
    result = RESULTS.where(regular, result, RESULTS.singular_hessian)
    result = RESULTS.where(found.finite, result, RESULTS.nonfinite_loss)
    missed = RESULTS.where(solution.result == RESULTS.successful, RESULTS.stalled, solution.result)
    return RESULTS.where(met, result, missed)


def _curves_down(objective: AbstractObjective, data: PyTree, params: PyTree) -> Array:
    """Whether the Hessian has a negative eigenvalue on the face, found as one of L − H above L by power iteration."""
    penalty = objective.penalty()
    if not (penalty is None or isinstance(penalty, AbstractPolyhedralPenalty)):
        return jnp.asarray(False)
    restrict, _ = objective.face(params, data)
    operator, lipschitz = objective.hessian(params, data), objective.local_lipschitz(params, data)

    def apply(vector: PyTree) -> PyTree:
        inside = restrict(vector)
        return restrict(optax.tree.add_scale(optax.tree.scale(lipschitz, inside), -1.0, operator.mv(inside)))

    largest = power_iteration(apply, tree.pseudorandom_like(params))
    return largest > (1 + 1e4 * float(jnp.finfo(largest.dtype).eps)) * lipschitz


def _margins(objective: AbstractObjective, data: PyTree, params: PyTree, step: PyTree) -> tuple[Array, Array, Array]:
    """The margin of the support, here and after the step; the fraction of coordinates at risk. Sample by sample."""
    shape = (len(jax.tree.leaves(params)[0]),) if objective.samplewise else ()
    penalty, dtype = objective.penalty(), tree.norm(params).dtype
    if penalty is None:
        return jnp.full(shape, jnp.inf, dtype), jnp.full(shape, jnp.inf, dtype), jnp.zeros(shape, dtype)
    stepsize = 1 / objective.local_lipschitz(params, data)
    before_prox = lambda y: optax.tree.add_scale(y, -stepsize, objective.gradient(y, data))
    here, there = before_prox(params), before_prox(optax.tree.add(params, step))
    distance = penalty.margin(here, stepsize)
    # A group moves by the norm of its coordinates' motion.
    grouped = lambda d, m: jnp.sqrt(
        jnp.sum(m**2, axis=[a for a in range(m.ndim) if d.shape[a] < m.shape[a]], keepdims=True)
    )
    motion = jax.tree.map(grouped, distance, optax.tree.sub(there, here))
    rows = shape[0] if shape else 1
    flat = lambda tree: jnp.concatenate([jnp.abs(x).reshape(rows, -1) for x in jax.tree.leaves(tree)], axis=1)
    distances, largest = flat(distance), jnp.max(flat(here), axis=1)
    nearest = lambda tree: (
        jnp.min(flat(tree), axis=1).reshape(shape) / jnp.where(largest > 0, largest, 1).reshape(shape)
    )
    # On a kink to rounding is at risk too.
    rounding = 4 * jnp.finfo(dtype).eps * largest[:, None]
    at_risk = jnp.mean((flat(motion) + rounding >= distances).astype(dtype), axis=1)
    return nearest(distance), nearest(penalty.margin(there, stepsize)), at_risk.reshape(shape)
