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
# # One step is enough, for Newton
#
# A solver repeats a step $y \leftarrow \Phi(y, \theta)$ until it rests at $y^*(\theta) = \Phi(y^*(\theta), \theta)$.
# **What if only the last step is differentiated, and the point where it starts is held constant?** That is one partial
# derivative,
#
# $$\frac{\partial y^*}{\partial \theta} \approx \frac{\partial \Phi}{\partial \theta}(y, \theta),$$
#
# without a linear system, and without the past.
#
# J. Bolte, E. Pauwels, S. Vaiter: *One-step differentiation of iterative algorithms*, 2023, say how good it is: as good
# as the solver is fast. Its relative error is at most the contraction factor $\rho$ of the step. For gradient descent
# that is next to 1. For Newton's method it is 0.

# %%
import os

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import bilevel as bl
from bilevel.datasets import load_breast_cancer
from bilevel.plots.colors import series

jax.config.update("jax_enable_x64", True)
QUICK = bool(os.environ.get("BILEVEL_QUICK"))
NEWTON_STEPS, DESCENT_STEPS = 8, 60 if QUICK else 500
KEPT = (1, 20) if QUICK else (1, 5, 20, 50, 100, 200, 400)

# %% [markdown]
# ## Why
#
# The Jacobian $J^*$ of a fixed point satisfies $J^* = A J^* + \partial_\theta \Phi$ with $A = \partial_y \Phi$: it is
# $(I - A)^{-1} \partial_\theta \Phi = \sum_i A^i \, \partial_\theta \Phi$. The derivative of the last $K$ steps, from
# the fixed point, is the sum of the first $K$ terms,
#
# $$J_K = \sum_{i < K} A^i \, \partial_\theta \Phi = (I - A^K) J^*, \qquad J_K - J^* = -A^K J^*.$$
#
# **Gradient descent**, $\Phi = y - s \nabla f$, has the symmetric $A = I - s H$, $H = \nabla^2_{yy} f$, whose norm is
# $\rho = 1 - s \lambda_{\min}(H)$ for $s \le 1 / \lambda_{\max}(H)$. Hence, at the solution,
#
# $$\frac{\|J_K - J^*\|}{\|J^*\|} \le \rho^K,$$
#
# with the constant 1, in the Frobenius norm too. At an iterate with error $\delta$, a term of $O(\|\delta\|)$ comes on
# top. `OneStep` is $K = 1$, `Truncated(K)` the others.
#
# **Newton's method**, $\Phi = y - H^{-1} \nabla f$, has $A = 0$ at the solution, since $\nabla f = 0$ there: one step
# gives $J^*$ itself, $-H^{-1} B$ with $B = \nabla^2_{y\theta} f$. How fast does it get there? As $\nabla f$ is $H
# \delta$ and terms of second order, to first order in $\delta$
#
# $$\begin{aligned}
# \text{implicit:} \quad & -H^{-1} B - J^* = H^{-1} (H'_y[\delta]\, H^{-1} B - B'_y[\delta]), \\
# \text{one step:} \quad & -H^{-1} B + H^{-1} H'_\theta H^{-1} \nabla f - J^* = H^{-1} H'_y[\delta]\, H^{-1} B.
# \end{aligned}$$
#
# In the second line $\theta$ moves $H$ as well, and since mixed derivatives commute, $H'_\theta \delta = B'_y[\delta]$:
# one term of the first line cancels. Both errors are of first order in $\delta$, which Newton's method squares at each
# step.

# %% [markdown]
# ## Logistic regression with a strength for each feature
#
# $$w^*(\theta) = \mathrm{argmin}_w \; \frac1n \sum_i \log(1 + e^{-y_i w \cdot x_i}) + \frac12 \sum_j e^{\theta_j}
# w_j^2$$
#
# on 569 tumors with 30 features. All 30 × 30 derivatives are taken, in forward mode. Each call makes one step from a
# given start, so iterates can be watched one by one by a single compiled program; a solve that short is at no solution,
# which `on_failure="ignore"` permits.

# %%
cancer = load_breast_cancer(np.float64, fractions=(1, 0, 0)).train
data = jnp.asarray(cancer.X), jnp.asarray(2.0 * cancer.y - 1)
theta = jnp.full(data[0].shape[1], np.log(1e-1))


@eqx.filter_jit
def jacobian(theta, data, solver, diff, init=None):
    """dw/dθ, (features, features), and w."""

    def weights(theta):
        objective = bl.objectives.LogisticRegression(jnp.exp(theta))
        solution = bl.argmin(objective, data, solver=solver, diff=diff, init=init, throw=False)
        return solution.params.weight, solution.params

    return jax.jacfwd(weights, has_aux=True)(theta)


