"""Calls of the compiled loops from JAX programs, with samples split among the threads."""

import collections
import functools
import importlib
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Scalar

from bilevel.kernels.foreign import foreign_call

#: The fewest samples that are worth a thread's while.
SAMPLES_PER_TASK = 64


def on_cpu(host: Callable[..., Any], device: Callable[..., Any], *args: Any) -> Any:
    """`host(*args)` in a program for CPUs, `device(*args)` in one for anything else."""
    if jax.default_backend() == "cpu":
        return host(*args)
    return jax.lax.platform_dependent(*args, cpu=host, default=device)


def code_samples(
    gram: Float[Array, "atoms atoms"],
    correlations: Float[Array, "samples atoms"],
    l1: Scalar,
    l2: Scalar,
    init: Float[Array, "samples atoms"],
    tol: Scalar,
    max_steps: int,
    polish: bool = True,
) -> tuple[Float[Array, "samples atoms"], Float[Array, " samples"], Int[Array, " samples"]]:
    """Codes, their optimality errors and the steps taken, by `bilevel.kernels.active_set`."""
    _compile("code_samples", init.dtype)
    shared = (gram, l1, l2, *eigenvalue_bounds(gram, l2), tol, jnp.asarray(max_steps, jnp.int32), jnp.asarray(polish))

    def call(shared: Any, of_samples: Any) -> tuple[Array, ...]:
        gram, *numbers = shared
        correlations, init = of_samples
        code, number = jax.ShapeDtypeStruct(init.shape, init.dtype), jax.ShapeDtypeStruct(init.shape[:1], init.dtype)
        out = (code, number, jax.ShapeDtypeStruct(init.shape[:1], jnp.int32))
        return foreign_call(_code_on_host, out, gram, correlations, *numbers, init)

    return _over_samples(call, shared, (correlations, init))


def solve_samples(
    gram: Float[Array, "atoms atoms"],
    l2: Scalar,
    support: Bool[Array, "samples atoms"],
    vector: Float[Array, "samples atoms"],
) -> Float[Array, "samples atoms"]:
    """A⁻¹ vector with A = S (G + l2 I) S + (I − S) for the support S of each sample; NaN where A is singular."""
    _compile("solve_samples", vector.dtype)

    def call(shared: Any, of_samples: Any) -> tuple[Array, ...]:
        vector = of_samples[1]
        return foreign_call(_solve_on_host, (jax.ShapeDtypeStruct(vector.shape, vector.dtype),), *shared, *of_samples)

    return _over_samples(call, (gram, l2), (support, vector))[0]


def pull_samples(
    gram: Float[Array, "atoms atoms"],
    correlations: Float[Array, "samples atoms"],
    dictionary: Float[Array, "atoms features"],
    data: Float[Array, "samples features"],
    codes: Float[Array, "samples atoms"],
    cotangent: Float[Array, "samples atoms"],
    l1: Scalar,
    l2: Scalar,
    upper: Scalar,
    touch: Scalar,
    *,
    want_data: bool,
) -> tuple[Float[Array, "atoms features"], Float[Array, " 2"], Float[Array, "samples features"] | None]:
    """What a cotangent of the codes pulls on dictionary, (l1, l2) and, if wanted, the data."""
    _compile("pull_samples", codes.dtype)
    shape_of = lambda *shape: jax.ShapeDtypeStruct(shape, codes.dtype)
    out = (shape_of(*dictionary.shape), shape_of(2), shape_of(len(data) if want_data else 0, data.shape[1]))
    args = (gram, correlations, dictionary, data, codes, cotangent, l1, l2, upper, touch)
    in_dictionary, in_numbers, in_data = foreign_call(_pull_on_host, out, *args)
    return in_dictionary, in_numbers, in_data if want_data else None


def _over_samples(call: Callable[[Any, Any], tuple[Array, ...]], shared: Any, of_samples: Any) -> Any:
    """`call(shared, of_samples)`, whose samples are independent; under `vmap` they are samples of one call.

    That is where problems have all else in common; others are called one after the other.
    """
    call = jax.custom_batching.custom_vmap(call)

    @call.def_vmap
    def batched(size: int, is_batched: list, shared: Any, of_samples: Any) -> tuple[Any, Any]:
        if any(jax.tree.leaves(is_batched[0])):
            inputs = (shared, of_samples)
            mapped, fixed = eqx.partition(inputs, tuple(is_batched))
            out = jax.lax.map(lambda one: call(*eqx.combine(one, fixed)), mapped)
        else:
            whole = lambda x, is_batched: x if is_batched else jnp.broadcast_to(x, (size, *x.shape))
            rows = jax.tree.map(whole, of_samples, is_batched[1])
            out = call(shared, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows))
            out = jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]), out)
        return out, jax.tree.map(lambda _: True, out)

    return call(shared, of_samples)


