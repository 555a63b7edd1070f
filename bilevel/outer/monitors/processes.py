"""Numbers and arrays of all processes, where there are several."""

from typing import TypeVar

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jaxtyping import PyTree

T = TypeVar("T", bound=PyTree)


def gathered(x: np.ndarray) -> np.ndarray:
    """What each process has for `x`, one behind the other on a new first axis. All processes must call it."""
    return x[None] if jax.process_count() == 1 else np.asarray(process_allgather(x))


def own(tree: T) -> T:
    """`tree` with this process's copy of each array that all processes have a copy of."""
    spans = lambda x: isinstance(x, jax.Array) and not x.is_fully_addressable
    return jax.tree.map(lambda x: x.addressable_data(0) if spans(x) else x, tree)
