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
# # The error of a Jacobian, and the error of the iterate behind it
#
# **How good is the derivative of a solution that was found only roughly?**
#
# A solver stops at an iterate $\hat w$ near $w^*(\theta) = \operatorname{argmin}_w f(w, \theta)$. With
# $F = \nabla_w f$, there are two ways to the Jacobian of $w^*$ in $\theta$ from there:
#
# $$\text{implicit:}\quad J(\hat w) = -\,\partial_w F(\hat w, \theta)^{-1}\, \partial_\theta F(\hat w, \theta),$$
#
# $$\text{unrolled:}\quad \hat J = \frac{d\hat w}{d\theta}, \text{ through all iterations.}$$
#
# The claim: the error of the implicit Jacobian is at most a constant times $\|\hat w - w^*\|$, and on ridge
# regression it is below that of the unrolled one at the same iterate (M. Blondel, Q. Berthet, M. Cuturi, R. Frostig,
# S. Hoyer, F. Llinares-López, F. Pedregosa, J.-P. Vert: *Efficient and modular implicit differentiation*, 2022,
# figure 3). We look at their problem, ridge regression on the diabetes data, and go one step further: a Newton step
# of the iterate makes the error quadratic.

# %%
import os
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import bilevel as bl
from bilevel.datasets import load_breast_cancer, load_diabetes
from bilevel.plots.colors import series

jax.config.update("jax_enable_x64", True)
QUICK = bool(os.environ.get("BILEVEL_QUICK"))

# %% [markdown]
# ## What to expect on ridge regression
#
# One strength $\theta_j$ for each feature, $H = X^\top X / n$, $b = X^\top y / n$:
#
# $$F(w, \theta) = H w + \theta \circ w - b, \qquad A := \partial_w F = H + \operatorname{diag}\theta, \qquad
# \partial_\theta F = \operatorname{diag} w.$$
#
# **Implicit.** $J(\hat w) = -A^{-1} \operatorname{diag}\hat w$ is linear in $\hat w$. Its error is
# $-A^{-1}\operatorname{diag}(\hat w - w^*)$: proportional to that of the iterate, so of slope 1 in a log-log plot.
#
# **Unrolled.** Gradient descent $w_{k+1} = w_k - \eta F(w_k, \theta)$ has errors $e_k = M^k e_0$ with
# $M = I - \eta A$. The derivative of a step is $J_{k+1} = M J_k - \eta \operatorname{diag} w_k$, and that of the
# solution, $J^*$, is a fixed point of the same map with $w^*$ in place of $w_k$. The errors $E_k = J_k - J^*$ obey
#
# $$E_{k+1} = M E_k - \eta \operatorname{diag} e_k
# \quad\Longrightarrow\quad
# E_k = M^k E_0 - \eta \sum_{i<k} M^{k-1-i} \operatorname{diag}(M^i e_0).$$
#
# A sum of $k$ terms, each about as small as $M^k$: the unrolled Jacobian lags behind its iterate by a factor that
# grows with the number of steps.
#
# **Corrected.** The Newton step $w^+ = \hat w - A^{-1} F(\hat w, \theta)$ solves a quadratic problem exactly, so that
# $J(w^+) = J^*$. Where $f$ is not quadratic the error of $w^+$ is $O(\|\hat w - w^*\|^2)$, and so is that of
# $J(w^+)$: slope 2.

# %% [markdown]
# ## The two inner problems
#
# Ridge regression on 442 patients with diabetes, 10 features; and logistic regression on 569 tumors, 30 features,
# which is smooth but not quadratic. What a witness needs for the truth is the solution, and $J^*$ from $A$ as a dense
# matrix: neither uses the rule that is under test.

# %%
diabetes = load_diabetes(np.float64, fractions=(1, 0, 0)).train
tumors = load_breast_cancer(np.float64, fractions=(1, 0, 0)).train
ridge_data = jnp.asarray(diabetes.X), jnp.asarray(diabetes.y)
logistic_data = jnp.asarray(tumors.X), jnp.asarray(2.0 * tumors.y - 1)


def logistic(l2):
    return bl.objectives.LogisticRegression(l2=l2)


def ridge_truth(alpha):
    X, y = diabetes
    A = X.T @ X / len(X) + np.diag(alpha)
    w = np.linalg.solve(A, X.T @ y / len(X))
    return w, -np.linalg.solve(A, np.diag(w))


def logistic_truth(l2):
    X, y = map(np.asarray, logistic_data)
    w = np.zeros(X.shape[1])
    for _ in range(30):  # Newton's method, quadratic: far more steps than it needs
        p = 1 / (1 + np.exp(y * (X @ w)))
        A = (X.T * (p * (1 - p))) @ X / len(X) + np.diag(l2)
        w = w - np.linalg.solve(A, l2 * w - X.T @ (y * p) / len(X))
    return w, -np.linalg.solve(A, np.diag(w))


