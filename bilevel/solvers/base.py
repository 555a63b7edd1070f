"""The contract of a solver."""

import abc
import dataclasses

import equinox as eqx
from jaxtyping import PyTree

from bilevel.core import Solution
from bilevel.core.requirements import check_whole, positive, raise_where_violated
from bilevel.objectives import AbstractObjective
from bilevel.solvers.loop import Unroll


class AbstractSolver(eqx.Module):
    """A way to minimize an objective. It knows nothing of derivatives, and remembers nothing.

    To add one: `check` says which objectives it serves, `run` solves, and `verdict` (in `loop`) judges the answer.
    """

    @abc.abstractmethod
    def check(self, objective: AbstractObjective) -> None:
        """Raise `ValueError` where the objective lacks what this solver uses, and name it."""

    @abc.abstractmethod
    def run(
        self, objective: AbstractObjective, data: PyTree, init: PyTree, *, unroll: Unroll | None = None
    ) -> Solution:
        """Minimize, from `init`. Pure; `unroll` asks for loops that reverse mode can go through, see `Unroll`."""

    def on_host(self) -> bool:
        """Whether it runs outside JAX, and so outside `jit` and `vmap` only."""
        return False


def refuse(solver: AbstractSolver, objective: AbstractObjective, missing: str, instead: str) -> ValueError:
    """The error of a solver that does not serve an objective."""
    return ValueError(
        f"{type(solver).__name__} doesn't work with {type(objective).__name__}: {missing}. Try {instead}."
    )


def check_smooth(solver: AbstractSolver, objective: AbstractObjective) -> None:
    """Raise where the objective has a penalty."""
    if objective.penalty() is not None:
        raise refuse(solver, objective, "it has a penalty, so it is not smooth", "ProximalGradient()")


#: The options of iterative solvers that are counts, and those that are positive numbers or None.
COUNTS, POSITIVE = ("max_steps", "history_size", "block_steps"), ("tol", "stepsize", "ridge", "block_tol", "forcing")


def check_options(solver: AbstractSolver) -> None:
    """Raise `ValueError` where one of the solver's options is out of its range."""
    options = {field.name: getattr(solver, field.name) for field in dataclasses.fields(solver)}
    for name in COUNTS:
        check_whole(name, options.get(name, 1))
    for name in POSITIVE:
        value = options.get(name)
        if value is not None:
            raise_where_violated([positive(name, value)])
