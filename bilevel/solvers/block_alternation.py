"""One block of the unknown after the other."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree, Scalar, ScalarLike

from bilevel.core import Solution, tree
from bilevel.objectives import AbstractBlockObjective, AbstractObjective
from bilevel.objectives.blocks import children, subproblem, value_after, with_child
from bilevel.scale import DeviceMesh
from bilevel.solvers.base import AbstractSolver, check_options
from bilevel.solvers.descent import descend, rounding
from bilevel.solvers.loop import Unroll, default_tol, iterate, verdict
from bilevel.solvers.specialist import specialist

#: The first β of a jump, and what becomes of it after one that lands and after one that does not.
REACH, LONGER, SHORTER = 0.8, 1.1, 0.7
#: So many roundings of f + g must be what a round gains, for f + g to tell a good jump from a bad one.
BLIND = 1e4
#: The error that is assumed before the first round.
FIRST_ERROR = 0.1


class BlockAlternation(AbstractSolver):
    """Minimizes f + g in one block of its unknown after the other, for f convex in each block and separable g.

    A block is a child of `params`: an entry of a tuple or dictionary, a field of a module. Each step starts where the
    block is, and is

    - the specialist's where there is one for the block's problem (a formula, `SparseCoder`);
    - else accelerated proximal gradient, with a Lipschitz constant of the block alone: exact where the block's problem
      knows it, else estimated by power iteration and doubled until the step descends as it must.

    A step that would raise f + g by more than rounding is refused, so that f + g never rises. As the blocks follow each
    other slowly, a round begins with a jump: its first step sees the others moved on as they moved in the round before,
    and only where that raises f + g, the others as they are. (Unrolled rounds have no jump, and specialists are exact.)
    An objective that is an `AbstractBlockObjective` says what its blocks' problems are; for any other they are the
    objective itself with the other blocks held. As f + g need not be convex in all blocks together, the answer is a
    stationary point, which depends on the start.

    **Attributes:**

    - `tol`: the bound on the relative optimality error of all blocks together; None is 1e-5 in 32 bits, 1e-8 in 64.
    - `max_steps`: the most rounds through all blocks.
    - `block_steps`: the most gradient steps in a block.
    - `block_tol`: the steps in a block end when its optimality has fallen by this factor.
    - `jump`: whether rounds begin with a jump. It can do harm where the first block is not solved exactly.
    - `forcing`: a specialist need not be more exact than this part of the error of the last round.
    - `mesh`: for specialists, the devices of a `jax.sharding.Mesh` among which the samples lie.

    Beside those of every solver, `stats` has `objective_at_start`; `objective` (max_steps, blocks), f + g after each
    block of each round, NaN after the last round; and `block_steps` of the same shape, the gradient steps taken.

    !!! cite
        P. Tseng: Convergence of a block coordinate descent method for nondifferentiable minimization. 2001.
        A. Beck, L. Tetruashvili: On the convergence of block coordinate descent type methods. 2013.
        R. Dembo, S. Eisenstat, T. Steihaug: Inexact Newton methods. 1982.
        A. M. S. Ang, N. Gillis: Accelerating nonnegative matrix factorization algorithms using extrapolation. 2019.
    """

    tol: ScalarLike | None = None
    max_steps: int = 1000
    block_steps: int = 100
    block_tol: ScalarLike = 0.01
    forcing: ScalarLike = 0.2
    jump: bool = True
    mesh: DeviceMesh | None = eqx.field(converter=DeviceMesh.of, default=None, kw_only=True)

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
            params, value, reach, values, counts = state.params, state.value, state.reach, [], []
            enough = None if unroll is not None else self._enough(state.error, tol)
            for index in blocks:
                step = lambda at, value, index=index: self._step(objective, data, at, value, index, enough, unroll)
                if self.jump and index == blocks[0] and len(blocks) > 1 and unroll is None:
                    trial, reach = _jump(objective, data, state, step, index)
                else:
                    trial = step(params, value)
                # Negated, so that NaN is refused.
                refused = ~(trial.value <= value + rounding(value))
                params, value = tree.where(refused, params, trial.params), jnp.where(refused, value, trial.value)
                values.append(jax.lax.stop_gradient(value))
                counts.append(trial.steps)
            still = _same(params, state.params)
            if unroll is None and isinstance(objective, AbstractBlockObjective):
                # Where a bound from below exceeds the tolerance, there is a next round, and no need to know more.
                bound, last = objective.least_error(params, data, units), still | (state.round + 1 >= self.max_steps)
                whole = lambda: objective.optimality_error(params, data, units)
                error = jax.lax.cond((bound > tol) & ~last, lambda: bound, whole)
            else:
                error = objective.optimality_error(params, data, units)
            history = state.history.at[state.round].set(jnp.stack(values))
            steps = state.steps.at[state.round].set(jnp.stack(counts))
            return _State(
                params, state.params, reach, value, state.value, error, state.round + 1, history, steps, still
            )

        done = lambda state: (state.error <= tol) | jnp.isnan(state.error) | state.still
        # The first round is always taken, so that the error is looked at in one place, and compiled once.
        value, error = objective(init, data), jnp.full_like(units.lipschitz, jnp.inf)
        # As many rows as rounds, also where exactly so many are asked for.
        shape = (self.max_steps if unroll is None or unroll.steps is None else unroll.steps, len(blocks))
        history, steps = jnp.full(shape, jnp.nan, value.dtype), jnp.zeros(shape, jnp.int32)
        reach = jnp.full_like(value, REACH)
        start = _State(init, init, reach, value, value, error, jnp.asarray(0), history, steps, jnp.asarray(False))
        end, num_rounds = iterate(one_round, done, start, self.max_steps, unroll)
        solution = verdict(end.params, end.error, tol, num_rounds, self.max_steps)
        stats = {"objective_at_start": value, "objective": end.history, "block_steps": end.steps}
        return Solution(solution.params, solution.result, solution.stats | stats)

    def _enough(self, error: Scalar, tol: Scalar) -> Scalar:
        """Of which error a block need not be rid."""
        return jnp.maximum(jnp.asarray(self.forcing).astype(error.dtype) * jnp.minimum(error, FIRST_ERROR), 0.1 * tol)

    def _step(
        self,
        objective: AbstractObjective,
        data: PyTree,
        params: PyTree,
        value: Scalar,
        index: int,
        enough: Scalar | None,
        unroll: Unroll | None,
    ) -> "_Trial":
        """`params`, where f + g is `value`, with another block."""
        problem, own_data = subproblem(objective, index, params, data)
        start, solver = children(params)[index], specialist(problem, enough, self.mesh)
        # Of so many rounds each step is one of many on the block.
        within = None if unroll is None else Unroll(None if unroll.steps is None else self.block_steps)
        if solver is None:
            block, steps = descend(problem, own_data, start, self.block_steps, self.block_tol, within)
        else:
            solution = solver.run(problem, own_data, start, unroll=within)
            block, steps = solution.params, solution.stats["num_steps"]
        reached = value_after(objective, index, params, value, block, data)
        return _Trial(with_child(params, index, block), reached, jnp.asarray(steps).astype(jnp.int32))


# Blocks that each wait for the other move in the same direction round after round, a little each time. Going on by
# β (y − y⁻) in all blocks but the first, from the last round's y⁻ to y, saves rounds, if the step in the first block
# then ends below f + g(y). The prox with no step is the projection on the domain of g.
def _jump(
    objective: AbstractObjective,
    data: PyTree,
    state: "_State",
    step: "Callable[[PyTree, Scalar], _Trial]",
    index: int,
) -> tuple["_Trial", Scalar]:
    """The step in the first block from ahead; where f + g would rise, or moves too little to tell, from `params`."""
    forth = lambda new, old: new + state.reach.astype(new.dtype) * (new - old)
    ahead, penalty = jax.tree.map(forth, state.params, state.before), objective.penalty()
    ahead = ahead if penalty is None else penalty.prox(ahead, 0.0)
    ahead = with_child(ahead, index, children(state.params)[index])
    visible = (state.round > 0) & (state.value_before - state.value > BLIND * rounding(state.value))
    ceiling = state.value + rounding(state.value)

    def attempt(trials: _Trials) -> _Trials:
        at = tree.where(trials.ahead, ahead, state.params)
        trial = step(at, jnp.where(trials.ahead, jnp.inf, state.value))
        return _Trials(trial, jnp.asarray(False), ~trials.ahead | (trial.value <= ceiling))

    start = _Trials(_Trial(state.params, state.value, jnp.asarray(0, jnp.int32)), visible, jnp.asarray(False))
    end, count = iterate(attempt, lambda trials: trials.over, start, 2, None)
    landed = visible & (count == 1)
    longer, shorter = jnp.minimum(LONGER * state.reach, 1), SHORTER * state.reach
    return end.trial, jnp.where(visible, jnp.where(landed, longer, shorter), state.reach)


class _Trial(NamedTuple):
    params: PyTree
    value: Scalar
    steps: Int[Array, ""]


class _Trials(NamedTuple):
    """The last one, whether the next is from ahead, and whether there is none."""

    trial: _Trial
    ahead: Bool[Array, ""]
    over: Bool[Array, ""]


class _State(NamedTuple):
    """`params` and `value` of the last round and of the one `before`; `reach` is the β of a jump."""

    params: PyTree
    before: PyTree
    reach: Scalar
    value: Scalar
    value_before: Scalar
    error: Scalar
    round: Int[Array, ""]
    history: Float[Array, "rounds blocks"]
    steps: Int[Array, "rounds blocks"]
    still: Bool[Array, ""]


def _same(a: Any, b: Any) -> Bool[Array, ""]:
    """Whether nothing moved."""
    equal = [jnp.all(x == y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]
    return jnp.all(jnp.stack(equal))
