"""The compiled loops against the optimality conditions in NumPy, scikit-learn, and the same in plain JAX."""

import concurrent.futures

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Lasso

import bilevel as bl
from bilevel import kernels
from bilevel.kernels import host
from bilevel.objectives.sample_hessian import SampleHessian
from bilevel.objectives.sample_response import Inputs, moving
from bilevel.solvers import sparse_coder
from tests.compiling import compiled
from tests.laws import error

SparseCoding, SparseCoder = bl.objectives.SparseCoding, bl.solvers.SparseCoder


def problem(samples: int, features: int, atoms: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    D = rng.normal(size=(atoms, features))
    return D / np.linalg.norm(D, axis=1, keepdims=True), rng.normal(size=(samples, features))


@compiled
def solve(coding, X, init, solver):
    return bl.argmin(coding, X, solver=solver, init=init, throw=False)


def gaps(D, X, l1, l2, C) -> np.ndarray:
    """Duality gaps as parts of ½ ‖x‖²: the residual, scaled where l2 = 0, is feasible for the dual problem."""
    R = X - C @ D
    primal = 0.5 * np.sum(R**2, 1) + l1 * np.sum(abs(C), 1) + 0.5 * l2 * np.sum(C**2, 1)
    if l2 > 0:
        dual = 0.5 * np.sum(X**2, 1) - 0.5 * np.sum((X - R) ** 2, 1)
        dual -= np.sum(np.maximum(abs(R @ D.T) - l1, 0) ** 2, 1) / (2 * l2)
    else:
        U = R * np.minimum(1, l1 / np.maximum(np.max(abs(R @ D.T), axis=1), 1e-300))[:, None]
        dual = 0.5 * np.sum(X**2, 1) - 0.5 * np.sum((X - U) ** 2, 1)
    return (primal - dual) / np.maximum(0.5 * np.sum(X**2, 1), 1e-300)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("shape", [(30, 24, 60), (12, 4, 33), (20, 30, 17)], ids=str)
def test_no_duality_gap_whatever_the_strengths(shape: tuple, dtype: str):
    D, X = problem(*shape)
    D[-2:] = D[:2]
    D[-3] = 0
    X[3] = 0
    D, X = D.astype(dtype), X.astype(dtype)
    largest = np.max(abs(X @ D.T))
    for strength in (1.1, 0.9, 0.3, 0.05, 1e-3):
        for l2 in (1.0, 1e-2, 0.0):
            l1 = np.asarray(strength * largest, dtype)
            coding = SparseCoding(jnp.asarray(D), jnp.asarray(l1), jnp.asarray(l2, dtype))
            done = solve(coding, jnp.asarray(X), jnp.zeros((len(X), len(D)), dtype), SparseCoder())
            C = np.asarray(done.params)
            assert done.result == bl.RESULTS.successful and C.dtype == dtype
            assert not C[3].any() and not C[:, -3].any() and (strength < 1 or not C.any())
            exact = [np.asarray(x, np.float64) for x in (D, X, l1, np.asarray(l2, dtype), C)]
            assert np.max(gaps(*exact)) <= (1e-10 if dtype == "float64" else 1e-5), (strength, l2)


@pytest.mark.parametrize("tol", [1e-1, 1e-3, 1e-10])
def test_without_polish_they_meet_their_tolerance(tol: float):
    """By proximal gradient steps in NumPy; the smallest tolerance is out of reach of a few sweeps."""
    D, X = problem(40, 20, 50)
    l1 = 0.05 * np.max(abs(X @ D.T))
    coding, start = SparseCoding(D, l1, 0.1), jnp.zeros((40, 50))
    exact = solve(coding, jnp.asarray(X), start, SparseCoder())
    rough = solve(coding, jnp.asarray(X), start, SparseCoder(jnp.asarray(tol), kernel=True, polish=False))
    assert rough.result == bl.RESULTS.successful and rough.stats["optimality"] <= tol
    C, lipschitz = np.asarray(rough.params), np.linalg.norm(D, 2) ** 2 + 0.1
    ahead = C - ((C @ D - X) @ D.T + 0.1 * C) / lipschitz
    residual = lipschitz * (C - np.sign(ahead) * np.maximum(abs(ahead) - l1 / lipschitz, 0))
    scale = np.linalg.norm(X @ D.T, axis=1) + lipschitz * np.linalg.norm(C, axis=1)
    errors = np.linalg.norm(residual, axis=1) / scale
    assert np.max(errors) <= tol
    # What is not asked for is not done: the exact codes' errors are of the size of rounding.
    assert tol < 0.1 or np.max(errors) > 1e-3 * tol
    if tol < 1e-5:
        np.testing.assert_allclose(C, exact.params, atol=1e-7)


def test_are_those_of_scikit_learn():
    D, X = problem(5, 20, 50)
    for strength in (0.5, 0.1, 0.02):
        l1 = strength * np.max(abs(X @ D.T))
        found = solve(SparseCoding(D, l1), jnp.asarray(X), jnp.zeros((5, 50)), SparseCoder()).params
        model = Lasso(alpha=l1 / 20, fit_intercept=False, tol=1e-15, max_iter=1_000_000)
        expected = np.array([model.fit(D.T, x).coef_ for x in X])
        np.testing.assert_allclose(found, expected, atol=1e-7)


@pytest.mark.parametrize("start", ["cold", "dense", "wrong signs", "of another dictionary"])
def test_from_wherever_they_start(start: str):
    D, X = problem(40, 16, 48)
    coding, X = SparseCoding(D, 0.2, 0.05), jnp.asarray(X)
    expected = solve(coding, X, jnp.zeros((40, 48)), SparseCoder(kernel=False))
    starts = {
        "cold": jnp.zeros((40, 48)),
        "dense": jnp.ones((40, 48)),
        "wrong signs": -expected.params,
        "of another dictionary": solve(SparseCoding(D + 0.01, 0.2, 0.05), X, jnp.zeros((40, 48)), SparseCoder()).params,
    }
    found = solve(coding, X, starts[start], SparseCoder(kernel=True))
    assert error(found.params, expected.params) <= 1e-12
    assert found.stats["optimality"] <= 1e-14


def test_in_blocks_of_samples(monkeypatch: pytest.MonkeyPatch):
    D, X = problem(50, 8, 16)
    run = lambda: solve(SparseCoding(D, 0.2, 0.05), jnp.asarray(X), jnp.zeros((50, 16)), SparseCoder(tol=1e-9))
    whole = run()
    monkeypatch.setattr(sparse_coder, "BLOCK_SIZE", 16 * 7)
    jax.clear_caches()
    blocks = run()
    assert error(blocks.params, whole.params) <= 1e-13
    assert blocks.stats["num_steps"] == whole.stats["num_steps"] and blocks.result == whole.result


def test_too_few_steps_are_told():
    D, X = problem(10, 8, 32)
    start = jnp.zeros((10, 32))
    done = solve(SparseCoding(D, 0.01, 0.01), jnp.asarray(X), start, SparseCoder(max_steps=1))
    assert done.result == bl.RESULTS.not_converged and done.stats["optimality"] > 1e-8


def test_a_sample_that_is_no_number_spares_the_others():
    D, X = problem(6, 8, 16)
    code = compiled(lambda D, X, *numbers: kernels.code_samples(D @ D.T, X @ D.T, *numbers, 100))
    options = [jnp.asarray(x) for x in (0.2, 0.05, np.zeros((6, 16)), 1e-8)]
    expected, _, _ = code(jnp.asarray(D), jnp.asarray(X), *options)
    X[2, 3] = np.nan
    codes, errors, _ = code(jnp.asarray(D), jnp.asarray(X), *options)
    bad = np.arange(6) == 2
    np.testing.assert_array_equal(np.isnan(codes), np.broadcast_to(bad[:, None], (6, 16)))
    np.testing.assert_array_equal(np.isnan(errors), bad)
    np.testing.assert_array_equal(codes[~bad], expected[~bad])


# --- The adjoint ------------------------------------------------------------------------------------------------------


def adjoint_problem(dtype: str = "float64", l2: float = 0.05):
    D, X = (jnp.asarray(x, dtype) for x in problem(40, 12, 30))
    coding = SparseCoding(D, 0.2, l2)
    codes = solve(coding, X, jnp.zeros((40, 30), dtype), SparseCoder()).params
    cotangent = jnp.asarray(np.random.default_rng(5).normal(size=codes.shape), dtype)
    return Inputs(D, coding.l1, coding.l2, X), codes, cotangent


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_systems_on_supports_are_those_of_plain_jax(dtype: str):
    inputs, codes, cotangent = adjoint_problem(dtype)
    hessian = SampleHessian(inputs.dictionary, inputs.l2, codes != 0, inputs.data, None, None)
    by_loop = compiled(lambda hessian, v: hessian.solve(v))(hessian, cotangent)
    by_width = compiled(lambda hessian, v: hessian._solve_by_width(v))(hessian, cotangent)
    assert error(by_loop, by_width) <= (1e-12 if dtype == "float64" else 1e-5)
    # Off the support the operator is the identity.
    np.testing.assert_array_equal(np.asarray(by_loop)[codes == 0], np.asarray(cotangent)[codes == 0])


def test_a_cotangent_pulls_on_everything_as_in_numpy():
    inputs, codes, cotangent = adjoint_problem()

    @compiled
    def pulled(inputs, cotangent):
        def value(inputs):
            coding = SparseCoding(inputs.dictionary, inputs.l1, inputs.l2)
            return jnp.sum(cotangent * bl.argmin(coding, inputs.data, throw=False).params)

        return jax.grad(value)(inputs)

    D, X, C, V = (np.asarray(x) for x in (inputs.dictionary, inputs.data, codes, cotangent))
    beta = np.zeros_like(C)
    for row, c, v in zip(beta, C, V, strict=True):
        S = np.flatnonzero(c)
        row[S] = np.linalg.solve(D[S] @ D[S].T + 0.05 * np.eye(len(S)), v[S])
    expected = (
        beta.T @ (X - C @ D) - C.T @ (beta @ D),
        -np.sum(beta * np.sign(C)),
        -np.sum(beta * C),
        beta @ D,
    )
    for name, found, known in zip(Inputs._fields, pulled(inputs, cotangent), expected, strict=True):
        assert error(found, known) <= 1e-12, name


def test_what_touches_the_threshold_moves():
    # Twice the same atom without l2: at a solution that uses one of them, the other touches.
    D, X = problem(30, 12, 20)
    D[-1] = D[0]
    coding = SparseCoding(D, 0.2, 0.0)
    codes = solve(coding, jnp.asarray(X), jnp.zeros((30, 20)), SparseCoder()).params
    use = np.asarray((codes[:, 0] != 0) | (codes[:, -1] != 0))
    support, _ = moving(Inputs(coding.dictionary, coding.l1, coding.l2, jnp.asarray(X)), codes)
    assert use.any() and not use.all()
    np.testing.assert_array_equal(np.asarray(support[:, 0] & support[:, -1]), use)
    slopes = compiled(jax.grad(lambda X: jnp.sum(bl.argmin(coding, X, throw=False).params)))(jnp.asarray(X))
    np.testing.assert_array_equal(np.isnan(slopes).any(axis=1), use)


# --- Calls ------------------------------------------------------------------------------------------------------------


def test_many_programs_at_once():
    D, X = problem(300, 8, 16)
    coding, X = SparseCoding(D, 0.2, 0.05), jnp.asarray(X)
    gradient = eqx.filter_jit(eqx.filter_grad(lambda coding, X: jnp.sum(bl.argmin(coding, X, throw=False).params)))
    expected = gradient(coding, X).dictionary
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: np.asarray(gradient(coding, X).dictionary), range(40)))
    for each in found:
        np.testing.assert_allclose(each, expected, rtol=1e-12)


