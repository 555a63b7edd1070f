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
# # Data hyper-cleaning
#
# **Half of the training labels are wrong, and nobody says which: can the few that are trusted tell?** Every training
# sample gets a weight between 0 and 1, a hyperparameter. Weights are good if the model trained with them does well on
# a small validation set whose labels are right:
#
# $$\min_{w \in [0, 1]^n} \; \frac1m \sum_{j=1}^m \ell(W^*(w)\, x'_j, y'_j), \qquad
# W^*(w) = \operatorname*{argmin}_{W} \; \frac1n \sum_{i=1}^n w_i\, \ell(W x_i, y_i) + \frac{\lambda}{2} \|W\|^2,$$
#
# with $(x_i, y_i)$ the training digits, $(x'_j, y'_j)$ the validation digits, and $\ell$ the multinomial logistic loss.
# There are as many hyperparameters as training samples: far too many for a search, and all the same to a gradient.
#
# - L. Franceschi, M. Donini, P. Frasconi, M. Pontil: *Forward and reverse gradient-based hyperparameter optimization*.
#   2017. They differentiate through the iterations of gradient descent; here the solution is differentiated.

# %%
import os

import jax
import jax.numpy as jnp
import lineax as lx
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.metrics import roc_auc_score, roc_curve

import bilevel as bl
from bilevel.datasets import corrupt_labels, load_mnist
from bilevel.plots.colors import BLUE, GREEN, PURPLE, VERMILION

jax.config.update("jax_enable_x64", True)
QUICK = bool(os.environ.get("BILEVEL_QUICK"))
NUM_TRAIN, NUM_VALIDATION, NUM_STEPS = (600, 400, 12) if QUICK else (3000, 1000, 30)

# %% [markdown]
# 5000 real digits of MNIST, shuffled: training digits, of which half get one of the nine wrong labels; validation
# digits; and 1000 test digits, which neither level sees.

# %%
X, labels, image_shape = load_mnist(np.float64)
order = np.random.default_rng(0).permutation(len(X))
X, labels = X[order], labels[order]
given = corrupt_labels(labels[:NUM_TRAIN], 0.5, num_classes=10, seed=0)
right = ~given.corrupted

as_arrays = lambda X, labels: (jnp.asarray(X), jnp.asarray(labels))
train = as_arrays(X[:NUM_TRAIN], given.labels)
validation = as_arrays(X[NUM_TRAIN : NUM_TRAIN + NUM_VALIDATION], labels[NUM_TRAIN : NUM_TRAIN + NUM_VALIDATION])
test = as_arrays(X[4000:], labels[4000:])
data = (train, validation)
f"{NUM_TRAIN} training digits, {right.sum()} of them with the right label"

# %% [markdown]
# ## The problem
#
# An inner problem of one's own is a function of hyperparameters, parameters and data.


# %%
def losses(model, digits):
    X, labels = digits
    return optax.losses.softmax_cross_entropy_with_integer_labels(model(X), labels)


def weighted_regression(hyperparams, model, data):
    train, _ = data
    shrinkage = 0.5 * hyperparams["l2"] * jnp.sum(model.weight**2)
    return jnp.mean(hyperparams["weights"] * losses(model, train)) + shrinkage


def outer_loss(variables, model, data):
    _, validation = data
    return jnp.mean(losses(model, validation))


def inner(weights, l2=1e-2):
    hyperparams = {"weights": jnp.asarray(weights, float), "l2": l2}
    untrained = bl.objectives.LinearModel(jnp.zeros((10, X.shape[1])))
    return bl.objectives.FunctionObjective(weighted_regression, hyperparams, start=untrained)


# %% [markdown]
# ## What a weight's derivative says
#
# With $H$ the Hessian of the inner objective and $\Phi$ the outer loss, implicit differentiation gives, as
# $\partial^2 f / \partial W \partial w_i = \nabla_W \ell_i / n$,
#
# $$\frac{\partial \Phi}{\partial w_i} = -\frac1n \langle \nabla_W\, \ell(W^* x_i, y_i),\; \mu \rangle, \qquad
# H \mu = \nabla_W \Phi(W^*).$$
#
# A sample is worth more weight if its own gradient agrees with that of the validation loss, in the metric of $H^{-1}$;
# it is the influence of a sample, in the word of robust statistics. One linear system of 7840 unknowns serves all
# samples. Conjugate gradient solves it, to the accuracy of the inner solution, which is all that it can be worth.

# %%
solver = bl.solvers.LBFGS(tol=1e-6)
diff = bl.Implicit(linear_solver=lx.CG(rtol=1e-6, atol=1e-6, stabilise_every=None))

everything = np.ones(NUM_TRAIN)
at_start = bl.hypergradient(outer_loss, inner(everything), data, solver=solver, diff=diff)
print(at_start.certificate)

# %% [markdown]
# The formula by hand: the gradient of $\ell(W x, y)$ is $(p - e_y)\, x^\top$, with $p$ the probabilities.

# %%
probabilities = jax.nn.softmax(at_start.solution.params(train[0]), axis=1)
residuals = probabilities - jax.nn.one_hot(train[1], 10)
influence = -jnp.sum(residuals * at_start.adjoint(train[0]), axis=1) / NUM_TRAIN
gradient = at_start.gradient.hyperparams["weights"]
difference = float(jnp.linalg.norm(gradient - influence) / jnp.linalg.norm(influence))
print(f"relative difference to the formula: {difference:.1e}")

