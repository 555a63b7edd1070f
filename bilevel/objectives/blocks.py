"""Objectives block by block: the problem in one child of the unknown, the others held."""

import abc

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Scalar, ScalarLike

from bilevel.core import tree
from bilevel.core.requirements import Requirement
from bilevel.objectives.base import AbstractObjective, Units
from bilevel.prox import AbstractPenalty

#: An objective of one block alone, and its data.
Subproblem = tuple[AbstractObjective, PyTree]


class AbstractBlockObjective(AbstractObjective):
    """An objective f + g with structure in each block of its unknown, a block being a child of `params`.

    `subproblem` may compute once what all steps on a block share (a Gram matrix, say), and name a kind of problem for
    which there is a specialist: `SparseCoding`, one with a formula, `Quadratic`.
    """

    @abc.abstractmethod
    def subproblem(self, index: int, params: PyTree, data: PyTree) -> Subproblem:
        """The problem in block `index` of `params`, the others held: equal to f + g up to a constant."""

    def gauge(self, index: int, params: PyTree, data: PyTree) -> Subproblem:
        """The same problem, in a form whose optimality is cheaper to measure where there is one."""
        return self.subproblem(index, params, data)

    def value_after(self, index: int, params: PyTree, value: Scalar, block: PyTree, data: PyTree) -> Scalar:
        """f + g with another block `index`: anew, or from its `value` at `params` where that is known and cheaper.

        It is infinite where it is not known.
        """
        del value
        return self(with_child(params, index, block), data)

    # Where g is separable, 0 ∈ ∇f(y) + ∂g(y) falls apart into the same for each block: a point is stationary exactly
    # where every block of it is optimal for its own problem. Each has units of its own, lest one whose curvature is
    # larger by orders of magnitude hide the others.
    def optimality_errors(self, params: PyTree, data: PyTree, units: Units) -> Array:
        """The largest error of each block, as its own problem measures it."""
        return jnp.stack([self._error_in(index, params, data) for index in range(len(children(params)))])

    def least_error(self, params: PyTree, data: PyTree, units: Units) -> Scalar:
        """A bound of `optimality_error` from below that is cheap: the error of the first block, as it waits longest.

        Who overrides `optimality_errors` overrides this, too.
        """
        del units
        return self._error_in(0, params, data)

    def _error_in(self, index: int, params: PyTree, data: PyTree) -> Scalar:
        problem, own = self.gauge(index, params, data)
        block = children(params)[index]
        return problem.optimality_error(block, own, problem.units(block, own))

    def _curvature(self, params: PyTree, data: PyTree) -> Scalar:
        """Σ over blocks of the Lipschitz constants of their own gradients: a bound where f is jointly convex."""
        curvatures = []
        for index, block in enumerate(children(params)):
            problem, own = self.gauge(index, params, data)
            curvatures.append(problem.local_lipschitz(block, own))
        return jnp.sum(jnp.stack(curvatures))


class Held(AbstractObjective):
    """`objective` as a function of block `index` of its unknown, the others held as they are in `params`.

    Its penalty is that of the objective, which is taken to be separable in the blocks, as those of the library are.
    """

    objective: AbstractObjective
    index: int
    params: PyTree

    def smooth(self, params: PyTree, data: PyTree) -> Scalar:
        return self.objective.smooth(self._whole(params), data)

    def penalty(self) -> AbstractPenalty | None:
        penalty = self.objective.penalty()
        return None if penalty is None else _InBlock(penalty, self.index, self.params)

    def init(self, data: PyTree) -> PyTree:
        return children(self.params)[self.index]

    def _whole(self, block: PyTree) -> PyTree:
        return with_child(self.params, self.index, block)


class _InBlock(AbstractPenalty):
    """A separable penalty in one block. What is computed for the others is not used, and the compiler drops it."""

    penalty: AbstractPenalty
    index: int
    params: PyTree

    def requirements(self) -> list[Requirement]:
        return []

    def value(self, params: PyTree) -> Scalar:
        return self.penalty.value(with_child(self.params, self.index, params))

    def prox(self, params: PyTree, stepsize: ScalarLike) -> PyTree:
        return children(self.penalty.prox(with_child(self.params, self.index, params), stepsize))[self.index]

    def margin(self, params: PyTree, stepsize: ScalarLike) -> PyTree:
        return children(self.penalty.margin(with_child(self.params, self.index, params), stepsize))[self.index]


