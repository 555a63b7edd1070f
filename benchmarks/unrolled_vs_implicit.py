"""What each way of differentiating costs and how right it is, against inner steps and against problem size.

Four inner problems, each with one strength: ridge and binary logistic regression (badly scaled features), codes of
patches of a photograph by an elastic net, and the dual of the multiclass support vector machine. Each way takes the
value and the derivative of an outer loss in the logarithm of the strength, in 64 bits. All run on accelerated proximal
gradient for exactly so many steps, Shine on L-BFGS: no tolerance stops them, and a solve that is not at its solution
keeps its derivative. By itself `bl.argmin` would take faster solvers for ridge regression and sparse codes: here the
ways alone differ. The error is relative, against the implicit derivative of a solve to rounding, which central
differences of such solves confirm. Problem size varies at 100 steps.

Programs are compiled ahead, without a cache; "compile" is the time of tracing and compiling. "Temporary" is the memory
that the compiled program asks for beside its inputs and outputs (XLA's `memory_analysis`). Seconds are medians of runs
that take turns, with half the distance between the quartiles as their spread. LAPACK has one thread: where its threads
wait for each other, small systems take many times as long, now and then. "Forward" is forward mode through the
iterations, which serves one hyperparameter at a time.

The first table compares at equal achieved error: for each way the fewest steps from which on its error is at most 1e-6,
the dashed line in the figure, at all larger numbers of steps measured. Between the last number that misses it and the
first that meets it, further ones are tried until the error is between 1e-7 and 1e-6, at most six times: where a line
through the logarithms of their errors meets that of 1e-6, against the logarithm of steps, against steps, and in the
middle, by turns (quick: one trial, and ridge and the support vector machine only). What was found is timed anew,
problem by problem, all ways in turns.
"""

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import PyTree
from threadpoolctl import threadpool_limits
from tqdm import tqdm

import bilevel as bl
from benchmarks.figures import plain_ticks, tidy
from benchmarks.measure import Timed, interleaved, patches
from benchmarks.results import Results, Rows
from bilevel.plots.colors import BLACK, BLUE, GRAY, GREEN, ORANGE, PURPLE, SKY, VERMILION

if TYPE_CHECKING:
    from matplotlib.figure import Figure

O, S = bl.objectives, bl.solvers
STEPS, TARGET = (10, 100, 1000, 3000), 1e-6
#: Seconds that a program's runs may take, but for three: programs of milliseconds have all their runs.
BUDGET = 2.0
#: The number of steps at which problem size varies.
AT = 100
#: The columns that a way which does not serve a problem leaves empty.
MEASURED = ("error", "seconds", "spread", "temporary MiB", "compile s")


class Problem(NamedTuple):
    """min of objective(log θ) over params on `data`; outer_loss(params, held_out); `start` is log θ; `exact` solves it
    to rounding, None for the objective's own solver."""

    objective: Callable[[Any], O.AbstractObjective]
    data: PyTree
    outer_loss: Callable[[PyTree, PyTree], Any]
    held_out: PyTree
    start: float
    exact: S.AbstractSolver | None = None


def squared(params: O.LinearModel, held_out: PyTree) -> Any:
    X, y = held_out
    return jnp.mean((params(X) - y) ** 2)


def logistic(params: O.LinearModel, held_out: PyTree) -> Any:
    X, y = held_out
    return jnp.mean(jax.nn.softplus(-y * params(X)))


def of_codes(codes: PyTree, held_out: PyTree) -> Any:
    head, signs = held_out
    return jnp.mean(jax.nn.softplus(-signs * (codes @ head)))