# %% [markdown]
# The truth in closed form: here $B$ is diagonal, with entries $e^{\theta_j} w_j$, and $J^* = -H^{-1} B$ is left to
# dense linear algebra at a solution to rounding. The eigenvalues of $H$ give the contraction factor of gradient
# descent, whose step in the library is $1/L$, with $L$ a bound of the curvature everywhere.

# %%
objective = bl.objectives.LogisticRegression(jnp.exp(theta))
solution = bl.argmin(objective, data, solver=bl.solvers.Newton(tol=1e-14)).params
hessian = objective.hessian(solution, data).as_matrix()
truth = -jnp.linalg.solve(hessian, jnp.diag(jnp.exp(theta) * solution.weight))
rho = 1 - float(jnp.linalg.eigvalsh(hessian)[0] / objective.lipschitz(data))
print(f"rho = {rho:.4f}")


def relative(value, whole):
    return float(jnp.linalg.norm(value - whole) / jnp.linalg.norm(whole))


# %% [markdown]
# ## From iterate to iterate
#
# At each iterate, the derivative of one further step, and the implicit formula.

# %%
WAYS = {"one step": bl.OneStep(on_failure="ignore"), "implicit": bl.Implicit(on_failure="ignore")}
SOLVERS = {
    "Newton": (bl.solvers.Newton(max_steps=1, tol=1e-16), NEWTON_STEPS),
    "gradient descent": (bl.solvers.GradientDescent(max_steps=1, tol=1e-16, acceleration=False), DESCENT_STEPS),
}


def along(solver, diff, num_steps):
    """The relative error of the Jacobian after each step from 0."""
    params = objective.init(data)
    errors = []
    for _ in range(num_steps):
        J, params = jacobian(theta, data, solver, diff, params)
        errors.append(relative(J, truth))
    return np.array(errors)


errors = {}
for name, (solver, num_steps) in SOLVERS.items():
    for way, diff in WAYS.items():
        errors[name, way] = along(solver, diff, num_steps)

# %% [markdown]
# ## More steps than one
#
# `Truncated(K)`, from the solution. Gradient descent starts there as well, so that what is left is the error of
# truncation alone.

# %%
descent = bl.solvers.GradientDescent(max_steps=1, tol=1e-12, acceleration=False)
truncation = [relative(jacobian(theta, data, descent, bl.Truncated(K), solution)[0], truth) for K in KEPT]

# %%
figure, axes = plt.subplots(1, 3, figsize=(13, 4.4), layout="constrained")
for ax, name in zip(axes, SOLVERS, strict=False):
    for index, way in enumerate(WAYS):
        J = errors[name, way]
        every = max(len(J) // 12, 1)
        ax.plot(1 + np.arange(len(J)), np.maximum(J, 1e-17), lw=1.6, ms=5, markevery=every, label=way, **series(index))
    ax.set(title=name, xlabel="steps of the solver", yscale="log")
axes[0].set_ylabel("relative error of the Jacobian")
axes[1].axhline(rho, ls="--", color="0.3", lw=1, label="$\\rho$")
axes[2].plot(KEPT, truncation, lw=1.6, ms=5, label="error of K steps", **series(0))
across = np.arange(1, KEPT[-1] + 1)
axes[2].plot(across, rho**across, ls="--", color="0.3", lw=1, label="$\\rho^K$")
axes[2].set(title="gradient descent, the last K steps", xlabel="steps differentiated, K", yscale="log")
for ax in axes:
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)
plt.show()

# %% [markdown]
# ## Does the claim hold?
#
# It does here. With Newton's method the error of the derivative of one step is at most twice that of the
# implicit one at every iterate; it needs no linear system beyond the solver's own, and is right to rounding in the end.
# With gradient descent it stops at an error of about $\rho$, however close the iterate is, and $K$ steps stay below
# $\rho^K$, with the constant 1: where $\rho$ is close to 1 that takes as many steps as the solve itself. There the
# implicit formula is the one to take.

# %%
newton = {way: errors["Newton", way] for way in WAYS}
descending = {way: errors["gradient descent", way][-1] for way in WAYS}
ratio = newton["one step"] / np.maximum(newton["implicit"], 1e-10)
print(
    f"Newton: error of one step at most {ratio.max():.2f} times that of implicit, {newton['one step'][-1]:.1e} at last"
)
print("gradient descent, at last: " + ", ".join(f"{way} {error:.2e}" for way, error in descending.items()))
for K, error in zip(KEPT, truncation, strict=True):
    print(f"K = {K:4d}: error {error:.2e}, rho^K {rho**K:.2e}")

assert np.all(ratio <= 2)
assert newton["one step"][-1] <= 1e-8
assert all(error <= rho**K * (1 + 1e-8) for K, error in zip(KEPT, truncation, strict=True))
assert rho / 2 <= truncation[0] <= rho