# %% [markdown]
# ## Iterates of all qualities
#
# A tolerance is an ordinary array, so that one program, mapped over tolerances, stops gradient descent wherever we
# like. `diff` says how the iterate is to be differentiated; `on_failure="ignore"` because rough iterates are the
# point here. The corrected Jacobian comes from `bl.hypergradient(..., correct=True)`, one row for each coordinate
# $w_i$ as outer loss.


# %%
def corrected_jacobian(objective, theta, data, solver, init=None):
    def row(direction):
        coordinate = lambda objective, params, data: direction @ params.weight
        options = dict(solver=solver, init=init, correct=True, on_failure="ignore")
        return jax.tree.leaves(bl.hypergradient(coordinate, objective(theta), data, **options).gradient)[0]

    return jax.vmap(row)(jnp.eye(len(theta)))


@partial(jax.jit, static_argnames=("objective", "max_steps"))
def jacobians(objective, theta, data, tols, max_steps):
    """Iterates, numbers of steps, and the Jacobians of the iterates, a row for each tolerance."""

    def solver(tol):
        return bl.solvers.GradientDescent(tol=tol, max_steps=max_steps, acceleration=False)

    def iterate(theta, tol, diff):
        solution = bl.argmin(objective(theta), data, solver=solver(tol), diff=diff, throw=False)
        return solution.params.weight, (solution.params.weight, solution.stats["num_steps"])

    def at(tol):
        implicit, (w, num_steps) = jax.jacfwd(iterate, has_aux=True)(theta, tol, bl.Implicit(on_failure="ignore"))
        unrolled, _ = jax.jacfwd(iterate, has_aux=True)(theta, tol, bl.Unrolled())
        corrected = corrected_jacobian(objective, theta, data, solver(tol))
        return w, num_steps, {"implicit": implicit, "unrolled": unrolled, "Newton-corrected": corrected}

    return jax.vmap(at)(tols)


def relative(found, true):
    axes = tuple(range(1, found.ndim))
    return np.sqrt(np.sum((found - true) ** 2, axis=axes) / np.sum(true**2))


def study(objective, truth, theta, data, tols, max_steps):
    w, num_steps, found = jacobians(objective, theta, data, tols, max_steps)
    w_true, J_true = truth(np.asarray(theta))
    errors = {name: relative(np.asarray(J), J_true) for name, J in found.items()}
    # What the correction says of the implicit Jacobian's error, without the truth.
    after = np.asarray(found["Newton-corrected"])
    distance = np.linalg.norm(np.asarray(found["implicit"]) - after, axis=(1, 2))
    estimate = distance / np.linalg.norm(after, axis=(1, 2))
    return {
        "iterate": relative(np.asarray(w), w_true),
        "num_steps": np.asarray(num_steps),
        "estimate": estimate,
        **errors,
    }


def slope(across, values, low, high):
    """Of log values against log across, where `across` is between low and high."""
    inside = (low < across) & (across < high)
    return np.polyfit(np.log(across[inside]), np.log(values[inside]), 1)[0]


# %% [markdown]
# The smaller the strengths, the worse the condition of $A$ and the more steps it takes.

# %%
alphas = (0.1,) if QUICK else (1.0, 0.1, 0.01)
tols = jnp.geomspace(1e-1, 1e-13, 13 if QUICK else 49)
ridge = {
    alpha: study(
        bl.objectives.Ridge, ridge_truth, jnp.full(10, alpha), ridge_data, tols, max_steps=1500 if QUICK else 10_000
    )
    for alpha in alphas
}
tumor_tols = jnp.geomspace(1e-1, 1e-12, 12 if QUICK else 45)
smooth = study(logistic, logistic_truth, jnp.full(30, 0.1), logistic_data, tumor_tols, max_steps=1500)

# %%
LOW, HIGH = 1e-10, 1e-1  # iterates that are neither rounding nor nonsense


def lag(found, low=LOW, high=HIGH):
    inside = (low < found["iterate"]) & (found["iterate"] < high)
    return np.median(found["unrolled"][inside] / found["implicit"][inside])


print("problem            steps to the end   slope, implicit   unrolled / implicit, median")
for name, found in [
    *((f"ridge, alpha {alpha:g}", found) for alpha, found in ridge.items()),
    ("logistic, l2 0.1", smooth),
]:
    row = slope(found["iterate"], found["implicit"], LOW, HIGH)
    print(f"{name:18s} {found['num_steps'].max():16d} {row:17.4f} {lag(found):29.1f}")

# %% [markdown]
# Along gradient descent the corrected error falls a little faster than a square. A square bounds it, with a constant
# that depends on the direction in which the solution is missed, and that turns as gradient descent goes on: at its end
# only the slowest directions are left. To see the square itself, hold the direction: start at $w^* + t u$ for fixed
# random $u$, take one step of gradient descent, and correct.


