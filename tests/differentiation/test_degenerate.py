"""Where a derivative is zero, where there is none, and that one sample's lack of one is no other's."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from tests import witnesses
from tests.compiling import compiled
from tests.laws import error
from tests.problems import CODES, DICTIONARY, RIDGES, SIGNALS, LogCosh, codes_by_proximal_gradient

#: One atom twice.
TWICE = np.concatenate([DICTIONARY, DICTIONARY[:1]])
LOSSES = [None, LogCosh(jnp.asarray(0.8))]
losses = pytest.mark.parametrize("loss", LOSSES, ids=["squared", "log-cosh"])
SOLVER = bl.solvers.ProximalGradient(tol=1e-12, max_steps=100_000)


@compiled
def codes_and_motion(coding, X, direction, X_direction, solver):
    """Codes and their jvp, whose NaN is where there is none."""

    def solve(moving, X):
        return bl.argmin(eqx.combine(moving, still), X, solver=solver, throw=False).params

    moving, still = eqx.partition(coding, eqx.is_inexact_array)
    return jax.jvp(solve, (moving, X), (direction, X_direction))


@compiled
def gradients(coding, X, cotangent, solver):
    """Of ⟨cotangent, codes⟩, in the coding and in X."""

    def value(both):
        coding, X = both
        return jnp.sum(cotangent * bl.argmin(coding, X, solver=solver, throw=False).params)

    return eqx.filter_grad(value)((coding, X))


def sparse_coding(dictionary=TWICE, l1=0.3, l2=0.1, loss=None) -> bl.objectives.SparseCoding:
    return bl.objectives.SparseCoding(dictionary, jnp.asarray(l1), jnp.asarray(l2), loss)


def directions_of(coding, X):
    rng = np.random.default_rng(4)
    as_direction = lambda x: jnp.asarray(rng.normal(size=x.shape))
    return jax.tree.map(as_direction, eqx.filter(coding, eqx.is_inexact_array)), as_direction(X)


@losses
def test_duplicated_atoms_with_l2_are_right(loss):
    coding, X = sparse_coding(loss=loss), jnp.asarray(SIGNALS)
    direction, X_direction = directions_of(coding, X)
    codes, motion = codes_and_motion(coding, X, direction, X_direction, SOLVER)
    np.testing.assert_allclose(codes[:, 0], codes[:, -1], atol=1e-9)
    assert np.any(codes[:, 0] != 0)
    leaves = lambda tree: [np.asarray(leaf) for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array))]
    values, along = leaves((coding, X)), leaves((direction, X_direction))
    width = [None] if loss is None else []
    solve = lambda *values: codes_by_proximal_gradient(*values[:3], *width, *values[3:])
    differences = [witnesses.central_difference(solve, values, along, step) for step in (1e-5, 1e-6)]
    assert error(np.ravel(motion), *differences) <= 1e-6


@losses
def test_duplicated_atoms_without_l2_have_no_derivative_and_say_so(loss):
    coding, X = sparse_coding(l2=0.0, loss=loss), jnp.asarray(SIGNALS)
    codes, motion = codes_and_motion(coding, X, *directions_of(coding, X), SOLVER)
    twice = np.asarray((codes[:, 0] != 0) & (codes[:, -1] != 0))
    assert 0 < np.sum(twice) < len(X)
    # The samples that use the atom have none; all others have theirs.
    np.testing.assert_array_equal(np.isnan(motion).any(axis=1), twice)
    _, single = codes_and_motion(
        sparse_coding(DICTIONARY, l2=0.0, loss=loss),
        X,
        *jax.tree.map(lambda d: d[: len(DICTIONARY)] if jnp.shape(d) == TWICE.shape else d, directions_of(coding, X)),
        SOLVER,
    )
    others = ~twice & (np.asarray(codes[:, 0]) == 0)
    assert error(motion[others][:, :-1], single[others]) <= 1e-6


@pytest.mark.parametrize("seed", range(6))
def test_dependent_atoms_without_l2_have_no_derivative(seed: int):
    # Three atoms in a plane, all in use, with l1 small. Whether Cholesky breaks down on such a matrix is chance.
    rng = np.random.default_rng(seed)
    atoms = rng.normal(size=(3, 6))
    atoms[2] = 0.6 * atoms[0] + 0.4 * atoms[1]
    coding, X = sparse_coding(atoms, l1=1e-3, l2=0.0), jnp.asarray(atoms[2:])
    init = jnp.asarray([[0.3, 0.2, 0.4]])

    @compiled
    def moves(coding, X, direction, X_direction):
        still, moving = eqx.partition(coding, eqx.is_inexact_array)[::-1]
        solve = lambda m, X: bl.argmin(eqx.combine(m, still), X, solver=SOLVER, init=init, throw=False).params
        return jax.jvp(solve, (moving, X), (direction, X_direction))

    codes, motion = moves(coding, X, *directions_of(coding, X))
    assert np.all(codes != 0)
    assert np.all(np.isnan(motion))


def test_reverse_mode_spares_the_other_samples_too():
    coding, X = sparse_coding(l2=0.0), jnp.asarray(SIGNALS)
    codes, motion = codes_and_motion(coding, X, *directions_of(coding, X), SOLVER)
    bad = np.isnan(motion).any(axis=1)
    assert 0 < np.sum(bad) < len(X)
    cotangent = jnp.ones_like(codes)
    in_coding, in_X = gradients(coding, X, cotangent, SOLVER)
    np.testing.assert_array_equal(np.isnan(in_X).any(axis=1), bad)
    assert np.isnan(in_coding.l1)
    assert np.any(np.isnan(in_coding.dictionary))


@losses
def test_all_zero_codes_do_not_move(loss):
    coding, X = sparse_coding(l1=100.0, loss=loss), jnp.asarray(SIGNALS)
    codes, motion = codes_and_motion(coding, X, *directions_of(coding, X), SOLVER)
    np.testing.assert_array_equal(codes, 0)
    np.testing.assert_array_equal(motion, 0)


def test_a_zero_dictionary_and_zero_samples_do_not_move():
    coding, X = sparse_coding(jnp.zeros((3, 6))), jnp.zeros((2, 6))
    for solver in (SOLVER, None):
        codes, motion = codes_and_motion(coding, X, *directions_of(coding, X), solver)
        np.testing.assert_array_equal(codes, 0)
        np.testing.assert_array_equal(motion, 0)


@pytest.mark.parametrize("solver", [SOLVER, None], ids=["ProximalGradient", "default"])
def test_a_sample_does_not_depend_on_its_batch_mates(solver):
    coding, X = CODES.objective, CODES.data
    direction, X_direction = directions_of(coding, X)
    # The others: zero, huge, and as before.
    mates = jnp.asarray([1.0, 0.0, 1e4, 1e-4, -1.0, 3.0, 0.0, 1.0])[:, None]
    codes, motion = codes_and_motion(coding, X, direction, X_direction, solver)
    other_codes, other_motion = codes_and_motion(coding, mates * X, direction, X_direction, solver)
    for same in (0, 7):
        assert error(other_codes[same], codes[same]) <= 1e-10
        assert error(other_motion[same], motion[same]) <= 1e-9


def ridge_at(alpha, X, y):
    """Weight, gradient of its sum in alpha, result."""

    def solve(alpha):
        solution = bl.argmin(bl.objectives.Ridge(alpha), (X, y), throw=False)
        return jnp.sum(solution.params.weight), (solution.params.weight, solution.result)

    (_, (weight, result)), slope = jax.value_and_grad(solve, has_aux=True)(alpha)
    return weight, slope, result


def test_ridge_without_a_penalty():
    X, y = RIDGES[0].data
    weight, slope, result = compiled(ridge_at)(jnp.zeros(()), X, y)
    assert result == bl.RESULTS.successful
    values = [np.zeros(()), *map(np.asarray, (X, y))]
    np.testing.assert_allclose(weight, witnesses.ridge(*values), rtol=1e-10)
    motion = witnesses.ridge_derivative(values, [np.ones(()), 0 * values[1], 0 * values[2]])
    np.testing.assert_allclose(slope, np.sum(motion), rtol=1e-9)


@pytest.mark.parametrize("alpha", [0.0, [0.5, 0.0, 0.5, 0.5, 0.5, 0.5]], ids=["none", "all but one"])
def test_ridge_with_more_features_than_samples_wants_all_penalized(alpha):
    X, y = RIDGES[2].data
    with pytest.raises(ValueError, match=r"`alpha` must be finite and positive, got 0\.0"):
        ridge_at(jnp.asarray(alpha), X, y)
    weight, slope, result = compiled(ridge_at)(jnp.asarray(alpha), X, y)
    assert result == bl.RESULTS.nonfinite_solution
    assert np.any(np.isnan(weight))
    assert np.all(np.isnan(slope))


@pytest.mark.parametrize("seed", range(4))
def test_ridge_with_dependent_features_and_no_penalty_has_no_derivative(seed: int):
    # Nor a unique solution; whether Cholesky breaks down on such a matrix is chance.
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(7, 6))
    X[:, 5] = X[:, :5] @ rng.normal(size=5)
    _, slope, result = compiled(ridge_at)(jnp.zeros(()), jnp.asarray(X), jnp.asarray(rng.normal(size=7)))
    assert result == bl.RESULTS.nonfinite_solution
    assert np.isnan(slope)
