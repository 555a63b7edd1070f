"""Which linear solver, how damped, and what comes of a system that has no solution."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import bilevel as bl
from tests.compiling import compiled
from tests.laws import error, outcome
from tests.problems import CODES, ELASTIC_NET, PENALIZED, RIDGES, Problem, raveled
from tests.solvers.members import TOL, halves_once

S = bl.solvers
SOLVERS = {
    "default": None,
    "CG": lx.CG(rtol=1e-12, atol=1e-12),
    "GMRES": lx.GMRES(rtol=1e-12, atol=1e-12),
    "BiCGStab": lx.BiCGStab(rtol=1e-12, atol=1e-12),
    "normal CG": lx.Normal(lx.CG(rtol=1e-12, atol=1e-12)),
    "Cholesky": lx.Cholesky(),
}
PENALIZED_BY_NAME = {problem.name: problem for problem in PENALIZED}
SCALED = [
    *((problem, name) for problem in (CODES, PENALIZED[0]) for name in SOLVERS),
    *((ELASTIC_NET, name) for name in SOLVERS if name not in ("default", "Cholesky")),
    # Not symmetric.
    *((PENALIZED_BY_NAME["GroupL1"], name) for name in ("GMRES", "BiCGStab")),
    *((PENALIZED_BY_NAME["UnitBall"], name) for name in ("BiCGStab", "GMRES")),
]


@pytest.mark.parametrize(
    ("problem", "name"),
    halves_once(SCALED, lambda problem, name: {problem.name, name}),
    ids=[f"{problem.name}, {name}" for problem, name in SCALED],
)
def test_every_solver_is_right_whatever_the_scale_of_the_objective(problem: Problem, name: str):
    assert problem.powers is not None
    solver, diff = S.ProximalGradient(tol=TOL), bl.Implicit(linear_solver=SOLVERS[name])
    known = outcome(problem, solver).pushed
    for a in (1e-3, 0.1, 1.0, 10.0, 1e3):
        scaled = lambda arrays, a=a: [a**p * np.asarray(x) for x, p in zip(arrays, problem.powers, strict=True)]
        directions = [sum(parts) for parts in zip(*map(problem.direction_of, range(len(problem.leaves))), strict=True)]
        found = outcome(problem, solver, diff, leaves=scaled(problem.leaves), directions=scaled(directions))
        assert error(found.pushed, known) <= 1e-8, a


@pytest.mark.parametrize("name", ["GMRES", "BiCGStab"])
def test_curved_penalties(name: str):
    problem, solver = PENALIZED[2], S.ProximalGradient(tol=TOL)
    known = outcome(problem, solver)
    found = outcome(problem, solver, bl.Implicit(linear_solver=SOLVERS[name]))
    assert error(found.pushed, known.pushed) <= 1e-8
    assert error(raveled(found.pulled), raveled(known.pulled)) <= 1e-8


# --- Many samples -----------------------------------------------------------------------------------------------------

ATOMS, FEATURES, SAMPLES = 24, 12, 1000


def codes_problem() -> tuple:
    rng = np.random.default_rng(0)
    D = rng.normal(size=(ATOMS, FEATURES))
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    X = rng.normal(size=(SAMPLES, FEATURES))
    cotangent = rng.normal(size=(SAMPLES, ATOMS)) * np.logspace(-3, 3, SAMPLES)[:, None]
    return D, X, cotangent


def gradient_in_samples(D: np.ndarray, l1: float, l2: float, codes: np.ndarray, cotangent: np.ndarray) -> np.ndarray:
    """Row by row, in NumPy:  dx = D_Sᵀ (D_S D_Sᵀ + l2 I)⁻¹ v_S."""
    rows = []
    for c, v in zip(codes, cotangent, strict=True):
        S = np.flatnonzero(c)
        rows.append(D[S].T @ np.linalg.solve(D[S] @ D[S].T + l2 * np.eye(len(S)), v[S]))
    return np.array(rows)


@pytest.mark.parametrize(("name", "dtype"), [("default", "float64"), ("default", "float32"), ("CG", "float64")])
def test_the_worst_of_many_samples_whose_cotangents_span_six_orders(name: str, dtype: str):
    D, X, cotangent = codes_problem()
    diff = bl.Implicit(linear_solver=SOLVERS[name])

    @compiled
    def pulled(D, X, cotangent):
        def value(X):
            codes = bl.argmin(bl.objectives.SparseCoding(D, 0.3, 0.1), X, diff=diff, throw=False).params
            return jnp.sum(cotangent * codes), codes

        return jax.grad(value, has_aux=True)(X)

    found, codes = pulled(*(jnp.asarray(x, dtype) for x in (D, X, cotangent)))
    expected = gradient_in_samples(D, 0.3, 0.1, np.asarray(codes), cotangent)
    worst = np.max(np.linalg.norm(np.asarray(found) - expected, axis=1) / np.linalg.norm(expected, axis=1))
    assert worst <= (1e-8 if dtype == "float64" else 1e-3)


# --- Damping and truncation -------------------------------------------------------------------------------------------

X, y = map(np.asarray, RIDGES[0].data)
HESSIAN = X.T @ X / len(X) + 0.3 * np.eye(6)
WEIGHT = np.linalg.solve(HESSIAN, X.T @ y / len(X))
LARGEST = np.linalg.eigvalsh(HESSIAN)[-1]


def slope_in_alpha(diff: bl.AbstractDifferentiation) -> np.ndarray:
    solve = lambda alpha: bl.argmin(bl.objectives.Ridge(alpha), RIDGES[0].data, diff=diff).params.weight
    return np.asarray(compiled(lambda a: jax.jvp(solve, (a,), (jnp.ones_like(a),))[1])(jnp.asarray(0.3)))


@pytest.mark.parametrize("linear_solver", [None, lx.CG(rtol=1e-12, atol=1e-12)], ids=["direct", "CG"])
def test_ridge_is_added_in_units_of_the_largest_curvature(linear_solver):
    # dw/dα = −(H + ridge L I)⁻¹ w.
    damped = slope_in_alpha(bl.Implicit(linear_solver, ridge=0.1))
    np.testing.assert_allclose(damped, -np.linalg.solve(HESSIAN + 0.1 * LARGEST * np.eye(6), WEIGHT), rtol=1e-9)


@pytest.mark.parametrize("num_terms", [1, 3, 200])
def test_neumann_is_the_series(num_terms: int):
    found = slope_in_alpha(bl.Implicit(bl.Neumann(num_terms)))
    # Its step is 1 / (1.1 ‖A‖), with ‖A‖ from below.
    stepsize = np.linalg.norm(found) / np.linalg.norm(WEIGHT) if num_terms == 1 else 1 / (1.1 * LARGEST)
    assert 1 / (1.1 * LARGEST) * (1 - 1e-9) <= stepsize <= 1 / LARGEST
    series = -stepsize * sum(
        np.linalg.matrix_power(np.eye(6) - stepsize * HESSIAN, i) @ WEIGHT for i in range(num_terms)
    )
    np.testing.assert_allclose(found, series, rtol=1e-2 if num_terms == 3 else 1e-6)


def test_a_ridge_makes_a_singular_system_solvable():
    twice = jnp.concatenate([CODES.objective.dictionary, CODES.objective.dictionary[:1]])
    coding = bl.objectives.SparseCoding(twice, 0.3, 0.0)
    slope = lambda diff: outcome_of_codes(coding, diff)
    assert np.any(np.isnan(slope(bl.Implicit(on_failure="nan"))))
    assert np.all(np.isfinite(slope(bl.Implicit(ridge=1e-6, on_failure="nan"))))


# --- Policies ---------------------------------------------------------------------------------------------------------


def outcome_of_codes(coding, diff, throw=False):
    solver = S.ProximalGradient(tol=1e-11, max_steps=50_000)

    @compiled
    def slope(coding, X):
        total = lambda coding: jnp.sum(bl.argmin(coding, X, solver=solver, diff=diff, throw=throw).params)
        return eqx.filter_grad(total)(coding).dictionary

    return np.asarray(slope(coding, CODES.data))


SINGULAR = bl.objectives.SparseCoding(
    jnp.concatenate([CODES.objective.dictionary, CODES.objective.dictionary[:1]]), 0.3, 0.0
)


def test_a_singular_hessian_raises_where_errors_are_wanted():
    for diff in (bl.Implicit(), bl.Implicit(on_failure="raise")):
        with pytest.raises(eqx.EquinoxRuntimeError, match=r"linear system of a derivative was not solved(.|\n)*l2 > 0"):
            outcome_of_codes(SINGULAR, diff, throw=True)
    with pytest.raises(eqx.EquinoxRuntimeError, match="not solved"):
        outcome_of_codes(SINGULAR, bl.Implicit(on_failure="raise"))


def test_a_singular_hessian_is_nan_or_a_warning_where_they_are_not():
    assert np.any(np.isnan(outcome_of_codes(SINGULAR, bl.Implicit())))
    with pytest.warns(RuntimeWarning, match="linear system of a derivative was not solved"):
        warned = outcome_of_codes(SINGULAR, bl.Implicit(on_failure="warn"))
        jax.effects_barrier()
    assert np.any(np.isnan(warned))


def test_a_failed_solution_with_a_warning_gives_the_formula():
    few = S.ProximalGradient(max_steps=3)
    with pytest.warns(RuntimeWarning, match=r"missed its tolerance(.|\n)*Try a larger `max_steps`"):
        warned = outcome(CODES, few, bl.Implicit(on_failure="warn"))
        jax.effects_barrier()
    ignored = outcome(CODES, few, bl.Implicit(on_failure="ignore"))
    np.testing.assert_array_equal(warned.pushed, ignored.pushed)
    assert np.all(np.isfinite(warned.pushed))
    for diff in (bl.Implicit(), bl.Implicit(on_failure="nan")):
        assert np.all(np.isnan(outcome(CODES, few, diff).pushed))
