"""The multiclass SVM: scikit-learn's primal, no duality gap, and the derivative by the conditions on the faces."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.svm import LinearSVC

import bilevel as bl
from tests.compiling import compiled
from tests.laws import error
from tests.problems import SVM

MulticlassSVM = bl.objectives.MulticlassSVM
SOLVER = bl.solvers.ProximalGradient(tol=jnp.asarray(1e-11), max_steps=50_000)


def classification(n: int, p: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, p))
    return X, np.argmax(X[:, :3] + 0.5 * rng.gumbel(size=(n, 3)), axis=1)


@compiled
def solve_and_differentiate(theta, data, direction, cotangent):
    """β and W, the motion of both, and the derivatives of ⟨cotangent, W⟩."""

    def solve(theta, data):
        objective = MulticlassSVM(theta)
        beta = bl.argmin(objective, data, solver=SOLVER, throw=False).params
        return beta, objective.primal(beta, data)

    values, push = jax.linearize(solve, theta, data)
    pulled = jax.linear_transpose(push, theta, data)((jnp.zeros_like(values[0]), cotangent))
    return values, push(*direction), pulled


def primal_value(W: np.ndarray, theta: float, X: np.ndarray, labels: np.ndarray) -> float:
    scores, rows = X @ W, np.arange(len(X))
    margins = scores + 1
    margins[rows, labels] -= 1
    return 0.5 * theta * np.sum(W**2) + np.sum(np.max(margins, axis=1) - scores[rows, labels])


def known_motion(beta, theta, X, Y, d_theta, d_X, d_Y) -> np.ndarray:
    """The derivative of the conditions ∇f(β) = λ 1ᵀ on the support, β 1 = 1, as one linear system for (dβ, dλ)."""
    n, k = beta.shape
    free = np.flatnonzero(beta.ravel() > 0)
    W = X.T @ (Y - beta) / theta
    d_W = (d_X.T @ (Y - beta) + X.T @ d_Y) / theta - d_theta / theta * W
    fixed = d_Y - d_X @ W - X @ d_W
    hessian = np.kron(X @ X.T / theta, np.eye(k))[np.ix_(free, free)]
    sums = np.kron(np.eye(n), np.ones((1, k)))[:, free]
    system = np.block([[hessian, sums.T], [sums, np.zeros((n, n))]])
    motion = np.zeros(n * k)
    motion[free] = np.linalg.solve(system, np.concatenate([-fixed.ravel()[free], np.zeros(n)]))[: len(free)]
    return motion.reshape(n, k)


@pytest.mark.parametrize(("shape", "theta"), [((12, 20), 3.0), ((30, 6), 8.0)], ids=["wide", "tall"])
def test_primal_dual_and_derivative(shape: tuple[int, int], theta: float):
    X, labels = classification(*shape)
    Y = np.eye(3)[labels]
    rng = np.random.default_rng(1)
    d_X, d_Y, cotangent = rng.normal(size=X.shape), rng.normal(size=Y.shape), rng.normal(size=(shape[1], 3))
    data, direction = (jnp.asarray(X), jnp.asarray(Y)), (jnp.asarray(1.0), (jnp.asarray(d_X), jnp.asarray(d_Y)))
    out = solve_and_differentiate(jnp.asarray(theta), data, direction, jnp.asarray(cotangent))
    (beta, W), (d_beta, d_W), pulled = jax.tree.map(np.asarray, out)

    # scikit-learn's objective is ours over θ.
    model = LinearSVC(multi_class="crammer_singer", C=1 / theta, fit_intercept=False, tol=1e-10, max_iter=1_000_000)
    theirs = model.fit(X, labels).coef_.T
    assert error(W, theirs) <= 1e-5
    np.testing.assert_array_equal(np.argmax(X @ W, axis=1), model.predict(X))

    # Duality: the primal's least value is n minus the dual's.
    value = 0.5 * theta * np.sum(W**2) + np.sum(beta * Y)
    assert error(primal_value(W, theta, X, labels), len(X) - value) <= 1e-7
    np.testing.assert_allclose(beta.sum(axis=1), 1, rtol=1e-12)

    expected = known_motion(beta, theta, X, Y, 1.0, d_X, d_Y)
    assert error(d_beta, expected) <= 1e-7
    expected_W = (d_X.T @ (Y - beta) + X.T @ (d_Y - expected)) / theta - W / theta
    assert error(d_W, expected_W) <= 1e-7
    reverse = pulled[0] + np.vdot(pulled[1][0], d_X) + np.vdot(pulled[1][1], d_Y)
    assert error(reverse, np.vdot(cotangent, d_W)) <= 1e-8


def test_where_regularization_is_strong_every_weight_is_on_the_other_classes():
    # W vanishes like 1/θ, so f is near ⟨β, Y⟩, least where β is off the own class; all classes other are equal.
    X, labels = classification(12, 20)
    Y = np.eye(3)[labels]
    solve = compiled(lambda theta, data: bl.argmin(MulticlassSVM(theta), data).params)
    beta = np.asarray(solve(jnp.asarray(1e4), (jnp.asarray(X), jnp.asarray(Y))))
    assert not np.any(beta * Y)


def test_in_logarithmic_form():
    X, labels = classification(30, 6)
    data = (jnp.asarray(X), jnp.asarray(np.eye(3)[labels]))

    @compiled
    def slope(log_theta):
        def loss(log_theta):
            objective = MulticlassSVM(jnp.exp(log_theta))
            return jnp.sum(objective.primal(bl.argmin(objective, data, solver=SOLVER, throw=False).params, data) ** 2)

        return jax.value_and_grad(loss)(log_theta)

    at = np.log(8.0)
    difference = (slope(jnp.asarray(at + 1e-5))[0] - slope(jnp.asarray(at - 1e-5))[0]) / 2e-5
    np.testing.assert_allclose(slope(jnp.asarray(at))[1], difference, rtol=1e-6)


def test_lipschitz_is_the_largest_curvature():
    X, Y = map(np.asarray, SVM.data)
    known = np.linalg.eigvalsh(X @ X.T / 4.0)[-1]
    for design in (X, X.T):
        found = MulticlassSVM(4.0).lipschitz((jnp.asarray(design), Y))
        np.testing.assert_allclose(found, known, rtol=1e-12)


X, Y = SVM.data
BAD = {
    "zero": (lambda: MulticlassSVM(0.0), "`theta` must be finite and positive"),
    "for each": (lambda: MulticlassSVM(jnp.ones(2)), "`theta` must have 0 axes"),
    "no pair": (lambda: bl.argmin(MulticlassSVM(1.0), X), "`data` must be a pair"),
    "labels": (lambda: bl.argmin(MulticlassSVM(1.0), (X, jnp.arange(5))), "`Y` must be one-hot, got shape .5,."),
    "integers": (lambda: bl.argmin(MulticlassSVM(1.0), (X, Y.astype(int))), "`Y` must have a floating dtype"),
    "too few samples": (lambda: bl.argmin(MulticlassSVM(1.0), (X, Y[:3])), "`Y` has 3 samples, but `X` has 5"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str):
    attempt, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        attempt()
