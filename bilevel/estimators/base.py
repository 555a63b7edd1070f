"""What the estimators share: precision, training of a dictionary, codes."""

import contextlib
import warnings
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float, PyTree, Scalar
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted, validate_data

from bilevel.core import RESULTS, Solution
from bilevel.differentiation import argmin
from bilevel.estimators.initialization import initial_dictionary
from bilevel.estimators.optimizer import cosine_adam
from bilevel.estimators.parameters import check_parameters
from bilevel.objectives import SparseCoding
from bilevel.outer import BilevelProblem, Constrained, Trainer, Variables
from bilevel.outer.monitors.reseeding import reseeded
from bilevel.outer.problem import OuterLoss
from bilevel.prox import UnitBall
from bilevel.scale import DeviceMesh, Shared
from bilevel.solvers import SparseCoder

FLOATS = (np.float64, np.float32)

#: Into how many ranges samples are cut where batches go to a mesh: as many on any number of devices.
SHARDS = 64

#: Epochs between two looks at whether the loss still falls.
EPOCHS = 10


class AbstractDictionaryEstimator(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """An estimator with a dictionary, `dictionary_` (components, features), and sparse codes in it."""

    n_components: int | None
    l1: float
    l2: float
    max_iter: int
    tol: float
    batch_size: int | None
    learning_rate: float
    init: str | np.ndarray
    random_state: int | np.random.RandomState | None
    verbose: bool
    mesh: int | None
    dictionary_: np.ndarray
    usage_: np.ndarray
    history_: dict[str, np.ndarray]
    n_iter_: int

    def transform(self, X: Any) -> np.ndarray:
        """The sparse codes of the samples X in the dictionary, (samples, components)."""
        return self._codes(X)

    def __sklearn_tags__(self) -> Any:
        tags = TransformerMixin.__sklearn_tags__(self)
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    @property
    def dead_atoms_(self) -> np.ndarray:
        """The indices of the atoms that no training sample uses."""
        return np.flatnonzero(self.usage_ == 0)

    @property
    def _n_features_out(self) -> int:
        return self.dictionary_.shape[0]

    def _codes(self, X: Any) -> np.ndarray:
        """`transform`, as an array whatever `set_output` says."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=FLOATS, reset=False)
        return self._encode(X)

    def _encode(self, X: np.ndarray) -> np.ndarray:
        """The codes of X, in the precision of the dictionary; warns where they miss the tolerance."""
        with precision(self.dictionary_.dtype):
            samples = Shared.out(np.asarray(X, self.dictionary_.dtype), devices(self.mesh))
            solution = _encode(SparseCoding(self.dictionary_, self.l1, self.l2), samples)
            warn_unless_solved(solution)
            return solution.params.whole()

    def _first_dictionary(self, X: np.ndarray, random: np.random.RandomState) -> np.ndarray:
        size = X.shape[1] if self.n_components is None else int(self.n_components)
        return initial_dictionary(X, size, self.init, random)

    def _learn_dictionary(self, X: np.ndarray, learning_rate: float, random: np.random.RandomState) -> np.ndarray:
        """Learn a dictionary for the samples alone; returns their codes.

        An atom that no sample uses has no gradient and would stay dead. Where there are such, they become residuals of
        the samples that are reconstructed worst, and training begins anew, twice at most.
        """
        start = self._first_dictionary(X, random)
        codes = self._train(reconstruction_loss, start, None, (X,), learning_rate, random)
        for _ in range(2):
            residuals = X - codes @ self.dictionary_
            start, replaced = reseeded(self.dictionary_, self.usage_ == 0, residuals, self.l1)
            if not np.any(replaced):
                break
            start = initial_dictionary(X, len(start), start, random)
            codes = self._train(reconstruction_loss, start, None, (X,), learning_rate, random)
        return codes

    def _train(
        self,
        loss: OuterLoss,
        dictionary: np.ndarray,
        task: PyTree,
        data: tuple,
        learning_rate: float,
        random: np.random.RandomState,
    ) -> np.ndarray:
        """Adam on dictionary and task for up to `max_iter` epochs, atoms in the unit ball; returns the codes."""
        X = data[0]
        variables = Variables(SparseCoding(dictionary, self.l1, self.l2), task)
        problem = BilevelProblem(loss, variables, inner_data=_samples, train=_trained, constraints=[_UNIT_ATOMS])
        batch_size = None if self.batch_size is None or self.batch_size >= len(X) else int(self.batch_size)
        per_epoch = 1 if batch_size is None else -(-len(X) // batch_size)
        num_steps, every = int(self.max_iter) * per_epoch, EPOCHS * per_epoch
        mesh = devices(self.mesh)
        shards = None if mesh is None or batch_size is None else SHARDS
        optimizer = cosine_adam(learning_rate, num_steps, X.dtype)
        trainer = Trainer(problem, optimizer, batch_size, mesh=mesh, shards=shards)
        fitted = trainer.fit(
            data,
            num_steps,
            key=jax.random.key(random.randint(2**31)),
            every=every,
            callback=lambda _, history: _has_stalled(history["loss"], every, self.tol),
            progress=f"{type(self).__name__}, {len(dictionary)} atoms" if self.verbose else False,
            on_failure="skip",
        )
        self.history_ = fitted.history
        self.n_iter_ = len(self.history_["loss"]) // per_epoch
        if np.any(self.history_["refused"]) or not np.all(self.history_["inner_success"]):
            warnings.warn(
                "Some training steps failed: their loss was not finite, or their codes missed the tolerance. Try a "
                "smaller learning_rate, a larger l2, or standardize the features.",
                ConvergenceWarning,
                stacklevel=2,
            )
        self.dictionary_ = np.array(_trained(fitted.variables)[0])
        codes = self._encode(X)
        self.usage_ = np.count_nonzero(codes, axis=0)
        return codes


def precision(dtype: Any) -> contextlib.AbstractContextManager:
    """Compute in 64 bits for data in 64 bits, whatever JAX is set to, as users of scikit-learn expect."""
    return jax.enable_x64(True) if np.dtype(dtype) == np.float64 else contextlib.nullcontext()


def devices(mesh: int | None) -> DeviceMesh | None:
    """The mesh of so many devices. Raises `ValueError` where it is not such a number, or there are fewer."""
    check_parameters({"mesh": mesh})
    return None if mesh is None else DeviceMesh.of(int(mesh))


def warn_unless_solved(codes: Solution) -> None:
    """Warn where codes miss their tolerance."""
    if codes.result != RESULTS.successful:
        error, tol = float(codes.stats["optimality"]), float(codes.stats["tol"])
        warnings.warn(
            f"The codes' relative optimality error is {error:.1e}, above the tolerance {tol:.1e}. Try a larger "
            "l2, or standardize the features.",
            ConvergenceWarning,
            stacklevel=4,
        )


@eqx.filter_jit
def _encode(objective: SparseCoding, X: Shared) -> Solution:
    solution = argmin(objective, X.array, solver=SparseCoder(mesh=X.mesh), throw=False)
    return Solution(X.like(solution.params), solution.result, solution.stats)


def reconstruction_loss(variables: Variables, codes: Float[Array, "samples atoms"], batch: tuple) -> Scalar:
    """The mean over samples of the coding objective itself.

    At codes that minimize it, its derivative through the codes vanishes (Danskin), so that they may be held constant.
    """
    X = batch[0]
    return variables.objective(jax.lax.stop_gradient(codes), X) / len(X)


# Functions of the module, so that a second fit finds its program compiled.
def _samples(batch: tuple) -> Array:
    return batch[0]


def _trained(variables: Variables) -> tuple[Array, PyTree]:
    assert isinstance(variables.objective, SparseCoding)
    return variables.objective.dictionary, variables.task


_UNIT_ATOMS = Constrained(lambda variables: variables.objective.dictionary, UnitBall())


def _has_stalled(losses: Float[np.ndarray, " steps"], every: int, tol: float) -> bool:
    """Whether the mean loss of the last `every` steps is less than a fraction `tol` below that of those before."""
    if len(losses) < 2 * every:
        return False
    before, after = np.mean(losses[-2 * every : -every]), np.mean(losses[-every:])
    return bool(before - after < tol * abs(before))
