"""The ridge study: one convex problem by every solver, and its strength by hypergradient against a fine grid."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, Scalar, ScalarLike

from bilevel.core import RESULTS, Solution
from bilevel.differentiation import argmin
from bilevel.objectives import LinearModel, Ridge
from bilevel.outer import search
from bilevel.solvers import AbstractSolver
from bilevel.studies.serving import Seconds, serving, timed

Data = tuple[Float[Array, "samples features"], Float[Array, "samples *targets"]]


class RidgeSolution(NamedTuple):
    """What one solver gives: weights, the two parts of the objective there, steps, success, seconds."""

    weight: Float[Array, "*targets features"]
    data_term: Scalar
    regularizer: Scalar
    num_steps: int
    success: bool
    seconds: Seconds


class RidgeStudy(NamedTuple):
    """`solutions` by the name of the solver, `"exact"` among them; `differences`: of each from the exact weights, the
    largest, relative to the largest weight."""

    alpha: Float[Array, "*features"]
    solutions: dict[str, RidgeSolution]
    differences: dict[str, float]


class RidgeTuning(NamedTuple):
    """`alpha` and its validation loss, found by hypergradients from `history`'s first point; the same on a grid."""

    alpha: np.ndarray
    loss: float
    history: dict[str, np.ndarray]
    grid: np.ndarray
    grid_losses: np.ndarray


def ridge_study(data: Data, alpha: ArrayLike, *, tol: ScalarLike = 1e-10) -> RidgeStudy:
    """Solve  min over W of (1/2n) Σᵢ‖W xᵢ − yᵢ‖² + ½ Σⱼ αⱼ‖W_{·j}‖²  by every solver that serves.

    Optax's optimizer is gradient descent with momentum, tuned to the extreme eigenvalues of the Hessian.

    **Arguments:**

    - `data`: (X, y), centered where there is to be an intercept. `alpha`: a number or one for each feature.
    - `tol`: of all solvers.

    **Returns:** a `RidgeStudy`.
    """
    data = _as_arrays(data)
    ridge = Ridge(jnp.asarray(alpha, data[0].dtype))
    ridge.check_data(data)
    solvers = serving(ridge, jnp.asarray(tol, data[0].dtype), heavy_ball(ridge, data))
    solutions = {}
    for name, solver in solvers.items():
        # SciPy runs outside `jit`.
        run = _run if solver.on_host() else _run_jit
        solution, seconds = timed(lambda solver=solver, run=run: run(solver, ridge, data))
        parts = ridge.data_term(solution.params, data), ridge.regularizer(solution.params)
        success = bool(solution.result == RESULTS.successful)
        steps = int(solution.stats["num_steps"])
        solutions[name] = RidgeSolution(solution.params.weight, *parts, steps, success, seconds)
    exact = np.asarray(solutions["exact"].weight)
    largest = np.max(np.abs(exact)) or 1.0
    differences = {name: float(np.max(np.abs(s.weight - exact)) / largest) for name, s in solutions.items()}
    return RidgeStudy(ridge.alpha, solutions, differences)


def _as_arrays(data: Data) -> Data:
    X, y = data
    return jnp.asarray(X), jnp.asarray(y)


def heavy_ball(ridge: Ridge, data: Data) -> optax.GradientTransformation:
    """Polyak's method for a Hessian with eigenvalues in [m, L]: step 4 / (√L + √m)², momentum (√L − √m)² / (√L + √m)².

    !!! cite
        B. Polyak: Some methods of speeding up the convergence of iteration methods. 1964.
    """
    X = data[0]
    values = jnp.linalg.eigvalsh(X.T @ X / len(X) + jnp.diag(jnp.broadcast_to(ridge.alpha, X.shape[1:])))
    low, high = jnp.sqrt(jnp.maximum(values[0], 0)), jnp.sqrt(values[-1])
    return optax.sgd(float(4 / (low + high) ** 2), momentum=float(((high - low) / (high + low)) ** 2))


def _run(solver: AbstractSolver, ridge: Ridge, data: Data) -> Solution:
    return argmin(ridge, data, solver=solver, throw=False)


_run_jit = eqx.filter_jit(_run)


def tune_ridge(
    train: Data,
    validation: Data,
    start: ArrayLike | None = None,
    *,
    grid: ArrayLike | None = None,
    bounds: tuple[float, float] = (1e-8, 1e4),
    max_steps: int = 20,
    tol: float = 1e-8,
) -> RidgeTuning:
    """min over α of  (1/n_val) ‖X_val w(α) − y_val‖²,  w(α) the ridge solution on `train`, by L-BFGS on log α.

    A logarithm is never out of range: no step, however long, makes a strength negative.

    **Arguments:**

    - `train`, `validation`: (X, y), centered by the means of `train` where there is to be an intercept.
    - `start`: where the search begins, a number or one for each feature; None: the best of ten numbers log-spaced
      within `bounds`. The loss is not convex in log α: it may have a minimum at 0 and another elsewhere.
    - `grid`: scalar strengths to compare with, 200 log-spaced within `bounds` by default.
    - `bounds`, `max_steps`, `tol`: of the search; see `bilevel.outer.search`.

    **Returns:** a `RidgeTuning`.
    """
    train, validation = _as_arrays(train), _as_arrays(validation)
    dtype = train[0].dtype
    grid = np.geomspace(*bounds, 200) if grid is None else np.asarray(grid)
    evaluate = lambda point: _value_and_gradient(jnp.asarray(point, dtype), train, validation)
    low, high = np.log(bounds)
    on_grid = lambda points: np.asarray(_losses(jnp.log(jnp.asarray(points, dtype)), train, validation))
    if start is None:
        coarse = np.geomspace(*bounds, 10)
        start = coarse[np.argmin(on_grid(coarse))]
    found = search(evaluate, np.log(np.asarray(start)), low, high, max_steps=max_steps, tol=tol)
    history = found.history | {"alpha": np.exp(found.history["point"])}
    return RidgeTuning(np.exp(found.point), found.loss, history, grid, on_grid(grid))


def validation_loss(log_alpha: Float[Array, "*features"], train: Data, validation: Data) -> Scalar:
    """The mean squared error of  w(exp log α)  on `validation`, summed over targets."""
    model: Any = argmin(Ridge(jnp.exp(log_alpha)), train).params
    assert isinstance(model, LinearModel)
    X, y = validation
    return jnp.sum((model(X) - y) ** 2) / len(X)


_value_and_gradient = eqx.filter_jit(jax.value_and_grad(validation_loss))
_losses = eqx.filter_jit(lambda logs, *pairs: jax.vmap(lambda log: validation_loss(log, *pairs))(logs))