def eigenvalue_bounds(gram: Float[Array, "atoms atoms"], l2: Scalar) -> tuple[Scalar, Scalar]:
    """Bounds, from above and below, of the largest eigenvalue of G + l2 I, without computing it."""
    upper = jnp.minimum(jnp.linalg.norm(gram), jnp.max(jnp.sum(jnp.abs(gram), axis=1))) + l2
    return upper, jnp.max(jnp.diagonal(gram)) + l2


def _code_on_host(*arrays: np.ndarray) -> None:
    *numbers, tol, max_steps, polish, init, codes, errors, steps = _numbers(arrays)
    options = np.finfo(codes.dtype).eps, tol, int(max_steps), bool(polish)
    _in_parallel(_loop("active_set", "code_samples"), len(init), *numbers, *options, init, codes, errors, steps)


def _solve_on_host(*arrays: np.ndarray) -> None:
    *inputs, vector, answers = _numbers(arrays)
    answers[...] = vector
    probe, eps = _probe(vector.shape[1]).astype(vector.dtype), np.finfo(vector.dtype).eps
    _in_parallel(_loop("response", "solve_samples"), len(vector), *inputs, probe, eps, answers)


def _pull_on_host(*arrays: np.ndarray) -> None:
    *inputs, in_dictionary, in_numbers, in_data = _numbers(arrays)
    dtype, samples, pieces = in_dictionary.dtype, len(inputs[3]), 2 * threads()
    probe, eps = _probe(len(in_dictionary)).astype(dtype), np.finfo(dtype).eps
    size = -(-samples // pieces)
    bounds = [(k, k * size, min((k + 1) * size, samples)) for k in range(pieces) if k * size < samples]
    # Each piece of the samples has sums of its own.
    sums = np.zeros((len(bounds), *in_dictionary.shape), dtype), np.zeros((len(bounds), 2), dtype)
    loop = _loop("response", "pull_samples")
    piece = lambda k, start, stop: loop(start, stop, *inputs, probe, eps, sums[0][k], sums[1][k], in_data)
    _in_threads(piece, bounds)
    np.sum(sums[0], axis=0, out=in_dictionary)
    np.sum(sums[1], axis=0, out=in_numbers)


def _numbers(arrays: Sequence[np.ndarray]) -> list[Any]:
    """Arrays without axes as numbers."""
    return [x if x.ndim else x[()] for x in arrays]


def threads() -> int:
    """How many processors this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _in_parallel(loop: Callable[..., None], samples: int, *args: Any) -> None:
    """`loop(start, stop, *args)` over all samples, in pieces small enough that no thread waits long for another."""
    size = max(SAMPLES_PER_TASK, -(-samples // (8 * threads())))
    bounds = [(start, min(start + size, samples)) for start in range(0, samples, size)]
    _in_threads(lambda start, stop: loop(start, stop, *args), bounds)


def _in_threads(function: Callable[..., None], args: list[tuple]) -> None:
    """`function(*a)` for all a, by as many threads as there are processors; the loops let go of the interpreter."""
    waiting, failures = collections.deque(args), []

    def work() -> None:
        while not failures:
            try:
                some = waiting.popleft()
            except IndexError:
                return
            try:
                function(*some)
            except BaseException as error:
                failures.append(error)

    # Threads of their own, as a pool that is kept would not survive a fork; and not one more than is needed.
    helpers = [threading.Thread(target=work) for _ in range(min(threads(), len(args)) - 1)]
    for helper in helpers:
        helper.start()
    work()
    for helper in helpers:
        helper.join()
    if failures:
        raise failures[0]


@functools.cache
def _probe(atoms: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=atoms)


def _loop(room: str, name: str) -> Callable[..., None]:
    # Not imported at the top: Numba takes half a second to import, and most programs need none of it.
    return getattr(importlib.import_module(f"bilevel.kernels.{room}"), name)


@functools.cache
def _compile(name: str, dtype: Any) -> None:
    """Compile a loop for this precision now, on no samples; it is kept on disk for the next process."""
    zero, probe, pair = dtype.type(0), np.zeros(1, dtype), np.zeros(2, dtype)
    matrix, rows, support = np.zeros((1, 1), dtype), np.zeros((0, 1), dtype), np.zeros((0, 1), bool)
    if name == "code_samples":
        outputs = rows, np.zeros(0, dtype), np.zeros(0, np.int32)
        _loop("active_set", name)(0, 0, matrix, rows, *6 * (zero,), 1, True, rows, *outputs)
    elif name == "solve_samples":
        _loop("response", name)(0, 0, matrix, zero, support, probe, zero, rows)
    else:
        _loop("response", name)(
            0, 0, matrix, rows, matrix, rows, rows, rows, *4 * (zero,), probe, zero, matrix, pair, rows
        )
