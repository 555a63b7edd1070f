"""Unknowns with leaves that are not arrays of numbers: Equinox modules with function leaves, integers, strings."""

from collections.abc import Callable

import equinox as eqx
import jax
from jaxtyping import PyTree, Scalar

from bilevel.objectives.base import AbstractObjective
from bilevel.prox import AbstractPenalty


class Partitioned(AbstractObjective):
    """`objective` as a function of the inexact arrays of its unknown alone; the `rest` is put back where it is used."""

    objective: AbstractObjective
    rest: PyTree

    def smooth(self, params: PyTree, data: PyTree) -> Scalar:
        return self.objective.smooth(eqx.combine(params, self.rest), data)

    def init(self, data: PyTree) -> PyTree:
        return eqx.filter(self.objective.init(data), eqx.is_inexact_array)

    def penalty(self) -> AbstractPenalty | None:
        return self.objective.penalty()


def partition(
    objective: AbstractObjective, params: PyTree
) -> tuple[AbstractObjective, PyTree, Callable[[PyTree], PyTree]]:
    """The objective and its unknown in arrays only, and the function that makes the unknown whole again."""
    if all(eqx.is_inexact_array(leaf) for leaf in jax.tree.leaves(params)):
        return objective, params, lambda params: params
    arrays, rest = eqx.partition(params, eqx.is_inexact_array)
    return Partitioned(objective, rest), arrays, lambda params: eqx.combine(params, rest)
