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
# # An energy auto-encoder of a photograph, and the archetypes of a simplex
#
# **Do exact steps on one block after the other learn what these two models promise, without ever going uphill?**
#
# Both models factor samples $X$, one a row, and neither is convex in all of its unknowns, only in each block of them.
# The energy auto-encoder (after M. Ranzato, C. Poultney, S. Chopra, Y. LeCun: *Efficient learning of sparse
# representations with an energy-based model*, 2006) looks for sparse codes $Z$, a decoder $D$, and a linear encoder
# $E$ that foretells the codes:
#
# $$\min_{Z, D, E}\ \tfrac{\lambda_d}{2} \|X - Z D\|_F^2 + \tfrac{\lambda_e}{2} \|Z - X E\|_F^2 + \|Z\|_1,
# \qquad \|d_i\|_2 \le 1,\quad \|e_k\|_2 \le 1,$$
#
# for every atom $d_i$, a row of $D$, and the weights $e_k$ of every pixel, a row of $E$. Archetypal analysis
# (A. Cutler, L. Breiman: *Archetypal analysis*, 1994) represents samples as mixtures of archetypes, which are
# themselves mixtures of samples:
#
# $$\min_{A, B}\ \tfrac12 \|X - A B X\|_F^2, \qquad \text{every row of } A \text{ and of } B \text{ on the simplex}.$$

# %%
import importlib.util
import os
import warnings

import jax
import matplotlib.pyplot as plt
import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from sklearn.exceptions import ConvergenceWarning

from bilevel import plots
from bilevel.datasets import extract_patches, load_photograph, make_simplex
from bilevel.estimators import ArchetypalAnalysis, EnergyAutoencoder

jax.config.update("jax_enable_x64", True)
QUICK = bool(os.environ.get("BILEVEL_QUICK"))

# %% [markdown]
# ## The photograph
#
# Barbara, $512 \times 512$ pixels between 0 and 1, cut into patches of $12 \times 12$ that do not overlap. The last
# eight rows and columns have no patch of their own, and stay out. Patches are taken as they are, not centered.

# %%
size, atoms, rounds = (192, 48, 8) if QUICK else (512, 200, 20)
image = load_photograph("barbara", size=size, dtype=np.float64)
patches = extract_patches(image, 12)
X = patches.X
print(f"{X.shape[0]} patches of {X.shape[1]} pixels, {atoms} atoms")

# %% [markdown]
# ## Twenty rounds
#
# In each block the problem is one that can be solved. For given $D$ and $E$, with $b = X (\lambda_d D^\top + \lambda_e
# E)$ and $G = \lambda_d D D^\top + \lambda_e I$, the codes are those of an $\ell_1$-regularized quadratic,
#
# $$\min_Z\ \tfrac12 \langle Z, Z G \rangle - \langle b, Z \rangle + \|Z\|_1,$$
#
# which falls apart into one small problem for each sample. For given codes, $D$ and $E$ have nothing to do with each
# other: each is a least squares problem over rows in the unit ball, solved by Newton's method on the multipliers of
# the balls. A step that would raise the objective is not taken. Twenty rounds are far from the end of the alternation,
# of which the estimator warns; they are what the model is usually given.

# %%
model = EnergyAutoencoder(atoms, decoder_weight=10.0, encoder_weight=10.0, max_iter=rounds, tol=1e-6, random_state=0)
with warnings.catch_warnings():
    warnings.simplefilter("ignore", ConvergenceWarning)
    model.fit(X)
codes = model.transform(X)
history = model.objective_history_
steps = history.ravel()
largest_rise = np.max(np.diff(steps) / steps[:-1])
print(f"objective {steps[0]:.2f} after the first step, {steps[-1]:.2f} after {model.n_iter_} rounds")
print(f"largest relative rise of a step: {largest_rise:.1e}")

# %% [markdown]
# On the left each step in the color of its block, three a round, from the end of the first round on: the start is far
# above. On the right by how much each step lowers the objective.

# %%
blocks = ("codes Z", "decoder D", "encoder E")
figure, axes = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
plots.plot_convergence(history, blocks=blocks, ax=axes[0])
plots.plot_decrease(history, blocks=blocks, ax=axes[1])
axes[0].set_ylim(0.93 * steps[-1], 1.07 * history[0, -1])
axes[0].set_title("within and across rounds")
axes[1].set_title("what each step gains")
plt.show()

# %% [markdown]
# ## What was learned
#
# Each pair is an atom, on the left, and on the right the weights with which the encoder foretells its code.

# %%
figure, ax = plt.subplots(figsize=(9, 8.6), layout="constrained")
plots.plot_atoms(model.dictionary_, patches.patch_shape, columns=10, beside=model.encoder_.T, ax=ax)
ax.set_title(f"{atoms} atoms, each beside its weights in the encoder")
plt.show()

# %% [markdown]
# Most codes are zero. The constraints hold for every atom and for every row of the encoder.

# %%
figure, axes = plt.subplots(1, 3, figsize=(15, 4), layout="constrained", width_ratios=(2, 1, 1))
plots.plot_sparsity(codes, sort=True, ax=axes[0])
plots.plot_norms(model.dictionary_, label="atom", ax=axes[1])
plots.plot_norms(model.encoder_, label="pixel (row of E)", ax=axes[2])
axes[1].set_title("decoder")
axes[2].set_title("encoder")
plt.show()

# %% [markdown]
# ## The photograph again
#
# `transform` solves for the codes; `encode` only multiplies by the encoder and thresholds, which is what the encoder
# is there for. Both decode by $Z D$.

