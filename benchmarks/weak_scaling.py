"""How a training step grows with the number of devices at a fixed number of samples on each: a model, and measurements.

The step is that of task-driven dictionary learning: B samples on each of n devices, m features, p atoms, K outputs of
the task, codes with s entries in use, numbers of w bytes. Per device it costs

    t(B) = t₀ + B t₁,        t_n(B) = t(B) + c(n),
    c(n) = 2 (n − 1)/n · R w / W + 2 ⌈log₂ n⌉ a,

with t₀ for what every device does whatever its samples (Gram matrix, optimizer), t₁ for a sample, and c(n) for the one
all-reduce of R = p m + p K + 1 + 4 n numbers: its bandwidth term is that of a ring, with W bytes a second and link, its
latency that of a tree, with a seconds a hop; a ring's would be 2 (n − 1) a. The efficiency is t(B) / t_n(B).

What is measured: steps and all-reduces on this machine, 12 × 12 patches of a photograph in 32 bits, with Adam and
warm starts, medians over epochs of four steps. The devices are those of XLA's host platform, and **share this
machine's cores**. So time must grow with their number, and what is seen is whether the whole work grows faster than
they do: the efficiency here is n t(B) / t_n(B), against the model's n t(B) / (n t(B) + c(n)) with c(n) as it was
measured. Where one device leaves cores idle, several take less than their number times as long, and the efficiency is
above 1. Other programs may have shared the machine: fastest and slowest epochs tell how far times scatter. There is
no speed-up of a cluster to be seen here, and none is claimed.

What is extrapolated to accelerators is the model, with **assumed** rates, bandwidths and latencies, which stand in a
table: round numbers, not those of any product. Nothing was run on them. There codes come from gradient steps, k of
them, as many as were counted here from warm starts; the small systems on supports, dispatch, reading of data, waiting
for the slowest device and overlap of communication with work are left out.

Beside the devices each process keeps the books of its own samples: their order in an epoch, and which of them is where.
This does not grow with the number of processes; it is measured here on its own, for a process with one of n devices.
The extrapolated efficiency leaves it out, as it runs while devices compute; a column has it in units of the step, by
this machine's clock. Below 1 it hides behind the step, above the books set the pace.

Two more things that a step may wait for are measured in this process, on one device: reading of batches, by a step that
is fed against one in a compiled loop, with the same data; and checkpoints, which are written in the background, by how
long training stops for each.

The compiler counts what its program does outside of the compiled loops, which are foreign calls to it; of bytes it
counts inputs and outputs of every operation, the model those of whole arrays where they must be read or written.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import bilevel as bl
from benchmarks.figures import plain_ticks, tidy
from benchmarks.measure import ATOMS, L1, L2, interleaved, moved, patches
from benchmarks.results import Results, Rows, tabulate
from benchmarks.scaling_model import (
    ACCELERATOR,
    LINKS,
    MANY,
    SAMPLES,
    Problem,
    assumptions,
    efficiency,
    extrapolated,
    fit,
    operations,
    total,
    traffic,
    work,
)
from benchmarks.scaling_worker import STEPS, WARM_UP, trainer
from bilevel.outer.saving import Saver
from bilevel.plots.colors import series
from bilevel.scale import Batches

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEVICES, PROCESSES, PER_DEVICE = (1, 2, 4, 8), (2, 4), (256, 1024)
FEATURES = 144

# --- Measurements -----------------------------------------------------------------------------------------------------


def workers(devices: int, processes: int, **job: Any) -> dict[str, Any]:
    """What the first of several processes finds, with so many devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
    }
    jobs = [
        json.dumps(job | {"devices": devices, "processes": processes, "process": i, "port": port})
        for i in range(processes)
    ]
    options: dict[str, Any] = dict(cwd=Path(__file__).parents[1], env=environment, text=True)
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.scaling_worker", job],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **options,
        )
        for job in jobs
    ]
    outputs = [process.communicate() for process in running]
    for process, (_, errors) in zip(running, outputs, strict=True):
        if process.returncode:
            raise RuntimeError(f"A process of the benchmark failed:\n{errors}")
    return json.loads(outputs[0][0].splitlines()[-1])


