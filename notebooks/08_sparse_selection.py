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
# # Derivatives of sparse models
#
# **Can a handful of hypergradients replace a grid search, and when may the iterations of a sparse coder be
# differentiated instead of its solution?** The two halves of this notebook share one equation. A sparse model is
#
# $$ w^*(\theta) \in \arg\min_w\; f(w;\, \theta) + \lambda \lVert w \rVert_1 , $$
#
# with a kink wherever a coordinate is zero. On its support $S$, where it is not, the solution satisfies an equation
# that is smooth in everything, and off the support it does not move:
#
# $$ \nabla_S f(w^*) + \lambda \,\mathrm{sign}(w^*_S) = 0
#    \quad\Longrightarrow\quad
#    \mathrm{d}w^*_S = -\bigl(\nabla^2_{SS} f\bigr)^{-1}\,
#    \mathrm{d}\bigl[\nabla_S f + \lambda\,\mathrm{sign}(w^*_S)\bigr]_{w^*\ \text{fixed}} . $$
#
# *(a)* chooses the strengths of the Lasso and of the elastic net, as in Q. Bertrand, Q. Klopfenstein, M. Blondel,
# S. Vaiter, A. Gramfort, J. Salmon, "Implicit differentiation of Lasso-type models for hyperparameter optimization"
# (2020), continued in Q. Bertrand et al., "Implicit differentiation for fast hyperparameter selection in non-smooth
# convex learning" (2022). *(b)* follows the Jacobian of sparse codes in their dictionary along the iterations, as in
# B. Malézieux, T. Moreau, M. Kowalski, "Understanding approximate and unrolled dictionary learning for pattern
# recovery" (2022).

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import make_regression
from sklearn.linear_model import ElasticNetCV, LassoCV
from sklearn.model_selection import KFold

import bilevel as bl
from bilevel.datasets import make_sparse_coding, make_sparse_regression
from bilevel.estimators import ElasticNetTuned
from bilevel.plots.colors import BLACK, BLUE, GRAY, GREEN, PURPLE, VERMILION

jax.config.update("jax_enable_x64", True)
QUICK = bool(os.environ.get("BILEVEL_QUICK"))

# %% [markdown]
# ## (a) Strengths by hypergradients
#
# The strength $\lambda = e^{\alpha}$ of the Lasso is chosen by the mean squared error on $K$ held-out folds:
#
# $$ \min_\alpha\; \frac1K \sum_k \frac{1}{n_k} \lVert X_k\, w_k^*(e^\alpha) - y_k \rVert^2 ,\qquad
#    w_k^*(\lambda) = \arg\min_w \frac{1}{2n} \lVert X w - y \rVert^2 + \lambda \lVert w \rVert_1 $$
#
# with the samples $X, y$ of the other folds.
#
# Here the equation above says $\mathrm{d}w^*_S / \mathrm{d}\lambda = -(X_S^\top X_S / n)^{-1}\,\mathrm{sign}(w_S^*)$:
# one linear system with as many unknowns as there are features in use. First, the library's derivative of one fold
# against this formula, in NumPy.

# %%
if QUICK:
    X, y = make_regression(100, 200, noise=40, random_state=42)
else:
    X, y = make_regression(500, 1000, noise=40, random_state=42)
cv = KFold(5, shuffle=True, random_state=42)


@jax.jit
def held_out_loss(alpha, train, held_out):
    X, y = held_out
    weights = bl.argmin(bl.objectives.ElasticNet(jnp.exp(alpha)), train).params
    return jnp.mean((weights(X) - y) ** 2), weights.weight


rows, held_out = next(cv.split(X))
train, test = (X[rows] - X[rows].mean(0), y[rows] - y[rows].mean()), (X[held_out], y[held_out])
alpha = np.log(0.1 * float(bl.objectives.ElasticNet.max_l1(train)))
(_, weights), slope = jax.value_and_grad(held_out_loss, has_aux=True)(alpha, train, test)

S = np.flatnonzero(weights)
A, strength = train[0][:, S], np.exp(alpha)
dw = -np.linalg.solve(A.T @ A / len(A), np.sign(weights[S]))
residual = test[0][:, S] @ weights[S] - test[1]
by_hand = strength * 2 * np.mean(residual * (test[0][:, S] @ dw))
formula_error = abs(float(slope) / by_hand - 1)
print(f"{len(S)} of {X.shape[1]} features in use; relative difference of the derivatives {formula_error:.1e}")

