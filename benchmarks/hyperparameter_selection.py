"""How good hyperparameters are after how much time, by hypergradients, grid search and random search.

It chooses strengths of a penalty by the mean squared error over five folds (quick: the first problem): of ridge
regression on diabetes; of the Lasso on 250 samples of 500 features; and of ridge regression with a strength for each
of 40 features, of which five matter. All ways evaluate the same compiled program, each solve from the weights of the
last one, so that they differ only in where they look: `RidgeTuned` and `ElasticNetTuned` on their coarse grid and then
along hypergradients; grid search from strong to weak, and on the same grid from coarse to fine, which has looked
everywhere whenever it ends (for strengths of each feature, grids of one common strength); random search, log-uniformly
between the ends of that grid. An evaluation yields the hypergradient too, which the searches do not need: their seconds
include it all the same. "At equal time" is the best loss by the time at which the hypergradients were done. The
searches end at twice that time, or after 100 evaluations. Seconds are without compilation, with what all ways share.
scikit-learn's own cross-validation estimators, with solvers of their own, stand beside.
"""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_diabetes, make_regression
from sklearn.linear_model import LassoCV, RidgeCV
from sklearn.model_selection import KFold
from tqdm import tqdm

from benchmarks.figures import tidy
from benchmarks.results import Results, Rows
from bilevel.estimators import ElasticNetTuned, RidgeTuned
from bilevel.estimators.base import precision
from bilevel.estimators.folds import Folds, folds
from bilevel.plots.colors import BLACK, GRAY, SKY, VERMILION

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CV = KFold(5, shuffle=True, random_state=42)
GRID_SIZE, RANDOM_SIZE, SEEDS = 100, 100, 5
#: Grid and random search end when they have taken so many times as long as the hypergradients.
BUDGET = 2.0


class Problem(NamedTuple):
    """Data, the estimator that tunes, and scikit-learn's."""

    X: np.ndarray
    y: np.ndarray
    model: Any
    rival: Any


def problems() -> dict[str, Problem]:
    X, y = load_diabetes(return_X_y=True)
    X = X / X.std(axis=0)
    sparse = make_regression(250, 500, noise=40, random_state=42)
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(60, 40))
    target = mixed[:, :5] @ np.array([2.0, -2.0, 2.0, -2.0, 2.0]) + rng.normal(size=60)
    ridge_cv = RidgeCV(np.geomspace(1e-3, 1e4, GRID_SIZE), cv=CV, scoring="neg_mean_squared_error")
    return {
        "Ridge on diabetes": Problem(X, y, RidgeTuned(cv=CV), ridge_cv),
        "Lasso of 500 features": Problem(
            *sparse, ElasticNetTuned(l1_ratio=1.0, cv=CV, max_iter=10), LassoCV(alphas=GRID_SIZE, cv=CV)
        ),
        "Ridge with 40 strengths": Problem(mixed, target, RidgeTuned(per_feature=True, cv=CV, max_iter=50), ridge_cv),
    }


class Trace(NamedTuple):
    """Seconds from the start and the best loss so far, after each evaluation."""

    seconds: np.ndarray
    best: np.ndarray

    def at(self, seconds: float) -> float:
        """The best loss by then."""
        done = np.searchsorted(self.seconds, seconds, side="right")
        return float(self.best[done - 1]) if done else np.nan


def recorded(problem: Problem) -> Trace:
    """`fit`, with the time of every evaluation."""
    model, seconds, losses = problem.model, [], []
    evaluate = model._evaluate
    start = time.perf_counter()

    def watched(*arguments: Any) -> Any:
        found = evaluate(*arguments)
        losses.append(float(found[0]))
        seconds.append(time.perf_counter() - start)
        return found

    model._evaluate = watched
    try:
        model.fit(problem.X, problem.y)
    finally:
        del model._evaluate
    # The last evaluation is the refit, on samples that it was fitted to.
    return Trace(np.array(seconds[:-1]), np.minimum.accumulate(losses[:-1]))


def looked_up(problem: Problem, data: Folds, points: Iterator[np.ndarray], spent: float, budget: float) -> Trace:
    """The losses at given points until the budget is spent; `spent` seconds went before, into what all ways share."""
    A, B = data.train
    weights = jnp.zeros((len(A), B.shape[2], A.shape[2]), A.dtype)
    seconds, losses, start = [], [], time.perf_counter() - spent
    for point in points:
        loss, _, weights, _ = problem.model._evaluate(point, data, weights)
        losses.append(float(loss))
        seconds.append(time.perf_counter() - start)
        if seconds[-1] > budget:
            break
    return Trace(np.array(seconds), np.minimum.accumulate(losses))


def coarse_to_fine(grid: np.ndarray) -> np.ndarray:
    """The points in van der Corput's order, by their numbers with bits reversed: its beginnings are coarser grids."""
    bits = len(grid).bit_length()
    return grid[sorted(range(len(grid)), key=lambda i: f"{i:0{bits}b}"[::-1])]


