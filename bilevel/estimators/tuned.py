"""Linear regression that chooses the strengths of its penalty by hypergradients of its validation loss."""

import abc
import warnings
from typing import Any, ClassVar, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Scalar
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import check_cv
from sklearn.utils.validation import check_is_fitted, validate_data

from bilevel.core import RESULTS
from bilevel.differentiation import Implicit, argmin
from bilevel.estimators.base import FLOATS, devices, precision
from bilevel.estimators.folds import Folds, correlation, curvature, everything, folds, validation_loss
from bilevel.estimators.parameters import check_parameters
from bilevel.objectives import AbstractObjective, ElasticNet, LinearModel, Ridge
from bilevel.outer import Search, search
from bilevel.scale import DeviceMesh, sum_over
from bilevel.solvers import AbstractSolver, Exact, ProximalGradient

Weights = Float[Array, "folds targets features"]
#: Damping of the inner Hessian, so that collinear features in use have a derivative.
RIDGE = {np.dtype(np.float64): 1e-10, np.dtype(np.float32): 1e-5}


class AbstractTuned(RegressorMixin, BaseEstimator):
    """A linear model whose penalty's strengths minimize the mean squared error on held-out parts of the data."""

    per_feature: bool
    cv: Any
    fit_intercept: bool
    max_iter: int
    tol: float
    mesh: int | None
    coef_: np.ndarray
    intercept_: Any
    validation_loss_: float
    history_: dict[str, np.ndarray]
    n_iter_: int

    #: The number of points of the coarse grid on which the search starts.
    grid_size: ClassVar[int] = 8

    @abc.abstractmethod
    def _family(self, dtype: Any) -> "AbstractFamily":
        """The objective by the logarithms of its strengths."""

    @abc.abstractmethod
    def _grid(self, data: Folds) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A coarse grid of logarithms, from strong to weak, (points, strengths), and their lower and upper bounds."""

    @abc.abstractmethod
    def _set_strengths(self, strengths: np.ndarray) -> None:
        """Keep the chosen strengths, (strengths,) or (strengths, features)."""

    def fit(self, X: Any, y: Any) -> Self:
        """Choose the strengths by samples X (samples, features) and y, (samples,) or (samples, targets), and refit."""
        check_parameters(self.get_params(deep=False))
        X, y = validate_data(self, X, y, dtype=FLOATS, multi_output=True, y_numeric=True, ensure_min_samples=2)
        y = y.astype(X.dtype)
        targets = y.reshape(len(y), -1)
        splitter: Any = check_cv(self.cv)
        splits = splitter.split(X, y)
        with precision(X.dtype):
            mesh = devices(self.mesh)
            data = folds(X, targets, splits, self.fit_intercept)
            found, weights = self._tune(data, X.shape[1])
            whole, middle = everything(X, targets, self.fit_intercept, data)
            _, _, weights, success = self._evaluate(found.point, whole.out(mesh), weights)
            weights = np.asarray(weights if mesh is None else mesh.fetch(weights))[0]
        if found.failed or not success:
            warnings.warn(
                "The inner problem was not solved at some strengths of the search, or had no derivative there: "
                "features may be collinear, or scaled very differently. Try to standardize them, or a larger `tol`.",
                ConvergenceWarning,
                stacklevel=2,
            )
        coef = np.array(weights[:, : X.shape[1]], X.dtype)
        intercept = middle.y_mean - coef @ middle.X_mean
        self.coef_, self.intercept_ = (coef[0], intercept[0]) if y.ndim == 1 else (coef, intercept)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """X coefᵀ + intercept, of the shape of the targets given to `fit`."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=FLOATS, reset=False)
        return X @ self.coef_.T + self.intercept_

    def __sklearn_tags__(self) -> Any:
        tags = RegressorMixin.__sklearn_tags__(self)
        tags.target_tags.multi_output = True
        return tags

    def _tune(self, data: Folds, features: int) -> tuple[Search, Weights]:
        """The search from the best point of the coarse grid, each solve from the last one's weights."""
        grid, lower, upper = self._grid(data)
        data = data.out(devices(self.mesh))
        A, B = data.train
        # The weights of the last solve, with which the next one starts.
        weights = jnp.zeros((len(A), B.shape[2], A.shape[2]), A.dtype)
        losses, solved = [], []
        for point in grid:
            loss, _, weights, success = self._evaluate(point, data, weights)
            losses.append(float(loss) if success else np.inf)
            solved.append(weights)
            # What is weaker still fits worse and takes longer.
            if len(losses) > 2 and np.inf > losses[-1] > losses[-2] > losses[-3]:
                break
        best = int(np.argmin(np.where(np.isfinite(losses), losses, np.inf)))
        weights, unsolved = solved[best], 0

        def step(point: np.ndarray) -> tuple[Any, np.ndarray]:
            nonlocal weights, unsolved
            loss, gradient, weights, success = self._evaluate(point, data, weights)
            unsolved += not success
            return loss, gradient

        def spread(values: np.ndarray) -> np.ndarray:
            return np.tile(values[:, None], A.shape[2]) if self.per_feature else values

        limits = spread(lower), spread(upper)
        found = search(step, spread(grid[best]), *limits, max_steps=int(self.max_iter), tol=float(self.tol))
        found = found._replace(failed=found.failed or unsolved > 0)
        strengths = np.exp(found.point)[..., :features] if self.per_feature else np.exp(found.point)
        self._set_strengths(strengths.astype(A.dtype))
        steps = {"loss": found.history["loss"], "strengths": np.exp(found.history["point"])}
        steps["gradient"] = found.history["gradient"]
        if self.per_feature:
            steps = {name: values[..., :features] if values.ndim == 3 else values for name, values in steps.items()}
        self.history_ = {**steps, "grid_strengths": np.exp(grid[: len(losses)]), "grid_loss": np.array(losses)}
        self.validation_loss_, self.n_iter_ = found.loss, len(steps["loss"])
        return found, weights

    def _evaluate(self, point: np.ndarray, data: Folds, weights: Weights) -> tuple[Scalar, np.ndarray, Weights, bool]:
        """Validation loss and its derivative in the logarithms; the weights, and whether all were solved."""
        dtype = data.rest.dtype
        family, logs = self._family(dtype), jnp.asarray(point, dtype)
        args = family, logs, data, weights, jnp.asarray(RIDGE[dtype], dtype)
        loss, gradient, weights, success = _evaluate(*args, devices(self.mesh))
        return loss, np.asarray(gradient), weights, bool(success)


