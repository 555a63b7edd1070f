"""The clamp study: a nonsmooth problem with a known solution, by every solver, for many strengths at once."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, PyTree, ScalarLike

from bilevel.differentiation import Implicit, argmin
from bilevel.objectives import Clamp
from bilevel.solvers import AbstractSolver, OptaxSolver
from bilevel.studies.serving import Seconds, serving, timed


class Curves(NamedTuple):
    """Along the iterations, from the start on, one row for each μ: ‖z − z₀‖₁, μ‖z − c‖², their sum, and the norm of
    the generalized gradient L (z − T(z)), which is zero exactly at the solution (L = 2μ)."""

    fit: Float[Array, "strengths iterates"]
    regularizer: Float[Array, "strengths iterates"]
    total: Float[Array, "strengths iterates"]
    gradient_norm: Float[Array, "strengths iterates"]


class ClampSolution(NamedTuple):
    """What one solver gives, for each μ: z, the derivatives of zᵢ in μ, in its own z₀ᵢ and in c (others are zero), the
    number of steps, whether the tolerance was met; and the seconds for all of them together, derivatives included."""

    z: Float[Array, "strengths n"]
    d_mu: Float[Array, "strengths n"]
    d_z0: Float[Array, "strengths n"]
    d_c: Float[Array, "strengths n"]
    num_steps: Array
    success: Array
    seconds: Seconds


class ClampStudy(NamedTuple):
    """The data of the study.

    **Attributes:**

    - `z0`, `mu`, `c`: the problem.
    - `solutions`: by the name of the solver, `"exact"` among them, and without Adam, which meets no tolerance.
    - `adam`: the last iterates of Adam, (strengths, n).
    - `curves`: of `"proximal gradient"` with a fixed step for all μ, and of `"Adam"`.
    - `curve_seconds`: of the same two.
    """

    z0: Float[Array, " n"]
    mu: Float[Array, " strengths"]
    c: Array
    solutions: dict[str, ClampSolution]
    adam: Float[Array, "strengths n"]
    curves: dict[str, Curves]
    curve_seconds: dict[str, Seconds]

    @property
    def errors(self) -> dict[str, np.ndarray]:
        """max |z − z*| for each μ, by the name of the solver, Adam included."""
        exact = self.solutions["exact"].z
        found = {name: solution.z for name, solution in self.solutions.items()} | {"Adam": self.adam}
        return {name: np.max(np.abs(np.asarray(z - exact)), axis=1) for name, z in found.items()}

    @property
    def seconds(self) -> Seconds:
        """Of the whole study."""
        parts = [*(solution.seconds for solution in self.solutions.values()), *self.curve_seconds.values()]
        return Seconds(sum(part.first for part in parts), sum(part.again for part in parts))


def clamp_study(
    z0: ArrayLike | None = None,
    mu: ArrayLike | None = None,
    c: ArrayLike = 1.0,
    *,
    learning_rate: float = 1e-3,
    adam_steps: int = 25_000,
    proximal_steps: int = 1000,
    tol: ScalarLike = 1e-10,
) -> ClampStudy:
    """Solve  min over z of ‖z − z₀‖₁ + μ‖z − c‖²  for every μ by every solver that serves, and by Adam as of old.

    All μ are one batch, so that each solver is compiled once.

    **Arguments:**

    - `z0`: 100 numbers evenly spaced in [−10, 10] by default; `mu`: 10 log-spaced in [0.02, 1]; `c`.
    - `learning_rate`, `adam_steps`: of Adam on subgradients, from zero.
    - `proximal_steps`: how many steps of plain proximal gradient the curves show. Their step 1 / (2 max μ) is that
      which the largest μ permits; with a step of its own, 1 / (2μ), every μ is solved at once.
    - `tol`: of the solvers; in 32 bits 1e-6 is what can be met.

    **Returns:** a `ClampStudy`.
    """
    z0 = jnp.linspace(-10.0, 10.0, 100) if z0 is None else jnp.asarray(z0)
    mu = jnp.geomspace(0.02, 1.0, 10, dtype=z0.dtype) if mu is None else jnp.asarray(mu, z0.dtype)
    c, tol = jnp.asarray(c, z0.dtype), jnp.asarray(tol, z0.dtype)
    solvers = serving(Clamp(z0, mu[0], c), tol, optax.adam(learning_rate))
    solvers = {name: s for name, s in solvers.items() if not isinstance(s, OptaxSolver) and not s.on_host()}
    solutions = {}
    for name, solver in solvers.items():
        (z, (d_mu, d_z0, d_c), steps, success), seconds = timed(lambda solver=solver: _solve(solver, z0, mu, c))
        solutions[name] = ClampSolution(z, d_mu, d_z0, d_c, steps, success, seconds)
    rate = jnp.asarray(learning_rate, z0.dtype)
    stepsize = 1 / (2 * jnp.max(mu))
    (_, proximal), proximal_seconds = timed(lambda: _descend(z0, mu, c, stepsize, proximal_steps))
    (adam, subgradient), adam_seconds = timed(lambda: _adam(z0, mu, c, rate, adam_steps))
    curves = {"proximal gradient": proximal, "Adam": subgradient}
    seconds = {"proximal gradient": proximal_seconds, "Adam": adam_seconds}
    return ClampStudy(z0, mu, c, solutions, adam, curves, seconds)


@eqx.filter_jit
def _solve(solver: AbstractSolver, z0: Array, mu: Array, c: Array) -> tuple[Array, tuple[Array, ...], Array, Array]:
    """z for each μ, its derivatives, and what the solver says."""

    def at(mu: Array) -> tuple[Array, tuple[Array, ...], Array, Array]:
        def z(mu: Array, z0: Array, c: Array) -> tuple[Array, Any]:
            solution = argmin(Clamp(z0, mu, c), solver=solver, diff=Implicit(), throw=False)
            return solution.params, (solution.stats["num_steps"], solution.stats["optimality"] <= solution.stats["tol"])

        # Each coordinate depends on its own z₀ alone, so that one direction gives all of its derivatives in z₀.
        point = (mu, z0, c)
        found, push, (steps, success) = jax.linearize(z, *point, has_aux=True)
        directions = [
            tuple((jnp.ones_like if i == j else jnp.zeros_like)(x) for j, x in enumerate(point)) for i in range(3)
        ]
        return found, tuple(push(*direction) for direction in directions), steps, success

    return jax.vmap(at)(mu)


def _along(clamp: Clamp, z: Array) -> tuple[Array, Array, Array, Array]:
    fit, regularizer = clamp.fit(z), clamp.smooth(z)
    gradient = clamp.optimality(z, None, clamp.lipschitz())
    return fit, regularizer, fit + regularizer, jnp.linalg.norm(gradient)


@eqx.filter_jit
def _descend(z0: Array, mu: Array, c: Array, stepsize: Array, num_steps: int) -> tuple[Array, Curves]:
    """Plain proximal gradient with a given step."""

    def at(mu: Array) -> tuple[Array, Curves]:
        clamp = Clamp(z0, mu, c)
        step = lambda z, _: (clamp.prox_gradient(z, None, 1 / stepsize), _along(clamp, z))
        last, curves = jax.lax.scan(step, clamp.init(), length=num_steps + 1)
        return last, Curves(*curves)

    return jax.vmap(at)(mu)


@eqx.filter_jit
def _adam(z0: Array, mu: Array, c: Array, learning_rate: Array, num_steps: int) -> tuple[Array, Curves]:
    """Adam on subgradients, sign(0) = 0."""
    optimizer = optax.adam(learning_rate)

    def at(mu: Array) -> tuple[Array, Curves]:
        clamp = Clamp(z0, mu, c)

        def step(state: PyTree, _: None) -> tuple[PyTree, tuple]:
            z, moments = state
            with jax.numpy_dtype_promotion("standard"):
                update, moments = optimizer.update(jax.grad(clamp)(z), moments)
            return (optax.apply_updates(z, update), moments), _along(clamp, z)

        z = clamp.init()
        (last, _), curves = jax.lax.scan(step, (z, optimizer.init(z)), length=num_steps)
        # The curves end at the last iterate, too.
        whole = [jnp.concatenate([curve, end[None]]) for curve, end in zip(curves, _along(clamp, last), strict=True)]
        return last, Curves(*whole)

    return jax.vmap(at)(mu)
