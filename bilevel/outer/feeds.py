"""Batches for a training whose data are not one array on one device."""

import functools
import json
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, PyTree

from bilevel.scale import Batches, DeviceMesh, is_on_disk, prefetched, take, whole


class Fed(NamedTuple):
    """A batch on the devices; of which samples its slots on those of this process are, -1 for none (and no slots where
    samples have no numbers); and the weights of slots, where not all count."""

    batch: PyTree
    rows: Int[np.ndarray, "devices slots"]
    weights: Array | None


class Feed(Protocol):
    """Gives a training its batches, step after step."""

    def begin(self, key: Key[Array, ""]) -> None:
        """Draw what is random from this key."""
        ...

    def at(self, step: int) -> Fed:
        """The batch of this step."""
        ...

    def order(self, step: int) -> Int[np.ndarray, " samples"]:
        """The order of the epoch in which this many steps end, of the shards of this process; empty where there is
        none."""
        ...

    def sample(self, step: int, slot: int) -> int:
        """The number of the sample in a slot of this step's batch, in whichever process."""
        ...

    def position(self) -> str | None:
        """Where the source stands, if that does not follow from the step."""
        ...

    def go_to(self, position: str | None) -> None:
        """Go on from there."""
        ...


class ArrayFeed:
    """Batches of arrays in memory or on disk; `shuffled`, or all samples in their order.

    Each process draws the order of its own shards, and reads what its own devices need; from disk, ahead of time.
    """

    def __init__(self, data: PyTree, batches: Batches, mesh: DeviceMesh | None, shuffled: bool, dtype: Any):
        self._data, self._batches, self._mesh, self._shuffled = data, batches, mesh, shuffled
        devices, places = (1, [0]) if mesh is None else (mesh.size, mesh.places)
        layout = batches.layout(devices).reshape(devices, -1)
        # A slot without a sample is filled with that of another on its device, or else the last.
        self._filled = np.where(
            layout >= 0, layout, np.where(layout[:, :1] >= 0, layout[:, :1], batches.batch_size - 1)
        )
        # A row for each device of this process.
        self._mine, self._is_sample = self._filled[places], layout[places] >= 0
        # Also that of what fills up a device that has no shard.
        self._shards = np.unique(np.searchsorted(batches.slots, self._mine, side="right") - 1).tolist()
        weights = np.where(self._is_sample, 1 / batches.batch_size, 0).astype(dtype)
        self._weights = self._assemble(list(weights)) if np.any(layout < 0) else None
        self._whole: Fed | None = None

    def begin(self, key: Key[Array, ""]) -> None:
        """Draw orders from this key."""
        self._key = key
        self._order = functools.lru_cache(maxsize=2)(lambda epoch: self._batches.order_of(key, epoch, self._shards))
        self._reading: tuple[int, Iterator[Any]] | None = None

    def at(self, step: int) -> Fed:
        """The batch of this step."""
        if self._whole is not None:
            return self._whole
        rows, pieces = self._read_ahead(step) if self._shuffled and is_on_disk(self._data) else self._read(step)
        fed = Fed(self._assemble(pieces), rows, self._weights)
        if not self._shuffled:
            self._whole = fed
        return fed

    def order(self, step: int) -> Int[np.ndarray, " samples"]:
        """The order of the epoch in which this many steps end; empty for batches of all samples."""
        if not self._shuffled or step == 0:
            return np.arange(self._batches.num_samples if self._shuffled else 0, dtype=np.int32)
        return self._order((step - 1) // self._batches.steps_per_epoch)

    def sample(self, step: int, slot: int) -> int:
        """The number of the sample in a slot of this step's batch, in whichever process."""
        epoch, place = divmod(step, self._batches.steps_per_epoch)
        at = int(self._batches.places(place, self._filled.ravel()[[slot]])[0])
        if not self._shuffled:
            return at
        shard = int(np.searchsorted(self._batches.ranges, at, side="right")) - 1
        return int(self._batches.order_of(self._key, epoch, [shard])[at])

    def position(self) -> None:
        """A step says it all."""

    def go_to(self, position: str | None) -> None:
        """Nowhere: see `position`."""

    def put(self, array: np.ndarray, rows: Int[np.ndarray, "devices slots"]) -> Array:
        """The entries of these samples, on the devices; of none, whatever there is."""
        return self._assemble([array[np.maximum(part, 0)] for part in rows])

    def _read(self, step: int) -> tuple[Int[np.ndarray, "devices slots"], list[PyTree]]:
        """The rows of a step, and the samples for each device of this process."""
        epoch, place = divmod(step, self._batches.steps_per_epoch)
        samples = np.asarray(self._batches.places(place, self._mine))
        if self._shuffled:
            samples = self._order(epoch)[samples]
        rows = np.where(self._is_sample, samples, -1)
        if self._mesh is None and not self._shuffled:
            # There may be arrays among them that hold no samples, or others.
            return rows, [whole(self._data)]
        return rows, [take(self._data, part) for part in samples]

    def _read_ahead(self, step: int) -> Any:
        if self._reading is None or self._reading[0] != step:
            self._reading = step, prefetched(self._read, step)
        reader = self._reading[1]
        self._reading = step + 1, reader
        return next(reader)

    def _assemble(self, pieces: list[PyTree]) -> PyTree:
        if self._mesh is None:
            return jax.tree.map(jnp.asarray, pieces[0])
        return self._mesh.assemble(pieces, self._filled.size)


class LoaderFeed:
    """The batches of an input pipeline of Grain; on several processes, each has its part of every batch.

    Its samples have no numbers, by which their last solutions could be found: inner solves start anew.
    """

    def __init__(self, loader: Any, mesh: DeviceMesh | None):
        self._iterator, self._mesh = iterator_of(loader), mesh

    def begin(self, key: Key[Array, ""]) -> None:
        """What is random is the loader's."""

    def at(self, step: int) -> Fed:
        """The next batch."""
        return Fed(self._assemble(next_of(self._iterator, step)), np.zeros((1, 0), int), None)

    def order(self, step: int) -> Int[np.ndarray, " samples"]:
        """Samples have no order but the loader's."""
        return np.arange(0, dtype=np.int32)

    def sample(self, step: int, slot: int) -> int:
        """Samples have no numbers but those of their slots."""
        return slot

    def position(self) -> str:
        """Where the loader stands, in its own words."""
        state = self._iterator.get_state()
        return json.dumps({"bytes": state.decode()} if isinstance(state, bytes) else {"state": state})

    def go_to(self, position: str | None) -> None:
        """Go on from where a loader stood."""
        state = json.loads(position or "")
        self._iterator.set_state(state["bytes"].encode() if "bytes" in state else state["state"])

    def _assemble(self, batch: PyTree) -> PyTree:
        if self._mesh is None:
            return jax.tree.map(jnp.asarray, batch)
        sharding = self._mesh.sharding(self._mesh.over_samples)
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def iterator_of(loader: Any) -> Any:
    """An iterator over a loader's batches."""
    import grain

    return iter(loader.to_iter_dataset() if isinstance(loader, grain.MapDataset) else loader)


def next_of(iterator: Iterator[Any], step: int) -> PyTree:
    """The next batch. Raises `ValueError` where there is none."""
    try:
        return next(iterator)
    except StopIteration:
        raise ValueError(
            f"`data` has no batch for step {step}: the loader has come to its end. Let it go on with .repeat()."
        ) from None
