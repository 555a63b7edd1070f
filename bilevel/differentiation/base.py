"""The contract of a way of differentiating."""

import abc

import equinox as eqx
from jaxtyping import PyTree

from bilevel.core import Solution
from bilevel.objectives import AbstractObjective
from bilevel.solvers import AbstractSolver


class AbstractDifferentiation(eqx.Module):
    """How a solution depends on its objective and data.

    It is given the solver as an argument, so that no solver mentions derivatives. To add one: `apply`.
    """

    def resolve(self, throw: bool) -> "AbstractDifferentiation":
        """The same, with what depends on whether the caller wants errors."""
        del throw
        return self

    @abc.abstractmethod
    def apply(self, solver: AbstractSolver, objective: AbstractObjective, data: PyTree, init: PyTree) -> Solution:
        """Solve; the outcome's derivatives are this object's business."""
