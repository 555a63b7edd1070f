"""A hypergradient with its certificate."""

import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree, Scalar, ScalarLike

from bilevel.core import RESULTS, HypergradientError, Solution, tree
from bilevel.core.linear_solve import LinearOptions
from bilevel.core.policy import Policy, check_policy, enforce
from bilevel.core.requirements import finite, positive, raise_where_violated
from bilevel.differentiation import AbstractDifferentiation, Implicit, argmin
from bilevel.differentiation.certificate import (
    Certificate,
    Evaluation,
    OuterLoss,
    certify,
    check_outer_loss,
    evaluate,
    newton_step,
    value_and_aux,
)
from bilevel.objectives import AbstractObjective
from bilevel.objectives.partitioned import partition
from bilevel.solvers import AbstractSolver


class Hypergradient(eqx.Module):
    """The derivative of an outer loss through an inner solution, and what is known of its error.

    **Attributes:**

    - `value`: the outer loss; `aux`: what it returned beside.
    - `gradient`: its derivative in the objective's leaves, in the shape of the objective, None where a leaf is not a
      floating array; `data_gradient`: in those of the data.
    - `solution`: the inner solution; `adjoint`: the solution of the linear system, with which a next call may start.
    - `certificate`: inner optimality, residual of the linear system, estimated relative error, margin of the support.
    """

    value: Scalar
    gradient: Any
    data_gradient: PyTree
    solution: Solution
    adjoint: PyTree
    certificate: Certificate
    aux: Any = None


def hypergradient(
    outer_loss: OuterLoss,
    objective: AbstractObjective,
    data: PyTree = None,
    *,
    solver: AbstractSolver | None = None,
    init: PyTree = None,
    diff: AbstractDifferentiation = Implicit(),
    correct: bool = False,
    rtol: ScalarLike = 1e-2,
    adjoint_init: PyTree = None,
    on_failure: Policy = "raise",
) -> Hypergradient:
    """d/dθ of  outer_loss(objective, params*, data),  params* = argmin of objective,  with an estimate of its error.

    **Arguments:**

    - `outer_loss`: a function of (objective, params, data) to a number, or to a pair of it and anything else, `aux`.
      It may close over traced values. Other values that it closes over are constants of its first call, as under
      `jit`: what may change belongs in `objective` or `data`.
    - `objective`, `data`, `solver`, `init`, `diff`: as in `argmin`. The certificate is that of the hypergradient by
      `diff`, whichever it is.
    - `correct`: whether to return the hypergradient after a Newton step of the inner solution, whose error is
      quadratic in the inner error, at the cost of one more linear system. `value` and `solution` are corrected too.
      It is implicit, whatever `diff`.
    - `rtol`: the estimated relative error from which on the hypergradient counts as failed.
    - `adjoint_init`: where an iterative linear solver starts, such as `adjoint` of the last call.
    - `on_failure`: what happens if the inner solve missed its tolerance, the linear system was not solved, the Hessian
      is singular on the support, the solution is on a kink, or the estimated error is above `rtol`: `"raise"`,
      `"warn"`, `"nan"` (the gradient), `"ignore"`. The certificate says it in every case.

    **Raises:** `HypergradientError` on failure (under `jit`, when it runs); `ValueError` for input that does not fit.

    !!! cite
        A. Griewank, C. Faure: Reduced functions, gradients and Hessians from fixed-point iterations for state
        equations. 2002.
    """
    check_policy("on_failure", on_failure)
    check_outer_loss(outer_loss)
    raise_where_violated([positive("rtol", rtol)])
    # A failed solution keeps its gradient: it is judged here.
    objective, data, diff, solver = tree.to_arrays((objective, data, diff.with_policy("ignore"), solver))
    inner = argmin(objective, data, solver=solver, init=init, throw=False)
    adjoint_init = _check_adjoint(objective, inner.params, adjoint_init)
    found = None
    if not isinstance(diff, Implicit):
        found = _through_argmin(outer_loss, objective, data, solver, init, diff)
    done = _hypergradient(outer_loss, objective, data, inner, diff, found, adjoint_init, correct, jnp.asarray(rtol))
    return _settle(done, on_failure)


