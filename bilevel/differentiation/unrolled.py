"""Differentiate the iterations themselves."""

import equinox as eqx
from jaxtyping import PyTree

from bilevel.core import Solution
from bilevel.differentiation.base import AbstractDifferentiation
from bilevel.objectives import AbstractObjective
from bilevel.solvers import AbstractSolver
from bilevel.solvers.loop import Unroll


class Unrolled(AbstractDifferentiation):
    """The derivative of the algorithm as it ran, through every iteration.

    Gradients reach the start and the solver's own array leaves (a step size, a learning rate) too. Reverse mode keeps
    every iterate, up to the solver's `max_steps`: set it low. Prefer `Implicit` unless the iterations are what you
    want to learn: the error of an unrolled derivative lags behind that of the iterate, by a factor that grows with
    the number of steps.

    A step 1/L that the solver takes from the objective is held constant, though L moves with a dictionary or a design:
    in these leaves the derivative is not that of the values which an unfinished algorithm returns. What is left out
    vanishes with convergence, as no solution depends on L. A solver's own `stepsize` is differentiated.

    **Arguments:**

    - `checkpoint`: whether reverse mode keeps about 2 √max_steps iterates only, and computes the others anew, for the
      price of one more forward pass. The derivative is the same.

    !!! cite
        J. Domke: Generic methods for optimization-based modeling. 2012.
        A. Griewank, A. Walther: Algorithm 799: revolve. 2000. (Of checkpoints; these have two levels.)
    """

    checkpoint: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        if not isinstance(self.checkpoint, bool):
            raise ValueError(f"`checkpoint` must be True or False, got {self.checkpoint!r}.")

    def apply(self, solver: AbstractSolver, objective: AbstractObjective, data: PyTree, init: PyTree) -> Solution:
        return solver.run(objective, data, init, unroll=Unroll(checkpoint=self.checkpoint))
