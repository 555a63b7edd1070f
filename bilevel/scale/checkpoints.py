"""What is saved of a training, how often, and how much of it is kept."""

import json
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bilevel.scale.rows import Rows

#: The version of what is written here. What is newer is refused.
FORMAT = 1


class CheckpointError(RuntimeError):
    """A checkpoint that can't be written or read; says which, why, and what to try."""


@dataclass(frozen=True)
class Checkpoints:
    """Where, and how often, a training is saved.

    **Arguments:**

    - `directory`: where to; it is made where it is missing.
    - `every`: save once that many steps were taken since the last time. `minutes`: or that much time has passed.
      Without either, at every look. It is at looks that a training can be saved.
    - `keep`: how many of the last ones are kept; the one with the best validation loss is kept besides.
    """

    directory: str | Path
    every: int | None = None
    minutes: float | None = None
    keep: int = 3

    def __post_init__(self):
        if not isinstance(self.directory, str | Path):
            raise ValueError(f"`directory` must be a path, got {self.directory!r}.")
        for name, value in (("every", 1 if self.every is None else self.every), ("keep", self.keep)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"`{name}` must be a Python int of at least 1, got {value!r}.")
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError(f"`minutes` must be positive, got {self.minutes!r}.")


class Saved(NamedTuple):
    """What a checkpoint holds: arrays by name, the same in every process; rows; and numbers and words."""

    arrays: dict[str, np.ndarray]
    rows: Rows | None
    facts: dict[str, Any]


class CheckpointFolder:
    """The checkpoints of one training, in one directory, through Orbax: written whole or not at all, in the background.

    What is read is compared with what was written: every array by its checksum.
    """

    def __init__(self, options: Checkpoints):
        self.path, self._options = Path(options.directory).absolute(), options
        with self._explained("can't be opened"):
            from bilevel.scale.orbax_adapter import open_manager

            self.path.mkdir(parents=True, exist_ok=True)
            self._manager = open_manager(self.path, options.keep)
        #: When it was saved last, or begun.
        self.last_step: int | None = None
        self._last_time = time.monotonic()

    @property
    def steps(self) -> list[int]:
        """The steps after which there is a checkpoint."""
        return sorted(self._manager.all_steps())

    def is_due(self, step: int) -> bool:
        """Whether it is time to save again."""
        every, minutes = self._options.every, self._options.minutes
        if self.last_step == step:
            return False
        by_steps = every is not None and step - (self.last_step or 0) >= every
        by_time = minutes is not None and time.monotonic() - self._last_time >= 60 * minutes
        return by_steps or by_time or (every is None and minutes is None)

    def begin(self, step: int) -> None:
        """Training starts or goes on at this step: until when the next save is due is counted from here."""
        self.last_step, self._last_time = step, time.monotonic()

    def save(self, step: int, saved: Saved, loss: float | None) -> None:
        """Begin to write; of the last save, wait until it is done.

        Those of later steps are removed: training went back to before them, and `resume=True` must not find them.
        """
        from bilevel.scale.orbax_adapter import save

        arrays = {name: np.asarray(x) for name, x in saved.arrays.items()}
        described = {name: _describe(x) for name, x in arrays.items()}
        facts = {"format": FORMAT, "arrays": described, "versions": _versions(), "facts": saved.facts}
        facts["digest"] = _digest(facts)
        filled = {name: x for name, x in arrays.items() if x.size}
        with self._explained(f"can't be written at step {step}"):
            # Of a run that was left, to go on from an earlier step.
            for later in (each for each in self.steps if each > (self.last_step or 0)):
                self._manager.delete(later)
            save(self._manager, step, filled, saved.rows, facts, loss)
        self.begin(step)

    def finish(self) -> None:
        """Wait until all is written."""
        with self._explained("can't be written"):
            self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()

    def facts(self, step: int) -> dict[str, Any]:
        """The numbers and words of a checkpoint, and what arrays it holds."""
        from bilevel.scale.orbax_adapter import load_facts

        if step not in self.steps:
            raise CheckpointError(f"{self.path} has no checkpoint of step {step}; it has those of {self.steps}.")
        with self._damaged(step):
            facts = load_facts(self._manager, step)
            if facts["format"] > FORMAT:
                raise CheckpointError(
                    f"The checkpoint of step {step} in {self.path} is of format {facts['format']}, written by a newer "
                    f"version ({facts['versions']}); this one reads up to {FORMAT}. Update bilevel."
                )
            if facts.pop("digest") != _digest(facts):
                raise ValueError("its facts are not those that were written")
        return facts

    def load(self, step: int, rows: Rows | None, facts: dict[str, Any]) -> Saved:
        """All that a checkpoint with these `facts` holds; entries for samples are written into `rows`."""
        from bilevel.scale.orbax_adapter import load

        described = facts["arrays"]
        with self._damaged(step):
            arrays = load(self._manager, step, rows)
            for name, entry in described.items():
                if name not in arrays and 0 in entry["shape"]:
                    arrays[name] = np.empty(entry["shape"], entry["dtype"])
                if _describe(arrays[name]) != entry:
                    raise ValueError(f"the array {name} is not what was written")
        return Saved(arrays, rows, facts["facts"])

    def _damaged(self, step: int) -> Any:
        others = [other for other in self.steps if other != step]
        advice = f"`resume={max(others)}` goes on from another." if others else "There is no other."
        return _Explained(f"The checkpoint of step {step} in {self.path} is damaged", advice)

    def _explained(self, what: str) -> Any:
        advice = (
            "Is there space left, and may this process write there? Checkpoints that were complete stay as they are."
        )
        return _Explained(f"The checkpoints in {self.path} {what}", advice)


@dataclass(frozen=True)
class _Explained:
    """Errors of all kinds become `CheckpointError`."""

    what: str
    advice: str

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, CheckpointError | ImportError):
            words = str(error).strip().splitlines() or [type(error).__name__]
            raise CheckpointError(f"{self.what}: {words[0][:300]}. {self.advice}") from error


def _describe(x: np.ndarray) -> dict[str, Any]:
    return {"shape": list(x.shape), "dtype": x.dtype.str, "crc32": zlib.crc32(np.ascontiguousarray(x).tobytes())}


def _digest(facts: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(facts, sort_keys=True).encode())


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("bilevel", "jax", "equinox", "optax", "orbax-checkpoint")}
