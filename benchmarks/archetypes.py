"""How long archetypal analysis takes, by this library and by the package `archetypes`, at the residual each achieves.

They fit samples that are mixtures of k vertices, in 64 bits: vertices of normal entries, weights of a Dirichlet law,
and normal noise. Every rival starts by furthest sum, in the same run. The package's projected gradient (`pgd`), its
default, runs until its own residual moves by less than 1e-4, at most 300 iterations; so do alternating `nnls` and
`pseudo_pgd`, the latter left out at 10,000 samples. Seconds are medians without compilation, which the first call
holds. The residual ‖X − A B X‖² is computed anew from what each returns; "of the best rival's" is its ratio to the
least residual of the package. "Gap" is the sum of the duality gaps of both blocks over the loss, 0 at a stationary
point. "Worst vertex" is the largest distance of a vertex to its archetype, over the largest distance of two vertices.
The memory of a fit of 100,000 samples is the peak of the resident memory of a process of its own, by the kernel's count
(`VmHWM`, Linux), which begins when the process does.
"""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist, pdist

from benchmarks.figures import ranking
from benchmarks.measure import interleaved, own_process, resident
from benchmarks.results import Results, Rows, tabulate
from bilevel.estimators import ArchetypalAnalysis

INSTALLED = importlib.util.find_spec("archetypes") is not None


class Case(NamedTuple):
    """So many samples of so many features, from so many vertices."""

    name: str
    samples: int
    features: int
    vertices: int
    concentration: float
    noise: float

    def make(self, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Samples and vertices."""
        rng = np.random.default_rng(seed)
        vertices = rng.normal(size=(self.vertices, self.features))
        weights = rng.dirichlet(np.full(self.vertices, self.concentration), size=self.samples)
        return weights @ vertices + self.noise * rng.normal(size=(self.samples, self.features)), vertices


NOISELESS = [Case("noiseless triangle", 300, 2, 3, 0.3, 0.0), Case("noiseless, 10 features", 300, 10, 4, 0.3, 0.0)]
MODERATE, LARGE = Case("500 x 20", 500, 20, 5, 1.0, 0.05), Case("10,000 x 50", 10_000, 50, 10, 0.3, 0.05)
HUGE = Case("100,000 x 50", 100_000, 50, 10, 0.3, 0.05)


def worst_vertex(found: np.ndarray, vertices: np.ndarray) -> float:
    """After the best matching, relative to the scale of the simplex."""
    distances = cdist(vertices, found)
    return float(np.max(distances[linear_sum_assignment(distances)]) / np.max(pdist(vertices)))


def gap(X: np.ndarray, A: np.ndarray, B: np.ndarray) -> float:
    """Of both blocks, over the loss, for centered samples."""
    X = X - X.mean(axis=0)
    Z = B @ X
    slopes = (A @ (Z @ Z.T) - X @ Z.T, ((A.T @ A) @ Z - A.T @ X) @ X.T)
    gaps = [np.sum(p * g) - np.sum(np.min(g, axis=1)) for p, g in zip((A, B), slopes, strict=True)]
    return float(sum(gaps) / (0.5 * np.sum((X - A @ Z) ** 2)))


def rivals(case: Case, methods: tuple[str, ...], repeats: int, seed: int = 0) -> Rows:
    X, vertices = case.make(seed)
    ours = lambda: ArchetypalAnalysis(case.vertices, random_state=0).fit(X)
    calls: dict[str, Callable[[], Any]] = {"bilevel": ours}
    if INSTALLED:
        package = importlib.import_module("archetypes")
        for method in methods:
            options = dict(init="furthest_sum", method=method, max_iter=300, tol=1e-4, random_state=0)
            calls[f"archetypes, {method}"] = lambda o=options: package.AA(case.vertices, **o).fit(X)
    timed = interleaved(calls, repeats)
    pairs = {name: _pair(t.result) for name, t in timed.items()}
    residuals = {name: float(np.sum((X - A @ (B @ X)) ** 2)) for name, (A, B) in pairs.items()}
    best = min((r for name, r in residuals.items() if name != "bilevel"), default=None)
    rows: Rows = []
    for name, t in timed.items():
        A, B = pairs[name]
        rows.append(
            {
                "data": case.name,
                "solver": name,
                "seconds": t.median,
                "spread": t.spread,
                "first call": t.first,
                "rounds": t.result.n_iter_,
                "residual": f"{residuals[name]:.6g}",
                "of the best rival's": None if best is None else f"{residuals[name] / best:.5f}",
                "gap": gap(X, A, B),
                "worst vertex": worst_vertex(B @ X, vertices),
            }
        )
    if not INSTALLED:
        rows.append(dict.fromkeys(rows[0]) | {"data": case.name, "solver": "archetypes", "seconds": "not installed"})
    return rows


def _pair(model: Any) -> tuple[np.ndarray, np.ndarray]:
    return (model.weights_, model.mixtures_) if isinstance(model, ArchetypalAnalysis) else (model.A_, model.B_)


def one_large_fit() -> dict[str, Any]:
    """Of a process of its own."""
    X, _ = HUGE.make()
    before = resident("VmHWM")
    timed = interleaved({"fit": lambda: ArchetypalAnalysis(HUGE.vertices, random_state=0).fit(X)}, 1)["fit"]
    model = timed.result
    return {
        "data": HUGE.name,
        "archetypes": HUGE.vertices,
        "first call": timed.first,
        "seconds": timed.median,
        "rounds": model.n_iter_,
        "gap": gap(X, model.weights_, model.mixtures_),
        "peak memory, GiB": resident("VmHWM"),
        "of it before the fit": before,
    }


def run(quick: bool) -> Results:
    every, repeats = ("pgd", "pseudo_pgd", "nnls"), 3 if quick else 11
    parts: dict[str, Callable[[], Rows]] = {
        "Noiseless simplices": lambda: [row for case in NOISELESS for row in rivals(case, every, repeats)],
        "Five archetypes": lambda: rivals(MODERATE, every, repeats),
    }
    if not quick:
        parts["Ten thousand samples"] = lambda: rivals(LARGE, ("pgd", "nnls"), repeats)
        parts["A hundred thousand samples"] = lambda: [own_process("benchmarks.archetypes", "one_large_fit()")]
    tables = tabulate("archetypes", parts)
    title = "Five archetypes" if quick else "Ten thousand samples"
    return Results(
        tables,
        {title: ranking(tables[title], "solver", "seconds", "gap", f"Archetypal analysis, {title.lower()}")},
        "64 bits",
    )
