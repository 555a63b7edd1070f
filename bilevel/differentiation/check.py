"""Finite differences of a hypergradient: of the algorithm as it runs, and of the solution it is after."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from bilevel.core import tree
from bilevel.differentiation.argmin import argmin
from bilevel.differentiation.base import AbstractDifferentiation
from bilevel.differentiation.certificate import OuterLoss, check_outer_loss, newton_step, value_and_aux
from bilevel.differentiation.implicit import Implicit
from bilevel.objectives import AbstractObjective
from bilevel.objectives.partitioned import partition
from bilevel.solvers import AbstractSolver

#: Steps of the differences, as fractions of the size of a leaf.
STEPS = tuple(10.0**-k for k in np.arange(1.0, 9.01, 0.5))


class Plateau(NamedTuple):
    """The value of a difference quotient where it changes least from one step to the next, and by how much."""

    value: float
    error: float
    step: float


class LeafCheck(NamedTuple):
    """One leaf, along a random direction: the derivative, and the difference quotients of algorithm and solution.

    `negligible`: what counts as zero, a millionth of the loss or of the largest derivative.
    """

    name: str
    derivative: float
    algorithm: Plateau
    solution: Plateau
    rtol: float
    negligible: float

    @property
    def agrees_with_algorithm(self) -> bool:
        """Whether the derivative is that of the algorithm as it runs."""
        return self._agrees(self.algorithm)

    @property
    def agrees_with_solution(self) -> bool:
        """Whether the derivative is that of the solution."""
        return self._agrees(self.solution)

    def _agrees(self, plateau: Plateau) -> bool:
        room = self.rtol * max(abs(plateau.value), abs(self.derivative)) + 10 * plateau.error
        # Where differences jump (kinks, a solver's stopping rule) there is nothing to agree with.
        settled = plateau.error <= max(0.1 * abs(plateau.value), self.negligible)
        return bool(settled and abs(self.derivative - plateau.value) <= room)


class HypergradientCheck(NamedTuple):
    """The leaves of a hypergradient against finite differences; printable."""

    leaves: list[LeafCheck]

    @property
    def agrees_with_algorithm(self) -> bool:
        """Whether every leaf does."""
        return all(leaf.agrees_with_algorithm for leaf in self.leaves)

    @property
    def agrees_with_solution(self) -> bool:
        """Whether every leaf does."""
        return all(leaf.agrees_with_solution for leaf in self.leaves)

    def __str__(self) -> str:
        header = ("leaf", "derivative", "algorithm", "±", "", "solution", "±", "")
        verdict = lambda agrees: "agrees" if agrees else "OFF"
        rows = [
            (
                leaf.name,
                f"{leaf.derivative:.6e}",
                f"{leaf.algorithm.value:.6e}",
                f"{leaf.algorithm.error:.0e}",
                verdict(leaf.agrees_with_algorithm),
                f"{leaf.solution.value:.6e}",
                f"{leaf.solution.error:.0e}",
                verdict(leaf.agrees_with_solution),
            )
            for leaf in self.leaves
        ]
        widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
        lines = ["  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in (header, *rows)]
        return "\n".join(lines)


def check_hypergradient(
    outer_loss: OuterLoss,
    objective: AbstractObjective,
    data: PyTree = None,
    *,
    solver: AbstractSolver | None = None,
    init: PyTree = None,
    diff: AbstractDifferentiation = Implicit(),
    rtol: float = 1e-4,
    seed: int = 0,
) -> HypergradientCheck:
    """Compare the derivative by `diff` with central differences, in each floating leaf of objective and data.

    Two questions, two answers. **Against the algorithm**: is it the derivative of what the solver computes, as it
    runs, with its tolerance and its number of steps? **Against the solution**: is it that of the solution, found to
    rounding (by Newton steps after a solve)? `Unrolled` answers the first with yes whatever the number of steps,
    `Implicit` the second, and both do both where the solver converges. Where a derivative is off in both, it is wrong.

    In each leaf along one random direction, at steps from 10 % of the leaf's size down to 1e-9 of it: at large ones the
    curvature and kinks show, at small ones rounding and the solver's tolerance. Taken is the quotient on the plateau
    in between, where it changes least, and that change is its error. On the bound of its range (l2 = 0) a leaf moves
    to one side. Use 64 bits.

    **Arguments:** as in `hypergradient`; `rtol`, the relative difference that passes; `seed` of the directions.

    **Returns:** a `HypergradientCheck`; print it.
    """
    check_outer_loss(outer_loss)
    objective, data = tree.to_arrays((objective, data))
    moving, still = eqx.partition((objective, data), eqx.is_inexact_array)
    value_and_derivative, by_algorithm, by_solution = _functions(outer_loss, still, solver, init, diff)
    value, pulled = value_and_derivative(moving)
    directions = _directions(moving, seed)
    slopes = [float(jnp.asarray(optax.tree.vdot(pulled, direction))) for _, direction in directions]
    negligible = 1e-6 * max(abs(float(value)), *map(abs, slopes))
    leaves = []
    for (path, direction), slope in zip(directions, slopes, strict=True):
        of_algorithm, of_solution = (_plateau(np.asarray(f(moving, direction))) for f in (by_algorithm, by_solution))
        leaves.append(LeafCheck(path, slope, of_algorithm, of_solution, rtol, negligible))
    return HypergradientCheck(leaves)


def _functions(
    outer_loss: OuterLoss,
    still: PyTree,
    solver: AbstractSolver | None,
    init: PyTree,
    diff: AbstractDifferentiation,
) -> tuple[Callable, Callable, Callable]:
    """The loss with its derivative; the difference quotients at all `STEPS`, of the algorithm and of the solution."""

    def loss(moving: PyTree, polish: bool = False) -> Array:
        objective, data = eqx.combine(moving, still)
        # Failures of the inner solver are among what is to be seen.
        way = diff.with_policy("ignore")
        params = argmin(objective, data, solver=solver, init=init, diff=way, throw=False).params
        if polish:
            params = _polished(objective, data, params)
        return value_and_aux(outer_loss(objective, params, data))[0]

    def quotients(moving: PyTree, direction: PyTree, polish: bool) -> Array:
        at = lambda step: loss(jax.tree.map(lambda x, d: x + step.astype(x.dtype) * d, moving, direction), polish)
        middle = at(jnp.zeros((), tree.dtype(moving)))

        def difference(step: Array) -> Array:
            above, below = at(step), at(-step)
            # On the bound of its range (l2 = 0, say) a leaf can go to one side only.
            one_sided = jnp.where(jnp.isnan(below), above - middle, middle - below) / step
            two_sided = (above - below) / (2 * step)
            return jnp.where(jnp.isnan(two_sided), one_sided, two_sided)

        return jax.lax.map(difference, jnp.asarray(STEPS, tree.dtype(moving)))

    return (
        eqx.filter_jit(jax.value_and_grad(loss)),
        eqx.filter_jit(lambda moving, direction: quotients(moving, direction, False)),
        eqx.filter_jit(lambda moving, direction: quotients(moving, direction, True)),
    )


def _polished(objective: AbstractObjective, data: PyTree, params: PyTree) -> PyTree:
    """The solution to rounding: solved by the default solver from `params`, then Newton steps while they help."""
    params = argmin(objective, data, init=params, throw=False).params
    # With a start, if it had none.
    objective = objective.hoist(params, data)
    for _ in range(3):
        inner, arrays, restore = partition(objective, params)
        units = inner.units(arrays, data)
        moved = optax.tree.add(arrays, newton_step(objective, data, params))
        better = inner.optimality_error(moved, data, units) < inner.optimality_error(arrays, data, units)
        params = restore(tree.where(better, moved, arrays))
    return params


def _directions(moving: PyTree, seed: int) -> list[tuple[str, PyTree]]:
    """A random direction in each leaf, as large as the leaf, and its name."""
    rng = np.random.default_rng(seed)
    leaves, structure = jax.tree.flatten(moving)
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(moving)]
    directions = []
    for index, (name, leaf) in enumerate(zip(names, leaves, strict=True)):
        size = float(jnp.linalg.norm(leaf)) or 1.0
        step = rng.normal(size=leaf.shape)
        step = jnp.asarray(size * step / np.linalg.norm(step), leaf.dtype)
        along = [step if i == index else jnp.zeros_like(x) for i, x in enumerate(leaves)]
        label = name.replace("[0]", "objective", 1) if name.startswith("[0]") else name.replace("[1]", "data", 1)
        directions.append((label, jax.tree.unflatten(structure, along)))
    return directions


def _plateau(quotients: Float[np.ndarray, " steps"]) -> Plateau:
    """The middle of the three neighbors that differ least."""
    spread = np.maximum(np.abs(np.diff(quotients[:-1])), np.abs(np.diff(quotients[1:])))
    spread = np.where(np.isfinite(spread), spread, np.inf)
    best = int(np.argmin(spread))
    return Plateau(float(quotients[best + 1]), float(spread[best]), STEPS[best + 1])
