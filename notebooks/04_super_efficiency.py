# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Three gradients of a minimum
#
# The gradient of a minimum
#
# $$\ell(\theta) = \min_y f(y, \theta)$$
#
# needs no derivative of the minimizer: at $y^*(\theta)$ it is $\nabla_\theta f(y^*, \theta)$. But an algorithm stops at
# some $y$ close by. **How wrong is the gradient then, and is it worthwhile to differentiate the algorithm all the
# same?**
#
# The claim is from P. Ablin, G. Peyré, T. Moreau: *Super-efficiency of automatic differentiation for functions defined
# as a minimum*, 2020. The error of the formula above is of the order of the iterate's error; that of automatic
# differentiation through the iterations is close to its square.

# %%
import os

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import bilevel as bl
from bilevel.datasets import load_breast_cancer, load_diabetes
from bilevel.plots.colors import GRAY, series

jax.config.update("jax_enable_x64", True)
QUICK = bool(os.environ.get("BILEVEL_QUICK"))
TOLS = np.geomspace(1e-1, 1e-9, 9 if QUICK else 33)
STEPS = 2000

# %% [markdown]
# ## Why
#
# Let $\delta = y - y^*$, $H = \nabla^2_{yy} f$, $B = \nabla^2_{y\theta} f$. Deriving $\nabla_y f(y^*(\theta), \theta) =
# 0$ gives the Jacobian of the minimizer, $J^* = -H^{-1} B$. Take any matrix $J$ for the Jacobian, and the chain rule
# for the gradient:
#
# $$g = \nabla_\theta f(y, \theta) + J^\top \nabla_y f(y, \theta).$$
#
# To first order $\nabla_\theta f(y, \theta) = \nabla \ell + B^\top \delta$ and $\nabla_y f(y, \theta) = H \delta$. As
# $B = -H J^*$,
#
# $$g - \nabla \ell = (J - J^*)^\top H \delta + O(\|\delta\|^2).$$
#
# The error is the product of two errors: that of the Jacobian, and that of the iterate.
#
# - **Analytic**, $J = 0$: of first order, $-J^{*\top} H \delta$.
# - **Automatic**, $J = J_t$, the derivative of $t$ iterations. Those of gradient descent give $J_{t+1} = (I - sH) J_t -
#   sB$, so $J_t - J^*$ contracts by $\rho$ at each step, as $\delta$ does, up to what $H$ and $B$ change along the way:
#   $\|J_t - J^*\| \sim t \rho^t$. The error is about $t \rho^{2t}$, or $\|\delta\|^2 \, |\log \|\delta\||$: in a
#   log-log plot a slope of $2 - 1 / |\log \|\delta\||$, just below 2.
# - **Implicit**, $J = -H^{-1} B$ at $y$ instead of $y^*$: an error of $O(\|\delta\|)$ in $J$, of second order in $g$.
#   Where $f$ is quadratic in $(y, \theta)$ together, $H$ and $B$ are constant and nothing is of second order: $g$ is
#   exact, wherever $y$ is.
#
# In code the three differ by one argument. `stop_gradient` makes $J = 0$. The tolerance, which is an array, decides how
# many steps are taken, so one compiled program serves all iterates.

# %%
WAYS = {"analytic": None, "automatic": bl.Unrolled(), "implicit": bl.Implicit(on_failure="ignore")}


@eqx.filter_jit
def gradient_of_minimum(problem, theta, given, tol, diff):
    """The gradient in theta of what gradient descent makes of the minimum, and where it stopped."""
    solver = bl.solvers.GradientDescent(tol=tol, max_steps=STEPS, acceleration=False)
    way = bl.Implicit(on_failure="ignore") if diff is None else diff

    def minimum(theta):
        objective, data = problem(theta, given)
        params = bl.argmin(objective, data, solver=solver, diff=way, throw=False).params
        params = jax.lax.stop_gradient(params) if diff is None else params
        return objective(params, data), params.weight

    return jax.grad(minimum, has_aux=True)(theta)


@eqx.filter_jit
def exact(problem, theta, given):
    """The same, at a minimizer to rounding."""

    def minimum(theta):
        objective, data = problem(theta, given)
        params = bl.argmin(objective, data, solver=bl.solvers.Newton(tol=1e-14)).params
        return objective(jax.lax.stop_gradient(params), data), params.weight

    return jax.grad(minimum, has_aux=True)(theta)


# %% [markdown]
# ## Three problems
#
# - **Ridge regression, $\theta$ its targets** (diabetes, 442 patients, 10 features): $f(w, \theta) = \frac{1}{2n}
#   \|Xw - \theta\|^2 + \frac{\alpha}{2} \|w\|^2$ is quadratic in $(w, \theta)$ together.
# - **Ridge regression, $\theta$ its strengths**, one for each feature: $f(w, \theta) = \frac{1}{2n} \|Xw - y\|^2 +
#   \frac12 \sum_j \theta_j w_j^2$ is quadratic in $w$, and not in $(w, \theta)$. Here $H$ is constant, $B$ is diag $w$,
#   and the implicit estimator is $\frac12 w_j^2 - w_j (H^{-1} \nabla_w f)_j = \frac12 w_j^2 - w_j \delta_j$, which is
#   $\frac12 w_j^{*2} - \frac12 \delta_j^2$: its error is $-\frac12 \delta_j^2$, no more and no less.
# - **Logistic regression, $\theta$ its strengths** (breast cancer, 569 tumors, 30 features).