def bookkeeping(per_device: int, devices: int) -> float:
    """Seconds that a process with one of so many devices spends on the samples of a step: their places in the order,
    amortized over an epoch of four batches; their slots; and whether the last batch had them, too."""
    batches, key = Batches(4 * per_device * devices, per_device * devices, devices), jax.random.key(0)
    slots = batches.layout(devices)[:per_device]
    order = batches.order_of(key, 0, [0])
    rows = lambda place: order[np.asarray(batches.places(place, slots))]
    last = rows(0)
    timed = interleaved(
        {
            "order": lambda: batches.order_of(key, 1, [0]),
            "rest": lambda: np.isin(rows(1), last).any(),
        },
        repeats=5,
    )
    return timed["order"].median / batches.steps_per_epoch + timed["rest"].median


def feeding(samples: int, epochs: int, atoms: int) -> Rows:
    """The same steps in a compiled loop, and fed with batches from memory and from a file."""
    X, D = (x.astype(np.float32) for x in patches(STEPS * samples, atoms))
    labels, mesh = np.sign(X[:, 0]), jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
    rows: Rows = []
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder, "X.npy"), X)
        mapped = np.load(Path(folder, "X.npy"), mmap_mode="r")
        ways = {
            "in a compiled loop": (None, X),
            "fed from memory, to a mesh of one device": (mesh, X),
            "fed from a memory map": (None, mapped),
        }
        for name, (where, data) in ways.items():
            times = [0.0]
            trainer(D, samples, where).fit(
                (data, labels),
                STEPS * (WARM_UP + epochs),
                every=STEPS,
                callback=lambda *_, times=times: times.append(time.perf_counter()),
            )
            seconds = np.diff(times[WARM_UP:]) / STEPS
            rows.append(
                {
                    "steps": name,
                    "samples of a batch": samples,
                    "a step, ms": 1e3 * float(np.median(seconds)),
                    "fastest and slowest epoch, ms": f"{1e3 * min(seconds):.3g}, {1e3 * max(seconds):.3g}",
                }
            )
    return rows


def saving(samples: int, epochs: int, atoms: int) -> Rows:
    """For how long training stops to save: what is saved is copied, and the last save waited for."""
    X, D = (x.astype(np.float32) for x in patches(STEPS * samples, atoms))
    stops: list[float] = []
    look = Saver.look

    def timed(*args: Any) -> None:
        start = time.perf_counter()
        look(*args)
        stops.append(time.perf_counter() - start)

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(Saver, "look", timed):
        training = trainer(D, samples, jax.make_mesh((1,), ("data",), devices=jax.devices()[:1]))
        training.fit((X, np.sign(X[:, 0])), STEPS * epochs, every=STEPS, checkpoint=folder)
        last = max(Path(folder).glob("[0-9]*"), key=lambda path: int(path.name))
        size = sum(path.stat().st_size for path in last.rglob("*") if path.is_file())
    return [
        {
            "samples": STEPS * samples,
            "megabytes of a checkpoint": 1e-6 * size,
            "checkpoints": len(stops),
            "training stops, ms": 1e3 * float(np.median(stops)),
            "shortest and longest, ms": f"{1e3 * min(stops):.3g}, {1e3 * max(stops):.3g}",
        }
    ]


def steps_elsewhere(atoms: int) -> int:
    """Gradient steps from warm starts, by the coder that runs where there is no compiled loop."""
    X, D = (jnp.asarray(x, jnp.float32) for x in patches(256, atoms))
    coder = bl.solvers.SparseCoder(kernel=False)
    codes = bl.argmin(bl.objectives.SparseCoding(D, L1, L2), X, solver=coder).params
    nearby = bl.objectives.SparseCoding(jnp.asarray(moved(np.asarray(D)), jnp.float32), L1, L2)
    return int(bl.argmin(nearby, X, solver=coder, init=codes).stats["num_steps"])


def machine_rates(size: int) -> tuple[float, float]:
    """Operations a second of a matrix product, and bytes a second of a copy, read and written."""
    A, rows = jnp.ones((size, size), jnp.float32), np.ones(2**24, np.float32)
    product = jax.jit(lambda A: A @ A)
    timed = interleaved({"product": lambda: product(A), "copy": lambda: rows.copy()}, repeats=7)
    return 2 * size**3 / timed["product"].median, 2 * rows.nbytes / timed["copy"].median


