"""The model of `weak_scaling`: what a step computes, moves and sends, and what follows for assumed accelerators."""

import math
from typing import NamedTuple

import numpy as np

from benchmarks.results import Rows

#: Bytes of a number.
WIDTH = 4
#: What is extrapolated to.
MANY, SAMPLES = (8, 64, 512), (256, 4096)


class Problem(NamedTuple):
    """p atoms, m features, K outputs of the task; s entries of a code in use; steps of the coder of accelerators."""

    atoms: int
    features: int
    classes: int
    support: float
    steps: int

    @property
    def variables(self) -> int:
        return self.atoms * (self.features + self.classes)

    def reduced(self, devices: int) -> int:
        """How many numbers the devices add up, once a step: gradient, loss, and four that each says of itself."""
        return self.variables + 1 + 4 * devices


class Cost(NamedTuple):
    """An amount (operations, bytes) a step, and a sample."""

    step: float
    sample: float

    def of(self, samples: float) -> float:
        return self.step + samples * self.sample


def operations(problem: Problem, on_cpu: bool) -> dict[str, tuple[str, Cost]]:
    """The terms of a step's floating-point operations: a formula, and its value."""
    p, m, K, s, k = problem
    shared = {
        "Gram matrix D Dᵀ": ("2 p² m", Cost(2 * p**2 * m, 0)),
        "correlations X Dᵀ": ("2 B p m", Cost(0, 2 * p * m)),
        "task, there and back": ("6 B p K", Cost(0, 6 * p * K)),
        "Adam and projection": ("≈ 20 p (m + K)", Cost(20 * problem.variables, 0)),
    }
    if on_cpu:
        own = {
            "codes: Cholesky factor on the support": ("B s³ / 3", Cost(0, s**3 / 3)),
            "codes: solution, then correlations anew": ("B (2 s² + 2 s p)", Cost(0, 2 * s**2 + 2 * s * p)),
            "adjoint: factor and solution": ("B (s³ / 3 + 2 s²)", Cost(0, s**3 / 3 + 2 * s**2)),
            "adjoint: what is on the support": ("B (2 s p + 2 s m)", Cost(0, 2 * s * (p + m))),
            "gradient β rᵀ − c (Dᵀβ)ᵀ": ("6 B s m", Cost(0, 6 * s * m)),
        }
    else:
        own = {
            "codes: k gradient steps": ("2 B k p²", Cost(0, 2 * k * p**2)),
            "adjoint and gradient, as matrix products": ("10 B p m", Cost(0, 10 * p * m)),
        }
    return shared | own


def total(terms: dict[str, tuple[str, Cost]]) -> Cost:
    return Cost(sum(cost.step for _, cost in terms.values()), sum(cost.sample for _, cost in terms.values()))


def traffic(problem: Problem) -> dict[str, tuple[str, Cost]]:
    """The terms of the bytes that a step moves, each array counted once for each time that it is read or written."""
    p, m, w = problem.atoms, problem.features, WIDTH
    return {
        "samples": ("w B m", Cost(0, w * m)),
        "starts, correlations, codes, their slopes": ("7 w B p", Cost(0, 7 * w * p)),
        "Gram matrix": ("2 w p²", Cost(2 * w * p**2, 0)),
        "variables, Adam's memory, gradients": ("9 w p (m + K)", Cost(9 * w * problem.variables, 0)),
    }


class Link(NamedTuple):
    """Bytes a second between neighbors, and seconds a hop."""

    bandwidth: float
    latency: float

    def all_reduce(self, numbers: int, devices: int, ring: bool = False) -> float:
        """Seconds until all have the sum: c(n) in `weak_scaling`."""
        if devices == 1:
            return 0.0
        hops = devices - 1 if ring else math.ceil(math.log2(devices))
        return 2 * (devices - 1) / devices * WIDTH * numbers / self.bandwidth + 2 * hops * self.latency


