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
# # Start here: how to differentiate an argmin
#
# **How does one learn what another optimization takes for granted?**
#
# Training a model means to minimize something over its weights. It takes for granted some numbers that it cannot
# choose itself: how strongly to regularize, how to weigh the samples, which dictionary to code in. To learn these too
# is a *bilevel* problem, one minimization inside another:
#
# $$\min_\theta\; \Phi(\theta, y^*(\theta)), \qquad
# y^*(\theta) \in \operatorname{argmin}_y\; f(y; \theta) + g(y; \theta)$$
#
# with $f$ smooth and $g$ possibly not. $\theta$ is the outer variable, $y$ the inner one. If the inner solution $y^*$
# is a function of $\theta$ that has a derivative, then the outer problem is an ordinary one, for any gradient method.
# This notebook derives that derivative for the two smallest problems that show everything, ridge regression and a
# clamp, and checks it against what can be worked out by hand.
#
# The ideas are old: Y. Bengio, *Gradient-based optimization of hyperparameters*, 2000, for learning; A. Griewank and
# A. Walther, *Evaluating derivatives*, 2nd edition, 2008, chapter 15, for the mathematics.

# %%
import os

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import PredefinedSplit

import bilevel as bl
from bilevel.datasets import load_diabetes
from bilevel.plots import plot_clamp_curves, plot_clamp_map, plot_clamp_solutions
from bilevel.plots.colors import BLUE, SERIES, VERMILION
from bilevel.studies import clamp_study, tune_ridge

# Derivatives are compared to many digits here.
jax.config.update("jax_enable_x64", True)
QUICK = bool(os.environ.get("BILEVEL_QUICK"))

# %% [markdown]
# ## 1. The inner problem
#
# 442 patients with diabetes, 10 measurements $x_i$ of each, and how far the disease is a year later, $y_i$. A fifth
# of the patients is for training, the others are to validate and to test on. Ridge regression solves, on the $n$
# training samples,
#
# $$w^*(\alpha) = \operatorname{argmin}_w\; \tfrac1{2n} \|X w - y\|^2 + \tfrac{\alpha}2 \|w\|^2.$$
#
# In the library an **objective** is what is minimized, and its array leaves are the hyperparameters: `Ridge` has one,
# `alpha`. The **data** are given. The unknown, **params**, is neither of the two, so a hyperparameter cannot be
# minimized along with the weights by mistake.

# %%
table = load_diabetes(np.float64, fractions=(0.2, 0.4, 0.4))
train, validation, test = (
    (jnp.asarray(part.X), jnp.asarray(part.y)) for part in (table.train, table.validation, table.test)
)
X, y = map(np.asarray, train)

solution = bl.argmin(bl.objectives.Ridge(alpha=0.1), train)
print("weights", np.round(np.asarray(solution.params.weight), 3))

# %% [markdown]
# Where the gradient vanishes, $(X^\top X / n + \alpha I)\, w = X^\top y / n$: that is how one would compute it by
# hand.

# %%
by_hand = np.linalg.solve(X.T @ X / len(X) + 0.1 * np.eye(10), X.T @ y / len(X))
solution_error = np.max(np.abs(solution.params.weight - by_hand))
print(f"largest difference from the solution by hand: {solution_error:.1e}")

# %% [markdown]
# ## 2. An argmin is a function
#
# $w^*$ takes a number $\alpha$ and returns ten weights. `bl.argmin` is this function in JAX's sense: it can be
# compiled, mapped over many $\alpha$, differentiated. First its values:


# %%
def weights(alpha, data, solver=None, diff=bl.Implicit()):
    """w*(α)."""
    return bl.argmin(bl.objectives.Ridge(alpha), data, solver=solver, diff=diff).params.weight


alphas = jnp.geomspace(1e-3, 1e1, 60)
path = jax.jit(jax.vmap(weights, in_axes=(0, None)))(alphas, train)

