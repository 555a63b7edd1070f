"""Least squares whose rows are bounded, by Newton's method on the multipliers of the bounds."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Scalar, ScalarLike

from bilevel.core import Solution
from bilevel.objectives import AbstractObjective, Quadratic
from bilevel.prox import UnitBall
from bilevel.solvers.base import AbstractSolver, check_options, refuse
from bilevel.solvers.descent import descend
from bilevel.solvers.loop import Unroll, default_tol, iterate, verdict

#: Gradient steps where Newton's method does not arrive, and the factor by which they lower the optimality.
STEPS, REDUCTION = 300, 0.01


# With a multiplier μᵢ ≥ 0 for each ‖yᵢ‖² ≤ 1, and M = diag(μ), the minimum over Y is at
#
#     Y(μ) = (A + M)⁻¹ C,     ∂yᵢ/∂μⱼ = −Bᵢⱼ yⱼ,     B = (A + M)⁻¹,
#
# and μ is right where ‖yᵢ‖ = 1 or, with μᵢ = 0, ‖yᵢ‖ ≤ 1. As in trust-region methods 1/‖yᵢ‖ is nearly linear in μᵢ
# where ‖yᵢ‖² is not, so the equation of a row that is bounded is  1 − 1/‖yᵢ‖ = 0:
#
#     Σⱼ Bᵢⱼ ⟨yᵢ, yⱼ⟩ ‖yᵢ‖⁻³ δⱼ = 1 − 1/‖yᵢ‖      or      (B ∘ Y Yᵀ) δ = ‖y‖³ − ‖y‖²,                             (1)
#
# over the rows with μᵢ > 0 or ‖yᵢ‖ > 1; B ∘ Y Yᵀ ⪰ 0, as both factors are (Schur). A few steps, each of n³ products
# for n rows, whatever the condition number of A, on which the number of gradient steps depends.
class LagrangeDual(AbstractSolver):
    """Minimizes `Quadratic(C, left=A, nonsmooth=UnitBall())`, that is  ½⟨Y, A Y⟩ − ⟨C, Y⟩  over rows ‖yᵢ‖₂ ≤ 1.

    Newton's method on the multipliers of the bounds, each step one linear system in them; where no bound is active it
    is the solution of A Y = C. Where that does not arrive (A singular to rounding), gradient steps follow from the
    better of its outcome and the start. It is how dictionaries are fitted to given codes. A row of A that is zero, an
    atom that nothing uses, stays as it is.

    **Attributes:**

    - `tol`: the bound on the relative optimality error; None is 1e-5 in 32 bits, 1e-8 in 64.
    - `max_steps`: the most steps of Newton's method.

    !!! cite
        H. Lee, A. Battle, R. Raina, A. Ng: Efficient sparse coding algorithms. 2006.
        J. Moré, D. Sorensen: Computing a trust region step. 1983.
    """

    tol: ScalarLike | None = None
    max_steps: int = 30

    def __check_init__(self):
        check_options(self)

    def check(self, objective: AbstractObjective) -> None:
        if not serves(objective):
            raise refuse(
                self, objective, "it is not Quadratic with a left factor and rows in UnitBall()", "BlockAlternation()"
            )

    def run(
        self, objective: AbstractObjective, data: PyTree, init: PyTree, *, unroll: Unroll | None = None
    ) -> Solution:
        assert isinstance(objective, Quadratic) and objective.left is not None
        tol = jnp.asarray(default_tol(init) if self.tol is None else self.tol).astype(init.dtype)
        units = objective.units(init, data)
        error_of = lambda rows: objective.optimality_error(rows, data, units)
        follow = lambda rows: descend(objective, data, rows, STEPS, REDUCTION, unroll)
        if unroll is not None:
            # A choice of rows in every step, through which no derivative should go.
            rows, steps = follow(init)
            return verdict(rows, error_of(rows), tol, steps, STEPS)
        found, steps = _newton(objective.left, objective.linear, init, tol, self.max_steps)
        # Negated, so that NaN is worse.
        better = jnp.where(~(objective.change(init, found) <= 0), init, found)
        error = error_of(better)

        def by_steps(rows: Array) -> tuple[Array, Array, Scalar]:
            rows, more = follow(rows)
            return rows, steps + more, error_of(rows)

        rows, steps, error = jax.lax.cond(error <= tol, lambda rows: (rows, steps, error), by_steps, better)
        return verdict(rows, error, tol, steps, None)


def serves(objective: AbstractObjective) -> bool:
    """Whether the objective is of the one kind that `LagrangeDual` minimizes."""
    if not isinstance(objective, Quadratic) or objective.left is None or objective.right is not None:
        return False
    return isinstance(objective.nonsmooth, UnitBall) and objective.nonsmooth.axis == -1


class _State(NamedTuple):
    multipliers: Float[Array, " rows"]
    rows: Float[Array, "rows columns"]
    change: Scalar


def _newton(
    A: Float[Array, "rows rows"],
    C: Float[Array, "rows columns"],
    start: Float[Array, "rows columns"],
    tol: Scalar,
    max_steps: int,
) -> tuple[Float[Array, "rows columns"], Array]:
    idle = jnp.diagonal(A) == 0
    eps = jnp.finfo(A.dtype).eps
    # What keeps A regular: as much as rounding does to it anyway.
    floor = jnp.where(idle, 1, eps * jnp.trace(A))
    identity = jnp.eye(len(A), dtype=A.dtype)

    def step(state: _State) -> _State:
        factor = jax.scipy.linalg.cho_factor(A + jnp.diag(state.multipliers + floor), lower=True)
        rows: Array = jax.scipy.linalg.cho_solve(factor, C)
        norms = jnp.linalg.norm(rows, axis=1)
        bounded = (state.multipliers > 0) | (norms > 1)

        def move() -> Array:
            inverse: Array = jax.scipy.linalg.cho_solve(factor, identity)
            pair = bounded[:, None] & bounded[None, :]
            system = jnp.where(pair, inverse * (rows @ rows.T), identity)
            right: Array = jnp.where(bounded, norms**3 - norms**2, 0)  # pyright: ignore[reportAssignmentType]
            return jax.scipy.linalg.solve(system, right, assume_a="pos")

        # How far from the sphere a row ends is its error, up to a factor near 1. Negated, so that NaN ends it.
        enough = ~(jnp.max(jnp.where(bounded, jnp.abs(norms - 1), 0)) > 0.5 * tol)
        moved = jax.lax.cond(enough, lambda: jnp.zeros_like(norms), move)
        multipliers = jnp.maximum(state.multipliers + moved, 0)
        change = jnp.abs(multipliers - state.multipliers) / (jnp.diagonal(A) + floor + multipliers)
        return _State(multipliers, rows, jnp.max(change))

    done = lambda state: ~(state.change > 30 * eps)
    state = _State(jnp.zeros_like(C[:, 0]), start, jnp.asarray(jnp.inf, C.dtype))
    end, steps = iterate(step, done, state, max_steps, None)
    return UnitBall().project(jnp.where(idle[:, None], start, end.rows)), steps
