"""Whatever the shape, scale, support and way of differentiating: the derivative is that of the dense formula."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from hypothesis import HealthCheck, example, given, settings, strategies as st
from sklearn.datasets import load_sample_image
from sklearn.feature_extraction.image import extract_patches_2d

import bilevel as bl
from tests.compiling import compiled
from tests.laws import error
from tests.witnesses import code_gradients

S = bl.solvers

TOL, TERMS, STEPS = 1e-12, 20, 100


class Way(NamedTuple):
    """How to differentiate; and for a Hessian of condition number κ the relative error that it may have on top."""

    diff: bl.AbstractDifferentiation = bl.Implicit()
    promise: Callable[[float], float] = lambda kappa: 0.0
    solver: S.AbstractSolver | None = None
    from_zero: bool = False
    correct: bool = False


# A relative residual is an error at most κ times as large; in the normal equations, κ² times.
WAYS = {
    "direct": Way(),
    "CG": Way(bl.Implicit(lx.CG(TOL, TOL))),
    "GMRES": Way(bl.Implicit(lx.GMRES(TOL, TOL)), lambda kappa: kappa * TOL),
    "BiCGStab": Way(bl.Implicit(lx.BiCGStab(TOL, TOL)), lambda kappa: kappa * TOL),
    "normal CG": Way(bl.Implicit(lx.Normal(lx.CG(TOL, TOL))), lambda kappa: kappa**2 * TOL),
    "corrected": Way(correct=True),
}
DESCENT = S.GradientDescent(acceleration=False)
# With ρ = 1 − 1/κ the rate of gradient descent: what is left of a Neumann series after k terms is at most ρᵏ; after k
# steps from zero, derivatives through these lag by k ρᵏ⁻¹ more. JAXopt solves normal equations to 1e-5.
FOR_RIDGE = {
    **WAYS,
    # From wherever, as f is quadratic.
    "corrected": Way(solver=S.GradientDescent(max_steps=3), from_zero=True, correct=True),
    "Truncated": Way(bl.Truncated(TERMS), lambda kappa: (1 - 1 / kappa) ** TERMS, DESCENT),
    "Unrolled": Way(
        bl.Unrolled(),
        lambda kappa: (STEPS + 1) * (1 - 1 / kappa) ** (STEPS - 1),
        S.GradientDescent(acceleration=False, max_steps=STEPS, tol=1e-15),
        from_zero=True,
    ),
    "JaxoptImplicit": Way(bl.JaxoptImplicit(), lambda kappa: 1e-5 * kappa**2, DESCENT),
}
few = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


# Each pair is a program of its own, so few of them; everything else is drawn at will.
def pairs(shapes: list, ways: dict[str, Way]) -> st.SearchStrategy:
    """All shapes with the first two ways, and one shape with each of the others."""
    names = list(ways)
    everywhere = [(shape, name) for shape in shapes for name in names[:2]]
    return st.sampled_from(everywhere + [(shapes[i % len(shapes)], name) for i, name in enumerate(names[2:])])


@compiled
def solve_and_pull(objective, data, cotangent, way, start=None):
    """The solution, and the gradients of ⟨cotangent, solution⟩ in objective and data."""

    def value(objective, params, data):
        return jnp.vdot(cotangent, jax.tree.leaves(params)[0])

    def through(both):
        options = dict(solver=way.solver, init=None if way.from_zero else start, diff=way.diff)
        params = bl.argmin(*both, **options, throw=False).params
        return value(both[0], params, both[1]), params

    if way.correct:
        done = bl.hypergradient(value, objective, data, solver=way.solver, correct=True, on_failure="ignore")
        params, gradients = done.solution.params, (done.gradient, done.data_gradient)
    else:
        (_, params), gradients = eqx.filter_value_and_grad(through, has_aux=True)((objective, data))
    return jax.tree.leaves(params)[0], gradients


@few
@given(
    pair=pairs([(4, 5, 3), (3, 4, 40), (1, 3, 1)], WAYS),
    seed=st.integers(0, 2**16),
    scale=st.floats(-3, 3),
    strength=st.floats(0.02, 1.2),
    l2=st.floats(-3, 0.5),
    twice=st.booleans(),
)
# XLA of JAX 0.12 computed a residual twice with different rounding, once 0, and its norm was 1.
@example(pair=((1, 3, 1), "normal CG"), seed=0, scale=0.0, strength=0.5, l2=0.0, twice=False)
def test_sparse_codes(pair, seed, scale, strength, l2, twice):
    (samples, features, atoms), way = pair[0], WAYS[pair[1]]
    rng, a = np.random.default_rng(seed), 10.0**scale
    D, X = rng.normal(size=(atoms, features)), a * rng.normal(size=(samples, features))
    if twice:
        D[-1] = D[0]
    # From codes that are dense to codes that are all zero.
    l1, l2 = strength * np.max(np.abs(X @ D.T)), 10.0**l2
    V = rng.normal(size=(samples, atoms))
    coding = bl.objectives.SparseCoding(jnp.asarray(D), jnp.asarray(l1), jnp.asarray(l2))
    codes, (in_coding, in_X) = solve_and_pull(coding, jnp.asarray(X), jnp.asarray(V), way)
    C = np.asarray(codes)
    slope = (C @ D - X) @ D.T + l2 * C
    assert np.all(np.abs(slope) <= l1 * (1 + 1e-6)) and np.allclose(slope[C != 0], -l1 * np.sign(C[C != 0]), rtol=1e-6)
    if strength >= 1:
        assert not C.any()
    in_D, in_l1, in_l2, in_data = code_gradients(D, l2, X, C, V)
    blocks = [D[S] @ D[S].T + l2 * np.eye(len(S)) for S in map(np.flatnonzero, C)]
    bound = 1e-8 + way.promise(max((np.linalg.cond(block) for block in blocks if block.size), default=1.0))
    # In units in which each leaf moves by its own size.
    assert error(in_coding.dictionary / a, in_D / a) <= bound
    assert error(in_coding.l1, in_l1) <= bound and error(in_coding.l2 / a, in_l2 / a) <= bound
    assert error(in_X, in_data) <= bound


@few
@given(
    pair=pairs([((12, 4), True), ((5, 9), False), ((5, 9), True), ((12, 4), False)], FOR_RIDGE),
    seed=st.integers(0, 2**16),
    scale=st.floats(-3, 3),
    alpha=st.floats(-4, 2),
)
def test_ridge(pair, seed, scale, alpha):
    (shape, per_feature), way = pair[0], FOR_RIDGE[pair[1]]
    rng, a = np.random.default_rng(seed), 10.0**scale
    X, y = a * rng.normal(size=shape), a * rng.normal(size=shape[0])
    alpha = a**2 * 10.0**alpha * (rng.uniform(1, 3, shape[1]) if per_feature else 1.0)
    cotangent = rng.normal(size=shape[1])
    matrix = X.T @ X / len(X) + np.diag(np.broadcast_to(alpha, shape[1]))
    w, adjoint = np.linalg.solve(matrix, np.stack([X.T @ y / len(X), cotangent], axis=1)).T
    arguments = bl.objectives.Ridge(jnp.asarray(alpha)), (jnp.asarray(X), jnp.asarray(y)), jnp.asarray(cotangent)
    weight, (gradient, _) = solve_and_pull(*arguments, way, bl.objectives.LinearModel(jnp.asarray(w)))
    lipschitz = np.linalg.norm(X, 2) ** 2 / len(X) + np.max(alpha)
    promise = way.promise(lipschitz / np.linalg.eigvalsh(matrix)[0])
    assert error(weight, w) <= 1e-8 + promise
    expected = -adjoint * w if per_feature else -adjoint @ w
    # A sum of terms that may cancel is right to their size.
    room = 1e-8 * np.linalg.norm(adjoint * w) + promise * np.linalg.norm(adjoint) * np.linalg.norm(w)
    assert np.linalg.norm(gradient.alpha - expected) <= room


def patches(count: int) -> np.ndarray:
    """Patches of a photograph, 12 by 12, of mean 0 and norm 1: neighbors are very much alike."""
    image = load_sample_image("china.jpg").mean(axis=2) / 255
    rows = extract_patches_2d(image, (12, 12), max_patches=count, random_state=0).reshape(count, -1)
    rows -= rows.mean(axis=1, keepdims=True)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_image_patches_in_32_bits():
    # At the default tolerance one sample with a wrong support would be an error of 1e-3.
    rows, l1, l2 = patches(256 + 2994), 0.15, 0.01
    D, X, V = rows[:256], rows[256:], np.random.default_rng(0).normal(size=(2994, 256)).astype(np.float32)

    @eqx.filter_jit
    def solve(D, X, V):
        def value(D):
            solution = bl.argmin(bl.objectives.SparseCoding(D, l1, l2), X, throw=False)
            return jnp.sum(V * solution.params), solution

        return jax.grad(value, has_aux=True)(D)

    gradient, solution = solve(*map(jnp.asarray, (D, X, V)))
    assert solution.result == bl.RESULTS.successful and gradient.dtype == jnp.float32
    D, X, C, V = (np.array(x, np.float64) for x in (D, X, solution.params, V))
    # On these supports and signs, the codes in 64 bits. They are the solution, as they meet all its conditions.
    for x, c in zip(X, C, strict=True):
        S, signs = np.flatnonzero(c), np.sign(c[c != 0])
        c[S] = np.linalg.solve(D[S] @ D[S].T + l2 * np.eye(len(S)), D[S] @ x - l1 * signs)
        assert np.array_equal(np.sign(c[S]), signs)
    assert np.max(np.abs((X - C @ D) @ D.T - l2 * C)) <= l1 * (1 + 1e-9)
    assert error(gradient, code_gradients(D, l2, X, C, V)[0]) <= 1e-4