def ridge(features: int, classes: bool = False) -> Problem:
    """Twice as many samples as features, whose scales go from 1 to 0.1; half of the samples are held out."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(4 * features, features)) * np.geomspace(1, 0.1, features)
    y = X @ rng.normal(size=features) + rng.normal(size=len(X))
    y = np.sign(y) if classes else y
    train, test = (jnp.asarray(X[::2]), jnp.asarray(y[::2])), (jnp.asarray(X[1::2]), jnp.asarray(y[1::2]))
    if classes:
        objective = lambda s: O.LogisticRegression(jnp.exp(s))
        return Problem(objective, train, logistic, test, float(np.log(1e-3)), S.Newton(tol=1e-13))
    return Problem(lambda s: O.Ridge(jnp.exp(s)), train, squared, test, float(np.log(1e-2)))


def codes(samples: int) -> Problem:
    """Patches in 64 atoms; the outer loss is logistic, of a random linear head."""
    problem = patches(samples, 64)
    X, D = map(jnp.asarray, problem)
    head = jnp.asarray(np.random.default_rng(2).normal(size=64))
    objective = lambda s: O.SparseCoding(D, jnp.exp(s), 0.01)
    return Problem(objective, X, of_codes, (head, jnp.sign(X[:, 0])), float(np.log(0.15)))


def svm(features: int) -> Problem:
    """60 samples of 5 classes, 60 held out; the outer loss is the squared distance of the scores to one-hot labels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(5, size=120)
    X = rng.normal(size=(120, features)) / np.sqrt(features) + 2 * rng.normal(size=(5, features))[labels] / features
    X, Y = jnp.asarray(X), jax.nn.one_hot(labels, 5, dtype=float)
    train = (X[:60], Y[:60])

    def loss(params: PyTree, held_out: PyTree) -> Any:
        X, Y, pull = held_out
        return jnp.mean((X @ pull(params) - Y) ** 2)

    # W(β) = Xᵀ(Y − β) up to the factor 1 / θ.
    pull = jax.tree_util.Partial(lambda X, Y, dual: X.T @ (Y - dual), *train)
    objective = lambda s: O.MulticlassSVM(jnp.exp(s))
    exact = S.ProximalGradient(tol=1e-13, max_steps=100_000)
    return Problem(objective, train, loss, (X[60:], Y[60:], pull), float(np.log(0.3)), exact)


class Family(NamedTuple):
    """A problem of a given size, what size is, the size at which steps vary, and the sizes."""

    make: Callable[[int], Problem]
    unit: str
    size: int
    sizes: tuple[int, ...]


FAMILIES = {
    "ridge": Family(ridge, "features", 100, (30, 100, 300)),
    "elastic-net codes": Family(codes, "samples", 100, (30, 100, 300)),
    "multiclass SVM": Family(svm, "features", 300, (300, 1000, 3000)),
    "logistic regression": Family(lambda n: ridge(n, classes=True), "features", 100, (30, 100, 300)),
}

FORWARD = "Unrolled, forward"


def ways() -> dict[str, bl.AbstractDifferentiation]:
    every = {
        "Implicit": bl.Implicit(),
        "Unrolled": bl.Unrolled(),
        "Unrolled, checkpointed": bl.Unrolled(checkpoint=True),
        FORWARD: bl.Unrolled(),
        "Truncated, 10 steps": bl.Truncated(10),
        "OneStep": bl.OneStep(),
        "Shine (L-BFGS)": bl.Shine(),
        "JaxoptImplicit": bl.JaxoptImplicit(),
    }
    return {name: diff.with_policy("ignore") for name, diff in every.items()}


def loss_of(problem: Problem, solver: S.AbstractSolver | None, diff: bl.AbstractDifferentiation) -> Callable:
    def loss(s: Any, data: PyTree, held_out: PyTree) -> Any:
        solution = bl.argmin(problem.objective(s), data, solver=solver, diff=diff, throw=False)
        return problem.outer_loss(solution.params, held_out)

    return loss


def reference(problem: Problem) -> float:
    """The implicit derivative at a solution to rounding; finite differences of such solutions must say the same."""
    loss = jax.jit(jax.value_and_grad(loss_of(problem, problem.exact, bl.Implicit(on_failure="nan"))))
    at = lambda s: [float(x) for x in loss(jnp.asarray(s), problem.data, problem.held_out)]
    exact, h = at(problem.start)[1], 1e-5
    difference = (at(problem.start + h)[0] - at(problem.start - h)[0]) / (2 * h)
    assert abs(difference - exact) <= 1e-4 * abs(exact), (difference, exact)
    return exact


class Program(NamedTuple):
    """Compiled: value and derivative; seconds of tracing and compiling; bytes of temporary memory."""

    call: Callable[[], Any]
    seconds: float
    temporary: int


def compiled(problem: Problem, name: str, diff: bl.AbstractDifferentiation, steps: int) -> Program:
    kind = S.LBFGS if isinstance(diff, bl.Shine) else S.ProximalGradient
    loss = loss_of(problem, kind(max_steps=steps, tol=1e-30), diff)

    def along(s: Any, data: PyTree, held_out: PyTree) -> Any:
        return jax.jvp(lambda s: loss(s, data, held_out), (s,), (jnp.ones_like(s),))

    args = (jnp.asarray(problem.start), problem.data, problem.held_out)
    start = time.perf_counter()
    program = jax.jit(along if name == FORWARD else jax.value_and_grad(loss)).lower(*args).compile()
    seconds = time.perf_counter() - start
    return Program(lambda: program(*args), seconds, program.memory_analysis().temp_size_in_bytes)


