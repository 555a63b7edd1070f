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
# # Data-set distillation
#
# **How many images does a classifier of handwritten digits need?** Ten, one a class, if they may be chosen freely:
# not selected among the digits, but *learned*, as what the training set should have been.
#
# The inner problem trains on the ten images $\theta_c$, whose labels are $c = 0, \dots, 9$. The outer problem asks that
# the model so trained classifies $m$ real digits $(x_i, y_i)$, which the inner problem never sees:
#
# $$\min_{\theta} \; \frac1m \sum_{i=1}^m \ell(W^*(\theta)\, x_i, y_i), \qquad
# W^*(\theta) = \operatorname*{argmin}_{W} \; \frac1{10} \sum_{c=0}^{9} \ell(W \theta_c, c)
# + \frac{\lambda}{2} \|W\|^2,$$
#
# where $\ell(z, c) = \log \sum_k \exp z_k - z_c$ is the multinomial logistic loss.
#
# - T. Wang, J.-Y. Zhu, A. Torralba, A. Efros: *Dataset distillation*. 2018. They differentiate through a few unrolled
#   steps of gradient descent.
# - M. Blondel et al.: *Efficient and modular implicit differentiation*. 2022. They solve the inner problem to its
#   end, and differentiate its optimality conditions, as is done here.

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import bilevel as bl
from bilevel.datasets import load_mnist
from bilevel.plots.colors import BLACK, BLUE, GREEN, SKY, VERMILION

jax.config.update("jax_enable_x64", True)
QUICK = bool(os.environ.get("BILEVEL_QUICK"))
NUM_TRAIN, NUM_STEPS, NUM_DRAWS = (1000, 40, 3) if QUICK else (4000, 100, 20)

# %% [markdown]
# 5000 real digits of MNIST, shuffled: those of the outer loss, and 1000 that are held out.

# %%
X, labels, image_shape = load_mnist(np.float64)
order = np.random.default_rng(0).permutation(len(X))
X, labels = jnp.asarray(X[order]), jnp.asarray(labels[order])
train, test = (X[:NUM_TRAIN], labels[:NUM_TRAIN]), (X[4000:], labels[4000:])
f"{NUM_TRAIN} training digits, {len(test[1])} test digits"

# %% [markdown]
# ## The problem
#
# The library's logistic regression is itself a function of parameters and data. Called with images that are
# hyperparameters, it makes an inner problem whose data are learned: what `FunctionObjective` gives its function as the
# first argument, the outer level may differentiate. Training starts from noise.

# %%
regression = bl.objectives.LogisticRegression(l2=1e-2, n_classes=10)
classes = jnp.arange(10)


def train_on_images(images, model, digits):
    del digits  # seen by the outer loss alone
    return regression(model, (images, classes))


def outer_loss(variables, model, digits):
    X, labels = digits
    return jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(model(X), labels))


noise = 0.03 * jax.random.normal(jax.random.key(0), (10, X.shape[1]))
untrained = bl.objectives.LinearModel(jnp.zeros((10, X.shape[1])))
inner = bl.objectives.FunctionObjective(train_on_images, noise, start=untrained)
# %% [markdown]
# ## A hypergradient and its certificate
#
# At the solution $F(W^*(\theta), \theta) = 0$, with $F$ the gradient of the inner objective in $W$, for every
# $\theta$. Differentiated, with $H$ the inner Hessian and $\Phi$ the outer loss, this gives
#
# $$\nabla_\theta\, \Phi(W^*(\theta)) = -\Big(\frac{\partial F}{\partial \theta}\Big)^{\!\top} \mu, \qquad
# H \mu = \nabla_W \Phi:$$
#
# one linear system in the 7840 weights, whatever the number of inner steps. $H$ is the sum of $\lambda I$ and a matrix
# of rank 90 at most, as there are ten images and the probabilities of each sum to 1; so conjugate gradient needs at
# most 91 steps but for rounding. What the answer is worth, its certificate says: a Newton step from the inner solution
# gives another hypergradient, and their difference is the estimated error.

# %%
at_start = bl.hypergradient(outer_loss, inner, train)
print(at_start.certificate)

# %% [markdown]
# ## Learning the images
#
# Adam on the images, with a rate that falls to zero. Every inner solve starts from the last one's solution. After each
# step the callback reads the inner solution, the model that ten images made, and tests it.

# %%
curve = {"train": [], "test": []}


def accuracy(model, digits):
    X, labels = digits
    return float(jnp.mean(jnp.argmax(model(X), axis=1) == labels))


