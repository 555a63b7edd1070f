"""Logistic regression against scikit-learn and closed forms on the support: binary, multinomial, wide, sparse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn
from jax.experimental.sparse import BCOO
from sklearn.linear_model import LogisticRegression as SklearnLogistic
from sklearn.utils.fixes import parse_version

import bilevel as bl
from bilevel.objectives.support_hessian import SupportHessian
from tests.compiling import compiled
from tests.laws import error
from tests.problems import SPARSE_LOGISTIC

Logistic, LinearModel = bl.objectives.LogisticRegression, bl.objectives.LinearModel
CLASSES = 3
TOL = jnp.asarray(1e-11)


def classification(n: int, p: int, classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """A design, and labels from 0 on that depend on it and on chance."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, p))
    return X, np.argmax(X[:, :classes] + rng.gumbel(size=(n, classes)), axis=1)


def binary(n: int, p: int) -> tuple[np.ndarray, np.ndarray]:
    X, labels = classification(n, p)
    return X, 2.0 * labels - 1


def arrays(*values) -> tuple:
    return tuple(jnp.asarray(value) for value in values)


@compiled
def solve_and_differentiate(inputs, directions, cotangent):
    """Binary weights for inputs (l2, l1 or None, X, y), their motion, and the derivatives of ⟨cotangent, weights⟩."""

    def weights(inputs):
        l2, l1, X, y = inputs
        objective = Logistic(l2, l1)
        kind = bl.solvers.LBFGS if l1 is None else bl.solvers.ProximalGradient
        return bl.argmin(objective, (X, y), solver=kind(tol=TOL), throw=False).params.weight

    values, push = jax.linearize(weights, inputs)
    return values, push(directions), jax.linear_transpose(push, inputs)(cotangent)[0]


def known_motion(w, inputs, directions) -> np.ndarray:
    """The derivative of −Xᵀ(y σ)/n + l2 w + l1 s = 0 on the support, with t = X w and σ = 1 / (1 + exp(y t)).

    d(y σ) = σ dy − y σ (1 − σ) (dy t + y dt), and dt = dX w + X dw, whose second part makes the matrix.
    """
    (l2, l1, X, y), (d_l2, d_l1, d_X, d_y) = inputs, directions
    n, p = X.shape
    t = X @ w
    sigma = 1 / (1 + np.exp(y * t))
    bend = y**2 * sigma * (1 - sigma)
    d_fixed = d_y * sigma - y * sigma * (1 - sigma) * d_y * t - bend * (d_X @ w)
    right = (d_X.T @ (y * sigma) + X.T @ d_fixed) / n - d_l2 * w
    if l1 is not None:
        right = right - d_l1 * np.sign(w)
    S = np.flatnonzero(w) if l1 is not None else np.arange(p)
    matrix = X[:, S].T @ (bend[:, None] * X[:, S]) / n + np.diag(np.broadcast_to(l2, p)[S])
    motion = np.zeros(p)
    motion[S] = np.linalg.solve(matrix, right[S])
    return motion


@pytest.mark.parametrize("l1", [None, 0.03], ids=["smooth", "sparse"])
@pytest.mark.parametrize("shape", [(60, 12), (30, 200)], ids=["tall", "wide"])
def test_derivative_is_the_closed_form(shape: tuple[int, int], l1: float | None):
    X, y = binary(*shape)
    rng = np.random.default_rng(1)
    inputs = (rng.uniform(0.05, 0.2, shape[1]), l1, X, y)
    directions = tuple(None if v is None else rng.normal(size=np.shape(v)) for v in inputs)
    cotangent = jnp.asarray(rng.normal(size=shape[1]))
    as_arrays = lambda values: tuple(None if v is None else jnp.asarray(v) for v in values)
    weights, motion, pulled = solve_and_differentiate(as_arrays(inputs), as_arrays(directions), cotangent)
    assert l1 is None or 0 < np.sum(np.asarray(weights) != 0) < shape[1]
    assert error(motion, known_motion(np.asarray(weights), inputs, directions)) <= 1e-8
    reverse = sum(np.vdot(a, b) for a, b in zip(pulled, directions, strict=True) if b is not None)
    assert error(reverse, np.vdot(cotangent, motion)) <= 1e-9


solve = compiled(lambda objective, data: bl.argmin(objective, data).params.weight)


@pytest.mark.parametrize("classes", [2, 3])
def test_is_that_of_scikit_learn(classes: int):
    X, labels = classification(60, 6, classes)
    l2 = 0.05
    # scikit-learn's objective is ours over l2.
    model = SklearnLogistic(C=1 / (60 * l2), fit_intercept=False, tol=1e-12, max_iter=10_000).fit(X, labels)
    if classes == 2:
        ours = solve(Logistic(l2), arrays(X, 2.0 * labels - 1))
        np.testing.assert_allclose(ours, model.coef_[0], atol=1e-6)
    ours = solve(Logistic(l2 if classes > 2 else 2 * l2, n_classes=classes), arrays(X, labels))
    # Two classes share one difference of weights, so that l2 weighs half as much.
    theirs = model.coef_ if classes > 2 else np.concatenate([-model.coef_, model.coef_]) / 2
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    logits = LinearModel(ours)(X)
    np.testing.assert_array_equal(np.argmax(logits, axis=1), model.predict(X))


