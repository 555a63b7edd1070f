"""How sparse inner solutions are, and which atoms no sample uses."""

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Int, PyTree

from bilevel.core import Solution, tree
from bilevel.differentiation import argmin
from bilevel.objectives import AbstractObjective, SparseCoding
from bilevel.outer.state import TrainingState
from bilevel.scale import gathered
from bilevel.solvers import AbstractSolver


class Sparsity(eqx.Module):
    """Measures the inner solution: `nonzeros`, the fraction of its entries that are not zero, and of a `SparseCoding`
    `dead_atoms`, how many atoms no sample uses.

    Without `data` it looks at the solutions that warm starts keep, those of all samples, each as of the step that saw
    it last: before the first epoch ends, samples not yet seen count as zero. With `data`, as the inner problem takes
    them, it solves for them at each look, by `solver` as in `argmin`; where that fails, the numbers are NaN.

    Of several processes each counts what it has, and the sums are over all.
    """

    data: PyTree = eqx.field(converter=tree.to_arrays, default=None)
    solver: AbstractSolver | None = eqx.field(converter=tree.to_arrays, default=None)

    def __call__(self, state: TrainingState) -> dict[str, float]:
        objective = state.variables.objective
        if self.data is None:
            params, solved = _kept(state), True
            # Each process has room for all, and fills what is its own.
            processes = jax.process_count()
        else:
            solution = _solve(objective, self.data, self.solver)
            params, solved, processes = solution.params, solution.successful, 1
        leaves = [x for x in jax.tree.leaves(params) if eqx.is_inexact_array_like(x)]
        used, sizes = zip(*map(_count, leaves), strict=True)
        solved = np.all(gathered(np.asarray(solved)))
        found = {"nonzeros": sum(map(np.sum, used)) * processes / sum(sizes)}
        if isinstance(objective, SparseCoding):
            found["dead_atoms"] = np.sum(used[0] == 0)
        return {name: float(value) if solved else float("nan") for name, value in found.items()}


def usage(codes: Array | np.ndarray) -> Int[np.ndarray, " atoms"]:
    """How many samples of all processes use each atom."""
    return _count(codes)[0]


def _kept(state: TrainingState) -> PyTree:
    if state.warm_start is None:
        raise ValueError("`Sparsity` has no solutions to look at, as training keeps no warm starts: give it `data`.")
    return state.warm_start


@eqx.filter_jit
def _solve(objective: AbstractObjective, data: PyTree, solver: AbstractSolver | None) -> Solution:
    return argmin(objective, data, solver=solver, throw=False)


def _count(x: Array | np.ndarray) -> tuple[Int[np.ndarray, " last"], int]:
    """How many entries are not zero, for each index of the last axis, and how many there are, in all processes."""
    x = np.atleast_1d(np.asarray(x))
    counts = np.count_nonzero(x, axis=tuple(range(x.ndim - 1)))
    rows = gathered(np.asarray(x.size // x.shape[-1], np.int32))
    return np.sum(gathered(np.asarray(counts, np.int32)), axis=0), int(x.shape[-1]) * int(np.sum(rows, dtype=np.int64))
