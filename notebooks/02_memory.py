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
# # The memory of a hypergradient, and the number of inner iterations
#
# **What does it cost, in memory, to differentiate through an inner solver in reverse mode?**
#
# The inner problem is an elastic net with one strength $e^{\theta_j}$ for each feature, the outer one its loss on
# held-out data:
#
# $$\Phi(\theta) = \tfrac1m \|X' w^*(\theta) - y'\|^2, \qquad
# w^*(\theta) = \operatorname{argmin}_w \tfrac1{2n}\|X w - y\|^2 + \sum_j e^{\theta_j} |w_j| + \tfrac{l_2}2 \|w\|^2.$$
#
# Reverse mode through the iterations (J. Domke: *Generic methods for optimization-based modeling*, 2012) needs every
# iterate again on its way back. Implicit differentiation (Q. Bertrand et al.: *Implicit differentiation of Lasso-type
# models for hyperparameter optimization*, 2020) needs the solution alone. The claim: the memory of the first grows in
# proportion to the number of iterations, that of the second does not depend on it, and both give the same gradient.

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import bilevel as bl
from bilevel.datasets import make_sparse_regression
from bilevel.plots import plot_costs
from bilevel.plots.colors import series

jax.config.update("jax_enable_x64", True)
QUICK = bool(os.environ.get("BILEVEL_QUICK"))

# %% [markdown]
# ## Why
#
# Write one iteration as $w_{k+1} = T(w_k, \theta)$, after which reverse mode has to pull a cotangent $\bar w_{k+1}$
# back:
#
# $$\bar w_k = \partial_w T(w_k, \theta)^\top \bar w_{k+1}, \qquad
# \bar\theta \mathrel{+}= \partial_\theta T(w_k, \theta)^\top \bar w_{k+1}, \qquad k = K-1, \dots, 0.$$
#
# The derivatives are taken at $w_k$, and the last iterate is needed first. So all $K$ of them are kept: memory
# $O(K)$. Three ways out:
#
# - **Checkpoints**: keep every $\sqrt K$-th iterate, and compute the others anew, a segment at a time. The derivative
#   is the same to rounding, the memory $O(\sqrt K)$, the price another forward pass.
# - **Truncation**: only the last $k$ iterations, for memory $O(k)$ and an error of the order of $\rho^k$, where
#   $\rho$ is the rate at which the solver converges.
# - **Implicit**: at a solution, $w^* = T(w^*, \theta)$, all the terms are those of one geometric series, $\bar\theta
#   = \partial_\theta T^\top (I - \partial_w T^\top)^{-1} \bar w$: one linear system, on the support of $w^*$, after
#   the solver is done. How it got there is forgotten: memory $O(1)$.

# %% [markdown]
# ## The measurement
#
# XLA plans the memory of a program when it compiles it, and says how much it will use beside inputs and outputs: that
# is what is plotted here, and it does not depend on what else the machine does. Every way of differentiating gets the
# same solver, accelerated proximal gradient, which takes exactly `num_steps` steps as it never meets a tolerance of
# $10^{-30}$. A solve that misses its tolerance has NaN as its derivative, or an error, unless one asks for something
# else, as `on_failure="ignore"` does.

# %%
regression = make_sparse_regression(200, 100, num_nonzero=10, correlation=0.5, seed=0, dtype=np.float64)
X, y = jnp.asarray(regression.X), jnp.asarray(regression.y)
train, validation = (X[:120], y[:120]), (X[120:], y[120:])
theta = jnp.full(100, jnp.log(0.1 * bl.objectives.ElasticNet.max_l1(train)))

ways = {
    "unrolled": bl.Unrolled(),
    "unrolled, checkpointed": bl.Unrolled(checkpoint=True),
    "truncated, 20 steps": bl.Truncated(20, on_failure="ignore"),
    "implicit": bl.Implicit(on_failure="ignore"),
}


def validation_loss(theta, train, validation, diff, num_steps):
    net = bl.objectives.ElasticNet(l1=jnp.exp(theta), l2=0.05)
    solver = bl.solvers.ProximalGradient(tol=1e-30, max_steps=num_steps)
    model = bl.argmin(net, train, solver=solver, diff=diff, throw=False).params
    X, y = validation
    return jnp.mean((model(X) - y) ** 2)


def measure(diff, num_steps):
    """Bytes of temporary memory, and the gradient."""
    gradient = jax.jit(jax.grad(validation_loss), static_argnames=("diff", "num_steps"))
    program = gradient.lower(theta, train, validation, diff=diff, num_steps=num_steps).compile()
    return program.memory_analysis().temp_size_in_bytes, np.asarray(program(theta, train, validation))


num_steps = np.array([30, 100, 300] if QUICK else [10, 30, 100, 300, 1000, 3000, 10_000])
if QUICK:
    del ways["truncated, 20 steps"]
measured = {name: [measure(diff, int(steps)) for steps in num_steps] for name, diff in ways.items()}
memory = {name: np.array([found[0] for found in row]) for name, row in measured.items()}
gradients = {name: np.array([found[1] for found in row]) for name, row in measured.items()}

