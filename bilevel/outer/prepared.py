"""The data of a training, checked before it begins: does it fit the problem, and how do steps come by it?"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import PyTree

from bilevel.core import tree
from bilevel.outer.checks import check_batches, check_data, check_finite_in_memory, check_mean, check_shapes
from bilevel.outer.feeds import iterator_of, next_of
from bilevel.outer.problem import BilevelProblem
from bilevel.scale import DeviceMesh, is_loader, is_on_disk, num_samples, shapes_of, take, whole


class Prepared(NamedTuple):
    """`data` that fit; whether they are `fed` to training batch by batch, or else all on one device; and what is seen
    of them before it begins, `first`: a batch of what is fed, else all."""

    data: PyTree
    first: PyTree
    fed: bool

    @property
    def loaded(self) -> bool:
        """Whether a loader makes the batches."""
        return is_loader(self.data)

    @property
    def shapes(self) -> PyTree:
        """The shapes of all arrays; of the batches of a loader."""
        return shapes_of(self.first if self.loaded else self.data)


def prepare(
    problem: BilevelProblem,
    data: PyTree,
    batch_size: int | None,
    mesh: DeviceMesh | None,
    warm_start: bool | str | Path,
) -> Prepared:
    """Raises `ValueError` where data don't fit."""
    fed = mesh is not None or is_loader(data) or is_on_disk(data)
    if is_loader(data):
        if batch_size is not None:
            raise ValueError(f"`batch_size` is {batch_size}, but a loader makes the batches: pass None.")
        first = tree.to_arrays(next_of(iterator_of(data), 0))
    elif fed:
        # It may be more than a device has room for, or than anyone wants to read before training.
        by_sample = mesh is not None or problem.variables.objective.samplewise
        check_batches(problem, shapes_of(data), batch_size or (1 if by_sample else None))
        rows = np.arange(batch_size or (num_samples(data) if by_sample else 0))
        first = tree.to_arrays(take(data, rows) if len(rows) else whole(data))
        if not is_on_disk(data):
            check_finite_in_memory("data", data)
    else:
        if not isinstance(warm_start, bool):
            raise ValueError(
                "`warm_start` is a path, but the data are in memory, and so are their solutions: pass True, or data on "
                "disk, or a mesh."
            )
        first = data = tree.to_arrays(data)
        check_batches(problem, shapes_of(data), batch_size)
    if fed:
        # What is not finite in it is named by the step that meets it.
        check_shapes(problem, first)
    else:
        check_data("data", problem, first)
    if mesh is not None:
        check_mean(problem, first)
    return Prepared(data, first, fed)
