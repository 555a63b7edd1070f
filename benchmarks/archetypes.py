"""Archetypal analysis, beside the package `archetypes`, at the residual that each achieves.

`python -m benchmarks.archetypes --out docs` fits samples that are mixtures of k vertices, in 64 bits: vertices of normal
entries, weights of a Dirichlet law, and normal noise. Every rival starts by furthest sum, in the same run. The package's
projected gradient (`pgd`), its default, runs until its own residual moves by less than 1e-4, at most 300 iterations; so
does Mørup and Hansen's `pseudo_pgd`, and, where it is quick enough, alternating `nnls`. The residual ‖X − A B X‖² is
computed anew from what each returns. "Gap" is the sum of the duality gaps of both blocks over the loss, 0 at a
stationary point. "Worst vertex" is the largest distance of a vertex to its archetype, over the largest distance of two
vertices. The memory of a fit of 100,000 samples is the peak of the resident memory of a process of its own.
"""

import argparse
import importlib
import importlib.util
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist, pdist
from tqdm.auto import tqdm

from benchmarks.measure import interleaved
from benchmarks.page import Rows, draw, publish_all, versions
from bilevel.estimators import ArchetypalAnalysis


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
    try:
        package = importlib.import_module("archetypes")
    except ImportError:
        package = None
    if package is not None:
        for method in methods:
            options = dict(init="furthest_sum", method=method, max_iter=300, tol=1e-4, random_state=0)
            calls[f"archetypes, {method}"] = lambda o=options: package.AA(case.vertices, **o).fit(X)
    timed = interleaved(calls, repeats)
    rows = []
    for name, t in timed.items():
        model = t.result
        A, B = (model.weights_, model.mixtures_) if name == "bilevel" else (model.A_, model.B_)
        rows.append(
            {
                "data": case.name,
                "solver": name,
                "seconds": f"{t.median:.4f}",
                "first call": f"{t.first:.2f}",
                "rounds": str(model.n_iter_),
                "residual": f"{np.sum((X - A @ (B @ X)) ** 2):.6g}",
                "gap": f"{gap(X, A, B):.0e}",
                "worst vertex": f"{worst_vertex(B @ X, vertices):.4f}",
            }
        )
    return rows


def one_large_fit() -> None:
    """Prints what a process of its own measures."""
    X, _ = HUGE.make()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    timed = interleaved({"fit": lambda: ArchetypalAnalysis(HUGE.vertices, random_state=0).fit(X)}, 1)["fit"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = timed.result
    row = {
        "data": HUGE.name,
        "archetypes": str(HUGE.vertices),
        "first call": f"{timed.first:.1f}",
        "seconds": f"{timed.median:.1f}",
        "rounds": str(model.n_iter_),
        "gap": f"{gap(X, model.weights_, model.mixtures_):.0e}",
        "peak memory, GiB": f"{peak / 2**20:.2f}",
        "of it before the fit": f"{before / 2**20:.2f}",
    }
    print(json.dumps(row))


def memory() -> Rows:
    command = [sys.executable, "-m", "benchmarks.archetypes", "--large"]
    return [json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"), help="folder for the tables (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="no large samples")
    parser.add_argument("--large", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.large:
        return one_large_fit()
    every = ("pgd", "pseudo_pgd", "nnls")
    steps: list[tuple[str, Callable[[], Rows]]] = [
        ("Noiseless simplices", lambda: [row for case in NOISELESS for row in rivals(case, every, 5)]),
        ("Five archetypes", lambda: rivals(MODERATE, every, 5)),
    ]
    if not options.quick:
        steps.append(("Ten thousand samples", lambda: rivals(LARGE, ("pgd",), 5)))
        steps.append(("A hundred thousand samples", memory))
    tables = {title: run() for title, run in tqdm(steps, desc="archetypes", leave=False)}
    footer = versions("scikit-learn", *([] if importlib.util.find_spec("archetypes") is None else ["archetypes"]))
    publish_all(options.out, "archetypes", f"# Archetypal analysis\n\n{__doc__}", tables, footer)
    title = "Ten thousand samples" if not options.quick else "Five archetypes"
    draw(tables[title], "solver", "seconds", "residual", title, options.out / "archetypes" / "figure.png")


if __name__ == "__main__":
    main()
