"""Floor 0: outcomes, solutions, requirements on values, pytree algebra."""

from bilevel.core.results import (
    RESULTS as RESULTS,
    HypergradientError as HypergradientError,
    InnerSolveError as InnerSolveError,
)
from bilevel.core.solution import Solution as Solution