# %% [markdown]
# ## 3. Its derivative
#
# The gradient of the inner objective, $F(w, \alpha) = (X^\top X / n + \alpha I)\, w - X^\top y / n$, vanishes at
# $w^*(\alpha)$ *for every* $\alpha$. So the derivative of $\alpha \mapsto F(w^*(\alpha), \alpha)$ is zero as well:
#
# $$\underbrace{\left(X^\top X / n + \alpha I\right)}_{\partial F / \partial w} \frac{dw^*}{d\alpha} +
# \underbrace{\;w^*\;}_{\partial F / \partial\alpha} = 0
# \quad\Longrightarrow\quad
# \frac{dw^*}{d\alpha} = -\left(X^\top X / n + \alpha I\right)^{-1} w^*.$$
#
# This is **implicit differentiation**: one linear system, and not a word about the algorithm that found $w^*$. It
# works for every $F$ with an invertible $\partial F / \partial w$. There are other ways to the same derivative:
#
# - **closed form**: differentiate the formula for $w^*$, where there is one;
# - **unrolled**: differentiate the iterations of a solver, one after the other;
# - **finite differences**: solve twice, and divide.
#
# How to differentiate is an argument of `argmin`, `diff`, as is the solver. By default it is `bl.Implicit()`.


# %%
def closed_form(alpha, data):
    X, y = data
    return jnp.linalg.solve(X.T @ X / len(X) + alpha * jnp.eye(X.shape[1]), X.T @ y / len(X))


descent = bl.solvers.GradientDescent(tol=1e-12, max_steps=3000)
derivative = eqx.filter_jit(jax.jacfwd(weights))
at = jnp.asarray(0.1)
derivatives = {
    "implicit, solved by formula": derivative(at, train),
    "implicit, solved by gradient descent": derivative(at, train, solver=descent),
    "unrolled gradient descent": derivative(at, train, solver=descent, diff=bl.Unrolled()),
    "closed form": jax.jit(jax.jacfwd(closed_form))(at, train),
    "finite differences": (weights(at + 1e-5, train) - weights(at - 1e-5, train)) / 2e-5,
}
three_lines = -np.linalg.solve(X.T @ X / len(X) + 0.1 * np.eye(10), by_hand)
derivative_errors = {
    name: np.linalg.norm(found - three_lines) / np.linalg.norm(three_lines) for name, found in derivatives.items()
}
print("relative difference from the formula above")
for name, error in derivative_errors.items():
    print(f"  {name:38s} {error:.1e}")

# %% [markdown]
# All agree, each to the digits that it can have: finite differences lose half of them, and the unrolled derivative
# lags behind the solution that it comes from. Which one to take is a matter of cost: `02_memory` measures what
# unrolling needs, `01_jacobian_error` what a rough solution does to each.
#
# ## 4. Choose α by gradient
#
# The outer problem: the $\alpha$ whose weights predict the validation data best,
#
# $$\min_\alpha\; \Phi(\alpha) = \tfrac1m \|X_\text{val}\, w^*(\alpha) - y_\text{val}\|^2, \qquad
# \Phi'(\alpha) = \tfrac2m \left(X_\text{val} w^* - y_\text{val}\right)^\top X_\text{val}\, \frac{dw^*}{d\alpha}.$$
#
# In code it is a function that calls `argmin`, and JAX does the rest. `tune_ridge` hands it to L-BFGS, on
# $\log\alpha$ so that $\alpha$ stays positive. The rival is scikit-learn's `RidgeCV`, which tries every number of a
# grid. (Its `alpha` is $n\alpha$ in our units, and it likes scores, which are negative errors.)

# %%
tuned = tune_ridge(train, validation)

together = [np.concatenate(pair) for pair in zip(train, validation, strict=True)]
folds = PredefinedSplit(np.r_[np.full(len(X), -1), np.zeros(len(validation[0]))])
rival = RidgeCV(alphas=len(X) * tuned.grid, fit_intercept=False, cv=folds, scoring="neg_mean_squared_error")
rival.fit(*together)
print(f"by gradient: alpha {tuned.alpha:.4f}, loss {tuned.loss:.6f}, {len(tuned.history['loss'])} evaluations")
print(f"by grid:     alpha {rival.alpha_ / len(X):.4f}, loss {-rival.best_score_:.6f}, {len(tuned.grid)} evaluations")

# %% [markdown]
# One number could as well be tried out. With a strength for each feature there are ten, and a grid of 200 numbers in
# ten dimensions has $200^{10}$ points. The gradient does not mind: it is still one linear system, whatever the number
# of outer variables. (Reverse mode solves it once, for the derivative of $\Phi$.)

# %%
each = tune_ridge(train, validation, np.full(10, tuned.alpha), max_steps=10 if QUICK else 40)


