"""How long sparse codes take, by this library and by others, at the accuracy that each achieves.

Patches of a photograph, 12 × 12, are coded in 256 atoms with l1 = 0.15 and l2 = 0.01, in 32 bits (scikit-learn and
skglm in 64). Every rival solves the same problem in the same run, by turns; seconds are medians without compilation,
with half the distance between the quartiles as their spread. "First call" is with compilation, where there is any: ours
compiles XLA's program, while Numba's loops lie on disk once they were compiled; "warm" runs the program that the row
above it has compiled. Accuracy is the worst relative duality gap of a sample, computed in 64 bits, never what a solver
says of itself. "Warm" starts from the codes of a dictionary that was 1 % away. The rivals come with
`make .venv-bench/.installed`.

A million samples are coded once, in a process of its own, whose peak of resident memory is the kernel's count (`VmHWM`,
Linux). "Beyond" is that peak without input, output and what the process had before.
"""

import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
from sklearn.decomposition import sparse_encode

import bilevel as bl
from benchmarks.figures import ranking
from benchmarks.measure import (
    ATOMS,
    L1,
    L2,
    Patches,
    forget_peak,
    interleaved,
    moved,
    own_process,
    patches,
    relative_gaps,
    resident,
    rival,
    stepsize_of,
)
from benchmarks.results import Results, Rows, tabulate


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
    spams = rival("spams")
    if spams is None:
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
    skglm = rival("skglm")
    if skglm is None:
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
    # The first call is to compile, as that of the others does.
    jax.clear_caches()
    calls: dict[str, Callable[[], Any] | None] = {
        "bilevel": lambda: code(D, X, l1, zero),
        "bilevel, warm": lambda: code(D_after, X, l1, start),
        "bilevel, plain JAX": lambda: code(D, X, l1, zero, False),
        "JAXopt, 100 steps": lambda: code_by_jaxopt(D, X, l1, zero, 100, stepsize),
        "SPAMS (LARS)": spams_lasso(problem, L1),
    }
    if not quick:
        calls["JAXopt, 1000 steps"] = lambda: code_by_jaxopt(D, X, l1, zero, 1000, stepsize)
        if samples <= 5000:
            calls["scikit-learn, LARS"] = by_scikit_learn(problem, "lasso_lars")
            calls["scikit-learn, coordinate descent"] = by_scikit_learn(problem, "lasso_cd")
            calls["skglm"] = by_skglm(problem)
    timed = interleaved({name: call for name, call in calls.items() if call is not None}, repeats)
    base = "bilevel" if calls["SPAMS (LARS)"] is None else "SPAMS (LARS)"
    rows = []
    for name in calls:
        row: dict[str, Any] = dict.fromkeys(("samples", "solver", "seconds", "spread"))
        row |= {f"of {base}": None, "first call": None, "worst gap": None, "samples": samples, "solver": name}
        if name in timed:
            t = timed[name]
            codes = t.result.toarray().T if name.startswith("SPAMS") else np.asarray(t.result)
            gap = float(np.max(relative_gaps(after if name.endswith("warm") else problem, codes)))
            row |= {"seconds": t.median, "spread": t.spread, f"of {base}": t.median / timed[base].median}
            row |= {"first call": t.first, "worst gap": gap}
        else:
            row["seconds"] = "not installed"
        rows.append(row)
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
            gaps = {name: float(np.max(relative_gaps(problem, t.result, strength))) for name, t in timed.items()}
            rows.append(
                {
                    "atoms": atoms,
                    "l1": strength,
                    "nonzeros": float(np.mean(np.sum(np.asarray(timed["bilevel"].result) != 0, axis=1))),
                    "seconds": timed["bilevel"].median,
                    "worst gap": gaps["bilevel"],
                    "JAXopt, 100 steps": timed["JAXopt"].median,
                    "its gap": gaps["JAXopt"],
                    "ratio": timed["bilevel"].median / timed["JAXopt"].median,
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
                "samples": int(name),
                "seconds": t.median,
                "spread": t.spread,
                "microseconds a sample": 1e6 * t.median / int(name),
                "temporary MiB": memory[name] / 2**20,
            }
        )
    return rows


def many(samples: int) -> dict[str, Any]:
    """Of a process of its own: seconds, and its peak of resident memory, where Linux tells it."""
    base = patches(10_000)
    D, l1 = jnp.asarray(base.D, jnp.float32), jnp.asarray(L1, jnp.float32)
    before = resident("VmRSS")
    X = jnp.asarray(np.resize(base.X.astype(np.float32), (samples, base.X.shape[1])))
    zero = jax.block_until_ready(jnp.zeros((samples, len(D)), jnp.float32))
    forget_peak()
    start = time.perf_counter()
    codes = jax.block_until_ready(code(D, X, l1, zero))
    seconds = time.perf_counter() - start
    peak, arrays = resident("VmHWM"), sum(x.nbytes for x in (X, zero, codes)) / 2**30
    return {
        "samples": samples,
        "seconds, with compilation": seconds,
        "peak memory, GiB": peak,
        "input and output, GiB": arrays,
        "before, GiB": before,
        "beyond, GiB": None if before is None or peak is None else peak - arrays - before,
    }


def run(quick: bool) -> Results:
    parts: dict[str, Callable[[], Rows]] = {
        "Rivals": lambda: rivals(3000, quick, 5 if quick else 21),
        "Rivals at four times the size": lambda: rivals(12_000, quick, 3 if quick else 11),
        "Dictionaries and sparsities": lambda: shapes(500 if quick else 3000, 3 if quick else 7),
        "Number of samples": lambda: sizes((1000, 10_000) if quick else (1000, 10_000, 100_000), 3 if quick else 7),
    }
    if quick:
        del parts["Rivals at four times the size"]
    else:
        parts = {"A million samples": lambda: [own_process("benchmarks.sparse_coding", "many(1_000_000)")], **parts}
    with jax.enable_x64(False):
        tables = tabulate("sparse coding", parts)
    title = f"Codes of {tables['Rivals'][0]['samples']} patches in {ATOMS} atoms"
    figure = ranking(tables["Rivals"], "solver", "seconds", "worst gap", title)
    return Results(tables, {"Seconds and worst duality gap": figure}, "32 bits")
