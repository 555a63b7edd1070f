"""How long sparse codes take, by this library and by others, at the accuracy that each achieves.

`python -m benchmarks.sparse_coding --out docs` codes patches of a photograph, 12 × 12, in 256 atoms with l1 = 0.15 and
l2 = 0.01, in 32 bits. Every rival solves the same problem in the same run, one after the other in rounds; seconds are
medians without compilation. Accuracy is the worst relative duality gap of a sample, computed in 64 bits, never what a
solver says of itself. "Warm" starts from the codes of a dictionary that was 1 % away. The rivals come with
`make .venv-bench/.installed`; those that are not installed are left out.
"""

import argparse
import importlib
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
from sklearn.decomposition import sparse_encode
from tqdm.auto import tqdm

import bilevel as bl
from benchmarks.measure import ATOMS, L1, L2, Patches, interleaved, moved, patches, relative_gaps, stepsize_of
from benchmarks.page import Rows, draw, publish_all, versions


@eqx.filter_jit
def code(D: Any, X: Any, l1: Any, init: Any, kernel: bool | None = None) -> Any:
    coding = bl.objectives.SparseCoding(D, l1, L2)
    return bl.argmin(coding, X, solver=bl.solvers.SparseCoder(kernel=kernel), init=init, throw=False).params


@eqx.filter_jit
def code_by_jaxopt(D: Any, X: Any, l1: Any, init: Any, steps: int, stepsize: float) -> Any:
    """JAXopt's accelerated proximal gradient, as its users write it for sparse codes; it takes all its steps."""
    loss = lambda codes, D, X: 0.5 * jnp.sum((X - codes @ D) ** 2) + 0.5 * L2 * jnp.sum(codes**2)
    solver = jaxopt.ProximalGradient(loss, jaxopt.prox.prox_lasso, stepsize=stepsize, maxiter=steps, tol=0.0)
    return solver.run(init, l1, D=D, X=X).params


def spams_lasso(problem: Patches, l1: float) -> Callable[[], Any] | None:
    try:
        spams = importlib.import_module("spams")
    except ImportError:
        return None
    X, D = (np.asfortranarray(x.T, np.float32) for x in (problem.X, problem.D))
    options = dict(lambda1=l1, lambda2=L2, mode=2, numThreads=bl.kernels.threads())
    return lambda: spams.lasso(X, D, **options)


def by_scikit_learn(problem: Patches, algorithm: str) -> Callable[[], Any]:
    """An elastic net is a Lasso on D with √l2 I beside it."""
    atoms = len(problem.D)
    D = np.hstack([problem.D, L2**0.5 * np.eye(atoms)])
    X = np.hstack([problem.X, np.zeros((len(problem.X), atoms))])
    options: dict[str, Any] = dict(algorithm=algorithm, alpha=L1, check_input=False, n_jobs=bl.kernels.threads())
    return lambda: sparse_encode(X, D, **options, max_iter=1000)


def by_skglm(problem: Patches) -> Callable[[], Any] | None:
    """One elastic net after the other, each warm with the last one's working set: it knows no batches."""
    try:
        skglm = importlib.import_module("skglm")
    except ImportError:
        return None
    features = problem.D.shape[1]
    strength = (L1 + L2) / features
    model = skglm.ElasticNet(alpha=strength, l1_ratio=L1 / (L1 + L2), fit_intercept=False, tol=1e-6, warm_start=True)
    design = np.asfortranarray(problem.D.T)
    return lambda: np.array([model.fit(design, x).coef_.copy() for x in problem.X])


def rivals(samples: int, quick: bool, repeats: int) -> Rows:
    """From nothing, and warm."""
    problem = patches(samples)
    after = Patches(problem.X, moved(problem.D))
    X, D, D_after = (jnp.asarray(x, jnp.float32) for x in (problem.X, problem.D, after.D))
    zero, l1, stepsize = jnp.zeros((samples, len(D))), jnp.asarray(L1), stepsize_of(problem.D)
    start = code(D, X, l1, zero)
    calls: dict[str, Callable[[], Any]] = {
        "bilevel": lambda: code(D, X, l1, zero),
        "bilevel, warm": lambda: code(D_after, X, l1, start),
        "bilevel, plain JAX": lambda: code(D, X, l1, zero, False),
        "JAXopt, 100 steps": lambda: code_by_jaxopt(D, X, l1, zero, 100, stepsize),
    }
    spams = spams_lasso(problem, L1)
    if spams is not None:
        calls["SPAMS (LARS)"] = spams
    if not quick:
        calls["JAXopt, 1000 steps"] = lambda: code_by_jaxopt(D, X, l1, zero, 1000, stepsize)
        if samples <= 5000:
            calls["scikit-learn, LARS"] = by_scikit_learn(problem, "lasso_lars")
            calls["scikit-learn, coordinate descent"] = by_scikit_learn(problem, "lasso_cd")
            skglm = by_skglm(problem)
            if skglm is not None:
                calls["skglm"] = skglm
    timed = interleaved(calls, repeats)
    base = timed["SPAMS (LARS)" if spams else "bilevel"].median
    rows = []
    for name, t in timed.items():
        codes = t.result.toarray().T if name.startswith("SPAMS") else np.asarray(t.result)
        gap = np.max(relative_gaps(after if name.endswith("warm") else problem, codes))
        rows.append(
            {
                "samples": str(samples),
                "solver": name,
                "seconds": f"{t.median:.4f}",
                "of SPAMS" if spams else "of bilevel": f"{t.median / base:.3f}",
                "first call": f"{t.first:.2f}",
                "worst gap": f"{gap:.0e}",
            }
        )
    return rows


