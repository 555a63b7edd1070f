"""How long the energy auto-encoder takes, by this library and by PyUNLocBoX, to the objective that the latter reaches.

It learns 200 atoms, a decoder D and an encoder E with λd = λe = 10, from the
1764 non-overlapping 12 × 12 patches of Barbara (512 × 512, gray, in [0, 1]), in 64 bits:

    min over Z, D, E of  ½ λd ‖X − Z D‖² + ½ λe ‖Z − X E‖² + ‖Z‖₁,
    atoms and rows of the encoder, one a pixel, in the unit ball.

Both alternate between Z, D and E from the same random start, twenty rounds (quick: PyUNLocBoX takes one). It takes
accelerated proximal gradient steps (its `forward_backward` with FISTA, steps of one over the Lipschitz constant, inner
`rtol` 1e-3), as its users write it. It runs once, in the same process, between runs of this library, whose seconds are
medians without compilation. The objective is computed by one and the same function for both. Barbara comes with
`sporco`.
"""

import importlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator
from tqdm import tqdm

import bilevel as bl
from benchmarks.figures import plain_ticks, tidy
from benchmarks.results import Results, Rows
from bilevel.datasets import extract_patches, load_photograph
from bilevel.objectives import Autoencoder, EnergyAutoencoder
from bilevel.plots.colors import GRAY, VERMILION

#: The most rounds that this library may take to the objective of the other.
PATIENCE = 60
if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZE, PATCH, ATOMS, WEIGHT, ROUNDS, RTOL = 512, 12, 200, 10.0, 20, 1e-3


def patches() -> np.ndarray:
    """Barbara's, one a row."""
    image = load_photograph("barbara", size=SIZE, dtype=np.float64)
    return extract_patches(image, PATCH).X


def start(X: np.ndarray, seed: int = 0) -> Autoencoder:
    """No codes, random unit atoms and encoder rows."""
    random, features = np.random.default_rng(seed), X.shape[1]
    unit = lambda rows: jnp.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    codes = jnp.zeros((len(X), ATOMS))
    return Autoencoder(codes, unit(random.normal(size=(ATOMS, features))), unit(random.normal(size=(features, ATOMS))))


class Run(NamedTuple):
    """What came out; the objective at the start and after every block step; seconds at the same moments."""

    end: Autoencoder
    objective: np.ndarray
    seconds: np.ndarray


@eqx.filter_jit
def alternate(objective: EnergyAutoencoder, X: Any, init: Autoencoder, rounds: int) -> bl.Solution:
    # A tolerance that is not met, so that all rounds are taken.
    return bl.argmin(objective, X, init=init, solver=bl.solvers.BlockAlternation(1e-12, rounds), throw=False)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    result = jax.block_until_ready(call())
    return time.perf_counter() - begin, result


def by_pyunlocbox(X: np.ndarray, init: Autoencoder, energy: Callable[[Autoencoder], float], rounds: int) -> Run:
    """Samples, codes, atoms and encoder in columns, as it wants them."""
    functions, solvers, acceleration = (
        importlib.import_module(f"pyunlocbox.{name}") for name in ("functions", "solvers", "acceleration")
    )
    data = X.T.copy()
    Z, D, E = (np.array(x).T.copy() for x in (init.codes, init.dictionary, init.encoder))
    ball = functions.proj_b2(epsilon=1.0)

    def solve(forward: Any, adjoint: Any, target: np.ndarray, norm: float, g: Any, at: np.ndarray) -> np.ndarray:
        """½ λ ‖A at − target‖² + g, with λ = 10 and ‖A‖ = norm."""
        f = functions.norm_l2(A=forward, At=adjoint, y=target, lambda_=WEIGHT / 2)
        solver = solvers.forward_backward(step=1 / (WEIGHT * norm**2), accel=acceleration.fista())
        return solvers.solve([f, g], at.copy(), solver, rtol=RTOL, verbosity="NONE")["sol"]

    def encode() -> np.ndarray:
        both = np.vstack([D, np.eye(ATOMS)])
        target = np.vstack([data, E @ data])
        norm = np.linalg.norm(both, 2)
        return solve(lambda z: both @ z, lambda r: both.T @ r, target, norm, functions.norm_l1(), Z)

    run, spent = Run(init, np.array([]), np.array([])), 0.0
    objective, seconds = [energy(init)], [0.0]
    for _ in tqdm(range(rounds), desc="PyUNLocBoX"):
        for block in "ZDE":
            begin = time.perf_counter()
            if block == "Z":
                Z = encode()
            elif block == "D":
                norm = np.linalg.norm(Z, 2)
                D = solve(lambda d, Z=Z: d @ Z, lambda r, Z=Z: r @ Z.T, data, norm, ball, D)
            else:
                norm = np.linalg.norm(data, 2)
                E = solve(lambda e: e @ data, lambda r: r @ data.T, Z, norm, ball, E)
            spent += time.perf_counter() - begin
            run = run._replace(end=Autoencoder(*(jnp.asarray(x.T) for x in (Z, D, E))))
            objective.append(energy(run.end))
            seconds.append(spent)
    return run._replace(objective=np.array(objective), seconds=np.array(seconds))