class Quadratic(AbstractObjective):
    """min over Y of  ½⟨Y, A Y B⟩ − ⟨C, Y⟩ + g(Y)  for symmetric A, B ⪰ 0: least squares by its Gram matrices.

    A step costs what A and B cost, however many samples went into them. With W fixed, ½‖X − W Y‖² is, up to a
    constant, this with A = WᵀW and C = WᵀX; ½‖X − Y W‖² is this with B = W Wᵀ and C = X Wᵀ. None is the identity.
    """

    linear: Float[Array, "rows columns"]
    left: Float[Array, "rows rows"] | None = None
    right: Float[Array, "columns columns"] | None = None
    nonsmooth: AbstractPenalty | None = None

    def smooth(self, params: Float[Array, "rows columns"], data: PyTree) -> Scalar:
        return jnp.sum((0.5 * self._bent(params) - self.linear) * params)

    def gradient(self, params: Float[Array, "rows columns"], data: PyTree) -> Array:
        return self._bent(params) - self.linear

    # f(y') − f(y) = ½⟨∇f(y) + ∇f(y'), y' − y⟩ as f is quadratic, which does not cancel where y' is near y.
    def change(self, before: Float[Array, "rows columns"], after: Float[Array, "rows columns"]) -> Scalar:
        """f(after) − f(before)."""
        return jnp.sum((0.5 * self._bent(before + after) - self.linear) * (after - before))

    def penalty(self) -> AbstractPenalty | None:
        return self.nonsmooth

    def init(self, data: PyTree) -> Array:
        return jnp.zeros_like(self.linear)

    def lipschitz(self, data: PyTree) -> Scalar:
        """λmax(A) λmax(B), or up to 1.12 times as much for each of them with a thousand rows."""
        bounds = [largest_bound(M) for M in (self.left, self.right) if M is not None]
        return jnp.prod(jnp.stack(bounds)) if bounds else jnp.ones((), self.linear.dtype)

    # Its own start is 0, where ∇f = −C.
    def units(self, params: Float[Array, "rows columns"], data: PyTree) -> Units:
        return Units(self.local_lipschitz(params, data), self._curvature(params, data), self.norms(self.linear))

    # Rows that lie on different devices are to stay there, as they would not if they were flattened.
    def norms(self, values: Float[Array, "rows columns"]) -> Scalar:
        return tree.norm(values)

    def _bent(self, params: Float[Array, "rows columns"]) -> Array:
        bent = params if self.left is None else self.left @ params
        return bent if self.right is None else bent @ self.right


# For symmetric M ⪰ 0 with eigenvalues λ, ‖M^p‖_F = (Σ λ^2p)^½ lies between λmax^p and √n λmax^p. So its p-th root is a
# bound of λmax that is too large by n^(1/2p) at most: by 1.12 for n = 1000 and p = 32, which takes five squarings.
def largest_bound(matrix: Float[Array, "n n"], squarings: int = 5) -> Scalar:
    """A bound, from above, of the largest eigenvalue of a symmetric positive semidefinite matrix."""
    size = tree.norm(matrix)
    # M^p = scale^p · unit with ‖unit‖_F = 1, lest powers overflow.
    scale, unit = size, matrix / jnp.where(size > 0, size, 1)
    for k in range(1, squarings + 1):
        square = unit @ unit
        size = tree.norm(square)
        scale, unit = scale * size ** (0.5**k), square / jnp.where(size > 0, size, 1)
    return scale


def subproblem(objective: AbstractObjective, index: int, params: PyTree, data: PyTree) -> Subproblem:
    """The problem in block `index`: the objective's own, or the objective itself with the other blocks held."""
    if isinstance(objective, AbstractBlockObjective):
        return objective.subproblem(index, params, data)
    return Held(objective, index, params), data


def value_after(
    objective: AbstractObjective, index: int, params: PyTree, value: Scalar, block: PyTree, data: PyTree
) -> Scalar:
    """f + g with another block `index`, for its `value` at `params`, infinite where that is not known."""
    if isinstance(objective, AbstractBlockObjective):
        return objective.value_after(index, params, value, block, data)
    return objective(with_child(params, index, block), data)


def children(params: PyTree) -> list[PyTree]:
    """The blocks: the children of the root of `params`, in their order."""
    return jax.tree.leaves(params, is_leaf=lambda node: node is not params)


def with_child(params: PyTree, index: int, child: PyTree) -> PyTree:
    """`params` with another child."""
    blocks, structure = jax.tree.flatten(params, is_leaf=lambda node: node is not params)
    return structure.unflatten([*blocks[:index], child, *blocks[index + 1 :]])
