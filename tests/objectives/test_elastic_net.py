"""The elastic net against scikit-learn and closed forms on the support, wide, sparse and degenerate; its Hessian."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.sparse import BCOO
from scipy.sparse import csr_matrix
from sklearn.linear_model import ElasticNet as SklearnElasticNet, Lasso

import bilevel as bl
from bilevel.objectives import design
from bilevel.objectives.support_hessian import SupportHessian
from tests.compiling import compiled
from tests.laws import error
from tests.problems import ELASTIC_NET

ElasticNet, LinearModel = bl.objectives.ElasticNet, bl.objectives.LinearModel
SOLVER = bl.solvers.ProximalGradient(tol=jnp.asarray(1e-12), max_steps=20_000)


def regression(n: int, p: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A design and a response with ten features that matter, and noise."""
    rng = np.random.default_rng(seed)
    X, w = rng.normal(size=(n, p)), np.zeros(p)
    w[: min(10, p)] = 3 * rng.normal(size=min(10, p))
    return X, X @ w + rng.normal(size=n)


@compiled
def solve_and_push(inputs, directions, solver=SOLVER, init=None):
    """The weights and their motion, for inputs (l1, l2, X, y)."""

    def weights(inputs):
        l1, l2, X, y = inputs
        return bl.argmin(ElasticNet(l1, l2), (X, y), solver=solver, init=init, throw=False).params.weight

    return jax.jvp(weights, (inputs,), (directions,))


@compiled
def solve_and_pull(inputs, cotangent, solver=SOLVER):
    def weights(inputs):
        l1, l2, X, y = inputs
        return bl.argmin(ElasticNet(l1, l2), (X, y), solver=solver, throw=False).params.weight

    return eqx.filter_vjp(weights, inputs)[1](cotangent)[0]


def known_motion(w, inputs, directions) -> np.ndarray:
    """(X_SᵀX_S/n + diag l2) dw = dXᵀ(y − Xw)/n + Xᵀ(dy − dX w)/n − dl1 s − dl2 w, on the support S of w."""
    (l1, l2, X, y), (d_l1, d_l2, d_X, d_y) = inputs, directions
    n, p = X.shape
    S = np.flatnonzero((w != 0) | (np.broadcast_to(l1, p) == 0))
    right = (d_X.T @ (y - X @ w) + X.T @ (d_y - d_X @ w)) / n - d_l1 * np.sign(w) - d_l2 * w
    motion = np.zeros(p)
    matrix = X[:, S].T @ X[:, S] / n + np.diag(np.broadcast_to(l2, p)[S])
    motion[S] = np.linalg.solve(matrix, right[S])
    return motion


def arrays(*values) -> tuple:
    return tuple(jnp.asarray(value) for value in values)


@pytest.mark.parametrize("fraction", [2, 10, 100])
def test_wide_lasso_is_that_of_scikit_learn_with_the_derivative_of_the_closed_form(fraction: int):
    X, y = regression(100, 1000)
    l1 = float(ElasticNet.max_l1((X, y))) / fraction
    model = Lasso(l1, fit_intercept=False, tol=1e-14, max_iter=100_000).fit(X, y)
    # The default tolerance, from zero.
    inputs, directions = (l1, 0.0, X, y), (1.0, 0.0, 0 * X, 0 * y)
    weights, motion = solve_and_push(arrays(*inputs), arrays(*directions), None)
    assert error(weights, model.coef_) <= 1e-4
    np.testing.assert_array_equal(weights != 0, model.coef_ != 0)
    assert error(motion, known_motion(model.coef_, inputs, directions)) <= 1e-9


@pytest.mark.parametrize("fraction", [2, 10, 100])
def test_very_wide_lasso(fraction: int):
    X, y = regression(200, 5000)
    l1 = float(ElasticNet.max_l1((X, y))) / fraction
    model = Lasso(l1, fit_intercept=False, tol=1e-14, max_iter=100_000).fit(X, y)
    inputs, directions = (l1, 0.0, X, y), (1.0, 0.0, 0 * X, 0 * y)
    # The last needs 5,300 steps from zero.
    solver = None if fraction < 100 else bl.solvers.ProximalGradient(max_steps=10_000)
    weights, motion = solve_and_push(arrays(*inputs), arrays(*directions), solver)
    np.testing.assert_array_equal(weights != 0, model.coef_ != 0)
    assert error(motion, known_motion(model.coef_, inputs, directions)) <= 1e-9


