"""Dictionary learning without a task."""

from typing import Any, Self

import numpy as np
from sklearn.utils import check_random_state
from sklearn.utils.validation import validate_data

from bilevel.estimators.base import FLOATS, AbstractDictionaryEstimator, precision
from bilevel.estimators.parameters import check_parameters


class DictionaryLearning(AbstractDictionaryEstimator):
    """Learn a dictionary D in which the samples have sparse codes C:

        min over D, C of  (1/n) [ ½‖X − C D‖²_F + l1 ‖C‖₁ + ½ l2 ‖C‖²_F ],   ‖d‖₂ ≤ 1 for every atom d,

    by stochastic projected gradient steps on D, the codes solved to their tolerance at each.

    **Arguments:**

    - `n_components`: the number of atoms; None is the number of features.
    - `l1`, `l2`: the strengths of the penalty on the codes, in the units of the squared data.
    - `max_iter`: the most epochs; training begins anew, twice at most, where atoms die.
    - `tol`: stop when ten epochs lower the loss by less than this fraction.
    - `batch_size`: samples a step; None is all of them. `learning_rate`: of Adam, falling to zero along a cosine.
    - `init`: `"svd"` (the top right singular vectors), `"random"` or `"k-means++"` samples, or an array.
    - `random_state`, `verbose`: as everywhere in scikit-learn; `verbose` shows a progress bar.
    - `mesh`: the number of devices among which samples are shared out; None is no mesh. (A number, not a
      `jax.sharding.Mesh`: that cannot be copied, as `clone` does.) In training the devices reduce once a step, as by
      `bilevel.Trainer`; where samples are coded, by each its own, they tell each other how it went.
      The result is the same on any number of devices, up to rounding; without a mesh, batches are drawn otherwise.

    **Attributes:** `dictionary_` (components, features); `usage_`, how many training samples use each atom;
    `dead_atoms_`, the atoms that none does; `history_`, `n_iter_`, `n_features_in_`.

    Data in 64 bits are treated in 64 bits, data in 32 bits in 32.

    !!! cite
        J. Mairal, F. Bach, J. Ponce, G. Sapiro: Online learning for matrix factorization and sparse coding. 2010.
    """

    def __init__(
        self,
        n_components: int | None = None,
        *,
        l1: float = 0.1,
        l2: float = 0.01,
        max_iter: int = 100,
        tol: float = 1e-4,
        batch_size: int | None = 256,
        learning_rate: float = 0.1,
        init: str | np.ndarray = "svd",
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
        mesh: int | None = None,
    ):
        self.n_components = n_components
        self.l1 = l1
        self.l2 = l2
        self.max_iter = max_iter
        self.tol = tol
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.init = init
        self.random_state = random_state
        self.verbose = verbose
        self.mesh = mesh

    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn the dictionary from samples X (samples, features); y is ignored."""
        check_parameters(self.get_params(deep=False))
        X = validate_data(self, X, dtype=FLOATS)
        with precision(X.dtype):
            self._learn_dictionary(X, self.learning_rate, check_random_state(self.random_state))
        return self
