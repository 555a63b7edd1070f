"""The contract of a solver."""

import abc

import equinox as eqx
from jaxtyping import PyTree, ScalarLike

from bilevel.core import Solution
from bilevel.core.requirements import positive, raise_where_violated
from bilevel.objectives import AbstractObjective


class AbstractSolver(eqx.Module):
    """A way to minimize an objective. It knows nothing of derivatives, and remembers nothing.

    To add one: `check` says which objectives it serves, `run` solves, and `verdict` (in `loop`) judges the answer.
    """

    @abc.abstractmethod
    def check(self, objective: AbstractObjective) -> None:
        """Raise `ValueError` where the objective lacks what this solver uses, and name it."""

    @abc.abstractmethod
    def run(self, objective: AbstractObjective, data: PyTree, init: PyTree, *, unroll: bool = False) -> Solution:
        """Minimize, from `init`. Pure; `unroll` asks for loops that reverse mode can go through."""

    def on_host(self) -> bool:
        """Whether it runs outside JAX, and so outside `jit` and `vmap` only."""
        return False


def refuse(solver: AbstractSolver, objective: AbstractObjective, missing: str, instead: str) -> ValueError:
    """The error of a solver that does not serve an objective."""
    return ValueError(
        f"{type(solver).__name__} doesn't work with {type(objective).__name__}: {missing}. Try {instead}."
    )


def check_options(tol: ScalarLike | None, max_steps: int) -> None:
    """Raise `ValueError` where what every iterative solver has is out of range."""
    if not isinstance(max_steps, int) or isinstance(max_steps, bool) or max_steps < 1:
        raise ValueError(f"`max_steps` must be a whole number of at least 1, got {max_steps!r}.")
    if tol is not None:
        raise_where_violated([positive("tol", tol)])