def test_strengths_for_each_feature():
    X, y = regression(30, 60)
    rng = np.random.default_rng(1)
    l1, l2 = rng.uniform(0.1, 0.5, 60), rng.uniform(0.0, 0.5, 60)
    l1[[3, 40]] = 0
    directions = tuple(rng.normal(size=np.shape(v)) for v in (l1, l2, X, y))
    weights, motion = map(np.asarray, solve_and_push(arrays(l1, l2, X, y), arrays(*directions)))
    # The conditions of a solution, feature by feature.
    slope = X.T @ (y - X @ weights) / 30 - l2 * weights
    np.testing.assert_allclose(slope[weights != 0], (l1 * np.sign(weights))[weights != 0], atol=1e-9)
    assert np.all(abs(slope) <= l1 + 1e-9)
    assert error(motion, known_motion(weights, (l1, l2, X, y), directions)) <= 1e-8
    cotangent = jnp.asarray(rng.normal(size=60))
    pulled = solve_and_pull(arrays(l1, l2, X, y), cotangent)
    reverse = sum(np.vdot(*pair) for pair in zip(pulled, directions, strict=True))
    assert error(reverse, np.vdot(cotangent, motion)) <= 1e-10


def test_is_the_elastic_net_of_scikit_learn_with_several_targets():
    X, y = regression(30, 60)
    Y = np.stack([y, y[::-1]], axis=1)
    model = SklearnElasticNet(0.5, l1_ratio=0.6, fit_intercept=False, tol=1e-14, max_iter=100_000)
    theirs = np.stack([model.fit(X, column).coef_ for column in Y.T])
    inputs = arrays(0.3, 0.2, X, Y)
    ours, _ = solve_and_push(inputs, inputs)
    assert error(ours, theirs) <= 1e-7
    np.testing.assert_array_equal(ours != 0, theirs != 0)


def test_more_features_in_use_than_samples():
    # With l2 the support may be wider than the samples are many: the dual.
    X, y = regression(20, 60)
    inputs, directions = (1e-3, 0.5, X, y), (1.0, -0.3, np.cos(X), np.sin(y))
    weights, motion = map(np.asarray, solve_and_push(arrays(*inputs), arrays(*directions)))
    assert np.sum(weights != 0) > 20
    assert error(motion, known_motion(weights, inputs, directions)) <= 1e-8


def test_from_the_largest_strength_on_all_is_zero():
    X, y = regression(30, 60)
    largest = float(ElasticNet.max_l1((X, y)))
    assert error(largest, np.max(abs(X.T @ y)) / 30) <= 1e-14
    directions = arrays(1.0, 1.0, X, y)
    for l1 in (largest * (1 + 1e-12), 10 * largest):
        weights, motion = solve_and_push(arrays(l1, 0.1, X, y), directions)
        assert not np.any(weights) and not np.any(motion)
    weights, motion = solve_and_push(arrays(0.999 * largest, 0.1, X, y), directions)
    assert np.sum(weights != 0) == 1 and np.all(np.isfinite(motion))


def test_features_that_are_zero_rest():
    X, y = regression(30, 20)
    X[:, [2, 11]] = 0
    inputs, directions = (0.1, 0.0, X, y), (1.0, 1.0, np.cos(X) * (X != 0), np.sin(y))
    weights, motion = map(np.asarray, solve_and_push(arrays(*inputs), arrays(*directions)))
    assert not np.any(weights[[2, 11]])
    assert error(motion, known_motion(weights, inputs, directions)) <= 1e-9
    # Alone, too: no curvature at all.
    weights, motion = solve_and_push(arrays(0.1, 0.0, 0 * X, y), arrays(1.0, 1.0, 0 * X, y))
    assert not np.any(weights) and not np.any(motion)