def traces(problem: Problem) -> dict[str, list[Trace]]:
    """One trace of each way that needs no seed, `SEEDS` of random search."""
    recorded(problem)
    start = time.perf_counter()
    with precision(problem.X.dtype):
        data = folds(problem.X, problem.y[:, None], CV.split(problem.X), True).out(None)
        grid, lower, _ = problem.model._grid(data)
    spent, width = time.perf_counter() - start, data.train[0].shape[2]
    shaped = lambda point: np.tile(point[:, None], width) if problem.model.per_feature else point
    # Between the ends of the coarse grid.
    fine = np.linspace(grid[0], grid[-1], GRID_SIZE)

    def random(seed: int) -> Iterator[np.ndarray]:
        rng = np.random.default_rng(seed)
        shape = (len(lower), width) if problem.model.per_feature else lower.shape
        bounds = [shaped(bound) for bound in (grid[-1], grid[0])]
        return (rng.uniform(*bounds, size=shape) for _ in range(RANDOM_SIZE))

    tuned = recorded(problem)
    look = lambda points: looked_up(problem, data, points, spent, BUDGET * tuned.seconds[-1])
    with precision(problem.X.dtype):
        randomly = [look(random(seed)) for seed in range(SEEDS)]
        return {
            "hypergradients": [tuned],
            "grid search": [look(map(shaped, fine))],
            "grid search, coarse to fine": [look(map(shaped, coarse_to_fine(fine)))],
            "random search": randomly,
        }


def of_scikit_learn(problem: Problem) -> tuple[float, float]:
    """The loss of its estimator's choice, and its seconds."""
    start = time.perf_counter()
    model = problem.rival.fit(problem.X, problem.y)
    seconds = time.perf_counter() - start
    loss = -model.best_score_ if isinstance(model, RidgeCV) else model.mse_path_.mean(axis=-1).min()
    return float(loss), seconds


def table(problem: Problem, found: dict[str, list[Trace]]) -> Rows:
    end = found["hypergradients"][0].seconds[-1]
    base = found["hypergradients"][0].best[-1]
    rows = []
    for name, runs in found.items():
        evaluations = f"{len(runs[0].seconds)}"
        if name == "hypergradients":
            steps = problem.model.n_iter_
            evaluations = f"{len(runs[0].seconds) - steps} + {steps}"
        at_equal = np.median([run.at(end) for run in runs])
        rows.append(
            {
                "way": name if len(runs) == 1 else f"{name}, median of {len(runs)}",
                "evaluations": evaluations,
                "seconds": f"{np.median([run.seconds[-1] for run in runs]):.3f}",
                "loss": f"{np.median([run.best[-1] for run in runs]):.6g}",
                "over that of hypergradients": f"{np.median([run.best[-1] for run in runs]) / base:.5f}",
                "loss at equal time": "none yet" if np.isnan(at_equal) else f"{at_equal:.6g}",
            }
        )
    loss, seconds = of_scikit_learn(problem)
    name = f"scikit-learn, {type(problem.rival).__name__}"
    numbers = {"seconds": f"{seconds:.3f}", "loss": f"{loss:.6g}", "over that of hypergradients": f"{loss / base:.5f}"}
    return [*rows, {"way": name, "evaluations": str(GRID_SIZE), **numbers, "loss at equal time": ""}]


#: Losses closer to the least are drawn at this distance.
FLOOR = 1e-6


def draw_traces(found: dict[str, dict[str, list[Trace]]]) -> "Figure":
    """The best loss so far, above the best of all, by seconds."""
    size = (1.5 + 3.3 * len(found), 4.1)
    figure, axes = plt.subplots(1, len(found), figsize=size, layout="constrained", squeeze=False, sharey=True)
    colors = dict(zip(next(iter(found.values())), (VERMILION, GRAY, BLACK, SKY), strict=True))
    for ax, (title, ways) in zip(axes[0], found.items(), strict=True):
        least = min(run.best[-1] for runs in ways.values() for run in runs)
        for name, runs in ways.items():
            options: dict[str, Any] = dict(lw=2.5, ms=7, zorder=3) if name == "hypergradients" else dict(lw=1, ms=4)
            for i, run in enumerate(runs):
                above = np.maximum(run.best / least - 1, FLOOR)
                label = None if i else name if len(runs) == 1 else f"{name}, {len(runs)} seeds"
                # The best so far stays until the next evaluation is done.
                options |= dict(color=colors[name], marker=".", drawstyle="steps-post", label=label)
                ax.plot(run.seconds, above, **options)
        ax.set(yscale="log", title=title, xlabel="seconds")
        ax.set_xlim(left=0)
        tidy(ax)
    axes[0, 0].set_ylabel("best loss so far, above the least, relative")
    columns = 4 if len(found) > 1 else 2
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=columns, frameon=False)
    return figure


def run(quick: bool) -> Results:
    measured: dict[str, dict[str, list[Trace]]] = {}
    tables: dict[str, Rows] = {}
    for title, problem in tqdm(list(problems().items())[: 1 if quick else None], desc="hyperparameter selection"):
        measured[title] = traces(problem)
        tables[title] = table(problem, measured[title])
    return Results(tables, {"Loss against seconds": draw_traces(measured)}, "64 bits")
