"""Dictionary and predictor learned together: the gradient of the task's loss goes through the sparse codes."""

import abc
import inspect
from typing import Any, Self

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Scalar
from scipy.special import softmax
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

from bilevel.estimators.base import FLOATS, AbstractDictionaryEstimator, precision
from bilevel.estimators.parameters import check_parameters
from bilevel.outer import Variables
from bilevel.outer.problem import OuterLoss

#: The linear head: weights (components, outputs) and intercepts (outputs,).
Head = tuple[np.ndarray, np.ndarray]

#: Adam's rate for the stage without a task, the default of `DictionaryLearning`.
UNSUPERVISED_RATE = 0.1


class AbstractTaskDriven(AbstractDictionaryEstimator):
    """min over D in the unit ball, W, b of  (1/n) Σᵢ loss(Wᵀ cᵢ(D) + b, yᵢ) + ½ alpha ‖W‖²,

    with cᵢ(D) the sparse code of xᵢ in D. Three stages: a dictionary for the samples alone, a linear head for its
    codes, then both together, where the gradient of the task's loss reaches the dictionary through the codes. The head
    is convex and is solved exactly before and after the joint training.

    **Arguments:**

    - `n_components`: the number of atoms; None is the number of features.
    - `l1`, `l2`: the strengths of the penalty on the codes, in the units of the squared data.
    - `alpha`: the strength of the penalty on the head.
    - `max_iter`: the most epochs of each stage; the first begins anew, twice at most, where atoms die.
    - `tol`: a stage stops when ten epochs lower the loss by less than this fraction.
    - `batch_size`: samples a step; None is all of them. `learning_rate`: of Adam in the joint stage, falling to zero
      along a cosine.
    - `init`: `"svd"` (the top right singular vectors), `"random"` or `"k-means++"` samples; or an array, a
      dictionary with which the joint stage begins at once.
    - `random_state`, `verbose`: as everywhere in scikit-learn; `verbose` shows a progress bar.
    - `mesh`: the number of devices among which samples are shared out; None is no mesh. (A number, not a
      `jax.sharding.Mesh`: that cannot be copied, as `clone` does.) In training the devices reduce once a step, as by
      `bilevel.Trainer`; where samples are coded, by each its own, they tell each other how it went.
      The result is the same on any number of devices, up to rounding; without a mesh, batches are drawn otherwise.

    **Attributes:** `dictionary_` (components, features); `unsupervised_dictionary_`, where the joint stage began;
    `coef_`, `intercept_`, the head; `usage_`, how many training samples use each atom; `dead_atoms_`, the atoms that
    none does; `history_` of the joint stage, `n_iter_`, `n_features_in_`.

    Data in 64 bits are treated in 64 bits, data in 32 bits in 32.

    !!! cite
        J. Mairal, F. Bach, J. Ponce: Task-driven dictionary learning. 2012.
    """

    alpha: float
    unsupervised_dictionary_: np.ndarray
    coef_: np.ndarray
    intercept_: np.ndarray

    def __init__(
        self,
        n_components: int | None = None,
        *,
        l1: float = 0.1,
        l2: float = 0.01,
        alpha: float = 1e-3,
        max_iter: int = 100,
        tol: float = 1e-4,
        batch_size: int | None = 256,
        learning_rate: float = 0.01,
        init: str | np.ndarray = "svd",
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
        mesh: int | None = None,
    ):
        self.n_components = n_components
        self.l1 = l1
        self.l2 = l2
        self.alpha = alpha
        self.max_iter = max_iter
        self.tol = tol
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.init = init
        self.random_state = random_state
        self.verbose = verbose
        self.mesh = mesh

    @abc.abstractmethod
    def _solve_head(self, codes: np.ndarray, targets: np.ndarray) -> Head:
        """The best head for these codes."""

    def _fit_stages(self, X: np.ndarray, targets: np.ndarray, loss: OuterLoss) -> Head:
        random = check_random_state(self.random_state)
        if isinstance(self.init, str):
            codes = self._learn_dictionary(X, UNSUPERVISED_RATE, random)
        else:
            self.dictionary_ = self._first_dictionary(X, random)
            codes = self._encode(X)
        self.unsupervised_dictionary_ = self.dictionary_
        head = self._solve_head(codes, targets)
        codes = self._train(loss, self.dictionary_, head, (X, targets), self.learning_rate, random)
        return self._solve_head(codes, targets)

    def _outputs(self, X: Any) -> np.ndarray:
        return self._codes(X) @ self.coef_.T + self.intercept_


