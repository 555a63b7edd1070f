"""One block of the unknown after the other."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree, Scalar, ScalarLike

from bilevel.core import Solution, tree
from bilevel.objectives import AbstractObjective
from bilevel.objectives.blocks import children, subproblem, with_child
from bilevel.solvers.base import AbstractSolver, check_options
from bilevel.solvers.descent import descend, rounding
from bilevel.solvers.loop import Unroll, default_tol, iterate, verdict
from bilevel.solvers.specialist import specialist


class BlockAlternation(AbstractSolver):
    """Minimizes f + g in one block of its unknown after the other, for f convex in each block and separable g.

    A block is a child of `params`: an entry of a tuple or dictionary, a field of a module. Each step starts where the
    block is, and is

    - the specialist's where there is one for the block's problem (a formula, `SparseCoder`);
    - else accelerated proximal gradient, with a Lipschitz constant of the block alone: exact where the block's problem
      knows it, else estimated by power iteration and doubled until the step descends as it must.

    A step that would raise f + g by more than rounding is refused, so that f + g never rises. An objective that is an
    `AbstractBlockObjective` says what its blocks' problems are; for any other they are the objective itself with the
    other blocks held. As f + g need not be convex in all blocks together, the answer is a stationary point, which
    depends on the start.

    **Attributes:**

    - `tol`: the bound on the relative optimality error of all blocks together; None is 1e-5 in 32 bits, 1e-8 in 64.
    - `max_steps`: the most rounds through all blocks.
    - `block_steps`: the most gradient steps in a block.
    - `block_tol`: the steps in a block end when its optimality has fallen by this factor.

    Beside those of every solver, `stats` has `objective_at_start`; `objective` (max_steps, blocks), f + g after each
    block of each round, NaN after the last round; and `block_steps` of the same shape, the gradient steps taken.

    !!! cite
        P. Tseng: Convergence of a block coordinate descent method for nondifferentiable minimization. 2001.
        A. Beck, L. Tetruashvili: On the convergence of block coordinate descent type methods. 2013.
    """

    tol: ScalarLike | None = None
    max_steps: int = 1000
    block_steps: int = 100
    block_tol: ScalarLike = 0.01

    def __check_init__(self):
        check_options(self)

    def check(self, objective: AbstractObjective) -> None:
        pass

    def run(
        self, objective: AbstractObjective, data: PyTree, init: PyTree, *, unroll: Unroll | None = None
    ) -> Solution:
        units = objective.units(init, data)
        tol = jnp.asarray(default_tol(init) if self.tol is None else self.tol).astype(units.lipschitz.dtype)
        blocks = [index for index, block in enumerate(children(init)) if jax.tree.leaves(block)]

        def one_round(state: _State) -> _State:
            params, value, values, counts = state.params, state.value, [], []
            for index in blocks:
                candidate, steps = self._step(objective, data, params, index, unroll)
                reached = objective(candidate, data)
                # Negated, so that NaN is refused.
                refused = ~(reached <= value + rounding(value))
                params, value = tree.where(refused, params, candidate), jnp.where(refused, value, reached)
                values.append(jax.lax.stop_gradient(value))
                counts.append(steps)
            error = objective.optimality_error(params, data, units)
            history = state.history.at[state.round].set(jnp.stack(values))
            steps = state.steps.at[state.round].set(jnp.stack(counts))
            return _State(params, value, error, state.round + 1, history, steps, _same(params, state.params))

        done = lambda state: (state.error <= tol) | jnp.isnan(state.error) | state.still
        # The first round is always taken, so that the error is looked at in one place, and compiled once.
        value, error = objective(init, data), jnp.full_like(units.lipschitz, jnp.inf)
        # As many rows as rounds, also where exactly so many are asked for.
        shape = (self.max_steps if unroll is None or unroll.steps is None else unroll.steps, len(blocks))
        history, steps = jnp.full(shape, jnp.nan, value.dtype), jnp.zeros(shape, jnp.int32)
        start = _State(init, value, error, jnp.asarray(0), history, steps, jnp.asarray(False))
        end, num_rounds = iterate(one_round, done, start, self.max_steps, unroll)
        solution = verdict(end.params, end.error, tol, num_rounds, self.max_steps)
        stats = {"objective_at_start": value, "objective": end.history, "block_steps": end.steps}
        return Solution(solution.params, solution.result, solution.stats | stats)

    def _step(
        self, objective: AbstractObjective, data: PyTree, params: PyTree, index: int, unroll: Unroll | None
    ) -> tuple[PyTree, Int[Array, ""]]:
        problem, own_data = subproblem(objective, index, params, data)
        start, solver = children(params)[index], specialist(problem)
        # Of so many rounds each step is one of many on the block.
        within = None if unroll is None else Unroll(None if unroll.steps is None else self.block_steps)
        if solver is None:
            block, steps = descend(problem, own_data, start, self.block_steps, self.block_tol, within)
        else:
            solution = solver.run(problem, own_data, start, unroll=within)
            block, steps = solution.params, solution.stats["num_steps"]
        return with_child(params, index, block), jnp.asarray(steps).astype(jnp.int32)


class _State(NamedTuple):
    params: PyTree
    value: Scalar
    error: Scalar
    round: Int[Array, ""]
    history: Float[Array, "rounds blocks"]
    steps: Int[Array, "rounds blocks"]
    still: Bool[Array, ""]


def _same(a: Any, b: Any) -> Bool[Array, ""]:
    """Whether nothing moved."""
    equal = [jnp.all(x == y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]
    return jnp.all(jnp.stack(equal))