def history(solution: bl.Solution) -> np.ndarray:
    """The objective at the start and after every block step."""
    return np.concatenate([[float(solution.stats["objective_at_start"])], np.ravel(solution.stats["objective"])])


def rises(objective: np.ndarray) -> float:
    """The largest relative rise of a block step; negative where all fall."""
    return float(np.max(np.diff(objective) / np.abs(objective[:-1])))


def facts(name: str, run: Run) -> dict[str, str]:
    largest = lambda rows: float(np.max(np.linalg.norm(np.asarray(rows), axis=1)))
    return {
        "solver": name,
        "seconds": f"{run.seconds[-1]:.2f}",
        "objective": f"{run.objective[-1]:.2f}",
        "largest relative rise": f"{rises(run.objective):.1e}",
        "largest atom - 1": f"{largest(run.end.dictionary) - 1:.1e}",
        "largest encoder row - 1": f"{largest(run.end.encoder) - 1:.1e}",
        "nonzero codes": f"{100 * np.mean(np.asarray(run.end.codes) != 0):.1f} %",
    }


def draw(runs: dict[str, Run]) -> "Figure":
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", sharey=True)
    for (name, run), color in zip(runs.items(), (VERMILION, GRAY), strict=False):
        axes[0].plot(np.arange(1, len(run.objective)) / 3, run.objective[1:], color=color, lw=2, label=name)
        axes[1].plot(run.seconds[1:], run.objective[1:], color=color, lw=2, label=name)
    figure.suptitle("The energy auto-encoder on Barbara")
    axes[0].set(xlabel="rounds", ylabel="objective", yscale="log")
    axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[1].set(xlabel="seconds", xscale="log")
    axes[0].legend(frameon=False)
    for ax in axes:
        tidy(ax)
    plain_ticks(axes[0].yaxis)
    plain_ticks(axes[1].xaxis)
    return figure


def measure(repeats: int, rounds: int) -> tuple[dict[str, Rows], dict[str, Run]]:
    X = patches()
    data, init = jnp.asarray(X), start(X)
    problem = EnergyAutoencoder(ATOMS, WEIGHT, WEIGHT)
    value = eqx.filter_jit(lambda params: problem(params, data))
    energy = lambda params: float(value(params))
    ours = lambda rounds: timed(lambda: alternate(problem, data, init, rounds))
    first, solution = ours(ROUNDS)
    before = [ours(ROUNDS)[0] for _ in range(repeats)]
    theirs = by_pyunlocbox(X, init, energy, rounds)
    goal = theirs.objective[-1]
    after = [ours(ROUNDS)[0] for _ in range(repeats)]
    objective = history(solution)
    # A round takes about as long as another.
    mine = Run(solution.params, objective, np.linspace(0, float(np.median(before + after)), len(objective)))
    # The first round after which the objective is at most theirs, timed by itself.
    ends = history(ours(PATIENCE)[1])[3::3]
    if not np.any(ends <= goal):
        raise RuntimeError(f"After {PATIENCE} rounds the objective is {ends[-1]:.2f}; PyUNLocBoX reached {goal:.2f}.")
    reached = 1 + int(np.argmax(ends <= goal))
    ours(reached)
    to_theirs = float(np.median([ours(reached)[0] for _ in range(2 * repeats)]))
    race = {
        "PyUNLocBoX, seconds": f"{theirs.seconds[-1]:.1f}",
        "its objective": f"{goal:.2f}",
        "bilevel, rounds to it": str(reached),
        "seconds to it": f"{to_theirs:.3f}",
        "ratio": f"{theirs.seconds[-1] / to_theirs:.0f}",
        "first call, with compilation": f"{first:.1f}",
    }
    runs = {"bilevel": mine, "PyUNLocBoX": theirs}
    tables = {"To the same objective": [race], "At the end": [facts(name, run) for name, run in runs.items()]}
    return tables, runs


def run(quick: bool) -> Results:
    if not all(map(importlib.util.find_spec, ("sporco", "pyunlocbox"))):
        rows: Rows = [{"solver": "PyUNLocBoX, on Barbara of sporco", "seconds": "not installed"}]
        return Results({"To the same objective": rows}, {}, "64 bits")
    tables, runs = measure(1 if quick else 3, 1 if quick else ROUNDS)
    return Results(tables, {"Objective against rounds and seconds": draw(runs)}, "64 bits")
