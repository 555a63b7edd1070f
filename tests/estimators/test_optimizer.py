"""Adam along a cosine, against Optax's own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel.estimators.optimizer import cosine_adam
from tests.compiling import compiled


def path(optimizer, start, num_steps):
    """Minimize ½‖x‖² from there; the points on the way."""

    def step(carry, _):
        params, state = carry
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(params, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    return jax.lax.scan(step, (start, optimizer.init(start)), length=num_steps)[1]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_it_is_optax_s_adam_with_optax_s_schedule(dtype):
    start, rate, num_steps = jnp.array([1.0, -2.0], dtype), 0.3, 12
    ours = compiled(path)(cosine_adam(rate, num_steps, dtype), start, num_steps)
    theirs = compiled(path)(optax.adam(optax.cosine_decay_schedule(rate, num_steps)), start, num_steps)
    assert ours.dtype == dtype
    np.testing.assert_allclose(ours, theirs, rtol=1e-5 if dtype == jnp.float32 else 1e-12)


def test_another_rate_and_length_are_the_same_program():
    traces = []

    def counting(optimizer, start):
        traces.append(None)
        return path(optimizer, start, 5)

    run = compiled(counting)
    paths = [run(cosine_adam(rate, n, jnp.float64), jnp.ones(2)) for rate, n in [(0.1, 5), (0.2, 5), (0.2, 50)]]
    assert len(traces) == 1
    assert not np.allclose(paths[0], paths[1])
    assert not np.allclose(paths[1], paths[2])
