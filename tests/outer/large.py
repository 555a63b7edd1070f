"""An epoch over data on disk, in a process of its own, whose memory is watched.

`python -m tests.outer.large SAMPLES FEATURES ATOMS BATCH` prints, as JSON, how large data and warm starts are, the
process's peak of anonymous memory in that epoch, and how much that is more than before it. Anonymous memory is what the
process cannot do without. Pages of mapped files, data and warm starts, are the kernel's, which takes them back when
there is need; `peak_with_files` counts them, too.
"""

import json
import sys
import tempfile
import threading
import time
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

import bilevel as bl
from tests.outer.programs import compile_cheaply
from tests.outer.scaled import problem


def memory() -> dict[str, int]:
    """Resident bytes, by their kind."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0][:-1]: int(words[1]) * 1024 for words in lines if words[0] in ("RssAnon:", "VmHWM:")}


class Watch:
    """The peak of anonymous memory, looked at every 20 ms, within a `with` block."""

    def __enter__(self) -> "Watch":
        self.before = self.peak = memory()["RssAnon"]
        self._going = True
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def _look(self) -> None:
        while self._going:
            self.peak = max(self.peak, memory()["RssAnon"])
            time.sleep(0.02)

    def __exit__(self, *_: object) -> None:
        self._going = False
        self._thread.join()


def write(path: Path, samples: int, features: int) -> np.memmap:
    array = np.lib.format.open_memmap(path, "w+", np.float32, (samples, features))
    rng = np.random.default_rng(0)
    for first in range(0, samples, 10_000):
        rows = array[first : first + 10_000]
        rows[...] = rng.normal(size=rows.shape, scale=features**-0.5)
    array.flush()
    del array
    return np.load(path, mmap_mode="r")


def main(samples: int, features: int, atoms: int, batch_size: int) -> None:
    compile_cheaply(pytest.MonkeyPatch())
    with tempfile.TemporaryDirectory() as folder:
        X = write(Path(folder, "x.npy"), samples, features)
        y = np.tanh(np.linspace(-2, 2, samples, dtype=np.float32))
        training = bl.Trainer(
            problem(atoms=atoms, features=features, dtype=np.float32),
            optax.adam(1e-3),
            batch_size,
            warm_start=Path(folder, "starts.npy"),
        )
        # Compilation, whose memory does not depend on how many samples there are.
        training.fit((X[: 2 * batch_size], y[: 2 * batch_size]), 1)
        start = time.monotonic()
        with Watch() as watch:
            fitted = training.fit((X, y), training.steps_per_epoch((X, y)))
        found = {
            "data": X.nbytes,
            "warm_starts": fitted.state.warm_start.nbytes,
            "peak": watch.peak,
            "growth": watch.peak - watch.before,
            "peak_with_files": memory()["VmHWM"],
            "steps": len(fitted.history["loss"]),
            "seconds": time.monotonic() - start,
        }
    print(json.dumps(found))


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", False)
    main(*map(int, sys.argv[1:]))
