"""The last inner solution of each sample, kept outside of the devices: in memory, or in a file."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Int, PyTree

from bilevel.outer.state import TrainingState


class Pending(NamedTuple):
    """Solutions that are still being computed, and which samples those on the devices of this process are of; -1 is
    none."""

    rows: Int[np.ndarray, "devices slots"]
    params: PyTree


#: Brings the entries of samples, given an array of all and their numbers, to the devices.
Put = Callable[[np.ndarray, Int[np.ndarray, "devices slots"]], Array]


class WarmStarts:
    """Where the inner solves of samples start: `stored[i]`, for each array of an inner solution, is of sample i.

    Solutions are written when the devices have them, one step late, so that the devices need not wait. A step whose
    samples are among those of the last one waits; where they are the same, solutions never leave the devices.
    """

    def __init__(self, stored: PyTree, put: Put):
        self.stored, self._put = stored, put
        self._pending: Pending | None = None

    def view(self) -> PyTree:
        """All solutions up to now. Not to be written to, and not kept: they go on changing."""
        self.flush()
        return jax.tree.map(_read_only, self.stored)

    def start(self, rows: Int[np.ndarray, "devices slots"]) -> PyTree:
        """The last solutions of these samples, on the devices."""
        if self._pending is not None:
            if self._pending.rows is rows:
                return self._pending.params
            if np.isin(rows[rows >= 0], self._pending.rows).any():
                self.flush()
        return jax.tree.map(lambda array: self._put(array, rows), self.stored)

    def update(self, rows: Int[np.ndarray, "devices slots"], params: PyTree) -> None:
        """Keep these solutions; of slots without a sample nothing is kept."""
        if self._pending is not None and self._pending.rows is not rows:
            self.flush()
        self._pending = Pending(rows, params)

    def flush(self) -> None:
        """Write what is pending."""
        if self._pending is None:
            return
        rows, params = self._pending
        for array, solution in zip(jax.tree.leaves(self.stored), jax.tree.leaves(params), strict=True):
            shards = sorted(solution.addressable_shards, key=lambda shard: shard.index[0].start or 0)
            for here, shard in zip(rows, shards, strict=True):
                array[here[here >= 0]] = np.asarray(shard.data)[here >= 0]
        self._pending = None


def writable(array: Any) -> np.ndarray:
    """A copy; of what is on disk, the file itself."""
    if isinstance(array, np.memmap) and array.filename is not None:
        return np.lib.format.open_memmap(array.filename, "r+")
    return np.array(array)


def blank(array: Any) -> np.ndarray:
    """Zeros of the same shape, which take no memory before they are written; of what is on disk, the file itself."""
    return writable(array) if isinstance(array, np.memmap) else np.zeros(array.shape, array.dtype)


def with_own(state: TrainingState) -> TrainingState:
    """The state, with a copy of warm starts that are of samples, unless they are on disk."""
    if not state.variables.objective.samplewise or state.warm_start is None:
        return state
    return dataclasses.replace(state, warm_start=jax.tree.map(writable, state.warm_start))


def _read_only(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view


def allocate(shapes: PyTree, samples: int, path: Path | None) -> PyTree:
    """Arrays of zeros for the inner solutions of so many samples, given that of a batch; on disk where a path is."""

    def of_leaf(index: int, x: Any) -> np.ndarray:
        shape = (samples, *x.shape[1:])
        if path is None:
            return np.zeros(shape, x.dtype)
        # A file for each array, and for each process, of which every one writes what its own samples need.
        number = f".{index}.{jax.process_index()}" if index or jax.process_index() else ""
        file = path.with_name(f"{path.stem}{number}{path.suffix}")
        file.parent.mkdir(parents=True, exist_ok=True)
        return np.lib.format.open_memmap(file, "w+", x.dtype, shape)

    leaves, structure = jax.tree.flatten(eqx.filter(shapes, eqx.is_array))
    return jax.tree.unflatten(structure, [of_leaf(i, x) for i, x in enumerate(leaves)])
