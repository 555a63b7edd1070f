"""NumPy functions on XLA's own buffers: every kind of array, transformations, errors, threads."""

import concurrent.futures

import jax
import jax.numpy as jnp
import numba
import numpy as np
import pytest

from bilevel.kernels.foreign import foreign_call
from bilevel.kernels.supports import compiled


def shifted(x: np.ndarray, mask: np.ndarray, number: np.ndarray, out: np.ndarray, count: np.ndarray) -> None:
    """Where `mask`, x + number; how many there are."""
    assert all(array.flags.c_contiguous for array in (x, mask, out))
    out[...] = np.where(mask, x + number, x)
    count[...] = mask.sum()


def call(x, mask, number):
    out = jax.ShapeDtypeStruct(x.shape, x.dtype), jax.ShapeDtypeStruct((), jnp.int32)
    return foreign_call(shifted, out, x, mask, number)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 5), (0, 4)], ids=str)
def test_arrays_come_and_go(shape: tuple, dtype: str):
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), dtype)
    mask, number = x > 0, jnp.asarray(1e-3, dtype)
    for transform in (jax.jit, lambda f: f):
        out, count = transform(call)(x, mask, number)
        assert out.dtype == dtype and count.dtype == jnp.int32
        np.testing.assert_array_equal(out, np.where(mask, np.asarray(x) + np.asarray(number), x))
        assert int(count) == np.sum(mask)


def test_transposed_arrays_come_in_order():
    x = jnp.arange(12.0).reshape(3, 4)
    out, _ = jax.jit(lambda x: call(x.T, x.T > 5, 1.0 + 0 * x[0, 0]))(x)
    np.testing.assert_array_equal(out, np.where(x.T > 5, x.T + 1, x.T))


def test_under_vmap_as_one_by_one():
    x, numbers = jnp.arange(24.0).reshape(2, 3, 4), jnp.asarray([1.0, 2.0, 3.0])
    rows = jax.vmap(lambda x, number: call(x, x > 7, number))
    out, counts = jax.jit(jax.vmap(rows, in_axes=(0, None)))(x, numbers)
    np.testing.assert_array_equal(out, np.where(x > 7, np.asarray(x) + np.asarray(numbers)[:, None], x))
    np.testing.assert_array_equal(counts, np.sum(x > 7, axis=2))


def test_what_it_raises_is_told():
    def failing(x: np.ndarray, out: np.ndarray) -> None:
        raise ArithmeticError("of this kind")

    x = jnp.ones(3)
    with pytest.raises(jax.errors.JaxRuntimeError, match="failing: ArithmeticError: of this kind"):
        jax.block_until_ready(foreign_call(failing, (jax.ShapeDtypeStruct(x.shape, x.dtype),), x))


def test_from_many_threads_at_once():
    run = jax.jit(lambda x: call(x, x > 0, jnp.ones(()))[0])
    batches = [jnp.asarray(np.random.default_rng(i).normal(size=(50, 20))) for i in range(40)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(run, batches))
    for x, out in zip(batches, found, strict=True):
        np.testing.assert_array_equal(out, np.where(x > 0, x + 1, x))


def test_loops_compile_where_no_folder_can_be_written_to(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("numba.core.caching.CacheImpl._locator_classes", [])
    # As does `numba.njit(cache=True)` there.
    with pytest.raises(RuntimeError, match="cannot cache function"):
        numba.njit(cache=True)(shifted)
    assert compiled(lambda x: x + 1)(1) == 2
