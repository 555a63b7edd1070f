"""The clamp at its kinks: a coordinate there rests at z₀."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from tests.compiling import compiled


@pytest.mark.parametrize("diff", [bl.Implicit(), bl.Unrolled()], ids=["implicit", "unrolled"])
def test_derivatives_at_kinks(diff: bl.AbstractDifferentiation):
    # c ± 1 / (2 mu) = 1 ± 0.5, exactly.
    z0, mu, c = jnp.asarray([0.5, 1.5, 0.0, 2.0, 1.0]), jnp.asarray(1.0), jnp.asarray(1.0)
    solve = lambda z0, mu, c: bl.argmin(bl.objectives.Clamp(z0, mu, c), diff=diff).params
    np.testing.assert_array_equal(compiled(solve)(z0, mu, c), [0.5, 1.5, 0.5, 1.5, 1.0])
    d_z0, d_mu, d_c = compiled(jax.jacrev(solve, (0, 1, 2)))(z0, mu, c)
    np.testing.assert_allclose(d_z0, np.diag([1.0, 1, 0, 0, 1]), atol=1e-12)
    np.testing.assert_allclose(d_mu, [0, 0, 0.5, -0.5, 0], atol=1e-12)
    np.testing.assert_allclose(d_c, [0, 0, 1.0, 1, 0], atol=1e-12)


def test_value_is_what_the_docstring_says():
    z = np.array([0.2, -1.0])
    clamp = bl.objectives.Clamp(np.array([1.0, 2.0]), mu=0.7, c=0.5)
    expected = np.sum(np.abs(z - [1, 2])) + 0.7 * np.sum((z - 0.5) ** 2)
    np.testing.assert_allclose(clamp(jnp.asarray(z)), expected, rtol=1e-14)
    np.testing.assert_allclose(clamp.fit(jnp.asarray(z)) + clamp.smooth(jnp.asarray(z)), expected, rtol=1e-14)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 1, 3)])
def test_any_shape(shape: tuple[int, ...]):
    z0 = np.linspace(-2, 3, int(np.prod(shape))).reshape(shape)
    np.testing.assert_allclose(bl.argmin(bl.objectives.Clamp(z0, mu=0.5)).params, np.clip(z0, 0, 2), rtol=1e-14)
