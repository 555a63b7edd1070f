"""The energy auto-encoder: its value, its blocks' problems, its codes and their derivatives, its minimum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.objectives import Autoencoder, EnergyAutoencoder
from tests import witnesses
from tests.compiling import compiled

rng = np.random.default_rng(0)
SAMPLES, FEATURES, ATOMS, DECODER, ENCODER = 15, 6, 8, 3.0, 2.0
unit = lambda rows: rows / np.linalg.norm(rows, axis=1, keepdims=True)
X, D, E = rng.normal(size=(SAMPLES, FEATURES)), unit(rng.normal(size=(ATOMS, FEATURES))), None
E = 0.8 * unit(rng.normal(size=(FEATURES, ATOMS)))
Z = rng.normal(size=(SAMPLES, ATOMS)) * (rng.random((SAMPLES, ATOMS)) < 0.5)
PROBLEM = EnergyAutoencoder(ATOMS, DECODER, ENCODER)
PARAMS = Autoencoder(jnp.asarray(Z), jnp.asarray(D), jnp.asarray(E))


def energy(Z, D, E):
    squares = DECODER * np.sum((X - Z @ D) ** 2) + ENCODER * np.sum((Z - X @ E) ** 2)
    return 0.5 * squares + np.sum(np.abs(Z))


def test_the_value_is_the_formula_and_infinite_outside_the_balls():
    assert float(PROBLEM(PARAMS, jnp.asarray(X))) == pytest.approx(energy(Z, D, E))
    long_row = np.where(np.arange(FEATURES)[:, None] == 2, 1.01 / 0.8, 1) * E
    assert np.isinf(PROBLEM(Autoencoder(PARAMS.codes, PARAMS.dictionary, jnp.asarray(long_row)), jnp.asarray(X)))
    # The norm of a column, an atom's weights, is not bounded.
    long_column = np.zeros_like(E)
    long_column[:, 0] = 1
    assert np.isfinite(PROBLEM(Autoencoder(PARAMS.codes, PARAMS.dictionary, jnp.asarray(long_column)), jnp.asarray(X)))


@pytest.mark.parametrize("index", [0, 1, 2])
def test_the_problem_of_a_block_is_the_energy_up_to_a_constant(index):
    problem, own = PROBLEM.subproblem(index, PARAMS, jnp.asarray(X))
    blocks = [Z, D, E]
    others = [0.5 * np.asarray(b) for b in (Z + 1, rng.permutation(D), E)]
    moved = [others[i] if i == index else b for i, b in enumerate(blocks)]
    difference = problem(jnp.asarray(blocks[index]), own) - problem(jnp.asarray(others[index]), own)
    np.testing.assert_allclose(difference, energy(*blocks) - energy(*moved), rtol=1e-10)
    whole = jax.grad(PROBLEM.smooth)(PARAMS, jnp.asarray(X))
    np.testing.assert_allclose(
        problem.gradient(jnp.asarray(blocks[index]), own), jax.tree.leaves(whole)[index], rtol=1e-9
    )


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_the_value_after_a_step_is_the_energy(index, known):
    blocks, others = [Z, D, E], [0.5 * Z + 1, unit(D + 0.3 * rng.normal(size=D.shape)), 0.7 * E]
    moved = [others[i] if i == index else b for i, b in enumerate(blocks)]
    value = jnp.asarray(energy(*blocks) if known else np.inf)
    reached = PROBLEM.value_after(index, PARAMS, value, jnp.asarray(others[index]), jnp.asarray(X))
    assert float(reached) == pytest.approx(energy(*moved), rel=1e-12)
    if index > 0:
        assert np.isinf(PROBLEM.value_after(index, PARAMS, value, jnp.asarray(3 * others[index]), jnp.asarray(X)))


def codes_in_numpy(decoder_weight, encoder_weight, D, E, X):
    gradient = lambda Z: decoder_weight * (Z @ D - X) @ D.T + encoder_weight * (Z - X @ E)
    lipschitz = decoder_weight * np.linalg.norm(D, 2) ** 2 + encoder_weight
    start = np.zeros((len(X), len(D)))
    return witnesses.proximal_gradient(gradient, lambda Z, s: witnesses.soft_threshold(Z, s), lipschitz, start)


INPUTS = [np.asarray(DECODER), np.asarray(ENCODER), D, E, X]


def codes(decoder_weight, encoder_weight, D, E, X):
    return bl.argmin(*EnergyAutoencoder(ATOMS, decoder_weight, encoder_weight).coding(D, E, X)).params


def test_its_codes_are_exact():
    expected = codes_in_numpy(*INPUTS)
    found = compiled(codes)(*map(jnp.asarray, INPUTS))
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert 0.1 < np.mean(expected == 0) < 0.9


def test_the_derivative_of_its_codes_is_that_of_finite_differences():
    cotangent = rng.normal(size=Z.shape)
    total = lambda *inputs: jnp.vdot(jnp.asarray(cotangent), codes(*inputs))
    grads = compiled(jax.grad(total, argnums=(0, 1, 2, 3, 4)))(*map(jnp.asarray, INPUTS))
    for i, (value, grad) in enumerate(zip(INPUTS, grads, strict=True)):
        direction = rng.normal(size=value.shape)
        at = lambda step, i=i, d=direction: np.vdot(
            cotangent, codes_in_numpy(*(v + step * d if j == i else v for j, v in enumerate(INPUTS)))
        )
        differences = [(at(step) - at(-step)) / (2 * step) for step in (1e-5, 1e-6)]
        slope = float(np.vdot(grad, direction))
        assert min(abs(slope - d) for d in differences) <= 1e-6 * max(abs(slope), 1e-2), i


def test_the_products_that_its_codes_depend_on_are_those_of_all_it_consists_of():
    problem, samples = PROBLEM.coding(PARAMS.dictionary, PARAMS.encoder, jnp.asarray(X))
    atoms = np.hstack([np.sqrt(DECODER) * D, np.sqrt(ENCODER) * np.eye(ATOMS)])
    both = np.hstack([np.sqrt(DECODER) * X, np.sqrt(ENCODER) * X @ E])
    np.testing.assert_allclose(problem.gram(), atoms @ atoms.T, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(problem.correlations(samples), both @ atoms.T, rtol=1e-12, atol=1e-13)


@compiled
def alternate(problem, X, init, max_steps=400):
    solver = bl.solvers.BlockAlternation(1e-6, max_steps)
    solution = bl.argmin(problem, X, init=init, solver=solver, throw=False)
    units = problem.units(solution.params, X)
    bounds = problem.least_error(solution.params, X, units), problem.optimality_error(solution.params, X, units)
    return solution, bounds


@pytest.mark.parametrize("rounds", [3, 400])
def test_the_error_it_ends_with_is_that_of_all_blocks(rounds):
    """Whether it met the tolerance or came to the end of its rounds."""
    solution, (least, error) = alternate(PROBLEM, jnp.asarray(X), PARAMS, rounds)
    assert (solution.result == bl.RESULTS.successful) == (rounds > 3)
    assert 0 < least <= error
    np.testing.assert_allclose(solution.stats["optimality"], error, rtol=1e-6)


def test_alternation_ends_at_a_stationary_point_and_never_rises():
    solution, _ = alternate(PROBLEM, jnp.asarray(X), None)
    assert solution.result == bl.RESULTS.successful
    values = np.ravel(solution.stats["objective"])
    values = values[np.isfinite(values)]
    assert np.all(np.diff(values) <= 1e-12 * values[1:])
    end = solution.params
    assert np.max(np.linalg.norm(end.dictionary, axis=1)) <= 1 + 1e-12
    assert np.max(np.linalg.norm(end.encoder, axis=1)) <= 1 + 1e-12
    np.testing.assert_allclose(
        values[-1], energy(*map(np.asarray, (end.codes, end.dictionary, end.encoder))), rtol=1e-12
    )
    # Optimal in each block, by NumPy: no step of proximal gradient moves it.
    best = codes_in_numpy(DECODER, ENCODER, np.asarray(end.dictionary), np.asarray(end.encoder), X)
    assert np.linalg.norm(best - end.codes) <= 1e-4 * np.linalg.norm(best)
    Z, D, E = (np.asarray(x) for x in (end.codes, end.dictionary, end.encoder))
    for rows, gradient, lipschitz in (
        (D, DECODER * Z.T @ (Z @ D - X), DECODER * np.linalg.norm(Z, 2) ** 2),
        (E, ENCODER * X.T @ (X @ E - Z), ENCODER * np.linalg.norm(X, 2) ** 2),
    ):
        step = witnesses.onto_balls(rows - gradient / lipschitz) - rows
        assert np.linalg.norm(step) <= 1e-5 * np.linalg.norm(rows)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="`decoder_weight` must be finite and positive"):
        EnergyAutoencoder(3, 0.0)
    with pytest.raises(ValueError, match="`components` must be a whole number"):
        EnergyAutoencoder(2.5)
    with pytest.raises(ValueError, match=r"`X` must have shape \(samples, features\)"):
        bl.argmin(PROBLEM, jnp.ones(3))
    with pytest.raises(ValueError, match=r"`data` has .*NaN"):
        bl.argmin(PROBLEM, jnp.full((3, 2), jnp.nan))
