"""Calls of the compiled loops from JAX programs: batched over leading axes, samples split among the threads."""

import collections
import functools
import importlib
import os
import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Scalar

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
) -> tuple[Float[Array, "samples atoms"], Float[Array, " samples"], Int[Array, " samples"]]:
    """Codes, their optimality errors and the steps taken, by `bilevel.kernels.active_set`."""
    samples = correlations.shape[0]
    upper, lower = eigenvalue_bounds(gram, l2)
    out = (
        jax.ShapeDtypeStruct(init.shape, init.dtype),
        jax.ShapeDtypeStruct((samples,), init.dtype),
        jax.ShapeDtypeStruct((samples,), jnp.int32),
    )
    _compile("code_samples", init.dtype)
    args = (gram, correlations, l1, l2, upper, lower, tol, jnp.asarray(max_steps, jnp.int32), init)
    codes, errors, steps = _call(_code_on_host, out, *args)
    return codes, errors, steps


def solve_samples(
    gram: Float[Array, "atoms atoms"],
    l2: Scalar,
    support: Bool[Array, "samples atoms"],
    vector: Float[Array, "samples atoms"],
) -> Float[Array, "samples atoms"]:
    """A⁻¹ vector with A = S (G + l2 I) S + (I − S) for the support S of each sample; NaN where A is singular."""
    out = jax.ShapeDtypeStruct(vector.shape, vector.dtype)
    _compile("solve_samples", vector.dtype)
    return _call(_solve_on_host, (out,), gram, l2, support, vector)[0]


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
    wanted = jnp.asarray(want_data)
    args = (gram, correlations, dictionary, data, codes, cotangent, l1, l2, upper, touch, wanted)
    in_dictionary, in_numbers, in_data = _call(_pull_on_host, out, *args)
    return in_dictionary, in_numbers, in_data if want_data else None


def eigenvalue_bounds(gram: Float[Array, "atoms atoms"], l2: Scalar) -> tuple[Scalar, Scalar]:
    """Bounds, from above and below, of the largest eigenvalue of G + l2 I, without computing it."""
    upper = jnp.minimum(jnp.linalg.norm(gram), jnp.max(jnp.sum(jnp.abs(gram), axis=1))) + l2
    return upper, jnp.max(jnp.diagonal(gram)) + l2


def _call(host: Callable[..., tuple], out: tuple[jax.ShapeDtypeStruct, ...], *args: Array) -> tuple[Array, ...]:
    """`host(*args)`, NumPy in and out, from within a JAX program.

    Where 64 bits are switched on in the caller's thread alone, the thread that calls `host` would round its arguments
    to 32: numbers of 64 bits go as pairs of 32.
    """
    wide = tuple(x.dtype == jnp.float64 for x in args)
    received = [jax.eval_shape(_packed, x) for x in out]
    answers = jax.pure_callback(_unpacking(host, wide), received, *map(_packed, args), vmap_method="expand_dims")
    return tuple(
        jax.lax.bitcast_convert_type(x, jnp.float64) if known.dtype == jnp.float64 else x
        for x, known in zip(answers, out, strict=True)
    )


def _packed(x: Array) -> Array:
    return jax.lax.bitcast_convert_type(x, jnp.uint32) if x.dtype == jnp.float64 else x


@functools.cache
def _unpacking(host: Callable[..., tuple], wide: tuple[bool, ...]) -> Callable[..., list[np.ndarray]]:
    def unpacking(*sent: Any) -> list[np.ndarray]:
        arrays = [np.asarray(x, order="C") for x in sent]
        answers = host(*(x.view(np.float64)[..., 0] if w else x for x, w in zip(arrays, wide, strict=True)))
        return [x.view(np.uint32).reshape(*x.shape, 2) if x.dtype == np.float64 else x for x in answers]

    return unpacking