class AbstractFamily(eqx.Module):
    """Objectives by the logarithms of their strengths, and how they are solved."""

    @abc.abstractmethod
    def at(self, logs: Float[Array, "strengths *features"]) -> AbstractObjective:
        """The objective."""

    @abc.abstractmethod
    def solver(self) -> AbstractSolver:
        """What solves it."""


class Ridges(AbstractFamily):
    def at(self, logs: Float[Array, "strengths *features"]) -> Ridge:
        return Ridge(jnp.exp(logs[0]))

    def solver(self) -> Exact:
        return Exact()


class ElasticNets(AbstractFamily):
    """One strength, of which the part `l1_ratio` is l1; or two, l1 and l2, for None."""

    l1_ratio: Scalar | None
    tol: Scalar

    def at(self, logs: Float[Array, "strengths *features"]) -> ElasticNet:
        if self.l1_ratio is None:
            return ElasticNet(jnp.exp(logs[0]), jnp.exp(logs[1]))
        return ElasticNet(self.l1_ratio * jnp.exp(logs[0]), (1 - self.l1_ratio) * jnp.exp(logs[0]))

    def solver(self) -> ProximalGradient:
        return ProximalGradient(tol=self.tol, max_steps=20_000)


#: Loss, gradient, weights, and whether all folds were solved.
_Evaluated = tuple[Scalar, Array, Weights, Array]


