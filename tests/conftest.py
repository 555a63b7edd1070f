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


#: Files whose tests are programs of their own.
_APART = {"tests.notebooks.test_notebooks", "tests.test_documentation"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What shares compiled programs runs in one worker: the tests of a solver on a problem, else those of a file."""
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        if {"member", "problem"} <= set(params):
            item.add_marker(pytest.mark.xdist_group(f"{params['member'].name}-{params['problem'].name}"))
        elif item.module.__name__ not in _APART:
            item.add_marker(pytest.mark.xdist_group(item.module.__name__))


_tests = itertools.count(1)
_maps, _memory = Path("/proc/self/maps"), Path("/proc/self/statm")
_workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
#: Half of the machine's memory is the workers', in equal parts.
_limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 // _workers if _memory.exists() else 0


@pytest.fixture(autouse=True)
def bounded_memory():
    """Drop compiled programs before they use up the machine's memory, or the maps that Linux allows a process, 65,530.

    With JAX 0.12 each program takes dozens of them, and the process dies of one too many.
    """
    global _limit
    if _limit and next(_tests) % 10 == 0 and (_resident() > _limit or _maps.read_bytes().count(b"\n") > 50_000):
        jax.clear_caches()
        gc.collect()
        # Not all of it goes back to the system. Programs are not dropped again before there are new ones.
        _limit = max(_limit, _resident() + 2**30)


def _resident() -> int:
    return int(_memory.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def getkey():
    """A function that returns a new random key at each call, the same sequence in every test."""
    counter = itertools.count()
    return lambda: jax.random.fold_in(jax.random.key(20260), next(counter))
