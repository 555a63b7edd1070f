"""What the laws look at: a solve with its derivatives in both modes, compiled once for each solver and problem."""

import collections
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

import bilevel as bl
from tests.compiling import compiled
from tests.problems import Problem, raveled

#: How often each function below was traced.
traces: collections.Counter = collections.Counter()


def solve_and_differentiate(
    solver: bl.solvers.AbstractSolver | None,
    diff: bl.AbstractDifferentiation,
    moving: PyTree,
    still: PyTree,
    directions: PyTree,
    cotangent: PyTree,
) -> tuple[bl.Solution, PyTree, PyTree]:
    """argmin at (objective, data), whose inexact leaves are `moving`; its jvp along `directions`; its vjp."""
    traces["solve_and_differentiate"] += 1

    def solve(moving: PyTree) -> tuple[PyTree, bl.Solution]:
        objective, data = eqx.combine(moving, still)
        solution = bl.argmin(objective, data, solver=solver, diff=diff, throw=False)
        return eqx.filter(solution.params, eqx.is_inexact_array), solution

    _, push, solution = jax.linearize(solve, moving, has_aux=True)
    (pulled,) = jax.linear_transpose(push, moving)(cotangent)
    return solution, push(directions), pulled


at_once = compiled(solve_and_differentiate)


@compiled
def batched(solver: Any, diff: Any, moving: PyTree, still: PyTree, directions: PyTree, cotangent: PyTree) -> Any:
    """`solve_and_differentiate` for stacks of `moving`, `directions` and `cotangent`."""

    def one(moving: PyTree, directions: PyTree, cotangent: PyTree) -> PyTree:
        solution, pushed, pulled = solve_and_differentiate(solver, diff, moving, still, directions, cotangent)
        return eqx.filter(solution.params, eqx.is_inexact_array), pushed, pulled

    return jax.vmap(one)(moving, directions, cotangent)


class Outcome(NamedTuple):
    """A solve, the jvp along one direction, and the vjp of `cotangent_of` the problem."""

    solution: bl.Solution
    pushed: np.ndarray
    pulled: PyTree

    @property
    def params(self) -> np.ndarray:
        return raveled(self.solution.params)


def outcome(
    problem: Problem,
    solver: bl.solvers.AbstractSolver | None = None,
    diff: bl.AbstractDifferentiation = bl.Implicit(),
    *,
    leaves: list[np.ndarray] | None = None,
    directions: list[np.ndarray] | None = None,
    dtype: Any = None,
) -> Outcome:
    """Solve `problem` (at other `leaves`, along `directions`, in another `dtype`); the default is along all leaves."""
    arguments = arguments_of(problem, leaves, directions, dtype)
    solution, pushed, pulled = at_once(solver, diff, *arguments)
    return Outcome(solution, raveled(pushed), pulled)


def arguments_of(
    problem: Problem,
    leaves: list[np.ndarray] | None = None,
    directions: list[np.ndarray] | None = None,
    dtype: Any = None,
) -> tuple[PyTree, PyTree, PyTree, PyTree]:
    """moving, still, directions, cotangent."""
    moving, still = eqx.partition((problem.objective, problem.data), eqx.is_inexact_array)
    structure = jax.tree.structure(moving)
    leaves = problem.leaves if leaves is None else leaves
    directions = along_all(problem) if directions is None else directions
    as_tree = lambda arrays: jax.tree.unflatten(
        structure, [jnp.asarray(x, dtype or v.dtype) for x, v in zip(arrays, problem.leaves, strict=True)]
    )
    return as_tree(leaves), still, as_tree(directions), cotangent_of(problem, dtype)


def along_all(problem: Problem) -> list[np.ndarray]:
    """A direction in all leaves at once."""
    each = [problem.direction_of(index) for index in range(len(problem.leaves))]
    return [sum(parts) for parts in zip(*each, strict=True)]


def cotangent_of(problem: Problem, dtype: Any = None) -> PyTree:
    params = eqx.filter(problem.objective.init(problem.data), eqx.is_inexact_array)
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), dtype or x.dtype), params)


def error(actual: Any, *expected: Any) -> float:
    """‖actual − expected‖ / ‖expected‖, absolute below 1e-2, for the nearest of `expected`."""
    distance = lambda e: np.linalg.norm(np.ravel(actual) - np.ravel(e)) / max(np.linalg.norm(e), 1e-2)
    return float(min(map(distance, expected)))
