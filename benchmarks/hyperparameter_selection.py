"""How good hyperparameters are after how much time, by hypergradients, grid search and random search.

It chooses strengths of a penalty by the mean squared error over five folds (quick: the first problem): of ridge
regression on diabetes; of the Lasso on 250 samples of 500 features; and of ridge regression with a strength for each
of 40 features, of which five matter. All ways solve by the same program, each solve from the weights of the last one,
so that they differ only in where they look: `RidgeTuned` and `ElasticNetTuned` on their coarse grid and then along
hypergradients; grid search from strong to weak, and on the same grid from coarse to fine, in an order whose beginnings
are coarser grids of the whole range (for strengths of each feature, grids of one common strength); random search,
log-uniformly between the ends of that grid, in each round with a seed of its own. Grid and random search evaluate the
loss without its hypergradient. They end at twice the time of the hypergradients, or after 100 evaluations.
scikit-learn's own cross-validation estimators, with solvers of their own, stand beside; the loss of what they choose is
that of exact solutions, since what they say themselves, at their own tolerance, can be too low.

All take turns, five times (quick: three). Seconds are medians without compilation, with what all ways share, and half
the distance between the quartiles as their spread. "At equal time" is the best loss by the time at which the
hypergradients were done. The figure shows the round of median time, of random search all.

On the Lasso, scikit-learn's `LassoCV`, whose coordinate descent follows a path of strengths, is faster: one strength
alone needs no hypergradient. With a strength for each feature no grid comes near.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_diabetes, make_regression
from sklearn.linear_model import LassoCV, RidgeCV
from sklearn.model_selection import KFold
from tqdm import tqdm

from benchmarks.figures import plain_ticks, tidy
from benchmarks.measure import Timed, turns
from benchmarks.results import Results, Rows
from bilevel import argmin
from bilevel.estimators import ElasticNetTuned, RidgeTuned
from bilevel.estimators.base import precision
from bilevel.estimators.folds import Folds, folds, validation_loss
from bilevel.estimators.tuned import AbstractFamily
from bilevel.objectives import LinearModel
from bilevel.plots.colors import BLACK, GRAY, GREEN, SKY, VERMILION

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CV = KFold(5, shuffle=True, random_state=42)
GRID_SIZE, RANDOM_SIZE = 100, 100
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


@eqx.filter_jit
def value(family: AbstractFamily, logs: Any, data: Folds, weights: Any) -> tuple[Any, Any]:
    """The validation loss and the weights, as the estimators compute them, without a derivative."""
    objective, solver = family.at(logs), family.solver()

    def of_fold(fold: tuple[Any, Any, Any]) -> Any:
        A, B, start = fold
        return argmin(objective, (A, B), solver=solver, init=LinearModel(start), throw=False).params.weight

    solved = jax.lax.map(of_fold, (*data.train, weights))
    return validation_loss(solved, data), solved


def looked_up(problem: Problem, data: Folds, points: Iterable[np.ndarray], spent: float, budget: float) -> Trace:
    """The losses at given points until the budget is spent; `spent` seconds went before, into what all ways share."""
    A, B = data.train
    family, weights = problem.model._family(A.dtype), jnp.zeros((len(A), B.shape[2], A.shape[2]), A.dtype)
    seconds, losses, start = [], [], time.perf_counter() - spent
    for point in points:
        loss, weights = value(family, jnp.asarray(point, A.dtype), data, weights)
        losses.append(float(loss))
        seconds.append(time.perf_counter() - start)
        if seconds[-1] > budget:
            break
    return Trace(np.array(seconds), np.minimum.accumulate(losses))


def coarse_to_fine(grid: np.ndarray) -> np.ndarray:
    """The points in van der Corput's order, by their numbers with bits reversed: its beginnings are coarser grids."""
    bits = len(grid).bit_length()
    return grid[sorted(range(len(grid)), key=lambda i: f"{i:0{bits}b}"[::-1])]


def traces(problem: Problem, rounds: int) -> dict[str, list[Trace]]:
    """Of each way, one a round."""
    recorded(problem)
    start = time.perf_counter()
    with precision(problem.X.dtype):
        data = folds(problem.X, problem.y[:, None], CV.split(problem.X), True).out(None)
        grid, lower, _ = problem.model._grid(data)
    spent, width = time.perf_counter() - start, data.train[0].shape[2]
    shaped = lambda point: np.tile(point[:, None], width) if problem.model.per_feature else point
    # Between the ends of the coarse grid.
    fine = np.linspace(grid[0], grid[-1], GRID_SIZE)

    def randomly(seed: int) -> Iterator[np.ndarray]:
        rng = np.random.default_rng(seed)
        shape = (len(lower), width) if problem.model.per_feature else lower.shape
        bounds = [shaped(bound) for bound in (grid[-1], grid[0])]
        return (rng.uniform(*bounds, size=shape) for _ in range(RANDOM_SIZE))

    def look(points: Iterable[np.ndarray]) -> Trace:
        with precision(problem.X.dtype):
            return looked_up(problem, data, points, spent, budget)

    ways: dict[str, Callable[[int], Trace]] = {
        "hypergradients": lambda k: recorded(problem),
        "grid search": lambda k: look(map(shaped, fine)),
        "grid search, coarse to fine": lambda k: look(map(shaped, coarse_to_fine(fine))),
        "random search": lambda k: look(randomly(k)),
        "scikit-learn": lambda k: by_scikit_learn(problem),
    }
    budget = BUDGET * recorded(problem).seconds[-1]
    # To compile, and to warm up.
    look([shaped(grid[0])])
    by_scikit_learn(problem)
    found: dict[str, list[Trace]] = {name: [] for name in ways}
    for k in range(rounds):
        for name in (list(ways)[i] for i in turns(len(ways), k)):
            found[name].append(ways[name](k))
    return found


