"""The pieces of which the loops over samples are made: a code's support, and small systems on it.

Numba keeps compiled loops on disk by their own file alone: who changes this one saves those that import it, too.
"""

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

# NaN and infinity keep their meaning; only the order of sums is the compiler's.
_OPTIONS: dict[str, Any] = dict(nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz", "arcp"})


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as a compiled loop, kept on disk where a folder for that can be written to."""
    try:
        return numba.njit(**_OPTIONS, cache=True)(function)
    except RuntimeError:
        # Neither beside this file nor in the user's cache: each process compiles anew.
        return numba.njit(**_OPTIONS)(function)


# A call costs as much as the work of one atom, so all becomes one loop.
inlined = numba.njit(**_OPTIONS, inline="always")


@inlined
def copy(source, target):
    """target ← source; the compiler makes less of `target[:] = source`."""
    for j in range(len(source)):
        target[j] = source[j]


@inlined
def largest_of(values):
    """The largest, by halves, of which the compiler makes vector instructions. Overwrites `values`."""
    size = len(values)
    while size > 16:
        half = (size + 1) >> 1
        for j in range(size - half):
            values[j] = values[j] if values[j] > values[j + half] else values[j + half]
        size = half
    largest = values[0]
    for j in range(1, size):
        largest = max(largest, values[j])
    return largest


@inlined
def support_of(code, S, signs, outside, c):
    """List the support of `code`, with its signs and values; returns its size."""
    zero, one = code.dtype.type(0), code.dtype.type(1)
    size = 0
    for j in range(len(code)):
        outside[j] = one
        if code[j] != zero:
            S[size], signs[size], outside[j], c[size] = j, np.sign(code[j]), zero, code[j]
            size += 1
    return size


@inlined
def scatter(S, size, c, code):
    """code ← c on S, 0 elsewhere."""
    zero = code.dtype.type(0)
    for j in range(len(code)):
        code[j] = zero
    for i in range(size):
        code[S[i]] = c[i]


@inlined
def factor_rows(G, l2, S, L, first, size, floor):
    """Rows `first` to `size` of the Cholesky factor of G_SS + l2 I, with 1 / L_ii on the diagonal.

    Returns the first row whose pivot is not above `floor` times its diagonal entry, or `size`.
    """
    one = G.dtype.type(1)
    for i in range(first, size):
        at = S[i]
        diagonal = G[at, at] + l2
        pivot = diagonal
        for j in range(i):
            entry = G[at, S[j]]
            for m in range(j):
                entry -= L[i, m] * L[j, m]
            entry *= L[j, j]
            L[i, j] = entry
            pivot -= entry * entry
        if not pivot > diagonal * floor:
            return i
        L[i, i] = one / math.sqrt(pivot)
    return size


@inlined
def solve_factored(L, size, v):
    """v ← (L Lᵀ)⁻¹ v."""
    for i in range(size):
        entry = v[i]
        for m in range(i):
            entry -= L[i, m] * v[m]
        v[i] = entry * L[i, i]
    for i in range(size - 1, -1, -1):
        entry = v[i] * L[i, i]
        v[i] = entry
        for m in range(i):
            v[m] -= entry * L[i, m]


@inlined
def subtract_rows(G, b, S, size, c, q):
    """q ← b − Σ c_k G_{S_k}, a combination of rows, four at a time."""
    copy(b, q)
    whole = size - size % 4
    for i in range(0, whole, 4):
        s0, s1, s2, s3 = S[i], S[i + 1], S[i + 2], S[i + 3]
        c0, c1, c2, c3 = c[i], c[i + 1], c[i + 2], c[i + 3]
        for j in range(len(q)):
            q[j] -= c0 * G[s0, j] + c1 * G[s1, j] + c2 * G[s2, j] + c3 * G[s3, j]
    for i in range(whole, size):
        at, ci = S[i], c[i]
        for j in range(len(q)):
            q[j] -= ci * G[at, j]
