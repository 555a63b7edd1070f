"""Archetypal analysis: samples as mixtures of archetypes, which are themselves mixtures of samples."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, PyTree, Scalar

from bilevel.core.requirements import Requirement, as_float_array, check_whole, finite
from bilevel.objectives.base import AbstractObjective, Units, check_float
from bilevel.objectives.blocks import AbstractBlockObjective, Quadratic, Subproblem
from bilevel.objectives.design import largest_of_gram
from bilevel.prox import PolyhedralBlockSeparable, Simplex

Data = Float[Array, "samples features"]
#: A of the derivations: one mixture of archetypes for each sample.
Weights = Float[Array, "samples archetypes"]
#: B of the derivations: one mixture of samples for each archetype.
Mixtures = Float[Array, "archetypes samples"]

#: Gaps are of first order in errors of A and B, and steps are accepted by values, which see those of second order only:
#: so many units of rounding of the spread are out of reach.
ROUNDINGS = 1000


class ArchetypeWeights(AbstractObjective):
    """min over A of  ½‖X − A Z‖²_F,  every row of A in the simplex, for given archetypes Z, one a row.

    A Z are the points of the archetypes' convex hull that are nearest to the samples. A is unique where the archetypes
    in use by a sample are affinely independent; elsewhere A Z is, but A has no derivative.

    !!! cite
        A. Cutler, L. Breiman: Archetypal analysis. 1994.
    """

    samplewise: ClassVar[bool] = True

    archetypes: Float[Array, "archetypes features"]

    def __init__(self, archetypes: ArrayLike):
        archetypes = as_float_array("archetypes", archetypes)
        self.archetypes = check_float("archetypes", archetypes, ("archetypes", "features"))

    def requirements(self) -> list[Requirement]:
        return [finite("archetypes", self.archetypes)]

    def check_data(self, data: Data) -> None:
        X = check_float("X", data, ("samples", "features"), self.archetypes.dtype)
        if X.shape[1] != self.archetypes.shape[1]:
            raise ValueError(
                f"`X` has {X.shape[1]} features, but `archetypes` have {self.archetypes.shape[1]}. Samples and "
                "archetypes are rows."
            )

    def smooth(self, params: Weights, data: Data) -> Scalar:
        return 0.5 * jnp.sum((data - params @ self.archetypes) ** 2)

    def penalty(self) -> Simplex:
        return Simplex()

    def init(self, data: Data) -> Weights:
        return equal_weights(data, len(self.archetypes))

    def lipschitz(self, data: Data) -> Scalar:
        return largest_of_gram(self.archetypes)


# Of the samples X and the mixtures B only the points Z = B X count, and d numbers for each of them:
#
#     f(B) = ½⟨G, Z Zᵀ⟩ − ⟨M, Z⟩,     ∇f(B) = (G Z − M) Xᵀ,     ‖∇²f‖ ≤ ‖G‖ ‖X‖².
#
# So a gradient takes 2 k N d operations and nothing larger than B and X.
class HullPoints(AbstractObjective):
    """min over B of  ½⟨G, Z Zᵀ⟩ − ⟨M, Z⟩  with  Z = B X,  every row of B in the simplex, for samples X, one a row.

    Its unknown are points Z of the convex hull of the samples, coupled by a quadratic G ⪰ 0. With G = I they are the
    points of the hull that are nearest to the rows of M; with G = AᵀA and M = AᵀX they are the archetypes that serve
    weights A best. Data are the samples, or (archetypes, samples, features) where each point has samples of its own.
    """

    gram: Float[Array, "archetypes archetypes"]
    linear: Float[Array, "archetypes features"]

    def smooth(self, params: Mixtures, data: Array) -> Scalar:
        points = mixed(params, data)
        return jnp.sum((0.5 * self.gram @ points - self.linear) * points)

    def gradient(self, params: Mixtures, data: Array) -> Mixtures:
        slope = self.gram @ mixed(params, data) - self.linear
        return slope @ data.T if data.ndim == 2 else jnp.einsum("kd,knd->kn", slope, data)

    def penalty(self) -> Simplex:
        return Simplex()

    def init(self, data: Array) -> Mixtures:
        """For each point the sample that is best by the gradient at 0."""
        start = jnp.zeros((len(self.linear), data.shape[-2]), data.dtype)
        return jax.nn.one_hot(jnp.argmin(self.gradient(start, data), axis=1), data.shape[-2], dtype=data.dtype)

    def lipschitz(self, data: Array) -> Scalar:
        own = data[None] if data.ndim == 2 else data
        return jnp.linalg.eigvalsh(self.gram)[-1] * jnp.max(jax.vmap(largest_of_gram)(own))


# f(A, B) = ½‖X − A Z‖² with Z = B X is convex in A and in B, each on a product of simplices. There the linear function
# ⟨∇f, ·⟩ is least at a vertex, the least entry of each row, so that by convexity no change of one block alone lowers f
# by more than the duality gap of Frank and Wolfe,
#
#     gap_A = Σᵢ ⟨gᵢ, aᵢ⟩ − min gᵢ,  g = A Z Zᵀ − X Zᵀ;     gap_B = Σₗ ⟨hₗ, bₗ⟩ − min hₗ,  h = (AᵀA Z − AᵀX) Xᵀ.
#
# Both are ≥ 0, and both are 0 exactly at a stationary point. They are in the units of f, so that no step size enters.
#
# As the rows of A and of B sum to one, A B (X − 1 mᵀ) = A B X − 1 mᵀ for any m: a shift of all samples shifts the
# archetypes, and changes neither A nor B. Centered samples make the problem in A, B better conditioned, by far.
class Archetypes(AbstractBlockObjective):
    """min over A, B of  ½‖X − A B X‖²_F,  every row of A and of B in the simplex, for samples X, one a row.

    The archetypes B X are mixtures of samples, and samples are approximated by mixtures A of them. Not convex in both
    together: the answer is a stationary point, which depends on the start. `BlockAlternation` is the solver to use.
    Center the samples beforehand: it changes neither A nor B, and makes the problem better conditioned.

    The optimality error is the sum of both blocks' duality gaps over the loss: no change of one block alone lowers the
    loss by more than that fraction of it. Gaps below 1000 ε ½‖X − 1 x̄ᵀ‖² count as 0, for rounding: 1e-4 of the spread
    in 32 bits, 2e-13 in 64. So in 32 bits a loss that is small beside the spread is verified less sharply. Nothing
    here is N × N; memory is O(N (k + d)).

    B is not unique as soon as there are more samples than features, so it has no derivative. Differentiate the weights
    in the archetypes, by `ArchetypeWeights`.

    !!! cite
        A. Cutler, L. Breiman: Archetypal analysis. 1994.
        M. Mørup, L. K. Hansen: Archetypal analysis for machine learning and data mining. 2012.
    """

    n_archetypes: int = eqx.field(static=True)

    def __check_init__(self):
        check_whole("n_archetypes", self.n_archetypes)

    def check_data(self, data: Data) -> None:
        X = check_float("X", data, ("samples", "features"))
        if len(X) < self.n_archetypes:
            raise ValueError(
                f"`n_archetypes` is {self.n_archetypes}, but `X` has {len(X)} samples; as many archetypes reproduce "
                "them all. Ask for fewer archetypes."
            )

    def smooth(self, params: tuple[Weights, Mixtures], data: Data) -> Scalar:
        weights, mixtures = params
        return 0.5 * jnp.sum((data - weights @ (mixtures @ data)) ** 2)

    def penalty(self) -> PolyhedralBlockSeparable:
        return PolyhedralBlockSeparable((Simplex(), Simplex()))

    def init(self, data: Data) -> tuple[Weights, Mixtures]:
        """Archetypes at samples that are far from each other, by furthest sum; every sample an equal mixture."""
        samples = furthest_sum(data, self.n_archetypes)
        return equal_weights(data, self.n_archetypes), jax.nn.one_hot(samples, len(data), dtype=data.dtype)

    def subproblem(self, index: int, params: tuple[Weights, Mixtures], data: Data) -> Subproblem:
        weights, mixtures = params
        if index == 0:
            points = mixtures @ data
            return Quadratic(data @ points.T, right=points @ points.T, nonsmooth=Simplex()), data
        return HullPoints(weights.T @ weights, weights.T @ data), data

    def units(self, params: PyTree, data: Data) -> Units:
        """Gradients are measured by the loss of one archetype, ½‖X − 1 x̄ᵀ‖²."""
        spread = 0.5 * jnp.sum((data - jnp.mean(data, axis=0, keepdims=True)) ** 2)
        lipschitz = self.local_lipschitz(params, data)
        return Units(lipschitz, lipschitz, spread)

    def optimality_errors(self, params: tuple[Weights, Mixtures], data: Data, units: Units) -> Scalar:
        """(gap_A + gap_B) / f; 0 where the gaps are within `ROUNDINGS` of the spread."""
        of_weights, of_mixtures = self.gaps(params, data)
        return self._relative(of_weights + of_mixtures, params, data, units)

    def least_error(self, params: tuple[Weights, Mixtures], data: Data, units: Units) -> Scalar:
        """gap_A / f, as `optimality_errors`."""
        return self._relative(self.gaps(params, data)[0], params, data, units)

    def gaps(self, params: tuple[Weights, Mixtures], data: Data) -> tuple[Scalar, Scalar]:
        """The most by which a change of A alone, and of B alone, could lower the loss; upper bounds of it."""
        weights, mixtures = params
        points = mixtures @ data
        slope = (weights.T @ weights) @ points - weights.T @ data
        return _gap(weights, weights @ (points @ points.T) - data @ points.T), _gap(mixtures, slope @ data.T)

    def _relative(self, gap: Scalar, params: tuple[Weights, Mixtures], data: Data, units: Units) -> Scalar:
        loss, rounding = self.smooth(params, data), ROUNDINGS * jnp.finfo(data.dtype).eps * units.gradient
        return jnp.where(gap <= rounding, 0, gap / jnp.where(loss > 0, loss, 1))


def mixed(mixtures: Mixtures, data: Array) -> Float[Array, "archetypes features"]:
    """B X, for shared samples or for those of each archetype."""
    return mixtures @ data if data.ndim == 2 else jnp.einsum("kn,knd->kd", mixtures, data)


def _gap(params: Array, gradient: Array) -> Scalar:
    return jnp.sum(jnp.sum(params * gradient, axis=1) - jnp.min(gradient, axis=1))


def equal_weights(data: Data, count: int) -> Weights:
    """Every sample an equal mixture of so many archetypes."""
    return jnp.full((len(data), count), 1 / count, data.dtype)


def furthest_sum(data: Data, count: int, first: Int[ArrayLike, ""] = 0) -> Int[Array, " archetypes"]:
    """The indices of `count` samples, each that of the largest sum of distances to the others.

    From the sample `first` on, one after the other; then each is chosen once more in view of all others, so that
    little depends on `first`. No sample is chosen twice.

    !!! cite
        M. Mørup, L. K. Hansen: Archetypal analysis for machine learning and data mining. 2012. Section 2.2.
    """
    # An array of one number takes one sample from its device; for a number all would come together.
    distances = lambda at: jnp.sqrt(jnp.sum((data - data[at[None]]) ** 2, axis=1))

    def choose(step: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        chosen, sums = carry
        place, again = step % count, step >= count
        sums = jnp.where(again, sums - distances(chosen[place]), sums)
        # Places that are still empty are out of range, and mask nothing.
        chosen = chosen.at[place].set(len(data))
        new = jnp.argmax(sums.at[chosen].set(-jnp.inf, mode="drop"))
        return chosen.at[place].set(new), sums + distances(new)

    chosen = jnp.full(count, len(data)).at[0].set(first)
    return jax.lax.fori_loop(1, 2 * count, choose, (chosen, distances(jnp.asarray(first))))[0]
