"""How an inner solve ended: a value inside `jit`, an exception at the door."""

import lineax as lx


class RESULTS(lx.RESULTS):  # pyright: ignore[reportGeneralTypeIssues]
    """The outcome of an inner solve. `RESULTS[solution.result]` is the message; the empty one is success.

    The outcomes of Lineax's linear solves are among them, so that a failure inside keeps its own words.
    """

    not_converged = (
        "The inner solver used up `max_steps` before it met its tolerance. Likely causes: too few steps, an "
        "ill-conditioned objective, or a tolerance below what the precision allows. Try a larger `max_steps`, "
        "a larger `tol`, another solver, or 64 bits (`jax.config.update('jax_enable_x64', True)`)."
    )
    stalled = (
        "The inner solver stopped by its own criterion, yet the optimality of its answer is above the tolerance. "
        "Likely causes: a line search that failed, a tolerance below what the precision allows, or a solver that "
        "does not suit the objective. Try a larger `tol`, another solver, or 64 bits."
    )
    nonfinite_solution = (
        "The inner solver produced NaN or infinity. Likely causes: a step size that is too large, an objective "
        "that is unbounded below, or an overflow. Try a smaller `stepsize` or a solver with a line search, and "
        "check that the objective is bounded below in `params`."
    )
    invalid_input = (
        "The objective or its data hold values that they must not: NaN, infinity, or a hyperparameter out of its "
        "range. Try the same call outside `jit`, where the message names the argument."
    )
    adjoint_not_solved = (
        "The linear system of the hypergradient was not solved. Likely causes: a Hessian close to singular on the "
        "support, or a linear solver that ran out of steps. Try another `linear_solver`, a `ridge`, or 64 bits."
    )
    inaccurate = (
        "The estimated relative error of the hypergradient is above `rtol`. Likely causes: an inner solution too "
        "rough, the more so where its support is not settled, or an approximate way of differentiating. Try a smaller "
        "`tol` of the solver, `correct=True`, or `Implicit()`; or a larger `rtol`, if that is good enough."
    )
    nonfinite_loss = (
        "The outer loss, or its derivative at the inner solution, is NaN or infinite. Likely causes: a division by "
        "zero, a logarithm or square root at 0, an overflow. Try to evaluate `outer_loss` at `solution.params`."
    )
    not_a_minimum = (
        "The inner solution is stationary, but no minimum: the objective curves down there. Likely causes: a start at "
        "a maximum or saddle point, or an objective that is unbounded below. Try another `init`."
    )
    degenerate = (
        "The solution is on a kink of its penalty to rounding (a strength at which a coordinate is about to enter, a "
        "tie), where the derivatives from both sides differ; this is that of the side on which it rests. Try "
        "hyperparameters a little off, or `on_failure='ignore'`."
    )
    singular_hessian = (
        "The Hessian is singular on the support of the solution, which therefore has no derivative. Likely causes: "
        "duplicated atoms or collinear features without an l2 penalty, or more coordinates in use than equations. Try "
        "l2 > 0, fewer atoms, or `Implicit(ridge=1e-8)`."
    )


class InnerSolveError(RuntimeError):
    """An inner solve failed, and `throw=True` asked to hear of it."""


class HypergradientError(RuntimeError):
    """A hypergradient could not be had, and `on_failure="raise"` asked to hear of it."""
