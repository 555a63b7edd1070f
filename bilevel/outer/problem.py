"""A bilevel problem: what is learned outside, what is solved inside, and the loss that joins them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree, Scalar

from bilevel.core import Solution, tree
from bilevel.differentiation import AbstractDifferentiation, Implicit, argmin
from bilevel.objectives import AbstractObjective
from bilevel.prox import AbstractConstraint
from bilevel.solvers import AbstractSolver


class Variables(eqx.Module):
    """What the outer level holds: the objective, whose leaves are its hyperparameters, and the task's own variables."""

    objective: AbstractObjective
    task: PyTree = eqx.field(converter=tree.to_arrays, default=None)

    def __check_init__(self):
        if not isinstance(self.objective, AbstractObjective):
            raise ValueError(f"`objective` must be a bilevel objective, got {type(self.objective).__name__}.")


class Constrained(NamedTuple):
    """The part of the variables that `where` selects lies in `constraint`: unit atoms, non-negative strengths."""

    where: Callable[[Variables], Any]
    constraint: AbstractConstraint


OuterLoss = Callable[[Variables, PyTree, PyTree], Scalar]


class BilevelProblem(eqx.Module):
    """min over variables of  outer_loss(variables, params*, batch),  params* = argmin of variables.objective.

    **Arguments:**

    - `outer_loss`: a function of (variables, params, batch) to a number, a mean over the batch where there are batches.
    - `variables`: where training starts.
    - `inner_data`: what of a batch the inner problem sees; all of it by default.
    - `train`: selects the parts of the variables to train, as in `equinox.tree_at`; None is every floating array.
    - `constraints`: sets in which parts of the variables stay, each by a projection at the start and after every step.

    ```python
    problem = bl.BilevelProblem(
        lambda variables, codes, batch: cross_entropy(codes @ variables.task, batch[1]),
        bl.Variables(bl.objectives.SparseCoding(dictionary, l1=0.15, l2=0.01), task=head),
        inner_data=lambda batch: batch[0],
        train=lambda variables: (variables.objective.dictionary, variables.task),
        constraints=[bl.Constrained(lambda variables: variables.objective.dictionary, bl.prox.UnitBall())],
    )
    ```
    """

    outer_loss: OuterLoss
    variables: Variables
    inner_data: Callable[[PyTree], PyTree]
    train: Callable[[Variables], Any] | None
    constraints: tuple[Constrained, ...]

    def __init__(
        self,
        outer_loss: OuterLoss,
        variables: Variables,
        *,
        inner_data: Callable[[PyTree], PyTree] = lambda batch: batch,
        train: Callable[[Variables], Any] | None = None,
        constraints: Sequence[Constrained] = (),
    ):
        if not isinstance(variables, Variables):
            raise ValueError(f"`variables` must be a bilevel.Variables, got {type(variables).__name__}.")
        for name, function in (("outer_loss", outer_loss), ("inner_data", inner_data)):
            if not callable(function):
                raise ValueError(f"`{name}` must be a function, got {type(function).__name__}.")
        for entry in constraints:
            if not isinstance(entry, Constrained) or not isinstance(entry.constraint, AbstractConstraint):
                raise ValueError(f"`constraints` must be bilevel.Constrained(where, constraint) each, got {entry!r}.")
            _check_selection("constraints", entry.where, variables)
        if train is not None:
            _check_selection("train", lambda v: jax.tree.leaves(train(v)), variables)
        self.outer_loss = outer_loss
        self.variables = variables
        self.inner_data = inner_data
        self.train = train
        self.constraints = tuple(constraints)
        if not jax.tree.leaves(self.split(variables)[0]):
            raise ValueError("`train` selects no floating array of `variables`: there is nothing to train.")

    def split(self, variables: Variables) -> tuple[PyTree, PyTree]:
        """The trained part and the rest, as `equinox.partition` gives them."""
        if self.train is None:
            return eqx.partition(variables, eqx.is_inexact_array)
        selection = self.train
        selected = jax.tree.map(lambda _: False, variables)
        selected = eqx.tree_at(lambda v: jax.tree.leaves(selection(v)), selected, replace_fn=lambda _: True)
        return eqx.partition(variables, jax.tree.map(lambda s, x: s and eqx.is_inexact_array(x), selected, variables))

    def project(self, variables: Variables) -> Variables:
        """The variables, moved into their constraints."""
        for where, constraint in self.constraints:
            variables = eqx.tree_at(where, variables, replace_fn=constraint.project)
        return variables

    def solve(self, variables: Variables, batch: PyTree, **options: Any) -> Solution:
        """The inner solution, with the options of `argmin`."""
        return argmin(variables.objective, self.inner_data(batch), **options)

    def loss(
        self,
        variables: Variables,
        batch: PyTree,
        *,
        init: PyTree = None,
        solver: AbstractSolver | None = None,
        diff: AbstractDifferentiation = Implicit(),
        throw: bool = True,
    ) -> tuple[Scalar, Solution]:
        """The outer loss and the inner solution; differentiate it with respect to `variables`."""
        solution = self.solve(variables, batch, init=init, solver=solver, diff=diff, throw=throw)
        return number("outer_loss", self.outer_loss(variables, solution.params, batch)), solution


def number(name: str, loss: Scalar) -> Scalar:
    """The loss, if it is one number."""
    if jnp.shape(loss) != ():
        raise ValueError(f"`{name}` must return a number, got shape {jnp.shape(loss)}. Take a mean or a sum.")
    return loss


def _check_selection(name: str, where: Callable[[Variables], Any], variables: Variables) -> None:
    try:
        eqx.tree_at(where, variables, replace_fn=lambda part: part)
    except Exception as error:
        raise ValueError(
            f"`{name}` must select parts of the variables as they are, such as `lambda v: v.objective.l1`, without "
            f"computing anything: {error}"
        ) from error
