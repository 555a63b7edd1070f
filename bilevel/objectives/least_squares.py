"""Objectives that are linear least squares in their unknown."""

import abc

import equinox as eqx
from jaxtyping import Array, Float, PyTree

from bilevel.objectives.base import AbstractObjective


class LeastSquares(eqx.Module):
    """f(P) = ½ ‖A P − B‖²_F + ½ Σⱼ κⱼ ‖Pⱼ‖²  for P of one row for each coordinate, one column for each target."""

    design: Float[Array, "equations coordinates"]
    target: Float[Array, "equations *targets"]
    ridge: Float[Array, " coordinates"]


class AbstractLeastSquares(AbstractObjective):
    """An objective that may be linear least squares, its unknown one leaf P with the coordinates on the last axis."""

    @abc.abstractmethod
    def least_squares(self, data: PyTree) -> LeastSquares | None:
        """A, B and κ for P the transposed unknown, or None where this instance is not of that form."""
