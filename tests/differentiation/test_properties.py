"""Whatever the shape, scale, support and way of differentiating: the derivative is that of the dense formula."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from hypothesis import HealthCheck, given, settings, strategies as st
from sklearn.datasets import load_sample_image
from sklearn.feature_extraction.image import extract_patches_2d

import bilevel as bl
from tests.compiling import compiled
from tests.laws import error
from tests.witnesses import code_gradients

# Few shapes, as each is a program of its own; everything else is drawn at will.
SHAPES = [(1, 3, 1), (4, 5, 3), (3, 4, 40)]
WAYS = {
    "direct": bl.Implicit(),
    "CG": bl.Implicit(lx.CG(rtol=1e-12, atol=1e-12)),
}
few = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@compiled
def codes_and_gradients(coding, X, cotangent, diff):
    """Codes, and the gradients of ⟨cotangent, codes⟩ in dictionary, l1, l2, X."""

    def value(both):
        codes = bl.argmin(*both, diff=diff, throw=False).params
        return jnp.sum(cotangent * codes), codes

    (_, codes), gradient = eqx.filter_value_and_grad(value, has_aux=True)((coding, X))
    return codes, gradient


@few
@given(
    shape=st.sampled_from(SHAPES),
    seed=st.integers(0, 2**16),
    scale=st.floats(-3, 3),
    strength=st.floats(0.02, 1.2),
    l2=st.floats(-3, 0.5),
    twice=st.booleans(),
    way=st.sampled_from(sorted(WAYS)),
)
def test_sparse_codes(shape, seed, scale, strength, l2, twice, way):
    samples, features, atoms = shape
    rng, a = np.random.default_rng(seed), 10.0**scale
    D, X = rng.normal(size=(atoms, features)), a * rng.normal(size=(samples, features))
    if twice:
        D[-1] = D[0]
    # From codes that are dense to codes that are all zero.
    l1, l2 = strength * np.max(np.abs(X @ D.T)), 10.0**l2
    V = rng.normal(size=(samples, atoms))
    coding = bl.objectives.SparseCoding(jnp.asarray(D), jnp.asarray(l1), jnp.asarray(l2))
    codes, (in_coding, in_X) = codes_and_gradients(coding, jnp.asarray(X), jnp.asarray(V), WAYS[way])
    C = np.asarray(codes)
    slope = (C @ D - X) @ D.T + l2 * C
    assert np.all(np.abs(slope) <= l1 * (1 + 1e-6)) and np.allclose(slope[C != 0], -l1 * np.sign(C[C != 0]), rtol=1e-6)
    if strength >= 1:
        assert not C.any()
    in_D, in_l1, in_l2, in_data = code_gradients(D, l2, X, C, V)
    # In units in which each leaf moves by its own size.
    assert error(in_coding.dictionary / a, in_D / a) <= 1e-8
    assert error(in_coding.l1, in_l1) <= 1e-8 and error(in_coding.l2 / a, in_l2 / a) <= 1e-8
    assert error(in_X, in_data) <= 1e-8


@compiled
def weight_and_gradient(objective, data, cotangent, diff):
    def value(objective):
        weight = bl.argmin(objective, data, diff=diff, throw=False).params.weight
        return jnp.vdot(cotangent, weight), weight

    (_, weight), gradient = eqx.filter_value_and_grad(value, has_aux=True)(objective)
    return weight, gradient


@few
@given(
    shape=st.sampled_from([(12, 4), (5, 9)]),
    seed=st.integers(0, 2**16),
    scale=st.floats(-3, 3),
    alpha=st.floats(-4, 2),
    per_feature=st.booleans(),
    way=st.sampled_from(sorted(WAYS)),
)
def test_ridge(shape, seed, scale, alpha, per_feature, way):
    rng, a = np.random.default_rng(seed), 10.0**scale
    X, y = a * rng.normal(size=shape), a * rng.normal(size=shape[0])
    alpha = a**2 * 10.0**alpha * (rng.uniform(1, 3, shape[1]) if per_feature else 1.0)
    cotangent = rng.normal(size=shape[1])
    arguments = bl.objectives.Ridge(jnp.asarray(alpha)), (jnp.asarray(X), jnp.asarray(y)), jnp.asarray(cotangent)
    weight, gradient = weight_and_gradient(*arguments, WAYS[way])
    matrix = X.T @ X / len(X) + np.diag(np.broadcast_to(alpha, shape[1]))
    w = np.linalg.solve(matrix, X.T @ y / len(X))
    slopes = -np.linalg.solve(matrix, cotangent) * w
    assert error(weight, w) <= 1e-8
    expected = slopes if per_feature else np.sum(slopes)
    # A sum of terms that may cancel is right to their size.
    assert np.linalg.norm(gradient.alpha - expected) <= 1e-8 * np.linalg.norm(slopes)


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
