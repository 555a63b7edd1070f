"""Linear systems A x = b, each solved in units in which its solver's constants make sense."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
import optax
from jaxtyping import Array, PyTree, Scalar

from bilevel.core import tree
from bilevel.core.operators import AbstractSymmetricOperator, power_iteration
from bilevel.core.policy import Policy, enforce
from bilevel.core.requirements import check_whole

UNSOLVED = (
    "The linear system of a derivative was not solved. Likely causes: a Hessian that is singular on the support "
    "(duplicated atoms or collinear features without an l2 penalty, more coordinates in use than equations), or a "
    "linear solver that ran out of steps. Try l2 > 0, `Implicit(ridge=1e-8)`, another `linear_solver`, or 64 bits; "
    "`on_failure='nan'` or 'warn' goes on."
)


class Neumann(lx.AbstractLinearSolver):
    """A⁻¹ b ≈ s Σᵢ (I − s A)ⁱ b over i = 0 … num_terms − 1, with s just below 1 / ‖A‖: crude, cheap, never a failure.

    For A with eigenvalues in [m, M] the relative error is (1 − m/M)^num_terms. ‖A‖ is estimated by power iteration.

    !!! cite
        J. Lorraine, P. Vicol, D. Duvenaud: Optimizing millions of hyperparameters by implicit differentiation. 2020.
    """

    num_terms: int = 10

    def __check_init__(self):
        check_whole("num_terms", self.num_terms)

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> lx.AbstractLinearOperator:
        del options
        return operator

    def compute(
        self, state: lx.AbstractLinearOperator, vector: PyTree, options: dict[str, Any]
    ) -> tuple[PyTree, lx.RESULTS, dict[str, Any]]:
        del options
        # From below, so a little more of it.
        norm = 1.1 * power_iteration(state.mv, tree.pseudorandom_like(vector))
        stepsize = 1 / jnp.where(norm > 0, norm, 1)

        def step(_: int, answer: PyTree) -> PyTree:
            residual = optax.tree.sub(vector, state.mv(answer))
            return optax.tree.add_scale(answer, stepsize.astype(tree.dtype(vector)), residual)

        answer = jax.lax.fori_loop(0, self.num_terms, step, jax.tree.map(jnp.zeros_like, vector))
        return answer, lx.RESULTS.successful, {}

    def transpose(
        self, state: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> tuple[lx.AbstractLinearOperator, dict[str, Any]]:
        return state.transpose(), options

    def conj(
        self, state: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> tuple[lx.AbstractLinearOperator, dict[str, Any]]:
        return state, options

    def assume_full_rank(self) -> bool:
        return True


class LinearOptions(NamedTuple):
    """How a system is solved: by a Lineax solver or, for None, by the operator's own means.

    `ridge`: what is added to the diagonal, or None. `on_failure`: what an unsolved system gives.
    """

    solver: lx.AbstractLinearSolver | None = None
    ridge: Scalar | None = None
    on_failure: Policy = "nan"


def solve(
    operator: lx.AbstractLinearOperator,
    vector: PyTree,
    options: LinearOptions = LinearOptions(),
    *,
    init: PyTree = None,
) -> PyTree:
    """A⁻¹ vector, differentiable in both modes and any number of times.

    By default with the operator's own solve where it has one, conjugate gradient where it is positive definite, else
    GMRES. `init` is where an iterative solver starts.
    """
    if options.ridge is not None:
        operator = damped(operator, options.ridge)
    symmetric, positive = lx.is_symmetric(operator), lx.is_positive_semidefinite(operator)
    tags = lx.positive_semidefinite_tag if positive else lx.symmetric_tag if symmetric else ()

    def by(apply: Callable[[PyTree], PyTree], vector: PyTree) -> PyTree:
        if isinstance(operator, AbstractSymmetricOperator):
            if options.solver is None:
                answer = operator.solve(vector)
            else:
                start = jax.tree.map(jnp.zeros_like, vector) if init is None else init
                of_block = lambda block, b, start: _by_lineax(block, b, options.solver, start)
                answer = operator.blockwise(of_block, vector, start)
        else:
            function = lx.FunctionLinearOperator(apply, operator.in_structure(), tags=tags)
            answer = _by_lineax(function, vector, options.solver, init)
        return checked(answer, vector, options.on_failure)

    # JAX transposes the system only if every leaf of the right side is a linear function of what moves, also one that
    # does not move at all: that of a block of the unknown that a hyperparameter does not touch.
    vector = jax.tree.map(lambda x: x + tree.nothing(vector).astype(x.dtype), vector)
    # Not `lineax.linear_solve`: in reverse mode it raises where the answer is not finite, even with `throw=False`, so
    # that one sample without a derivative would take all others with it.
    return jax.lax.custom_linear_solve(operator.mv, vector, by, by, symmetric=symmetric)


def checked(answer: PyTree, vector: PyTree, on_failure: Policy) -> PyTree:
    """A⁻¹ vector, with what `on_failure` says done where that is NaN, which marks a system that was not solved."""
    # In structured solves NaN marks the very block that failed, and spares the others.
    if on_failure == "nan":
        return answer
    # What was no number before is not the system's fault.
    failed = ~tree.all_finite(answer) & tree.all_finite(vector)
    return enforce(on_failure, failed, answer, UNSOLVED)


def is_regular(operator: lx.AbstractLinearOperator, vector: PyTree) -> Array:
    """Whether A is invertible, as far as a `vector` at random can tell: False where it is singular to rounding.

    Conjugate gradient and GMRES find one of the solutions of a singular system that has some, and cannot tell that
    there are others. A z has the solution z and, where A is singular, others: what they find differs from z by a vector
    that A takes to 0.
    """
    image = operator.mv(vector)
    eps, size = float(jnp.finfo(tree.dtype(vector)).eps), sum(leaf.size for leaf in jax.tree.leaves(vector))
    found = _by_lineax(operator, image, _krylov(operator, vector, tol=eps))
    lost = optax.tree.sub(found, vector)
    missed = tree.norm(lost) > 0.1 / size**0.5 * tree.norm(vector)
    floor = 10 * size**0.5 * eps * tree.norm(image)
    to_zero = tree.norm(operator.mv(lost)) * tree.norm(vector) <= floor * tree.norm(lost)
    # A system that was not solved tells nothing: then `lost` is no number.
    return ~(missed & to_zero)


def damped(operator: lx.AbstractLinearOperator, ridge: Scalar) -> lx.AbstractLinearOperator:
    """A + ridge I."""
    if isinstance(operator, AbstractSymmetricOperator):
        return operator.damped(ridge)
    tags = lx.positive_semidefinite_tag if lx.is_positive_semidefinite(operator) else ()
    apply = lambda vector: optax.tree.add_scale(operator.mv(vector), ridge.astype(tree.dtype(vector)), vector)
    return lx.FunctionLinearOperator(apply, operator.in_structure(), tags=tags)


def _by_lineax(
    operator: lx.AbstractLinearOperator,
    vector: PyTree,
    solver: lx.AbstractLinearSolver | None,
    init: PyTree = None,
) -> PyTree:
    """A⁻¹ b by a Lineax solver, in units in which Lineax's absolute constants make sense; NaN where it failed.

    Those are: tolerances entry by entry, which without an absolute one are 0 / 0 at a zero of b; a residual below ε,
    a breakdown; a curvature below 100 n ε, a singular operator. So b is scaled to norm 1, and A to about 1 / ε (to
    about 1 for the normal equations, where it enters twice).
    """
    norm = tree.norm(vector)
    eps = float(jnp.finfo(norm.dtype).eps)
    if solver is None:
        # A hundred roundings above the floor that the precision sets for a residual.
        solver = _krylov(operator, vector, tol=100 * eps)
    unit = tree.scale(1 / jnp.where(norm > 0, norm, 1), vector)
    bend = tree.norm(operator.mv(unit))
    scale = 1 / jnp.where(bend > 0, bend, 1)
    if not isinstance(solver, lx.Normal):
        scale = scale / eps
    tags = lx.positive_semidefinite_tag if lx.is_positive_semidefinite(operator) else ()
    scaled = lx.FunctionLinearOperator(lambda v: tree.scale(scale, operator.mv(v)), operator.in_structure(), tags=tags)
    start = {} if init is None else {"y0": tree.scale(1 / jnp.where(norm > 0, norm * scale, 1), init)}
    state: Any = solver.init(scaled, {})
    answer, result, _ = solver.compute(state, unit, start)
    # Some solvers call themselves stagnant where rounding keeps them from the tolerance: what counts is where they are.
    residual = tree.norm(optax.tree.sub(scaled.mv(answer), unit))
    # And some run for as many steps as they were told to, wherever that leads.
    converges = isinstance(solver, Neumann) | (residual <= 0.5)
    good = ((result == lx.RESULTS.successful) & converges) | (residual <= eps**0.5)
    return tree.scale(jnp.where(good, norm * scale, jnp.nan), answer)


def _krylov(operator: lx.AbstractLinearOperator, vector: PyTree, tol: float) -> lx.AbstractLinearSolver:
    size = sum(leaf.size for leaf in jax.tree.leaves(vector))
    options: dict[str, Any] = dict(rtol=tol, atol=tol, max_steps=10 * size + 100)
    if lx.is_positive_semidefinite(operator):
        # The residual by recurrence goes below every tolerance. Computed anew every few steps, as Lineax does by
        # default, it stalls above this one for condition numbers over 1e4, and the search directions diverge.
        return lx.CG(**options, stabilise_every=None)
    return lx.GMRES(**options, restart=min(size, 100), stagnation_iters=3)