def test_error(alpha):
    X, y = test
    return np.mean((X @ weights(jnp.asarray(alpha), train) - y) ** 2)


print("                    validation   test")
print(f"one strength        {tuned.loss:.4f}       {test_error(tuned.alpha):.4f}")
print(f"one a feature       {each.loss:.4f}       {test_error(each.alpha):.4f}")

# %% [markdown]
# What is learned on the validation data fits them better, of course. Whether it generalizes is for the test data to
# say, which nobody has minimized: more outer variables can overfit the validation data, as weights can the training
# data.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
reach = jnp.geomspace(at / 3, at * 3, 20)
for j in range(10):
    color = SERIES[j % len(SERIES)]
    left.semilogx(alphas, path[:, j], lw=1.6, color=color)
    tangent = weights(at, train)[j] + derivatives["implicit, solved by formula"][j] * (reach - at)
    left.semilogx(reach, tangent, "--", lw=1.4, color="0.2")
left.plot(np.full(10, at), weights(at, train), "o", ms=4, color="0.2")
left.set_xlabel("α")
left.set_ylabel("weights w*(α)")
left.set_title("the solution as a function, with derivatives at α = 0.1")
shown = (alphas[0] <= tuned.grid) & (tuned.grid <= alphas[-1])
right.semilogx(tuned.grid[shown], tuned.grid_losses[shown], ".", ms=4, color="0.6", label="a grid")
right.plot(tuned.history["alpha"], tuned.history["loss"], "o", ms=6, color=VERMILION, label="by gradient")
right.set_xlabel("α")
right.set_ylabel("validation loss Φ(α)")
right.set_title("the outer problem")
right.legend(frameon=False)
for ax in (left, right):
    ax.grid(alpha=0.3)
plt.show()

# %% [markdown]
# ## 5. What failure looks like
#
# All of this holds *at a solution*. Stop the solver after five steps, and the formula still gives a number: a wrong
# one, by an unknown amount. So the library does not hand it out. The solve itself raises, and says what to try:

# %%
hasty = bl.solvers.GradientDescent(max_steps=5)
ridge = bl.objectives.Ridge(alpha=0.01)
try:
    bl.argmin(ridge, train, solver=hasty)
    raised = False
except bl.InnerSolveError as error:
    raised = True
    print(error)

# %% [markdown]
# Within a large program one may not want an error. With `throw=False` the solution comes back with a `result` that
# says the same, and the derivative through it is NaN, which nobody mistakes for a gradient.


# %%
@jax.jit
def through_failure(alpha, data):
    solution = bl.argmin(bl.objectives.Ridge(alpha), data, solver=hasty, throw=False)
    return jnp.sum(solution.params.weight), solution.successful


gradient_of_failure, successful = jax.grad(through_failure, has_aux=True)(at, train)
print(f"successful: {bool(successful)}, gradient: {gradient_of_failure}")


# %% [markdown]
# And who wants to know how wrong the number is can ask. `bl.hypergradient` returns the gradient of an outer loss with
# a **certificate**: among others, the estimated error of that very gradient. It takes one Newton step towards the
# solution, computes the gradient there, and looks at the difference. With `correct=True` the gradient after the step
# is what comes back; on a quadratic problem such as this one it is exact.


# %%
def outer_loss(objective, params, data):
    X, y = validation
    return jnp.mean((params(X) - y) ** 2)


rough = bl.hypergradient(outer_loss, ridge, train, solver=hasty, on_failure="ignore")
corrected = bl.hypergradient(outer_loss, ridge, train, solver=hasty, correct=True, on_failure="ignore")
print(rough.certificate)


@jax.jit
def outer_loss_in_closed_form(alpha, train, validation):
    X, y = validation
    return jnp.mean((X @ closed_form(alpha, train) - y) ** 2)


true_gradient = jax.grad(outer_loss_in_closed_form)(ridge.alpha, train, validation)
rough_error, corrected_error = (abs(float(found.gradient.alpha) / true_gradient - 1) for found in (rough, corrected))
print(f"\ntrue relative error: {rough_error:.1e}; after the Newton step: {corrected_error:.1e}")

