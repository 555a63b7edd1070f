"""The contract of a way of differentiating."""

import abc
import dataclasses
from typing import Self

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import PyTree

from bilevel.core import RESULTS, Solution
from bilevel.core.policy import Policy, enforce
from bilevel.objectives import AbstractObjective
from bilevel.solvers import AbstractSolver

FAILED_SOLUTION = (
    "The derivative of a solution that missed its tolerance is wrong by an unknown amount. Likely causes: too few "
    "steps of the inner solver, or a tolerance below what the precision allows. Try a larger `max_steps`, a larger "
    "`tol`, or another solver; `bilevel.hypergradient(..., on_failure='ignore')` estimates the error."
)


class AbstractDifferentiation(eqx.Module):
    """How a solution depends on its objective and data.

    It is given the solver as an argument, so that no solver mentions derivatives. To add one: `apply`, and a field
    `on_failure` where a failed solution has no derivative of its own.
    """

    @abc.abstractmethod
    def apply(self, solver: AbstractSolver, objective: AbstractObjective, data: PyTree, init: PyTree) -> Solution:
        """Solve; the outcome's derivatives are this object's business."""

    def with_policy(self, policy: Policy, *, only_default: bool = False) -> Self:
        """The same with another `on_failure`, where it has one; `only_default`, where that is None."""
        options = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if "on_failure" not in options or (only_default and options["on_failure"] is not None):
            return self
        return type(self)(**{**options, "on_failure": policy})


def judge(policy: Policy | None, solution: Solution, tangent: PyTree) -> PyTree:
    """What the policy (NaN for None) makes of what a derivative is computed from, where the solution failed."""
    failed = jnp.asarray(solution.result != RESULTS.successful)
    if policy == "raise":
        # With the words with which the solve itself raises.
        return solution.result.error_if(tangent, failed)
    return enforce("nan" if policy is None else policy, failed, tangent, FAILED_SOLUTION)
