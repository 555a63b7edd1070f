"""`LearnedRule`: derivatives reach the leaves of a rule, and a rule that was learned beats every fixed rate."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel as bl
from tests.compiling import compiled
from tests.laws import error
from tests.problems import CODES, PENALIZED, RIDGES

S = bl.solvers
X, y = RIDGES[0].data
KEY = jax.random.key(0)


def network(key: jax.Array = KEY) -> eqx.nn.MLP:
    return eqx.nn.MLP(2, "scalar", width_size=4, depth=1, activation=jnp.tanh, key=key)


RULES = {
    "one rate": S.Rates(0.1),
    "a rate for each coordinate": S.Rates(bl.objectives.LinearModel(np.linspace(0.05, 0.3, 6))),
    "a network": S.Coordinatewise(network()),
}


@compiled
def after(rule: S.AbstractRule, X: jax.Array) -> tuple[jax.Array, S.AbstractRule]:
    """The objective after five steps, and its derivative in the rule's leaves."""

    def value(rule: S.AbstractRule) -> jax.Array:
        solver = S.LearnedRule(rule, max_steps=5)
        solution = bl.argmin(RIDGES[0].objective, (X, y), solver=solver, diff=bl.Unrolled(), throw=False)
        return RIDGES[0].objective(solution.params, (X, y))

    return eqx.filter_value_and_grad(value)(rule)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_the_derivative_in_a_rule_is_that_of_finite_differences(rule: S.AbstractRule):
    _, slopes = after(rule, X)
    moving, still = eqx.partition(rule, eqx.is_inexact_array)
    rng = np.random.default_rng(0)
    direction = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), moving)
    at = lambda step: after(eqx.combine(optax.tree.add_scale(moving, step, direction), still), X)[0]
    differences = [(at(step) - at(-step)) / (2 * step) for step in (1e-4, 1e-5)]
    pushed = optax.tree.vdot(eqx.filter(slopes, eqx.is_inexact_array), direction)
    assert abs(pushed) > 1e-3
    assert error(pushed, *differences) <= 1e-7


def test_the_steps_are_those_of_the_rule():
    rates = np.linspace(0.05, 0.3, 6)
    w = np.zeros(6)
    for _ in range(5):
        w = w - rates * (X.T @ (X @ w - y) / len(X) + 0.3 * w)
    residual = X @ w - y
    value = 0.5 * np.sum(residual**2) / len(X) + 0.5 * 0.3 * np.sum(w**2)
    np.testing.assert_allclose(after(RULES["a rate for each coordinate"], X)[0], value, rtol=1e-12)


def test_the_memory_is_an_average_of_gradients():
    rule = S.Coordinatewise(lambda seen: 2 * seen[0] + 3 * seen[1], decay=0.5)
    gradient = {"a": jnp.ones(2), "b": jnp.full((2, 1), 4.0)}
    update, memory = rule(gradient, rule.init(gradient))
    update, memory = rule(gradient, memory)
    np.testing.assert_allclose(memory["a"], 0.75)
    np.testing.assert_allclose(update["b"], -4 * (2 + 3 * 0.75))


@pytest.mark.parametrize("problem", [RIDGES[0], PENALIZED[3]], ids=["smooth", "constrained"])
def test_converges_where_its_rate_is_good(problem):
    solver = S.LearnedRule(S.Rates(0.1), max_steps=5000, tol=1e-10)
    solve = compiled(lambda data: bl.argmin(problem.objective, data, solver=solver, throw=False))
    solution = solve(problem.data)
    assert solution.result == bl.RESULTS.successful
    assert solution.stats["num_steps"] < 5000
    known = problem.solve(*map(np.asarray, problem.leaves))
    assert error(np.concatenate([np.ravel(x) for x in jax.tree.leaves(solution.params)]), known) <= 1e-8


# --- Learning to learn ------------------------------------------------------------------------------------------------

#: Regressions on features of very different sizes, which a single rate serves badly.
SIZES = np.geomspace(0.1, 1.0, 8)
RIDGE = bl.objectives.Ridge(1e-3)
STEPS = 10


def regressions(seed: int, number: int = 32) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(seed)
    designs = SIZES * rng.normal(size=(number, 20, 8))
    weights = rng.normal(size=(number, 8)) / SIZES
    return jnp.asarray(designs), jnp.einsum("ijk,ik->ij", designs, jnp.asarray(weights))


def mean_objective(rule: S.AbstractRule, data: tuple[jax.Array, jax.Array]) -> jax.Array:
    """The mean over regressions of the objective after the last step."""

    def one(X: jax.Array, y: jax.Array) -> jax.Array:
        solver = S.LearnedRule(rule, max_steps=STEPS)
        solution = bl.argmin(RIDGE, (X, y), solver=solver, diff=bl.Unrolled(), throw=False)
        return RIDGE(solution.params, (X, y))

    return jnp.mean(jax.vmap(one)(*data))


evaluate = compiled(mean_objective)


class Positive(S.AbstractRule):
    """Rates that stay positive: Δ = −exp(logarithms) · ∇f."""

    logarithms: jax.Array

    def __call__(self, gradient, memory):
        return S.Rates(jnp.exp(self.logarithms))(gradient, memory)


def learned(rule: S.AbstractRule, rate: float, num_steps: int) -> S.AbstractRule:
    """The rule after Adam steps on a training set, all in one scan."""
    optimizer = optax.adam(rate)
    moving, still = eqx.partition(rule, eqx.is_inexact_array)
    slope = lambda moving, data: jax.grad(lambda m: jnp.log(mean_objective(eqx.combine(m, still), data)))(moving)

    @compiled
    def train(moving, data):
        def step(carry, _):
            moving, state = carry
            # Optax mixes integers with floats.
            with jax.numpy_dtype_promotion("standard"):
                updates, state = optimizer.update(slope(moving, data), state, moving)
            return (optax.apply_updates(moving, updates), state), None

        return jax.lax.scan(step, (moving, optimizer.init(moving)), length=num_steps)[0][0]

    return eqx.combine(train(moving, regressions(0)), still)


@pytest.mark.parametrize(
    ("rule", "rate"),
    [(Positive(jnp.full(8, np.log(0.3))), 0.05), (S.Coordinatewise(network()), 0.02)],
    ids=["rates", "network"],
)
def test_a_learned_rule_beats_every_fixed_rate_on_problems_that_it_has_not_seen(rule, rate: float):
    held_out = regressions(1)
    fixed = [float(evaluate(S.Rates(r), held_out)) for r in np.geomspace(0.01, 3.0, 25)]
    best = min(value for value in fixed if np.isfinite(value))
    found = float(evaluate(learned(rule, rate, 300), held_out))
    assert found < 0.7 * best


def test_refuses_penalties_and_what_is_no_rule():
    with pytest.raises(ValueError, match="LearnedRule doesn't work with SparseCoding: a rule has no step size"):
        bl.argmin(CODES.objective, CODES.data, solver=S.LearnedRule(S.Rates(0.1)))
    with pytest.raises(ValueError, match="`rule` must be an AbstractRule, got function"):
        S.LearnedRule(lambda gradient, memory: (gradient, memory))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="`network` must be a function"):
        S.Coordinatewise(0.1)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="`rates` of shape"):
        after(S.Rates(np.ones(5)), X)