def test_sparse_weights_are_those_of_scikit_learn():
    X, y = binary(60, 12)
    l1 = 0.05
    # The name of the L1 penalty changed in scikit-learn 1.8.
    named = dict(l1_ratio=1.0) if parse_version(sklearn.__version__) >= parse_version("1.8") else dict(penalty="l1")
    options = dict(solver="saga", fit_intercept=False, tol=1e-12, max_iter=100_000)
    model = SklearnLogistic(C=1 / (60 * l1), **named, **options)
    theirs = model.fit(X, y).coef_[0]
    ours = solve(Logistic(0.0, l1), arrays(X, y))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    np.testing.assert_array_equal(ours == 0, theirs == 0)
    largest = np.max(abs(X.T @ y)) / 120
    assert not np.any(solve(Logistic(0.0, largest * (1 + 1e-12)), arrays(X, y)))
    assert np.sum(np.asarray(solve(Logistic(0.0, 0.99 * largest), arrays(X, y))) != 0) == 1


@pytest.mark.parametrize("l1", [None, 0.03], ids=["smooth", "sparse"])
def test_multinomial_derivative_is_the_closed_form(l1: float | None):
    X, labels = classification(40, 5, CLASSES)
    solver = (bl.solvers.LBFGS if l1 is None else bl.solvers.ProximalGradient)(tol=TOL)

    @compiled
    def weights_and_motion(l2, l1, X, labels):
        weights = lambda l2, X: (
            bl.argmin(Logistic(l2, l1, n_classes=CLASSES), (X, labels), solver=solver, throw=False).params.weight
        )
        return jax.jvp(weights, (l2, X), (jnp.ones_like(l2), jnp.sin(X)))

    l1 = None if l1 is None else jnp.asarray(l1)
    weights, motion = map(np.asarray, weights_and_motion(jnp.asarray(0.05), l1, *arrays(X, labels)))
    assert l1 is None or np.sum(weights == 0) > 0

    def gradient(X: np.ndarray, W: np.ndarray) -> np.ndarray:
        e = np.exp(X @ W.T)
        return ((e / e.sum(axis=1, keepdims=True) - np.eye(CLASSES)[labels]).T @ X) / len(X) + 0.05 * W

    e = np.exp(X @ weights.T)
    p = e / e.sum(axis=1, keepdims=True)
    blocks = np.eye(CLASSES)[None] * p[:, :, None] - p[:, :, None] * p[:, None, :]
    hessian = np.einsum("nkl,ni,nj->kilj", blocks, X, X).reshape(weights.size, -1) / len(X) + 0.05 * np.eye(
        weights.size
    )
    d_X = np.sin(X)
    moved = (gradient(X + 1e-6 * d_X, weights) - gradient(X - 1e-6 * d_X, weights)) / 2e-6
    right = -(moved + weights).ravel()
    S = np.flatnonzero(weights.ravel()) if l1 is not None else np.arange(weights.size)
    expected = np.zeros(weights.size)
    expected[S] = np.linalg.solve(hessian[np.ix_(S, S)], right[S])
    assert error(motion, expected) <= 1e-7


def test_in_logarithmic_form():
    X, y = arrays(*binary(60, 12))

    @compiled
    def slopes(logs):
        def loss(logs):
            l2, l1 = jnp.exp(logs)
            solver = bl.solvers.ProximalGradient(tol=TOL)
            return jnp.sum(bl.argmin(Logistic(l2, l1), (X, y), solver=solver, throw=False).params.weight ** 2)

        return jax.value_and_grad(loss)(logs)

    logs = np.log([0.1, 0.03])
    _, slope = slopes(jnp.asarray(logs))
    difference = [(slopes(logs + 1e-5 * e)[0] - slopes(logs - 1e-5 * e)[0]) / 2e-5 for e in np.eye(2)]
    np.testing.assert_allclose(slope, difference, rtol=1e-6)


@pytest.mark.parametrize("l1", [None, 0.02], ids=["smooth", "sparse"])
def test_sparse_design_is_dense(l1: float | None):
    X, y = binary(40, 60)
    X = X * (np.random.default_rng(2).uniform(size=X.shape) < 0.2)
    cotangent, one = jnp.asarray(np.sin(np.arange(60.0))), None if l1 is None else jnp.ones(())
    inputs = (jnp.asarray(0.1), None if l1 is None else jnp.asarray(l1), *arrays(X, y))
    expected = solve_and_differentiate(inputs, (jnp.ones(()), one, *arrays(0 * X, np.sin(y))), cotangent)

    @compiled
    def sparse(l2, l1, y, X, directions, cotangent):
        kind = bl.solvers.LBFGS if l1 is None else bl.solvers.ProximalGradient

        def weights(l2, y):
            return bl.argmin(Logistic(l2, l1), (X, y), solver=kind(tol=TOL), throw=False).params.weight

        values, push = jax.linearize(weights, l2, y)
        return values, push(*directions), jax.linear_transpose(push, l2, y)(cotangent)

    d_y = jnp.asarray(np.sin(y))
    design = BCOO.fromdense(jnp.asarray(X))
    weights, motion, pulled = sparse(inputs[0], inputs[1], inputs[3], design, (jnp.ones(()), d_y), cotangent)
    assert error(weights, expected[0]) <= 1e-9
    without_l1 = expected[1]
    if l1 is not None:
        zero = (jnp.ones(()), jnp.zeros(()), *arrays(0 * X, np.sin(y)))
        without_l1 = solve_and_differentiate(inputs, zero, cotangent)[1]
    assert error(motion, without_l1) <= 1e-8
    assert error(pulled[0], expected[2][0]) <= 1e-8
    assert error(pulled[1], expected[2][3]) <= 1e-8