# %% [markdown]
# `ElasticNetTuned` looks at a coarse grid of at most eight strengths to begin near the best of them, then lets L-BFGS
# follow the hypergradients. scikit-learn's `LassoCV` solves a hundred strengths on the same folds, with a coordinate
# descent of its own: it is the witness of the loss, too.

# %%
lasso = ElasticNetTuned(l1_ratio=1.0, cv=cv, max_iter=6).fit(X, y)
grid = LassoCV(alphas=100, cv=cv, tol=1e-6, max_iter=10_000).fit(X, y)
grid_loss = grid.mse_path_.mean(axis=1)
lasso_ratio = lasso.validation_loss_ / grid_loss.min()
print(f"grid of 100 points:  {grid_loss.min():.2f} at strength {grid.alpha_:.4g}")
print(f"hypergradients:      {lasso.validation_loss_:.2f} at strength {lasso.alpha_:.4g}, {lasso.n_iter_} steps")
print(f"                     from the best of {len(lasso.history_['grid_loss'])} points of a coarse grid")

# %% [markdown]
# With two strengths, $\lambda_1 \lVert w \rVert_1 + \frac12 \lambda_2 \lVert w \rVert^2$, a grid needs the square of
# its points, and the hypergradient one entry more. The data have neighboring features that are almost copies of each
# other, where the squared norm helps.

# %%
samples, features = (50, 80) if QUICK else (100, 200)
options = dict(num_nonzero=20, correlation=0.8, signal_to_noise=1.0, seed=0, dtype=np.float64)
correlated = make_sparse_regression(samples, features, **options)
net = ElasticNetTuned(l1_ratio=None, cv=cv, max_iter=20).fit(correlated.X, correlated.y)

ratios = 1 / (1 + np.geomspace(1e-2, 1e2, 6 if QUICK else 15))
net_grid = ElasticNetCV(l1_ratio=ratios, alphas=20 if QUICK else 40, cv=cv, max_iter=20_000).fit(
    correlated.X, correlated.y
)
net_loss = net_grid.mse_path_.mean(axis=2)
net_ratio = net.validation_loss_ / net_loss.min()
print(f"grid of {net_loss.size} points:  {net_loss.min():.4f}")
print(f"hypergradients:     {net.validation_loss_:.4f}, {net.n_iter_} steps")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4), layout="constrained")
least = min(grid_loss.min(), lasso.validation_loss_)
steps, excess = lasso.history_, lambda losses: np.maximum(losses / least - 1, 1e-6)
left.plot(grid.alphas_, excess(grid_loss), ".-", ms=4, lw=1, color=GRAY, label="grid of 100 points")
left.plot(
    np.ravel(steps["grid_strengths"]),
    excess(steps["grid_loss"]),
    "s",
    ms=8,
    mfc="none",
    color=BLUE,
    label="coarse grid",
)
for number, (strength, loss) in enumerate(zip(np.ravel(steps["strengths"]), excess(steps["loss"]), strict=True)):
    left.plot(strength, loss, "o", color=VERMILION, label=None if number else "hypergradient steps")
    left.annotate(str(number + 1), (strength, loss), xytext=(6, -3), textcoords="offset points", color=VERMILION)
left.axhline(1e-3, color=GRAY, lw=1, ls=":")
left.set(xscale="log", yscale="log", xlabel="strength λ", ylabel="excess of the held-out loss, relative", title="Lasso")
left.legend(frameon=False, loc="lower left")

l1, l2 = net_grid.alphas_ * ratios[:, None], net_grid.alphas_ * (1 - ratios)[:, None]
excess = np.log10(np.maximum(net_loss.ravel() / min(net_loss.min(), net.validation_loss_) - 1, 1e-4))
filled = right.tricontourf(np.log10(l1.ravel()), np.log10(l2.ravel()), excess, levels=12, cmap="Greys_r")
figure.colorbar(filled, ax=right, label="log₁₀ of the excess, relative")
path = np.log10(net.history_["strengths"])
right.plot(path[:, 0], path[:, 1], "o-", color=VERMILION, ms=5, lw=1.2, label="hypergradient steps")
best = np.log10(net.alpha_ * np.array([net.l1_ratio_, 1 - net.l1_ratio_]))
at_best = np.unravel_index(np.argmin(net_loss), net_loss.shape)
right.plot(
    np.log10(l1[at_best]), np.log10(l2[at_best]), "x", color=BLUE, ms=10, mew=3, label=f"best of {net_loss.size} points"
)
right.set(xlabel="log₁₀ λ₁", ylabel="log₁₀ λ₂", title="Elastic net")
right.set(xlim=best[0] + np.array([-1.0, 0.8]), ylim=best[1] + np.array([-1.2, 1.2]))
right.legend(frameon=True, loc="upper left")
plt.show()