class Accelerator(NamedTuple):
    """Operations a second that a step attains, and bytes a second of its memory."""

    rate: float
    memory: float

    def seconds(self, problem: Problem, samples: int) -> float:
        """A step without communication takes as long as the slower of computing and moving."""
        moved = total(traffic(problem)).of(samples) / self.memory
        return max(total(operations(problem, on_cpu=False)).of(samples) / self.rate, moved)


def efficiency(seconds: float, communication: float) -> float:
    return seconds / (seconds + communication)


#: Assumed, all of them.
ACCELERATOR = Accelerator(rate=1e13, memory=1e12)
LINKS = {
    "within a machine": Link(bandwidth=1e11, latency=5e-6),
    "fast network": Link(bandwidth=1e10, latency=2e-5),
    "plain network": Link(bandwidth=1e9, latency=1e-4),
}


def fit(seconds: dict[int, float]) -> Cost:
    """t₀ and t₁ of t(B) = t₀ + B t₁, by least squares of relative errors; t₀ = 0 where there is one B alone."""
    samples, found = np.array(list(seconds)), np.array(list(seconds.values()))
    columns = np.stack([np.ones(len(samples)), samples], axis=1)[:, (0, 1) if len(samples) > 1 else (1,)]
    solution = np.linalg.lstsq(columns / found[:, None], np.ones(len(found)), rcond=None)[0]
    return Cost(*([0.0] * (2 - len(solution))), *map(float, solution))


# --- Tables -----------------------------------------------------------------------------------------------------------


def work(problem: Problem, samples: int) -> Rows:
    terms = {name: (unit, formula, cost) for unit, found in (
        ("operations", operations(problem, on_cpu=True)), ("bytes", traffic(problem))
    ) for name, (formula, cost) in found.items()}  # fmt: skip
    rows: Rows = [
        {"what": name, "unit": unit, "formula": formula, f"at B = {samples}": float(cost.of(samples))}
        for name, (unit, formula, cost) in terms.items()
    ]
    for unit, found in (("operations", operations(problem, on_cpu=True)), ("bytes", traffic(problem))):
        rows.append({"what": "sum", "unit": unit, "formula": "", f"at B = {samples}": float(total(found).of(samples))})
    numbers = {"what": "all-reduce", "unit": "bytes", "formula": "w (p m + p K + 1 + 4 n), n = 8"}
    rows.append({**numbers, f"at B = {samples}": float(WIDTH * problem.reduced(8))})
    return rows


def assumptions() -> Rows:
    rows: Rows = [
        {"assumed": "an accelerator", "": "operations a second that a step attains", "value": ACCELERATOR.rate},
        {"assumed": "an accelerator", "": "bytes a second of its memory", "value": ACCELERATOR.memory},
    ]
    for name, link in LINKS.items():
        rows.append({"assumed": name, "": "W, bytes a second between neighbors", "value": link.bandwidth})
        rows.append({"assumed": name, "": "a, seconds a hop", "value": link.latency})
    return rows


def extrapolated(problem: Problem, large: Problem, kept: dict[int, float]) -> Rows:
    """`kept`: seconds of bookkeeping, by the number of samples on a device."""
    rows = []
    for chosen in (problem, large):
        for name, link in LINKS.items():
            for samples in SAMPLES:
                seconds = ACCELERATOR.seconds(chosen, samples)
                trees, rings = (
                    {n: efficiency(seconds, link.all_reduce(chosen.reduced(n), n, ring)) for n in MANY}
                    for ring in (False, True)
                )
                rows.append(
                    {
                        "p × m, K": f"{chosen.atoms} × {chosen.features}, {chosen.classes}",
                        "link": name,
                        "samples on each": samples,
                        "a step alone, ms": 1e3 * seconds,
                        **{f"on {n}": f"{trees[n]:.1%}" for n in MANY},
                        f"on {MANY[-1]}, latency of a ring": f"{rings[MANY[-1]]:.1%}",
                        "bookkeeping, in steps": kept[samples] / seconds,
                    }
                )
    return rows
