"""Bilevel optimization on JAX: `argmin` as a function that can be differentiated."""

from bilevel import objectives as objectives, prox as prox, solvers as solvers
from bilevel.core import (
    RESULTS as RESULTS,
    HypergradientError as HypergradientError,
    InnerSolveError as InnerSolveError,
    Solution as Solution,
)
from bilevel.core.linear_solve import Neumann as Neumann
from bilevel.differentiation import (
    AbstractDifferentiation as AbstractDifferentiation,
    Certificate as Certificate,
    HypergradientCheck as HypergradientCheck,
    Implicit as Implicit,
    JaxoptImplicit as JaxoptImplicit,
    OneStep as OneStep,
    Shine as Shine,
    Truncated as Truncated,
    Unrolled as Unrolled,
    argmin as argmin,
    check_hypergradient as check_hypergradient,
)
from bilevel.outer import (
    BilevelProblem as BilevelProblem,
    Constrained as Constrained,
    Fitted as Fitted,
    Hypergradient as Hypergradient,
    ModeComparison as ModeComparison,
    Trainer as Trainer,
    TrainingState as TrainingState,
    Variables as Variables,
    compare_modes as compare_modes,
    hypergradient as hypergradient,
    monitors as monitors,
)
from bilevel.scale import (
    CheckpointError as CheckpointError,
    Checkpoints as Checkpoints,
    NpyShards as NpyShards,
)

__version__ = "0.1.0"