@pytest.mark.parametrize("kind", ["twice", "sum of two"])
def test_collinear_features_have_a_derivative_only_with_l2(kind: str):
    X, y = regression(30, 5)
    more = X[:, 1] if kind == "twice" else X[:, 1] + X[:, 2]
    X = np.column_stack([X, more])
    y = y + 5 * more
    # Strengths by which the sum is worth using beside its parts.
    l1 = np.array([0.1, 0.1, 0.1, 0.1, 0.1, 0.1 if kind == "twice" else 0.2])
    directions = (np.ones(6), 0.0, 0 * X, np.sin(y))
    start = LinearModel(jnp.asarray([1.0, 1.0, 1.0, 1.0, 1.0, 1.0]))
    weights, motion = solve_and_push(arrays(l1, 0.0, X, y), arrays(*directions), SOLVER, start)
    assert np.all(np.asarray(weights)[[1, 5]] != 0)
    assert np.all(np.isnan(np.asarray(motion)[np.asarray(weights) != 0]))
    weights, motion = map(np.asarray, solve_and_push(arrays(l1, 0.1, X, y), arrays(*directions), SOLVER, start))
    assert error(motion, known_motion(weights, (l1, 0.1, X, y), directions)) <= 1e-9
    assert kind != "twice" or error(weights[5], weights[1]) <= 1e-9


def test_in_logarithmic_form():
    X, y = arrays(*regression(30, 20))

    @compiled
    def slopes(logs):
        def loss(logs):
            l1, l2 = jnp.exp(logs)
            return jnp.sum(bl.argmin(ElasticNet(l1, l2), (X, y), solver=SOLVER, throw=False).params.weight ** 2)

        return jax.value_and_grad(loss)(logs)

    logs = np.log([0.2, 0.1])
    _, slope = slopes(jnp.asarray(logs))
    difference = [(slopes(logs + 1e-5 * e)[0] - slopes(logs - 1e-5 * e)[0]) / 2e-5 for e in np.eye(2)]
    np.testing.assert_allclose(slope, difference, rtol=1e-6)


def test_second_derivative():
    # w = A⁻¹ b with A = G + l2 I, so that dw = −A⁻¹ w and d²w = 2 A⁻² w.
    X, y = regression(30, 5)

    @compiled
    def second(l2, X, y):
        weights = lambda l2: bl.argmin(ElasticNet(0.1, l2), (X, y), solver=SOLVER, throw=False).params.weight
        return weights(l2), jax.jacfwd(jax.jacrev(weights))(l2)

    weights, bent = map(np.asarray, second(*arrays(0.1, X, y)))
    S = weights != 0
    matrix = X[:, S].T @ X[:, S] / 30 + 0.1 * np.eye(S.sum())
    expected = 2 * np.linalg.solve(matrix, np.linalg.solve(matrix, weights[S]))
    assert error(bent[S], expected) <= 1e-8


# --- Sparse designs ---------------------------------------------------------------------------------------------------


def sparse_regression(n: int, p: int) -> tuple[np.ndarray, BCOO, np.ndarray]:
    X, _ = regression(n, p)
    X *= np.random.default_rng(2).uniform(size=X.shape) < 0.2
    y = X[:, : min(5, p)] @ np.arange(1.0, min(5, p) + 1) + 0.1 * np.random.default_rng(3).normal(size=n)
    return X, BCOO.fromdense(jnp.asarray(X)), y


