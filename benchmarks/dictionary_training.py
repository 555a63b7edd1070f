"""How long learning a dictionary takes until a given quality on held-out samples, with a task and without.

With a task: 100 atoms and a linear head are trained to tell even from odd handwritten digits (1,200 to train, 597 held
out) through sparse codes, l1 = 0.15 and l2 = 0.01, with Adam, by this library's `Trainer` and by the same steps written
around JAXopt's `ProximalGradient(implicit_diff=True)` with a fixed number of inner steps, from the last codes: as it
comes, and with its linear solver limited to 30 steps, as by itself this does not stop for long in 32 bits. It wants a
step size as a number: half of what serves the first dictionary, whose norm may grow. The trainings take turns, epoch by
epoch, until 60 epochs, or the first after 60 seconds of their own. Time is that of the epochs alone, without
compilation, and the held-out loss is judged between them, at codes to rounding level, the same for all. A target is a
share of the decrease of the loss from the start to the least that any of them reached.

Without: a dictionary for patches of a photograph, 12 × 12, l1 = 0.15, by this library's `DictionaryLearning`, by
scikit-learn's `MiniBatchDictionaryLearning` and by SPAMS's `trainDL`, all from the same atoms, with batches of 256
samples, in 32 bits (SPAMS and scikit-learn in 64), on all cores but for scikit-learn, which by default takes one. Each
is run for several budgets, which take turns; each budget is a training of its own, since our step size falls over its
length. All are judged by the mean objective of held-out patches at exact codes. l2 is 1e-4 for us and SPAMS;
scikit-learn has none, which is 5e-5 ‖c‖² of the objective. A target is a distance from the least objective that any of
them reached. The two rivals are online learners that store sufficient statistics of past codes and take no gradient
steps: for this problem, they are specialists.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.decomposition import MiniBatchDictionaryLearning
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils._testing import ignore_warnings
from tqdm import tqdm

import bilevel as bl
from benchmarks.figures import plain_ticks, tidy
from benchmarks.hypergradient import Task, Training, by_bilevel, by_jaxopt, codes_by_bilevel, task_loss
from benchmarks.measure import L1, Patches, interleaved, patches, rival, stepsize_of
from benchmarks.results import Results, Rows, tabulate
from bilevel.datasets import load_digits
from bilevel.estimators import DictionaryLearning
from bilevel.plots.colors import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRAINED, BATCH, ATOMS = 1200, 100, 100
#: Seconds after which no further epoch of a training begins.
LIMIT = 60.0
PLAIN_BATCH, PLAIN_L2 = 256, 1e-4
#: The epochs that the table shows; targets are looked for, and curves drawn, in all of them.
SHOWN = (0, 1, 2, 5, 10, 20, 40, 60)


# --- With a task ------------------------------------------------------------------------------------------------------


def with_task(epochs: int) -> Rows:
    """The held-out loss and accuracy of each training after each epoch, and the seconds until then."""
    digits = load_digits()
    rng = np.random.default_rng(0)
    order = rng.permutation(len(digits.X))
    X, signs = jnp.asarray(digits.X[order]), jnp.asarray(1.0 - 2.0 * (digits.labels[order] % 2), jnp.float32)
    D = X[:ATOMS]
    task = Task(X[:TRAINED], signs[:TRAINED], D, jnp.zeros(ATOMS, jnp.float32), BATCH, optax.adam(1e-2))
    # Half the step that serves the first dictionary, as its norm may grow, and JAXopt wants a number.
    stepsize = 0.5 * stepsize_of(np.asarray(D))
    trainings: dict[str, Training] = {"bilevel": by_bilevel(task)}
    trainings["JAXopt, 100 steps"] = by_jaxopt(task, stepsize, 100)
    for steps in (20, 100):
        trainings[f"JAXopt, {steps} steps, adjoint 30"] = by_jaxopt(task, stepsize, steps, adjoint_steps=30)

    @jax.jit
    def judge(D: Any, head: Any) -> Any:
        held_out = X[TRAINED:]
        codes = codes_by_bilevel(D, held_out, jnp.zeros((len(held_out), ATOMS), jnp.float32))
        return task_loss(codes, head, signs[TRAINED:]), jnp.mean((codes @ head > 0) == (signs[TRAINED:] > 0))

    for training in trainings.values():
        jax.block_until_ready(training.read(training.epoch(training.state)))
    states, seconds = {name: t.state for name, t in trainings.items()}, dict.fromkeys(trainings, 0.0)
    rows: Rows = []
    for k in tqdm(range(epochs + 1), desc="epochs", leave=False):
        for name, training in trainings.items():
            if seconds[name] > LIMIT:
                continue
            if k > 0:
                start = time.perf_counter()
                states[name] = training.epoch(states[name])
                jax.block_until_ready(training.read(states[name]))
                seconds[name] += time.perf_counter() - start
            loss, accuracy = map(float, judge(*training.read(states[name])))
            row = {"training": name, "epoch": k, "seconds": seconds[name], "held-out loss": loss, "accuracy": accuracy}
            rows.append(row)
    return rows


def shown(rows: Rows) -> Rows:
    """Training by training, a few epochs and the last."""
    trainings = dict.fromkeys(row["training"] for row in rows)
    last = {name: max(row["epoch"] for row in rows if row["training"] == name) for name in trainings}
    few = [row for row in rows if row["epoch"] in (*SHOWN, last[row["training"]])]
    return sorted(few, key=lambda row: list(trainings).index(row["training"]))


def time_to_loss(rows: Rows) -> Rows:
    first, least = rows[0]["held-out loss"], min(row["held-out loss"] for row in rows)
    targets = {f"{share:.0%} of the decrease": first - share * (first - least) for share in (0.5, 0.9, 0.99)}
    return time_to(rows, "training", "held-out loss", targets)


def time_to(rows: Rows, label: str, quality: str, targets: dict[str, float]) -> Rows:
    """For each contestant and target, the least seconds at which the quality is met."""
    table: Rows = []
    for title, target in targets.items():
        row: dict[str, Any] = {"target": title, quality: target}
        for name in dict.fromkeys(row[label] for row in rows):
            mine = [r for r in rows if r[label] == name and isinstance(r["seconds"], float)]
            met = [r["seconds"] for r in mine if r[quality] <= target]
            row[f"{name}, s"] = min(met) if met else "not met" if mine else "not installed"
        table.append(row)
    return table


# --- Without ----------------------------------------------------------------------------------------------------------


def ours(problem: Patches, epochs: int) -> np.ndarray:
    options: dict[str, Any] = dict(l1=L1, l2=PLAIN_L2, tol=0.0, batch_size=PLAIN_BATCH, random_state=0)
    learner = DictionaryLearning(len(problem.D), max_iter=epochs, init=problem.D.astype(np.float32), **options)
    return learner.fit(problem.X.astype(np.float32)).dictionary_


@ignore_warnings(category=ConvergenceWarning)
def by_scikit_learn(problem: Patches, epochs: int) -> np.ndarray:
    options: dict[str, Any] = dict(alpha=L1, batch_size=PLAIN_BATCH, tol=0.0, max_no_improvement=None, random_state=0)
    options |= dict(fit_algorithm="lars", dict_init=problem.D.copy())
    return MiniBatchDictionaryLearning(len(problem.D), max_iter=epochs, **options).fit(problem.X).components_


def by_spams(spams: Any, problem: Patches, batches: int) -> np.ndarray:
    X, D = np.asfortranarray(problem.X.T), np.asfortranarray(problem.D.T)
    options: dict[str, Any] = dict(lambda1=L1, lambda2=PLAIN_L2, mode=2, batchsize=PLAIN_BATCH, verbose=False)
    return spams.trainDL(X, D=D, iter=batches, numThreads=bl.kernels.threads(), **options).T


def without_task(quick: bool, repeats: int) -> Rows:
    """The objective on held-out patches after each budget."""
    samples, atoms = (768, 64) if quick else (5120, 256)
    both = patches(samples + 1000, atoms)
    problem, held_out = Patches(both.X[:samples], both.D), jnp.asarray(both.X[samples:])
    spams, per_epoch = rival("spams"), samples // PLAIN_BATCH
    calls: dict[tuple[str, float], Callable[[], Any]] = {}
    for epochs in (1, 5) if quick else (1, 2, 5, 10, 20):
        calls["bilevel", epochs] = lambda epochs=epochs: ours(problem, epochs)
        if epochs <= 5:
            calls["scikit-learn", epochs] = lambda epochs=epochs: by_scikit_learn(problem, epochs)
        if spams is not None:
            calls["SPAMS", epochs] = lambda epochs=epochs: by_spams(spams, problem, epochs * per_epoch)
    timed = interleaved({f"{name} {epochs}": call for (name, epochs), call in calls.items()}, repeats)

    @jax.jit
    def judge(D: Any) -> Any:
        coding = bl.objectives.SparseCoding(D, L1, PLAIN_L2)
        return coding(bl.argmin(coding, held_out, throw=False).params, held_out) / len(held_out)

    rows: Rows = []
    for name, epochs in sorted(calls, key=lambda call: (call[0].lower(), call[1])):
        t = timed[f"{name} {epochs}"]
        objective = float(judge(jnp.asarray(t.result, jnp.float64)))
        row = {"learner": name, "epochs": epochs, "seconds": t.median, "spread": t.spread}
        rows.append({**row, "first run, s": t.first, "held-out objective": objective})
    if spams is None:
        columns = ("epochs", "spread", "first run, s", "held-out objective")
        rows.append({"learner": "SPAMS", "seconds": "not installed", **dict.fromkeys(columns)})
    start = {"learner": "the start", "epochs": 0, "held-out objective": float(judge(jnp.asarray(problem.D)))}
    return [{**dict.fromkeys(rows[0]), **start}, *rows]


def time_to_objective(rows: Rows) -> Rows:
    rows = [row for row in rows if row["learner"] != "the start"]
    least = min(row["held-out objective"] for row in rows if row["held-out objective"] is not None)
    targets = {f"within {share:.1%}": (1 + share) * least for share in (0.05, 0.02, 0.01, 0.005)}
    return time_to(rows, "learner", "held-out objective", targets)


def run(quick: bool) -> Results:
    tables = tabulate(
        "dictionary training",
        {
            "Task-driven epochs": lambda: with_task(5 if quick else 60),
            "Plain budgets": lambda: without_task(quick, 1 if quick else 3),
        },
    )
    figures = {
        "With a task": curves(
            tables["Task-driven epochs"], "training", "held-out loss", "Even or odd: 100 atoms and a linear head"
        ),
        "Without a task": curves(
            tables["Plain budgets"], "learner", "held-out objective", "A dictionary for patches of a photograph"
        ),
    }
    tables = {
        "Seconds to a held-out loss with a task": time_to_loss(tables["Task-driven epochs"]),
        "Seconds to a held-out objective without a task": time_to_objective(tables["Plain budgets"]),
        **tables,
        "Task-driven epochs": shown(tables["Task-driven epochs"]),
    }
    return Results(tables, figures, "32 bits, judged in 64")


def curves(rows: Rows, label: str, quality: str, title: str) -> "Figure":
    """Quality against seconds."""
    figure, ax = plt.subplots(figsize=(7, 4.3), layout="constrained")
    others = iter(zip("s^DvPX", (BLUE, GREEN, PURPLE, SKY, ORANGE, BLACK), strict=True))
    for name in dict.fromkeys(row[label] for row in rows):
        mine = [row for row in rows if row[label] == name and isinstance(row["seconds"], float) and row["seconds"] > 0]
        if mine:
            marker, color = next(others)
            options: dict[str, Any] = dict(color=VERMILION, marker="o", lw=2.5, zorder=3)
            options = options if name == "bilevel" else dict(color=color, marker=marker)
            ax.plot([r["seconds"] for r in mine], [r[quality] for r in mine], ms=4, label=name, **options)
    ax.set(xscale="log", xlabel="seconds of training", ylabel=quality, title=title)
    tidy(ax)
    plain_ticks(ax.xaxis)
    figure.legend(loc="outside lower center", ncols=2 if label == "training" else 3, frameon=False)
    return figure
