"""Differentiate the iterations themselves."""

from jaxtyping import PyTree

from bilevel.core import Solution
from bilevel.differentiation.base import AbstractDifferentiation
from bilevel.objectives import AbstractObjective
from bilevel.solvers import AbstractSolver


class Unrolled(AbstractDifferentiation):
    """The derivative of the algorithm as it ran, through every iteration.

    Gradients reach the start and the solver's own array leaves (a step size, a learning rate) too. Reverse mode keeps
    every iterate, up to the solver's `max_steps`: set it low. Prefer `Implicit` unless the iterations are what you
    want to learn: the error of an unrolled derivative lags behind that of the iterate, by a factor that grows with
    the number of steps.

    !!! cite
        J. Domke: Generic methods for optimization-based modeling. 2012.
    """

    def apply(self, solver: AbstractSolver, objective: AbstractObjective, data: PyTree, init: PyTree) -> Solution:
        return solver.run(objective, data, init, unroll=True)
