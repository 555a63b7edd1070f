"""Second derivatives against central differences of the first, in every mixture of modes."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import bilevel as bl
from tests.compiling import compiled
from tests.laws import arguments_of, cotangent_of, error
from tests.problems import CLAMP, CODES, LOGISTIC, MODELS, PENALIZED, RIDGES, ROBUST_CODES, Problem, by_name

TIGHT = jnp.asarray(1e-13)
NEAR = bl.solvers.ProximalGradient(tol=TIGHT)
IMPLICIT = bl.Implicit()
CASES = [
    (RIDGES[1], None, IMPLICIT),
    (CODES, None, IMPLICIT),
    (ROBUST_CODES, NEAR, IMPLICIT),
    (CLAMP, None, IMPLICIT),
    (LOGISTIC, bl.solvers.BFGS(tol=TIGHT), IMPLICIT),
    *((problem, NEAR, IMPLICIT) for problem in PENALIZED if problem.name in ("GroupL1", "Box", "Simplex")),
    *((problem, NEAR, IMPLICIT) for problem in MODELS),
]
KRYLOV = {"CG": lx.CG, "GMRES": lx.GMRES, "BiCGStab": lx.BiCGStab, "normal CG": lambda **tol: lx.Normal(lx.CG(**tol))}
CASES += [(RIDGES[0], None, bl.Implicit(make(rtol=1e-13, atol=1e-13))) for make in KRYLOV.values()]
NAMES = [*(problem.name for problem, *_ in CASES[: -len(KRYLOV)]), *KRYLOV]
each = pytest.mark.parametrize(("problem", "solver", "diff"), CASES, ids=NAMES)


def directional(moving, still, direction, cotangent, solver, diff=IMPLICIT):
    """d/dt ½⟨c, y*²⟩ along `direction`, by reverse mode: curved in y*, so that both orders of its motion count."""

    def value(moving):
        objective, data = eqx.combine(moving, still)
        params = eqx.filter(
            bl.argmin(objective, data, solver=solver, diff=diff, throw=False).params, eqx.is_inexact_array
        )
        squares = jax.tree.map(lambda c, p: jnp.sum(c * (p + 0.5 * p**2)), cotangent, params)
        return sum(jax.tree.leaves(squares))

    products = jax.tree.map(lambda g, d: jnp.sum(g * d), jax.grad(value)(moving), direction)
    return sum(jax.tree.leaves(products))


@compiled
def first_and_second(moving, still, directions, cotangent, solver, diff=IMPLICIT):
    first = lambda m: directional(m, still, directions[0], cotangent, solver, diff)
    return jax.jvp(first, (moving,), (directions[1],))


@compiled
def reverse_over_reverse(moving, still, directions, cotangent, solver):
    return jax.grad(lambda m: directional(m, still, directions[0], cotangent, solver))(moving)


@compiled
def forward_over_forward(moving, still, directions, solver):
    def solve(moving):
        objective, data = eqx.combine(moving, still)
        params = bl.argmin(objective, data, solver=solver, throw=False).params
        return eqx.filter(params, eqx.is_inexact_array)

    first = lambda m: jax.jvp(solve, (m,), (directions[0],))[1]
    return jax.jvp(first, (moving,), (directions[1],))


def inputs_of(problem: Problem, seed: int = 5):
    moving, still, first, _ = arguments_of(problem)
    rng = np.random.default_rng(seed)
    second = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * (0.5 + abs(x))), moving)
    return moving, still, (first, second), cotangent_of(problem)


def moved(moving, direction, step: float):
    return jax.tree.map(lambda m, d: m + step * d, moving, direction)


@each
def test_forward_over_reverse_is_a_difference_of_gradients(problem: Problem, solver, diff):
    moving, still, directions, cotangent = inputs_of(problem)
    at = lambda moving: first_and_second(moving, still, directions, cotangent, solver, diff)
    _, second = at(moving)
    first = lambda step: at(moved(moving, directions[1], step))[0]
    differences = [(first(step) - first(-step)) / (2 * step) for step in (1e-4, 3e-5, 1e-5)]
    assert abs(second) > 1e-3
    assert error(second, *differences) <= 1e-5


@pytest.mark.parametrize("problem", [RIDGES[1], CODES], ids=by_name)
def test_other_mixtures_agree(problem: Problem):
    moving, still, directions, cotangent = inputs_of(problem)
    _, second = first_and_second(moving, still, directions, cotangent, None)
    pulled = reverse_over_reverse(moving, still, directions, cotangent, None)
    assert error(sum(map(jnp.vdot, *map(jax.tree.leaves, (pulled, directions[1])))), second) <= 1e-8
    # With y' and y'' along the two directions, the same number is ⟨c, y'₁ y'₂ + (1 + y) y''⟩.
    first, bent = forward_over_forward(moving, still, directions, None)
    other, _ = forward_over_forward(moving, still, directions[::-1], None)
    params = bl.argmin(*eqx.combine(moving, still)).params
    terms = jax.tree.map(lambda c, p, a, b, s: jnp.vdot(c, a * b + (1 + p) * s), cotangent, params, first, other, bent)
    assert error(sum(jax.tree.leaves(terms)), second) <= 1e-8


def test_symmetric():
    moving, still, directions, cotangent = inputs_of(ROBUST_CODES)
    _, one = first_and_second(moving, still, directions, cotangent, NEAR, IMPLICIT)
    _, other = first_and_second(moving, still, directions[::-1], cotangent, NEAR, IMPLICIT)
    assert error(one, other) <= 1e-8
