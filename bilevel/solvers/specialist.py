"""The solver that knows a kind of objective better than any general one."""

from bilevel.objectives import AbstractExactObjective, AbstractObjective, HullPoints, SparseCoding
from bilevel.solvers.base import AbstractSolver
from bilevel.solvers.column_generation import ColumnGeneration
from bilevel.solvers.exact import Exact
from bilevel.solvers.sparse_coder import SparseCoder


def specialist(objective: AbstractObjective) -> AbstractSolver | None:
    """The objective's formula where it has one; `SparseCoder` for sparse codes with squared error; `ColumnGeneration`
    for points of a convex hull; else None."""
    if isinstance(objective, AbstractExactObjective):
        return Exact()
    if isinstance(objective, SparseCoding) and objective.loss is None:
        return SparseCoder()
    return ColumnGeneration() if isinstance(objective, HullPoints) else None