def by_scikit_learn(problem: Problem) -> Trace:
    """The exact loss of its estimator's choice, at its end."""
    start = time.perf_counter()
    model = problem.rival.fit(problem.X, problem.y)
    seconds = time.perf_counter() - start
    return Trace(np.array([seconds]), np.array([exact_loss(model, problem)]))


def exact_loss(model: RidgeCV | LassoCV, problem: Problem) -> float:
    if isinstance(model, RidgeCV):
        return -model.best_score_
    solved = LassoCV(alphas=[model.alpha_], cv=CV, tol=1e-10, max_iter=100_000).fit(problem.X, problem.y)
    return float(solved.mse_path_.mean())


def table(problem: Problem, found: dict[str, list[Trace]]) -> Rows:
    seconds = {name: Timed(0.0, [run.seconds[-1] for run in runs], None) for name, runs in found.items()}
    loss = {name: float(np.median([run.best[-1] for run in runs])) for name, runs in found.items()}
    rows = []
    for name, runs in found.items():
        evaluations = int(np.median([len(run.seconds) for run in runs]))
        at_equal = np.median([run.at(seconds["hypergradients"].median) for run in runs])
        row = {
            "way": name,
            "evaluations": str(evaluations),
            "seconds": f"{seconds[name].median:.3f}",
            "spread": seconds[name].spread,
            "loss": f"{loss[name]:.6g}",
            "over that of hypergradients": f"{loss[name] / loss['hypergradients']:.5f}",
            "loss at equal time": "none yet" if np.isnan(at_equal) else f"{at_equal:.6g}",
        }
        if name == "hypergradients":
            steps = problem.model.n_iter_
            row["evaluations"] = f"{evaluations - steps} + {steps}"
        elif name == "random search":
            row["way"] = f"{name}, {len(runs)} seeds"
        elif name == "scikit-learn":
            row |= {"way": f"{name}, {type(problem.rival).__name__}", "evaluations": str(GRID_SIZE)}
        rows.append(row)
    return rows


#: Losses closer to the least are drawn at this distance.
FLOOR = 1e-6


def draw_traces(found: dict[str, dict[str, list[Trace]]]) -> "Figure":
    """The best loss so far, above the best of all, by seconds."""
    size = (1.5 + 3.3 * len(found), 4.1)
    figure, axes = plt.subplots(1, len(found), figsize=size, layout="constrained", squeeze=False, sharey=True)
    colors = dict(zip(next(iter(found.values())), (VERMILION, GRAY, BLACK, SKY, GREEN), strict=True))
    for ax, (title, ways) in zip(axes[0], found.items(), strict=True):
        least = min(run.best[-1] for runs in ways.values() for run in runs)
        for name, runs in ways.items():
            options: dict[str, Any] = dict(lw=2.5, ms=7, zorder=3) if name == "hypergradients" else dict(lw=1, ms=4)
            drawn = (
                runs if name == "random search" else sorted(runs, key=lambda run: run.seconds[-1])[len(runs) // 2 :][:1]
            )
            for i, run in enumerate(drawn):
                above = np.maximum(run.best / least - 1, FLOOR)
                label = None if i else name if len(drawn) == 1 else f"{name}, {len(drawn)} seeds"
                # The best so far stays until the next evaluation is done.
                options |= dict(color=colors[name], marker=".", drawstyle="steps-post", label=label)
                options |= dict(marker="D", ms=6) if name == "scikit-learn" else {}
                ax.plot(run.seconds, above, **options)
        ax.set(xscale="log", yscale="log", title=title, xlabel="seconds")
        tidy(ax)
        plain_ticks(ax.xaxis)
    axes[0, 0].set_ylabel("best loss so far, above the least, relative")
    columns = 5 if len(found) > 1 else 2
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=columns, frameon=False)
    return figure


def run(quick: bool) -> Results:
    measured: dict[str, dict[str, list[Trace]]] = {}
    tables: dict[str, Rows] = {}
    for title, problem in tqdm(list(problems().items())[: 1 if quick else None], desc="hyperparameter selection"):
        measured[title] = traces(problem, 3 if quick else 5)
        tables[title] = table(problem, measured[title])
    return Results(tables, {"Loss against seconds": draw_traces(measured)}, "64 bits")