# %% [markdown]
# `bl.compare_modes` makes such a table, with times, of a problem of your own in one call.
#
# The gradients are judged by a witness that is none of these ways. On the support $S$ of $w^*$, where its signs are
# $s$,
#
# $$A w_S = X_S^\top y / n - e^{\theta_S} s, \quad A = X_S^\top X_S / n + l_2 I,$$
#
# and with it
#
# $$\partial_{\theta_j} \Phi = -\,e^{\theta_j} s_j \, (A^{-1} \nabla_{w_S} \Phi)_j \quad (j \in S), \text{ else } 0.$$


# %%
def witness():
    (X, y), (X_val, y_val) = (tuple(map(np.asarray, part)) for part in (train, validation))
    w = np.asarray(bl.argmin(bl.objectives.ElasticNet(l1=jnp.exp(theta), l2=0.05), train).params.weight)
    support, l1 = w != 0, np.exp(np.asarray(theta))
    X, X_val, signs, l1 = X[:, support], X_val[:, support], np.sign(w[support]), l1[support]
    A = X.T @ X / len(X) + 0.05 * np.eye(len(signs))
    w = np.linalg.solve(A, X.T @ y / len(X) - l1 * signs)
    gradient = np.zeros(len(support))
    gradient[support] = -l1 * signs * np.linalg.solve(A, 2 * X_val.T @ (X_val @ w - y_val) / len(X_val))
    return gradient


truth = witness()
relative = lambda found, true: np.linalg.norm(found - true, axis=-1) / np.linalg.norm(true)
errors = {name: relative(found, truth) for name, found in gradients.items()}
print(f"{np.count_nonzero(truth)} of {len(truth)} features in use")
print("bytes" + "".join(f"{steps:>12d}" for steps in num_steps) + "   steps")
for name, row in memory.items():
    print("     " + "".join(f"{value:12d}" for value in row) + f"   {name}")

# %% [markdown]
# ## The figure
#
# Left, the memory. To the left of it constants rule: the data, and the linear system of the implicit way. Right, what
# is had for it: the error of the gradient after as many steps. (Checkpoints change nothing there: two lines are one.)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
plot_costs(num_steps, memory, ax=left)
left.set_ylim(0.1, 1.5 * memory["unrolled"].max() / 2**20)
left.yaxis.set_minor_formatter("")
for index, (line, row) in enumerate(zip(left.get_lines(), errors.values(), strict=True)):
    right.loglog(num_steps, np.maximum(row, 1e-16), lw=1.6, ms=5, ls=line.get_linestyle(), **series(index))
right.set_xlabel("inner iterations")
right.set_ylabel("relative error of the gradient")
right.grid(alpha=0.3)
plt.show()

# %% [markdown]
# ## Does the claim hold?
#
# It does: unrolled memory is a straight line in the number of iterations, one vector of weights for each;
# implicit memory is one number, which is the larger one where iterations are few; and both arrive
# at the same gradient. Checkpoints make the growth slow without a change of the gradient. Truncation has constant
# memory, too, but an error that no further iterations reduce.

# %%
line = np.polyfit(num_steps, memory["unrolled"], 1)
residual = memory["unrolled"] - np.polyval(line, num_steps)
r_squared = 1 - np.sum(residual**2) / np.sum((memory["unrolled"] - memory["unrolled"].mean()) ** 2)
spread = np.ptp(memory["implicit"]) / memory["implicit"].mean()
disagreement = relative(gradients["unrolled"][-1], gradients["implicit"][-1])
checkpointed = relative(gradients["unrolled, checkpointed"][-1], gradients["unrolled"][-1])
growth = np.polyfit(np.log(num_steps[-2:]), np.log(memory["unrolled, checkpointed"][-2:]), 1)[0]
print(f"unrolled: {line[0]:.0f} bytes an iteration, where the weights are {8 * len(theta)}; R² = {r_squared:.6f}")
print(f"implicit: {memory['implicit'].mean():.0f} bytes, all within {100 * spread:.2g} %")
print(
    f"at {num_steps[-1]} iterations unrolled takes {memory['unrolled'][-1] / memory['implicit'][-1]:.0f} times as much"
)
print(f"checkpointed: memory grows as the number of iterations to the power {growth:.2f}")
print(
    f"gradients at {num_steps[-1]} iterations: unrolled and implicit differ by {disagreement:.1e}, from the witness by"
)
print(f"{errors['unrolled'][-1]:.1e} and {errors['implicit'][-1]:.1e}; checkpoints change {checkpointed:.1e}")

assert r_squared > 0.999
assert spread <= 0.01
# In quick size the iterations end before the gradient has settled to that.
assert disagreement <= (1e-2 if QUICK else 1e-8)
assert errors["implicit"][-1] <= (1e-2 if QUICK else 1e-8)
assert checkpointed <= 1e-10
assert growth <= 0.7
if not QUICK:
    assert np.ptp(memory["truncated, 20 steps"]) <= 0.01 * memory["truncated, 20 steps"].mean()
    assert errors["truncated, 20 steps"][-1] > 1e-8