def _check_adjoint(objective: AbstractObjective, params: PyTree, adjoint: PyTree) -> PyTree:
    if adjoint is None:
        return None
    adjoint, wanted = tree.to_arrays(adjoint), partition(objective, params)[1]
    describe = lambda t: jax.tree.map(lambda x: f"{jnp.result_type(x)}{list(jnp.shape(x))}", t)
    if jax.tree.structure(adjoint) != jax.tree.structure(wanted) or describe(adjoint) != describe(wanted):
        raise ValueError(f"`adjoint_init` must be like {describe(wanted)}, got {describe(adjoint)}.")
    raise_where_violated(finite("adjoint_init", x) for x in jax.tree.leaves(adjoint))
    return adjoint


@eqx.filter_jit
def _through_argmin(
    outer_loss: OuterLoss,
    objective: AbstractObjective,
    data: PyTree,
    solver: AbstractSolver | None,
    init: PyTree,
    diff: AbstractDifferentiation,
) -> tuple[PyTree, PyTree]:
    """The derivatives in objective and data by a way of differentiating of its own."""
    moving, still = eqx.partition((objective, data), eqx.is_inexact_array)

    def loss(moving: PyTree) -> Scalar:
        objective, data = eqx.combine(moving, still)
        solution = argmin(objective, data, solver=solver, init=init, diff=diff, throw=False)
        return value_and_aux(outer_loss(objective, solution.params, data))[0]

    return jax.grad(loss)(moving)


@eqx.filter_jit
def _hypergradient(
    outer_loss: OuterLoss,
    objective: AbstractObjective,
    data: PyTree,
    solution: Solution,
    diff: AbstractDifferentiation,
    gradients: tuple[PyTree, PyTree] | None,
    adjoint_init: PyTree,
    correct: bool,
    rtol: Array,
) -> Hypergradient:
    options = diff.linear_options if isinstance(diff, Implicit) else LinearOptions()
    options = options._replace(on_failure="nan")

    def after_step_with(solution: Solution, options: LinearOptions) -> tuple[PyTree, Solution, Evaluation]:
        step = newton_step(objective, data, solution.params, options)
        _, arrays, restore = partition(objective, solution.params)
        params = restore(optax.tree.add(arrays, step))
        moved = eqx.tree_at(lambda s: s.params, solution, params, is_leaf=lambda x: x is None)
        return step, moved, evaluate(outer_loss, objective, data, params, options)

    def after_step(solution: Solution) -> tuple[PyTree, Solution, Evaluation]:
        exact = after_step_with(solution, LinearOptions())
        if options.ridge is None:
            return exact
        # Damped, only where it does not go without: the error of the damping is to be seen.
        damped = after_step_with(solution, LinearOptions(ridge=options.ridge))
        return tree.where(jnp.all(jnp.isfinite(exact[2].residual)), exact, damped)

    at = solution
    found = evaluate(outer_loss, objective, data, at.params, options, adjoint_init)
    if gradients is not None:
        unseen = jnp.full_like(found.residual, jnp.nan)
        found = found._replace(gradient=gradients[0], data_gradient=gradients[1], residual=unseen)
    step, moved, after = after_step(at)
    if correct:
        at, found = moved, after
        step, _, after = after_step(at)
    kinds = dict(solved=not correct, damped=options.ridge is not None)
    certificate = certify(objective, data, at, step, found, after, rtol, **kinds)
    return Hypergradient(found.value, found.gradient, found.data_gradient, at, found.adjoint, certificate, found.aux)


def _settle(done: Hypergradient, on_failure: Policy) -> Hypergradient:
    """Do as `on_failure` says."""
    certificate = done.certificate
    result = certificate.result
    if not result.is_traced() and on_failure in ("raise", "warn"):
        if result == RESULTS.successful:
            return done
        if on_failure == "raise":
            raise HypergradientError(
                f"{certificate}\nWith `on_failure='ignore'` the hypergradient comes back all the same."
            )
        warnings.warn(str(certificate), RuntimeWarning, stacklevel=3)
        return done
    failed = jnp.asarray(result != RESULTS.successful)
    if on_failure == "raise":
        message = "A hypergradient failed: its certificate says why. Try `on_failure='ignore'` and print it."
        gradients = result.error_if((done.gradient, done.data_gradient), failed)
    else:
        message = "A hypergradient failed: its certificate says why."
        gradients = enforce(on_failure, failed, (done.gradient, done.data_gradient), message)
    return eqx.tree_at(lambda d: (d.gradient, d.data_gradient), done, gradients, is_leaf=lambda x: x is None)