def timed_within(programs: Mapping[str, Program], repeats: int) -> dict[str, Timed]:
    return interleaved({name: program.call for name, program in programs.items()}, repeats, BUDGET)


def measured(program: Program, timed: Timed, exact: float) -> dict[str, Any]:
    row = {"error": relative(timed.result, exact), "seconds": timed.median, "spread": timed.spread}
    return row | {"temporary MiB": program.temporary / 2**20, "compile s": program.seconds}


def relative(pair: Any, exact: float) -> float:
    """The error of the derivative in a pair of value and derivative."""
    return abs(float(pair[1]) - exact) / abs(exact)


def compare(problem: Problem, key: dict[str, Any], steps: int, repeats: int, exact: float) -> Rows:
    """A row for each way, at so many inner steps."""
    programs: dict[str, Program] = {}
    refused: dict[str, str] = {}
    for name, diff in ways().items():
        try:
            programs[name] = compiled(problem, name, diff, steps)
        except ValueError as error:
            refused[name] = str(error).split(". ")[0].split(":")[0]
    timed = timed_within(programs, repeats)
    rows: Rows = []
    for name in ways():
        row = {**key, "inner steps": steps, "way": name, **dict.fromkeys(MEASURED), "note": refused.get(name)}
        rows.append(row | (measured(programs[name], timed[name], exact) if name in timed else {}))
    return rows


# --- At equal error ---------------------------------------------------------------------------------------------------


def bracket(errors: Mapping[int, float]) -> tuple[int, int | None]:
    """The most steps that miss the target, 0 if none do, and the fewest beyond them, None if there are none."""
    miss = max((steps for steps, error in errors.items() if not error <= TARGET), default=0)
    return miss, min((steps for steps in errors if steps > miss), default=None)


def fewest(error_at: Callable[[int], float], errors: dict[int, float], tries: int) -> int | None:
    """The fewest steps from which on all known errors meet the target, None if the last one misses it.

    Up to so many further errors become known: where a line through the last miss and the first hit meets the target,
    until the hit is within a factor of ten of it. Against the logarithm of steps the line of a linear rate comes too
    soon, against steps that to a floor of rounding errors too late: they take turns, with the middle as the third."""
    for trial in range(tries):
        miss, hit = bracket(errors)
        if miss == 0 or hit is None or errors[hit] >= TARGET / 10 or hit <= miss + 1:
            break
        # An error that is no number counts as 1.
        above, below = np.log([np.nan_to_num(errors[miss], nan=1, posinf=1), max(errors[hit], 1e-16)])
        ends = np.array([hit, miss], float)
        at = lambda x, heights=(below, above): np.interp(np.log(TARGET), heights, x)
        guess = (np.exp(at(np.log(ends))), at(ends), np.mean(ends))[trial % 3]
        steps = int(np.clip(np.ceil(guess), miss + 1, hit - 1))
        errors[steps] = error_at(steps)
    return bracket(errors)[1]


def at_equal_error(problem: Problem, rows: Rows, repeats: int, tries: int, exact: float) -> Rows:
    """A row for each way at the fewest steps within the target, of which `rows` know some; its seconds over those of
    `Implicit`."""
    found: dict[str, int] = {}
    programs: dict[tuple[str, int], Program] = {}
    errors: dict[str, dict[int, float]] = {}
    # Unrolled iterations have one derivative, however it is taken: what the last, soon compiled, finds serves all.
    for name, diff in reversed(ways().items()):
        mine = {row["inner steps"]: row["error"] for row in rows if row["way"] == name and row["error"] is not None}
        known = errors.setdefault(name.split(",")[0], {})
        known |= mine

        def program(steps: int, name: str = name, diff: bl.AbstractDifferentiation = diff) -> Program:
            if (name, steps) not in programs:
                programs[name, steps] = compiled(problem, name, diff, steps)
            return programs[name, steps]

        steps = fewest(lambda steps, program=program: relative(program(steps).call(), exact), known, tries)
        if steps is not None:
            found[name] = steps
            program(steps)
    chosen = {name: programs[name, found[name]] for name in ways() if name in found}
    timed = timed_within(chosen, repeats)
    base = timed["Implicit"].median if "Implicit" in timed else None
    best: Rows = []
    for name in ways():
        columns = ("inner steps", *MEASURED, "times Implicit", "note")
        row = {"problem": rows[0]["problem"], "way": name, **dict.fromkeys(columns)}
        last = [r for r in rows if r["way"] == name][-1]
        if name in timed:
            row |= {"inner steps": found[name], **measured(chosen[name], timed[name], exact)}
            row["times Implicit"] = timed[name].median / base if base else None
        else:
            row["note"] = last["note"] or f"not met; error {last['error']:.0e} at {last['inner steps']} steps"
        best.append(row)
    return best


