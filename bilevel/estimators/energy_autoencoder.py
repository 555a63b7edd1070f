"""The energy auto-encoder: sparse codes, and a linear encoder that foretells them."""

import warnings
from typing import Any, NamedTuple, Self

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from bilevel.core import Solution
from bilevel.differentiation import argmin
from bilevel.estimators.base import FLOATS, devices, precision, warn_unless_solved
from bilevel.estimators.initialization import initial_dictionary
from bilevel.estimators.parameters import check_parameters
from bilevel.objectives import Autoencoder, EnergyAutoencoder as Energy, Quadratic
from bilevel.prox import UnitBall
from bilevel.scale import Shared
from bilevel.solvers import BlockAlternation, LagrangeDual, SparseCoder


class EnergyAutoencoder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Learn sparse codes Z, a decoder D and an encoder E of the samples X:

        min over Z, D, E of  ½ λd ‖X − Z D‖²_F + ½ λe ‖Z − X E‖²_F + ‖Z‖₁,   ‖dᵢ‖₂ ≤ 1, ‖e_k‖₂ ≤ 1,

    for every atom dᵢ, a row of D, and the weights e_k of every feature, a row of E, by alternation: Z exactly, then D,
    then E. The objective never rises.

    There are two ways from a sample to its code: `transform` solves for it, with D and E given; `encode` is one matrix
    product and a threshold. Data are taken as they are; patches of an image are often centered before. A sample that
    is zero, as a constant patch is once it is centered, has the code zero.

    **Arguments:**

    - `n_components`: the number of atoms; None is the number of features. There may be more than samples or features.
    - `decoder_weight`, `encoder_weight`: λd and λe. The larger both are, the fewer codes are zero.
    - `max_iter`: the most rounds through Z, D and E.
    - `tol`: stop when the relative optimality error of each of Z, D and E is below this.
    - `random_state`: draws the samples with which the decoder starts. The encoder starts as its transpose.
    - `mesh`: the number of devices among which samples are shared out; None is no mesh. (A number, not a
      `jax.sharding.Mesh`: that cannot be copied, as `clone` does.) Each codes its own. Of samples and codes the devices
      tell each other sums alone, as many numbers however many samples: the Gram matrices, of which all compute the same
      D and E, and objective and optimality. The result is the same up to rounding where samples span their features;
      elsewhere rounding decides on E in directions that no sample has.

    **Attributes:** `dictionary_` (components, features); `encoder_` (features, components); `objective_history_`
    (rounds, 3), the objective after the steps on Z, D and E; `optimality_`, the error that `tol` bounds; `n_iter_`,
    `n_samples_seen_`, `n_features_in_`.

    Data in 64 bits are treated in 64 bits, data in 32 bits in 32.

    !!! cite
        After M. Ranzato, C. Poultney, S. Chopra, Y. LeCun: Efficient learning of sparse representations with an
        energy-based model. 2006.
        J. Mairal, F. Bach, J. Ponce, G. Sapiro: Online learning for matrix factorization and sparse coding. 2010.
    """

    dictionary_: np.ndarray
    encoder_: np.ndarray
    objective_history_: np.ndarray
    optimality_: float
    n_iter_: int
    n_samples_seen_: int

    def __init__(
        self,
        n_components: int | None = None,
        *,
        decoder_weight: float = 10.0,
        encoder_weight: float = 10.0,
        max_iter: int = 100,
        tol: float = 1e-3,
        random_state: int | np.random.RandomState | None = None,
        mesh: int | None = None,
    ):
        self.n_components = n_components
        self.decoder_weight = decoder_weight
        self.encoder_weight = encoder_weight
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state
        self.mesh = mesh

    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn decoder and encoder from samples X (samples, features); y is ignored."""
        check_parameters(self.get_params(deep=False))
        X = validate_data(self, X, dtype=FLOATS)
        with precision(X.dtype):
            self._start(X)
            solver_tol, mesh = max(self.tol, np.finfo(X.dtype).tiny), devices(self.mesh)
            solver = BlockAlternation(jnp.asarray(solver_tol), int(self.max_iter), mesh=mesh)
            start = self.dictionary_, self.encoder_
            solution = _alternate(self._objective(), Shared.out(X, mesh), *start, solver)
            self.dictionary_, self.encoder_ = np.array(solution.params.dictionary), np.array(solution.params.encoder)
            self.n_iter_ = int(solution.stats["num_steps"])
            self.optimality_ = float(solution.stats["optimality"])
            self.objective_history_ = np.array(solution.stats["objective"][: self.n_iter_])
            self._remember(X, solution.params.codes.whole())
        _check_finite(self.optimality_, self.dictionary_, self.encoder_)
        if not self.optimality_ <= solver_tol:
            warnings.warn(
                f"After {self.n_iter_} rounds the relative optimality error is {self.optimality_:.1e}, above the "
                f"tolerance {solver_tol:.1e}. Try a larger max_iter or tol.",
                ConvergenceWarning,
                stacklevel=2,
            )
        return self

    def partial_fit(self, X: Any, y: Any = None) -> Self:
        """Go on learning from a batch of samples: code them, then fit D and E to the codes of all samples seen.

        Of those only ZᵀZ, ZᵀX and XᵀX are kept, in which the s-th batch of t counts s/t times: the codes of the
        first ones are those of a decoder that knew little. `fit` counts as one batch, and `objective_history_` and
        `n_iter_` stay as it left them.
        """
        check_parameters(self.get_params(deep=False))
        first = "dictionary_" not in vars(self)
        X = validate_data(self, X, dtype=FLOATS if first else self.dictionary_.dtype, reset=first)
        with precision(X.dtype):
            if first:
                self._start(X)
            self._remember(X, self._codes(X))
            fitted = _fit_to(self._seen, self.dictionary_, self.encoder_)
        _check_finite(*fitted)
        self.dictionary_, self.encoder_ = (np.array(x) for x in fitted)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """The codes of the samples X for the decoder and encoder learned, (samples, components), exactly."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=self.dictionary_.dtype, reset=False)
        with precision(X.dtype):
            return self._codes(X)

    # Without the decoder's term, ½ λe ‖z − Eᵀx‖² + ‖z‖₁ is left, which the soft threshold of Eᵀx by 1 / λe minimizes.
    def encode(self, X: Any) -> np.ndarray:
        """What the encoder alone says of X: X E, soft-thresholded by 1/λe; the codes, where decoding is perfect."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=self.dictionary_.dtype, reset=False)
        linear = X @ self.encoder_
        threshold = linear.dtype.type(1 / self.encoder_weight)
        return np.sign(linear) * np.maximum(np.abs(linear) - threshold, 0)

    def inverse_transform(self, X: Any) -> np.ndarray:
        """The samples (samples, features) that codes X (samples, components) stand for: X D."""
        check_is_fitted(self)
        codes = check_array(X, dtype=self.dictionary_.dtype.name)
        if codes.shape[1] != self._n_features_out:
            raise ValueError(f"X has {codes.shape[1]} components, but the dictionary has {self._n_features_out} atoms.")
        return codes @ self.dictionary_

    def __sklearn_tags__(self) -> Any:
        tags = TransformerMixin.__sklearn_tags__(self)
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    @property
    def _n_features_out(self) -> int:
        return self.dictionary_.shape[0]

    def _start(self, X: np.ndarray) -> None:
        """Atoms are random samples; the encoder is their transpose, shrunk into the ball. Nothing is seen yet."""
        size = X.shape[1] if self.n_components is None else int(self.n_components)
        self.dictionary_ = initial_dictionary(X, size, "random", check_random_state(self.random_state))
        norms = np.linalg.norm(self.dictionary_.T, axis=1, keepdims=True)
        self.encoder_ = self.dictionary_.T / np.maximum(norms, 1)
        self.objective_history_, self.n_iter_ = np.zeros((0, 3), X.dtype), 0
        self.n_samples_seen_, self._num_batches, self._seen = 0, 0, Seen.nothing(self.dictionary_)

    def _remember(self, X: np.ndarray, codes: np.ndarray) -> None:
        self._num_batches += 1
        self.n_samples_seen_ += len(X)
        kept = 1 - 1 / self._num_batches
        batch = Seen(codes.T @ codes, codes.T @ X, X.T @ X)
        self._seen = Seen(*(X.dtype.type(kept) * old + new for old, new in zip(self._seen, batch, strict=True)))

    def _objective(self) -> Energy:
        return Energy(self._n_features_out, float(self.decoder_weight), float(self.encoder_weight))

    def _codes(self, X: np.ndarray) -> np.ndarray:
        samples = Shared.out(X, devices(self.mesh))
        solution = _code(self._objective(), self.dictionary_, self.encoder_, samples)
        warn_unless_solved(solution)
        return solution.params.whole()