# --- Tables -----------------------------------------------------------------------------------------------------------


class Measured(NamedTuple):
    """What the processes found, by their number of devices; of several processes, the seconds of an all-reduce."""

    devices: dict[int, dict[str, Any]]
    processes: dict[int, list[float]]

    def seconds(self, devices: int) -> dict[int, float]:
        steps = self.devices[devices]["steps"]
        return {int(size): float(np.median(found["seconds"])) for size, found in steps.items()}

    def all_reduce(self, devices: int) -> float:
        return float(np.median(self.devices[devices]["all_reduce"])) if devices > 1 else 0.0


def measure(quick: bool, atoms: int) -> Measured:
    sizes = PER_DEVICE
    numbers = Problem(atoms, FEATURES, 1, 0, 0).reduced(1)
    job: dict[str, Any] = dict(numbers=numbers, repeats=20 if quick else 200, epochs=2 if quick else 8, atoms=atoms)
    devices = {n: workers(n, 1, per_device=sizes, **job) for n in DEVICES}
    return Measured(devices, {k: workers(1, k, per_device=(), **job)["all_reduce"] for k in PROCESSES})


def compiled(problem: Problem, measured: Measured) -> Rows:
    """The compiler sees matrix products and elementwise operations; the loops over supports are foreign calls to it."""
    rows = []
    products = {k: v for k, v in operations(problem, on_cpu=True).items() if not k.startswith(("codes", "adj", "grad"))}
    for size, found in measured.devices[1]["steps"].items():
        rows.append(
            {
                "samples": int(size),
                "operations, compiler": found["flops"],
                "operations, model without foreign calls": float(total(products).of(int(size))),
                "bytes, compiler": found["bytes"],
                "bytes, model": float(total(traffic(problem)).of(int(size))),
            }
        )
    return rows


def constants(problem: Problem, measured: Measured, rates: tuple[float, float]) -> Rows:
    line = fit(measured.seconds(1))
    attained = total(operations(problem, on_cpu=True)).sample / line.sample
    values = {
        "s, entries of a code in use": problem.support,
        "k, gradient steps of the coder of accelerators, from warm starts": float(problem.steps),
        "t₀, a step whatever its samples, ms": 1e3 * line.step,
        "t₁, a sample, µs": 1e6 * line.sample,
        "operations a second that samples attain, 1e9": 1e-9 * attained,
        "operations a second of a large matrix product, 1e9": 1e-9 * rates[0],
        "bytes a second of a large copy, 1e9": 1e-9 * rates[1],
    }
    return [{"constant": name, "measured": value} for name, value in values.items()]


def shared_cores(measured: Measured) -> Rows:
    rows = []
    alone = measured.seconds(1)
    for devices in measured.devices:
        for size, seconds in measured.seconds(devices).items():
            times = measured.devices[devices]["steps"][str(size)]["seconds"]
            model = devices * alone[size] + measured.all_reduce(devices)
            rows.append(
                {
                    "devices": devices,
                    "samples on each": size,
                    "a step, ms": 1e3 * seconds,
                    "fastest and slowest epoch, ms": f"{1e3 * min(times):.3g}, {1e3 * max(times):.3g}",
                    "model, ms": 1e3 * model,
                    "efficiency": devices * alone[size] / seconds,
                    "of the model": devices * alone[size] / model,
                }
            )
    return rows


def reductions(problem: Problem, measured: Measured) -> Rows:
    kinds = [("devices of one process", n, found["all_reduce"]) for n, found in measured.devices.items()]
    kinds += [("processes over loopback", k, seconds) for k, seconds in measured.processes.items()]
    return [
        {
            "among": kind,
            "how many": count,
            "numbers": problem.reduced(1),
            "median, µs": 1e6 * float(np.median(seconds)),
            "percentiles 10 and 90, µs": ", ".join(f"{1e6 * np.percentile(seconds, q):.3g}" for q in (10, 90)),
        }
        for kind, count, seconds in kinds
    ]