# %%
@jax.jit
def displaced(theta, data, start):
    """The iterate one step after `start`, and its corrected Jacobian."""
    solver, init = bl.solvers.GradientDescent(max_steps=1), bl.objectives.LinearModel(start)
    w = bl.argmin(logistic(theta), data, solver=solver, init=init, throw=False).params.weight
    return w, corrected_jacobian(logistic, theta, data, solver, init)


tumor_theta = jnp.full(30, 0.1)
w_true, J_true = logistic_truth(np.asarray(tumor_theta))
directions = np.random.default_rng(0).normal(size=(2 if QUICK else 8, 30))
distances = np.geomspace(1e-1, 1e-5, 5 if QUICK else 13)
starts = w_true + distances[None, :, None] * directions[:, None]
w, J = jax.lax.map(lambda start: displaced(tumor_theta, logistic_data, start), jnp.asarray(starts.reshape(-1, 30)))
fixed = [relative(np.asarray(found), true).reshape(len(directions), -1) for found, true in ((w, w_true), (J, J_true))]
fixed_slopes = [slope(across, values, 1e-5, 1e-2) for across, values in zip(*fixed, strict=True)]
print("slopes along fixed directions:", np.round(fixed_slopes, 3))

# %% [markdown]
# ## The figure
#
# Each point is one iterate, the best ones at the left. Dotted lines have slopes 1 and 2. The crosses are what the
# corrected Jacobian says of the error of the implicit one, as a certificate does: no truth enters there. The lines are
# corrected errors along fixed directions.

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained", sharey=True)
titles = "ridge regression, diabetes", "logistic regression, breast cancer"
for ax, found, title in zip(axes, (ridge[0.1], smooth), titles, strict=True):
    for index, name in enumerate(("implicit", "unrolled", "Newton-corrected")):
        ax.loglog(found["iterate"], np.maximum(found[name], 1e-17), ls="", ms=5, label=name, **series(index))
    ax.loglog(found["iterate"], found["estimate"], "x", color="0.2", ms=4, label="error of implicit, estimated")
    ends = np.array([1e-13, 1.0])
    ax.loglog(ends, ends, ":", color="0.5", lw=1, zorder=0)
    ax.set_title(title)
    ax.set_xlabel("relative error of the iterate")
    ax.grid(alpha=0.3)
axes[1].loglog([1e-8, 1.0], [1e-16, 1.0], ":", color="0.5", lw=1, zorder=0)
axes[1].loglog(fixed[0].T, fixed[1].T, color=series(2)["color"], lw=0.8, alpha=0.6)
axes[0].annotate("slope 1", (3e-13, 3e-14), color="0.4")
axes[1].annotate("slope 2", (3e-8, 3e-17), color="0.4")
axes[0].set_ylabel("relative error of the Jacobian")
axes[0].legend(frameon=False)
plt.show()

# %% [markdown]
# ## Does the claim hold?
#
# It does. The error of the implicit Jacobian is proportional to that of the iterate, on both problems. The
# unrolled one lags behind, the more so the further its iterations go. A Newton step makes the Jacobian of ridge
# exact whatever the iterate, and squares the error elsewhere: along fixed directions exactly so, along gradient descent
# at least. And the difference that the step makes tells the error of the Jacobian before it. The figures:

# %%
# A square is what remains for small errors, and above rounding: hence the narrower range for the corrected slope.
criteria = {
    "ridge: slope, implicit": slope(ridge[0.1]["iterate"], ridge[0.1]["implicit"], LOW, HIGH),
    "ridge: median of unrolled / implicit": lag(ridge[0.1]),
    "ridge: largest error, corrected": ridge[0.1]["Newton-corrected"].max(),
    "logistic: slope, implicit": slope(smooth["iterate"], smooth["implicit"], LOW, HIGH),
    "logistic: slope, corrected": np.median(fixed_slopes),
    "logistic: slope, corrected, along descent": slope(smooth["iterate"], smooth["Newton-corrected"], 1e-6, 1e-2),
    "logistic: median of estimated / true error": np.median(
        (smooth["estimate"] / smooth["implicit"])[smooth["iterate"] > LOW]
    ),
}
for name, value in criteria.items():
    print(f"{name:45s} {value:.4g}")

assert abs(criteria["ridge: slope, implicit"] - 1) <= 0.05
assert criteria["ridge: median of unrolled / implicit"] >= 3
assert criteria["ridge: largest error, corrected"] <= 1e-12
assert abs(criteria["logistic: slope, implicit"] - 1) <= 0.05
assert max(abs(each - 2) for each in fixed_slopes) <= 0.1
assert criteria["logistic: slope, corrected, along descent"] >= 1.9
assert 0.5 <= criteria["logistic: median of estimated / true error"] <= 2
# The lag grows along the iterations.
assert lag(ridge[0.1], low=1e-10, high=1e-8) > lag(ridge[0.1], low=1e-3, high=1e-1)
