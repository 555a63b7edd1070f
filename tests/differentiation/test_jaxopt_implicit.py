"""`JaxoptImplicit` is what a user of JAXopt alone gets, where that is right and where it is wrong."""

import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from tests.compiling import compiled
from tests.laws import arguments_of, error, outcome
from tests.problems import CODES, ELASTIC_NET, LOGISTIC, PENALIZED, RIDGES, Problem, logistic_loss, raveled

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "JAXopt is no longer maintained", DeprecationWarning)
    import jaxopt

S = bl.solvers


@compiled
def reverse(solver: Any, diff: Any, moving: Any, still: Any, cotangent: Any) -> tuple[bl.Solution, Any]:
    """`laws.solve_and_differentiate` without forward mode."""

    def solve(moving: Any) -> tuple[Any, bl.Solution]:
        objective, data = eqx.combine(moving, still)
        solution = bl.argmin(objective, data, solver=solver, diff=diff, throw=False)
        return eqx.filter(solution.params, eqx.is_inexact_array), solution

    _, pull, solution = jax.vjp(solve, moving, has_aux=True)
    return solution, pull(cotangent)[0]


def natively(problem: Problem, solver: S.AbstractSolver, leaves: list | None = None) -> tuple[bl.Solution, Any]:
    moving, still, _, cotangent = arguments_of(problem, leaves)
    return reverse(solver, bl.JaxoptImplicit(), moving, still, cotangent)


CASES = {
    "GradientDescent": (RIDGES[0], S.GradientDescent, 1e-5),
    # Its system is that of all atoms, to a tolerance of 1e-5.
    "ProximalGradient": (CODES, S.ProximalGradient, 1e-3),
    "ProjectedGradient": (PENALIZED[3], S.ProjectedGradient, 1e-5),
    "LBFGS": (LOGISTIC, S.LBFGS, 1e-5),
    "BFGS": (LOGISTIC, S.BFGS, 1e-5),
    "NonlinearCG": (LOGISTIC, S.NonlinearCG, 1e-5),
}


@pytest.mark.parametrize(("problem", "make", "bound"), CASES.values(), ids=CASES)
def test_nears_the_implicit_derivative(problem: Problem, make: Any, bound: float):
    solution, pulled = natively(problem, make())
    known = outcome(problem)
    assert solution.result == bl.RESULTS.successful
    assert error(raveled(solution.params), known.params) <= 1e-6
    for leaf, expected in zip(*map(jax.tree.leaves, (pulled, known.pulled)), strict=True):
        assert error(np.ravel(leaf), expected) <= bound


def test_is_jaxopt_itself():
    X, y = LOGISTIC.data
    cotangent = jnp.linspace(1.0, 2.0, X.shape[1])

    @compiled
    def theirs(rho: jax.Array) -> jax.Array:
        fun = lambda w, rho: logistic_loss({"scale": jnp.asarray(1.0), "rho": rho}, w, (X, y))
        solver = jaxopt.LBFGS(fun, maxiter=3, tol=1e-9)
        return jax.grad(lambda rho: jnp.vdot(cotangent, solver.run(jnp.zeros(X.shape[1]), rho).params))(rho)

    @compiled
    def ours(rho: jax.Array) -> jax.Array:
        def total(rho: jax.Array) -> jax.Array:
            start = jnp.zeros(X.shape[1])
            objective = bl.objectives.FunctionObjective(logistic_loss, {"scale": 1.0, "rho": rho}, start=start)
            solver = S.LBFGS(max_steps=3, tol=1e-9)
            solution = bl.argmin(objective, (X, y), solver=solver, diff=bl.JaxoptImplicit(), throw=False)
            return jnp.vdot(cotangent, solution.params)

        return jax.grad(total)(rho)

    # Stopped after three steps, where no two derivatives agree by convergence.
    np.testing.assert_allclose(ours(jnp.asarray(0.5)), theirs(jnp.asarray(0.5)), rtol=1e-10)


