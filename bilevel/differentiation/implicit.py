"""Differentiate the equation that a solution satisfies: one rule for every solver."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import PyTree, ScalarLike

from bilevel.core import Solution, tree
from bilevel.core.linear_solve import LinearOptions
from bilevel.core.policy import Policy, check_policy
from bilevel.core.requirements import nonnegative, raise_where_violated
from bilevel.differentiation.base import AbstractDifferentiation, judge
from bilevel.differentiation.linearized import Linearized
from bilevel.objectives import AbstractObjective
from bilevel.solvers import AbstractSolver


class Implicit(AbstractDifferentiation):
    """Implicit differentiation, restricted to the support of the solution: forward, reverse and higher order.

    With F the optimality, F(y*(θ), θ) = 0 gives  ∂F/∂y dy = −∂F/∂θ dθ, one linear system whatever the solver and the
    number of its steps, in memory that does not depend on either. Nothing flows to the start or to the solver, on
    which a solution does not depend.

    **Arguments:**

    - `linear_solver`: a Lineax solver (`lineax.CG`, `GMRES`, `BiCGStab`, `Normal(CG)`, `Cholesky`, …) or `Neumann`.
      None: the Hessian's own direct solve where the objective has one, else conjugate gradient (polyhedral penalties
      and none) or GMRES (curved penalties). Whichever it is, it sees the system in units of its own, and one sample
      at a time where samples are independent, so that neither the scale of the objective nor other samples matter.
    - `ridge`: what is added to the diagonal of the system, as a fraction of the Lipschitz constant of ∇f: damping
      where it is close to singular, at the price of an error of about that fraction of the condition number.
    - `on_failure`: what derivatives are worth where the solution missed its tolerance, or the linear system could not
      be solved (a singular Hessian on the support): `"raise"`, `"nan"`, `"warn"` or `"ignore"`, of which the last two
      give the formula at the failed solution. None is `"raise"` for `argmin(throw=True)`, else `"nan"`.

    !!! cite
        A. Griewank, A. Walther: Evaluating Derivatives, 2nd edition, chapter 15. 2008.
        Q. Bertrand et al.: Implicit differentiation of Lasso-type models for hyperparameter optimization. 2020.
    """

    linear_solver: lx.AbstractLinearSolver | None = None
    ridge: ScalarLike | None = None
    on_failure: Policy | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        check_policy("on_failure", self.on_failure, optional=True)
        if self.linear_solver is not None and not isinstance(self.linear_solver, lx.AbstractLinearSolver):
            came = getattr(self.linear_solver, "__name__", repr(self.linear_solver))
            raise ValueError(f"`linear_solver` must be a Lineax solver such as lineax.CG(1e-8, 1e-8), got {came}.")
        if self.ridge is not None:
            raise_where_violated([nonnegative("ridge", self.ridge)])

    @property
    def linear_options(self) -> LinearOptions:
        """How the linear systems are solved."""
        ridge = None if self.ridge is None else jnp.asarray(self.ridge)
        return LinearOptions(self.linear_solver, ridge, "nan" if self.on_failure is None else self.on_failure)

    def apply(self, solver: AbstractSolver, objective: AbstractObjective, data: PyTree, init: PyTree) -> Solution:
        # Nothing flows to solver, start and ridge, so they carry no tangents into the rule.
        return _implicit_argmin((objective, data), *tree.constant((solver, init, tree.to_arrays(self))))


@eqx.filter_custom_jvp
def _implicit_argmin(
    inputs: tuple[AbstractObjective, PyTree], solver: AbstractSolver, init: PyTree, diff: Implicit
) -> Solution:
    objective, data = inputs
    return solver.run(objective, data, init)


@_implicit_argmin.def_jvp
def _implicit_argmin_jvp(primals: tuple, tangents: tuple) -> tuple[Solution, Solution]:
    inputs, solver, init, diff = primals
    solution = _implicit_argmin(inputs, solver, init, diff)
    objective, data = inputs
    # At both ends of the rule, as in between the projection on the support would hide it from some entries.
    judged = lambda tangent: judge(diff.on_failure, solution, tangent)
    tangent, options, motion = judged(tangents[0]), diff.linear_options, None
    if options.solver is None and options.ridge is None:
        motion = objective.respond(solution.params, data, tangent, options.on_failure)
    if motion is None:
        motion = _along(Linearized.at(objective, solution.params, data), tangent, options)
    still = jax.tree.map(lambda _: None, solution)
    return solution, eqx.tree_at(lambda s: s.params, still, judged(motion), is_leaf=lambda x: x is None)


def _along(linearized: Linearized, tangent: PyTree, options: LinearOptions) -> PyTree:
    """How the solution moves along a tangent of (objective, data), None for what does not move."""
    inputs = (linearized.objective, linearized.data)
    moves = jax.tree.map(lambda t: t is not None, tangent, is_leaf=lambda t: t is None)
    moving, still = eqx.partition(inputs, moves)

    def optimality(moving: PyTree) -> PyTree:
        objective, data = eqx.combine(moving, still)
        return linearized._replace(objective=objective, data=data).optimality()

    return linearized.push(jax.jvp(optimality, (moving,), (tangent,))[1], options)
