"""JAXopt's own implicit differentiation, to be compared with."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from bilevel.core import Solution, tree
from bilevel.core.policy import Policy, check_policy
from bilevel.differentiation.base import AbstractDifferentiation, judge
from bilevel.differentiation.once import with_derivative_of
from bilevel.objectives import AbstractObjective
from bilevel.solvers import (
    BFGS,
    LBFGS,
    AbstractSolver,
    GradientDescent,
    NonlinearCG,
    ProjectedGradient,
    ProximalGradient,
)
from bilevel.solvers.jaxopt_adapter import custom_root
from bilevel.solvers.jaxopt_driver import run_with_implicit_diff

SERVED = (ProximalGradient, ProjectedGradient, GradientDescent, LBFGS, BFGS, NonlinearCG)


class JaxoptImplicit(AbstractDifferentiation):
    """What JAXopt gives by itself, with `implicit_diff=True`. It is here to be compared with; use `Implicit`.

    The solver runs as JAXopt runs it: on the objective as it is, in JAXopt's loop, until JAXopt's own error, in
    units of its own, is below the solver's `tol`; by that `result` and `stats["optimality"]` are to be read. The
    adjoint is solved by its default, conjugate gradient on the normal equations. Reverse mode only: forward mode
    raises JAX's `TypeError` about `custom_vjp`. Nothing flows to solver and start.

    What goes wrong with it, each time without a word:

    - A solve that stopped early is differentiated as if it were a solution; here `result` tells, and no more.
    - Multiplying the objective by a number, which changes no solution, changes the derivative: its fixed point takes
      a step of length 1, and the tolerance of its linear solver does not follow.
    - Sparse solutions: its system is that of all coordinates, singular where there are more of these than equations,
      instead of that of the support.
    - Batches: all samples share one system with one tolerance, so that the worst sample is far worse than the mean.
    - Gradients may be NaN at the kinks of functions; those of the penalties here are this library's own.

    **Arguments:**

    - `on_failure`: what a failed solve gives for derivatives, as for `Implicit`; by default `"ignore"`, as in JAXopt.

    Serves ProximalGradient, ProjectedGradient, GradientDescent, LBFGS, BFGS and NonlinearCG.

    !!! cite
        M. Blondel et al.: Efficient and modular implicit differentiation. 2022.
    """

    on_failure: Policy | None = eqx.field(static=True, default="ignore")

    def __check_init__(self):
        check_policy("on_failure", self.on_failure, optional=True)

    def apply(self, solver: AbstractSolver, objective: AbstractObjective, data: PyTree, init: PyTree) -> Solution:
        if not isinstance(solver, SERVED):
            names = ", ".join(f"{kind.__name__}()" for kind in SERVED)
            raise ValueError(f"JaxoptImplicit doesn't work with {type(solver).__name__}. Try one of {names}.")
        solution = run_with_implicit_diff(tree.constant(solver), objective, data, tree.constant(init), custom_root)
        if self.on_failure == "ignore":
            return solution
        # JAXopt's linear solver takes a right side that is NaN for solved, by 0. So a failure goes past it, to what the
        # gradients are taken in, along a sum of none of its entries.
        worth = judge(self.on_failure, solution, jnp.ones(()))
        judged = jax.tree.leaves(tree.scale(worth, eqx.filter((objective, data), eqx.is_inexact_array)))
        tied = lambda x: sum((tree.nothing(leaf).astype(x.dtype) for leaf in judged), x)
        params = with_derivative_of(solution.params, jax.tree.map(tied, solution.params))
        return Solution(params, solution.result, solution.stats)