# %% [markdown]
# ## (b) The Jacobian of sparse codes along the iterations
#
# The codes of a sample $x$ in a dictionary $D$ are found by proximal gradient steps from zero,
#
# $$ c_{N+1} = T(c_N, D) = \mathrm{prox}_{\lambda\lVert\cdot\rVert_1 / L}
#    \Bigl( c_N + \tfrac1L D\,(x - D^\top c_N) \Bigr), \qquad c_N \to c^* . $$
#
# *Unrolling* differentiates them step by step. Forward through the iterations, the Jacobian $J_N = \partial c_N /
# \partial D$ obeys
#
# $$ J_{N+1} = \frac{\partial T}{\partial c}(c_N, D)\, J_N + \frac{\partial T}{\partial D}(c_N, D),\qquad J_0 = 0. $$
#
# A soft threshold passes derivatives only where it lets something through, so $\partial T / \partial c = I -
# D_{S_N} D_{S_N}^\top / L$ on the support $S_N$ of $c_{N+1}$. While $S_N$ is wrong, $J_N$ heads for the derivative on
# that support, which is not $J^*$; it grows without bound where $S_N$ has more atoms than there are features. Once
# $S_N = S$ for good, both $c_N$ and $J_N$ contract by $\rho = 1 - \lambda_{\min}(D_S D_S^\top) / L$ a step. But every
# term of $J_N$ has the error that $c_N$ had when it came in, so that the error of $J_N$ decays like $N \rho^N$,
# behind that of $c_N$, which decays like $\rho^N$.
#
# A step is `argmin` by a solver of one step from given codes, with `diff=bl.Unrolled()`; one `jax.jvp` for each entry
# of $D$, at the Jacobian so far, pushes all of $J_N$ through it.

# %%
atoms, features = 20, 10
samples, num_steps = (6, 300) if QUICK else (30, 2000)
made = make_sparse_coding(samples, features, atoms, num_nonzero=3, noise=0.1, seed=0, dtype=np.float64)
one_step = bl.solvers.ProximalGradient(max_steps=1, acceleration=False)
L1 = 0.1


def step(D, x, codes, diff):
    """T(codes, D), with the derivative that `diff` gives it."""
    coding = bl.objectives.SparseCoding(D, l1=L1)
    return bl.argmin(coding, x[None], init=codes[None], solver=one_step, diff=diff, throw=False).params[0]


@jax.jit
def exact(D, X):
    """Codes that are exact to rounding, and their Jacobian (atoms, *D.shape), for each sample."""
    codes = lambda D, x: bl.argmin(bl.objectives.SparseCoding(D, l1=L1), x[None]).params[0]
    return jax.vmap(lambda x: (codes(D, x), jax.jacrev(codes)(D, x)))(X)


def relative(found, true):
    return jnp.sqrt(jnp.sum((found - true) ** 2) / jnp.sum(true**2))


# %% [markdown]
# For the gradient, take the loss of dictionary learning itself, $\mathcal{L}(D) = F(c^*(D), D)$ with $F = \frac12
# \lVert x - D^\top c \rVert^2 + \lambda \lVert c \rVert_1$. Its gradient is $\partial_D F(c^*, D)$, as $\partial_c F$
# vanishes there (Danskin). At $c_N$ there are two estimates: $\partial_D F(c_N, D)$, with the codes held constant, and
# that of automatic differentiation, $\partial_D F(c_N, D) + J_N^\top \partial_c F(c_N, D)$.


# %%
def loss_gradients(D, x, codes, J):
    """The gradient of F(codes, D) in D: with the codes held constant, and with their Jacobian (atoms, *D.shape)."""
    residual = x - codes @ D
    held = -jnp.outer(codes, residual)
    return held, held + jnp.tensordot(L1 * jnp.sign(codes) - D @ residual, J, axes=1)


