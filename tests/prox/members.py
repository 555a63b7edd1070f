"""The penalties and constraints that every law is tried on, each with NumPy witnesses, and the points to try them at.

A member is added by one line in `MEMBERS`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.prox import (
    L1,
    AbstractPenalty,
    Box,
    ElasticNet,
    GroupL1,
    NonNegative,
    ShiftedL1,
    Simplex,
    UnitBall,
    UnitSphere,
)

# Powers of two, so that ties such as |x| = stepsize · strength can be met exactly.
STEPSIZE = 0.5
STRENGTH = 0.5
TIE = STEPSIZE * STRENGTH
SHAPE = (3, 4)
_rng = np.random.default_rng(0)
# Per column: one free of the penalty; bounds on both sides, on one, on none.
WEIGHTS = np.array([0.5, 0.0, 0.25, 1.0])
SHIFT = _rng.integers(-2, 3, SHAPE) / 4
LOWER, UPPER = np.array([-0.5, 0.0, -np.inf, -0.25]), np.array([0.5, np.inf, np.inf, 0.25])

# Small, middle and large, so that some coordinates, rows and arrays rest and others move.
GENERIC = _rng.normal(size=(1, *SHAPE)) * np.array([0.2, 1.0, 4.0]).reshape(3, 1, 1)


def _rows(*row: float) -> np.ndarray:
    return np.tile(np.array(row), (3, 1))


KINKS = {
    "zero": np.zeros(SHAPE),
    "zero row": np.array([[0, 0, 0, 0], [0.7, -0.3, 0.2, 1.1], [2, 1, 0, -1]]),
    "ties of L1": TIE * np.array([[1, -1, 1, -1], [1, 0, 2, -2], [-1, -0.5, 3, 4]]),
    "ties of shifted L1": SHIFT + TIE * np.array([[1, -1, 0, 1], [0, 0, 1, 1], [2, -2, 1, 0]]),
    "ties of row norms": TIE * np.array([[1, 0, 0, 0], [0.6, 0.8, 0, 0], [0, 0, -0.8, 0.6]]),
    "ties of column norms": TIE * np.array([[0.6, 0, 1, 0], [0.8, 1, 0, 0], [0, 0, 0, -1]]),
    "tie of the norm": TIE * np.array([[0.6, 0, 0, 0], [0.8, 0, 0, 0], [0, 0, 0, 0]]),
    "unit rows": np.array([[1, 0, 0, 0], [0.6, 0.8, 0, 0], [0, 0, -0.8, 0.6]]),
    "unit columns": np.array([[0.6, 0, 1, 0], [0.8, 1, 0, 0], [0, 0, 0, -1]]),
    "unit norm": np.array([[0.6, 0, 0, 0], [0.8, 0, 0, 0], [0, 0, 0, 0]]),
    "on the simplex": _rows(0.5, 0.5, 0, 0),
    "at the threshold of the simplex": _rows(2, 1, 1, 0),
    "all maximal": np.ones(SHAPE),
    "duplicated maxima": _rows(3, 3, -1, 0),
    "on the bounds": np.array([[-0.5, 0.0, 5.0, 0.25], [0.5, 0.0, -5.0, 0.25], [0.5, 1.0, 0.0, 1.0]]),
    "on the scalar bounds": np.array([[0.0, 1.0, 0.5, 2.0], [1.0, 1.0, 0.0, 0.0], [-1.0, 0.0, 1.0, 0.5]]),
}
# All in one stack, so that each function is compiled once for each member.
POINTS = np.concatenate([GENERIC, np.stack(list(KINKS.values()))])
NAMES = ["small", "middle", "large", *KINKS]
DIRECTIONS = _rng.normal(size=POINTS.shape)


class Member(NamedTuple):
    """`solution` and `derivative` are (x, direction) -> array in NumPy, kinks included."""

    name: str
    penalty: AbstractPenalty
    solution: Callable[[np.ndarray], np.ndarray]
    derivative: Callable[[np.ndarray, np.ndarray], np.ndarray]
    convex: bool = True


def along(axis: int | None, function: Callable[..., np.ndarray], *arrays: np.ndarray) -> np.ndarray:
    """`function` of the vectors along `axis` of the arrays, or of the arrays as single vectors."""
    if axis is None:
        return function(*(a.reshape(-1) for a in arrays)).reshape(arrays[0].shape)
    rows = zip(*(np.moveaxis(a, axis, -1).reshape(-1, a.shape[axis]) for a in arrays), strict=True)
    moved = np.moveaxis(arrays[0], axis, -1).shape
    return np.moveaxis(np.stack([function(*row) for row in rows]).reshape(moved), -1, axis)


def simplex_by_bisection(x: np.ndarray, total: float) -> np.ndarray:
    """max(x − τ, 0) with the τ at which it sums to `total`; x is shifted, lest `total` be lost to rounding."""
    x = x - x.max()
    low, high = -total, 0.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(x - middle, 0).sum() > total else (low, middle)
    return np.maximum(x - high, 0)


def soft(x: np.ndarray, threshold: np.ndarray | float) -> np.ndarray:
    return np.sign(x) * np.maximum(np.abs(x) - threshold, 0)


def _free(x: np.ndarray, threshold: np.ndarray | float) -> np.ndarray:
    return (np.abs(x) > threshold) | (threshold == 0)


def _tangent(x: np.ndarray, d: np.ndarray) -> np.ndarray:
    unit = x / np.linalg.norm(x)
    return d - unit * (unit @ d)


def _sparse(name: str, penalty: AbstractPenalty, l1: np.ndarray | float, l2: float = 0.0, shift=0.0) -> Member:
    threshold, shrink = STEPSIZE * l1, 1 + STEPSIZE * l2
    return Member(
        name,
        penalty,
        lambda x: shift + soft(x - shift, threshold) / shrink,
        lambda x, d: np.where(_free(x - shift, threshold), d, 0) / shrink,
    )


def _group(axis: int | None) -> Member:
    def solution(x: np.ndarray) -> np.ndarray:
        norm = np.linalg.norm(x)
        return x * max(1 - TIE / norm, 0) if norm > 0 else x

    def derivative(x: np.ndarray, d: np.ndarray) -> np.ndarray:
        norm = np.linalg.norm(x)
        return d - TIE / norm * _tangent(x, d) if norm > TIE else np.zeros_like(d)

    penalty = GroupL1(STRENGTH, axis)
    return Member(f"GroupL1 {axis}", penalty, *(lambda *a, f=f: along(axis, f, *a) for f in (solution, derivative)))


def _box(name: str, penalty: AbstractPenalty, lower: np.ndarray | float, upper: np.ndarray | float) -> Member:
    inside = lambda x, d: np.where((x > lower) & (x < upper), d, 0)
    return Member(name, penalty, lambda x: np.clip(x, lower, upper), inside)


def _simplex(axis: int | None, total: float) -> Member:
    def derivative(x: np.ndarray, d: np.ndarray) -> np.ndarray:
        # The tolerance is that of the bisection.
        free = simplex_by_bisection(x, total) > 1e-12
        return np.where(free, d - d[free].mean(), 0)

    solution = lambda x: along(axis, lambda row: simplex_by_bisection(row, total), x)
    return Member(f"Simplex {axis}", Simplex(total, axis), solution, lambda x, d: along(axis, derivative, x, d))


def _ball(axis: int | None) -> Member:
    def derivative(x: np.ndarray, d: np.ndarray) -> np.ndarray:
        return _tangent(x, d) / np.linalg.norm(x) if np.linalg.norm(x) >= 1 else d

    solution = lambda x: along(axis, lambda row: row / max(np.linalg.norm(row), 1), x)
    return Member(f"UnitBall {axis}", UnitBall(axis), solution, lambda x, d: along(axis, derivative, x, d))


def _sphere(axis: int | None) -> Member:
    def solution(x: np.ndarray) -> np.ndarray:
        return x / np.linalg.norm(x) if x.any() else np.eye(x.size)[0]

    def derivative(x: np.ndarray, d: np.ndarray) -> np.ndarray:
        return _tangent(x, d) / np.linalg.norm(x) if x.any() else np.zeros_like(d)

    both = (lambda *a, f=f: along(axis, f, *a) for f in (solution, derivative))
    return Member(f"UnitSphere {axis}", UnitSphere(axis), *both, convex=False)


AXES = (-1, 0, None)
MEMBERS = [
    _sparse("L1", L1(STRENGTH), STRENGTH),
    _sparse("L1 weighted", L1(WEIGHTS), WEIGHTS),
    _sparse("ShiftedL1", ShiftedL1(SHIFT, STRENGTH), STRENGTH, shift=SHIFT),
    _sparse("ElasticNet", ElasticNet(STRENGTH, 2.0), STRENGTH, l2=2.0),
    *(_group(axis) for axis in AXES),
    _box("Box", Box(), 0.0, 1.0),
    _box("Box per column", Box(LOWER, UPPER), LOWER, UPPER),
    _box("NonNegative", NonNegative(), 0.0, np.inf),
    *(_simplex(axis, total) for axis, total in zip(AXES, (1.0, 0.5, 2.0), strict=True)),
    *(_ball(axis) for axis in AXES),
    *(_sphere(axis) for axis in AXES),
]


def tangent_of(penalty: AbstractPenalty) -> AbstractPenalty:
    """A direction in the penalty's own numbers; 0 where a bound is infinite."""
    leaves, structure = jax.tree.flatten(penalty)
    rng = np.random.default_rng(1)
    directions = [jnp.where(jnp.isfinite(x), rng.uniform(0.5, 1, x.shape), 0).astype(x.dtype) for x in leaves]
    return jax.tree.unflatten(structure, directions)
