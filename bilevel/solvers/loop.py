"""The one loop of every iterative solver, and the verdict on what came out of it."""

import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree, Scalar, ScalarLike

from bilevel.core import RESULTS, Solution, tree

Carry = TypeVar("Carry")


class Unroll(NamedTuple):
    """How a loop is laid out for reverse mode to go through it.

    `steps`: take exactly so many, whatever the tolerance says, as from a solution, where every tolerance is met; None:
    until it is met. `checkpoint`: keep about 2 √n carries of n, and compute the others anew.
    """

    steps: int | None = None
    checkpoint: bool = False


def iterate(
    step: Callable[[Carry], Carry],
    done: Callable[[Carry], Bool[Array, ""]],
    carry: Carry,
    max_steps: int | Array,
    unroll: Unroll | None,
) -> tuple[Carry, Int[Array, ""]]:
    """Apply `step` until `done`, at most `max_steps` times; returns the last carry and the number of steps.

    With `unroll`, a scan of conditional steps, which reverse mode can go through at the cost of keeping every carry;
    else a while loop, in constant memory.
    """
    arrays, static = eqx.partition(carry, eqx.is_array)
    full = lambda arrays: eqx.combine(arrays, static)
    forward = lambda arrays: eqx.filter(step(full(arrays)), eqx.is_array)
    exact = unroll is not None and unroll.steps is not None
    finished = (lambda _: jnp.asarray(False)) if exact else done

    def body(loop: _Loop) -> _Loop:
        arrays, count, _ = loop
        arrays = forward(arrays)
        return arrays, count + 1, finished(full(arrays))

    start = (arrays, jnp.asarray(0), finished(carry))
    if unroll is None:
        running = lambda loop: (loop[1] < max_steps) & ~loop[2]
        arrays, count, _ = jax.lax.while_loop(running, body, start)
    else:
        length = int(max_steps) if unroll.steps is None else unroll.steps
        scan = _checkpointed_scan if unroll.checkpoint else _scan
        arrays, count, _ = scan(body, start, length)
    return full(arrays), count


#: The arrays of the carry, the number of steps taken, and whether to stop.
_Loop = tuple[PyTree, Array, Array]


# Reverse mode would keep, of each step, whatever the derivatives of its operations are taken at: the data among it, as
# a copy for each step, since a condition hides that they are the same. So it keeps the carry, and takes the step again.
def _scan(body: Callable[[_Loop], _Loop], loop: _Loop, length: int, bound: int | None = None) -> _Loop:
    """`length` times `body`, idle when it is to stop or has taken `bound` steps."""

    def conditional(loop: _Loop, _: None) -> tuple[_Loop, None]:
        idle = loop[2] if bound is None else loop[2] | (loop[1] >= bound)
        return jax.lax.cond(idle, lambda x: x, body, loop), None

    return jax.lax.scan(jax.checkpoint(conditional, prevent_cse=False), loop, length=length)[0]


# A scan over ⌈n / m⌉ segments of m = ⌈√n⌉ steps keeps the carry at the start of each segment. Going backward, each
# segment runs again and keeps what its own steps need: ⌈n / m⌉ + m, about 2 √n carries at a time, for one more forward
# pass. The last segment may be longer than what is left of n.
def _checkpointed_scan(body: Callable[[_Loop], _Loop], loop: _Loop, length: int) -> _Loop:
    segment = math.isqrt(max(length - 1, 0)) + 1
    # Scans are not merged with their neighbors, so what is computed anew needs no barrier against that.
    run = jax.checkpoint(lambda loop: _scan(body, loop, segment, bound=length), prevent_cse=False)
    return jax.lax.scan(lambda loop, _: (run(loop), None), loop, length=-(-length // segment))[0]


def default_tol(params: PyTree) -> float:
    """The tolerance where none is given: 1e-5 in 32 bits, 1e-8 in 64."""
    return 1e-5 if jnp.finfo(tree.dtype(params)).bits <= 32 else 1e-8


def verdict(
    params: PyTree,
    error: Scalar,
    tol: ScalarLike,
    num_steps: ScalarLike,
    max_steps: int | Array | None,
    *,
    finite: Array | None = None,
) -> Solution:
    """The solution with its result: judged by the objective's own optimality, whatever the solver thinks of itself.

    `finite`: whether all of `params` are, where that is known; it takes a pass over them.
    """
    bound = jnp.asarray(tol).astype(error.dtype)
    out_of_steps = jnp.asarray(False) if max_steps is None else jnp.asarray(num_steps) >= max_steps
    result: RESULTS = RESULTS.where(out_of_steps, RESULTS.not_converged, RESULTS.stalled)
    result = RESULTS.where(error <= bound, RESULTS.successful, result)  # pyright: ignore[reportArgumentType]
    finite = tree.all_finite(params) if finite is None else finite
    result = RESULTS.where(finite & ~jnp.isnan(error), result, RESULTS.nonfinite_solution)
    stats = {"num_steps": jnp.asarray(num_steps), "optimality": error, "tol": bound}
    return Solution(params, result, stats)
