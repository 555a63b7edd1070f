"""Drive a solver of JAXopt's in the library's own loop, and judge its answer by the objective's own optimality.

JAXopt's constants (a first step of 1, line searches that give up below 1e-6) suppose an objective of curvature about
1, so it is handed (f + g) / L.
"""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree, Scalar, ScalarLike

from bilevel.core import Solution
from bilevel.objectives import AbstractObjective, Units
from bilevel.prox import AbstractPenalty
from bilevel.solvers.base import AbstractSolver, check_options
from bilevel.solvers.loop import default_tol, iterate, verdict


class Problem(NamedTuple):
    """(f + g) / scale as JAXopt wants it.

    `bounded`: whether `scale` is known to bound the curvature of f, so that a step of 1 is safe. `unroll`: whether
    JAXopt's inner loops must be open to reverse mode.
    """

    objective: AbstractObjective
    data: PyTree
    scale: Scalar
    penalty: AbstractPenalty | None
    bounded: bool
    unroll: bool

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
        return dict(maxiter=max_steps, tol=0.0, implicit_diff=False, jit=True, unroll=self.unroll)


class Method(NamedTuple):
    """One of JAXopt's solvers, the arguments it wants beside the unknown, and the form in which it wants this.

    `searches`: whether its steps come from a line search on values of the objective.
    """

    solver: Any
    arguments: tuple = ()
    searches: bool = False
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

    def run(self, objective: AbstractObjective, data: PyTree, init: PyTree, *, unroll: bool = False) -> Solution:
        units = objective.units(init, data)
        bounded = objective.lipschitz(data) is not None
        problem = Problem(objective, data, self.scale(units.lipschitz), objective.penalty(), bounded, unroll)
        tol = jnp.asarray(default_tol(init) if self.tol is None else self.tol).astype(units.lipschitz.dtype)
        method = self.build(problem)
        if not method.searches or unroll:
            params, num_steps = self._drive(method, problem, units, init, tol, self.max_steps)
        else:
            # A line search compares values of f, which agree to rounding within √ε of a solution. From there on the
            # curvature hardly changes, and a fixed step does better.
            rough = jnp.maximum(tol, 30 * jnp.finfo(tol.dtype).eps ** 0.5)
            params, num_steps = self._drive(method, problem, units, init, rough, self.max_steps)
            problem = problem.near(params)
            left = self.max_steps - num_steps
            params, more = self._drive(self.build(problem), problem, units, params, tol, left)
            num_steps = num_steps + more
        error = objective.optimality_error(params, data, units)
        return verdict(params, error, tol, num_steps, self.max_steps)

    def _drive(
        self, method: Method, problem: Problem, units: Units, init: PyTree, tol: Scalar, max_steps: int | Array
    ) -> tuple[PyTree, Array]:
        """Step until the objective's own optimality is met; returns the params and the number of steps."""
        start = optax.tree.norm(units.gradient)

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
            room = 10 * tol * (start + units.lipschitz * optax.tree.norm(params)) / problem.scale
            met = lambda: problem.objective.optimality_error(params, problem.data, units) <= tol
            near = state.error.astype(room.dtype) <= room
            return jnp.isnan(state.error) | jax.lax.cond(near, met, lambda: jnp.asarray(False))

        unknown = method.encode(init)
        carry = (unknown, method.solver.init_state(unknown, *method.arguments))
        # The first state may be of other dtypes than the later ones. Weak types stay, or 32 bits would become 64.
        types = jax.eval_shape(step, carry)
        cast = lambda x, t: x if jnp.asarray(x).dtype == t.dtype else jnp.asarray(x).astype(t.dtype)
        carry = jax.tree.map(cast, carry, types)
        (unknown, _), num_steps = iterate(step, done, carry, max_steps, problem.unroll)
        return method.decode(unknown), num_steps
