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
# # Hypergradients of a support vector machine
#
# A multiclass support vector machine is solved in its dual, over a simplex for each sample; its strength $\theta$ is to
# be chosen by the error on $m$ held-out samples:
#
# $$\min_\theta \; \tfrac{1}{2m} \| X_{\text{val}} W(\beta^*(\theta), \theta) - Y_{\text{val}} \|^2, \qquad
# W(\beta, \theta) = X^\top (Y - \beta) / \theta,$$
#
# $$\beta^*(\theta) = \mathrm{argmin}_{\beta_i \in \triangle} \; \tfrac{\theta}{2} \|W(\beta, \theta)\|^2 +
# \langle \beta, Y \rangle.$$
#
# **What does the derivative of the outer loss cost as features become many: by going back through the iterations of
# the solver, and by the equation that their end satisfies?**
#
# The experiment is that of M. Blondel et al.: *Efficient and modular implicit differentiation*, 2022, figure 4: random
# data, the same inner problem, and implicit differentiation faster than unrolling for each of their solvers. Sizes here
# are our own.

# %%
import os
import time
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import bilevel as bl
from bilevel.plots.colors import series

jax.config.update("jax_enable_x64", True)
QUICK = bool(os.environ.get("BILEVEL_QUICK"))
SAMPLES, CLASSES = (12, 3) if QUICK else (60, 5)
FEATURES = (30, 100) if QUICK else (500, 1000, 3000, 10_000)
REPEATS = 3 if QUICK else 7
THETA, TOL, MAX_STEPS = 3.0, 1e-9, 50_000

# %% [markdown]
# ## Two ways, one solver
#
# **Unrolled.** The solver repeats $\beta \leftarrow \Phi(\beta, \theta)$, $T$ times. Reverse mode keeps what each step
# needs, and goes back through all of them: $T$ more steps, each at the price of two or three, and memory in proportion
# to $T$.
#
# **Implicit.** At the solution $\beta = \mathrm{proj}_\triangle(\beta - \nabla f(\beta, \theta) / L)$. Close by, the
# projection keeps its face: the classes that are 0 in a row stay so, and the others keep their sum. Let $Q$ project on
# these directions. Then $Q \nabla f = 0$ all along, and derived in $\theta$
#
# $$Q \, \tfrac1\theta X X^\top Q \; \frac{d\beta}{d\theta} = -Q \, \frac{\partial \nabla f}{\partial \theta},$$
#
# one symmetric system, whatever the solver was and however many steps it took. Features enter it by $X X^\top$ alone.
#
# The choice is an argument of `argmin`. Everything else is the user's own loss.


# %%
def outer_loss(log_theta, train, held_out, *, solver, diff):
    svm = bl.objectives.MulticlassSVM(jnp.exp(log_theta))
    solution = bl.argmin(svm, train, solver=solver, diff=diff, throw=False)
    X, Y = held_out
    scores = X @ svm.primal(solution.params, train)
    return 0.5 * jnp.mean(jnp.sum((scores - Y) ** 2, axis=1)), solution.stats["num_steps"]


def hypergradient(args, solver, diff):
    """The compiled program for ((loss, steps), derivative in log θ)."""
    program = jax.value_and_grad(partial(outer_loss, solver=solver, diff=diff), has_aux=True)
    return jax.jit(program).lower(*args).compile()


