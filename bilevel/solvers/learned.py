"""A solver whose steps are learned."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree, Scalar, ScalarLike

from bilevel.core import Solution, tree
from bilevel.objectives import AbstractObjective
from bilevel.prox import AbstractConstraint
from bilevel.solvers.base import AbstractSolver, check_options, refuse
from bilevel.solvers.loop import Unroll, default_tol, iterate, verdict


class AbstractRule(eqx.Module):
    """An update  y ← y + Δ(∇f(y), memory),  whose array leaves can be learned.

    To add one: `__call__`, and `init` where it has a memory.
    """

    def init(self, params: PyTree) -> PyTree:
        """The memory at the start: a pytree of arrays, whose shapes and dtypes stay."""
        del params
        return None

    @abc.abstractmethod
    def __call__(self, gradient: PyTree, memory: PyTree) -> tuple[PyTree, PyTree]:
        """(Δ, the next memory); Δ is like `gradient`, which is like `params`."""


class Rates(AbstractRule):
    """Δ = −rates · ∇f:  gradient descent with one rate for all coordinates, for each block of them, or for each.

    **Arguments:**

    - `rates`: a number or array, or a tree prefix of `params` of such, in the objective's own units.
    """

    rates: PyTree[Array]

    def __init__(self, rates: PyTree):
        self.rates = tree.float_arrays(rates)

    def __call__(self, gradient: PyTree, memory: None) -> tuple[PyTree, None]:
        rates = tree.broadcast("rates", self.rates, gradient)
        return jax.tree.map(lambda rate, slope: -rate * slope, rates, gradient), memory


class Coordinatewise(AbstractRule):
    """Δⱼ = −network([gⱼ, mⱼ])  for every coordinate j, with g = ∇f(y) and its average m ← β m + (1 − β) g.

    One small network for all coordinates, so that it applies to unknowns of any size. It sees gradients as they are:
    give it objectives of one kind.

    **Arguments:**

    - `network`: a function of an array of shape `(2,)` to a number, such as
      `eqx.nn.MLP(2, "scalar", width_size=8, depth=1, key=key)`.
    - `decay`: β.

    !!! cite
        M. Andrychowicz et al.: Learning to learn by gradient descent by gradient descent. 2016.
    """

    network: Callable[[Float[Array, "2"]], Scalar]
    decay: ScalarLike = 0.9

    def __check_init__(self):
        if not callable(self.network):
            raise ValueError(f"`network` must be a function of an array of shape (2,), got {self.network!r}.")

    def init(self, params: PyTree) -> PyTree:
        return jax.tree.map(jnp.zeros_like, params)

    def __call__(self, gradient: PyTree, memory: PyTree) -> tuple[PyTree, PyTree]:
        decay = jnp.asarray(self.decay).astype(tree.dtype(gradient))
        memory = jax.tree.map(lambda m, g: decay * m + (1 - decay) * g, memory, gradient)

        def of_leaf(g: Array, m: Array) -> Array:
            seen = jnp.stack([g.ravel(), m.ravel()], axis=1)
            return -jax.vmap(self.network)(seen).reshape(g.shape).astype(g.dtype)

        return jax.tree.map(of_leaf, gradient, memory), memory


class LearnedRule(AbstractSolver):
    """y ← project(y + Δ(∇f(y), memory)),  with an update rule Δ that can be learned, for f or f over a constraint.

    The outer level learns the leaves of `rule` through `Unrolled`, over objectives like those that it is for:

    ```python
    def loss(rule, data):
        solver = bl.solvers.LearnedRule(rule, max_steps=20)
        solution = bl.argmin(objective, data, solver=solver, diff=bl.Unrolled(), throw=False)
        return objective(solution.params, data)

    slopes = eqx.filter_grad(loss)(rule, data)
    ```

    It stops where it meets `tol`, and says that it failed where it does not within `max_steps`.

    !!! cite
        M. Andrychowicz et al.: Learning to learn by gradient descent by gradient descent. 2016.
    """

    rule: AbstractRule
    max_steps: int = 100
    tol: ScalarLike | None = None

    def __check_init__(self):
        check_options(self)
        if not isinstance(self.rule, AbstractRule):
            raise ValueError(
                f"`rule` must be an AbstractRule, got {type(self.rule).__name__}. Try Rates(0.1), or a class of your "
                "own with `__call__(gradient, memory)`."
            )

    def check(self, objective: AbstractObjective) -> None:
        penalty = objective.penalty()
        if not (penalty is None or isinstance(penalty, AbstractConstraint)):
            raise refuse(self, objective, "a rule has no step size for the prox of its penalty", "ProximalGradient()")

    def run(
        self, objective: AbstractObjective, data: PyTree, init: PyTree, *, unroll: Unroll | None = None
    ) -> Solution:
        units, penalty = objective.units(init, data), objective.penalty()
        tol = jnp.asarray(default_tol(init) if self.tol is None else self.tol).astype(units.lipschitz.dtype)

        def step(state: tuple[PyTree, PyTree, Scalar]) -> tuple[PyTree, PyTree, Scalar]:
            params, memory, _ = state
            update, memory = self.rule(objective.gradient(params, data), memory)
            params = optax.tree.add(params, update)
            params = penalty.project(params) if isinstance(penalty, AbstractConstraint) else params
            return params, memory, objective.optimality_error(params, data, units)

        done = lambda state: (state[2] <= tol) | jnp.isnan(state[2])
        start = (init, self.rule.init(init), objective.optimality_error(init, data, units))
        state: Any
        state, num_steps = iterate(step, done, start, self.max_steps, unroll)
        return verdict(state[0], state[2], tol, num_steps, self.max_steps)
