"""`Unrolled` is the derivative of the algorithm as it ran; `Implicit` that of the solution, which no start changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from tests.compiling import compiled
from tests.laws import error, outcome
from tests.problems import CODES, RIDGES, Problem
from tests.solvers.members import MEMBERS, Member, pair_name

RIDGE = RIDGES[0]
# The quasi-Newton methods unroll too, but compile for ten seconds each: their line searches are loops within.
NAMES = ["ProximalGradient", "AndersonAcceleration", "GradientDescent", "OptaxSolver", "BlockCoordinateDescent"]
CASES = [(member, RIDGE) for member in MEMBERS if member.name in NAMES]
CASES += [(member, CODES) for member in MEMBERS if member.name in ("ProximalGradient", "SparseCoder")]


@pytest.mark.parametrize(("member", "problem"), CASES, ids=pair_name)
def test_is_implicit_at_convergence(member: Member, problem: Problem):
    solved = outcome(problem, member.solver(max_steps=1000), bl.Unrolled())
    assert solved.solution.result == bl.RESULTS.successful, bl.RESULTS[solved.solution.result]
    known = outcome(problem)
    assert error(solved.pushed, known.pushed) <= 1e-6
    for leaf, expected in zip(*map(jax.tree.leaves, (solved.pulled, known.pulled)), strict=True):
        assert error(np.ravel(leaf), expected) <= 1e-6


# A few steps, far from convergence: the derivative of a polynomial in start, step size and data.
FEW = 4


def after_few_steps(
    start: jax.Array, stepsize: jax.Array | None, X: jax.Array, diff: bl.AbstractDifferentiation
) -> jax.Array:
    solver = bl.solvers.GradientDescent(max_steps=FEW, stepsize=stepsize)
    init = bl.objectives.LinearModel(start)
    y = RIDGE.data[1]
    return bl.argmin(RIDGE.objective, (X, y), solver=solver, init=init, diff=diff, throw=False).params.weight


INPUTS = (jnp.linspace(-1.0, 1.0, 6), jnp.asarray(0.1), RIDGE.data[0])
_rng = np.random.default_rng(0)
DIRECTIONS = tuple(jnp.asarray(_rng.normal(size=x.shape)) for x in INPUTS)


@compiled
def run(inputs: tuple) -> jax.Array:
    return after_few_steps(*inputs, bl.Unrolled())


@compiled
def both_modes(inputs: tuple, directions: tuple, cotangent: jax.Array) -> tuple[jax.Array, tuple]:
    solve = lambda *inputs: after_few_steps(*inputs, bl.Unrolled())
    _, pushed = jax.jvp(solve, inputs, directions)
    _, pull = jax.vjp(solve, *inputs)
    return pushed, pull(cotangent)


@pytest.mark.parametrize("index", range(3), ids=["init", "stepsize", "data"])
def test_derivatives_reach_the_start_the_stepsize_and_the_data(index: int):
    directions = tuple(d if i == index else jnp.zeros_like(d) for i, d in enumerate(DIRECTIONS))
    cotangent = jnp.linspace(1.0, 2.0, 6)
    pushed, pulled = both_modes(INPUTS, directions, cotangent)
    at = lambda step: run(tuple(x + step * d for x, d in zip(INPUTS, directions, strict=True)))
    differences = [(at(step) - at(-step)) / (2 * step) for step in (1e-4, 1e-5, 1e-6)]
    assert np.linalg.norm(pushed) > 1e-2
    assert error(pushed, *differences) <= 1e-7
    assert error(jnp.vdot(pulled[index], directions[index]), jnp.vdot(cotangent, pushed)) <= 1e-10


def test_a_step_that_the_objective_gives_is_held_constant():
    start, _, X = INPUTS
    known = 1 / RIDGE.objective.lipschitz((X, RIDGE.data[1]))

    @compiled
    def along(stepsize: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        return jax.jvp(lambda X: after_few_steps(start, stepsize, X, bl.Unrolled()), (X,), DIRECTIONS[2:])

    (at, moves), (at_given, moves_by_given) = along(None), along(known)
    assert error(at, at_given) <= 1e-12 and error(moves, moves_by_given) <= 1e-10
    # What the algorithm returns moves otherwise, as its step does.
    beside = [run((start, None, X + step * DIRECTIONS[2])) for step in (-1e-5, 1e-5)]
    assert error((beside[1] - beside[0]) / 2e-5, moves) > 1e-3


@pytest.mark.parametrize("num_steps", [1, 7, 9])
def test_checkpoints_change_nothing(num_steps: int):
    # One segment, a last segment that is too long, and segments that fit.
    solver = bl.solvers.GradientDescent(max_steps=num_steps)
    plain, checkpointed = (outcome(RIDGE, solver, bl.Unrolled(checkpoint=c)) for c in (False, True))
    assert checkpointed.solution.stats["num_steps"] == num_steps
    np.testing.assert_array_equal(checkpointed.params, plain.params)
    assert error(checkpointed.pushed, plain.pushed) <= 1e-12
    for leaf, expected in zip(*map(jax.tree.leaves, (checkpointed.pulled, plain.pulled)), strict=True):
        assert error(leaf, expected) <= 1e-12


def test_checkpoints_stop_at_the_tolerance():
    solver = bl.solvers.SparseCoder(max_steps=1000)
    plain, checkpointed = (outcome(CODES, solver, bl.Unrolled(checkpoint=c)) for c in (False, True))
    assert checkpointed.solution.result == bl.RESULTS.successful
    assert checkpointed.solution.stats["num_steps"] == plain.solution.stats["num_steps"] < 1000
    assert error(checkpointed.pushed, plain.pushed) <= 1e-12


def test_checkpoints_keep_the_square_root_of_the_steps():
    def total(data: jax.Array, num_steps: int, checkpoint: bool) -> jax.Array:
        function = lambda _, params, data: 0.5 * jnp.sum((data @ params - 1) ** 2) + jnp.sum(jnp.cosh(params))
        objective = bl.objectives.FunctionObjective(function, start=jnp.zeros(data.shape[1]))
        solver = bl.solvers.GradientDescent(max_steps=num_steps, stepsize=1e-3)
        diff = bl.Unrolled(checkpoint=checkpoint)
        return jnp.sum(bl.argmin(objective, data, solver=solver, diff=diff, throw=False).params)

    def memory(num_steps: int, checkpoint: bool) -> int:
        gradient = compiled(jax.grad(lambda data: total(data, num_steps, checkpoint)))
        program = gradient.lower(jnp.ones((3, 200))).compile().compiled
        return program.memory_analysis().temp_size_in_bytes

    # Sixteen times as many steps: four times the memory instead of sixteen times. What is constant makes it less.
    assert memory(6400, False) > 14 * memory(400, False)
    assert memory(6400, True) < 4.5 * memory(400, True) < memory(400, False)


def test_what_is_kept_of_a_step_is_its_iterate_and_not_the_data():
    X = jnp.asarray(np.random.default_rng(0).normal(size=(60, 40)))
    net, data = bl.objectives.ElasticNet(0.01, 0.1), (X, X[:, 0])

    def memory(num_steps: int) -> int:
        def total(data: tuple) -> jax.Array:
            solver = bl.solvers.ProximalGradient(max_steps=num_steps)
            return jnp.sum(bl.argmin(net, data, solver=solver, diff=bl.Unrolled(), throw=False).params.weight)

        return compiled(jax.grad(total)).lower(data).compile().compiled.memory_analysis().temp_size_in_bytes

    # The carry of this solver is two iterates and a few numbers.
    assert memory(400) - memory(200) < 200 * 3 * X[0].nbytes < 200 * X.nbytes / 10


def test_bad_options_are_named():
    with pytest.raises(ValueError, match="`checkpoint` must be True or False, got 3"):
        bl.Unrolled(checkpoint=3)  # pyright: ignore[reportArgumentType]


def test_the_steps_are_those_of_gradient_descent():
    # Nesterov's steps in NumPy, as in JAXopt: y₁ = x₀; xₖ = yₖ − s ∇f(yₖ); yₖ₊₁ = xₖ + (tₖ − 1) / tₖ₊₁ (xₖ − xₖ₋₁).
    X, y = map(np.asarray, RIDGE.data)
    x, ahead, t = np.asarray(INPUTS[0]), np.asarray(INPUTS[0]), 1.0
    for _ in range(FEW):
        gradient = X.T @ (X @ ahead - y) / len(X) + 0.3 * ahead
        new, t_new = ahead - 0.1 * gradient, 0.5 * (1 + np.sqrt(1 + 4 * t**2))
        x, ahead, t = new, new + (t - 1) / t_new * (new - x), t_new
    np.testing.assert_allclose(run(INPUTS), x, rtol=1e-12)


def test_nothing_reaches_the_start_and_the_stepsize_under_implicit():
    @compiled
    def pulled(inputs: tuple) -> tuple:
        solve = lambda *inputs: jnp.sum(after_few_steps(*inputs, bl.Implicit(on_failure="ignore")))
        return jax.grad(solve, argnums=(0, 1, 2))(*inputs)

    start, stepsize, data = pulled(INPUTS)
    np.testing.assert_array_equal(start, 0)
    np.testing.assert_array_equal(stepsize, 0)
    assert np.linalg.norm(data) > 1e-2


def test_a_failed_solve_keeps_its_derivative():
    # It is that of the iterates, which are what they are.
    solver = bl.solvers.GradientDescent(max_steps=FEW)
    solved = outcome(RIDGE, solver, bl.Unrolled())
    assert solved.solution.result == bl.RESULTS.not_converged
    assert np.all(np.isfinite(solved.pushed))
