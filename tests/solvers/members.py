"""The solvers that every law is tried on, and the product with the problems that they serve.

A member is added by one line in `MEMBERS`.
"""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
import pytest

from bilevel import solvers
from tests.problems import MODULES, PROBLEMS, Problem

#: Far below every step of a finite difference. An array, as a new value of it must not recompile.
TOL = jnp.asarray(1e-11)


class Member(NamedTuple):
    """`make(**options, **more)` builds the solver; `kind` is what it serves, one of `Problem.kinds`.

    `scale_free`: whether it takes the same steps on an objective multiplied by a number.
    """

    make: Callable[..., solvers.AbstractSolver]
    kind: str
    options: Mapping[str, Any] = MappingProxyType({})
    scale_free: bool = True

    @property
    def name(self) -> str:
        return self.make.__name__

    def solver(self, **options) -> solvers.AbstractSolver:
        """The solver with a tolerance of `TOL`, or with other options."""
        return self.make(**self.options, **{"tol": TOL, **options})

    def serves(self, problem: Problem) -> bool:
        return self.kind in problem.kinds


EXACT = Member(lambda **_: solvers.Exact(), "exact")
EXACT.make.__name__ = "Exact"

MEMBERS = [
    Member(solvers.ProximalGradient, "any"),
    Member(solvers.AndersonAcceleration, "any"),
    Member(solvers.BlockAlternation, "any"),
    Member(solvers.ProjectedGradient, "constraint"),
    Member(solvers.MirrorDescent, "simplex"),
    Member(solvers.GradientDescent, "smooth"),
    Member(solvers.LBFGS, "smooth"),
    Member(solvers.BFGS, "smooth"),
    Member(solvers.NonlinearCG, "smooth"),
    Member(solvers.Newton, "smooth"),
    # A learning rate is in the objective's own units.
    Member(solvers.OptaxSolver, "smooth", {"optimizer": optax.sgd(0.05, momentum=0.9)}, scale_free=False),
    Member(solvers.BlockCoordinateDescent, "least squares"),
    Member(solvers.SparseCoder, "codes"),
    EXACT,
]

#: What is not an array of numbers is taken off the params before a solver sees them, so two solvers will do for that.
FOR_MODULES = ["ProximalGradient", "LBFGS"]
PAIRS = [
    (member, problem)
    for member in MEMBERS
    for problem in PROBLEMS
    if member.serves(problem) and (problem is not MODULES or member.name in FOR_MODULES)
]


def halves_once(pairs: Iterable[tuple], names: Callable[..., set[str]]) -> list:
    """For `parametrize`: pairs, those long whose halves, by their names, have both had their turn before."""
    params, seen = [], set()
    for pair in pairs:
        params.append(pytest.param(*pair, marks=[pytest.mark.long] if names(*pair) <= seen else []))
        seen |= names(*pair)
    return params


def _kinds(member: Member, problem: Problem) -> set[str]:
    return {member.name, type(problem.objective).__name__}


_firsts: dict[frozenset, tuple[Member, Problem]] = {}
for _pair in PAIRS:
    _firsts.setdefault(frozenset(_kinds(*_pair)), _pair)

#: Every solver with every class of objective that it serves, for laws of JAX's transformations, which see a solver by
#: its loop and a problem by its functions.
COVER = halves_once(_firsts.values(), _kinds)
#: Each solver once.
EACH = [next(pair for pair in PAIRS if pair[0] is member) for member in MEMBERS]


def pair_name(value: object) -> str:
    """For `pytest.mark.parametrize(ids=...)` over members and problems."""
    return value.name  # pyright: ignore[reportAttributeAccessIssue]
