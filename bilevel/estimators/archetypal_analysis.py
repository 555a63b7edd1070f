"""Archetypal analysis."""

import warnings
from typing import Any, Self

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Scalar
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.cluster import kmeans_plusplus
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from bilevel.core import Solution
from bilevel.estimators.base import FLOATS, devices, precision
from bilevel.estimators.parameters import check_parameters
from bilevel.objectives import Archetypes, ArchetypeWeights, HullPoints, Quadratic
from bilevel.objectives.archetypes import equal_weights, furthest_sum
from bilevel.prox import Simplex
from bilevel.scale import Shared
from bilevel.solvers import BlockAlternation, ColumnGeneration
from bilevel.solvers.descent import descend

NAMES = ("furthest_sum", "k-means++", "random")

#: Gradient steps on the weights in a round, and on those that a model returns at last.
STEPS, LAST_STEPS = 100, 2000


class ArchetypalAnalysis(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Approximate samples X by mixtures of archetypes, which are themselves mixtures of samples:

        min over A, B of  ½‖X − A B X‖²_F,   every row of A (samples, archetypes) and of B (archetypes, samples) ≥ 0
        with sum 1.

    Prefer it to k-means where samples lie between a few extremes rather than around centers, and to non-negative
    matrix factorization where the components should look like samples.

    Not convex in A and B together: the answer is a stationary point, which depends on the start. It is verified by the
    duality gaps of both blocks: no other weights alone, and no other archetypes alone, lower the loss by more than the
    fraction `optimality_` of it. Gaps below 1000 roundings of the samples' spread count as 0, which in 32 bits is 1e-4
    of that spread. Where `optimality_` is above `tol`, `fit` warns. The loss never rises by more than rounding.

    **Arguments:**

    - `n_archetypes`: how many; at most the number of samples. One archetype is the mean.
    - `init`: `"furthest_sum"`, samples far from each other; `"k-means++"` or `"random"` samples; or an array
      (archetypes, features), of which the nearest points in the convex hull of the samples are taken.
    - `max_iter`: the most rounds through both blocks. `tol`: the bound on `optimality_`.
    - `random_state`: as everywhere in scikit-learn.
    - `normalize`: whether to measure each feature in units of its standard deviation. A shift of the samples changes
      nothing in any case.
    - `mesh`: the number of devices among which samples are shared out, with their rows of A and columns of B; None is
      no mesh. (A number, not a `jax.sharding.Mesh`: that cannot be copied, as `clone` does.) The devices tell each
      other sums over samples, archetypes and the few samples on which these rest, as many numbers however many samples;
      and in every step on the weights, how the loss moved. The result is the same up to rounding.

    **Attributes:** `archetypes_` (archetypes, features), in the units of X; `weights_` (samples, archetypes), A;
    `mixtures_` (archetypes, samples), B; `loss_history_`, the loss at the start and after every round, in the units of
    the fit; `reconstruction_err_`, ‖X − A B X‖_F in the units of X; `optimality_`, `n_iter_`, `n_features_in_`.

    Duplicated samples are alike to the fit; which of them an archetype names in B is arbitrary. Constant samples are
    all archetypes at once, with equal weights. Data in 64 bits are treated in 64 bits, data in 32 bits in 32.

    !!! cite
        A. Cutler, L. Breiman: Archetypal analysis. 1994.
        M. Mørup, L. K. Hansen: Archetypal analysis for machine learning and data mining. 2012.
    """

    archetypes_: np.ndarray
    weights_: np.ndarray
    mixtures_: np.ndarray
    loss_history_: np.ndarray
    reconstruction_err_: float
    optimality_: float
    n_iter_: int

    def __init__(
        self,
        n_archetypes: int = 3,
        *,
        init: str | np.ndarray = "furthest_sum",
        max_iter: int = 300,
        tol: float = 1e-3,
        random_state: int | np.random.RandomState | None = None,
        normalize: bool = False,
        mesh: int | None = None,
    ):
        self.n_archetypes = n_archetypes
        self.init = init
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state
        self.normalize = normalize
        self.mesh = mesh

    def fit(self, X: Any, y: Any = None) -> Self:
        """Find the archetypes of samples X (samples, features); y is ignored."""
        self.fit_transform(X, y)
        return self

    def fit_transform(self, X: Any, y: Any = None) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        """`fit`, and the weights of the samples, (samples, archetypes)."""
        check_parameters(self.get_params(deep=False))
        X = validate_data(self, X, dtype=FLOATS, order="C")
        count = int(self.n_archetypes)
        if count > len(X):
            raise ValueError(
                f"`n_archetypes` is {count}, but there are {len(X)} samples (n_samples={len(X)}); as many archetypes "
                "reproduce them all. Ask for fewer archetypes."
            )
        mean, deviation = X.mean(axis=0), X.std(axis=0)
        # The deviation of a constant is what rounding leaves of it.
        varies = deviation > 10 * np.finfo(X.dtype).eps * np.max(np.abs(X), axis=0)
        self._scale = np.where(varies, deviation, 1) if self.normalize else np.ones_like(deviation)
        with precision(X.dtype):
            rows = Shared.out((X - mean) / self._scale, devices(self.mesh))
            mixtures = self._first_mixtures(X, rows, check_random_state(self.random_state))
            # The alternation measures the gaps before the weights' last steps, which change those of the archetypes.
            tol = jnp.asarray(self.tol / 10, X.dtype)
            solution = _alternate(rows, mixtures, tol, int(self.max_iter))
            mixtures = solution.params[1]
            self.mixtures_ = mixtures.whole()
            self.archetypes_ = self.mixtures_ @ X
            weights = self._weights(X)
            error, loss = _verify(rows, Shared.out(weights, rows.mesh), mixtures)
        self.weights_, self.n_iter_ = weights, int(solution.stats["num_steps"])
        rounds = np.asarray(solution.stats["objective"])[: self.n_iter_, -1]
        self.loss_history_ = np.array([float(solution.stats["objective_at_start"]), *rounds], X.dtype)
        # That of the weights which `transform` gives, too.
        self.loss_history_[-1] = float(loss)
        self.reconstruction_err_ = float(np.linalg.norm(X - weights @ self.archetypes_))
        self.optimality_ = float(error)
        if not self.optimality_ <= self.tol:
            warnings.warn(
                f"After {self.n_iter_} rounds the duality gaps are {self.optimality_:.1e} of the loss, above the "
                f"tolerance {self.tol:.1e}. Try a larger max_iter or tol, another init, or data in 64 bits.",
                ConvergenceWarning,
                stacklevel=2,
            )
        return self.weights_

    def transform(self, X: Any) -> np.ndarray:
        """The weights of the samples X whose mixtures of archetypes are nearest to them, (samples, archetypes)."""
        check_is_fitted(self)
        return self._weights(self._checked(X))

    def inverse_transform(self, X: Any) -> np.ndarray:
        """The mixtures of archetypes with the weights X, (samples, features)."""
        check_is_fitted(self)
        weights = check_array(X, dtype=self.archetypes_.dtype.name)
        if weights.shape[1] != len(self.archetypes_):
            raise ValueError(
                f"`X` must have shape (samples, {len(self.archetypes_)}), a column for each archetype, got "
                f"{weights.shape}."
            )
        return weights @ self.archetypes_

    def score(self, X: Any, y: Any = None) -> float:
        """−‖X − A Z‖²_F for the best weights A of the samples X: the larger, the better."""
        check_is_fitted(self)
        X = self._checked(X)
        return -float(np.sum((X - self._weights(X) @ self.archetypes_) ** 2))

    def __sklearn_tags__(self) -> Any:
        tags = TransformerMixin.__sklearn_tags__(self)
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    @property
    def _n_features_out(self) -> int:
        return len(self.archetypes_)

    def _checked(self, X: Any) -> np.ndarray:
        """Samples of the precision of the archetypes."""
        return np.asarray(validate_data(self, X, dtype=FLOATS, order="C", reset=False), self.archetypes_.dtype)

    def _weights(self, X: np.ndarray) -> np.ndarray:
        with precision(X.dtype):
            # A shift of samples and archetypes alike changes no weights, and makes the problem better conditioned.
            mean = self.archetypes_.mean(axis=0)
            archetypes, rows = ((rows - mean) / self._scale for rows in (self.archetypes_, X))
            return _solve_weights(archetypes, Shared.out(rows, devices(self.mesh))).whole()

    def _first_mixtures(self, X: np.ndarray, rows: Shared, random: np.random.RandomState) -> Shared:
        count = int(self.n_archetypes)
        if count == 1:
            return Shared.out(np.full((1, len(X)), 1 / len(X), X.dtype), rows.mesh, axis=1)
        if not isinstance(self.init, str):
            return _nearest_in_hull((self._given(X) - X.mean(axis=0)) / self._scale, rows)
        if self.init not in NAMES:
            raise ValueError(f"`init` must be one of {NAMES} or an array, got {self.init!r}.")
        if self.init == "furthest_sum":
            samples = np.asarray(_furthest_sum(rows, count, jnp.asarray(random.randint(len(X)))))
        elif self.init == "k-means++":
            samples = kmeans_plusplus(rows.whole(), count, random_state=random)[1]
        else:
            samples = random.choice(len(X), count, replace=False)
        mixtures = np.zeros((count, len(X)), X.dtype)
        mixtures[np.arange(count), samples] = 1
        return Shared.out(mixtures, rows.mesh, axis=1)

    def _given(self, X: np.ndarray) -> np.ndarray:
        shape = (int(self.n_archetypes), X.shape[1])
        try:
            archetypes = np.array(self.init, dtype=X.dtype)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"`init` must be one of {NAMES} or an array of numbers, got {type(self.init).__name__}."
            ) from error
        if archetypes.shape != shape:
            raise ValueError(f"`init` must have shape (n_archetypes, n_features) = {shape}, got {archetypes.shape}.")
        if not np.all(np.isfinite(archetypes)):
            raise ValueError("`init` must have finite entries, some are NaN or infinite.")
        return archetypes


# Functions of the module, so that a second fit of the same shapes finds its program compiled.
@eqx.filter_jit
def _alternate(rows: Shared, mixtures: Shared, tol: Scalar, max_iter: int) -> Solution:
    solver = BlockAlternation(
        tol=tol, max_steps=max_iter, block_steps=STEPS, block_tol=0.01, jump=False, mesh=rows.mesh
    )
    X, B = rows.array, mixtures.array
    solution = solver.run(Archetypes(len(B)), X, (equal_weights(X, len(B)), B))
    A, B = solution.params
    return Solution((rows.like(A), mixtures.like(B)), solution.result, solution.stats)


@eqx.filter_jit
def _solve_weights(archetypes: Array, rows: Shared) -> Shared:
    X = rows.array
    problem = Quadratic(X @ archetypes.T, right=archetypes @ archetypes.T, nonsmooth=Simplex())
    start = ArchetypeWeights(archetypes).init(X)
    return rows.like(descend(problem, None, start, LAST_STEPS, 10 * jnp.finfo(X.dtype).eps)[0])


@eqx.filter_jit
def _verify(rows: Shared, weights: Shared, mixtures: Shared) -> tuple[Scalar, Scalar]:
    X, params = rows.array, (weights.array, mixtures.array)
    objective = Archetypes(len(params[1]))
    return objective.optimality_error(params, X, objective.units(params, X)), objective.smooth(params, X)


@eqx.filter_jit
def _furthest_sum(rows: Shared, count: int, first: Int[Array, ""]) -> Array:
    return furthest_sum(rows.array, count, first)


@eqx.filter_jit
def _nearest_in_hull(archetypes: Array, rows: Shared) -> Shared:
    X = rows.array
    problem = HullPoints(jnp.eye(len(archetypes), dtype=X.dtype), archetypes)
    solver = ColumnGeneration(tol=1e-6, max_steps=100, mesh=rows.mesh)
    return rows.like(solver.run(problem, X, problem.init(X)).params, axis=1)
