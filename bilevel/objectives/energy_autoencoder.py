"""The energy auto-encoder: sparse codes with a linear decoder and a linear encoder, both learned."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PyTree, Scalar

from bilevel.core.requirements import Requirement, as_float_array, check_whole, positive
from bilevel.objectives.base import check_float
from bilevel.objectives.blocks import AbstractBlockObjective, Quadratic, Subproblem, children, with_child
from bilevel.objectives.sparse_coding import SparseCoding
from bilevel.prox import L1, BlockSeparable, UnitBall

Data = Float[Array, "samples features"]


class Autoencoder(eqx.Module):
    """Codes Z, one row a sample; the decoder D, one row an atom; the encoder E, one row a feature."""

    codes: PyTree[Float[Array, "samples components"]]
    dictionary: PyTree[Float[Array, "components features"]]
    encoder: PyTree[Float[Array, "features components"]]


class EnergyAutoencoder(AbstractBlockObjective):
    """min over Z, D, E of  ½ λd ‖X − Z D‖²_F + ½ λe ‖Z − X E‖²_F + ‖Z‖₁,   ‖dᵢ‖₂ ≤ 1, ‖e_k‖₂ ≤ 1,

    for samples X, one a row, every atom dᵢ (a row of D) and the weights e_k of every feature (a row of E). λd is
    `decoder_weight` and λe `encoder_weight`; the unknown is an `Autoencoder` of `components` atoms.

    It is convex in each of Z, D and E; `bilevel.solvers.BlockAlternation` solves it. For given D and E, the codes are
    `bl.argmin(*objective.coding(D, E, X)).params`, which can be differentiated with respect to all of D, E, X, λd, λe.

    !!! cite
        After M. Ranzato, C. Poultney, S. Chopra, Y. LeCun: Efficient learning of sparse representations with an
        energy-based model. 2006.
    """

    components: int = eqx.field(static=True)
    decoder_weight: Scalar
    encoder_weight: Scalar

    def __init__(self, components: int, decoder_weight: ArrayLike = 1.0, encoder_weight: ArrayLike = 1.0):
        check_whole("components", components)
        self.components = components
        self.decoder_weight = as_float_array("decoder_weight", decoder_weight, ndim=0)
        self.encoder_weight = as_float_array("encoder_weight", encoder_weight, ndim=0)

    def requirements(self) -> list[Requirement]:
        return [positive("decoder_weight", self.decoder_weight), positive("encoder_weight", self.encoder_weight)]

    def check_data(self, data: Data) -> None:
        check_float("X", data, ("samples", "features"))

    def smooth(self, params: Autoencoder, data: Data) -> Scalar:
        decoded = jnp.sum((data - params.codes @ params.dictionary) ** 2)
        encoded = jnp.sum((params.codes - data @ params.encoder) ** 2)
        decoder_weight, encoder_weight = self._weights(data)
        return 0.5 * decoder_weight * decoded + 0.5 * encoder_weight * encoded

    def penalty(self) -> BlockSeparable:
        return BlockSeparable(Autoencoder(L1(), UnitBall(), UnitBall()))

    def init(self, data: Data) -> Autoencoder:
        """No codes, and a decoder and encoder drawn by lot, always the same."""
        samples, features = data.shape
        shape, dtype = (self.components, features), data.dtype
        decoder, encoder = (jax.random.normal(jax.random.key(k), s, dtype) for k, s in enumerate((shape, shape[::-1])))
        unit = lambda rows: rows / jnp.linalg.norm(rows, axis=1, keepdims=True)
        return Autoencoder(jnp.zeros((samples, self.components), dtype), unit(decoder), unit(encoder))

    # With Z alone to be found, both squares are one: ½ ‖[√λd X, √λe X E] − Z [√λd D, √λe I]‖².
    def coding(
        self,
        dictionary: Float[Array, "components features"],
        encoder: Float[Array, "features components"],
        data: Data,
    ) -> tuple[SparseCoding, Data]:
        """The problem of the codes for a given decoder and encoder: sparse coding, with as many features more as atoms.

        Equal to f + g at fixed D and E.
        """
        decoder_root, encoder_root = (jnp.sqrt(weight) for weight in self._weights(data))
        identity = jnp.eye(self.components, dtype=data.dtype)
        atoms = jnp.concatenate([decoder_root * dictionary, encoder_root * identity], axis=1)
        samples = jnp.concatenate([decoder_root * data, encoder_root * (data @ encoder)], axis=1)
        return _Extended(atoms, 1.0), samples  # pyright: ignore[reportCallIssue]

    def subproblem(self, index: int, params: Autoencoder, data: Data) -> Subproblem:
        if index == 0:
            return self.coding(params.dictionary, params.encoder, data)
        return self.gauge(index, params, data)

    # A few Gram matrices stand for all samples: up to constants,
    #
    #     ½ λd ‖X − Z D‖² = λd (½⟨D, ZᵀZ D⟩ − ⟨ZᵀX, D⟩)                   in D,
    #     ½ λe ‖Z − X E‖² = λe (½⟨E, XᵀX E⟩ − ⟨XᵀZ, E⟩)                   in E,
    #     their sum       = ½⟨Z, Z (λd D Dᵀ + λe I)⟩ − ⟨λd X Dᵀ + λe X E, Z⟩   in Z.
    def gauge(self, index: int, params: Autoencoder, data: Data) -> Subproblem:
        Z, D, E = params.codes, params.dictionary, params.encoder
        decoder_weight, encoder_weight = self._weights(data)
        if index == 0:
            gram = decoder_weight * (D @ D.T) + encoder_weight * jnp.eye(len(D), dtype=data.dtype)
            return Quadratic(data @ (decoder_weight * D.T + encoder_weight * E), right=gram, nonsmooth=L1()), None
        cross = Z.T @ data
        if index == 1:
            return Quadratic(decoder_weight * cross, left=decoder_weight * (Z.T @ Z), nonsmooth=UnitBall()), None
        gram = encoder_weight * (data.T @ data)
        return Quadratic(encoder_weight * cross.T, left=gram, nonsmooth=UnitBall()), None

    def value_after(self, index: int, params: Autoencoder, value: Scalar, block: Array, data: Data) -> Scalar:
        """Of decoder and encoder, from the Gram matrices that their problems are made of."""
        anew = lambda: self(with_child(params, index, block), data)
        if index == 0:
            return anew()
        problem, _ = self.gauge(index, params, data)
        assert isinstance(problem, Quadratic)
        # Where the value is finite, the block was in the balls.
        near = value + problem.change(children(params)[index], block) + UnitBall().value(block)
        return jax.lax.cond(jnp.isfinite(value), lambda: near, anew)

    def _weights(self, data: Data) -> tuple[Scalar, Scalar]:
        return self.decoder_weight.astype(data.dtype), self.encoder_weight.astype(data.dtype)


# The products of the parts, which the compiler finds where they were put together.
class _Extended(SparseCoding):
    """Sparse coding in [D, ρ I], an atom's own feature behind its others: D Dᵀ + ρ² I, and X Dᵀ + ρ Y for [X, Y]."""

    def gram(self) -> Float[Array, "atoms atoms"]:
        atoms, own = self._parts(self.dictionary)
        return atoms @ atoms.T + own**2

    def correlations(self, data: Data) -> Float[Array, "samples atoms"]:
        atoms, own = self._parts(self.dictionary)
        samples, encoded = self._parts(data)
        return samples @ atoms.T + own[0, 0] * encoded

    def _parts(self, rows: Array) -> tuple[Array, Array]:
        features = rows.shape[1] - len(self.dictionary)
        return rows[:, :features], rows[:, features:]
