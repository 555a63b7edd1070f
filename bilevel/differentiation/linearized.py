"""The equation that a solution satisfies, linearized: how the solution moves, and what a cotangent of it pulls on."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
import optax
from jaxtyping import Array, PyTree, Scalar

from bilevel.core import tree
from bilevel.core.linear_solve import LinearOptions, damped, is_regular, solve
from bilevel.core.operators import AbstractSymmetricOperator
from bilevel.objectives import AbstractObjective
from bilevel.prox import AbstractPolyhedralPenalty


class Pulled(NamedTuple):
    """b̄; the adjoint λ; the relative residual of its system, one for each sample where samples are independent."""

    cotangent: PyTree
    adjoint: PyTree
    residual: Array


# Let T(y, θ) = prox(y − s ∇f(y; θ), s; θ) with s = 1/L, and F = (y − T) / s, zero exactly at a solution (F = ∇f where
# there is no g). Then F(y*(θ), θ) = 0 gives
#
#     ∂F/∂y dy = −b,     b = ∂F/∂θ dθ.                                                                            (1)
#
# For polyhedral g the prox has, near a solution that is not degenerate, the derivative J = Π / (1 + sκ), with Π the
# orthogonal projection on the directions of a face and κ the curvature of g in it, constant along rows of J. So
#
#     ∂F/∂y = (I − J (I − s H)) / s,     H = ∇²f,
#
# which off the face, on (I − Π), is the identity over s, and on it, after a factor (1 + sκ), Π (H + κ). Equation (1)
# falls apart into
#
#     (I − Π) dy = −s (I − Π) b,
#     Π (H + κ) Π dy = −(1 + sκ) Π b − Π H (I − Π) dy,                                                            (2)
#
# a symmetric system on the support alone, as good as its Hessian there, from which s has gone: the first line is the
# motion of the resting coordinates with their kink (a bound, a shift), zero for L1; in the second, s cancels against
# the one in b. Without g all is on the face, and (2) is H dy = −b. Hence s may be held constant under differentiation,
# and nothing else may: dy is differentiated again for second derivatives, through y (which has this very rule), through
# b, and through the operator.
#
# The transpose of (2) takes a cotangent v of y to one of b. With A = Π (H + κ) Π + (I − Π), which is symmetric,
#
#     A λ = Π v,     b̄ = −(1 + sκ) Π λ − s (I − Π) (v − H λ).                                                     (3)
#
# Curved g (group L1, balls) have no faces, and (1) is solved as it stands, divided by L, by GMRES, since ∂F/∂y is not
# symmetric; its transpose is (∂F/∂y)ᵀ λ = v, b̄ = −λ.
class Linearized(NamedTuple):
    """F(y, θ) = 0 at θ = (objective, data) and y = params. `push` at b = F itself is a Newton step."""

    objective: AbstractObjective
    params: PyTree
    data: PyTree
    lipschitz: Scalar

    @classmethod
    def at(cls, objective: AbstractObjective, params: PyTree, data: PyTree) -> "Linearized":
        return cls(objective, params, data, objective.local_lipschitz(params, data))

    def optimality(self) -> PyTree:
        """F(y, θ)."""
        return self.objective.optimality(self.params, self.data, self.lipschitz)

    def push(self, right: PyTree, options: LinearOptions = LinearOptions()) -> PyTree:
        """dy for b = `right`."""
        options = self._in_units(options)
        if self._is_curved():
            return solve(self._fixed_point(), optax.tree.scale(-1 / self.lipschitz, right), options)
        if self.objective.penalty() is None:
            return solve(self.objective.hessian(self.params, self.data), optax.tree.scale(-1, right), options)
        restrict, curvature = self.objective.face(self.params, self.data)
        stepsize = 1 / self.lipschitz
        resting = jax.tree.map(lambda b, r: -stepsize * (b - r), right, restrict(right))
        dragged = self._bend(resting)
        right = jax.tree.map(lambda b, k, d: -(1 + stepsize * k) * b - d, right, curvature, dragged)
        operator = self.objective.hessian(self.params, self.data)
        return optax.tree.add(resting, solve(operator, restrict(right), options))

    def pull(self, cotangent: PyTree, options: LinearOptions = LinearOptions(), init: PyTree = None) -> Pulled:
        """b̄ for v = `cotangent`; `init` is a first guess of the adjoint."""
        options = self._in_units(options)
        if self._is_curved():
            forward = self._fixed_point()
            apply = jax.linear_transpose(forward.mv, self.params)
            operator = lx.FunctionLinearOperator(lambda v: apply(v)[0], forward.in_structure())
            right = optax.tree.scale(1 / self.lipschitz, cotangent)
        else:
            operator, right = self.objective.hessian(self.params, self.data), cotangent
        if self._is_curved() or self.objective.penalty() is None:
            adjoint = solve(operator, right, options, init=init)
            return Pulled(optax.tree.scale(-1, adjoint), adjoint, self._residual(operator, adjoint, right, options))
        restrict, curvature = self.objective.face(self.params, self.data)
        right, stepsize = restrict(cotangent), 1 / self.lipschitz
        adjoint = solve(operator, right, options, init=init)
        rest = optax.tree.sub(cotangent, self._bend(adjoint))
        pulled = jax.tree.map(
            lambda a, k, v, r: -(1 + stepsize * k) * a - stepsize * (v - r), adjoint, curvature, rest, restrict(rest)
        )
        return Pulled(pulled, adjoint, self._residual(operator, adjoint, right, options))

    def is_regular(self) -> Array:
        """Whether (1) has one solution; True where the Hessian solves itself, and marks by NaN that it has not."""
        if self._is_curved():
            return is_regular(self._fixed_point(), tree.pseudorandom_like(self.params))
        operator = self.objective.hessian(self.params, self.data)
        if isinstance(operator, AbstractSymmetricOperator):
            return jnp.asarray(True)
        restrict, _ = self.objective.face(self.params, self.data)
        return is_regular(operator, restrict(tree.pseudorandom_like(self.params)))

    def _bend(self, vector: PyTree) -> PyTree:
        """H vector."""
        gradient = lambda params: self.objective.gradient(params, self.data)
        return jax.jvp(gradient, (self.params,), (vector,))[1]

    def _fixed_point(self) -> lx.FunctionLinearOperator:
        """∂F/∂y / L."""

        def apply(vector: PyTree) -> PyTree:
            optimality = lambda params: self.objective.optimality(params, self.data, self.lipschitz)
            return optax.tree.scale(1 / self.lipschitz, jax.jvp(optimality, (self.params,), (vector,))[1])

        return lx.FunctionLinearOperator(apply, jax.eval_shape(lambda: self.params))

    def _residual(self, operator: Any, adjoint: PyTree, right: PyTree, options: LinearOptions) -> Array:
        operator = operator if options.ridge is None else damped(operator, options.ridge)
        return self.objective.relative(optax.tree.sub(right, operator.mv(adjoint)), right)

    def _is_curved(self) -> bool:
        penalty = self.objective.penalty()
        return not (penalty is None or isinstance(penalty, AbstractPolyhedralPenalty))

    def _in_units(self, options: LinearOptions) -> LinearOptions:
        """A ridge is a fraction of L."""
        if options.ridge is None or self._is_curved():
            return options
        return options._replace(ridge=options.ridge * self.lipschitz)