# %% [markdown]
# ## Learning the weights
#
# All labels are trusted at first. Adam moves the weights, a projection keeps them between 0 and 1, and every inner
# solve starts from the last one's solution.

# %%
weights_of = lambda variables: variables.objective.hyperparams["weights"]
problem = bl.BilevelProblem(
    outer_loss,
    bl.Variables(inner(everything)),
    train=weights_of,
    constraints=[bl.Constrained(weights_of, bl.prox.Box(0.0, 1.0))],
)
curve = []


def error(model, digits):
    X, labels = digits
    return float(jnp.mean(jnp.argmax(model(X), axis=1) != labels))


def watch(state, history):
    curve.append(error(state.warm_start, test))


trainer = bl.Trainer(problem, optax.adam(0.1), solver=solver, diff=diff)
fitted = trainer.fit(data, NUM_STEPS, every=1, callback=watch)
weights = np.asarray(weights_of(fitted.variables))

options = dict(solver=solver, diff=diff, init=fitted.state.warm_start)
cleaned = bl.hypergradient(outer_loss, fitted.variables.objective, data, **options)
curve.append(error(cleaned.solution.params, test))
print(cleaned.certificate)

# %% [markdown]
# ## What to compare with
#
# The same regression on all training digits, wrong labels and all; on the right ones alone, which only an oracle knows;
# and on the validation digits alone. The first two take the best of three strengths by the validation error; the last
# has that of the learned weights, $\lambda = 10^{-2}$.

# %%
strengths = [1e-2] if QUICK else [3e-3, 1e-2, 3e-2]


def fit_with(weights):
    models = [bl.argmin(inner(weights, l2), data, solver=solver).params for l2 in strengths]
    return min(models, key=lambda model: error(model, validation))


trusting = error(fit_with(everything), test)
oracle = error(fit_with(right), test)
regression = bl.objectives.LogisticRegression(1e-2, n_classes=10)
trusted_alone = error(bl.argmin(regression, validation, solver=solver).params, test)

# %% [markdown]
# ## Which labels are right?

# %%
auc = roc_auc_score(right, weights)
figure, (left, beside) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
groups, names = (weights[right], weights[~right]), ("right labels", "wrong labels")
left.hist(groups, np.linspace(0, 1, 11), color=(BLUE, VERMILION), label=names)
left.set(xlabel="learned weight", ylabel="training digits", xlim=(0, 1))
left.legend(frameon=False, loc="upper center")
false_rate, true_rate, _ = roc_curve(right, weights)
beside.plot(100 * false_rate, 100 * true_rate, lw=2.2, color=BLUE)
beside.plot([0, 100], [0, 100], lw=1, ls="--", color="0.5")
beside.annotate(f"area {auc:.3f}", (55, 45), fontsize=12)
beside.set(xlabel="wrong labels kept (%)", ylabel="right labels kept (%)", xlim=(0, 100), ylim=(0, 101))
beside.set_aspect("equal")
for ax in (left, beside):
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# Twelve digits drawn among those of weight 0, each with its label: in red where that is wrong, else in blue.

# %%
dropped = np.random.default_rng(0).choice(np.flatnonzero(weights == 0), 12, replace=False)
figure, row = plt.subplots(1, 12, figsize=(12, 1.5), layout="constrained")
for ax, i in zip(row, dropped, strict=True):
    ax.imshow(X[i].reshape(image_shape), cmap="gray_r")
    ax.set_title(f"“{given.labels[i]}”", color=BLUE if right[i] else VERMILION)
    ax.set_axis_off()
plt.show()

# %%
figure, ax = plt.subplots(figsize=(8, 4.5), layout="constrained")
ax.plot(100 * np.asarray(curve), lw=2.2, color=BLUE, label="learned weights")
lines = {
    "all training labels": (trusting, VERMILION),
    "validation digits alone": (trusted_alone, PURPLE),
    "right labels (oracle)": (oracle, GREEN),
}
for name, (value, color) in lines.items():
    ax.axhline(100 * value, lw=1.4, ls="--", color=color)
    ax.annotate(name, (1, 100 * value), (4, 0), ("axes fraction", "data"), "offset points", color=color, va="center")
ax.set(xlabel="outer step", ylabel="test error (%)", xlim=(0, NUM_STEPS))
ax.legend(frameon=False, loc="upper right")
ax.grid(alpha=0.3)
ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# ## Does the claim hold?
#
# It does here: the validation loss tells right labels from wrong ones, sample by sample, and a model trained
# with the learned weights is far better than one that trusts all labels, and about as good as that of the oracle, which
# knows the truth. It is a modest gain over the validation digits alone, had they been the training set: as 1000 test
# digits know an error to about one percentage point, not much more than that.

# %%
print(f"test error: all labels {trusting:.1%}, learned weights {curve[-1]:.1%}, oracle {oracle:.1%}")
print(f"validation digits alone: {trusted_alone:.1%}")
print(f"area under the ROC curve: {auc:.3f}")
print(f"estimated relative error of the last hypergradient: {cleaned.certificate.relative_error:.1e}")

assert difference <= 1e-6
assert auc >= (0.80 if QUICK else 0.90)
assert curve[-1] <= trusting - 0.03
assert QUICK or curve[-1] <= oracle + 0.015
assert QUICK or abs(trusted_alone - curve[-1]) <= 0.025
assert at_start.certificate.relative_error <= 1e-2 and cleaned.certificate.relative_error <= 1e-2
