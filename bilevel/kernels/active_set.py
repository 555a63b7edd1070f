"""Elastic-net sparse codes, sample by sample.

For one sample, with the Gram matrix G = D Dᵀ and correlations b = D x, the codes minimize

    ½ cᵀ(G + l2 I) c − bᵀc + l1 ‖c‖₁.

With q = b − G c they are characterized by  q_j − l2 c_j = l1 sign(c_j)  on the support and  |q_j| ≤ l1  off it. On a
support S with signs σ that is one small linear system,

    (G_SS + l2 I) c_S = b_S − l1 σ,                                                                                 (1)

so what is to be found is (S, σ). The method alternates between

- pursuit: the atom that correlates most with the residual joins S, with the step of coordinate descent, a few times;
- (1), by a Cholesky factor of G_SS + l2 I that grows by the rows of the atoms that joined; those whose sign came out
  wrong leave, until none does;

and is done when no correlation exceeds l1. Where an atom depends on those in S (a pivot that vanishes to rounding), the
objective is linear in one direction, along which one atom is let go. If all this does not end, some sweeps of
coordinate descent lead to another start.

One sample costs about |S| · atoms + |S|³ / 6 multiplications, in memory that stays in the cache. Where a tolerance is
to be met and no more, a few sweeps of coordinate descent, of |S| · atoms each, come first, and mostly suffice.

!!! cite
    Y. C. Pati, R. Rezaiifar, P. S. Krishnaprasad: Orthogonal matching pursuit. 1993.
    H. Lee, A. Battle, R. Raina, A. Ng: Efficient sparse coding algorithms. 2006.
    J. Friedman, T. Hastie, R. Tibshirani: Regularization paths for generalized linear models via coordinate descent.
    2010.
"""

import math

import numpy as np

from bilevel.kernels.supports import (
    compiled,
    copy,
    factor_rows,
    inlined,
    largest_of,
    scatter,
    solve_factored,
    subtract_rows,
    support_of,
)

#: How many atoms join before (1) is solved again, at least.
JOIN = 5
#: Rounds in which all atoms with a wrong sign leave at once, which may go in circles.
CARELESS = 6
#: Rounds of pursuit and solution, beyond one for each atom, before coordinate descent takes over.
ROUNDS = 20
#: Sweeps of coordinate descent before the alternation is tried again.
DESCENT = 200
#: Sweeps of coordinate descent between two looks at the optimality, and looks from when the tolerance is met.
SWEEPS, PATIENCE = 10, 5
#: Sweeps of coordinate descent after which a mere tolerance is no longer left to them.
APPROACH = 10


@inlined
def pursue(G, l1, l2, bar, S, signs, size, outside, c, q, spare, count):
    """Let up to `count` atoms with |q| > `bar` join, the largest first; returns the new size. Overwrites q."""
    zero, last = G.dtype.type(0), len(q) - 1
    for joined in range(min(count, len(q) - size)):
        for j in range(len(q)):
            spare[j] = abs(q[j]) * outside[j]
        largest = largest_of(spare)
        if not largest > bar:
            break
        # The first that is the largest, without a branch: of this the compiler makes vector instructions.
        first = len(q)
        for j in range(len(q)):
            first = min(first, j if abs(q[j]) * outside[j] == largest else len(q))
        at = min(first, last)
        S[size], signs[size], outside[at] = at, np.sign(q[at]), zero
        step = signs[size] * (largest - l1) / (G[at, at] + l2)
        c[size] = step
        size += 1
        if joined < count - 1:
            for j in range(len(q)):
                q[j] -= step * G[at, j]
    return size


@inlined
def slide(G, b, l1, l2, S, signs, size, row, L, c, along):
    """Atom `row` of S depends on those before it, so along one direction f is linear: go down until an atom reaches 0.

    Returns which, after c has moved; −1 where none does.
    """
    zero = G.dtype.type(0)
    for i in range(row):
        along[i] = -L[row, i]
    for i in range(row - 1, -1, -1):
        along[i] *= L[i, i]
        for m in range(i):
            along[m] -= along[i] * L[i, m]
    along[row] = G.dtype.type(1)
    slope = zero
    for i in range(row + 1):
        gradient = l1 * signs[i] + l2 * c[i] - b[S[i]]
        for m in range(size):
            gradient += G[S[i], S[m]] * c[m]
        slope += gradient * along[i]
    step, first = zero, -1
    for i in range(row + 1):
        if slope > zero:
            along[i] = -along[i]
        if along[i] * signs[i] < zero and (first < 0 or -c[i] / along[i] < step):
            step, first = -c[i] / along[i], i
    for i in range(row + 1):
        c[i] += step * along[i]
    return first