@eqx.filter_jit
def _evaluate(
    family: AbstractFamily,
    logs: Float[Array, "strengths *features"],
    data: Folds,
    weights: Weights,
    ridge: Scalar,
    mesh: DeviceMesh | None,
) -> _Evaluated:
    args = family, logs, data, weights, ridge
    if mesh is None:
        return _of_folds(*args)

    def on_device(*args: Any) -> _Evaluated:
        loss, gradient, solved, success = _of_folds(*args)
        loss, gradient, failed = sum_over(mesh.axes, (loss, gradient, (~success).astype(loss.dtype)))
        return loss, gradient, solved, failed == 0

    everywhere, sharded = mesh.everywhere, mesh.over_samples
    specs = (everywhere, everywhere, sharded, sharded, everywhere)
    out = (everywhere, everywhere, sharded, everywhere)
    return mesh.by_device(on_device, specs, out)(*args)


def _of_folds(family: AbstractFamily, logs: Array, data: Folds, weights: Weights, ridge: Scalar) -> _Evaluated:
    """Of the folds on a device; of loss and gradient, what they add to those of all."""
    diff, solver = Implicit(ridge=ridge, on_failure="ignore"), family.solver()

    def loss(logs: Array) -> tuple[Scalar, tuple[Weights, Array]]:
        objective = family.at(logs)

        def of_fold(A: Array, B: Array, start: Array) -> tuple[Array, Array]:
            solution = argmin(objective, (A, B), solver=solver, init=LinearModel(start), diff=diff, throw=False)
            return solution.params.weight, jnp.asarray(solution.result == RESULTS.successful)

        # One after the other: each takes its own number of steps, and its own branch of every choice.
        solved, success = jax.lax.map(lambda fold: of_fold(*fold), (*data.train, weights))
        return validation_loss(solved, data), (solved, jnp.all(success))

    (value, (solved, success)), gradient = jax.value_and_grad(loss, has_aux=True)(logs)
    return value, gradient, solved, success


_COMMON = """
    - `per_feature`: whether every feature has strengths of its own; else one for all of them.
    - `cv`: the splits, as everywhere in scikit-learn: a number of folds (None is 5), a splitter such as
      `ShuffleSplit(1)` or `PredefinedSplit` for one held-out part, or an iterable of index pairs.
    - `fit_intercept`: whether there is an intercept, which is not penalized.
    - `max_iter`: the most hypergradients that the search takes, after a coarse grid of at most eight scalar strengths,
      from strong to weak, which ends where the loss rises twice.
    - `tol`: the search ends where a step lowers the validation loss by less than this fraction.
    - `mesh`: the number of devices among which the splits are shared out, so that more than there are splits are idle;
      None is no mesh. (A number, not a `jax.sharding.Mesh`: that cannot be copied, as `clone` does.) Each solves and
      differentiates its own; they add up losses and gradients, once for each hypergradient."""

_FITTED = """`coef_`, `intercept_`, of all samples at the chosen strengths; `validation_loss_`, the mean over
    splits of the mean squared error, summed over targets; `history_`: `"loss"`, `"strengths"` and `"gradient"` (in
    the logarithms) of each hypergradient, `"grid_strengths"` and `"grid_loss"` of the coarse grid; `n_iter_`, the
    number of hypergradients; `n_features_in_`."""


class RidgeTuned(AbstractTuned):
    __doc__ = f"""Ridge regression whose strengths are chosen by hypergradients:

        min over α of  mean over splits of  (1/n_val) ‖X_val w(α) + b(α) − y_val‖²,
        w(α), b(α) = argmin over w, b of  (1/2n) ‖X w + b − y‖² + ½ Σⱼ αⱼ wⱼ²  on the training part.

    Each split is compressed once to no more rows than there are features, so that a hypergradient costs as little for
    many samples as for few. In the units of scikit-learn's `Ridge`, alpha is n times ours. With `per_feature`,
    features that do not help are penalized away, at the risk of fitting the validation parts where these are small.

    **Arguments:**
{_COMMON}

    **Attributes:** `alpha_`, a number or one for each feature; {_FITTED}

    !!! cite
        Y. Bengio: Gradient-based optimization of hyperparameters. 2000.
    """

    alpha_: Any

    def __init__(
        self,
        *,
        per_feature: bool = False,
        cv: Any = None,
        fit_intercept: bool = True,
        max_iter: int = 20,
        tol: float = 1e-5,
        mesh: int | None = None,
    ):
        self.per_feature = per_feature
        self.cv = cv
        self.fit_intercept = fit_intercept
        self.max_iter = max_iter
        self.tol = tol
        self.mesh = mesh

    def _family(self, dtype: Any) -> Ridges:
        return Ridges()

    def _grid(self, data: Folds) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        largest = np.log(curvature(data))
        floor = np.log(1e-4 if data.rest.dtype == np.float32 else 1e-8)
        grid = np.linspace(largest + np.log(10), largest + max(floor, np.log(1e-6)), self.grid_size)
        return grid[:, None], np.array([largest + floor]), np.array([largest + np.log(1e4)])

    def _set_strengths(self, strengths: np.ndarray) -> None:
        self.alpha_ = strengths[0]


