"""A user's own function: closures, starts, modules, pytrees."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from tests.compiling import compiled
from tests.laws import outcome
from tests.problems import MODULES, PENALIZED, RIDGES, Readout, witnesses
from tests.solvers.members import TOL

FunctionObjective = bl.objectives.FunctionObjective
X, y = RIDGES[0].data


def closing_over(alpha: jax.Array, data: tuple | None = None) -> jax.Array:
    """Ridge weights, by a function that closes over `alpha`, and over the data where they are not given."""
    here = (X, y) if data is None else data

    def function(hyperparams, weight, data):
        features, targets = here
        return 0.5 * jnp.mean((features @ weight - targets) ** 2) + 0.5 * alpha * jnp.sum(weight**2)

    solver = bl.solvers.GradientDescent(stepsize=0.3)
    return bl.argmin(FunctionObjective(function, start=jnp.zeros(6)), solver=solver).params


def known(alpha: float, d_alpha: float = 0.0, d_X: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    values = [np.asarray(alpha), *map(np.asarray, (X, y))]
    directions = [np.asarray(d_alpha), d_X * np.ones(X.shape), np.zeros(y.shape)]
    return witnesses.ridge(*values), witnesses.ridge_derivative(values, directions)


TRANSFORMS = {
    "reverse of jit": lambda f: compiled(jax.jacrev(jax.jit(f))),
    "forward": lambda f: compiled(jax.jacfwd(f)),
    "vmap": lambda f: lambda alpha: compiled(jax.vmap(jax.jacrev(f)))(alpha[None])[0],
    "not compiled": jax.jacrev,
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_derivatives_reach_what_the_function_closes_over(name: str):
    _, slope = known(0.3, d_alpha=1.0)
    np.testing.assert_allclose(TRANSFORMS[name](closing_over)(jnp.asarray(0.3)), slope, rtol=1e-6)


def test_the_solution_is_that_of_what_the_function_closes_over():
    np.testing.assert_allclose(compiled(closing_over)(jnp.asarray(0.3)), known(0.3)[0], rtol=1e-6)


def test_derivatives_reach_data_that_the_function_closes_over():
    solve = lambda features: closing_over(jnp.asarray(0.3), (features, y))
    _, pushed = compiled(lambda x: jax.jvp(solve, (x,), (jnp.ones_like(x),)))(X)
    np.testing.assert_allclose(pushed, known(0.3, d_X=1.0)[1], rtol=1e-6)


def test_a_function_that_closes_over_a_module():
    # The closure holds arrays to differentiate and functions to leave alone.
    layer = eqx.nn.MLP(6, "scalar", 4, 1, key=jax.random.key(0), dtype=jnp.float64)

    def loss(layer: eqx.nn.MLP) -> jax.Array:
        function = lambda h, shift, data: jnp.mean((jax.vmap(layer)(X) + shift - y) ** 2)
        return bl.argmin(FunctionObjective(function, start=jnp.zeros(()))).params

    # The best shift is the mean residual.
    expected = compiled(eqx.filter_grad(lambda layer: -jnp.mean(jax.vmap(layer)(X))))(layer)
    grads = compiled(eqx.filter_grad(loss))(layer)
    for found, wanted in zip(*map(jax.tree.leaves, (grads, expected)), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-9)


def test_a_module_comes_back_whole():
    params = outcome(MODULES, bl.solvers.LBFGS(tol=TOL)).solution.params
    assert isinstance(params, Readout)
    assert (params.squash, params.name) == (jnp.tanh, "readout")
    # Its functions run.
    assert params.squash(params.weight).shape == params.weight.shape


def test_params_of_any_structure():
    # ½‖a − 1‖² + ½‖b − 2‖² + ½ (c − 3)², with an L1 norm on one block only.
    def function(targets, params, data):
        residuals = jax.tree.map(jnp.subtract, params, targets)
        return 0.5 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(residuals))

    targets = {"a": jnp.ones((2, 3)), "b": (2 * jnp.ones(4), jnp.asarray(3.0))}
    start = jax.tree.map(jnp.zeros_like, targets)
    strength = {"a": 0.25, "b": (0.0, 5.0)}
    objective = FunctionObjective(function, targets, start=start, nonsmooth=bl.prox.L1(strength))

    @compiled
    def solve_and_push(objective):
        moving, still = eqx.partition(objective, eqx.is_inexact_array)
        solve = lambda m: bl.argmin(eqx.combine(m, still)).params
        return jax.jvp(solve, (moving,), (jax.tree.map(jnp.ones_like, moving),))

    solution, motion = solve_and_push(objective)
    assert jax.tree.structure(solution) == jax.tree.structure(targets)
    np.testing.assert_allclose(solution["a"], 0.75, rtol=1e-7)
    np.testing.assert_allclose(solution["b"][0], 2.0, rtol=1e-7)
    assert solution["b"][1] == 0
    # Targets and strengths up by one: they cancel where the penalty acts; the last coordinate rests.
    np.testing.assert_allclose(motion["a"], 0.0, atol=1e-7)
    np.testing.assert_allclose(motion["b"][0], 0.0, atol=1e-7)
    assert motion["b"][1] == 0


def test_data_may_hold_integers_and_what_is_no_array():
    # The mean of each class, shrunk: Σ_{i in k} xᵢ / (n_k + shrink).
    labels = jnp.asarray([0, 1, 1, 0, 2, 1, 0, 0])

    def function(shrink, means, data):
        loss = data["loss"]
        return loss(data["X"] - means[data["labels"]]) + shrink * loss(means)

    @compiled
    def solve_and_push(shrink, X, d_shrink, d_X):
        half_square = lambda x: 0.5 * jnp.sum(x**2)

        def solve(shrink, X):
            data = {"X": X, "labels": labels, "loss": half_square}
            objective = FunctionObjective(function, shrink, start=jnp.zeros((3, 6)))
            return bl.argmin(objective, data, solver=bl.solvers.GradientDescent(stepsize=0.1, tol=1e-12)).params

        return jax.jvp(solve, (shrink, X), (d_shrink, d_X))

    solution, motion = solve_and_push(jnp.asarray(0.5), X, jnp.asarray(1.0), jnp.ones_like(X))
    sums = np.stack([np.asarray(X)[np.asarray(labels) == k].sum(axis=0) for k in range(3)])
    counts = np.bincount(labels)[:, None]
    np.testing.assert_allclose(solution, sums / (counts + 0.5), rtol=1e-9)
    np.testing.assert_allclose(motion, counts / (counts + 0.5) - sums / (counts + 0.5) ** 2, rtol=1e-9)


def test_start_may_come_with_the_call():
    function = lambda h, params, data: jnp.sum((params - data) ** 2)
    data = jnp.arange(3.0)
    solver = bl.solvers.GradientDescent(stepsize=0.5)
    solution = bl.argmin(FunctionObjective(function), data, init=jnp.zeros(3), solver=solver)
    np.testing.assert_allclose(solution.params, data, atol=1e-7)
    with pytest.raises(ValueError, match=r"without `start`(.|\n)*Pass `start` to it, or `init` to argmin"):
        bl.argmin(FunctionObjective(function), data)


def test_floating_numbers_become_leaves_and_others_stay():
    hyperparams = {"rate": 0.5, "degree": 2, "weights": np.ones(3), "power": jnp.power}
    objective = FunctionObjective(lambda h, p, d: h["rate"] * h["power"](p, h["degree"]), hyperparams, start=1.0)
    assert [leaf.dtype for leaf in jax.tree.leaves(eqx.filter(objective.hyperparams, eqx.is_array))] == [float] * 2
    assert (objective.hyperparams["degree"], objective.hyperparams["power"]) == (2, jnp.power)
    assert objective.init(None).dtype == float


def test_its_value_is_the_function_and_the_penalty():
    problem = PENALIZED[0]
    params = jnp.ones((3, 4))
    value = problem.objective(params, problem.data)
    A, B = map(np.asarray, problem.data)
    expected = 0.5 * np.sum((A @ np.ones((3, 4)) - B) ** 2) + 0.05 * 12 + 2 * 12
    np.testing.assert_allclose(value, expected, rtol=1e-14)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(function=3.0), "`function` must be a function of"),
        (dict(function=jnp.sum, nonsmooth=0.1), "`nonsmooth` must be a penalty such as"),
        (dict(function=jnp.sum, nonsmooth=bl.prox.L1), "`nonsmooth` must be a penalty such as"),
    ],
)
def test_bad_input(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        FunctionObjective(**arguments)