def _check_finite(*fitted: Any) -> None:
    if not all(np.isfinite(x).all() for x in fitted):
        raise ValueError(
            "Nothing finite can be fitted to X: its entries are too large or too small to be squared. Scale X."
        )


class Seen(NamedTuple):
    """ZᵀZ, ZᵀX and XᵀX of the samples seen, which is all that D and E depend on."""

    codes: Any
    cross: Any
    samples: Any

    @classmethod
    def nothing(cls, dictionary: np.ndarray) -> "Seen":
        components, features = dictionary.shape
        shapes = (components, components), (components, features), (features, features)
        return cls(*(np.zeros(shape, dictionary.dtype) for shape in shapes))


# Functions of the module, so that a second fit finds its program compiled.
@eqx.filter_jit
def _alternate(objective: Energy, X: Shared, dictionary: Any, encoder: Any, solver: BlockAlternation) -> Solution:
    samples = X.array
    start = Autoencoder(jnp.zeros((len(samples), len(dictionary)), samples.dtype), dictionary, encoder)
    solution = argmin(objective, samples, init=start, solver=solver, throw=False)
    return eqx.tree_at(lambda s: s.params.codes, solution, X.like(solution.params.codes))


@eqx.filter_jit
def _code(objective: Energy, dictionary: Any, encoder: Any, X: Shared) -> Solution:
    problem = objective.coding(dictionary, encoder, X.array)
    solution = argmin(*problem, solver=SparseCoder(mesh=X.mesh), throw=False)
    return Solution(X.like(solution.params), solution.result, solution.stats)


@eqx.filter_jit
def _fit_to(seen: Seen, dictionary: Any, encoder: Any) -> tuple[Array, Array]:
    """Decoder and encoder for given codes: each by itself, so that neither depends on λd or λe."""
    seen = Seen(*map(jnp.asarray, seen))
    decoder = Quadratic(seen.cross, left=seen.codes, nonsmooth=UnitBall())
    coder = Quadratic(seen.cross.T, left=seen.samples, nonsmooth=UnitBall())
    solve = lambda problem, start: LagrangeDual().run(problem, None, jnp.asarray(start)).params
    return solve(decoder, dictionary), solve(coder, encoder)
