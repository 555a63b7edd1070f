"""Solutions by formula."""

from jaxtyping import PyTree

from bilevel.core import Solution
from bilevel.objectives import AbstractExactObjective, AbstractObjective
from bilevel.solvers.base import AbstractSolver, refuse
from bilevel.solvers.loop import Unroll, default_tol, verdict


class Exact(AbstractSolver):
    """The objective's own formula for its minimizer: Cholesky for `Ridge`, the clamp for `Clamp`.

    Its optimality is measured all the same, and judged by 1e-5 in 32 bits, 1e-8 in 64.
    """

    def check(self, objective: AbstractObjective) -> None:
        if not isinstance(objective, AbstractExactObjective):
            raise refuse(self, objective, "it has no formula `minimizer`", "ProximalGradient() or LBFGS()")

    def run(
        self, objective: AbstractObjective, data: PyTree, init: PyTree, *, unroll: Unroll | None = None
    ) -> Solution:
        del unroll
        assert isinstance(objective, AbstractExactObjective)
        params = objective.minimizer(data)
        error = objective.optimality_error(params, data, objective.units(params, data))
        return verdict(params, error, default_tol(params), num_steps=1, max_steps=None)