# %% [markdown]
# ## 6. A problem with kinks
#
# Sparse and constrained problems have solutions that are not smooth in $\theta$ everywhere. The smallest of them
# pulls $z$ towards $z_0$, without squaring, and towards $c$, with:
#
# $$z^*(\mu) = \operatorname{argmin}_z\; \|z - z_0\|_1 + \mu \|z - c\|^2.$$
#
# Each coordinate is on its own. Above $z_0$ the derivative vanishes where $1 + 2\mu(z - c) = 0$, below it where
# $-1 + 2\mu(z - c) = 0$, and in between $z = z_0$ is best: so $z_0$ is **clamped**,
#
# $$z^* = \min\left(\max\left(z_0,\; c - \tfrac1{2\mu}\right),\; c + \tfrac1{2\mu}\right), \qquad
# \frac{dz^*}{d\mu} = \begin{cases} 0 & |z_0 - c| < \tfrac1{2\mu} \\
# -\operatorname{sign}(z_0 - c)\, \tfrac1{2\mu^2} & |z_0 - c| > \tfrac1{2\mu} \end{cases}$$
#
# with $c = 1$. Between the two cases, where $|z_0 - c| = 1/(2\mu)$, there is a kink: the derivatives from the two
# sides differ, and none is *the* derivative. `clamp_study` solves this for 100 coordinates and ten $\mu$ with every
# solver that serves, and with Adam, which does not know about the kink.

# %%
study = clamp_study(**(dict(adam_steps=1000, proximal_steps=200) if QUICK else {}))

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
plot_clamp_solutions(study.solutions["exact"].z, study.z0, study.mu, ax=left)
plot_clamp_map(study.solutions["exact"].z, study.z0, study.mu, ax=right)
plt.show()

# %% [markdown]
# Proximal gradient takes the smooth part by its gradient, and the L1 norm by its *proximal operator*, which solves the
# one-dimensional problem with the kink exactly: a coordinate that belongs on the kink is there after finitely many
# steps. Adam steps over it, and back, by its learning rate.

# %%
figure, axes = plt.subplots(2, 2, figsize=(11, 6.6), layout="constrained", sharex="col", sharey="row")
for column, (name, curves) in zip(axes.T, study.curves.items(), strict=True):
    plot_clamp_curves(curves.total, study.mu, quantity="total", colorbar=name == "Adam", ax=column[0])
    plot_clamp_curves(curves.gradient_norm, study.mu, quantity="gradient_norm", colorbar=name == "Adam", ax=column[1])
    column[0].set_title(name)
    column[0].set_xlabel("")
for ax in axes[:, 1]:
    ax.set_ylabel("")
plt.show()

print("largest error of z over all μ, and of dz/dμ")
mu, z0 = np.asarray(study.mu)[:, None], np.asarray(study.z0)
slopes = np.where(np.abs(z0 - 1) < 1 / (2 * mu), 0, -np.sign(z0 - 1) / (2 * mu**2))
clamp_errors = {name: np.max(np.abs(found.d_mu - slopes)) for name, found in study.solutions.items()}
for name, error in study.errors.items():
    of_slope = f"{clamp_errors[name]:.1e}" if name in clamp_errors else "none: it has not met a tolerance"
    print(f"  {name:26s} {np.max(error):.1e}   {of_slope}")

# %% [markdown]
# ## 7. What a certificate says near a kink
#
# Three coordinates, $z_0 = (2, 3, 5)$, so that there are kinks at $\mu = \tfrac12, \tfrac14, \tfrac18$; the outer
# loss is $\Phi(\mu) = \tfrac12 \|z^*(\mu)\|^2$. On either side of a kink the derivative is right, but it holds up to
# the kink and no further. How far that is, is the `margin` of the certificate: here the distance of $1/(2\mu)$ to the
# nearest $|z_{0,i} - c|$. A step of $\mu$ that moves $1/(2\mu)$ by more than the margin may cross a kink: that of an
# optimizer, or that of a finite difference, which then is the derivative of neither side.

# %%
three = jnp.asarray([2.0, 3.0, 5.0])


def energy(objective, z, data):
    return 0.5 * jnp.sum(z**2)


@jax.jit
@jax.vmap
def certified(mu):
    done = bl.hypergradient(energy, bl.objectives.Clamp(three, mu), on_failure="ignore")
    return done.gradient.mu, done.certificate.margin


