"""Drive a solver of JAXopt's in the library's own loop, and judge its answer by the objective's own optimality.

JAXopt's constants (a first step of 1, line searches that give up below 1e-6) suppose an objective of curvature about
1, so it is handed (f + g) / L.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Scalar, ScalarLike

from bilevel.core import Solution, tree
from bilevel.objectives import AbstractObjective, Units
from bilevel.prox import AbstractPenalty
from bilevel.solvers.base import AbstractSolver, check_options
from bilevel.solvers.loop import Unroll, default_tol, iterate, verdict


class Problem(NamedTuple):
    """(f + g) / scale as JAXopt wants it.

    `bounded`: whether `scale` is known to bound the curvature of f, so that a step of 1 is safe. `unroll`: with it,
    JAXopt's inner loops must be open to reverse mode.
    """

    objective: AbstractObjective
    data: PyTree
    scale: Scalar
    penalty: AbstractPenalty | None
    bounded: bool
    unroll: Unroll | None

    def smooth(self, params: PyTree) -> Scalar:
        return self.objective.smooth(params, self.data) / self.scale

    def total(self, params: PyTree) -> Scalar:
        return self.objective(params, self.data) / self.scale

    def prox(self, params: PyTree, hyperparams: None = None, scaling: ScalarLike = 1.0) -> PyTree:
        return params if self.penalty is None else self.penalty.prox(params, scaling / self.scale)

    def step(self, stepsize: ScalarLike | None) -> Callable[[Any], Array] | float:
        """The caller's step; else 1 where that is safe; else 0.0, JAXopt's sign for a line search.

        As a function, because JAXopt compares a number with zero, which a traced one cannot bear.
        """
        if stepsize is not None:
            return lambda _: jnp.asarray(stepsize).astype(self.scale.dtype) * self.scale
        if self.bounded:
            return lambda _: jnp.ones_like(self.scale)
        return 0.0

    def near(self, params: PyTree) -> "Problem":
        """The problem seen from near its solution, where twice the curvature at `params` is a bound."""
        return self._replace(scale=2 * self.objective.local_lipschitz(params, self.data), bounded=True)

    def options(self, max_steps: int) -> dict[str, Any]:
        """What all of JAXopt's solvers take. The loop, its length and its end are ours."""
        return dict(maxiter=max_steps, tol=0.0, implicit_diff=False, jit=True, unroll=self.unroll is not None)


class Method(NamedTuple):
    """One of JAXopt's solvers, the arguments it wants beside the unknown, and the form in which it wants this.

    `searches`: whether its steps come from a line search on values of the objective. `compares`: whether they come
    from quotients of differences between iterates, which at a solution are all rounding.
    """

    solver: Any
    arguments: tuple = ()
    searches: bool = False
    compares: bool = False
    encode: Callable[[PyTree], Any] = lambda params: params
    decode: Callable[[Any], PyTree] = lambda unknown: unknown


