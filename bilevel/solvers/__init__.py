"""Floor 3: how an inner problem is solved."""

from bilevel.solvers.base import AbstractSolver as AbstractSolver
from bilevel.solvers.block_alternation import BlockAlternation as BlockAlternation
from bilevel.solvers.column_generation import ColumnGeneration as ColumnGeneration
from bilevel.solvers.exact import Exact as Exact
from bilevel.solvers.jaxopt_adapter import (
    BFGS as BFGS,
    LBFGS as LBFGS,
    AndersonAcceleration as AndersonAcceleration,
    BlockCoordinateDescent as BlockCoordinateDescent,
    GradientDescent as GradientDescent,
    MirrorDescent as MirrorDescent,
    NonlinearCG as NonlinearCG,
    OptaxSolver as OptaxSolver,
    ProjectedGradient as ProjectedGradient,
    ProximalGradient as ProximalGradient,
    ScipyMinimize as ScipyMinimize,
)
from bilevel.solvers.lagrange_dual import LagrangeDual as LagrangeDual
from bilevel.solvers.learned import (
    AbstractRule as AbstractRule,
    Coordinatewise as Coordinatewise,
    LearnedRule as LearnedRule,
    Rates as Rates,
)
from bilevel.solvers.newton import Newton as Newton
from bilevel.solvers.sparse_coder import SparseCoder as SparseCoder
from bilevel.solvers.specialist import specialist as specialist