kinks = np.array([1 / 8, 1 / 4, 1 / 2])
mu = np.sort(np.concatenate([np.geomspace(0.09, 0.7, 80), *(k * (1 + np.linspace(-0.03, 0.03, 21)) for k in kinks)]))
mu = mu[~np.isin(mu, kinks)]  # there the derivative is not defined
found, margin = map(np.asarray, certified(jnp.asarray(mu)))

z0, radius = np.asarray(three)[:, None], 1 / (2 * mu)
true = np.sum(np.where(z0 - 1 > radius, -(1 + radius) / (2 * mu**2), 0), axis=0)
value = lambda mu: 0.5 * np.sum(np.clip(z0, 1 - 1 / (2 * mu), 1 + 1 / (2 * mu)) ** 2, axis=0)
quotient = (value(1.01 * mu) - value(0.99 * mu)) / (0.02 * mu)
crossing = margin < 1 / (2 * 0.99 * mu) - radius
off = np.abs(quotient - true) > 0.01 * np.abs(true).max()

figure, (top, bottom) = plt.subplots(2, 1, figsize=(9, 6), layout="constrained", sharex=True)
top.plot(mu, found, ".", color=BLUE, label="hypergradient")
top.plot(mu, quotient, "x", ms=5, color=VERMILION, label="finite difference, steps of 1 %", zorder=0)
top.set_ylabel("dΦ/dμ")
top.legend(frameon=False)
bottom.semilogy(mu, margin, ".", color=BLUE, label="margin")
bottom.semilogy(mu, 1 / (2 * 0.99 * mu) - radius, color=VERMILION, lw=1.2, label="how far a step of 1 % goes")
bottom.set_ylabel("distance to the nearest kink")
bottom.set_xlabel("μ")
bottom.legend(frameon=False)
for ax in (top, bottom):
    ax.set_xscale("log")
    ax.set_xticks([0.1, 0.125, 0.25, 0.5], ["0.1", "1/8", "1/4", "1/2"])
    ax.minorticks_off()
    ax.grid(alpha=0.3)
plt.show()

# %% [markdown]
# Exactly on a kink there is no derivative at all, and `bl.hypergradient` says so, even where the solution is exact:

# %%
try:
    bl.hypergradient(energy, bl.objectives.Clamp(three, 0.25))
    named = False
except bl.HypergradientError as error:
    named = "kink" in str(error)
    print(error)

# %% [markdown]
# ## 8. What was shown
#
# An argmin can be differentiated, and the derivative is right where there is one, by whatever way and solver; where
# it cannot be right, because a solver stopped too soon or the solution is on a kink, that is said. The next notebooks
# ask how large the errors are (`01_jacobian_error`) and what it costs (`02_memory`), and go on to larger problems.
# All that this one has shown, once more as conditions:

# %%
print(f"derivatives by all ways agree to        {max(derivative_errors.values()):.1e}")
print(f"validation loss, gradient over grid     {tuned.loss / -rival.best_score_:.6f}")
z_error = max(np.max(study.errors[name]) for name in clamp_errors)
print(f"clamp, errors of z and dz/dμ            {z_error:.1e}, {max(clamp_errors.values()):.1e}")
kink_error = np.max(np.abs(found - true)) / np.max(np.abs(true))
print(f"near kinks: error {kink_error:.1e}")
print(f"finite differences that are off: {off.sum()} of {len(mu)}, all where the step may cross a kink")

assert solution_error <= 1e-10
rough_ways = "unrolled gradient descent", "finite differences"
assert all(error <= (1e-6 if name in rough_ways else 1e-8) for name, error in derivative_errors.items())
# Not worse than the best of the grid, with a tenth of the evaluations.
assert tuned.loss <= -rival.best_score_ * (1 + 1e-6) and len(tuned.history["loss"]) <= len(tuned.grid) / 10
assert each.loss <= tuned.loss and np.all(each.alpha > 0)
# Failure is never a number that looks right.
assert raised and not successful and np.isnan(gradient_of_failure)
assert rough_error > 1e-2 and 0.5 <= float(rough.certificate.relative_error) / rough_error <= 2
assert corrected_error <= 1e-10
# The clamp.
assert z_error <= 1e-6 and max(clamp_errors.values()) <= 1e-8
assert np.max(study.errors["Adam"]) > 1e-6
assert kink_error <= 1e-12
assert off.any() and not np.any(off & ~crossing) and named