# %%
covered = patches.to_image()
decoded = {
    "exact codes": patches.to_image(model.inverse_transform(codes)),
    "encoder alone": patches.to_image(model.inverse_transform(model.encode(X))),
}
figure, axes = plt.subplots(2, 1, figsize=(12, 8.4), layout="constrained")
for ax, (name, picture) in zip(axes, decoded.items(), strict=True):
    plots.plot_reconstruction(covered, picture, peak=1.0, ax=ax)
    ax.set_title(name)
plt.show()


# %%
def error(found, true):
    return np.linalg.norm(found - true) / np.linalg.norm(true)


errors = {name: error(picture, covered) for name, picture in decoded.items()}
for name, value in errors.items():
    print(f"relative error of the photograph from {name}: {value:.4f}")
print(f"‖Z − X E‖ / ‖Z‖: {error(X @ model.encoder_, codes):.3f}")

# %% [markdown]
# ## Is the encoder the decoder's transpose?
#
# Public code ties $E$ to $D^\top$ midway. Here nothing ties them; the cosine of the angle between the two says how
# near they came by themselves.

# %%
figure, ax = plt.subplots(figsize=(6.4, 5.4), layout="constrained")
plots.plot_encoder(model.dictionary_, model.encoder_, ax=ax)
plt.show()

# %% [markdown]
# ## Archetypes of a simplex
#
# Now samples that are mixtures of three vertices, without noise: 300 of them, with weights of a Dirichlet distribution
# with parameter 0.3, so that many are near a vertex or an edge. Archetypes are mixtures of samples, and cannot leave
# the hull of the data. Where no sample is a vertex, they can only come near.

# %%
data = make_simplex(300, 3, concentration=0.3, seed=0, dtype=np.float64)
analysis = ArchetypalAnalysis(n_archetypes=3, random_state=0).fit(data.X)
distances = cdist(data.archetypes, analysis.archetypes_)
rows, order = linear_sum_assignment(distances)
worst = distances[rows, order].max()
weights = analysis.weights_[:, order]
residual = np.sum((data.X - analysis.inverse_transform(analysis.weights_)) ** 2)
print(f"{analysis.n_iter_} rounds; the farthest vertex is {worst:.4f} from its archetype; residual {residual:.3g}")

# %%
figure, axes = plt.subplots(1, 3, figsize=(15, 4.6), layout="constrained", width_ratios=(1.5, 1, 1))
plots.plot_archetypes(data.X, analysis.archetypes_[order], ax=axes[0])
axes[0].plot(*data.archetypes.T, "+", color="black", ms=9, mew=1.2, zorder=6, label="vertices")
axes[0].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
axes[0].set_title("data and archetypes")
plots.plot_simplex(data.weights, color=data.weights[:, 0], ax=axes[1])
axes[1].set_title("true weights")
plots.plot_simplex(weights, color=data.weights[:, 0], ax=axes[2])
axes[2].set_title("weights found, in the same colors")
plt.show()

# %% [markdown]
# The residual is the samples' that lie outside the hull of the archetypes. The package `archetypes` starts in the same
# way, and is asked for its best: it is a rival of the benchmarks, not a dependency, and where it is not installed the
# comparison is left out.

# %%
if importlib.util.find_spec("archetypes"):
    package = importlib.import_module("archetypes")
    rival = package.AA(3, init="furthest_sum", method="nnls", max_iter=300, tol=1e-4, random_state=0).fit(data.X)
    rival_residual = float(np.sum((data.X - rival.A_ @ (rival.B_ @ data.X)) ** 2))
    print(f"residual of the package `archetypes`: {rival_residual:.6g}; ratio {residual / rival_residual:.5f}")
else:
    rival_residual = None
    print("The package `archetypes` is not installed: residuals are not compared.")

# %% [markdown]
# ## Do the claims hold?
#
# Both do on these data. The objective of the auto-encoder falls with every step, all constraints hold, and the
# codes are sparse; the encoder alone gives a photograph that is worse than that of the exact codes, for the price of
# one matrix product. Archetypal analysis finds the vertices of a simplex without noise, from within the hull of the
# samples. The figures, and what was asked of them. (In quick sizes there are fewer atoms than pixels, so that codes are
# dense: there up to 80 % of them may be nonzero.)

# %%
excess = {
    name: np.linalg.norm(rows, axis=1).max() - 1 for name, rows in {"D": model.dictionary_, "E": model.encoder_}.items()
}
nonzero = np.mean(codes != 0)
print(f"largest relative rise of a block step   {largest_rise:.1e}   (at most 1e-10)")
print(f"largest norm of an atom − 1             {excess['D']:.1e}   (at most 1e-8)")
print(f"largest norm of a row of E − 1          {excess['E']:.1e}   (at most 1e-8)")
print(f"codes that are not zero                 {100 * nonzero:.1f} %   (5 to {80 if QUICK else 40} %)")
print(f"farthest vertex from its archetype      {worst:.4f}   (at most 0.02)")
assert largest_rise <= 1e-10
assert max(excess.values()) <= 1e-8
assert 0.05 <= nonzero <= (0.8 if QUICK else 0.4)
assert errors["exact codes"] < errors["encoder alone"]
assert worst <= 0.02
assert np.all(analysis.mixtures_ >= 0) and np.allclose(analysis.mixtures_.sum(axis=1), 1)
assert rival_residual is None or residual <= 1.001 * rival_residual
