"""The solver that knows a kind of objective better than any general one."""

from jaxtyping import ScalarLike

from bilevel.objectives import AbstractExactObjective, AbstractObjective, HullPoints, SparseCoding
from bilevel.scale import DeviceMesh
from bilevel.solvers.base import AbstractSolver
from bilevel.solvers.column_generation import ColumnGeneration
from bilevel.solvers.exact import Exact
from bilevel.solvers.lagrange_dual import LagrangeDual, serves
from bilevel.solvers.sparse_coder import SparseCoder


def specialist(
    objective: AbstractObjective, tol: ScalarLike | None = None, mesh: DeviceMesh | None = None
) -> AbstractSolver | None:
    """The objective's formula where it has one; `SparseCoder` for sparse codes with squared error; `ColumnGeneration`
    for points of a convex hull, `LagrangeDual` for least squares over rows in the unit ball; else None.

    `tol`: where an error of so much is enough, and less would be wasted; None asks for the best that there is.
    `mesh`: among whose devices the samples lie.
    """
    if isinstance(objective, AbstractExactObjective):
        return Exact()
    if isinstance(objective, SparseCoding) and objective.loss is None:
        return SparseCoder(tol, polish=tol is None, mesh=mesh)
    if serves(objective):
        return LagrangeDual(tol)
    return ColumnGeneration(mesh=mesh) if isinstance(objective, HullPoints) else None