def shapes(samples: int, repeats: int) -> Rows:
    """Dictionaries and sparsities, against JAXopt."""
    rows = []
    for atoms in (64, 256, 1024):
        problem = patches(samples, atoms)
        X, D = (jnp.asarray(x, jnp.float32) for x in problem)
        zero, stepsize = jnp.zeros((samples, atoms)), stepsize_of(problem.D)
        for strength in (0.6, 0.15, 0.05, 0.02):
            l1 = jnp.asarray(strength, jnp.float32)
            calls = {
                "bilevel": lambda D=D, X=X, l1=l1, zero=zero: code(D, X, l1, zero),
                "JAXopt": lambda D=D, X=X, l1=l1, s=stepsize: code_by_jaxopt(
                    D, X, l1, jnp.zeros((len(X), len(D))), 100, s
                ),
            }
            timed = interleaved(calls, repeats)
            gaps = {name: np.max(relative_gaps(problem, t.result, strength)) for name, t in timed.items()}
            rows.append(
                {
                    "atoms": str(atoms),
                    "l1": str(strength),
                    "nonzeros": f"{np.mean(np.sum(np.asarray(timed['bilevel'].result) != 0, axis=1)):.1f}",
                    "seconds": f"{timed['bilevel'].median:.4f}",
                    "worst gap": f"{gaps['bilevel']:.0e}",
                    "JAXopt, 100 steps": f"{timed['JAXopt'].median:.4f}",
                    "its gap": f"{gaps['JAXopt']:.0e}",
                    "ratio": f"{timed['bilevel'].median / timed['JAXopt'].median:.3f}",
                }
            )
    return rows


def sizes(counts: tuple[int, ...], repeats: int) -> Rows:
    """The cost of a sample, by how many there are; and the memory beyond input and output."""
    base = patches(10_000)
    D, l1 = jnp.asarray(base.D, jnp.float32), jnp.asarray(L1, jnp.float32)
    rows, calls, memory = [], {}, {}
    for count in counts:
        X = jnp.asarray(np.resize(base.X, (count, base.X.shape[1])), jnp.float32)
        zero = jnp.zeros((count, len(D)))
        calls[str(count)] = lambda X=X, zero=zero: code(D, X, l1, zero)
        lowered = jax.jit(lambda D, X, l1, init: code(D, X, l1, init)).lower(D, X, l1, zero)
        memory[str(count)] = lowered.compile().memory_analysis().temp_size_in_bytes
    for name, t in interleaved(calls, repeats).items():
        rows.append(
            {
                "samples": name,
                "seconds": f"{t.median:.4f}",
                "microseconds a sample": f"{1e6 * t.median / int(name):.2f}",
                "temporary MiB": f"{memory[name] / 2**20:.0f}",
            }
        )
    return rows


def million() -> Rows:
    """A million samples: the peak of resident memory, beyond input and output."""
    base = patches(10_000)
    D, l1 = jnp.asarray(base.D, jnp.float32), jnp.asarray(L1, jnp.float32)
    X = jnp.asarray(np.resize(base.X, (1_000_000, base.X.shape[1])).astype(np.float32))
    zero = jnp.zeros((len(X), len(D)))
    jax.block_until_ready((X, zero))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    codes = jax.block_until_ready(code(D, X, l1, zero))
    seconds = time.perf_counter() - start
    beyond = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) - codes.nbytes
    row = {
        "samples": str(len(X)),
        "seconds, with compilation": f"{seconds:.1f}",
        "peak GiB beyond": f"{beyond / 2**30:.2f}",
    }
    return [row]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"), help="folder for the tables (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="fewer rivals, samples and repeats")
    options = parser.parse_args()
    quick = options.quick
    steps: list[tuple[str, Callable[[], Rows]]] = [
        ("Rivals", lambda: rivals(3000, quick, 5 if quick else 21)),
        ("Rivals at four times the size", lambda: rivals(3000 if quick else 12_000, quick, 3 if quick else 11)),
        ("Dictionaries and sparsities", lambda: shapes(500 if quick else 3000, 3 if quick else 7)),
        ("Number of samples", lambda: sizes((1000, 10_000) if quick else (1000, 10_000, 100_000), 3 if quick else 7)),
    ]
    if not quick:
        # First, while memory has not peaked yet.
        steps.insert(0, ("A million samples", million))
    tables = {title: run() for title, run in tqdm(steps, desc="sparse coding", leave=False)}
    publish_all(options.out, "sparse_coding", f"# Sparse coding\n\n{__doc__}", tables, versions("scikit-learn"))
    title = f"Codes of {tables['Rivals'][0]['samples']} patches in {ATOMS} atoms"
    draw(tables["Rivals"], "solver", "seconds", "worst gap", title, options.out / "sparse_coding" / "figure.png")


if __name__ == "__main__":
    main()
