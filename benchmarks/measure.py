"""What the benchmarks of speed share: real patches, the gap by which codes are judged, and interleaved timings."""

import importlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from sklearn.datasets import load_sample_image
from sklearn.feature_extraction.image import extract_patches_2d

ATOMS, L1, L2 = 256, 0.15, 0.01


class Patches(NamedTuple):
    """Patches of a photograph as rows, without mean and of unit norm, and a dictionary of noisy patches."""

    X: np.ndarray
    D: np.ndarray


def patches(samples: int, atoms: int = ATOMS, seed: int = 0) -> Patches:
    """12 × 12 patches of scikit-learn's photograph of a Chinese temple (CC BY 2.0, see its documentation)."""
    image = load_sample_image("china.jpg").mean(axis=2) / 255
    rows = extract_patches_2d(image, (12, 12), max_patches=2 * (samples + atoms), random_state=seed)
    rows = rows.reshape(len(rows), -1)
    rows -= rows.mean(axis=1, keepdims=True)
    rows = rows[np.linalg.norm(rows, axis=1) > 0.2][: samples + atoms]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert len(rows) == samples + atoms
    return Patches(rows[atoms:], unit(rows[:atoms] + 0.05 * np.random.default_rng(seed).normal(size=(atoms, 144))))


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def moved(D: np.ndarray, by: float = 1e-2, seed: int = 1) -> np.ndarray:
    """A dictionary one outer step away: a relative change of `by`."""
    return unit(D + by * unit(np.random.default_rng(seed).normal(size=D.shape)))


def stepsize_of(D: np.ndarray) -> float:
    """1 / L, a Python number, as JAXopt wants it: a little less, so that it also serves the dictionaries nearby."""
    return 0.95 / (float(np.linalg.norm(D, 2)) ** 2 + L2)


def relative_gaps(problem: Patches, codes: Any, l1: float = L1, l2: float = L2) -> np.ndarray:
    """The duality gap of each sample over its objective, in 64 bits:  Σ_j h(c_j) + h*(q_j) − c_j q_j,  q = D (x − Dᵀc),
    with h = l1 |·| + ½ l2 (·)² and its conjugate h* = max(|·| − l1, 0)² / (2 l2)."""
    C = np.asarray(codes, np.float64)
    residual = problem.X - C @ problem.D
    q = residual @ problem.D.T
    h = l1 * np.abs(C) + 0.5 * l2 * C**2
    gap = np.sum(h + np.maximum(np.abs(q) - l1, 0) ** 2 / (2 * l2) - C * q, axis=1)
    return gap / (0.5 * np.sum(residual**2, axis=1) + np.sum(h, axis=1))


def rival(module: str) -> Any:
    """A module that need not be installed, or None."""
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


def resident(line: str) -> float | None:
    """GiB of memory that this process has now ("VmRSS") or had at most ("VmHWM"), by Linux, None elsewhere.

    `getrusage` would count what its parent had used before it started, too."""
    status = Path("/proc/self/status")
    found = re.search(rf"{line}:\s*(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) / 2**20 if found else None


def own_process(module: str, call: str) -> dict[str, Any]:
    """The row that a call of a module's function yields in a process of its own, without the memory of this one."""
    code = f"import json; from {module} import *; print(json.dumps({call}))"
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    options: dict[str, Any] = dict(cwd=Path(__file__).parents[1], env=environment, capture_output=True, text=True)
    return json.loads(subprocess.run([sys.executable, "-c", code], check=True, **options).stdout.splitlines()[-1])


def forget_peak() -> None:
    """Let "VmHWM" begin anew, on Linux: what went before may have taken more for a moment."""
    references = Path("/proc/self/clear_refs")
    if references.exists():
        references.write_text("5")


class Timed(NamedTuple):
    """Seconds of the first call, which compiles, and of the others; what the last one returned."""

    first: float
    seconds: list[float]
    result: Any

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    @property
    def spread(self) -> str:
        """Half the distance between the quartiles, as a share of the median."""
        if len(self.seconds) == 1:
            return "one run"
        low, high = np.percentile(self.seconds, [25, 75])
        return f"± {(high - low) / (2 * self.median):.0%}"


def turns(count: int, k: int) -> list[int]:
    """Who comes when in round k: Williams's design. In `count` rounds each has every place once, and, for an even
    count, comes right after each of the others once, as what one leaves behind (spinning threads, full caches) weighs
    on the next."""
    zigzag = [i // 2 if i % 2 == 0 else count - 1 - i // 2 for i in range(count)]
    return [(i + k) % count for i in zigzag]


def interleaved(calls: Mapping[str, Callable[[], Any]], repeats: int, budget: float = 30.0) -> dict[str, Timed]:
    """Every call once, to compile and to warm up; then `repeats` rounds of all of them, in `turns`.

    Slow calls have fewer: what fits into `budget` seconds, but at least three, or two of what takes over 30 seconds."""

    def once(call: Callable[[], Any]) -> tuple[float, Any]:
        start = time.perf_counter()
        result = jax.block_until_ready(call())
        return time.perf_counter() - start, result

    first = {name: once(call) for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    least = lambda taken: max(2 if taken > 30 else 3, int(budget / max(taken, 1e-6)))
    rounds = {name: min(repeats, least(taken)) for name, (taken, _) in first.items()}
    names = list(calls)
    for k in range(repeats):
        for name in (names[i] for i in turns(len(names), k)):
            if k < rounds[name]:
                seconds[name].append(once(calls[name])[0])
    return {name: Timed(first[name][0], seconds[name], first[name][1]) for name in calls}