class TaskDrivenDictionaryClassifier(ClassifierMixin, AbstractTaskDriven):
    __doc__ = f"""Classification by a dictionary that is learned for it, with the logistic loss of several classes.

{inspect.getdoc(AbstractTaskDriven)}
"""

    classes_: np.ndarray

    def fit(self, X: Any, y: Any) -> Self:
        """Learn dictionary and head from samples X (samples, features) and labels y."""
        check_parameters(self.get_params(deep=False))
        X, y = validate_data(self, X, y, dtype=FLOATS)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"`y` has one class only, {self.classes_[0]!r}; a classifier needs two. Add samples of another."
            )
        with precision(X.dtype):
            loss = CrossEntropy(jnp.asarray(self.alpha, X.dtype))
            weights, self.intercept_ = self._fit_stages(X, labels.astype(np.int32), loss)
        self.coef_ = weights.T
        return self

    def _solve_head(self, codes: np.ndarray, targets: np.ndarray) -> Head:
        # scikit-learn's C weighs the sum of the losses against ½‖W‖².
        strength = max(self.alpha, np.finfo(codes.dtype).eps)
        head = LogisticRegression(C=1 / (strength * len(codes)), max_iter=2000).fit(codes, targets)
        return head.coef_.T.astype(codes.dtype), head.intercept_.astype(codes.dtype)

    def decision_function(self, X: Any) -> np.ndarray:
        """The scores of the classes, (samples, classes); of the second against the first for two, (samples,)."""
        scores = self._outputs(X)
        return scores[:, 0] if len(self.classes_) == 2 else scores

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probabilities of the classes, (samples, classes)."""
        scores = self.decision_function(X)
        return softmax(np.column_stack([np.zeros_like(scores), scores]) if scores.ndim == 1 else scores, axis=1)

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each sample."""
        scores = self.decision_function(X)
        return self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else np.argmax(scores, axis=1)]


class TaskDrivenDictionaryRegressor(RegressorMixin, AbstractTaskDriven):
    __doc__ = f"""Regression by a dictionary that is learned for it, with the squared error, of one or several targets.

Targets are standardized inside, so that `alpha` and `learning_rate` do not depend on their units.

{inspect.getdoc(AbstractTaskDriven)}
"""

    def fit(self, X: Any, y: Any) -> Self:
        """Learn dictionary and head from samples X (samples, features) and y, (samples,) or (samples, targets)."""
        check_parameters(self.get_params(deep=False))
        X, y = validate_data(self, X, y, dtype=FLOATS, multi_output=True, y_numeric=True)
        # In 64 bits, as squares of targets may overflow in 32.
        columns = y.astype(np.float64).reshape(len(y), -1)
        with np.errstate(over="ignore"):
            mean, deviation = columns.mean(axis=0), columns.std(axis=0)
        if not np.all(np.isfinite(deviation)):
            raise ValueError("`y` is so large that its variance overflows. Divide it by its largest magnitude.")
        scale = np.where(deviation > 0, deviation, 1)
        standardized = ((columns - mean) / scale).astype(X.dtype)
        with precision(X.dtype):
            loss = SquaredError(jnp.asarray(self.alpha, X.dtype))
            weights, intercept = self._fit_stages(X, standardized, loss)
        coef, intercept = ((weights * scale).T.astype(X.dtype), (intercept * scale + mean).astype(X.dtype))
        self.coef_, self.intercept_ = (coef[0], intercept[0]) if y.ndim == 1 else (coef, intercept)
        return self

    def __sklearn_tags__(self) -> Any:
        tags = RegressorMixin.__sklearn_tags__(self)
        tags.target_tags.multi_output = True
        return tags

    def _solve_head(self, codes: np.ndarray, targets: np.ndarray) -> Head:
        # scikit-learn's Ridge weighs ‖W‖² against the sum of the squared errors.
        head = Ridge(alpha=self.alpha * len(codes)).fit(codes, targets)
        return np.atleast_2d(head.coef_).T, np.broadcast_to(head.intercept_, targets.shape[1])

    def predict(self, X: Any) -> np.ndarray:
        """The predicted targets, of the shape of those given to `fit`."""
        return self._outputs(X)


class CrossEntropy(eqx.Module):
    """The mean cross entropy of labels 0, 1, … under a linear head, plus ½ alpha ‖W‖².

    One output is the score of class 1 against class 0.
    """

    alpha: Float[Array, ""]

    def __call__(
        self,
        variables: Variables,
        codes: Float[Array, "samples atoms"],
        batch: tuple[Float[Array, "samples features"], Int[Array, " samples"]],
    ) -> Scalar:
        weights, intercept = variables.task
        scores = codes @ weights + jnp.broadcast_to(intercept, (len(codes), len(intercept)))
        if scores.shape[1] == 1:
            scores = jnp.concatenate([jnp.zeros_like(scores), scores], axis=1)
        losses = optax.losses.softmax_cross_entropy_with_integer_labels(scores, batch[1])
        return jnp.mean(losses) + 0.5 * self.alpha * jnp.sum(weights**2)


class SquaredError(eqx.Module):
    """The mean of ½ ‖error‖² under a linear head, plus ½ alpha ‖W‖²."""

    alpha: Float[Array, ""]

    def __call__(
        self,
        variables: Variables,
        codes: Float[Array, "samples atoms"],
        batch: tuple[Float[Array, "samples features"], Float[Array, "samples targets"]],
    ) -> Scalar:
        weights, intercept = variables.task
        errors = codes @ weights + jnp.broadcast_to(intercept, batch[1].shape) - batch[1]
        return 0.5 * jnp.sum(errors**2) / len(errors) + 0.5 * self.alpha * jnp.sum(weights**2)