@jax.jit
def unrolled(D, X, exact_codes, exact_J):
    """Codes after each step; the relative errors of codes, of J_N, and of the two gradients."""
    basis = jnp.eye(D.size).reshape(-1, *D.shape)

    def of_sample(x, true, true_J):
        true_gradient = loss_gradients(D, x, true, true_J)[0]

        def body(carry, _):
            codes, J = carry
            push = lambda E, dc: jax.jvp(lambda D, c: step(D, x, c, bl.Unrolled()), (D, codes), (E, dc))
            codes, columns = jax.vmap(push, out_axes=(None, 1))(basis, J.reshape(atoms, -1).T)
            J = columns.reshape(J.shape)
            held, by_chain = loss_gradients(D, x, codes, J)
            pairs = (codes, true), (J, true_J), (held, true_gradient), (by_chain, true_gradient)
            return (codes, J), (codes, *(relative(*pair) for pair in pairs))

        start = jnp.zeros(atoms), jnp.zeros((atoms, *D.shape))
        return jax.lax.scan(body, start, length=num_steps)[1]

    return jax.vmap(of_sample)(X, exact_codes, exact_J)


true, true_J = exact(made.dictionary, made.X)
path, codes_error, J_error, held_error, chain_error = map(np.asarray, unrolled(made.dictionary, made.X, true, true_J))
wrong = np.any((path != 0) != (np.asarray(true) != 0)[:, None], axis=2)
# The N from which on the support is right.
identified = np.array([2 + max(np.flatnonzero(row), default=-1) for row in wrong])
print(f"support right from step {identified.min()} to {identified.max()} on, median {np.median(identified):.0f}")

# %% [markdown]
# Against these, at the same iterates: the implicit derivative, which solves the system on the support of $c_N$ as
# though $c_N$ were a solution (only `on_failure="ignore"` gives it: else it would be NaN); and the truncated one, which
# unrolls a few steps only: `bl.Truncated(k)` takes $k$ more from $c_N$.

# %%
at = np.unique(np.geomspace(1, num_steps - 1, 10 if QUICK else 40).astype(int))


@jax.jit
def others(D, X, inits, true, true_J):
    """The errors of the Jacobians, and of the gradient by the implicit one, one step after `inits`."""
    ways = {"implicit": bl.Implicit(on_failure="ignore")}
    ways |= {f"truncated, {k} steps": bl.Truncated(k, on_failure="ignore") for k in TRUNCATED}

    def of(diff, x, codes, true, true_J):
        value, J = step(D, x, codes, diff), jax.jacrev(step)(D, x, codes, diff)
        by_chain, true_gradient = loss_gradients(D, x, value, J)[1], loss_gradients(D, x, true, true_J)[0]
        return relative(J, true_J), relative(by_chain, true_gradient)

    along = lambda diff: jax.vmap(lambda x, cs, *true: jax.vmap(lambda c: of(diff, x, c, *true))(cs))
    return {name: along(diff)(X, inits, true, true_J) for name, diff in ways.items()}


TRUNCATED = (10,) if QUICK else (10, 100)
found = others(made.dictionary, made.X, path[:, at - 1], true, true_J)
# No number is worse than any number.
found = {name: [np.nan_to_num(np.asarray(e), nan=np.inf) for e in errors] for name, errors in found.items()}

# %%
N = 1 + np.arange(num_steps)
figure, (traces, medians, gradients) = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
for error, first in zip(J_error, identified, strict=True):
    traces.plot(N[:first], error[:first], color=VERMILION, lw=0.7)
    traces.plot(N[first - 1 :], error[first - 1 :], color=BLUE, lw=0.7)
    traces.plot(N[first - 1 : first], error[first - 1 : first], "o", color=BLACK, ms=3)
traces.plot([], [], color=VERMILION, label="support still wrong")
traces.plot([], [], color=BLUE, label="support right")
traces.axhline(1, color=GRAY, lw=1, ls=":")
traces.set_title("Unrolled Jacobian, each sample")


def draw(ax, steps, errors, label, **style):
    """The median, and the quartiles as a band, over samples."""
    low, middle, high = (np.quantile(errors, q, axis=0, method="higher") for q in (0.25, 0.5, 0.75))
    shown = np.isfinite(middle)
    ax.fill_between(steps[shown], low[shown], np.minimum(high[shown], 1e6), color=style["color"], alpha=0.15, lw=0)
    ax.plot(steps[shown], middle[shown], label=label, **style)


draw(medians, N, codes_error, "codes themselves", color=GRAY, ls="--")
draw(medians, N, J_error, "unrolled", color=BLUE)
for (name, (error, _)), color in zip(found.items(), (VERMILION, GREEN, PURPLE), strict=False):
    draw(medians, at + 1, error, name, color=color)
