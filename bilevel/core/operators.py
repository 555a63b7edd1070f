"""Linear operators that know how to solve themselves, in Lineax's terms."""

import abc
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import optax
from jaxtyping import Array, Float, PyTree


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
    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the vectors."""

    def out_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        return self.in_structure()

    def transpose(self) -> "AbstractSymmetricOperator":
        return self

    def as_matrix(self) -> Float[Array, "size size"]:
        return lx.FunctionLinearOperator(self.mv, self.in_structure()).as_matrix()


class SelfSolve(lx.AbstractLinearSolver):
    """Ask the operator, an `AbstractSymmetricOperator`, to solve itself."""

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> AbstractSymmetricOperator:
        del options
        if not isinstance(operator, AbstractSymmetricOperator):
            raise ValueError(
                f"SelfSolve needs an operator with a solve of its own, got {type(operator).__name__}. "
                "Use lineax.CG or lineax.GMRES for it."
            )
        return operator

    def compute(
        self, state: AbstractSymmetricOperator, vector: PyTree, options: dict[str, Any]
    ) -> tuple[PyTree, lx.RESULTS, dict[str, Any]]:
        del options
        return state.solve(vector), lx.RESULTS.successful, {}

    def transpose(self, state: AbstractSymmetricOperator, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return state, options

    def conj(self, state: AbstractSymmetricOperator, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return state, options

    def assume_full_rank(self) -> bool:
        return True


def linear_solver_for(operator: lx.AbstractLinearOperator) -> lx.AbstractLinearSolver:
    """The operator's own solve where it has one, conjugate gradient where it is positive definite, else GMRES."""
    if isinstance(operator, AbstractSymmetricOperator):
        return SelfSolve()
    leaves = jax.tree.leaves(operator.in_structure())
    size, eps = sum(leaf.size for leaf in leaves), float(jnp.finfo(leaves[0].dtype).eps)
    # A hundred roundings above the floor that the precision sets for a residual.
    tol = 100 * eps
    if lx.is_positive_semidefinite(operator):
        return lx.CG(rtol=tol, atol=0.0, max_steps=10 * size + 100)
    return lx.GMRES(rtol=tol, atol=0.0, restart=min(size, 100), max_steps=10 * size + 100)


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
        size = optax.tree.norm(image)
        return optax.tree.scale(1 / jnp.where(size > 0, size, 1), image), size

    norm = optax.tree.norm(start)
    unit = optax.tree.scale(1 / jnp.where(norm > 0, norm, 1), start)
    return jax.lax.fori_loop(0, num_steps, step, (unit, jnp.zeros_like(norm)))[1]
