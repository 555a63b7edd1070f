"""What the estimated error of a hypergradient is worth, against its true error, and how errors follow the inner error.

For each of three families, 100 random problems (quick: 20; 40 samples; 8 features, 20 for the elastic net) are solved
by accelerated proximal gradient, started anew after every third step. There, 25 times, the hypergradient of a held-out
loss is taken, and the Jacobian of the solution in the hyperparameters, both as they are and after a Newton step. Truth
is dense NumPy: the solution by its formula, by Newton's method, by scikit-learn polished on its support; the Jacobian
by the linear system at that solution.

A point counts where the relative error of the iterate is between 1e-1 and 1e-8. The ratio is that of the certificate's
estimate of the hypergradient's relative error to the true one. Of the points outside a factor, each is counted under
the first reason that applies: the support is not settled (the iterate's is not the solution's, or the certificate calls
coordinates at risk); the true error is at rounding level (below 1e-12); the hypergradient nearly vanishes (its norm is
less than a hundredth of that of the Jacobian times that of the outer loss's slope). Slopes are log-log, of the relative
error against that of the iterate, medians over problems: on settled supports and for iterates with errors between 1e-2
and 1e-6. Where f is quadratic a Newton step is exact, and the largest error is given instead. All in 64 bits.
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn.linear_model import ElasticNet as SklearnElasticNet
from tqdm import tqdm

import bilevel as bl
from benchmarks.results import Results, Rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

O = bl.objectives
PROBLEMS, SAMPLES, ITERATES, STEPS = 100, 40, 25, 3

# --- Families, and what NumPy knows of them ---------------------------------------------------------------------------

#: The solution w, and M and B of M dw = −B dθ; the rows of coordinates at rest are those of dw = 0.
Known = tuple[np.ndarray, np.ndarray, np.ndarray]


class Family(NamedTuple):
    """An inner problem for data (X, y), y of signs for `signs`; and what is known of its solution."""

    # Made when it is used, in the precision of then.
    objective: Callable[[], O.AbstractObjective]
    features: int
    signs: bool
    known: Callable[[np.ndarray, np.ndarray], Known]


def known_ridge(X: np.ndarray, y: np.ndarray) -> Known:
    M = X.T @ X / SAMPLES + 0.3 * np.eye(X.shape[1])
    w = np.linalg.solve(M, X.T @ y / SAMPLES)
    return w, M, w[:, None]


def known_logistic(X: np.ndarray, y: np.ndarray) -> Known:
    I = np.eye(X.shape[1])
    w, M = np.zeros(len(I)), I
    for _ in range(20):
        p = 1 / (1 + np.exp(y * (X @ w)))
        M = (X.T * (p * (1 - p))) @ X / SAMPLES + 0.1 * I
        w = w - np.linalg.solve(M, 0.1 * w - X.T @ (y * p) / SAMPLES)
    return w, M, w[:, None]


def known_elastic_net(X: np.ndarray, y: np.ndarray) -> Known:
    w = SklearnElasticNet(0.2, l1_ratio=0.5, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(X, y).coef_
    S, signs, I = w != 0, np.sign(w), np.eye(len(w))
    M = np.where(S[:, None] & S, X.T @ X / SAMPLES + 0.1 * I, I)
    w = np.linalg.solve(M, np.where(S, X.T @ y / SAMPLES - 0.1 * signs, 0))
    return w, M, np.stack([signs, w], axis=1)


FAMILIES = {
    "ridge": Family(lambda: O.Ridge(0.3), 8, False, known_ridge),
    "logistic": Family(lambda: O.LogisticRegression(l2=0.1), 8, True, known_logistic),
    "elastic net": Family(lambda: O.ElasticNet(l1=0.1, l2=0.1), 20, False, known_elastic_net),
}


def held_out(params: O.LinearModel, X: Any) -> Any:
    """A loss on other samples, nonlinear in the solution."""
    predictions = params(jnp.cos(X))
    return jnp.mean(jnp.tanh(predictions) ** 2) + jnp.mean(jnp.sin(predictions))


def held_out_slope(w: np.ndarray, X: np.ndarray) -> np.ndarray:
    """Its gradient in w."""
    p = np.cos(X) @ w
    return np.cos(X).T @ (2 * np.tanh(p) / np.cosh(p) ** 2 + np.cos(p)) / len(X)


# --- The study --------------------------------------------------------------------------------------------------------


class Study(NamedTuple):
    """Arrays (iterates, problems) of relative errors, and of what may explain them.

    `inner`: of the iterate. `true`, `corrected`: of the hypergradient, as it is and after a Newton step; `estimated`:
    what the certificate says of the first. `jacobian`, `corrected_jacobian`: of that of the solution. `at_risk`: the
    certificate's. `found`: whether the support is the solution's. `share`: the norm of the true hypergradient in
    that of the Jacobian times that of the loss's slope.
    """

    inner: np.ndarray
    true: np.ndarray
    estimated: np.ndarray
    corrected: np.ndarray
    jacobian: np.ndarray
    corrected_jacobian: np.ndarray
    at_risk: np.ndarray
    found: np.ndarray
    share: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        return (self.inner <= 1e-1) & (self.inner >= 1e-8)

    @property
    def settled(self) -> np.ndarray:
        return self.found & (self.at_risk == 0)

    @property
    def near(self) -> np.ndarray:
        """With the support found, near enough for the leading term and far enough from rounding."""
        return self.settled & (self.inner <= 1e-2) & (self.inner >= 1e-6)

    def outside(self, factor: float) -> np.ndarray:
        return self.counts & ~((self.estimated <= factor * self.true) & (self.true <= factor * self.estimated))

    def reasons(self) -> dict[str, np.ndarray]:
        """What may explain a bad estimate; of each point, the first that applies."""
        found = {
            "the support is not settled": ~self.settled,
            "the true error is at rounding level": self.true < 1e-12,
            "the hypergradient nearly vanishes": self.share < 1e-2,
            "none of these": np.full(self.true.shape, True),
        }
        taken = np.cumsum(list(found.values()), axis=0) == 1
        return {name: reason & first for (name, reason), first in zip(found.items(), taken, strict=True)}

    def slopes(self, errors: np.ndarray) -> np.ndarray:
        """Log-log slopes of `errors` against the inner error, of each problem with enough points above rounding."""
        points = self.near & (errors >= 1e-13)
        slope = lambda x, y: np.polyfit(np.log(x), np.log(y), 1)[0]
        return np.array([slope(self.inner[p, i], errors[p, i]) for i, p in enumerate(points.T) if p.sum() >= 5])


@functools.cache
def study(name: str, jit: Callable = eqx.filter_jit, problems: int = PROBLEMS) -> Study:
    family = FAMILIES[name]
    rng = np.random.default_rng(1)
    X = rng.normal(size=(problems, SAMPLES, family.features))
    y = rng.normal(size=(problems, SAMPLES))
    y = np.sign(X[..., 0] + y) if family.signs else np.sin(X[..., 0]) + y
    solution, M, B = map(np.stack, zip(*map(family.known, X, y), strict=True))
    jacobian = -np.linalg.solve(M, B)
    slope = np.stack([held_out_slope(w, rows) for w, rows in zip(solution, X, strict=True)])
    truth = np.einsum("pft,pf->pt", jacobian, slope)

    # The losses: the held-out one, and each coordinate of the solution, whose hypergradient is a row of the Jacobian.
    def of_loss(start: Any, data: Any, weights: Any) -> Any:
        loss = lambda _, params, data: weights[0] * held_out(params, data[0]) + jnp.vdot(weights[1:], params.weight)
        solver = bl.solvers.ProximalGradient(max_steps=STEPS, tol=1e-15)
        options: dict[str, Any] = dict(solver=solver, init=start, on_failure="ignore")
        plain, corrected = (
            bl.hypergradient(loss, family.objective(), data, correct=correct, **options) for correct in (False, True)
        )
        leaves = lambda done: jnp.stack(jax.tree.leaves(done.gradient))
        return plain.solution.params, leaves(plain), leaves(corrected), plain.certificate

    of_losses = jax.vmap(of_loss, (None, None, 0))
    # One problem at a time: batches of LAPACK's calls that run at once may wait for each other forever, on few cores.
    few = jit(lambda *inputs: jax.lax.map(lambda i: of_losses(*i, jnp.eye(1 + family.features)), inputs))

    norm = lambda x: np.linalg.norm(np.reshape(x, (problems, -1)), axis=1)
    relative = lambda found, exact: norm(found - exact) / norm(exact)
    data, weight, points = (jnp.asarray(X), jnp.asarray(y)), jnp.zeros(solution.shape), []
    for _ in range(ITERATES):
        params, plain, corrected, certificate = few(O.LinearModel(weight), data)
        weight, plain, corrected = params.weight[:, 0], np.asarray(plain), np.asarray(corrected)
        point = Study(
            inner=relative(weight, solution),
            true=relative(plain[:, 0], truth),
            estimated=np.asarray(certificate.relative_error[:, 0]),
            corrected=relative(corrected[:, 0], truth),
            jacobian=relative(plain[:, 1:], jacobian),
            corrected_jacobian=relative(corrected[:, 1:], jacobian),
            at_risk=np.asarray(certificate.at_risk[:, 0]),
            found=np.all((np.asarray(weight) != 0) == (solution != 0), axis=1),
            share=norm(truth) / (norm(jacobian) * norm(slope)),
        )
        points.append(point)
    return Study(*map(np.stack, zip(*points, strict=True)))


def run(quick: bool) -> Results:
    problems = 20 if quick else PROBLEMS
    studies = {name: study(name, problems=problems) for name in tqdm(FAMILIES, desc="certificates")}
    columns = {name: figures(study) for name, study in studies.items()}
    # A row for each figure, a column for each family.
    rows: Rows = [{"": figure, **{name: columns[name][figure] for name in columns}} for figure in columns["ridge"]]
    return Results({"Figures": rows}, {"Estimated against true error": draw(studies)}, "64 bits")


def draw(studies: dict[str, Study]) -> "Figure":
    """Every point that counts, and the line on which the estimate is right."""
    figure, axes = plt.subplots(1, len(studies), figsize=(11, 3.9), sharex=True, sharey=True, layout="constrained")
    for ax, (name, found) in zip(axes, studies.items(), strict=True):
        for points, color, label in (
            (found.counts & ~found.settled, "tab:orange", "support not settled"),
            (found.counts & found.settled, "tab:blue", "support settled"),
        ):
            ax.plot(found.true[points], found.estimated[points], ".", ms=4, alpha=0.5, color=color, label=label)
        ax.plot([1e-10, 1], [1e-10, 1], color="silver", lw=5, zorder=0)
        ax.set(xscale="log", yscale="log", title=name, xlabel="true relative error")
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("the certificate's estimate")
    axes[-1].legend(frameon=False, markerscale=4)
    return figure


def figures(study: Study) -> dict[str, str]:
    share = lambda part, whole: f"{100 * part.sum() / whole.sum():.4g} %"
    ratio = study.estimated[study.counts] / study.true[study.counts]
    found = {
        "points": f"{study.counts.sum()}",
        "of these, with a settled support": share(study.counts & study.settled, study.counts),
        **{f"within a factor of {f}": share(study.counts & ~study.outside(f), study.counts) for f in (2, 10)},
        **{f"ratio, percentile {p}": f"{np.percentile(ratio, p):.3g}" for p in (0, 1, 5, 50, 95, 99, 100)},
    }
    for factor in (2, 10):
        for reason, points in study.reasons().items():
            found[f"outside a factor of {factor}: {reason}"] = f"{(points & study.outside(factor)).sum()}"
    for name, errors in (("hypergradient", study.true), ("Jacobian", study.jacobian)):
        found[f"slope, {name}"] = f"{np.median(study.slopes(errors)):.3f}"
    for name, errors in (("hypergradient", study.corrected), ("Jacobian", study.corrected_jacobian)):
        slopes = study.slopes(errors)
        exact = f"exact, to {np.max(errors[study.near]):.0e}"
        found[f"slope, corrected {name}"] = f"{np.median(slopes):.3f}" if len(slopes) else exact
    return found