def _code_on_host(
    gram: Any, correlations: Any, l1: Any, l2: Any, upper: Any, lower: Any, tol: Any, max_steps: Any, init: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    args = [gram, correlations, l1, l2, upper, lower, tol, max_steps, init]
    batch, args = _batched(args, (2, 2, 0, 0, 0, 0, 0, 0, 2))
    codes = np.empty(args[-1].shape, args[-1].dtype)
    errors, steps = np.empty(codes.shape[:-1], codes.dtype), np.empty(codes.shape[:-1], np.int32)
    eps = np.finfo(codes.dtype).eps
    for index in np.ndindex(batch):
        gram, correlations, *numbers, tol, max_steps, init = (_contiguous(x[index]) for x in args)
        rest = (gram, correlations, *numbers, eps, tol, int(max_steps), init)
        outputs = codes[index], errors[index], steps[index]
        _in_parallel(_loop("active_set", "code_samples"), len(correlations), *rest, *outputs)
    return codes, errors, steps


def _solve_on_host(gram: Any, l2: Any, support: Any, vector: Any) -> tuple[np.ndarray]:
    batch, args = _batched([gram, l2, support, vector], (2, 0, 2, 2))
    answers = np.array(args.pop(), order="C")
    probe = _probe(answers.shape[-1]).astype(answers.dtype)
    eps = np.finfo(answers.dtype).eps
    for index in np.ndindex(batch):
        gram, l2, support = (_contiguous(x[index]) for x in args)
        _in_parallel(_loop("response", "solve_samples"), len(support), gram, l2, support, probe, eps, answers[index])
    return (answers,)


def _pull_on_host(*args: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    batch, arrays = _batched([*args], (2, 2, 2, 2, 2, 2, 0, 0, 0, 0, 0))
    dictionary, data, want_data = arrays[2], arrays[3], bool(np.any(arrays.pop()))
    dtype, eps = dictionary.dtype, np.finfo(dictionary.dtype).eps
    probe = _probe(dictionary.shape[-2]).astype(dtype)
    rows = data.shape if want_data else (*batch, 0, data.shape[-1])
    in_dictionary, in_numbers, in_data = (np.empty(s, dtype) for s in (dictionary.shape, (*batch, 2), rows))
    pieces = 2 * threads()
    for index in np.ndindex(batch):
        one = [_contiguous(x[index]) for x in arrays]
        # Each piece of the samples has sums of its own.
        sums = np.zeros((pieces, *dictionary.shape[-2:]), dtype), np.zeros((pieces, 2), dtype)
        samples = len(one[3])
        size = -(-samples // pieces)
        bounds = [(k, k * size, min((k + 1) * size, samples)) for k in range(pieces) if k * size < samples]
        piece = lambda k, start, stop, one=one, sums=sums, index=index: _loop("response", "pull_samples")(
            start, stop, *one, probe, eps, sums[0][k], sums[1][k], in_data[index]
        )
        _in_threads(piece, bounds)
        in_dictionary[index], in_numbers[index] = (np.sum(x, axis=0) for x in sums)
    return in_dictionary, in_numbers, in_data


def _batched(args: list[np.ndarray], ranks: tuple[int, ...]) -> tuple[tuple[int, ...], list[np.ndarray]]:
    """The leading axes that `vmap` put before those of one problem, and all arguments broadcast to them."""
    leading = [x.shape[: x.ndim - rank] for x, rank in zip(args, ranks, strict=True)]
    batch = np.broadcast_shapes(*leading)
    own = [x.shape[len(axes) :] for x, axes in zip(args, leading, strict=True)]
    return batch, [np.broadcast_to(x, batch + shape) for x, shape in zip(args, own, strict=True)]


def _contiguous(x: Any) -> Any:
    """Numbers stay numbers."""
    return np.ascontiguousarray(x) if x.ndim else x


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
    # What comes from JAX cannot be written to, which is a type of its own.
    G, B, mask = (np.broadcast_to(x, x.shape) for x in (matrix, rows, support))
    if name == "code_samples":
        _loop("active_set", name)(0, 0, G, B, *5 * (zero,), zero, 1, B, rows, np.zeros(0, dtype), np.zeros(0, np.int32))
    elif name == "solve_samples":
        _loop("response", name)(0, 0, G, zero, mask, probe, zero, rows)
    else:
        _loop("response", name)(0, 0, G, B, G, B, B, B, *4 * (zero,), probe, zero, matrix, pair, rows)
