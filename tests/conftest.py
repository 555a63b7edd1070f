"""Every test runs in 64 bits, with strict promotion of ranks and dtypes."""

import gc
import itertools
import os
from pathlib import Path

# XLA's remarks, as errors, on every program that it loads from the cache.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Workers take all processors already; threads that wait for each other take them from those that work.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# What JAX traces and compiles stays for the whole run; to look for garbage among it takes a tenth of the time.
gc.set_threshold(100_000, 50, 50)


_tests = itertools.count(1)


@pytest.fixture(autouse=True)
def bounded_memory():
    """Drop compiled programs before they use up the machine's memory, or the maps that Linux allows a process, 65,530.

    With JAX 0.12 each program takes dozens of them, and the process dies of one too many.
    """
    if next(_tests) % 10 == 0 and _is_full():
        jax.clear_caches()
        gc.collect()


def _is_full() -> bool:
    maps, memory = Path("/proc/self/maps"), Path("/proc/self/statm")
    if not maps.exists():
        return False
    resident = int(memory.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resident > 4 * 2**30 or maps.read_bytes().count(b"\n") > 50_000


@pytest.fixture
def getkey():
    """A function that returns a new random key at each call, the same sequence in every test."""
    counter = itertools.count()
    return lambda: jax.random.fold_in(jax.random.key(20260), next(counter))
