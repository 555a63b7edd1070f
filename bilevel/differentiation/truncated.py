"""Differentiate the last iterations only."""

from typing import Literal

import equinox as eqx
import jax
from jaxtyping import Array, Bool, PyTree

from bilevel.core import RESULTS, Solution, tree
from bilevel.differentiation.base import AbstractDifferentiation
from bilevel.objectives import AbstractObjective
from bilevel.solvers import AbstractSolver
from bilevel.solvers.loop import Unroll

OnFailure = Literal["nan", "ignore"]


class Truncated(AbstractDifferentiation):
    """The derivative of the last k iterations: of `num_steps` steps of the solver from its solution, held constant.

    For a step y ↦ Φ(y, θ) with fixed point y*(θ) and ∂Φ/∂y = A there, k steps have the derivative

        dy = Σ_{i<k} Aⁱ ∂Φ/∂θ dθ,

    the first k terms of the Neumann series of the implicit one, (I − A)⁻¹ ∂Φ/∂θ dθ. The error is at most C ρᵏ, with ρ
    the rate at which the solver converges: 1 − 1/κ for gradient descent on a condition number κ. (Solvers with memory
    start it anew at the solution.) Memory grows with k instead of with the number of steps that the solve took. Value,
    result and stats are those of the solve, whatever k is. A formula (`Exact`) is differentiated as it stands.

    Nothing flows to the start. Gradients in the solver's own leaves are those of the k steps: next to zero, as a
    solution is a fixed point whatever the step size. Second derivatives miss that the solution moves. Solvers that
    learn from differences between iterates (`LBFGS`, `BFGS`, `NonlinearCG`, `AndersonAcceleration`) are refused, as at
    a solution these are rounding; nor do Optax's optimizers that normalize gradients (Adam) suit.

    **Arguments:**

    - `num_steps`: k.
    - `on_failure`: what a solution that failed its tolerance gives for derivatives, where `argmin(throw=False)` let it
      pass. `"nan"`: NaN, so that no wrong number passes silently. `"ignore"`: the derivative of k steps from there.

    !!! cite
        A. Shaban, C.-A. Cheng, N. Hatch, B. Boots: Truncated back-propagation for bilevel optimization. 2019.
    """

    num_steps: int
    on_failure: OnFailure = eqx.field(static=True, default="nan")

    def __check_init__(self):
        if not isinstance(self.num_steps, int) or isinstance(self.num_steps, bool) or self.num_steps < 1:
            raise ValueError(f"`num_steps` must be a whole number of at least 1, got {self.num_steps!r}.")
        check_on_failure(self.on_failure)

    def apply(self, solver: AbstractSolver, objective: AbstractObjective, data: PyTree, init: PyTree) -> Solution:
        return truncated(self.num_steps, self.on_failure, solver, objective, data, init)


class OneStep(AbstractDifferentiation):
    """The derivative of one further step of the solver from its solution, held constant: Jacobian-free.

    For a step y ↦ Φ(y, θ) it is ∂Φ/∂θ dθ, which needs neither a linear system nor the past; the same as `Truncated(1)`.
    Its relative error is the rate ρ at which the solver converges: large for gradient descent, but zero for a solver
    that converges superlinearly, as `Newton` does: there it equals `Implicit`.

    **Arguments:**

    - `on_failure`: as for `Truncated`.

    !!! cite
        J. Bolte, E. Pauwels, S. Vaiter: One-step differentiation of iterative algorithms. 2023.
    """

    on_failure: OnFailure = eqx.field(static=True, default="nan")

    def __check_init__(self):
        check_on_failure(self.on_failure)

    def apply(self, solver: AbstractSolver, objective: AbstractObjective, data: PyTree, init: PyTree) -> Solution:
        return truncated(1, self.on_failure, solver, objective, data, init)


def check_on_failure(value: OnFailure) -> None:
    if value not in ("nan", "ignore"):
        raise ValueError(f"`on_failure` must be 'nan' or 'ignore', got {value!r}.")


def truncated(
    num_steps: int,
    on_failure: OnFailure,
    solver: AbstractSolver,
    objective: AbstractObjective,
    data: PyTree,
    init: PyTree,
) -> Solution:
    """Solve; then so many steps from the solution, which give the derivative and nothing else."""
    still = tree.constant(solver)
    solution = still.run(*tree.constant((objective, data, init)))
    good: Bool[Array, ""] = (solution.result == RESULTS.successful) | (on_failure == "ignore")
    # At both ends, as in between a `where` would hide NaN from some entries. No value that is seen becomes NaN.
    objective, data = tree.nan_unless(good, (objective, data))
    further = solver.run(objective, data, tree.constant(solution.params), unroll=Unroll(steps=num_steps))
    params = with_derivative_of(solution.params, tree.nan_unless(good, further.params))
    return Solution(params, solution.result, solution.stats)


# `value + further − stop_gradient(further)` would round, and be NaN where `further` is.
@jax.custom_jvp
def with_derivative_of(value: PyTree, further: PyTree) -> PyTree:
    """`value`, which depends on its inputs as `further` does."""
    del further
    return value


@with_derivative_of.defjvp
def _(primals: tuple[PyTree, PyTree], tangents: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
    return primals[0], tangents[1]
