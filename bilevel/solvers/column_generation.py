"""Points of the convex hull of many samples, by the few samples that matter."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree, Scalar, ScalarLike

from bilevel.core import Solution
from bilevel.objectives import AbstractObjective, HullPoints
from bilevel.objectives.archetypes import mixed
from bilevel.solvers.base import AbstractSolver, check_options, refuse
from bilevel.solvers.descent import descend
from bilevel.solvers.loop import Unroll, iterate, verdict

#: How many samples may enter in a round.
ENTERING = 8


# A point of the hull of N samples in d dimensions is a mixture of d + 1 of them (Carathéodory), and a solution needs no
# more. So each row of B moves on few columns at a time: those on which it rests, and those into which f falls fastest.
# One gradient over all samples, h = ∇f(B), finds these and tells how good B is: as f is convex, no B lowers it by more
# than Σₗ ⟨hₗ, bₗ⟩ − min hₗ. The problem on the columns costs nothing in N.
class ColumnGeneration(AbstractSolver):
    """Minimizes `HullPoints` over all samples by problems on a few of them, each by accelerated proximal gradient.

    A round computes the gradient for all samples, lets the best of them enter for each point, drops those of weight
    zero, and descends. Each point keeps at most features + 9 samples; one that starts as a mixture of more starts
    anew, at its best sample.

    **Attributes:**

    - `tol`: rounds end when the duality gap has fallen by this factor.
    - `max_steps`: the most rounds.
    - `block_steps`: the most gradient steps in a round.
    - `block_tol`: they end when the optimality on these few samples has fallen by this factor.

    !!! cite
        P. Wolfe: Finding the nearest point in a polytope. 1976.
        B. von Hohenbalken: Simplicial decomposition in nonlinear programming algorithms. 1977.
    """

    tol: ScalarLike = 0.1
    max_steps: int = 4
    block_steps: int = 300
    block_tol: ScalarLike = 0.01

    def __check_init__(self):
        check_options(self)

    def check(self, objective: AbstractObjective) -> None:
        if not isinstance(objective, HullPoints):
            raise refuse(self, objective, "its unknown are not mixtures of samples", "ProximalGradient()")

    def run(
        self, objective: AbstractObjective, data: PyTree, init: PyTree, *, unroll: Unroll | None = None
    ) -> Solution:
        assert isinstance(objective, HullPoints)
        width = min(data.shape[0], data.shape[1] + 1 + ENTERING)
        crowded = jnp.sum(init > 0, axis=1, keepdims=True) > width
        start = jnp.asarray(jnp.where(crowded, objective.init(data), init))

        def one_round(state: _State) -> _State:
            at, weights = _columns(state.mixtures, state.gradient, width)
            within = None if unroll is None else Unroll(None if unroll.steps is None else self.block_steps)
            # As weights sum to one, samples may be measured from the point itself: Z = z + U (X − 1 zᵀ). Those that
            # matter are near it, so that the Lipschitz constant falls with their distances.
            points = mixed(state.mixtures, data)
            near = HullPoints(objective.gram, objective.linear - objective.gram @ points)
            weights, steps = descend(
                near, data[at] - points[:, None], weights, self.block_steps, self.block_tol, within
            )
            # Where a column is filled in twice, one of the two has no weight at the start; added up they are right.
            rows = jnp.arange(len(at))[:, None]
            mixtures = jnp.zeros_like(state.mixtures).at[rows, at].add(weights)
            gradient = objective.gradient(mixtures, data)
            return _State(mixtures, gradient, _gap(mixtures, gradient), state.steps + steps)

        gradient = objective.gradient(start, data)
        first = _gap(start, gradient)
        state = _State(start, gradient, first, jnp.asarray(0))
        done = lambda state: ~(state.gap > jnp.asarray(self.tol).astype(first.dtype) * first)
        end, num_rounds = iterate(one_round, done, state, self.max_steps, unroll)
        error = jnp.where(first > 0, end.gap / jnp.where(first > 0, first, 1), 0)
        solution = verdict(end.mixtures, error, self.tol, num_rounds, self.max_steps)
        return Solution(solution.params, solution.result, solution.stats | {"num_steps": end.steps})


class _State(NamedTuple):
    mixtures: Float[Array, "points samples"]
    gradient: Float[Array, "points samples"]
    gap: Scalar
    steps: Int[Array, ""]


def _gap(mixtures: Array, gradient: Array) -> Scalar:
    return jnp.sum(jnp.sum(mixtures * gradient, axis=1) - jnp.min(gradient, axis=1))


def _columns(
    mixtures: Float[Array, "points samples"], gradient: Float[Array, "points samples"], width: int
) -> tuple[Int[Array, "points width"], Float[Array, "points width"]]:
    """For each point the samples on which it rests, filled up with those that enter; and its weights on them."""

    def of_row(mixture: Array, slope: Array) -> tuple[Array, Array]:
        # The n-th sample of positive weight is the first at which n of them have been counted.
        places = jnp.arange(width)
        resting = jnp.searchsorted(jnp.cumsum(mixture > 0), places + 1)
        count = jnp.sum(mixture > 0)
        best = _best(slope)
        at = jnp.where(places < count, resting.astype(best.dtype), best[(places - count) % len(best)])
        return at, jnp.where(places < count, mixture[at], 0)

    return jax.vmap(of_row)(mixtures, gradient)


def _best(slope: Float[Array, " samples"]) -> Int[Array, " entering"]:
    """The best of every `ENTERING`-th sample, the best of all first: a pass, where the very best need a sort."""
    count = min(ENTERING, len(slope))
    short = -len(slope) % count
    parts = jnp.pad(slope, (0, short), constant_values=jnp.inf).reshape(-1, count)
    best = jnp.argmin(parts, axis=0) * count + jnp.arange(count)
    return best[jnp.argsort(slope[best])]