@inlined
def settle(G, b, l1, l2, S, signs, size, first, outside, L, c, ahead, floor, careful):
    """Solve (1), and let go whatever comes out with the wrong sign until nothing does.

    `careful`: go from c towards the solution of (1) only until the first atom changes its sign, which lets go that one
    alone and can but decrease the objective. Returns the new size, and how many atoms were put aside: their `outside`
    stays 0, so that they do not join again.
    """
    zero, one, aside = G.dtype.type(0), G.dtype.type(1), 0
    while True:
        row = factor_rows(G, l2, S, L, first, size, floor)
        if row < size:
            gone = slide(G, b, l1, l2, S, signs, size, row, L, c, ahead)
            if gone < 0:
                gone, aside = row, aside + 1
            else:
                outside[S[gone]] = one
            size, first = size - 1, min(gone, row)
            for i in range(gone, size):
                S[i], signs[i], c[i] = S[i + 1], signs[i + 1], c[i + 1]
            continue
        for i in range(size):
            ahead[i] = b[S[i]] - l1 * signs[i]
        solve_factored(L, size, ahead)
        step = one
        if careful:
            for i in range(size):
                if not ahead[i] * signs[i] > zero:
                    step = min(step, c[i] / (c[i] - ahead[i]))
        kept, first = 0, size
        for i in range(size):
            wrong = not ahead[i] * signs[i] > zero
            if wrong and (not careful or c[i] / (c[i] - ahead[i]) <= step):
                outside[S[i]] = one
                first = min(first, i)
            else:
                there = ahead[i] if step == one else c[i] + step * (ahead[i] - c[i])
                S[kept], signs[kept], c[kept] = S[i], signs[i], there
                kept += 1
        if kept == size:
            return size, aside
        size = kept


@inlined
def optimality_error(b, l1, l2, c, q, upper, lower, spare):
    """‖F‖ / (‖b‖ + L ‖c‖) with F = L (c − T(c)), from above, for bounds of L; in units that cannot overflow."""
    zero, one = b.dtype.type(0), b.dtype.type(1)
    for j in range(len(b)):
        spare[j] = abs(b[j]) + upper * abs(c[j])
    largest = largest_of(spare)
    if largest == zero:
        return zero
    unit = one / largest
    residual, size, length = zero, zero, zero
    for j in range(len(b)):
        there = upper * c[j]
        ahead = there + q[j] - l2 * c[j]
        moved = (there - ahead + min(max(ahead, -l1), l1)) * unit
        residual += moved * moved
        size += (b[j] * unit) * (b[j] * unit)
        length += (lower * c[j] * unit) * (lower * c[j] * unit)
    return math.sqrt(residual) / (math.sqrt(size) + math.sqrt(length))