@threadpool_limits.wrap(limits=1, user_api="blas")
def run(quick: bool) -> Results:
    repeats, tries = (3, 1) if quick else (21, 6)
    families, steps = (("ridge", "multiclass SVM"), (10, AT)) if quick else (tuple(FAMILIES), STEPS)
    steps_of = {(family, FAMILIES[family].size): steps for family in families}
    sizes = {family: FAMILIES[family].sizes[: 2 if quick else None] for family in families}
    cells = steps_of | {(family, n): (AT,) for family in families for n in sizes[family] if (family, n) not in steps_of}
    bar = tqdm(total=sum(map(len, cells.values())), desc="unrolled vs implicit")
    rows: dict[tuple[str, int, int], Rows] = {}
    equal: Rows = []
    for (family, size), counts in cells.items():
        problem = FAMILIES[family].make(size)
        exact = reference(problem)
        for k in counts:
            rows[family, size, k] = compare(problem, {"problem": family, "size": size}, k, repeats, exact)
            bar.update()
        if (family, size) in steps_of:
            so_far = [row for k in counts for row in rows[family, size, k]]
            equal += at_equal_error(problem, so_far, repeats, tries, exact)
    bar.close()
    by_steps = [row for family in families for k in steps for row in rows[family, FAMILIES[family].size, k]]
    by_size = [row for family in families for size in sizes[family] for row in rows[family, size, AT]]
    tables = {"At equal achieved error": equal, "Inner steps": by_steps, "Problem size": by_size}
    figures = {
        "Against inner steps": draw(by_steps, "inner steps", ("error", "seconds", "temporary MiB")),
        "Error against seconds": draw(by_steps, "seconds", ("error",)),
        "Against problem size": draw(by_size, "size", ("seconds", "temporary MiB", "compile s")),
    }
    return Results(tables, figures, "64 bits")


COLORS = (VERMILION, BLUE, SKY, GREEN, ORANGE, BLACK, PURPLE, GRAY)
MARKERS = "osv^DPX*"
#: Ways whose lines often lie on each other.
LINES = {"Unrolled, checkpointed": "--", FORWARD: ":", "JaxoptImplicit": "--"}
LABELS = {"error": "relative error", "temporary MiB": "temporary memory, MiB", "compile s": "seconds to compile"}


def draw(rows: Rows, across: str, quantities: tuple[str, ...]) -> "Figure":
    """A panel for each problem, side by side for each of several quantities, else two by two; a line for each way."""
    families = list(dict.fromkeys(row["problem"] for row in rows))
    columns = len(families) if len(quantities) > 1 else 2
    shape = (len(quantities) * len(families) // columns, columns)
    size = (0.9 + (2.4 if columns > 2 else 3.4) * columns, 1.3 + 2.5 * shape[0])
    options: dict[str, Any] = dict(layout="constrained", squeeze=False, sharey="row")
    figure, grid = plt.subplots(*shape, figsize=size, sharex="col" if len(quantities) > 1 else False, **options)
    panels = [(quantity, family) for quantity in quantities for family in families]
    for (quantity, family), ax in zip(panels, grid.flat, strict=True):
        for name, color, marker in zip(ways(), COLORS, MARKERS, strict=True):
            mine = [r for r in rows if r["problem"] == family and r["way"] == name and r["seconds"] is not None]
            # Errors below rounding are all alike.
            values = [max(r[quantity], 1e-16) if quantity == "error" else r[quantity] for r in mine]
            style: dict[str, Any] = dict(color=color, marker=marker, ms=5, lw=2.8 if name == "Implicit" else 1.5)
            ax.plot([r[across] for r in mine], values, label=name, ls=LINES.get(name, "-"), **style)
        ax.set(xscale="log", yscale="log")
        tidy(ax)
        if across == "seconds":
            ax.axhline(TARGET, color="black", lw=0.8, ls="--")
            ax.set(title=family, xlabel=across)
        if quantity == quantities[0]:
            ax.set_title(family)
        if quantity == quantities[-1]:
            ax.set_xlabel(FAMILIES[family].unit if across == "size" else across)
        if family == families[0] or (columns == 2 and family == families[-2]):
            ax.set_ylabel(LABELS.get(quantity, quantity))
    for (_, family), ax in zip(panels, grid.flat, strict=True):
        if across == "size":
            sizes = sorted({row["size"] for row in rows if row["problem"] == family})
            ax.set_xticks(sizes, [str(size) for size in sizes])
            ax.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        else:
            plain_ticks(ax.xaxis)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure
