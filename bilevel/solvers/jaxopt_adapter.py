"""JAXopt's solvers behind one adapter; nothing else in the library imports JAXopt.

Each class below says how one of JAXopt's solvers is built; `jaxopt_driver` runs it.
"""

import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree, Scalar, ScalarLike

from bilevel.core import Solution, tree
from bilevel.core.requirements import is_traced
from bilevel.objectives import AbstractLeastSquares, AbstractObjective, LeastSquares
from bilevel.prox import L1, AbstractConstraint, ElasticNet, NonNegative, Simplex
from bilevel.solvers.base import AbstractSolver, check_options, check_smooth, refuse
from bilevel.solvers.inverse_hessian import InverseHessian
from bilevel.solvers.jaxopt_driver import AbstractJaxoptSolver, Method, Problem
from bilevel.solvers.loop import Unroll, default_tol, verdict

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "JAXopt is no longer maintained", DeprecationWarning)
    import jaxopt
    import jaxopt.base
    import jaxopt.implicit_diff
    import jaxopt.objective


class ProximalGradient(AbstractJaxoptSolver):
    """Accelerated proximal gradient (FISTA), for f + g with any penalty or constraint.

    `stepsize=None` is 1/L where the objective knows L, else a backtracking line search.

    !!! cite
        A. Beck, M. Teboulle: A fast iterative shrinkage-thresholding algorithm for linear inverse problems. 2009.
    """

    tol: ScalarLike | None = None
    max_steps: int = 5000
    stepsize: ScalarLike | None = None
    acceleration: bool = True

    def check(self, objective: AbstractObjective) -> None:
        pass

    def build(self, problem: Problem) -> Method:
        stepsize = problem.step(self.stepsize)
        options = dict(stepsize=stepsize, acceleration=self.acceleration)
        solver = jaxopt.ProximalGradient(
            fun=problem.smooth, prox=problem.prox, **options, **problem.options(self.max_steps)
        )
        return Method(solver, (None,), searches=stepsize == 0.0)


class ProjectedGradient(AbstractJaxoptSolver):
    """Accelerated projected gradient, for f over a constraint.

    !!! cite
        Yu. Nesterov: Gradient methods for minimizing composite functions. 2013.
    """

    tol: ScalarLike | None = None
    max_steps: int = 5000
    stepsize: ScalarLike | None = None
    acceleration: bool = True

    def check(self, objective: AbstractObjective) -> None:
        if not isinstance(objective.penalty(), AbstractConstraint):
            raise refuse(self, objective, "its penalty is not a constraint", "ProximalGradient()")

    def build(self, problem: Problem) -> Method:
        stepsize = problem.step(self.stepsize)
        options = dict(stepsize=stepsize, acceleration=self.acceleration)
        project = lambda params, hyperparams=None: problem.prox(params)
        solver = jaxopt.ProjectedGradient(
            fun=problem.smooth, projection=project, **options, **problem.options(self.max_steps)
        )
        return Method(solver, (None,), searches=stepsize == 0.0)


class GradientDescent(AbstractJaxoptSolver):
    """Gradient descent, with Nesterov's acceleration unless `acceleration=False`, for smooth objectives."""

    tol: ScalarLike | None = None
    max_steps: int = 5000
    stepsize: ScalarLike | None = None
    acceleration: bool = True

    def check(self, objective: AbstractObjective) -> None:
        check_smooth(self, objective)

    def build(self, problem: Problem) -> Method:
        stepsize = problem.step(self.stepsize)
        options = dict(stepsize=stepsize, acceleration=self.acceleration)
        solver = jaxopt.GradientDescent(fun=problem.smooth, **options, **problem.options(self.max_steps))
        return Method(solver, searches=stepsize == 0.0)


class LBFGS(AbstractJaxoptSolver):
    """Limited-memory BFGS with a zoom line search, for smooth objectives.

    !!! cite
        J. Nocedal, S. Wright: Numerical Optimization, 2nd edition, algorithm 7.5. 2006.
    """

    tol: ScalarLike | None = None
    max_steps: int = 1000
    history_size: int = 10

    def check(self, objective: AbstractObjective) -> None:
        check_smooth(self, objective)

    def build(self, problem: Problem) -> Method:
        options = problem.options(self.max_steps)
        return Method(jaxopt.LBFGS(fun=problem.smooth, history_size=self.history_size, **options), compares=True)

    def run_with_inverse_hessian(
        self, objective: AbstractObjective, data: PyTree, init: PyTree
    ) -> tuple[Solution, InverseHessian]:
        """`run`, and the estimate of the inverse Hessian at its end."""
        solution, state, scale = self.run_with_state(objective, data, init)
        oldest = state.iter_num % self.history_size
        return solution, InverseHessian.from_circle(state.s_history, state.y_history, state.gamma, oldest, scale)


class BFGS(AbstractJaxoptSolver):
    """BFGS with the whole inverse Hessian, for smooth objectives in few unknowns.

    !!! cite
        J. Nocedal, S. Wright: Numerical Optimization, 2nd edition, algorithm 6.1. 2006.
    """

    tol: ScalarLike | None = None
    max_steps: int = 1000

    def check(self, objective: AbstractObjective) -> None:
        check_smooth(self, objective)

    def build(self, problem: Problem) -> Method:
        return Method(jaxopt.BFGS(fun=problem.smooth, **problem.options(self.max_steps)), compares=True)


class NonlinearCG(AbstractJaxoptSolver):
    """Nonlinear conjugate gradient (Polak–Ribière), for smooth objectives.

    !!! cite
        J. Nocedal, S. Wright: Numerical Optimization, 2nd edition, section 5.2. 2006.
    """

    tol: ScalarLike | None = None
    max_steps: int = 5000

    def check(self, objective: AbstractObjective) -> None:
        check_smooth(self, objective)

    def build(self, problem: Problem) -> Method:
        return Method(jaxopt.NonlinearCG(fun=problem.smooth, **problem.options(self.max_steps)), compares=True)


class OptaxSolver(AbstractJaxoptSolver):
    """Any Optax optimizer, on f + g by subgradients. Its rates are in the objective's own units.

    It meets a tolerance on smooth objectives only; on a penalty it hovers about the kinks.
    """

    optimizer: optax.GradientTransformation = eqx.field(default_factory=lambda: optax.adam(1e-2))
    tol: ScalarLike | None = None
    max_steps: int = 25_000

    def check(self, objective: AbstractObjective) -> None:
        if isinstance(objective.penalty(), AbstractConstraint):
            raise refuse(self, objective, "subgradients do not see a constraint", "ProjectedGradient()")

    def scale(self, lipschitz: Scalar) -> Scalar:
        return jnp.ones_like(lipschitz)

    def build(self, problem: Problem) -> Method:
        return Method(jaxopt.OptaxSolver(fun=problem.total, opt=self.optimizer, **problem.options(self.max_steps)))


class MirrorDescent(AbstractJaxoptSolver):
    """Mirror descent with the entropy, y ← y exp(−stepsize ∇f) / Σ, for f over a simplex.

    It never reaches the boundary, only nears it, at a linear rate.

    !!! cite
        A. Beck, M. Teboulle: Mirror descent and nonlinear projected subgradient methods. 2003.
    """

    tol: ScalarLike | None = None
    max_steps: int = 20_000
    stepsize: ScalarLike | None = None

    def check(self, objective: AbstractObjective) -> None:
        if not isinstance(objective.penalty(), Simplex):
            raise refuse(self, objective, "its penalty is not a Simplex", "ProximalGradient()")

    def build(self, problem: Problem) -> Method:
        penalty = problem.penalty
        assert isinstance(penalty, Simplex)
        # The entropy is 1/total-strongly convex in ‖·‖₁ ≥ ‖·‖₂ on the simplex, so 1 / (total L) is a safe step there.
        # Where L is not known it is that of the start, which is no bound: then mind the result.
        safe = lambda _: 1 / penalty.total.astype(problem.scale.dtype)
        given = problem.step(self.stepsize)
        step = given if self.stepsize is not None and callable(given) else safe

        def update(params: PyTree, gradient: PyTree, stepsize: ScalarLike, hyperparams: None = None) -> PyTree:
            tiny = jnp.finfo(tree.dtype(params)).tiny
            logits = jax.tree.map(lambda y, g: jnp.log(jnp.maximum(y, tiny)) - stepsize * g, params, gradient)
            return jax.tree.map(lambda x: penalty.total.astype(x.dtype) * jax.nn.softmax(x, penalty.axis), logits)

        options = problem.options(self.max_steps)
        solver = jaxopt.MirrorDescent(fun=problem.smooth, projection_grad=update, stepsize=step, **options)
        return Method(solver, (None,))


class AndersonAcceleration(AbstractJaxoptSolver):
    """Anderson acceleration of the proximal gradient step T(y) = prox(y − ∇f(y) / L, 1 / L), for f + g.

    !!! cite
        H. Walker, P. Ni: Anderson acceleration for fixed-point iterations. 2011.
    """

    tol: ScalarLike | None = None
    max_steps: int = 5000
    history_size: int = 5
    ridge: float = 1e-10

    def check(self, objective: AbstractObjective) -> None:
        pass

    def build(self, problem: Problem) -> Method:
        # JAXopt extrapolates in the default dtype, so in 64-bit mode 32 bits become 64.
        cast = lambda params, dtype: jax.tree.map(lambda p: p.astype(dtype), params)
        widen = lambda params: cast(params, jnp.result_type(float))
        narrow = lambda unknown: cast(unknown, problem.scale.dtype)
        step = lambda unknown: widen(problem.objective.prox_gradient(narrow(unknown), problem.data, problem.scale))
        solver = jaxopt.AndersonAcceleration(
            fixed_point_fun=step,
            history_size=self.history_size,
            ridge=self.ridge,
            **problem.options(self.max_steps),
        )
        return Method(solver, compares=True, encode=widen, decode=narrow)


class BlockCoordinateDescent(AbstractJaxoptSolver):
    """Cyclic coordinate descent, a coordinate of all targets (samples) at once, for least squares plus L1 and the like.

    !!! cite
        J. Friedman, T. Hastie, R. Tibshirani: Regularization paths for generalized linear models via coordinate
        descent. 2010.
    """

    tol: ScalarLike | None = None
    max_steps: int = 5000

    def check(self, objective: AbstractObjective) -> None:
        if not isinstance(objective, AbstractLeastSquares):
            raise refuse(self, objective, "it is not least squares (it has no `least_squares`)", "ProximalGradient()")
        penalty = objective.penalty()
        if not (penalty is None or isinstance(penalty, L1 | ElasticNet | NonNegative)):
            raise refuse(self, objective, f"{type(penalty).__name__} is not separable", "ProximalGradient()")
        if any(jnp.ndim(strength) > 0 for strength in jax.tree.leaves(penalty)):
            # JAXopt does not tell the prox which coordinate it is at.
            raise refuse(self, objective, "its penalty is not the same for all coordinates", "ProximalGradient()")

    def scale(self, lipschitz: Scalar) -> Scalar:
        return jnp.ones_like(lipschitz)

    def build(self, problem: Problem) -> Method:
        objective = problem.objective
        assert isinstance(objective, AbstractLeastSquares)
        form = objective.least_squares(problem.data)
        if form is None:
            raise refuse(self, objective, "its loss is not the squared error", "ProximalGradient()")
        structure = jax.tree.structure(objective.init(problem.data))
        solver = jaxopt.BlockCoordinateDescent(
            fun=_Composite(form), block_prox=problem.prox, **problem.options(self.max_steps)
        )
        transposed = lambda params: jax.tree.leaves(params)[0].T
        return Method(solver, (None,), encode=transposed, decode=lambda P: jax.tree.unflatten(structure, [P.T]))


class _Composite(jaxopt.objective.CompositeLinearFunction):
    """½‖A P − B‖² + ½ Σ κⱼ‖Pⱼ‖² as a function of the linear map (A; I) P, whose rows JAXopt updates one by one."""

    def __init__(self, form: LeastSquares):
        equations, coordinates = form.design.shape
        self.form, self.equations = form, equations
        self.stacked = jnp.concatenate([form.design, jnp.eye(coordinates, dtype=form.design.dtype)])

    def subfun(self, predictions: Array) -> Scalar:
        fitted, unknown = predictions[: self.equations], predictions[self.equations :]
        weights = jnp.broadcast_to(self.form.ridge, unknown.T.shape).T
        return 0.5 * jnp.sum((fitted - self.form.target) ** 2) + 0.5 * jnp.sum(weights * unknown**2)

    def make_linop(self) -> Any:
        return jaxopt.base.LinearOperator(self.stacked)

    def columnwise_lipschitz_const(self) -> Array:
        constants = jnp.sum(self.form.design**2, axis=0) + self.form.ridge
        return jnp.where(constants > 0, constants, 1)


#: SciPy's methods that use a gradient and no constraint.
SCIPY_METHODS = ("L-BFGS-B", "BFGS", "CG")


class ScipyMinimize(AbstractSolver):
    """SciPy's `minimize` on the host, for smooth objectives; outside `jit` and `vmap` only, as SciPy cannot be traced.

    Derivatives go through it all the same, by `bl.Implicit()`.
    """

    method: str = "L-BFGS-B"
    tol: ScalarLike | None = None
    max_steps: int = 5000

    def __check_init__(self):
        check_options(self)
        if self.method not in SCIPY_METHODS:
            raise ValueError(f"`method` must be one of {SCIPY_METHODS}, got {self.method!r}.")

    def check(self, objective: AbstractObjective) -> None:
        check_smooth(self, objective)

    def on_host(self) -> bool:
        return True

    def run(
        self, objective: AbstractObjective, data: PyTree, init: PyTree, *, unroll: Unroll | None = None
    ) -> Solution:
        if unroll is not None or any(map(is_traced, jax.tree.leaves((objective, data, init)))):
            raise ValueError(
                "ScipyMinimize runs SciPy on the host, so it works outside `jit` and `vmap` only, and cannot be "
                "unrolled. Take the `jit` away, or use LBFGS()."
            )
        units = objective.units(init, data)
        tol = default_tol(init) if self.tol is None else float(jnp.asarray(self.tol))
        problem = Problem(objective, data, units.lipschitz, None, bounded=False, unroll=None)
        # SciPy bounds the decrease of f, whose error is the square of that of its gradient: ask for all it can give.
        bound = 0.1 * tol * float(tree.norm(units.gradient) / units.lipschitz)
        options = {"L-BFGS-B": dict(ftol=0.0, gtol=bound, maxls=50)}.get(self.method, dict(gtol=bound))
        solver = jaxopt.ScipyMinimize(fun=problem.smooth, method=self.method, maxiter=self.max_steps, options=options)
        params, state = solver.run(init)
        params = jax.tree.map(lambda p, i: jnp.asarray(p, i.dtype), params, init)
        error = objective.optimality_error(params, data, units)
        return verdict(params, error, tol, int(state.iter_num), self.max_steps)


#: The rule that JAXopt's solvers are differentiated by; see `jaxopt_driver.run_with_implicit_diff`.
custom_root = jaxopt.implicit_diff.custom_root