def watch(state, history):
    curve["train"].append(accuracy(state.warm_start, train))
    curve["test"].append(accuracy(state.warm_start, test))


problem = bl.BilevelProblem(outer_loss, bl.Variables(inner))
optimizer = optax.adam(optax.cosine_decay_schedule(0.02, NUM_STEPS))
fitted = bl.Trainer(problem, optimizer).fit(train, NUM_STEPS, every=1, callback=watch)
images = fitted.variables.objective.hyperparams

distilled = bl.hypergradient(outer_loss, fitted.variables.objective, train, init=fitted.state.warm_start)
start_accuracy, learned_accuracy = curve["test"][0], accuracy(distilled.solution.params, test)
print(distilled.certificate)

# %% [markdown]
# ## What to compare with
#
# The same regression on ten images that were not learned, namely one real digit of each class, drawn at random, and the
# mean of each class; and on all the training digits, with the best of three strengths by the test digits, which favors
# it.

# %%
train_X, train_labels = map(np.asarray, train)
draw = np.random.default_rng(1)
some = [[draw.choice(np.flatnonzero(train_labels == c)) for c in range(10)] for _ in range(NUM_DRAWS)]
means = jnp.stack([train_X[train_labels == c].mean(axis=0) for c in range(10)])

test_of = lambda regression, data: accuracy(bl.argmin(regression, data).params, test)
of_digits = float(np.mean([test_of(regression, (train[0][jnp.asarray(rows)], classes)) for rows in some]))
of_means = test_of(regression, (means, classes))
strengths = [1e-2] if QUICK else [1e-3, 3e-3, 1e-2]
of_all = max(test_of(bl.objectives.LogisticRegression(l2, n_classes=10), train) for l2 in strengths)

# %% [markdown]
# ## Ten images
#
# Red is positive, blue negative, white zero; each image is scaled by itself.

# %%
figure, rows = plt.subplots(2, 10, figsize=(12, 2.9), layout="constrained")
for row, (name, ten) in enumerate({"start": noise, "learned": images}.items()):
    for c, ax in enumerate(rows[row]):
        scale = float(jnp.max(jnp.abs(ten[c])))
        ax.imshow(ten[c].reshape(image_shape), cmap="RdBu_r", vmin=-scale, vmax=scale)
        ax.set(xticks=[], yticks=[], title=f"“{c}”" if row == 0 else None)
        ax.spines[:].set_visible(False)
    rows[row, 0].set_ylabel(name, fontsize=12)
plt.show()

# %%
figure, ax = plt.subplots(figsize=(8, 4.5), layout="constrained")
ax.plot(100 * np.asarray(curve["train"]), lw=1.2, color=SKY, label="ten learned images, on training digits")
ax.plot(100 * np.asarray(curve["test"]), lw=2.2, color=BLUE, label="ten learned images, on test digits")
lines = {f"all {NUM_TRAIN} digits": (of_all, BLACK), "ten class means": (of_means, GREEN)}
for name, (value, color) in {**lines, "ten digits at random": (of_digits, VERMILION)}.items():
    ax.axhline(100 * value, ls="--", lw=1.2, color=color)
    ax.annotate(name, (1, 100 * value), (4, 0), ("axes fraction", "data"), "offset points", color=color, va="center")
ax.set(xlabel="outer step", ylabel="accuracy (%)", xlim=(0, NUM_STEPS), ylim=(0, 100))
ax.legend(frameon=False, loc="lower right")
ax.grid(alpha=0.3)
plt.show()

# %% [markdown]
# ## Does the claim hold?
#
# It does here: ten images suffice. A model that has seen no digit, only what was distilled from them into one
# image a class, classifies digits held out from both levels nearly as well as a model trained on all digits, and better
# than one trained on ten real digits or on the ten class means. The images are no typical digits: red strokes speak for
# the class, blue ones against it.

# %%
print(f"test accuracy: {start_accuracy:.1%} at the start, {learned_accuracy:.1%} with learned images")
print(f"ten digits at random {of_digits:.1%}, ten class means {of_means:.1%}, all {NUM_TRAIN} digits {of_all:.1%}")
print(f"estimated relative error of the last hypergradient: {distilled.certificate.relative_error:.1e}")

assert start_accuracy < 0.2
assert learned_accuracy >= (0.80 if QUICK else 0.85)
assert learned_accuracy >= of_all - (0.08 if QUICK else 0.04)
assert learned_accuracy > of_means > of_digits
assert distilled.certificate.relative_error <= 1e-4
