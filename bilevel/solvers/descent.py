"""Accelerated proximal gradient that never rises: what block alternation does inside a block."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int, PyTree, Scalar, ScalarLike

from bilevel.core import tree
from bilevel.objectives import AbstractObjective
from bilevel.solvers.loop import Unroll, iterate

#: The most doublings of a Lipschitz constant in one step.
MAX_DOUBLINGS = 60


class _State(NamedTuple):
    """The best point so far, its value, the extrapolated point, FISTA's t, L; ‖F‖ at the start and now."""

    params: PyTree
    value: Scalar
    ahead: PyTree
    momentum: Scalar
    lipschitz: Scalar
    first: Scalar
    size: Scalar
    stuck: Bool[Array, ""]


def descend(
    objective: AbstractObjective,
    data: PyTree,
    start: PyTree,
    max_steps: int,
    reduction: ScalarLike,
    unroll: Unroll | None = None,
) -> tuple[PyTree, Int[Array, ""]]:
    """Steps y ↦ T(y) from extrapolated points y, until ‖L (y − T(y))‖ has fallen by a factor of `reduction`.

    A step that would raise f + g is not taken: the next starts from the best point, without momentum, and lowers f + g
    whenever f(T(y)) ≤ f(y) + ⟨∇f(y), T(y) − y⟩ + ½ L ‖T(y) − y‖². That holds where the objective knows L; elsewhere L
    is an estimate, doubled until it does. Momentum also restarts where it points uphill.

    !!! cite
        A. Beck, M. Teboulle: A fast iterative shrinkage-thresholding algorithm for linear inverse problems. 2009.
        B. O'Donoghue, E. Candès: Adaptive restart for accelerated gradient schemes. 2015.
    """
    known = objective.lipschitz(data) is not None

    def step(state: _State) -> _State:
        gradient = objective.gradient(state.ahead, data)
        lipschitz = state.lipschitz
        if not known:
            lipschitz = _valid_lipschitz(objective, data, state.ahead, gradient, lipschitz)
        params = _moved(objective, state.ahead, gradient, lipschitz)
        value = objective(params, data)
        # Negated, so that NaN is too high.
        rises = ~(value <= state.value + rounding(state.value))
        back = optax.tree.sub(state.ahead, params)
        size = jax.lax.stop_gradient(lipschitz * tree.norm(tree.constant(back)))
        kept, best = tree.where(rises, state.params, params), jnp.where(rises, state.value, value)
        moved = optax.tree.sub(kept, state.params)
        uphill = rises | (jnp.asarray(optax.tree.vdot(back, moved)) > 0)
        momentum = jnp.where(uphill, 1, state.momentum)
        following = (1 + jnp.sqrt(1 + 4 * momentum**2)) / 2
        ahead = jax.tree.map(lambda x, m: x + ((momentum - 1) / following).astype(x.dtype) * m, kept, moved)
        first = jnp.where(state.first < 0, size, state.first)
        stuck = rises & (state.momentum == 1)
        return _State(kept, best, ahead, jnp.where(rises, 1, following), lipschitz, first, size, stuck)

    lipschitz = objective.local_lipschitz(start, data)
    one = jnp.ones_like(lipschitz)
    state = _State(start, objective(start, data), start, one, lipschitz, -one, one, jnp.asarray(False))
    factor = jnp.asarray(reduction).astype(one.dtype)
    done = lambda s: s.stuck | (s.size <= factor * s.first) | ~jnp.isfinite(s.size)
    state, steps = iterate(step, done, state, max_steps, unroll)
    return state.params, steps


def rounding(value: Scalar) -> Scalar:
    """By how much two values that are equal may differ."""
    return 10 * jnp.finfo(value.dtype).eps * jnp.abs(jax.lax.stop_gradient(value))


def _moved(objective: AbstractObjective, params: PyTree, gradient: PyTree, lipschitz: Scalar) -> PyTree:
    """T(params)."""
    moved = optax.tree.add_scale(params, -1 / lipschitz, gradient)
    penalty = objective.penalty()
    return moved if penalty is None else penalty.prox(moved, 1 / lipschitz)


def _valid_lipschitz(
    objective: AbstractObjective, data: PyTree, params: PyTree, gradient: PyTree, lipschitz: Scalar
) -> Scalar:
    """The first of L, 2L, 4L, … for which the quadratic bound above holds.  A choice, so a constant."""
    objective, data, params, gradient, lipschitz = tree.constant((objective, data, params, gradient, lipschitz))
    here = objective.smooth(params, data)
    most = lipschitz * 2.0**MAX_DOUBLINGS

    def too_small(lipschitz: Scalar) -> Bool[Array, ""]:
        there = _moved(objective, params, gradient, lipschitz)
        step = optax.tree.sub(there, params)
        bound = here + optax.tree.vdot(gradient, step) + 0.5 * lipschitz * optax.tree.vdot(step, step)
        return (lipschitz < most) & ~(objective.smooth(there, data) <= bound + rounding(here))

    return jax.lax.while_loop(too_small, lambda lipschitz: 2 * lipschitz, lipschitz)