@pytest.mark.parametrize("a", [1e-2, 1e2])
def test_a_multiple_of_the_objective_has_another_derivative_by_it_and_the_same_by_ours(a: float):
    # The wrong number is the point: it is what `Implicit` is compared with.
    assert CODES.powers is not None
    scaled = [x * a**power for x, power in zip(CODES.leaves, CODES.powers, strict=True)]
    solver = S.ProximalGradient(tol=1e-10 * min(a, 1) ** 2, max_steps=20_000)
    solution, pulled = natively(CODES, solver, scaled)
    known = outcome(CODES)
    ours = outcome(CODES, leaves=scaled)
    assert error(raveled(solution.params), known.params) <= 1e-8
    # A slope in θ a^power is that in θ over a^power.
    slope = lambda pulled: np.ravel(jax.tree.leaves(pulled)[0]) * a
    assert error(slope(ours.pulled), jax.tree.leaves(known.pulled)[0]) <= 1e-8
    assert error(slope(pulled), jax.tree.leaves(known.pulled)[0]) >= 0.1


def test_integers_in_the_data_and_a_traced_tolerance():
    def total(alpha: jax.Array, tol: jax.Array, labels: jax.Array) -> jax.Array:
        function = lambda alpha, w, labels: jnp.sum((w - labels.astype(float)) ** 2) + alpha * jnp.sum(w**2)
        objective = bl.objectives.FunctionObjective(function, alpha, start=jnp.zeros(3))
        solver = S.GradientDescent(tol=tol, stepsize=0.2)
        return jnp.sum(bl.argmin(objective, labels, solver=solver, diff=bl.JaxoptImplicit()).params)

    # w = labels / (1 + alpha).
    value = compiled(jax.grad(total))(jnp.asarray(0.5), jnp.asarray(1e-9), jnp.arange(3))
    np.testing.assert_allclose(value, -3 / 1.5**2, rtol=1e-6)


@pytest.mark.parametrize(
    ("problem", "solver"),
    [(ELASTIC_NET, S.ProximalGradient(max_steps=3, tol=1e-12)), (RIDGES[0], S.LBFGS(max_steps=2, tol=1e-12))],
    ids=["ProximalGradient", "LBFGS"],
)
def test_a_solve_that_stopped_early_gives_what_was_asked_for(problem: Problem, solver: S.AbstractSolver):
    # JAXopt's linear solver makes 0 of a right side that is NaN.
    def pulled(policy: str) -> np.ndarray:
        total = lambda both: jnp.sum(
            bl.argmin(*both, solver=solver, diff=bl.JaxoptImplicit(on_failure=policy), throw=False).params.weight
        )
        return raveled(compiled(eqx.filter_grad(total))((problem.objective, problem.data)))

    assert np.all(np.isfinite(pulled("ignore")))
    assert np.all(np.isnan(pulled("nan")))
    with pytest.raises(eqx.EquinoxRuntimeError, match="used up `max_steps`"):
        pulled("raise")


def test_forward_mode_raises():
    slope = lambda alpha: jnp.sum(
        bl.argmin(bl.objectives.Ridge(alpha), RIDGES[0].data, solver=S.BFGS(), diff=bl.JaxoptImplicit()).params.weight
    )
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(slope, (jnp.asarray(0.3),), (jnp.asarray(1.0),))


@pytest.mark.parametrize("solver", [S.SparseCoder(), S.AndersonAcceleration(), None], ids=lambda s: type(s).__name__)
def test_refuses_other_solvers(solver: S.AbstractSolver | None):
    name = "SparseCoder" if solver is None else type(solver).__name__
    with pytest.raises(ValueError, match=rf"JaxoptImplicit doesn't work with {name}\. Try one of ProximalGradient\(\)"):
        bl.argmin(CODES.objective, CODES.data, solver=solver, diff=bl.JaxoptImplicit())