@pytest.mark.parametrize("shape", [(40, 15), (20, 60)])
def test_sparse_is_dense(shape: tuple[int, int]):
    X, sparse, y = sparse_regression(*shape)
    d_l1, d_l2, d_y = 1.0, -0.2, np.sin(y)
    d_data = jnp.sin(3 * sparse.data)
    d_X = eqx.tree_at(lambda X: X.data, sparse, d_data)
    dense, l1, l2 = np.asarray(d_X.todense()), 0.02, 0.1
    expected, expected_motion = solve_and_push(arrays(l1, l2, X, y), arrays(d_l1, d_l2, dense, d_y))

    @compiled
    def both(l1, l2, y, data, directions, cotangent):
        def weights(l1, l2, y, data):
            X = BCOO((data, sparse.indices), shape=sparse.shape)
            return bl.argmin(ElasticNet(l1, l2), (X, y), solver=SOLVER, throw=False).params.weight

        values, push = jax.linearize(weights, l1, l2, y, data)
        return values, push(*directions), jax.linear_transpose(push, l1, l2, y, data)(cotangent)

    cotangent = jnp.asarray(np.random.default_rng(4).normal(size=shape[1]))
    directions = arrays(d_l1, d_l2, d_y, d_data)
    weights, motion, pulled = both(*arrays(l1, l2, y), sparse.data, directions, cotangent)
    assert np.sum(weights != 0) > 5
    assert error(weights, expected) <= 1e-9
    assert error(motion, expected_motion) <= 1e-8
    reverse = sum(np.vdot(*pair) for pair in zip(pulled, directions, strict=True))
    assert error(reverse, np.vdot(cotangent, motion)) <= 1e-10


def test_gradients_reach_the_leaves_of_a_sparse_design():
    X, sparse, y = sparse_regression(40, 15)
    loss = lambda data: jnp.sum(bl.argmin(ElasticNet(0.02, 0.1), data, solver=SOLVER, throw=False).params.weight ** 2)
    grads = compiled(eqx.filter_grad(loss))((sparse, jnp.asarray(y)))
    dense = compiled(eqx.filter_grad(loss))(arrays(X, y))
    row, column = np.asarray(sparse.indices).T
    assert error(grads[0].data, np.asarray(dense[0])[row, column]) <= 1e-8
    assert error(grads[1], dense[1]) <= 1e-8


def test_32_bits_stay_with_a_sparse_design():
    _, sparse, y = sparse_regression(40, 15)
    data = (BCOO((sparse.data.astype(np.float32), sparse.indices), shape=sparse.shape), jnp.asarray(y, jnp.float32))
    solve = compiled(lambda data: bl.argmin(ElasticNet(0.02, 0.1), data).params.weight)
    weights = solve(data)
    assert weights.dtype == jnp.float32
    assert error(weights, solve((sparse, jnp.asarray(y)))) <= 1e-3


def test_columns_of_a_sparse_design_with_entries_stored_twice_and_padding():
    indices = np.array([[0, 1], [2, 3], [0, 1], [1, 0], [3, 4], [2, 1]])
    sparse = BCOO((jnp.arange(1.0, 7.0), jnp.asarray(indices)), shape=(3, 4))
    dense = np.zeros((3, 4))
    for (row, column), value in zip(indices, np.arange(1.0, 7.0), strict=True):
        if row < 3 and column < 4:
            dense[row, column] += value
    # Some twice, as by the rows of several classes.
    at = jnp.asarray([3, 1, 4, 1, 4, 3])
    nothing = np.zeros(3)
    expected = np.column_stack([dense[:, 3], dense[:, 1], nothing, dense[:, 1], nothing, dense[:, 3]])
    for X in (sparse, jnp.asarray(dense)):
        np.testing.assert_array_equal(compiled(design.columns)(X, at), expected)


@pytest.mark.parametrize("is_sparse", [False, True])
def test_nothing_of_the_size_of_features_squared_is_formed(is_sparse: bool):
    n, p = 50, 2000
    X = BCOO.fromdense(jnp.eye(n, p), nse=n) if is_sparse else jnp.zeros((n, p))

    def motion(l1, X, y):
        weights = lambda l1: bl.argmin(ElasticNet(l1, 0.1), (X, y), throw=False).params.weight
        return jax.jvp(weights, (l1,), (jnp.ones(()),))

    program = str(jax.make_jaxpr(motion)(jnp.asarray(0.1), X, jnp.zeros(n)))
    assert not re.search(rf"\b{p},{p}\b", program)
    # The design itself is there, so the search finds what there is to find.
    assert bool(re.search(rf"\b{n},{p}\b|\b{p},{n}\b", program)) == (not is_sparse)


