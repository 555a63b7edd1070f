"""The clamp study: every solver gives the clamp and its derivatives, for all μ at once."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel import argmin
from bilevel.objectives import Clamp
from bilevel.solvers import OptaxSolver
from bilevel.studies import clamp, clamp_study
from tests import witnesses
from tests.compiling import compiled

NAMES = {"exact", "proximal gradient", "proximal gradient, plain", "Anderson acceleration"}


@pytest.fixture(scope="module", autouse=True)
def cheap_programs():
    with pytest.MonkeyPatch.context() as patch:
        # The others take many steps, which a program that is compiled cheaply does slowly.
        patch.setattr(clamp, "_solve", compiled(clamp._solve.__wrapped__))
        yield


@pytest.fixture(scope="module")
def study(cheap_programs):
    return clamp_study()


def test_the_setting(study):
    np.testing.assert_allclose(study.z0, np.linspace(-10, 10, 100))
    np.testing.assert_allclose(study.mu, np.geomspace(0.02, 1, 10))
    assert study.c == 1 and set(study.solutions) == NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_solver_gives_the_clamp_and_its_derivatives(study, name):
    z0, c, found = np.asarray(study.z0), np.asarray(1.0), study.solutions[name]
    for i, mu in enumerate(np.asarray(study.mu)):
        np.testing.assert_allclose(found.z[i], witnesses.clamp(z0, mu, c), atol=1e-6)
        for k, derivative in enumerate((found.d_z0, found.d_mu, found.d_c)):
            directions = [np.ones_like(x) * (j == k) for j, x in enumerate((z0, mu, c))]
            expected = witnesses.clamp_derivative((z0, mu, c), directions)
            np.testing.assert_allclose(derivative[i], np.broadcast_to(expected, z0.shape), rtol=1e-10, atol=1e-10)
    assert np.all(found.success)
    assert np.max(study.errors[name]) <= 1e-6


def test_kinks(study):
    # c ± 1 / (2 mu) = 1 ± 0.5, exactly: a coordinate there rests at z₀, whatever solved it.
    z0, expect = [0.5, 1.5, 0.0, 2.0, 1.0], np.testing.assert_allclose
    at_kinks = clamp_study(np.resize(z0, 100))
    for found in at_kinks.solutions.values():
        z, d_mu, d_z0, d_c = (np.asarray(x[-1]).reshape(20, 5) for x in found[:4])
        expect(z, np.tile([0.5, 1.5, 0.5, 1.5, 1.0], (20, 1)), atol=1e-12)
        expect(d_z0, np.tile([1.0, 1, 0, 0, 1], (20, 1)), atol=1e-12)
        expect(d_mu, np.tile([0, 0, 0.5, -0.5, 0], (20, 1)), atol=1e-12)
        expect(d_c, np.tile([0.0, 0, 1, 1, 0], (20, 1)), atol=1e-12)


def test_curves(study):
    z0, mu = np.asarray(study.z0), np.asarray(study.mu)[:, None]
    exact = np.asarray(study.solutions["exact"].z)
    fit, regularizer = np.sum(np.abs(exact - z0), 1), np.sum(mu * (exact - 1) ** 2, 1)
    for name, steps in (("proximal gradient", 1000), ("Adam", 25_000)):
        curves = study.curves[name]
        assert all(curve.shape == (10, steps + 1) for curve in curves)
        # From zero.
        np.testing.assert_allclose(curves.fit[:, 0], np.sum(np.abs(z0)))
        np.testing.assert_allclose(curves.regularizer[:, 0], 100 * mu[:, 0])
        np.testing.assert_allclose(curves.total, curves.fit + curves.regularizer)
        assert np.all(curves.total[:, -1] >= (fit + regularizer) * (1 - 1e-12))
    proximal = study.curves["proximal gradient"]
    np.testing.assert_allclose(proximal.fit[:, -1], fit, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(proximal.regularizer[:, -1], regularizer, rtol=1e-6)
    assert np.all(np.diff(proximal.total, axis=1) <= 1e-12 * proximal.total[:, 1:])
    assert np.max(proximal.gradient_norm[:, -1]) <= 1e-6
    # L (z − T(z)) at zero, by hand for the last μ, 1: T(0) = z₀ clamped to 1 ± 0.5.
    np.testing.assert_allclose(proximal.gradient_norm[-1, 0], 2 * np.linalg.norm(np.clip(z0, 0.5, 1.5)))


def test_adam_comes_as_near_as_its_steps_are_long(study):
    assert 1e-6 < np.max(study.errors["Adam"]) < 0.05
    assert np.min(study.curves["Adam"].gradient_norm[:, -1]) > 1e-6


def test_adam_is_the_library_s(study):
    adam, _ = clamp._adam(study.z0, study.mu, study.c, jnp.asarray(1e-3), 50)
    solver = OptaxSolver(optimizer=optax.adam(1e-3), max_steps=50)
    solve = lambda mu: argmin(Clamp(study.z0, mu), solver=solver, throw=False).params
    np.testing.assert_allclose(adam, compiled(jax.vmap(solve))(study.mu), atol=1e-12)


def test_the_study_takes_seconds(study):
    # A second call of each part, after compilation; the budget is five seconds.
    assert study.seconds.again <= 5
