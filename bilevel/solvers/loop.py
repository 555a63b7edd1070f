"""The one loop of every iterative solver, and the verdict on what came out of it."""

from collections.abc import Callable
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree, Scalar, ScalarLike

from bilevel.core import RESULTS, Solution, tree

Carry = TypeVar("Carry")


def iterate(
    step: Callable[[Carry], Carry],
    done: Callable[[Carry], Bool[Array, ""]],
    carry: Carry,
    max_steps: int | Array,
    unroll: bool,
) -> tuple[Carry, Int[Array, ""]]:
    """Apply `step` until `done`, at most `max_steps` times; returns the last carry and the number of steps.

    With `unroll`, a scan of conditional steps, which reverse mode can go through at the cost of keeping every carry;
    else a while loop, in constant memory.
    """
    arrays, static = eqx.partition(carry, eqx.is_array)
    full = lambda arrays: eqx.combine(arrays, static)
    forward = lambda arrays: eqx.filter(step(full(arrays)), eqx.is_array)

    def body(loop: tuple[PyTree, Array, Array]) -> tuple[PyTree, Array, Array]:
        arrays, count, _ = loop
        arrays = forward(arrays)
        return arrays, count + 1, done(full(arrays))

    start = (arrays, jnp.asarray(0), done(carry))
    if unroll:
        conditional = lambda loop, _: (jax.lax.cond(loop[2], lambda x: x, body, loop), None)
        (arrays, count, _), _ = jax.lax.scan(conditional, start, length=int(max_steps))
    else:
        running = lambda loop: (loop[1] < max_steps) & ~loop[2]
        arrays, count, _ = jax.lax.while_loop(running, body, start)
    return full(arrays), count


def default_tol(params: PyTree) -> float:
    """The tolerance where none is given: 1e-5 in 32 bits, 1e-8 in 64."""
    return 1e-5 if jnp.finfo(tree.dtype(params)).bits <= 32 else 1e-8


def verdict(
    params: PyTree,
    error: Scalar,
    tol: ScalarLike,
    num_steps: ScalarLike,
    max_steps: int | None,
) -> Solution:
    """The solution with its result: judged by the objective's own optimality, whatever the solver thinks of itself."""
    bound = jnp.asarray(tol).astype(error.dtype)
    out_of_steps = jnp.asarray(False) if max_steps is None else jnp.asarray(num_steps) >= max_steps
    result: RESULTS = RESULTS.where(out_of_steps, RESULTS.not_converged, RESULTS.stalled)
    result = RESULTS.where(error <= bound, RESULTS.successful, result)  # pyright: ignore[reportArgumentType]
    result = RESULTS.where(tree.all_finite(params) & ~jnp.isnan(error), result, RESULTS.nonfinite_solution)
    stats = {"num_steps": jnp.asarray(num_steps), "optimality": error, "tol": bound}
    return Solution(params, result, stats)
