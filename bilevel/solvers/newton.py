"""Newton's method."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, PyTree, Scalar, ScalarLike

from bilevel.core import Solution, tree
from bilevel.core.linear_solve import solve
from bilevel.objectives import AbstractObjective
from bilevel.solvers.base import AbstractSolver, check_options, check_smooth
from bilevel.solvers.loop import Unroll, default_tol, iterate, verdict

#: Armijo's condition asks for this part of the decrease that the slope promises.
SUFFICIENT = 1e-4
#: The most halvings of a step.
MAX_HALVINGS = 30


class Newton(AbstractSolver):
    """Newton's method  y ← y − t ∇²f(y)⁻¹ ∇f(y),  for smooth objectives with a positive definite Hessian.

    The step t is the first of 1, ½, ¼, … that decreases f enough. Converges quadratically, in a handful of steps, each
    one linear system with the objective's own `hessian`. As ∇f = 0 at a solution, the derivative of one step there,

        dy = −∇²f(y)⁻¹ ∂∇f(y)/∂θ dθ,

    is that of the solution: with this solver `OneStep` equals `Implicit`.

    !!! cite
        J. Nocedal, S. Wright: Numerical Optimization, 2nd edition, section 3.3. 2006.
    """

    tol: ScalarLike | None = None
    max_steps: int = 100

    def __check_init__(self):
        check_options(self)

    def check(self, objective: AbstractObjective) -> None:
        check_smooth(self, objective)

    def run(
        self, objective: AbstractObjective, data: PyTree, init: PyTree, *, unroll: Unroll | None = None
    ) -> Solution:
        units = objective.units(init, data)
        tol = jnp.asarray(default_tol(init) if self.tol is None else self.tol).astype(units.lipschitz.dtype)

        def step(state: _State) -> _State:
            gradient = objective.gradient(state.params, data)
            direction = optax.tree.scale(-1, solve(objective.hessian(state.params, data), gradient))
            whole = jnp.ones_like(tol)
            # A given number of steps starts from a solution, where f says nothing about them.
            search = unroll is None or unroll.steps is None
            stepsize = _backtrack(objective, data, state.params, gradient, direction) if search else whole
            params = optax.tree.add_scale(state.params, stepsize, direction)
            return _State(params, objective.optimality_error(params, data, units))

        done = lambda state: (state.error <= tol) | jnp.isnan(state.error)
        start = _State(init, objective.optimality_error(init, data, units))
        (params, error), num_steps = iterate(step, done, start, self.max_steps, unroll)
        return verdict(params, error, tol, num_steps, self.max_steps)


class _State(NamedTuple):
    params: PyTree
    error: Scalar


def _backtrack(
    objective: AbstractObjective, data: PyTree, params: PyTree, gradient: PyTree, direction: PyTree
) -> Scalar:
    """The first t of 1, ½, ¼, … with  f(y + t d) ≤ f(y) − 10⁻⁴ t |∇f·d| + rounding.  A choice, so a constant."""
    objective, data, params, gradient, direction = tree.constant((objective, data, params, gradient, direction))
    here = objective.smooth(params, data)
    slope = optax.tree.vdot(gradient, direction)
    # Near a solution f changes by less than it is rounded, and the whole step is right.
    rounding = 10 * jnp.finfo(here.dtype).eps * jnp.abs(here)

    least = 0.5**MAX_HALVINGS

    def too_long(stepsize: Scalar) -> Bool[Array, ""]:
        there = objective.smooth(optax.tree.add_scale(params, stepsize, direction), data)
        # Negated, so that NaN is too long.
        return (stepsize > least) & ~(there <= here - SUFFICIENT * stepsize * jnp.abs(slope) + rounding)

    return jax.lax.while_loop(too_long, lambda stepsize: stepsize / 2, jnp.ones_like(here))
