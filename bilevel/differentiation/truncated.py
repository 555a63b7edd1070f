"""Differentiate the last iterations only."""

import equinox as eqx
from jaxtyping import PyTree

from bilevel.core import Solution, tree
from bilevel.core.policy import Policy, check_policy
from bilevel.core.requirements import check_whole
from bilevel.differentiation.base import AbstractDifferentiation, judge
from bilevel.differentiation.once import once, with_derivative_of
from bilevel.objectives import AbstractObjective
from bilevel.solvers import AbstractSolver
from bilevel.solvers.loop import Unroll


class Truncated(AbstractDifferentiation):
    """The derivative of the last k iterations: of `num_steps` steps of the solver from its solution, held constant.

    For a step y ↦ Φ(y, θ) with fixed point y*(θ) and ∂Φ/∂y = A there, k steps have the derivative

        dy = Σ_{i<k} Aⁱ ∂Φ/∂θ dθ,

    the first k terms of the Neumann series of the implicit one, (I − A)⁻¹ ∂Φ/∂θ dθ. The error is at most C ρᵏ, with ρ
    the rate at which the solver converges: 1 − 1/κ for gradient descent on a condition number κ. (Solvers with memory
    start it anew at the solution.) Memory grows with k instead of with the number of steps that the solve took. Value,
    result and stats are those of the solve, whatever k is. A formula (`Exact`) is differentiated as it stands.

    Nothing flows to the start. Gradients in the solver's own leaves are those of the k steps: next to zero, as a
    solution is a fixed point whatever the step size. Second derivatives would miss that the solution moves, and raise.
    Solvers that learn from differences between iterates (`LBFGS`, `BFGS`, `NonlinearCG`, `AndersonAcceleration`) are
    refused, as at a solution these are rounding; nor do Optax's optimizers that normalize gradients (Adam) suit.

    **Arguments:**

    - `num_steps`: k.
    - `on_failure`: as for `Implicit`; `"warn"` and `"ignore"` give the derivative of k steps from a failed solution.

    !!! cite
        A. Shaban, C.-A. Cheng, N. Hatch, B. Boots: Truncated back-propagation for bilevel optimization. 2019.
    """

    num_steps: int
    on_failure: Policy | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        check_whole("num_steps", self.num_steps)
        check_policy("on_failure", self.on_failure, optional=True)

    def apply(self, solver: AbstractSolver, objective: AbstractObjective, data: PyTree, init: PyTree) -> Solution:
        return truncated(self.num_steps, self.on_failure, solver, objective, data, init)


class OneStep(AbstractDifferentiation):
    """The derivative of one further step of the solver from its solution, held constant: Jacobian-free.

    For a step y ↦ Φ(y, θ) it is ∂Φ/∂θ dθ, which needs neither a linear system nor the past; the same as `Truncated(1)`.
    Its relative error is at most the rate ρ at which the solver converges: large for gradient descent, but zero for a
    solver that converges superlinearly, as `Newton` does: there it equals `Implicit`.

    **Arguments:**

    - `on_failure`: as for `Truncated`.

    !!! cite
        J. Bolte, E. Pauwels, S. Vaiter: One-step differentiation of iterative algorithms. 2023.
    """

    on_failure: Policy | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        check_policy("on_failure", self.on_failure, optional=True)

    def apply(self, solver: AbstractSolver, objective: AbstractObjective, data: PyTree, init: PyTree) -> Solution:
        return truncated(1, self.on_failure, solver, objective, data, init)


def truncated(
    num_steps: int,
    on_failure: Policy | None,
    solver: AbstractSolver,
    objective: AbstractObjective,
    data: PyTree,
    init: PyTree,
) -> Solution:
    """Solve; then so many steps from the solution, which give the derivative and nothing else."""
    still = tree.constant(solver)
    solution = still.run(*tree.constant((objective, data, init)))
    # At both ends, as in between a `where` would hide NaN from some entries. No value that is seen becomes NaN.
    objective, data = judge(on_failure, solution, once((objective, data)))
    further = solver.run(objective, data, tree.constant(solution.params), unroll=Unroll(steps=num_steps))
    params = with_derivative_of(solution.params, judge(on_failure, solution, further.params))
    return Solution(params, solution.result, solution.stats)