class AbstractJaxoptSolver(AbstractSolver):
    """A solver of JAXopt's.

    **Attributes of all:**

    - `tol`: the bound on `AbstractObjective.optimality_error`; None is 1e-5 in 32 bits and 1e-8 in 64.
    - `max_steps`: the most steps to take.
    """

    tol: eqx.AbstractVar[ScalarLike | None]
    max_steps: eqx.AbstractVar[int]

    def __check_init__(self):
        check_options(self)

    @abc.abstractmethod
    def build(self, problem: Problem) -> Method:
        """The JAXopt solver for this problem."""

    def scale(self, lipschitz: Scalar) -> Scalar:
        """What the objective is divided by before JAXopt sees it."""
        return lipschitz

    def run(
        self, objective: AbstractObjective, data: PyTree, init: PyTree, *, unroll: Unroll | None = None
    ) -> Solution:
        return self.run_with_state(objective, data, init, unroll)[0]

    def run_with_state(
        self, objective: AbstractObjective, data: PyTree, init: PyTree, unroll: Unroll | None = None
    ) -> tuple[Solution, Any, Scalar]:
        """`run`, with JAXopt's own last state and the scale of the problem that it saw."""
        units = objective.units(init, data)
        bounded = objective.lipschitz(data) is not None
        problem = Problem(objective, data, self.scale(units.lipschitz), objective.penalty(), bounded, unroll)
        tol = jnp.asarray(default_tol(init) if self.tol is None else self.tol).astype(units.lipschitz.dtype)
        method, from_solution = self.build(problem), unroll is not None and unroll.steps is not None
        if from_solution and method.compares:
            raise ValueError(
                f"{type(self).__name__} has no derivative of a given number of steps: it learns from differences "
                "between iterates, which at a solution are rounding. Try diff=Implicit(), or a solver such as "
                "GradientDescent() or Newton()."
            )
        # A line search compares values of f, which agree to rounding within √ε of a solution. From there on the
        # curvature hardly changes, and a fixed step does better.
        if method.searches and unroll is None:
            rough = jnp.maximum(tol, 30 * jnp.finfo(tol.dtype).eps ** 0.5)
            params, rough_steps, _ = self._drive(problem, units, init, rough, self.max_steps)
            problem = problem.near(params)
            params, more, state = self._drive(problem, units, params, tol, self.max_steps - rough_steps)
            num_steps = rough_steps + more
        else:
            problem = problem.near(init) if method.searches and from_solution else problem
            params, num_steps, state = self._drive(problem, units, init, tol, self.max_steps)
        error = objective.optimality_error(params, data, units)
        return verdict(params, error, tol, num_steps, self.max_steps), state, problem.scale

    def _drive(
        self, problem: Problem, units: Units, init: PyTree, tol: Scalar, max_steps: int | Array
    ) -> tuple[PyTree, Array, Any]:
        """Step until the objective's own optimality is met; returns params, number of steps, and JAXopt's state."""
        method = self.build(problem)
        start = tree.norm(units.gradient)

        def step(carry: tuple[Any, Any]) -> tuple[Any, Any]:
            unknown, state = carry
            # Optax mixes integers with floats, an error under strict promotion.
            with jax.numpy_dtype_promotion("standard"):
                return tuple(method.solver.update(unknown, state, *method.arguments))

        def done(carry: tuple[Any, Any]) -> Array:
            # Each JAXopt solver has an error of its own. Where it comes near the tolerance the objective's own
            # optimality, one more gradient, decides.
            unknown, state = carry
            params = method.decode(unknown)
            room = 10 * tol * (start + units.lipschitz * tree.norm(params)) / problem.scale
            met = lambda: problem.objective.optimality_error(params, problem.data, units) <= tol
            near = state.error.astype(room.dtype) <= room
            return jnp.isnan(state.error) | jax.lax.cond(near, met, lambda: jnp.asarray(False))

        unknown = method.encode(init)
        carry = (unknown, method.solver.init_state(unknown, *method.arguments))
        # The first state may be of other dtypes than the later ones. Weak types stay, or 32 bits would become 64.
        types = jax.eval_shape(step, carry)
        cast = lambda x, t: x if jnp.asarray(x).dtype == t.dtype else jnp.asarray(x).astype(t.dtype)
        carry = jax.tree.map(cast, carry, types)
        (unknown, state), num_steps = iterate(step, done, carry, max_steps, problem.unroll)
        return method.decode(unknown), num_steps, state


def run_with_implicit_diff(
    solver: AbstractJaxoptSolver, objective: AbstractObjective, data: PyTree, init: PyTree, custom_root: Callable
) -> Solution:
    """What JAXopt's `run` does with `implicit_diff=True`, as one who has JAXopt alone would call it.

    The objective as it is, JAXopt's loop, its error against the solver's `tol`, its line search where no step is given,
    its default linear solver. `custom_root` is JAXopt's, which `run` applies to itself; here to a function that takes
    the solver as an argument too, as the rule does not bear traced values that a function closes over.
    """
    arrays, static = eqx.partition((objective, data), eqx.is_array)
    options, fixed = eqx.partition(solver, eqx.is_array)

    def smooth(params: PyTree, arrays: PyTree) -> Scalar:
        objective, data = eqx.combine(arrays, static)
        return objective.smooth(params, data)

    def prox(params: PyTree, arrays: PyTree, scaling: ScalarLike = 1.0) -> PyTree:
        objective, _ = eqx.combine(arrays, static)
        penalty = objective.penalty()
        return params if penalty is None else penalty.prox(params, scaling)

    def build(arrays: PyTree, options: PyTree) -> tuple[Any, tuple]:
        """JAXopt's solver, and what its functions take beside the unknown."""
        solver: AbstractJaxoptSolver = eqx.combine(options, fixed)
        objective, data = eqx.combine(arrays, static)
        tol = default_tol(init) if solver.tol is None else solver.tol
        one = jnp.ones((), tree.dtype(init))
        method = solver.build(Problem(objective, data, one, objective.penalty(), bounded=False, unroll=None))
        fields = {field.name for field in dataclasses.fields(method.solver)}
        own = {name: prox for name in ("prox", "projection") if method.arguments and name in fields}
        native = dataclasses.replace(method.solver, fun=smooth, tol=jnp.asarray(tol).astype(one.dtype), **own)
        # Hyperparameters of prox or projection come first.
        return native, (*(arrays for _ in method.arguments), arrays)

    def run(init: PyTree, arrays: PyTree, options: PyTree) -> Any:
        native, arguments = build(arrays, options)
        return native.run(init, *arguments)

    def optimality(params: PyTree, arrays: PyTree, options: PyTree) -> PyTree:
        native, arguments = build(arrays, options)
        return native.optimality_fun(params, *arguments)

    params, state = custom_root(optimality, has_aux=True)(run)(init, arrays, options)
    tol = default_tol(init) if solver.tol is None else solver.tol
    return verdict(params, jax.lax.stop_gradient(state.error), tol, state.iter_num, solver.max_steps)