# --- The Hessian ------------------------------------------------------------------------------------------------------

L2 = {
    "no l2": lambda rng, p: np.zeros(p),
    "l2": lambda rng, p: rng.uniform(0.1, 1, p),
    "l2 for some": lambda rng, p: rng.uniform(0.1, 1, p) * (np.arange(p) % 4 > 0),
}


def check_hessian(shape: tuple[int, int], is_sparse: bool, sizes: list[int], rtol: float = 1e-8):
    """`SupportHessian` against dense NumPy, target by target; NaN where it is singular."""
    rng = np.random.default_rng(0)
    n, p = shape
    X, right, curvature = rng.normal(size=shape), rng.normal(size=(4, p)), rng.uniform(0.1, 0.25, n)
    matrix = BCOO.fromdense(jnp.asarray(X)) if is_sparse else jnp.asarray(X)

    @compiled
    def solve_and_apply(l2, support, right):
        hessian = SupportHessian(matrix, l2, support, jnp.asarray(curvature))
        return hessian.solve(LinearModel(right)).weight, hessian.mv(LinearModel(right)).weight

    for name, largest in ((name, size) for name in L2 for size in sizes):
        l2, support = L2[name](rng, p), np.zeros((4, p), bool)
        for row, size in enumerate((largest, largest // 2, min(largest, 1), 0)):
            support[row, rng.permutation(p)[:size]] = True
        solved, product = map(np.asarray, solve_and_apply(*arrays(l2, support, right)))
        full = X.T @ (curvature[:, None] * X) / n + np.diag(l2)
        for row, on in enumerate(support):
            block, expected = full[np.ix_(on, on)], np.array(right[row])
            regular = np.sum(on & (l2 == 0)) <= n
            expected[on] = np.linalg.solve(block, right[row][on]) if regular else np.nan
            np.testing.assert_allclose(solved[row], expected, rtol=rtol, atol=1e-9, err_msg=f"{name}, {largest}")
            np.testing.assert_allclose(product[row][on], block @ right[row][on], rtol=1e-9, atol=1e-11)
            np.testing.assert_array_equal(product[row][~on], right[row][~on])


@pytest.mark.parametrize("chunk_size", [2**23, 5000], ids=["at once", "in chunks"])
@pytest.mark.parametrize("is_sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("shape", [(70, 50), (40, 300)], ids=["tall", "wide"])
def test_hessian_solves_itself(shape: tuple[int, int], is_sparse: bool, chunk_size: int, monkeypatch):
    monkeypatch.setattr("bilevel.objectives.support_hessian.CHUNK_SIZE", chunk_size)
    check_hessian(shape, is_sparse, sorted({0, 1, 31, 32, 33, 38, min(shape[1], 90), shape[1]}))


def test_hessian_that_is_too_large_to_factor(monkeypatch):
    # By conjugate gradient, and NaN where it is singular all the same.
    monkeypatch.setattr("bilevel.objectives.support_hessian.BLOCK_SIZE", 32 * 32)
    check_hessian((40, 90), True, [20, 38, 90], rtol=1e-6)


def test_hessian_is_the_generic_one():
    params = ELASTIC_NET.solve(*map(np.asarray, ELASTIC_NET.leaves)).reshape(2, -1)
    right = LinearModel(jnp.asarray(np.random.default_rng(0).normal(size=params.shape)))

    @compiled
    def both(objective, params, data, right):
        hessian = objective.hessian(params, data)
        assert isinstance(hessian, SupportHessian)
        generic = bl.objectives.AbstractObjective.hessian(objective, params, data)
        ridge = jnp.asarray(0.3)
        each = lambda v: hessian.blockwise(lambda block, b: block.mv(b), v)
        return hessian.mv(right), generic.mv(right), each(right), hessian.damped(ridge).mv(right)

    model = LinearModel(jnp.asarray(params))
    product, generic, each, damped = both(ELASTIC_NET.objective, model, ELASTIC_NET.data, right)
    np.testing.assert_allclose(product.weight, generic.weight, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(each.weight, product.weight, rtol=1e-12, atol=1e-14)
    expected = np.asarray(product.weight) + 0.3 * (params != 0) * np.asarray(right.weight)
    np.testing.assert_allclose(damped.weight, expected, rtol=1e-12, atol=1e-14)


def test_a_singular_support_takes_no_other_target_with_it():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30, 6))
    X[:, 5] = X[:, 0]
    support = np.ones((2, 6), bool)
    support[1, 5] = False
    right = rng.normal(size=(2, 6))
    hessian = SupportHessian(jnp.asarray(X), jnp.zeros(6), jnp.asarray(support))
    solved = np.asarray(
        compiled(lambda hessian, right: hessian.solve(right).weight)(hessian, LinearModel(jnp.asarray(right)))
    )
    assert np.all(np.isnan(solved[0]))
    np.testing.assert_allclose(solved[1, :5], np.linalg.solve(X[:, :5].T @ X[:, :5] / 30, right[1, :5]), rtol=1e-10)


# --- Bad input --------------------------------------------------------------------------------------------------------

X, y = (jnp.asarray(array) for array in regression(6, 4))
SPARSE = BCOO.fromdense(X)
BAD = {
    "negative": (lambda: ElasticNet(-1.0), "`l1` must be finite and not negative"),
    "negative l2": (lambda: ElasticNet(1.0, jnp.array([1.0, -1.0])), "`l2` must be finite and not negative"),
    "matrix of strengths": (lambda: ElasticNet(jnp.ones((2, 2))), "`l1` must be a number or one for each feature"),
    "no pair": (lambda: bl.argmin(ElasticNet(0.1), X), "`data` must be a pair"),
    "too many strengths": (lambda: bl.argmin(ElasticNet(jnp.ones(3)), (X, y)), "`l1` has 3 entries, but `X` has 4"),
    "too many l2": (lambda: bl.argmin(ElasticNet(0.1, jnp.ones(3)), (X, y)), "`l2` has 3 entries, but `X` has 4"),
    "too few samples": (lambda: bl.argmin(ElasticNet(0.1), (X, y[:3])), "`y` has 3 samples, but `X` has 6"),
    "a list": (lambda: bl.argmin(ElasticNet(0.1), ([[1.0]], y)), "`X` must be an array of shape"),
    "a matrix of SciPy's": (lambda: bl.argmin(ElasticNet(0.1), (csr_matrix((6, 4)), y)), "BCOO.from_scipy_sparse"),
    "batch of sparse": (
        lambda: bl.argmin(ElasticNet(0.1), (BCOO.fromdense(X, n_batch=1), y)),
        "`X` must be a sparse matrix .*1 batch axes",
    ),
    "sparse integers": (
        lambda: bl.argmin(ElasticNet(0.1), (BCOO.fromdense(jnp.eye(3, dtype=int)), y[:3])),
        "`X` must have a floating dtype",
    ),
    "no sparse samples": (
        lambda: bl.argmin(ElasticNet(0.1), (BCOO.fromdense(jnp.zeros((0, 4))), y)),
        "`X` is empty",
    ),
    "sparse NaN": (
        lambda: bl.argmin(ElasticNet(0.1), (eqx.tree_at(lambda X: X.data, SPARSE, SPARSE.data * jnp.nan), y)),
        "entries that are NaN",
    ),
    "coordinate descent on a sparse design": (
        lambda: bl.argmin(ElasticNet(0.1), (SPARSE, y), solver=bl.solvers.BlockCoordinateDescent()),
        "`X` is sparse",
    ),
    "coordinate descent with strengths of its own for each feature": (
        lambda: bl.argmin(ElasticNet(jnp.ones(4)), (X, y), solver=bl.solvers.BlockCoordinateDescent()),
        "its penalty is not the same for all coordinates",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str):
    attempt, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        attempt()