def classes(features, seed=0):
    """log θ; as many samples to train as to validate, of Gaussian classes that overlap: at every number of features
    their centers are about three standard deviations apart, and samples have norms about 1."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(CLASSES, size=2 * SAMPLES)
    centers = 2 * rng.normal(size=(CLASSES, features)) / features
    X = jnp.asarray(centers[labels] + rng.normal(size=(2 * SAMPLES, features)) / np.sqrt(features))
    Y = jax.nn.one_hot(labels, CLASSES, dtype=X.dtype)
    return jnp.asarray(np.log(THETA)), (X[:SAMPLES], Y[:SAMPLES]), (X[SAMPLES:], Y[SAMPLES:])


# %% [markdown]
# Two solvers serve a simplex: projected gradient, and mirror descent, which multiplies by $\exp(-\text{step} \cdot
# \nabla f)$ and normalizes. The library's block coordinate descent serves least squares with a separable penalty, and
# says so:

# %%
SOLVERS = {"projected gradient": bl.solvers.ProjectedGradient, "mirror descent": bl.solvers.MirrorDescent}
WAYS = {"implicit": bl.Implicit(on_failure="ignore"), "unrolled": bl.Unrolled()}

try:
    hypergradient(classes(10), bl.solvers.BlockCoordinateDescent(), bl.Implicit())
except ValueError as refusal:
    print(refusal)

# %% [markdown]
# ## Measured
#
# Both ways get the same tolerance. Unrolling has to know its number of iterations beforehand; it is given exactly as
# many as the solver needs, which nobody knows in practice, and which is the best that can be done for it. Programs are
# compiled, and run once, before any is timed; then the two ways take turns.


# %%
def seconds(programs, args):
    """Median seconds of each program; what it returned."""
    results = {key: jax.block_until_ready(program(*args)) for key, program in programs.items()}
    taken = {key: [] for key in programs}
    for _ in range(REPEATS):
        for key, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(*args))
            taken[key].append(time.perf_counter() - start)
    return {key: float(np.median(taken[key])) for key in programs}, results


times, memory, gradients, steps = {}, {}, {}, {}
for features in FEATURES:
    args = classes(features)
    for name, solver in SOLVERS.items():
        program = hypergradient(args, solver(tol=TOL, max_steps=MAX_STEPS), WAYS["implicit"])
        (_, count), _ = program(*args)
        steps[features, name] = int(count)
        unrolled = hypergradient(args, solver(tol=TOL, max_steps=int(count)), WAYS["unrolled"])
        programs = {(features, name, "implicit"): program, (features, name, "unrolled"): unrolled}
        taken, results = seconds(programs, args)
        times |= taken
        memory |= {key: program.memory_analysis().temp_size_in_bytes / 2**20 for key, program in programs.items()}
        gradients |= {key: float(derivative) for key, (_, derivative) in results.items()}

# %% [markdown]
# What is right, to compare with: the derivative at a solution to rounding, and central differences of the loss of such
# solutions, which know nothing of either way.

# %%
errors, differences = {}, {}
for features in FEATURES:
    log_theta, *given = args = classes(features)
    program = hypergradient(args, bl.solvers.ProjectedGradient(tol=1e-12, max_steps=MAX_STEPS), bl.Implicit())
    _, truth = program(*args)
    h = 1e-4
    (above, _), _ = program(log_theta + h, *given)
    (below, _), _ = program(log_theta - h, *given)
    differences[features] = abs(float((above - below) / (2 * h) / truth) - 1)
    errors |= {key: abs(value / float(truth) - 1) for key, value in gradients.items() if key[0] == features}

# %%
figure, axes = plt.subplots(1, 3, figsize=(13, 4.4), layout="constrained", sharex=True)
for ax, name in zip(axes, SOLVERS, strict=False):
    for index, way in enumerate(WAYS):
        ax.plot(FEATURES, [times[p, name, way] for p in FEATURES], lw=1.6, ms=6, label=way, **series(index))
    ax.set(title=name)
axes[1].sharey(axes[0])
axes[0].set_ylabel("time of one hypergradient (s)")
for index, way in enumerate(WAYS):
    for name, style in zip(SOLVERS, ("-", "--"), strict=True):
        label, across = f"{way}, {name}", [memory[p, name, way] for p in FEATURES]
        axes[2].plot(FEATURES, across, lw=1.6, ms=6, ls=style, label=label, **series(index))
axes[2].set(title="both solvers", ylabel="temporary memory (MiB)", ylim=(0.3, 3e2))
for ax in axes:
    ax.set(xscale="log", yscale="log", xlabel="features")
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)
plt.show()

# %% [markdown]
# ## Does the claim hold?
#
# It does, from 1,000 features on, which is where it is asserted below. A step of the solver reads $X$,
# so it takes longer as features become many; fewer are needed, as $X X^\top$ is then better conditioned. To the solve
# the implicit derivative adds one linear system of the size of the faces; unrolling adds the way back through all
# steps, and keeps their iterates: more memory than that system takes, but for a few dozen steps at 500 and 1,000
# features. The derivatives agree.

# %%
print(f"{'features':>8s} {'solver':20s}{'steps':>6s} {'way':10s}{'seconds':>9s}{'MiB':>8s}{'error':>9s}")
for features, name in steps:
    for way in WAYS:
        key = features, name, way
        row = f"{features:8d} {name:20s}{steps[features, name]:6d} {way:10s}"
        print(f"{row}{times[key]:9.4f}{memory[key]:8.1f}{errors[key]:9.0e}")
print(f"largest difference of the derivative at the solution from central differences: {max(differences.values()):.0e}")

assert max(errors.values()) <= 1e-4
assert max(differences.values()) <= 1e-4
# One number for each size, whichever the solver and however many its steps.
needed = {p: np.array([memory[p, name, "implicit"] for name in SOLVERS]) for p in FEATURES}
assert all(np.ptp(each) <= 0.02 * each.max() for each in needed.values())
long = [key for key, count in steps.items() if count >= 1000]
assert all(memory[p, name, "implicit"] < memory[p, name, "unrolled"] for p, name in long)
if not QUICK:  # Times of small sizes on a loaded machine say little.
    assert all(times[p, name, "implicit"] <= times[p, name, "unrolled"] for p, name in steps if p >= 1000)
