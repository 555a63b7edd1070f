"""Differentiate the equation that a solution satisfies: one rule for every solver."""

from typing import Literal

import equinox as eqx
import jax
import lineax as lx
import optax
from jaxtyping import PyTree

from bilevel.core import RESULTS, Solution, tree
from bilevel.core.operators import solve
from bilevel.differentiation.base import AbstractDifferentiation
from bilevel.objectives import AbstractObjective
from bilevel.prox import AbstractPolyhedralPenalty
from bilevel.solvers import AbstractSolver


class Implicit(AbstractDifferentiation):
    """Implicit differentiation, restricted to the support of the solution: forward, reverse and higher order.

    With F the optimality, F(y*(θ), θ) = 0 gives  ∂F/∂y dy = −∂F/∂θ dθ, one linear system whatever the solver and the
    number of its steps, in memory that does not depend on either. Nothing flows to the start or to the solver, on
    which a solution does not depend.

    **Arguments:**

    - `linear_solver`: a Lineax solver. None: the Hessian's own direct solve where the objective has one, else
      conjugate gradient (polyhedral penalties and none) or GMRES (curved penalties).
    - `on_failure`: what a solution that failed its tolerance gives for derivatives, where `argmin(throw=False)` let it
      pass. `"nan"`: NaN, so that no wrong number passes silently. `"ignore"`: the formula at the failed solution.

    !!! cite
        A. Griewank, A. Walther: Evaluating Derivatives, 2nd edition, chapter 15. 2008.
        Q. Bertrand et al.: Implicit differentiation of Lasso-type models for hyperparameter optimization. 2020.
    """

    linear_solver: lx.AbstractLinearSolver | None = None
    on_failure: Literal["nan", "ignore"] = eqx.field(static=True, default="nan")

    def __check_init__(self):
        if self.on_failure not in ("nan", "ignore"):
            raise ValueError(f"`on_failure` must be 'nan' or 'ignore', got {self.on_failure!r}.")

    def apply(self, solver: AbstractSolver, objective: AbstractObjective, data: PyTree, init: PyTree) -> Solution:
        # Nothing flows to solver and start, so they carry no tangents into the rule.
        return _implicit_argmin((objective, data), tree.constant(solver), tree.constant(init), self)


@eqx.filter_custom_jvp
def _implicit_argmin(
    inputs: tuple[AbstractObjective, PyTree], solver: AbstractSolver, init: PyTree, diff: Implicit
) -> Solution:
    objective, data = inputs
    return solver.run(objective, data, init)


# Let T(y, θ) = prox(y − s ∇f(y; θ), s; θ) with s = 1/L, and F = (y − T) / s, zero exactly at a solution (F = ∇f where
# there is no g). Then F(y*(θ), θ) = 0 gives
#
#     ∂F/∂y dy = −b,     b = ∂F/∂θ dθ.                                                                            (1)
#
# For polyhedral g the prox has, near a solution that is not degenerate, the derivative J = Π / (1 + sκ), with Π the
# orthogonal projection on the directions of a face and κ the curvature of g in it, constant along rows of J. So
#
#     ∂F/∂y = (I − J (I − s H)) / s,     H = ∇²f,
#
# which off the face, on (I − Π), is the identity over s, and on it, after a factor (1 + sκ), Π (H + κ). Equation (1)
# falls apart into
#
#     (I − Π) dy = −s (I − Π) b,
#     Π (H + κ) Π dy = −(1 + sκ) Π b − Π H (I − Π) dy,                                                            (2)
#
# a symmetric system on the support alone, as good as its Hessian there, from which s has gone: the first line is the
# motion of the resting coordinates with their kink (a bound, a shift), zero for L1; in the second, s cancels against
# the one in b. Hence s may be held constant under differentiation, and nothing else may: dy is differentiated again
# for second derivatives, through y (which has this very rule), through b, and through the operator.
#
# Curved g (group L1, balls) have no faces, and (1) is solved as it stands, by GMRES, since ∂F/∂y is not symmetric.
@_implicit_argmin.def_jvp
def _implicit_argmin_jvp(primals: tuple, tangents: tuple) -> tuple[Solution, Solution]:
    inputs, solver, init, diff = primals
    solution = _implicit_argmin(inputs, solver, init, diff)
    params = solution.params
    objective, data = inputs
    lipschitz = objective.local_lipschitz(params, data)
    # At both ends of the rule, as in between the projection on the support would hide it from some entries.
    good = (solution.result == RESULTS.successful) | (diff.on_failure == "ignore")
    moving = jax.tree.map(lambda t: t is not None, tangents[0], is_leaf=lambda t: t is None)
    moving, still = eqx.partition(inputs, moving)

    def optimality(moving: PyTree) -> PyTree:
        objective, data = eqx.combine(moving, still)
        return objective.optimality(params, data, lipschitz)

    _, pushed = jax.jvp(optimality, (moving,), (tree.nan_unless(good, tangents[0]),))
    penalty = objective.penalty()
    if penalty is None or isinstance(penalty, AbstractPolyhedralPenalty):
        motion = _solve_on_face(objective, params, data, pushed, lipschitz, diff.linear_solver)
    else:
        motion = _solve_fixed_point(objective, params, data, pushed, lipschitz, diff.linear_solver)
    still = jax.tree.map(lambda _: None, solution)
    motion = tree.nan_unless(good, motion)
    return solution, eqx.tree_at(lambda s: s.params, still, motion, is_leaf=lambda x: x is None)


def _solve_on_face(objective, params, data, pushed, lipschitz, linear_solver) -> PyTree:
    """Equation (2)."""
    restrict, curvature = objective.face(params, data)
    stepsize = 1 / lipschitz
    resting = jax.tree.map(lambda b, r: -stepsize * (b - r), pushed, restrict(pushed))
    gradient = lambda p: objective.gradient(p, data)
    _, dragged = jax.jvp(gradient, (params,), (resting,))
    right = jax.tree.map(lambda b, k, d: -(1 + stepsize * k) * b - d, pushed, curvature, dragged)
    operator = objective.hessian(params, data)
    return optax.tree.add(resting, solve(operator, restrict(right), linear_solver))


def _solve_fixed_point(objective, params, data, pushed, lipschitz, linear_solver) -> PyTree:
    """Equation (1), divided by L."""

    def push(vector: PyTree) -> PyTree:
        _, out = jax.jvp(lambda p: objective.optimality(p, data, lipschitz), (params,), (vector,))
        return optax.tree.scale(1 / lipschitz, out)

    operator = lx.FunctionLinearOperator(push, jax.eval_shape(lambda: params))
    return solve(operator, optax.tree.scale(-1 / lipschitz, pushed), linear_solver)