def test_hessian_is_the_generic_one():
    weight = SPARSE_LOGISTIC.solve(*map(np.asarray, SPARSE_LOGISTIC.leaves))
    right = LinearModel(jnp.asarray(np.random.default_rng(0).normal(size=weight.shape)))

    @compiled
    def both(objective, params, data, right):
        hessian = objective.hessian(params, data)
        assert isinstance(hessian, SupportHessian)
        generic = bl.objectives.AbstractObjective.hessian(objective, params, data)
        return hessian.mv(right), generic.mv(right), generic.mv(hessian.solve(right))

    model = LinearModel(jnp.asarray(weight))
    product, generic, back = both(SPARSE_LOGISTIC.objective, model, SPARSE_LOGISTIC.data, right)
    np.testing.assert_allclose(product.weight, generic.weight, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(back.weight, right.weight, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("n_classes", [None, 3])
def test_lipschitz_is_a_bound(n_classes: int | None):
    X, labels = classification(40, 5, 3)
    y = np.where(labels > 0, 1.0, -1.0) if n_classes is None else labels
    objective = Logistic(np.linspace(0.1, 0.3, 5), n_classes=n_classes)

    @compiled
    def curvature(weight):
        flat = lambda w: objective.smooth(LinearModel(w.reshape(weight.shape)), arrays(X, y))
        return jnp.linalg.eigvalsh(jax.hessian(flat)(weight.ravel()))[-1]

    bound = float(objective.lipschitz(arrays(X, y)))
    shape = objective.init(arrays(X, y)).weight.shape
    rng = np.random.default_rng(0)
    found = [float(curvature(jnp.asarray(size * rng.normal(size=shape)))) for size in (0, 0.1, 1.0, 10.0)]
    assert max(found) <= bound <= 4 * max(found)


def test_default_solvers():
    default = bl.differentiation.default_solver
    assert isinstance(default(Logistic(0.1)), bl.solvers.LBFGS)
    assert isinstance(default(Logistic(0.1, 0.1)), bl.solvers.ProximalGradient)


X, y = arrays(*binary(6, 4))
LABELS = jnp.asarray([0, 1, 2, 0, 1, 2])
BAD = {
    "negative": (lambda: Logistic(-1.0), "`l2` must be finite and not negative"),
    "negative l1": (lambda: Logistic(1.0, -1.0), "`l1` must be finite and not negative"),
    "unpinned": (lambda: Logistic(0.0, n_classes=3), "`l2` must be finite and positive"),
    "one class": (lambda: Logistic(0.1, n_classes=1), "`n_classes` must be None .* or a whole number"),
    "integer labels": (lambda: bl.argmin(Logistic(0.1), (X, LABELS)), "`y` must hold .* −1.0 and .*pass `n_classes`"),
    "labels 0 and 1": (lambda: bl.argmin(Logistic(0.1), (X, (y + 1) / 2)), "`y` must hold the labels .*got 0.0"),
    "floating classes": (
        lambda: bl.argmin(Logistic(0.1, n_classes=3), (X, y)),
        "`y` must be an integer array of shape .samples,., got float64",
    ),
    "too few classes": (lambda: bl.argmin(Logistic(0.1, n_classes=2), (X, LABELS)), "`y` must be below .*got 2"),
    "too few samples": (lambda: bl.argmin(Logistic(0.1), (X, y[:3])), "`y` has 3 samples, but `X` has 6"),
    "too many strengths": (lambda: bl.argmin(Logistic(jnp.ones(3)), (X, y)), "`l2` has 3 entries, but `X` has 4"),
    "too many l1": (lambda: bl.argmin(Logistic(0.1, jnp.ones(3)), (X, y)), "`l1` has 3 entries, but `X` has 4"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str):
    attempt, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        attempt()


def test_traced_labels_are_judged_when_they_run():
    X = jnp.asarray(np.random.default_rng(0).normal(size=(6, 2)))
    objective = bl.objectives.LogisticRegression(l2=0.1)
    result = compiled(lambda y: bl.argmin(objective, (X, y), throw=False).result)
    assert result(jnp.asarray([1.0, -1.0] * 3)) == bl.RESULTS.successful
    assert result(jnp.asarray([1.0, 0.0] * 3)) == bl.RESULTS.invalid_input
