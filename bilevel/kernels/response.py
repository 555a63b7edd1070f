"""Linear systems on the supports of sparse codes, and what cotangents of the codes pull on, sample by sample."""

import math

import numpy as np

from bilevel.kernels.supports import (
    compiled,
    copy,
    factor_rows,
    inlined,
    largest_of,
    solve_factored,
    subtract_rows,
    support_of,
)

#: Roundings over the smallest pivot, below which a system is clearly regular.
CLEAR = 1e-3


@inlined
def solve_checked(G, l2, S, L, size, v, spare, probe, eps):
    """v ← (G_SS + l2 I)⁻¹ v; returns whether that can be believed.

    The test is that of `bilevel.core.operators.cholesky_solve`: scaled to a unit diagonal, the matrix is perturbed by
    ε times its norm, which must not change the answer for the fixed vector `probe` by more than a percent. Where every
    pivot is far from vanishing it need not be done.
    """
    zero, one = G.dtype.type(0), G.dtype.type(1)
    if factor_rows(G, l2, S, L, 0, size, zero) < size:
        return False
    solve_factored(L, size, v)
    smallest = one
    for k in range(size):
        smallest = min(smallest, one / ((G[S[k], S[k]] + l2) * L[k, k] * L[k, k]))
    if size * eps <= CLEAR * smallest:
        return True
    norm, noise, length = zero, zero, zero
    for k in range(size):
        root = math.sqrt(G[S[k], S[k]] + l2)
        spare[k] = root * probe[k]
        length += probe[k] * probe[k]
        for m in range(k):
            # Of order 1, whatever the units of the atoms.
            entry = G[S[k], S[m]] / (root * math.sqrt(G[S[m], S[m]] + l2))
            norm += entry * entry
    solve_factored(L, size, spare)
    for k in range(size):
        scaled = math.sqrt(G[S[k], S[k]] + l2) * spare[k]
        noise += scaled * scaled
    return eps * math.sqrt((norm + norm + size) * noise) <= 0.01 * math.sqrt(length)


@compiled
def solve_samples(start, stop, G, l2, support, probe, eps, V):
    """v ← (G_SS + l2 I)⁻¹ v on each sample's support; NaN where that is singular to rounding."""
    atoms = len(G)
    # One by one: of parts of one array the compiler believes that they overlap.
    S, L = np.empty(atoms, np.int64), np.empty((atoms, atoms), G.dtype)
    v = np.empty(atoms, G.dtype)
    spare = np.empty(atoms, G.dtype)
    for i in range(start, stop):
        size = 0
        for j in range(atoms):
            if support[i, j]:
                S[size], v[size] = j, V[i, j]
                size += 1
        good = solve_checked(G, l2, S, L, size, v, spare, probe, eps)
        for k in range(size):
            V[i, S[k]] = v[k] if good else np.nan


@compiled
def pull_samples(start, stop, G, B, D, X, C, V, l1, l2, upper, touch, probe, eps, in_D, in_numbers, in_X):
    """What cotangents V of the codes C pull on D, (l1, l2) and X: with β = (G_SS + l2 I)⁻¹ v_S for each sample,

        in_D += β (x − Dᵀc)ᵀ − c (Dᵀβ)ᵀ,   in_numbers −= (β · sign, β · c),   in_x ← Dᵀβ  (where in_X has rows).

    S is that of `bilevel.objectives.sample_response.moving`, with L = `upper`.
    """
    atoms, features, zero = len(G), X.shape[1], G.dtype.type(0)
    S, L = np.empty(atoms, np.int64), np.empty((atoms, atoms), G.dtype)
    signs = np.empty(atoms, G.dtype)
    outside = np.empty(atoms, G.dtype)
    c = np.empty(atoms, G.dtype)
    q = np.empty(atoms, G.dtype)
    beta = np.empty(atoms, G.dtype)
    spare = np.empty(atoms, G.dtype)
    residual = np.empty(features, G.dtype)
    pulled = np.empty(features, G.dtype)
    for i in range(start, stop):
        code = C[i]
        for j in range(atoms):
            spare[j] = abs(B[i, j])
        slack = touch * largest_of(spare)
        entering = l1 if l2 > zero else l1 - slack
        size = support_of(code, S, signs, outside, c)
        subtract_rows(G, B[i], S, size, c, q)
        subtract_rows(D, X[i], S, size, c, residual)
        for j in range(atoms):
            q[j] += (upper - l2) * code[j]
            spare[j] = abs(q[j]) - (entering if code[j] == zero else l1 - slack)
        changes = 0
        for j in range(atoms):
            changes += 1 if (code[j] == zero) != (spare[j] <= zero) else 0
        # To list what moves takes longer than to see that it is the support, as nearly always.
        if changes > 0:
            size = 0
            for j in range(atoms):
                # What is no number moves, lest it look settled.
                if not spare[j] <= zero:
                    S[size], c[size] = j, code[j]
                    size += 1
        for k in range(size):
            signs[k], beta[k] = np.sign(q[S[k]]), V[i, S[k]]
        good = solve_checked(G, l2, S, L, size, beta, spare, probe, eps)
        for f in range(features):
            pulled[f] = zero
        for k in range(size):
            if not good:
                beta[k] = np.nan
            at, bk = S[k], beta[k]
            for f in range(features):
                pulled[f] += bk * D[at, f]
        for k in range(size):
            at, bk, ck = S[k], beta[k], c[k]
            in_numbers[0] -= bk * signs[k]
            in_numbers[1] -= bk * ck
            for f in range(features):
                in_D[at, f] += bk * residual[f] - ck * pulled[f]
        if len(in_X) > 0:
            copy(pulled, in_X[i])
