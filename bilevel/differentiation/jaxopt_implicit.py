"""JAXopt's own implicit differentiation, to be compared with."""

from jaxtyping import PyTree

from bilevel.core import Solution, tree
from bilevel.differentiation.base import AbstractDifferentiation
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

    Serves ProximalGradient, ProjectedGradient, GradientDescent, LBFGS, BFGS and NonlinearCG.

    !!! cite
        M. Blondel et al.: Efficient and modular implicit differentiation. 2022.
    """

    def apply(self, solver: AbstractSolver, objective: AbstractObjective, data: PyTree, init: PyTree) -> Solution:
        if not isinstance(solver, SERVED):
            names = ", ".join(f"{kind.__name__}()" for kind in SERVED)
            raise ValueError(f"JaxoptImplicit doesn't work with {type(solver).__name__}. Try one of {names}.")
        return run_with_implicit_diff(tree.constant(solver), objective, data, tree.constant(init), custom_root)
