"""Points of the convex hull of many samples, by the few samples that matter."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree, Scalar, ScalarLike

from bilevel.core import Solution
from bilevel.objectives import AbstractObjective, HullPoints
from bilevel.objectives.archetypes import mixed
from bilevel.scale import DeviceMesh
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
    - `mesh`: the devices of a `jax.sharding.Mesh` among which the samples lie.

    !!! cite
        P. Wolfe: Finding the nearest point in a polytope. 1976.
        B. von Hohenbalken: Simplicial decomposition in nonlinear programming algorithms. 1977.
    """

    tol: ScalarLike = 0.1
    max_steps: int = 4
    block_steps: int = 300
    block_tol: ScalarLike = 0.01
    mesh: DeviceMesh | None = eqx.field(converter=DeviceMesh.of, default=None, kw_only=True)

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
            at, weights = _columns(state.mixtures, state.gradient, width, self.mesh)
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
        # Written so that NaN stays NaN.
        error = jnp.where(first <= 0, 0, end.gap / jnp.where(first <= 0, 1, first))
        solution = verdict(end.mixtures, error, self.tol, num_rounds, self.max_steps)
        return Solution(solution.params, solution.result, solution.stats | {"num_steps": end.steps})


class _State(NamedTuple):
    mixtures: Float[Array, "points samples"]
    gradient: Float[Array, "points samples"]
    gap: Scalar
    steps: Int[Array, ""]


def _gap(mixtures: Array, gradient: Array) -> Scalar:
    return jnp.sum(jnp.sum(mixtures * gradient, axis=1) - jnp.min(gradient, axis=1))


class _Candidates(NamedTuple):
    """Of the samples of each device, for each point: those on which it rests, in their order, with their weights, 0
    beyond the last; and the best of each class of samples, with its slope."""

    resting: Int[Array, "*devices points width"]
    weights: Float[Array, "*devices points width"]
    leading: Int[Array, "*devices points entering"]
    slopes: Float[Array, "*devices points entering"]


def _columns(
    mixtures: Float[Array, "points samples"],
    gradient: Float[Array, "points samples"],
    width: int,
    mesh: DeviceMesh | None,
) -> tuple[Int[Array, "points width"], Float[Array, "points width"]]:
    """For each point the samples on which it rests, filled up with those that enter; and its weights on them."""
    count = min(ENTERING, mixtures.shape[1])
    of_point = lambda mixture, slope, first: _candidates(mixture, slope, width, count, first)
    of_points: Callable[..., _Candidates] = jax.vmap(of_point, in_axes=(0, 0, None))
    if mesh is None:
        told = jax.tree.map(lambda x: x[None], of_points(mixtures, gradient, jnp.asarray(0, jnp.int32)))
    else:

        def on_device(mixtures: Array, gradient: Array) -> _Candidates:
            return jax.lax.all_gather(of_points(mixtures, gradient, mesh.index() * mixtures.shape[1]), mesh.axes)

        fill, run = mesh.widths(mixtures.shape, 1), mesh.by_device(on_device, mesh.along(1).spec, mesh.everywhere)
        told = run(jnp.pad(mixtures, fill), jnp.pad(gradient, fill, constant_values=jnp.inf))
    return jax.vmap(_chosen, in_axes=1)(told)


# The best of every `count`-th sample, a pass, where the very best would need a sort.
def _candidates(
    mixture: Float[Array, " samples"],
    slope: Float[Array, " samples"],
    width: int,
    count: int,
    first: Int[Array, ""],
) -> _Candidates:
    """Those of one point among the samples that are numbered from `first` on; classes are numbers modulo `count`."""
    ahead = first % count
    padded = jnp.full(-(-(len(slope) + count - 1) // count) * count, jnp.inf, slope.dtype)
    classes = jax.lax.dynamic_update_slice(padded, slope, (ahead,)).reshape(-1, count)
    leading = first - ahead + jnp.argmin(classes, axis=0).astype(jnp.int32) * count + jnp.arange(count, dtype=jnp.int32)
    resting = _positive(mixture, width)
    weights = mixture.at[resting].get(mode="fill", fill_value=0)
    return _Candidates(first + resting, weights, leading, jnp.min(classes, axis=0))


def _chosen(told: _Candidates) -> tuple[Int[Array, " width"], Float[Array, " width"]]:
    """The columns of one point, of the candidates that each device has for it."""
    width = told.weights.shape[1]
    places, count = jnp.arange(width, dtype=jnp.int32), jnp.sum(told.weights > 0, dtype=jnp.int32)
    at = _positive(told.weights.ravel(), width)
    weights = told.weights.ravel().at[at].get(mode="fill", fill_value=0)
    best = told.leading[jnp.argmin(told.slopes, axis=0), jnp.arange(told.slopes.shape[1])]
    entering = best[jnp.argsort(jnp.min(told.slopes, axis=0))]
    resting = told.resting.ravel().at[at].get(mode="fill", fill_value=0)
    return jnp.where(places < count, resting, entering[(places - count) % len(entering)]), weights


def _positive(weights: Float[Array, " samples"], width: int) -> Int[Array, " width"]:
    """Where the first `width` positive entries are; beyond the last one, out of range."""
    # The n-th is the first entry at which n of them have been counted.
    return jnp.searchsorted(jnp.cumsum(weights > 0), jnp.arange(width) + 1).astype(jnp.int32)