# %%
def ridge_in_targets(targets, X):
    return bl.objectives.Ridge(0.1), (X, targets)


def ridge_in_strengths(alpha, data):
    return bl.objectives.Ridge(alpha), data


def logistic_in_strengths(l2, data):
    return bl.objectives.LogisticRegression(l2), data


diabetes = load_diabetes(np.float64, fractions=(1, 0, 0)).train
cancer = load_breast_cancer(np.float64, fractions=(1, 0, 0)).train
X, y = jnp.asarray(diabetes.X), jnp.asarray(diabetes.y)
tumors = jnp.asarray(cancer.X), jnp.asarray(2.0 * cancer.y - 1)

# Each with theta, and what is given beside it.
PROBLEMS = {
    "ridge, in the targets": (ridge_in_targets, y, X),
    "ridge, in the strengths": (ridge_in_strengths, jnp.full(10, 0.1), (X, y)),
    "logistic regression, in the strengths": (logistic_in_strengths, jnp.full(30, 0.1), tumors),
}

# %% [markdown]
# Errors are relative, in the Euclidean norm: of the iterate on the one hand, of the gradient on the other.


# %%
def relative(value, truth):
    return float(jnp.linalg.norm(value - truth) / jnp.linalg.norm(truth))


errors = {}
for name, (problem, theta, given) in PROBLEMS.items():
    truth, solution = exact(problem, theta, given)
    for way, diff in WAYS.items():
        runs = [gradient_of_minimum(problem, theta, given, jnp.asarray(tol), diff) for tol in TOLS]
        errors[name, way] = np.array([(relative(w, solution), relative(g, truth)) for g, w in runs])

# %% [markdown]
# Slopes are fitted where the iterate is close and the gradient's error is well above rounding.


# %%
def slope(points):
    iterate, gradient = points[(points[:, 0] < 0.1) & (points[:, 1] > 1e-13)].T
    return float(np.polyfit(np.log(iterate), np.log(gradient), 1)[0]) if len(iterate) > 2 else np.nan


slopes = {key: slope(points) for key, points in errors.items()}

# %%
figure, axes = plt.subplots(1, 3, figsize=(13, 4.6), layout="constrained", sharey=True)
for ax, name in zip(axes, PROBLEMS, strict=True):
    for index, way in enumerate(WAYS):
        iterate, gradient = errors[name, way].T
        ax.plot(iterate, np.maximum(gradient, 1e-17), lw=1.6, ms=5, label=way, **series(index))
    across = np.array([1e-9, 1e-1])
    for order in (1, 2):
        ax.plot(across, across**order, ls=":", color=GRAY, lw=1.2, label="slopes 1 and 2" if order == 1 else None)
    ax.set(xscale="log", yscale="log", title=name, ylim=(1e-17, 3), xlabel="relative error of the iterate")
    ax.grid(alpha=0.3)
axes[0].set_ylabel("relative error of the gradient")
axes[0].legend(frameon=False)
plt.show()

# %% [markdown]
# ## Does the claim hold?
#
# It does here. The analytic estimator errs as its iterate does. Automatic differentiation squares that
# error, but for the logarithm, at the price of going back through all iterations and keeping them. The implicit
# estimator squares it too, for one linear system, and is exact, up to rounding, where the problem is quadratic in
# unknown and parameter together. So the gradient of a minimum is where unrolling does well: for a general outer loss
# nothing multiplies the error of $J_t$ by that of the iterate.

# %%
for name in PROBLEMS:
    for way in WAYS:
        fitted, largest = slopes[name, way], errors[name, way][:, 1].max()
        print(f"{name:40s}{way:12s}slope {fitted:5.2f}   largest error {largest:.1e}")

QUADRATIC, STRENGTHS, LOGISTIC = PROBLEMS
assert all(abs(slopes[name, "analytic"] - 1) <= 0.1 for name in PROBLEMS)
assert all(slopes[name, "automatic"] >= 1.7 for name in PROBLEMS)
assert slopes[STRENGTHS, "implicit"] >= 1.9 and slopes[LOGISTIC, "implicit"] >= 1.9
assert errors[QUADRATIC, "implicit"][:, 1].max() <= 1e-12

# In the strengths of ridge regression the error of the implicit estimator is −δ²/2.
truth, solution = exact(*PROBLEMS[STRENGTHS])
gradient, weight = gradient_of_minimum(*PROBLEMS[STRENGTHS], jnp.asarray(1e-2), WAYS["implicit"])
assert jnp.allclose(gradient - truth, -((weight - solution) ** 2) / 2, rtol=1e-8, atol=1e-15)