def test_kernel_is_a_choice():
    with pytest.raises(ValueError, match="`kernel` must be True, False or None, got 'numba'"):
        SparseCoder(kernel="numba")  # pyright: ignore[reportArgumentType]


def test_off_the_cpu_plain_jax_serves(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    D, X = problem(7, 6, 5)
    lowered = jax.jit(lambda X: bl.argmin(SparseCoding(D, 0.2), X, throw=False).params).trace(jnp.asarray(X))
    assert "code_on_host" in lowered.lower(lowering_platforms=("cpu",)).as_text()
    assert "code_on_host" not in lowered.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("scale", [1e-10, 1.0, 1e10])
def test_near_twins_are_regular_in_all_units(scale: float):
    # In 32 bits, not far from singular: squares of Gram entries would leave the range of numbers.
    D, X = problem(6, 8, 8)
    D = np.concatenate([D, D + 2e-2 * np.random.default_rng(1).normal(size=D.shape)])
    scaled = [jnp.asarray(x, jnp.float32) for x in (scale * D, 0.02 * scale, 1e-4 * scale**2, X)]

    @compiled
    def gradient(D, l1, l2, X):
        return jax.grad(lambda X: jnp.sum(scale * bl.argmin(SparseCoding(D, l1, l2), X, throw=False).params))(X)

    assert np.all(np.isfinite(gradient(*scaled)))


def test_rounding_makes_next_to_no_atoms_move_in_32_bits():
    D, X = problem(1000, 32, 128)
    D, X = jnp.asarray(D, jnp.float32), jnp.asarray(X, jnp.float32)
    for l1 in (0.3, 0.1, 0.03):
        coding = SparseCoding(D, jnp.asarray(l1, jnp.float32), jnp.asarray(1e-2, jnp.float32))
        codes = solve(coding, X, jnp.zeros((1000, 128), jnp.float32), SparseCoder()).params
        support, signs = moving(Inputs(D, coding.l1, coding.l2, X), codes)
        use = np.asarray(codes != 0)
        # An atom that exceeds l1 by rounding moves: here and there one of 128,000.
        assert np.all(np.asarray(support)[use]) and np.sum(support & ~use) <= 10
        np.testing.assert_array_equal(np.asarray(signs)[use], np.sign(codes)[use])


@pytest.mark.parametrize("over", ["samples", "strengths"])
def test_under_vmap_samples_are_those_of_one_call(over: str, monkeypatch: pytest.MonkeyPatch):
    calls, in_parallel = [], host._in_parallel
    monkeypatch.setattr(host, "_in_parallel", lambda loop, *args: (calls.append(loop), in_parallel(loop, *args)))
    D, X = (jnp.asarray(x) for x in problem(7, 6, 9))
    loss = lambda x, l1: jnp.sum(bl.argmin(SparseCoding(D, l1, 0.05), x[None], throw=False).params ** 3)
    slope, numbers = jax.value_and_grad(loss), jnp.asarray([0.1, 0.2, 0.3])
    axes, args = {"samples": ((0, None), (X, numbers[1])), "strengths": ((None, 0), (X[0], numbers))}[over]
    found = jax.block_until_ready(jax.jit(jax.vmap(slope, axes))(*args))
    # One for the codes, unless problems differ; and one for the system of their derivative, which does not know l1.
    assert len(calls) == (2 if over == "samples" else len(numbers) + 1)
    single = jax.jit(slope)
    each = [single(x, numbers[1]) for x in X] if over == "samples" else [single(X[0], l1) for l1 in numbers]
    for found_one, expected in zip(zip(*found, strict=True), each, strict=True):
        assert max(map(error, found_one, expected)) <= 1e-12


def test_an_error_within_a_thread_is_raised():
    def fail(k: int):
        raise IndexError(k)

    with pytest.raises(IndexError):
        host._in_threads(fail, [(0,), (1,)])
