"""The one verb."""

from typing import Any

import equinox as eqx
import jax
from jaxtyping import PyTree

from bilevel.core import RESULTS, InnerSolveError, Solution, tree
from bilevel.core.requirements import Requirement, all_hold, finite, guard, is_traced, raise_where_violated
from bilevel.differentiation.base import AbstractDifferentiation
from bilevel.differentiation.implicit import Implicit
from bilevel.objectives import AbstractObjective, FunctionObjective
from bilevel.objectives.base import check_precision
from bilevel.objectives.partitioned import partition
from bilevel.solvers import LBFGS, AbstractSolver, ProximalGradient, specialist


def argmin(
    objective: AbstractObjective,
    data: PyTree = None,
    *,
    solver: AbstractSolver | None = None,
    init: PyTree = None,
    diff: AbstractDifferentiation = Implicit(),
    throw: bool = True,
) -> Solution:
    """argmin over params of  objective(params, data),  as a function that can be differentiated.

    For objectives that are not convex it is a stationary point, which depends on `init`; `bilevel.hypergradient` says
    where that is no minimum.

    Works under `jit`, `vmap`, `grad`, `jvp`, nested in any order. Derivatives flow with respect to every inexact leaf
    of `objective` and of `data`; to `init` and to the solver's own leaves only where `diff` says so.

    **Arguments:**

    - `objective`: what to minimize; its array leaves are the hyperparameters.
    - `data`: what is given, a pytree of arrays, samples first.
    - `solver`: how to solve. None: the objective's formula where it has one; `SparseCoder` for sparse codes with
      squared error; else `ProximalGradient` where there is a penalty, else `LBFGS`.
    - `init`: where to start, of the structure of `objective.init(data)`, which is the default.
    - `diff`: how the solution depends on `objective` and `data`.
    - `throw`: whether a solve that fails its tolerance raises. With False, `result` carries the failure, and `diff`
      decides what derivatives are worth (NaN by default).

    **Returns:** a `Solution`, with `params`, `result` and `stats`.

    **Raises:** `ValueError` for input that does not fit, which names the argument (for values known only under `jit`,
    an `equinox.EquinoxRuntimeError` when it runs); `InnerSolveError` for a solve that failed (under `jit`, likewise).
    """
    _check_types(objective, solver, diff)
    data = tree.to_arrays(data)
    objective.check_data(data)
    init = objective.init(data) if init is None else _check_init(objective, data, tree.to_arrays(init))
    for leaf in jax.tree.leaves(eqx.filter(init, eqx.is_inexact_array)):
        check_precision("init", leaf)
    if not any(map(eqx.is_inexact_array, jax.tree.leaves(init))):
        raise ValueError(f"`init` has no floating arrays to optimize, got {init!r}. Start from `jnp.zeros(3)`, say.")
    solver = default_solver(objective) if solver is None else solver
    solver.check(objective)
    objective = objective.hoist(init, data)
    requirements = [*objective.requirements(), *_finite_arrays("data", data), *_finite_arrays("init", init)]
    requirements += objective.data_requirements(data)
    raise_where_violated(requirements)
    # A traced value that is out of its range is an error of the run; or a result, where the caller wants no errors.
    traced = [r for r in requirements if is_traced(r.holds)]
    run = _apply if solver.on_host() else _apply_jit
    solution = run(
        diff.with_policy("raise" if throw else "nan", only_default=True),
        tree.to_arrays(solver),
        objective,
        data,
        init,
        all_hold(traced) if traced else None,
    )
    return _raise_on_failure(solution, traced) if throw else solution


def default_solver(objective: AbstractObjective) -> AbstractSolver:
    """The best solver there is for this objective."""
    general = LBFGS() if objective.penalty() is None else ProximalGradient()
    return specialist(objective) or general


def _apply(
    diff: AbstractDifferentiation,
    solver: AbstractSolver,
    objective: AbstractObjective,
    data: PyTree,
    init: PyTree,
    valid: Any,
) -> Solution:
    if valid is not None:
        objective, data = tree.nan_derivatives_unless(valid, (objective, data))
    objective, start, restore = partition(objective, init)
    solution = diff.apply(solver, objective, data, start)
    params, result = solution.params, solution.result
    if valid is not None:
        params = tree.nan_unless(valid, params)
        result = RESULTS.where(valid, result, RESULTS.invalid_input)
    return Solution(restore(params), result, solution.stats)


_apply_jit = eqx.filter_jit(_apply)


def _raise_on_failure(solution: Solution, requirements: list[Requirement]) -> Solution:
    result, stats = solution.result, solution.stats
    if not result.is_traced():
        if result != RESULTS.successful:
            error, tol, steps = float(stats["optimality"]), float(stats["tol"]), int(stats["num_steps"])
            raise InnerSolveError(
                f"{RESULTS[result]}\nAfter {steps} steps the relative optimality error is {error:.2e}; the tolerance "
                f"is {tol:.2e}. With `throw=False` the solution comes back all the same, and `result` says this."
            )
        return solution
    failed = result != RESULTS.successful
    arrays, static = eqx.partition(solution.params, eqx.is_array)
    # First those that name the argument.
    arrays = result.error_if(guard(arrays, requirements), failed)
    return eqx.tree_at(lambda s: s.params, solution, eqx.combine(arrays, static))


def _check_types(objective: Any, solver: Any, diff: Any) -> None:
    wanted = (
        ("objective", objective, AbstractObjective, "bilevel.objectives.FunctionObjective(function) makes one"),
        ("solver", solver, AbstractSolver | None, "an instance such as bilevel.solvers.LBFGS()"),
        ("diff", diff, AbstractDifferentiation, "an instance such as bilevel.Implicit()"),
    )
    for name, value, kind, advice in wanted:
        if not isinstance(value, kind):
            came = f"the class {value.__name__}" if isinstance(value, type) else repr(type(value).__name__)
            raise ValueError(f"`{name}` does not fit: got {came}; wanted {advice}.")


def _check_init(objective: AbstractObjective, data: PyTree, init: PyTree) -> PyTree:
    if isinstance(objective, FunctionObjective) and objective.start is None:
        return init
    wanted = jax.eval_shape(lambda: eqx.filter(objective.init(data), eqx.is_array))
    given = eqx.filter(init, eqx.is_array)
    describe = lambda t: jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", t)
    if jax.tree.structure(wanted) != jax.tree.structure(given) or describe(wanted) != describe(given):
        raise ValueError(f"`init` must be like {describe(wanted)}, got {describe(given)}.")
    return init


def _finite_arrays(name: str, values: PyTree) -> list[Requirement]:
    leaves = jax.tree_util.tree_leaves_with_path(values)
    named = [(f"{name}{jax.tree_util.keystr(path)}", leaf) for path, leaf in leaves]
    return [finite(name, leaf) for name, leaf in named if eqx.is_inexact_array(leaf)]