def books(counts: Sequence[int]) -> Rows:
    found = {(n, samples): bookkeeping(samples, n) for n in counts for samples in SAMPLES}
    return [
        {"devices": n, "samples on each": samples, "a step, ms": 1e3 * seconds, "a sample, ns": 1e9 * seconds / samples}
        for (n, samples), seconds in found.items()
    ]


def draw(problem: Problem, measured: Measured) -> "Figure":
    """Left, measured on shared cores; right, the model on assumed accelerators."""
    figure, (here, there) = plt.subplots(1, 2, figsize=(11, 5.2), layout="constrained")
    alone, counts = measured.seconds(1), list(measured.devices)
    for index, size in enumerate(alone):
        color, marker = series(index)["color"], series(index)["marker"]
        points = [1e3 * measured.seconds(n)[size] for n in counts]
        model = [1e3 * (n * alone[size] + measured.all_reduce(n)) for n in counts]
        # Hollow, so that one does not hide the other.
        options: dict[str, Any] = dict(marker=marker, color=color, ls="none", mfc="none", mew=1.8, ms=8)
        here.plot(counts, points, label=f"{size} samples on each", **options)
        here.plot(counts, model, color=color, lw=1)
    here.set(title="measured: devices that share this machine's cores", ylabel="milliseconds a step", yscale="log")
    here.plot([], [], color="gray", lw=1, label="model: n t(B) + c(n)")
    here.margins(y=0.1)
    sizes, many = (64, 256, 1024, 4096), [2**i for i in range(10)]
    for index, size in enumerate(sizes):
        for (name, link), style in zip(LINKS.items(), (":", "-", "--"), strict=True):
            seconds = ACCELERATOR.seconds(problem, size)
            values = [efficiency(seconds, link.all_reduce(problem.reduced(n), n)) for n in many]
            label = f"{size} samples on each" if name == "fast network" else None
            there.plot(many, values, style, color=series(index)["color"], label=label)
    for (name, _), style in zip(LINKS.items(), (":", "-", "--"), strict=True):
        there.plot([], [], style, color="gray", label=name)
    there.set(title="not measured: the model, on assumed accelerators", ylabel="efficiency", ylim=(0, 1.02))
    there.axhline(1, color="silver", lw=0.8, zorder=0)
    for ax, ticks in ((here, counts), (there, many)):
        ax.set_xscale("log", base=2)
        ax.set(xlabel="devices", xticks=ticks, xticklabels=ticks)
        ax.minorticks_off()
        tidy(ax)
        # Below, where it hides no line.
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False)
    plain_ticks(here.yaxis)
    return figure


def run(quick: bool) -> Results:
    atoms = 64 if quick else ATOMS
    rates = machine_rates(512 if quick else 2048)
    measured = measure(quick, atoms)
    support = measured.devices[1]["steps"][str(PER_DEVICE[-1])]["support"]
    problem = Problem(atoms, FEATURES, 1, support, steps_elsewhere(atoms))
    large = Problem(4096, 1024, 100, support, problem.steps)
    kept, epochs = books((8,) if quick else MANY), 3 if quick else 10
    of_books = {row["samples on each"]: 1e-3 * row["a step, ms"] for row in kept}
    parts: dict[str, Callable[[], Rows]] = {
        "The work of a step": lambda: work(problem, PER_DEVICE[-1]),
        "What the compiler counts": lambda: compiled(problem, measured),
        "Constants of this machine": lambda: constants(problem, measured, rates),
        "Steps on devices that share these cores": lambda: shared_cores(measured),
        "All-reduces here": lambda: reductions(problem, measured),
        "Bookkeeping of a process with one device": lambda: kept,
        "Steps that are fed": lambda: feeding(PER_DEVICE[0], epochs, atoms),
        "Stops for checkpoints": lambda: saving(PER_DEVICE[0], epochs, atoms),
        "Assumed, not measured": assumptions,
        "Extrapolated efficiency": lambda: extrapolated(problem, large, of_books),
    }
    return Results(tabulate("weak_scaling", parts), {"Efficiency and devices": draw(problem, measured)}, "32 bits")
