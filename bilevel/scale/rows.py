"""Arrays with an entry for each sample, cut into shards."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Rows(NamedTuple):
    """An entry for each sample, in arrays that share their first axis: shard i has `bounds[i]` up to `bounds[i + 1]`.

    This process has the shards `owned`.
    """

    arrays: Sequence[np.ndarray]
    bounds: Sequence[int]
    owned: Sequence[int]

    def shard(self, i: int) -> list[np.ndarray]:
        return [array[self.bounds[i] : self.bounds[i + 1]] for array in self.arrays]
