"""Trainings on data that are not in memory: the same as on arrays, with what is wrong with a sample named."""

import json

import grain
import jax
import numpy as np
import pytest
import zarr

import bilevel as bl
from bilevel.scale import NpyShards
from tests.outer.processes import ended, module
from tests.outer.scaled import mesh_of, seen, signals, trainer

X, Y = DATA = signals()
TRAINER, ON_MESH = trainer(shards=4), trainer(mesh=mesh_of(1), shards=4)


def mapped(folder):
    np.save(folder / "x.npy", X)
    return np.load(folder / "x.npy", mmap_mode="r")


def in_shards(folder):
    for i, part in enumerate(np.array_split(X, 3)):
        np.save(folder / f"{i}.npy", part)
    return NpyShards(folder)


def in_chunks(folder):
    array = zarr.create_array(folder / "x.zarr", shape=X.shape, dtype=X.dtype, chunks=(7, X.shape[1]))
    array[:] = X
    return array


SOURCES = [mapped, in_shards, in_chunks]


def assert_same(a, b):
    a, b = seen(a), seen(b)
    assert a.keys() == b.keys()
    for name, x in a.items():
        np.testing.assert_array_equal(x, b[name], err_msg=name)


@pytest.fixture(scope="module")
def on_mesh() -> bl.Fitted:
    return ON_MESH.fit(DATA, 12)


@pytest.fixture(scope="module")
def from_disk(tmp_path_factory) -> bl.Fitted:
    return TRAINER.fit((mapped(tmp_path_factory.mktemp("mapped")), Y), 12)


@pytest.mark.parametrize("source", SOURCES)
def test_what_is_on_disk_trains_as_what_is_in_memory(source, tmp_path, on_mesh, from_disk):
    data = source(tmp_path), Y
    # The same programs: bit for bit.
    assert_same(ON_MESH.fit(data, 12), on_mesh)
    assert_same(TRAINER.fit(data, 12), from_disk)


def test_the_program_for_data_in_memory_is_another_and_differs_by_rounding(from_disk):
    found, expected = seen(TRAINER.fit(DATA, 12)), seen(from_disk)
    for name in ("loss", "gradient_norm", *(name for name in expected if "dictionary" in name)):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-12, err_msg=name)


def test_warm_starts_may_live_in_a_file(tmp_path, from_disk):
    data, path = (mapped(tmp_path), Y), tmp_path / "deep" / "starts.npy"
    fitted = trainer(shards=4, warm_start=path).fit(data, 12)
    assert_same(fitted, from_disk)
    np.testing.assert_array_equal(np.load(path), fitted.state.warm_start)


def test_cold_starts_end_where_warm_ones_do(tmp_path, from_disk):
    fitted = trainer(shards=4, warm_start=False).fit((mapped(tmp_path), Y), 12)
    assert fitted.state.warm_start is None
    np.testing.assert_allclose(fitted.history["loss"], from_disk.history["loss"], rtol=1e-6)


# --- Samples that are not finite --------------------------------------------------------------------------------------


def spoiled_after_the_first_batch(training, where):
    """The data, of which a sample of the second batch and no other is spoiled; and its number."""
    batches = training._batches(DATA)
    order = np.asarray(batches.order(jax.random.key(0), 0))
    first, second = (order[np.asarray(batches.places(place))] for place in (0, 1))
    at = next(int(i) for i in second if i not in first and i >= 16)
    spoiled = X.copy()
    spoiled[at, 2] = np.nan
    return where(spoiled), at


def on_disk(folder):
    def put(array):
        np.save(folder / "spoiled.npy", array)
        return np.load(folder / "spoiled.npy", mmap_mode="r")

    return put


@pytest.mark.parametrize("training", [TRAINER, ON_MESH], ids=["one device", "a mesh"])
def test_a_sample_that_is_not_finite_is_refused_and_named(training, tmp_path):
    array, at = spoiled_after_the_first_batch(training, on_disk(tmp_path))
    with pytest.raises(
        bl.InnerSolveError, match=rf"^Step 1 of training failed: sample {at}, in its batch, has entries"
    ):
        training.fit((array, Y), 3)
    one, two = (training.fit((array, Y), steps, every=1, on_failure="skip") for steps in (1, 2))
    assert two.history["refused"].tolist() == [False, True]
    assert two.history["suspect"].tolist() == [-1, at]
    found, expected = seen(two), seen(one)
    for name, x in expected.items():
        if name not in one.history and "step" not in name:
            np.testing.assert_array_equal(found[name], x, err_msg=name)
    assert int(two.state.step) == 2
    epoch = training.fit((array, Y), 7, on_failure="skip")
    assert epoch.history["refused"].sum() >= 1 and np.isfinite(epoch.variables.task).all()


# --- Loaders ----------------------------------------------------------------------------------------------------------


def loader():
    return grain.MapDataset.source(list(zip(X, Y, strict=True))).batch(16, drop_remainder=True)


def test_a_loader_makes_the_batches():
    fitted = trainer(None).fit(loader().repeat(), 8)
    one_by_one = bl.Trainer(trainer(None).problem, trainer(None).optimizer, warm_start=False)
    state = None
    for step in range(8):
        rows = np.arange(16) + 16 * (step % 6)
        one = one_by_one.fit((X[rows], Y[rows]), 1, state=state)
        state = one.state
        np.testing.assert_allclose(fitted.history["loss"][step], one.history["loss"][0], rtol=1e-10)


def test_a_loader_feeds_a_mesh():
    found, expected = (t.fit(loader().repeat(), 8) for t in (trainer(None, mesh=mesh_of(1)), trainer(None)))
    np.testing.assert_allclose(found.history["loss"], expected.history["loss"], rtol=1e-12)


def test_a_loader_that_ends_says_so():
    with pytest.raises(ValueError, match=r"^`data` has no batch for step 6: the loader has come to its end.*\.repeat"):
        trainer(None).fit(loader(), 8)


def test_a_loader_and_a_batch_size_are_one_too_many():
    with pytest.raises(ValueError, match=r"^`batch_size` is 16, but a loader makes the batches: pass None"):
        TRAINER.fit(loader(), 2)


# --- More than memory -------------------------------------------------------------------------------------------------


def in_its_own_process(samples, features, atoms, batch_size):
    said = ended(module("tests.outer.large", *map(str, (samples, features, atoms, batch_size))))
    return json.loads(said.splitlines()[-1])


def test_an_epoch_from_disk_takes_far_less_memory_than_its_data():
    found = in_its_own_process(200_000, 144, 8, 10_000)
    assert found["data"] > 100 * 2**20
    assert found["growth"] < 0.8 * found["data"], found
    assert found["steps"] == 20


@pytest.mark.long
def test_an_epoch_of_a_million_samples_fits_two_gigabytes():
    found = in_its_own_process(1_000_000, 144, 256, 1_000)
    print(found)
    assert found["peak"] < 2 * 2**30
    assert found["steps"] == 1_000
