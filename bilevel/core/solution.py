"""What a solve returns."""

from typing import Any, Generic, TypeVar

import equinox as eqx
from jaxtyping import Array

from bilevel.core.results import RESULTS

Params = TypeVar("Params")


class Solution(eqx.Module, Generic[Params]):
    """The minimizer, how the search for it ended, and what a human wants to know of it.

    **Attributes:**

    - `params`: the solution, of the structure of the objective's unknown.
    - `result`: a `RESULTS` entry; `RESULTS[result]` is its message, empty for success.
    - `stats`: `num_steps`; `optimality`, the relative optimality error that the tolerance bounds (see
      `AbstractObjective.optimality_error`), of the worst sample where samples are independent; `tol`, its bound.
    """

    params: Params
    result: RESULTS
    stats: dict[str, Any]

    @property
    def successful(self) -> Array | bool:
        """Whether the tolerance was met."""
        return self.result == RESULTS.successful