class ElasticNetTuned(AbstractTuned):
    __doc__ = f"""The elastic net or the Lasso, whose strengths are chosen by hypergradients:

        min over l1, l2 of  mean over splits of  (1/n_val) ‖X_val w + b − y_val‖²,
        w, b = argmin over w, b of  (1/2n) ‖X w + b − y‖² + Σⱼ l1ⱼ |wⱼ| + ½ Σⱼ l2ⱼ wⱼ²  on the training part.

    The parametrization is scikit-learn's: l1 = alpha · l1_ratio, l2 = alpha · (1 − l1_ratio). The inner problem is
    solved by accelerated proximal gradient, from the last strengths' weights; its derivative is that on the support.

    **Arguments:**

    - `l1_ratio`: the part of l1 in alpha, above 0 and at most 1, the Lasso; None: l1 and l2 are both chosen.
{_COMMON.lstrip(chr(10))}

    **Attributes:** `alpha_` and `l1_ratio_`, numbers or one for each feature; {_FITTED}

    !!! cite
        Q. Bertrand et al.: Implicit differentiation of Lasso-type models for hyperparameter optimization. 2020.
    """

    alpha_: Any
    l1_ratio_: Any

    def __init__(
        self,
        *,
        l1_ratio: float | None = 0.5,
        per_feature: bool = False,
        cv: Any = None,
        fit_intercept: bool = True,
        max_iter: int = 20,
        tol: float = 1e-5,
        mesh: int | None = None,
    ):
        self.l1_ratio = l1_ratio
        self.per_feature = per_feature
        self.cv = cv
        self.fit_intercept = fit_intercept
        self.max_iter = max_iter
        self.tol = tol
        self.mesh = mesh

    def _family(self, dtype: Any) -> ElasticNets:
        ratio = None if self.l1_ratio is None else jnp.asarray(self.l1_ratio, dtype)
        return ElasticNets(ratio, jnp.asarray(1e-5 if dtype == np.float32 else 1e-9, dtype))

    def _grid(self, data: Folds) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        # From l1 = max |Xᵀ y| / n on, all weights are zero.
        strongest = np.log(correlation(data))
        l1 = np.linspace(strongest - np.log(2), strongest + np.log(1e-3), self.grid_size)
        if self.l1_ratio is not None:
            shift = np.log(self.l1_ratio)
            bounds = np.array([strongest + np.log(1e-4) - shift]), np.array([strongest + np.log(2) - shift])
            return (l1 - shift)[:, None], *bounds
        largest = np.log(curvature(data))
        lower = np.array([strongest + np.log(1e-4), largest + np.log(1e-6)])
        upper = np.array([strongest + np.log(2), largest + np.log(10)])
        return np.stack([l1, np.full_like(l1, largest + np.log(1e-2))], axis=1), lower, upper

    def _set_strengths(self, strengths: np.ndarray) -> None:
        if self.l1_ratio is not None:
            self.alpha_, self.l1_ratio_ = strengths[0], self.l1_ratio
        else:
            self.alpha_ = strengths.sum(axis=0)
            self.l1_ratio_ = strengths[0] / self.alpha_
