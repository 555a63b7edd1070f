"""Bilevel optimization on JAX: `argmin` as a function that can be differentiated."""

from bilevel import objectives as objectives, prox as prox, solvers as solvers
from bilevel.core import RESULTS as RESULTS, InnerSolveError as InnerSolveError, Solution as Solution
from bilevel.differentiation import (
    AbstractDifferentiation as AbstractDifferentiation,
    Implicit as Implicit,
    Unrolled as Unrolled,
    argmin as argmin,
)
from bilevel.outer import (
    BilevelProblem as BilevelProblem,
    Constrained as Constrained,
    Fitted as Fitted,
    Trainer as Trainer,
    TrainingState as TrainingState,
    Variables as Variables,
)

__version__ = "0.1.0"
