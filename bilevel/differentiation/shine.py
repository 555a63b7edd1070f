"""Reuse the inverse Hessian that the solver built for itself."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import optax
from jaxtyping import PyTree

from bilevel.core import Solution, tree
from bilevel.core.policy import Policy, check_policy
from bilevel.core.requirements import check_whole
from bilevel.differentiation.base import AbstractDifferentiation, judge
from bilevel.differentiation.once import once, with_derivative_of
from bilevel.objectives import AbstractObjective
from bilevel.solvers import LBFGS, AbstractSolver
from bilevel.solvers.inverse_hessian import InverseHessian


class Shine(AbstractDifferentiation):
    """The implicit derivative with the estimate B ≈ ∇²f⁻¹ of `LBFGS` in place of the linear system:

        dy = −B ∂∇f/∂θ dθ.

    It costs `history_size` inner products and no Hessian. B is good along the directions in which the solver went and
    crude elsewhere, so the error is anyone's guess: prefer `Implicit` unless a product with the Hessian is dear.
    `num_refinements` steps of conjugate gradient, which start from B v and are preconditioned by B, mend it, in forward
    mode for the tangent and in reverse mode for the cotangent; with as many as there are unknowns it is `Implicit`.
    (Where they are few, the two modes are thus not quite each other's transpose.) First derivatives only.

    For `LBFGS` and smooth objectives. Nothing flows to solver and start.

    **Arguments:**

    - `num_refinements`: the number of those steps.
    - `on_failure`: as for `Truncated`.

    !!! cite
        Z. Ramzi et al.: SHINE: SHaring the INverse Estimate from the forward pass for bi-level optimization and
        implicit models. 2022.
    """

    num_refinements: int = 0
    on_failure: Policy | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        check_whole("num_refinements", self.num_refinements, least=0)
        check_policy("on_failure", self.on_failure, optional=True)

    def apply(self, solver: AbstractSolver, objective: AbstractObjective, data: PyTree, init: PyTree) -> Solution:
        if not isinstance(solver, LBFGS):
            raise ValueError(
                f"Shine doesn't work with {type(solver).__name__}, which keeps no estimate of the inverse Hessian. Try "
                "solver=LBFGS(), or diff=Implicit()."
            )
        still = tree.constant((objective, data))
        solution, inverse = tree.constant(solver).run_with_inverse_hessian(*still, tree.constant(init))
        solution, inverse = tree.constant((solution, inverse))
        judged = lambda values: judge(self.on_failure, solution, values)
        step = self._step(inverse, solution.params, still, judged(once((objective, data))))
        params = with_derivative_of(solution.params, judged(step))
        return Solution(params, solution.result, solution.stats)

    # −B ∇f(y; θ) as a function of θ has the derivative wanted: y and B are constant.
    def _step(self, inverse: InverseHessian, params: PyTree, still: Any, moving: Any) -> PyTree:
        (objective, data), (moved, moved_data) = still, moving
        hessian = objective.hessian(params, data)
        gradient = moved.gradient(params, moved_data)
        solve = lambda _, vector: _refined(hessian, inverse, vector, self.num_refinements)
        # Of a linear function of its right side `custom_linear_solve` takes the transpose to be itself.
        return optax.tree.scale(-1.0, jax.lax.custom_linear_solve(hessian.mv, gradient, solve, solve, symmetric=True))


def _refined(hessian: lx.AbstractLinearOperator, inverse: InverseHessian, vector: PyTree, num_steps: int) -> PyTree:
    """B v, then so many steps of conjugate gradient, in units in which Lineax's absolute tolerances make sense."""
    guess = inverse.mv(vector)
    if num_steps == 0:
        return guess
    right, size = tree.norm(vector), tree.norm(guess)
    right, size = jnp.where(right > 0, right, 1), jnp.where(size > 0, size, 1)
    scaled = lambda factor, apply: lx.FunctionLinearOperator(
        lambda v: tree.scale(factor, apply(v)), hessian.in_structure(), tags=lx.positive_semidefinite_tag
    )
    tol = 10 * float(jnp.finfo(right.dtype).eps)
    solver = lx.CG(rtol=tol, atol=tol, max_steps=num_steps, stabilise_every=None)
    options = {"preconditioner": scaled(right / size, inverse.mv), "y0": tree.scale(1 / size, guess)}
    state = solver.init(scaled(size / right, hessian.mv), {})
    # That it has not converged after so many steps is no news.
    answer, _, _ = solver.compute(state, tree.scale(1 / right, vector), options)
    return tree.scale(size, answer)
