"""Samples that are not all in memory: rows of arrays on disk, and loaders of batches."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Int, PyTree


class NpyShards:
    """The arrays of several `.npy` files, one after the other, as one array of samples on disk.

    `NpyShards(paths)`, or `NpyShards(directory)` for all of its `.npy` files in the order of their names. Files are
    mapped into memory: a row is read when it is asked for.

    Raises `ValueError` where there is no file, or where dtypes or shapes of samples differ.
    """

    def __init__(self, paths: str | Path | Sequence[str | Path]):
        if isinstance(paths, str | Path):
            paths = sorted(Path(paths).glob("*.npy"))
        if not paths:
            raise ValueError("`paths` names no file: pass `.npy` files, or a directory that has some.")
        self._shards = [np.load(path, mmap_mode="r", allow_pickle=False) for path in paths]
        kinds = {(shard.shape[1:], shard.dtype) for shard in self._shards}
        if len(kinds) != 1 or any(shard.ndim == 0 for shard in self._shards):
            raise ValueError(f"`paths` must hold samples of one shape and dtype, got {sorted(map(str, kinds))}.")
        self._ends = np.cumsum([len(shard) for shard in self._shards])
        self.dtype = self._shards[0].dtype
        self.shape = (int(self._ends[-1]), *self._shards[0].shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Int[np.ndarray, " rows"] | slice) -> np.ndarray:
        """The samples with these numbers, in their order."""
        rows = np.arange(len(self))[rows] if isinstance(rows, slice) else np.asarray(rows)
        if np.any((rows < -len(self)) | (rows >= len(self))):
            raise IndexError(f"There are {len(self)} samples; got rows from {np.min(rows)} to {np.max(rows)}.")
        rows = np.where(rows < 0, rows + len(self), rows)
        found = np.empty((*rows.shape, *self.shape[1:]), self.dtype)
        shards = np.searchsorted(self._ends, rows, side="right")
        for i in np.unique(shards):
            here = shards == i
            found[here] = self._shards[i][rows[here] - (self._ends[i] - len(self._shards[i]))]
        return found


def is_loader(data: Any) -> bool:
    """Whether `data` is an input pipeline of Grain, which makes its own batches."""
    # Nobody has made one before Grain was imported.
    grain = sys.modules.get("grain")
    return grain is not None and isinstance(data, grain.MapDataset | grain.IterDataset | grain.DataLoader)


def is_on_disk(data: PyTree) -> bool:
    """Whether an array of `data` is read row by row: a memory map, an array of Zarr, `NpyShards`, or alike."""
    in_memory = (np.ndarray, np.generic, jax.Array, bool, int, float, complex)
    return any(isinstance(x, np.memmap) or not isinstance(x, in_memory) for x in jax.tree.leaves(data))


def shapes_of(data: PyTree) -> PyTree:
    """The shapes and dtypes of arrays, wherever they are."""
    is_array = lambda x: isinstance(x, jax.Array | np.ndarray) or not isinstance(x, np.generic | bool | int | float)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype) if is_array(x) else x, data)


def num_samples(data: PyTree) -> int:
    """How many samples there are, as the first array has it; 1 where it holds none."""
    first = jax.tree.leaves(shapes_of(data))[0]
    return first.shape[0] if isinstance(first, jax.ShapeDtypeStruct) and first.shape else 1


def take(data: PyTree, rows: Int[np.ndarray, " rows"]) -> PyTree:
    """These samples, as NumPy arrays."""
    return jax.tree.map(lambda x: np.asarray(x[rows]), data)


def whole(data: PyTree) -> PyTree:
    """All that there is, as NumPy arrays."""
    is_number = lambda x: isinstance(x, np.generic | bool | int | float) or np.ndim(x) == 0
    return jax.tree.map(lambda x: x if not isinstance(x, NpyShards) and is_number(x) else np.asarray(x[:]), data)


def prefetched(function: Any, first: int) -> Iterator[Any]:
    """function(first), function(first + 1), …, two of them made ahead of time, in a thread of Grain's."""
    try:
        import grain
    except ImportError as error:
        raise ImportError(
            "Data on disk are read by Grain, which is not installed. Install it with: pip install 'bilevel[scale]'"
        ) from error
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    return iter(grain.MapDataset.range(first, sys.maxsize).map(function).to_iter_dataset(options))
