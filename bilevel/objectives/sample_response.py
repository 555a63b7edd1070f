"""How sparse codes respond to their dictionary, strengths and samples: the implicit function theorem, written out."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from bilevel.core import tree
from bilevel.core.linear_solve import checked
from bilevel.core.operators import AbstractSymmetricOperator
from bilevel.core.policy import Policy
from bilevel.kernels import eigenvalue_bounds, on_cpu, pull_samples

Codes = Float[Array, "samples atoms"]


class Inputs(NamedTuple):
    """What codes depend on; or a tangent or cotangent of it, with None for what does not move."""

    dictionary: Any
    l1: Any
    l2: Any
    data: Any


# On its support S with signs σ a sample's code satisfies
#
#     F = D_S (Dᵀc − x) + l2 c_S + l1 σ = 0,     ∂F/∂c = A = D_S D_Sᵀ + l2 I,
#
# so that along a tangent of the inputs  A dc = N dθ  with
#
#     N dθ = dD_S r − D_S (dDᵀ c) + D_S dx − dl1 σ − dl2 c_S,     r = x − Dᵀc,                                      (1)
#
# and a cotangent v of c pulls, with A β = v_S, on
#
#     D̄ = β rᵀ − c (Dᵀβ)ᵀ,     x̄ = Dᵀβ,     l̄1 = −β·σ,     l̄2 = −β·c.                                               (2)
#
# (2) touches the rows of S only. To have it done so by one loop, and have second derivatives nevertheless, the map from
# dθ to dc is cast as the solution of one linear system, of which JAX knows the matrix, and we the solutions:
#
#     [  I   0 ] [ t ]   [ dθ ]                        [ I  −Nᵀ ] [ θ̄ ]   [ ū ]
#     [ −N   A ] [ c ] = [  0 ],      and transposed   [ 0    A ] [ β ] = [ v ],     θ̄ = ū + Nᵀ β.
def respond(
    inputs: Inputs,
    codes: Codes,
    support: Bool[Array, "samples atoms"],
    signs: Codes,
    operator: AbstractSymmetricOperator,
    tangent: Inputs,
    on_failure: Policy = "nan",
) -> Codes:
    """dc along `tangent`; differentiable in both modes and any number of times. NaN where a sample's A is singular.

    `operator` is A for every sample, the identity off its support.
    """

    def push(t: Inputs) -> Codes:
        """N t."""

        def negative_slope(moving: Inputs) -> Codes:
            D, l1, l2, X = _filled(moving, inputs)
            slope: Array = (X - codes @ D) @ D.T - l2 * codes - l1 * signs
            return jnp.where(support, slope, 0)

        return jax.jvp(negative_slope, (_like(inputs, t),), (t,))[1]

    def matvec(unknown: tuple[Inputs, Codes]) -> tuple[Inputs, Codes]:
        t, moved = unknown
        return jax.tree.map(lambda x: one * x, (t, operator.mv(moved) - push(t)))

    def solve(_: object, right: tuple[Inputs, Codes]) -> tuple[Inputs, Codes]:
        t, rest = right
        right_side = rest + push(t)
        return t, checked(operator.solve(right_side), right_side, on_failure)

    def transpose_solve(_: object, right: tuple[Inputs, Codes]) -> tuple[Inputs, Codes]:
        t, cotangent = right
        # The loop solves for itself. That here is for derivatives of (2); where nobody asks, the compiler drops it.
        adjoint: Array = operator.solve(cotangent)
        by_loop = lambda: _pull_by_loop(inputs, codes, cotangent, t.data is not None)
        by_products = lambda: _pull(inputs, codes, jnp.where(support, adjoint, 0), signs)
        # Only the pull on the dictionary touches so few rows that a loop of its own pays.
        pulled = _like(by_products() if t.dictionary is None else on_cpu(by_loop, by_products), t)
        return jax.tree.map(jnp.add, t, checked(pulled, cotangent, on_failure)), adjoint

    # JAX demands that every entry of the right side be a linear function of the tangent, and every one of the matrix a
    # function of what moves when it is differentiated again: here come a zero and a one that are.
    nothing, one = tree.nothing(tangent), 1 + tree.nothing((inputs, codes))
    right = (tangent, jnp.broadcast_to(nothing, codes.shape))
    return jax.lax.custom_linear_solve(matvec, right, solve, transpose_solve)[1]


def _pull(inputs: Inputs, codes: Codes, adjoint: Codes, signs: Codes) -> Inputs:
    """(2), by matrix products."""
    D, _, _, X = inputs
    pulled = adjoint @ D
    in_dictionary = adjoint.T @ (X - codes @ D) - codes.T @ pulled
    return Inputs(in_dictionary, -jnp.sum(adjoint * signs), -jnp.sum(adjoint * codes), pulled)


def _pull_by_loop(inputs: Inputs, codes: Codes, cotangent: Codes, want_data: bool) -> Inputs:
    D, l1, l2, X = inputs
    gram = D @ D.T
    scalars = (l1, l2, eigenvalue_bounds(gram, l2)[0], touch(D.dtype))
    pulled = pull_samples(gram, X @ D.T, D, X, codes, cotangent, *scalars, want_data=want_data)
    in_dictionary, in_numbers, in_data = pulled
    return Inputs(in_dictionary, in_numbers[0], in_numbers[1], X if in_data is None else in_data)


def moving(inputs: Inputs, codes: Codes) -> tuple[Bool[Array, "samples atoms"], Codes]:
    """The support of T(codes), the proximal gradient step, and the signs on it.

    What is in use stays so where it touches the threshold to rounding. Where l2 = 0 what rests and touches counts as
    moving, too: one of two equal atoms that is at rest is about to enter, and must not hide that codes are not unique.
    """
    D, l1, l2, X = inputs
    correlations = X @ D.T
    upper, _ = eigenvalue_bounds(D @ D.T, l2)
    ahead = upper * codes + (X - codes @ D) @ D.T - l2 * codes
    slack = touch(D.dtype) * jnp.max(jnp.abs(correlations), axis=1, keepdims=True)
    bar = jnp.where((codes == 0) & (l2 > 0), l1, l1 - slack)
    # What is no number moves, lest it look settled.
    support = ~(jnp.abs(ahead) <= bar)
    return support, jnp.where(support, jnp.sign(ahead), 0)


def touch(dtype: Any) -> Array:
    """Eight roundings."""
    return jnp.asarray(8 * jnp.finfo(dtype).eps, dtype)


def _like(values: Inputs, pattern: Inputs) -> Inputs:
    """`values` where `pattern` is not None."""
    return Inputs(*(None if here is None else value for value, here in zip(values, pattern, strict=True)))


def _filled(values: Inputs, rest: Inputs) -> Inputs:
    """`values`, from `rest` where they are None."""
    return Inputs(*(other if value is None else value for value, other in zip(values, rest, strict=True)))
