"""Trainings on meshes: the same as without, and one reduction a step."""

import json
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.outer.feeds import ArrayFeed
from bilevel.scale import Batches
from tests.outer.examples import same
from tests.outer.processes import ended, module
from tests.outer.scaled import ADAM, mesh_of, problem, signals, trainer

MESHES = ("1", "2", "3", "4", "8", "4x2")
#: Of 101 samples in 8 shards: batches whose shards are as long, batches whose shards are not, and all samples.
SHORT = ("24:8", "19:3,4x2", "full:2")
LONG = tuple(f"{batch}:{','.join(MESHES)}" for batch in ("24", "19", "full"))


@pytest.mark.parametrize("cases", [SHORT, pytest.param(LONG, marks=pytest.mark.long)], ids=["short", "long"])
def test_fifty_steps_on_a_mesh_are_those_without_and_reduce_once_each(cases):
    said = ended(module("tests.outer.on_meshes", *cases))
    found = json.loads(said.splitlines()[-1])
    for case in cases:
        batch, meshes = case.split(":")
        for mesh in meshes.split(","):
            compared = found["same"][batch][mesh]
            assert max(compared["distance"], compared["starts"], compared["loss"]) < 1e-12, (batch, mesh, compared)
            # With an axis "atoms" the dictionary is gathered, and its parts' norms and whether they are finite told.
            expected = {"all-reduce": 2, "all-gather": 1} if "x" in mesh else {"all-reduce": 1}
            # Of one device JAX forgets over which axis of the mesh arrays are cut, and compiles the second step anew.
            programs = compared["collectives"][mesh == "1" and batch == "full" :]
            assert programs == [expected], (batch, mesh, compared)
            assert compared["collectives"][0] == expected, (batch, mesh, compared)
    for name, compared in found["others"].items():
        assert compared["distance"] < 1e-12, (name, compared)
        assert compared["collectives"] == [{"all-reduce": 1}], (name, compared)


# --- One device, in this process --------------------------------------------------------------------------------------


def sum_loss(variables, codes, batch):
    return jnp.sum((codes @ variables.task - batch[1]) ** 2)


def test_a_loss_that_is_a_sum_is_refused_on_a_mesh():
    summed = bl.Trainer(problem(sum_loss), ADAM, 16, mesh=mesh_of(1))
    with pytest.raises(ValueError, match=r"^`outer_loss` must be a mean over samples, plus terms of the variables"):
        summed.fit(signals(), 2)


def test_an_objective_whose_samples_depend_on_each_other_is_refused_on_a_mesh():
    ridge = bl.BilevelProblem(lambda v, model, batch: jnp.mean(batch[1]), bl.Variables(bl.objectives.Ridge(0.1)))
    with pytest.raises(ValueError, match=r"^`mesh` shares out samples, but those of Ridge are not independent"):
        bl.Trainer(ridge, ADAM, mesh=mesh_of(1))


@pytest.mark.parametrize(
    "mesh", [("rows",), ("data", "columns"), ("atoms",), ("data", "atoms", "rest")], ids=lambda axes: "-".join(axes)
)
def test_a_mesh_of_other_axes_is_refused(mesh):
    devices = np.asarray(jax.devices()[:1]).reshape([1] * len(mesh))
    with pytest.raises(ValueError, match=r'^`mesh` must have the axis "data" and at most one other, "atoms", got'):
        trainer(mesh=jax.sharding.Mesh(devices, mesh))


@pytest.mark.parametrize("mesh", [0, 4])
def test_more_devices_than_there_are_are_refused(mesh):
    with pytest.raises(ValueError, match=rf"^`mesh` asks for {mesh} devices; there are 1"):
        trainer(mesh=mesh)


@pytest.mark.parametrize("mesh", [True, 4.0, "data", ("data",), jax.devices()], ids=repr)
def test_what_is_no_mesh_is_refused(mesh):
    with pytest.raises(ValueError, match=r"^`mesh` must be a jax.sharding.Mesh, such as"):
        trainer(mesh=mesh)


@pytest.mark.parametrize("shards", [0, -1, 2.0, True], ids=repr)
def test_shards_are_counted_from_one(shards):
    with pytest.raises(ValueError, match=r"^`shards` must be a Python int of at least 1, got"):
        trainer(shards=shards)


@pytest.mark.parametrize("start", [0, 1.0, None, b"path"], ids=repr)
def test_a_warm_start_is_a_switch_or_a_path(start):
    with pytest.raises(ValueError, match=r"^`warm_start` must be True, False or a path, got"):
        trainer(warm_start=start)


def test_on_a_mesh_a_batch_is_no_larger_than_the_data():
    with pytest.raises(ValueError, match=r"^`batch_size` is 102, but `data` has 101 samples"):
        trainer(102, mesh=mesh_of(1)).fit(signals(), 2)


def test_going_on_from_a_state_on_a_mesh_is_as_if_never_interrupted():
    on_mesh, data = trainer(mesh=mesh_of(1)), signals()
    whole, half = on_mesh.fit(data, 8, every=3), on_mesh.fit(data, 5, every=3)
    assert same(on_mesh.fit(data, 3, state=half.state, every=3).state, whole.state)
    with pytest.raises(ValueError, match=r"^`state` belongs to another trainer or to other data: state.order"):
        on_mesh.fit(signals(99), 3, state=half.state)


def test_a_device_without_a_shard_is_filled_with_a_sample_of_the_batch():
    """In a process of its own, which has none of the other samples: that of the last slot, and no other."""
    data, batches, key = np.arange(10.0), Batches(10, 4, 2), jax.random.key(1)
    third: Any = SimpleNamespace(size=3, places=[2], assemble=lambda pieces, slots: pieces)
    feed = ArrayFeed(data, batches, third, True, data.dtype)
    feed.begin(key)
    for step in range(4):
        order = np.asarray(batches.order(key, step // batches.steps_per_epoch))
        last = order[batches.places(step % batches.steps_per_epoch)][-1]
        fed = feed.at(step)
        assert np.all(fed.rows == -1) and not np.any(fed.weights)
        np.testing.assert_array_equal(fed.batch, last)
        assert feed.sample(step, 5) == last