@inlined
def alternate(G, b, l1, l2, bar, S, signs, size, outside, L, c, q, spare, floor, rounds):
    """Pursuit and (1) in turn from the support S, with q of the outcome.

    Returns its size, how many atoms were put aside, whether no correlation exceeds `bar`, and in how many rounds atoms
    joined until then.
    """
    first, aside, joins = 0, 0, 0
    for taken in range(rounds):
        if taken > 0 or size == 0:
            first = size
            size = pursue(G, l1, l2, bar, S, signs, size, outside, c, q, spare, max(JOIN, size // 3))
            if size == first:
                return size, aside, True, joins
            joins += 1
        size, more = settle(G, b, l1, l2, S, signs, size, first, outside, L, c, spare, floor, taken >= CARELESS)
        aside += more
        subtract_rows(G, b, S, size, c, q)
    return size, aside, False, rounds


@inlined
def sweep(G, diagonal, l1, l2, c, q):
    """A step of coordinate descent on each of c, which keeps q = b − G c."""
    zero = G.dtype.type(0)
    for j in range(len(c)):
        ahead, new = q[j] + diagonal[j] * c[j], zero
        # Most are zero and stay so, and a division takes as long as all else for them.
        if abs(ahead) > l1 and diagonal[j] + l2 > zero:
            new = np.sign(ahead) * (abs(ahead) - l1) / (diagonal[j] + l2)
        step = new - c[j]
        if step != zero:
            c[j] = new
            for m in range(len(c)):
                q[m] -= step * G[j, m]


@inlined
def approach(G, diagonal, b, l1, l2, S, size, support, c, q, spare, upper, lower, tol, sweeps):
    """Sweeps over all of c, whose support S has the values `support`, until its error is `tol`.

    Returns the sweeps taken, and the error.
    """
    subtract_rows(G, b, S, size, support, q)
    taken = 0
    while True:
        error = optimality_error(b, l1, l2, c, q, upper, lower, spare)
        if not error > tol or taken >= sweeps:
            return taken, error
        sweep(G, diagonal, l1, l2, c, q)
        taken += 1


@inlined
def descend(G, diagonal, b, l1, l2, c, q, spare, upper, lower, tol, goal, sweeps):
    """Coordinate descent on all of c until its error is `goal`, or `PATIENCE` looks after it is `tol`.

    Returns the sweeps taken, and the error.
    """
    zero = G.dtype.type(0)
    patience, taken = PATIENCE, 0
    while True:
        # Anew, lest rounding pile up.
        copy(b, q)
        for j in range(len(b)):
            if c[j] != zero:
                for m in range(len(b)):
                    q[m] -= c[j] * G[j, m]
        error = optimality_error(b, l1, l2, c, q, upper, lower, spare)
        patience -= error <= tol
        if not error > goal or patience < 0 or taken >= sweeps:
            return taken, error
        taken += SWEEPS
        for _ in range(SWEEPS):
            sweep(G, diagonal, l1, l2, c, q)


@compiled
def code_samples(start, stop, G, B, l1, l2, upper, lower, eps, tol, max_steps, polish, init, C, errors, steps):
    """Codes C of the samples from `start` to `stop`, from `init` on; their errors, NaN for NaN, and steps.

    `upper` and `lower` bound the largest eigenvalue of G + l2 I; `tol` is what coordinate descent is content with, and
    all are where they are not to be polished.
    """
    atoms, zero, four = len(G), G.dtype.type(0), G.dtype.type(4)
    # One by one: of parts of one array the compiler believes that they overlap.
    S, L = np.empty(atoms, np.int64), np.empty((atoms, atoms), G.dtype)
    signs = np.empty(atoms, G.dtype)
    outside = np.empty(atoms, G.dtype)
    c = np.empty(atoms, G.dtype)
    q = np.empty(atoms, G.dtype)
    spare = np.empty(atoms, G.dtype)
    # Each entry of G's would be in a line of the cache of its own.
    diagonal = np.empty(atoms, G.dtype)
    for j in range(atoms):
        diagonal[j] = G[j, j]
    goal, floor = four * eps, four * four * four * eps
    for i in range(start, stop):
        b, code, total = B[i], C[i], zero
        copy(init[i], code)
        for j in range(atoms):
            spare[j] = abs(b[j])
            total += b[j] + code[j]
        # Not `math.isfinite`, which is x − x == 0, and true of sums that the compiler reorders.
        if not abs(total + l1 + l2 + upper) < np.inf:
            for j in range(atoms):
                code[j] = np.nan
            errors[i], steps[i] = np.nan, 0
            continue
        # What exceeds l1 by rounding does not exceed it.
        bar = l1 + goal * largest_of(spare)
        taken, tried = 0, False
        if not polish:
            size = support_of(code, S, signs, outside, c)
            sweeps = min(max_steps, APPROACH)
            taken, errors[i] = approach(G, diagonal, b, l1, l2, S, size, c, code, q, spare, upper, lower, tol, sweeps)
        while polish or (errors[i] > tol and taken < max_steps):
            copy(b, q)
            size = support_of(code, S, signs, outside, c)
            rounds = min(max_steps - taken, ROUNDS + atoms)
            size, aside, ended, more = alternate(
                G, b, l1, l2, bar, S, signs, size, outside, L, c, q, spare, floor, rounds
            )
            taken += more
            scatter(S, size, c, signs)
            if aside > 0:
                # What was put aside may be needed all the same.
                for j in range(atoms):
                    ended = ended and (abs(q[j]) <= bar or signs[j] != zero)
            error = optimality_error(b, l1, l2, signs, q, upper, lower, spare)
            if (polish and not tried) or error < errors[i]:
                copy(signs, code)
                errors[i] = error
            if ended or taken >= max_steps or (tried and not errors[i] > tol):
                break
            sweeps = min(max_steps - taken, DESCENT)
            more, errors[i] = descend(G, diagonal, b, l1, l2, code, q, spare, upper, lower, tol, goal, sweeps)
            taken, tried = taken + more, True
            if taken >= max_steps:
                break
        steps[i] = taken
