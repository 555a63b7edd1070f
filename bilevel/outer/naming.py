"""The arrays of a tree by their names, and a tree filled with arrays of such names."""

from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from bilevel.core import tree
from bilevel.scale import CheckpointError


def named(prefix: str, values: PyTree) -> dict[str, np.ndarray]:
    """The arrays of a tree, by their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(eqx.filter(values, eqx.is_array))
    return {prefix + jax.tree_util.keystr(path): tree.stored(x) for path, x in leaves}


def filled(prefix: str, like: PyTree, arrays: dict[str, np.ndarray], place: str) -> PyTree:
    """`like`, with the arrays of these names. Raises `CheckpointError` where one is missing, or of another kind."""

    def of_leaf(path: Any, x: Any) -> Any:
        if not eqx.is_array(x):
            return x
        kind = tree.stored(x)
        name, wanted = prefix + jax.tree_util.keystr(path), f"{kind.dtype}{list(kind.shape)}"
        found = arrays.get(name)
        if found is None or (found.shape, found.dtype) != (kind.shape, kind.dtype):
            got = "nothing" if found is None else f"{found.dtype}{list(found.shape)}"
            raise CheckpointError(
                f"{place} is of another training: {name} should be {wanted}, got {got}. Pass the trainer that it was "
                "written by, or another directory."
            )
        return tree.restored(found, x)

    return jax.tree_util.tree_map_with_path(of_leaf, like)
