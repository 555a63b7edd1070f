"""Hessians that couple classes, against the dense ones of NumPy, restricted and solved as they are defined."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.sparse import BCOO

import bilevel as bl
from bilevel.objectives import class_hessian
from bilevel.objectives.class_hessian import SimplexHessian, SoftmaxHessian
from tests.compiling import compiled
from tests.laws import error

LinearModel = bl.objectives.LinearModel


def simplex_case(n: int, p: int, classes: int, share: float) -> tuple[SimplexHessian, np.ndarray, np.ndarray]:
    """The operator, its dense matrix, a vector; a share of the samples is off the vertices of its simplex."""
    rng = np.random.default_rng(0)
    X, vector = rng.normal(size=(n, p)), rng.normal(size=(n, classes))
    support = np.eye(classes, dtype=bool)[rng.integers(classes, size=n)]
    support |= (rng.uniform(size=(n, classes)) < 0.5) & (rng.uniform(size=(n, 1)) < share)
    Q = np.zeros((n, classes, n, classes))
    for i, s in enumerate(support):
        Q[i, :, i] = np.diag(1.0 * s) - np.outer(s, s) / np.sum(s)
    Q = Q.reshape(n * classes, -1)
    dense = Q @ np.kron(X @ X.T / 3.0 + 0.1 * np.eye(n), np.eye(classes)) @ Q + np.eye(n * classes) - Q
    operator = SimplexHessian(jnp.asarray(X), jnp.asarray(3.0), jnp.asarray(support), jnp.asarray(0.1))
    return operator, dense, vector


def softmax_case(n: int, p: int, sparse: bool, size: float = 1.0) -> tuple[SoftmaxHessian, np.ndarray, np.ndarray]:
    rng, classes = np.random.default_rng(1), 3
    X, l2, vector = size * rng.normal(size=(n, p)), rng.uniform(0.05, 0.2, p), rng.normal(size=(classes, p))
    P = rng.dirichlet(np.full(classes, 0.3), size=n)
    blocks = np.eye(classes) * P[:, :, None] - P[:, :, None] * P[:, None, :]
    dense = np.einsum("ncd,nj,nk->cjdk", blocks, X, X).reshape(classes * p, -1) / n + np.diag(np.tile(l2, classes))
    support = rng.uniform(size=(classes, p)) < 0.4 if sparse else None
    if support is not None:
        S = np.diag(1.0 * support.ravel())
        dense = S @ dense @ S + np.eye(len(S)) - S
    return (
        SoftmaxHessian(*map(jnp.asarray, (X, l2, P)), None if support is None else jnp.asarray(support)),
        dense,
        vector,
    )


def of_sparse_design(case: tuple) -> tuple:
    operator, dense, vector = case
    return eqx.tree_at(lambda o: o.X, operator, BCOO.fromdense(operator.X)), dense, vector


CASES = {
    "vertices": lambda: simplex_case(9, 4, 3, 0.0),
    "a few directions": lambda: simplex_case(20, 12, 4, 0.5),
    "more directions than samples": lambda: simplex_case(40, 60, 4, 1.0),
    "one class": lambda: simplex_case(4, 5, 1, 1.0),
    "softmax, primal": lambda: softmax_case(40, 5, sparse=False),
    "softmax, dual": lambda: softmax_case(8, 15, sparse=False),
    "softmax, support": lambda: softmax_case(12, 30, sparse=True),
    "softmax, primal, of a sparse design": lambda: of_sparse_design(softmax_case(40, 5, sparse=False)),
    "softmax, dual, of a sparse design": lambda: of_sparse_design(softmax_case(8, 15, sparse=False)),
    "softmax, support, of a sparse design": lambda: of_sparse_design(softmax_case(12, 30, sparse=True)),
}
products = compiled(lambda operator, vector: (operator.mv(vector), operator.solve(vector)))


def as_params(operator, vector, dtype=None):
    vector = jnp.asarray(vector, dtype)
    return LinearModel(vector) if isinstance(operator, SoftmaxHessian) else vector


def raveled(params) -> np.ndarray:
    return np.asarray(jax.tree.leaves(params)[0], np.float64).ravel()


@pytest.mark.parametrize("name", CASES)
def test_is_the_dense_one(name: str):
    operator, dense, vector = CASES[name]()
    product, solved = products(operator, as_params(operator, vector))
    assert error(raveled(product), dense @ vector.ravel()) <= 1e-12
    assert error(raveled(solved), np.linalg.solve(dense, vector.ravel())) <= 1e-10
    # In 32 bits, to its rounding times the condition number.
    single = jax.tree.map(lambda x: x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x, operator)
    _, solved = products(single, as_params(operator, vector, jnp.float32))
    assert jax.tree.leaves(solved)[0].dtype == jnp.float32
    assert error(raveled(solved), np.linalg.solve(dense, vector.ravel())) <= 1e-6 * np.linalg.cond(dense) + 1e-6


@pytest.mark.parametrize(
    "name", ["more directions than samples", "softmax, primal", "softmax, dual", "softmax, support"]
)
def test_what_is_too_large_is_solved_by_conjugate_gradient(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(class_hessian, "DIRECT_SIZE", 10)
    operator, dense, vector = CASES[name]()
    by_conjugate_gradient = compiled(lambda operator, vector: operator.solve(vector))
    solved = by_conjugate_gradient(operator, as_params(operator, vector))
    assert error(raveled(solved), np.linalg.solve(dense, vector.ravel())) <= 1e-9


def test_more_directions_than_the_primal_has_weights_are_singular():
    # 20 samples with one feature: of two classes, all inside. The rank is 1.
    X, support = jnp.asarray(np.random.default_rng(0).normal(size=(20, 1))), jnp.ones((20, 2), bool)
    operator = SimplexHessian(X, jnp.asarray(1.0), support, jnp.asarray(0.0))
    _, solved = products(operator, jnp.asarray(np.random.default_rng(1).normal(size=(20, 2))))
    assert np.all(np.isnan(solved))
    assert np.all(np.isnan(compiled(operator._iterate)(jnp.asarray(np.random.default_rng(1).normal(size=(20, 2))))))
    _, solved = products(operator.damped(jnp.asarray(0.1)), jnp.ones((20, 2)))
    np.testing.assert_allclose(solved, 1, rtol=1e-12)


def test_a_dual_that_is_noise_is_no_answer():
    operator, _, vector = softmax_case(8, 15, sparse=False, size=1e9)
    _, solved = products(operator, as_params(operator, vector))
    assert np.all(np.isnan(raveled(solved)))


def test_batched_is_a_loop():
    operator, _, vector = CASES["a few directions"]()
    both = np.stack([vector, 2 * vector[::-1]])
    batched = compiled(lambda operator, vectors: jax.vmap(operator.solve)(vectors))(operator, jnp.asarray(both))
    for one, found in zip(both, batched, strict=True):
        assert error(found, products(operator, jnp.asarray(one))[1]) <= 1e-10


@pytest.mark.parametrize("l1", [None, 0.02], ids=["smooth", "sparse"])
def test_second_derivative_of_multinomial_weights(l1: float | None):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20, 4))
    data = jnp.asarray(X), jnp.asarray(np.argmax(X[:, :3] + rng.gumbel(size=(20, 3)), axis=1))

    @compiled
    def first_and_second(log_l2, data):
        def value(log_l2):
            objective = bl.objectives.LogisticRegression(jnp.exp(log_l2), l1, n_classes=3)
            solver = bl.solvers.ProximalGradient(tol=1e-13, max_steps=20_000)
            return jnp.sum(jnp.sin(bl.argmin(objective, data, solver=solver, throw=False).params.weight))

        return jax.grad(value)(log_l2), jax.grad(jax.grad(value))(log_l2)

    _, second = first_and_second(jnp.asarray(-2.0), data)
    above, below = (first_and_second(jnp.asarray(-2.0 + step), data)[0] for step in (1e-5, -1e-5))
    assert error(second, (above - below) / 2e-5) <= 1e-5