medians.set_title("Jacobian, median and quartiles")
draw(gradients, N, held_error, "codes held constant", color=GREEN)
draw(gradients, N, chain_error, "unrolled", color=BLUE)
draw(gradients, at + 1, found["implicit"][1], "implicit", color=VERMILION)
gradients.set_title("Gradient of the loss, median and quartiles")
traces.set(xscale="log", ylim=(3e-3, 4), ylabel="relative error")
for ax in (medians, gradients):
    ax.set(xlim=(0, 0.5 * num_steps), ylim=(1e-12, 1e4))
for ax in (traces, medians, gradients):
    ax.set(yscale="log", xlabel="iterations N")
    ax.grid(alpha=0.3)
    ax.legend(frameon=False, fontsize=9)
traces.legend(frameon=False, fontsize=9, loc="lower left")
plt.show()

# %% [markdown]
# ## Do the claims hold?
#
# Yes, as far as is asserted below (some of it in full sizes only). A few hypergradients, after six points of a coarse
# grid, do what a grid of a hundred points does for the Lasso; two strengths took some more, where the grid grew to six
# hundred points. Of the Jacobians: while the support is wrong, the unrolled one has errors above 1 for most samples, so
# that zero would be a better guess; once the support is right it converges linearly, at the rate of the codes less the
# factor $N$, and the gradient of the loss with it at about twice that rate, against once with codes held constant.
# Truncation pays by an error that stays. The implicit formula is far worse than either while the support is wrong, and
# the best from then on, as it has no lag: the reason why, here, it is NaN wherever the inner solve missed its
# tolerance, unless one insists.


# %%
def rate(error, codes, first):
    """How fast an error decays once the support is right, by the logarithm, as a multiple of that of the codes."""
    last = np.flatnonzero(error > 1e-10)[-1]
    begin = min(first + 19, last - 1)
    return np.log(error[last] / error[begin]) / np.log(codes[last] / codes[begin])


def lag(J, codes, first):
    """By what error(J_N) / error(c_N) grows from half of the way to its end, in units of the growth of N."""
    last = np.flatnonzero(codes > 1e-10)[-1]
    middle = (min(first, last) + last) // 2
    return J[last] / codes[last] / (J[middle] / codes[middle]) / (N[last] / N[middle])


median = lambda of, errors: np.median([of(*row) for row in zip(errors, codes_error, identified, strict=True)])
rates = {"J": median(rate, J_error), "held": median(rate, held_error), "unrolled": median(rate, chain_error)}
growth = median(lag, J_error)
peaks = np.array([error[: first - 1].max(initial=0) for error, first in zip(J_error, identified, strict=True)])
right, implicit = at + 1 >= identified[:, None], found["implicit"][0]
share = lambda errors: np.mean(errors[~right] > 1)
ahead = np.median((J_error[:, at] / implicit)[right & (codes_error[:, at] > 1e-10)])
floor = {name: float(np.median(errors[0][:, -1])) for name, errors in found.items() if name != "implicit"}
needed = 1 + int(np.argmax(lasso.history_["loss"] <= 1.001 * grid_loss.min()))

print(f"Lasso: {lasso_ratio:.5f} of the grid's best loss; within 1.001 of it after {needed} hypergradients")
print(f"elastic net: {net_ratio:.5f} of the best of {net_loss.size} points, by {net.n_iter_} hypergradients")
print(f"support wrong: {np.mean(peaks > 1):.0%} of samples have an unrolled error above 1, up to {peaks.max():.2f};")
print(f"    so have {share(J_error[:, at]):.0%} of the iterates, of the implicit ones {share(implicit):.0%}")
print(f"support right: the unrolled Jacobian decays at {rates['J']:.2f} of the rate of the codes,")
print(f"    its error over theirs grows like {growth:.2f} N, and is {ahead:.1f} times that of the implicit one;")
print(
    f"    the gradient decays at {rates['unrolled']:.2f} of that rate, with codes held constant at {rates['held']:.2f}"
)
print("truncated, in the end:", ", ".join(f"{error:.2f} ({name})" for name, error in floor.items()))

# %%
assert formula_error < 1e-8
assert lasso_ratio <= 1.001 and needed <= 10
assert share(implicit) > share(J_error[:, at])
assert all(error > 0.05 for error in floor.values())
if not QUICK:  # few samples and steps do not show these; and the net has several valleys
    assert net_ratio <= 1.001
    assert np.mean(peaks > 1) > 0.5 and peaks.max() > 1.5
    assert 0.8 < rates["J"] < 1.05 and 0.6 < growth < 1.2 and ahead > 2
    assert 0.9 < rates["held"] < 1.1 and 1.6 < rates["unrolled"] < 2.2
