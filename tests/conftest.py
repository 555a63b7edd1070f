"""Every test runs in 64 bits, with strict promotion of ranks and dtypes."""

import gc
import itertools

import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# What JAX traces and compiles stays for the whole run; to look for garbage among it takes a tenth of the time.
gc.set_threshold(100_000, 50, 50)


@pytest.fixture
def getkey():
    """A function that returns a new random key at each call, the same sequence in every test."""
    counter = itertools.count()
    return lambda: jax.random.fold_in(jax.random.key(20260), next(counter))
