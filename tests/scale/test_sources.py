"""Samples on disk and loaders: which rows, in which order, from where."""

import grain
import jax.numpy as jnp
import numpy as np
import pytest
import zarr
from hypothesis import given, settings, strategies as st

from bilevel.scale import NpyShards, is_loader, is_on_disk, num_samples, prefetched, shapes_of, take

ARRAY = np.random.default_rng(0).normal(size=(11, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> NpyShards:
    folder = tmp_path_factory.mktemp("shards")
    for name, part in zip("acb", (ARRAY[:4], ARRAY[5:], ARRAY[4:5]), strict=True):
        np.save(folder / f"{name}.npy", part)
    return NpyShards(folder)


@settings(deadline=None, derandomize=True)
@given(rows=st.lists(st.integers(-11, 10), max_size=20))
def test_shards_are_one_array(shards, rows):
    rows = np.asarray(rows, int)
    np.testing.assert_array_equal(shards[rows], ARRAY[rows])


def test_shards_know_their_shape_and_take_slices(shards, tmp_path):
    assert (shards.shape, shards.dtype, len(shards)) == ((11, 3), np.float32, 11)
    np.testing.assert_array_equal(shards[2:9:3], ARRAY[2:9:3])
    with pytest.raises(IndexError):
        shards[np.array([11])]
    for name, part in (("x", ARRAY[:2]), ("y", ARRAY[2:])):
        np.save(tmp_path / f"{name}.npy", part)
    np.testing.assert_array_equal(NpyShards([tmp_path / "y.npy", tmp_path / "x.npy"])[:1], ARRAY[2:3])


def test_shards_of_nothing_or_of_several_kinds_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^`paths` names no file"):
        NpyShards(tmp_path)
    with pytest.raises(ValueError, match=r"^`paths` names no file"):
        NpyShards([])
    np.save(tmp_path / "a.npy", ARRAY)
    for other in (ARRAY[:, :2], ARRAY.astype(float)):
        np.save(tmp_path / "b.npy", other)
        with pytest.raises(ValueError, match=r"^`paths` must hold samples of one shape and dtype"):
            NpyShards(tmp_path)
    np.save(tmp_path / "b.npy", np.float32(1))
    with pytest.raises(ValueError, match=r"^`paths` must hold samples of one shape and dtype"):
        NpyShards([tmp_path / "b.npy"])


def test_what_is_on_disk_and_what_is_a_loader(shards, tmp_path):
    np.save(tmp_path / "a.npy", ARRAY)
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    in_chunks = zarr.array(ARRAY, chunks=(4, 3))
    for source in (mapped, shards, in_chunks):
        assert is_on_disk((ARRAY, source))
        assert num_samples(source) == 11
        assert (shapes_of(source).shape, shapes_of(source).dtype) == ((11, 3), np.float32)
        np.testing.assert_array_equal(take({"x": source}, np.array([3, 0, 7]))["x"], ARRAY[[3, 0, 7]])
    assert not is_on_disk((ARRAY, jnp.asarray(ARRAY), 1.0, np.float64(1)))
    dataset = grain.MapDataset.source(list(ARRAY))
    assert is_loader(dataset) and is_loader(dataset.to_iter_dataset())
    assert not is_loader(ARRAY) and not is_loader((dataset,))


def test_what_is_prepared_ahead_comes_in_order():
    ahead = prefetched(lambda step: step**2, 3)
    assert [next(ahead) for _ in range(5)] == [9, 16, 25, 36, 49]
