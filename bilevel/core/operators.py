"""Linear operators that know how to solve themselves, in Lineax's terms."""

import abc
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree, Scalar

from bilevel.core import tree


class AbstractSymmetricOperator(lx.AbstractLinearOperator):
    """A symmetric positive definite operator on pytrees with a direct solve of its own.

    Structure (blocks, low rank, a mask) lives in the final class; whoever solves need not know of it.
    """

    @abc.abstractmethod
    def mv(self, vector: PyTree) -> PyTree:
        """A vector."""

    @abc.abstractmethod
    def solve(self, vector: PyTree) -> PyTree:
        """A⁻¹ vector; NaN where A is singular."""

    @abc.abstractmethod
    def damped(self, ridge: Scalar) -> "AbstractSymmetricOperator":
        """A + ridge I, on the coordinates that are not held."""

    def blockwise(self, solve: Callable[..., PyTree], *vectors: PyTree) -> PyTree:
        """`solve(block, *its parts of the vectors)` for every independent block of A; A is one unless it says more."""
        return solve(lx.FunctionLinearOperator(self.mv, self.in_structure(), lx.positive_semidefinite_tag), *vectors)

    @abc.abstractmethod
    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the vectors."""

    def out_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        return self.in_structure()

    def transpose(self) -> "AbstractSymmetricOperator":
        return self

    def as_matrix(self) -> Float[Array, "size size"]:
        return lx.FunctionLinearOperator(self.mv, self.in_structure()).as_matrix()


def block_widths(largest: int) -> list[int]:
    """32, 64, … up to `largest`: the sizes of blocks to which supports are gathered."""
    widths = [32]
    while widths[-1] < largest:
        widths.append(2 * widths[-1])
    return [*(w for w in widths if w < largest), largest]


def cholesky_solve(matrix: Float[Array, "n n"], right: Float[Array, "n *columns"]) -> Float[Array, "n *columns"]:
    """A⁻¹ right for a symmetric positive definite A; NaN where A is singular to rounding.

    Scaled to a unit diagonal, as Cholesky's errors do not depend on the units of the coordinates, A is perturbed by
    ε ‖A‖, and thereby A⁻¹v by a part ε ‖A‖ ‖A⁻¹v‖ / ‖v‖ of its length, for most v. Where that is above 1 % for a fixed
    v, the answer would be noise, which may well be finite.
    """
    n, eps = len(matrix), jnp.finfo(matrix.dtype).eps
    diagonal = jnp.diagonal(matrix)
    scale = 1 / jnp.sqrt(diagonal + (diagonal == 0).astype(diagonal.dtype))[:, None]
    unit = scale * matrix * scale.T
    probe = np.random.default_rng(0).normal(size=n)
    probe = jnp.asarray(probe / np.linalg.norm(probe), matrix.dtype)
    columns = jnp.concatenate([probe[:, None], scale * right.reshape(n, -1)], axis=1)
    answers = jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(unit), True), columns)
    noise = eps * jnp.linalg.norm(unit) * jnp.linalg.norm(answers[:, 0])
    # A factor, so that the derivatives are NaN too.
    good = jnp.where(noise <= 0.01, 1.0, jnp.nan).astype(matrix.dtype)
    return (good * scale * answers[:, 1:]).reshape(right.shape)


@lx.linearise.register(AbstractSymmetricOperator)
@lx.conj.register(AbstractSymmetricOperator)
def _same(operator: AbstractSymmetricOperator) -> AbstractSymmetricOperator:
    return operator


@lx.materialise.register(AbstractSymmetricOperator)
def _materialise(operator: AbstractSymmetricOperator) -> lx.AbstractLinearOperator:
    return lx.materialise(lx.FunctionLinearOperator(operator.mv, operator.in_structure()))


@lx.diagonal.register(AbstractSymmetricOperator)
def _diagonal(operator: AbstractSymmetricOperator) -> Array:
    return lx.diagonal(lx.MatrixLinearOperator(operator.as_matrix()))


def _register(property_of: Any, answer: bool) -> None:
    property_of.register(AbstractSymmetricOperator)(lambda operator: answer)


for _yes in (lx.is_symmetric, lx.is_positive_semidefinite):
    _register(_yes, True)
for _no in (
    lx.is_diagonal,
    lx.is_tridiagonal,
    lx.is_lower_triangular,
    lx.is_upper_triangular,
    lx.is_negative_semidefinite,
    lx.has_unit_diagonal,
):
    _register(_no, False)


def hessian_vector_product(function: Any, params: PyTree, direction: PyTree) -> PyTree:
    """∇²function(params) · direction, forward over reverse."""
    return jax.jvp(jax.grad(function), (params,), (direction,))[1]


def power_iteration(apply: Any, start: PyTree, num_steps: int = 20) -> Array:
    """An estimate, from below, of the largest |eigenvalue| of the symmetric linear function `apply`."""

    def step(_: int, carry: tuple[PyTree, Array]) -> tuple[PyTree, Array]:
        image = apply(carry[0])
        size = tree.norm(image)
        return optax.tree.scale(1 / jnp.where(size > 0, size, 1), image), size

    norm = tree.norm(start)
    unit = optax.tree.scale(1 / jnp.where(norm > 0, norm, 1), start)
    return jax.lax.fori_loop(0, num_steps, step, (unit, jnp.zeros_like(norm)))[1]
