"""Trainings on meshes of eight devices of a CPU, in a process of its own, as their number is fixed when JAX starts.

`python -m tests.outer.on_meshes CASES`, where cases are "BATCH:MESH,MESH ..."; prints what the tests ask for as JSON.
"""

import collections
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import numpy as np
import pytest

jax.config.update("jax_enable_x64", True)

import bilevel as bl  # noqa: E402
from bilevel.outer import runners  # noqa: E402
from tests.outer.programs import compile_cheaply  # noqa: E402
from tests.outer.scaled import distance, mesh_of, signals, trainer  # noqa: E402

#: The shapes of what is told, and how.
COLLECTIVE = re.compile(r"= ([^%]+) (all-reduce|all-gather|all-to-all|collective-\w+|reduce-scatter)[-\w]*\(")
STEPS, SHARDS = 50, 8


def counting(programs: list[collections.Counter]) -> Any:
    """`_run_step`, which adds the collectives of each program that it compiles to a list."""
    step, compiled = runners._run_step, {}

    def run(*args: Any) -> Any:
        key = str(jax.tree.map(lambda x: getattr(x, "sharding", None), args)), jax.tree.structure(args)
        if key not in compiled:
            compiled[key] = step.lower(*args).compile()
            found = COLLECTIVE.findall(compiled[key].compiled.as_text())
            programs.append(collections.Counter(how for _, how in found))
        return compiled[key](*args)

    return run


def train(batch_size: int | None, mesh: Any, **options: Any) -> bl.Fitted:
    return trainer(batch_size, mesh=mesh, shards=SHARDS, **options).fit(signals(), STEPS)


def compared(alone: bl.Fitted, batch_size: int | None, mesh: str, **options: Any) -> dict[str, Any]:
    """A training on a mesh with one without: how far they are apart, and the collectives of a step."""
    with pytest.MonkeyPatch.context() as patch:
        programs: list[collections.Counter] = []
        patch.setattr(runners, "_run_step", counting(programs))
        fitted = train(batch_size, mesh_of(*map(int, mesh.split("x"))), **options)
    found = {
        "distance": distance(fitted.variables, alone.variables),
        "loss": float(np.max(np.abs(fitted.history["loss"] / alone.history["loss"] - 1))),
        "collectives": [dict(program) for program in programs],
    }
    if fitted.state.warm_start is None:
        return found
    starts = [np.asarray(f.state.warm_start) for f in (fitted, alone)]
    return found | {"starts": float(np.linalg.norm(starts[0] - starts[1]) / np.linalg.norm(starts[1]))}


def others(folder: Path) -> dict[str, Any]:
    """Warm starts in a file, or none; another solver, whose iterations are many more."""
    slow = dict(warm_start=False, solver=bl.solvers.ProximalGradient(tol=1e-13, max_steps=5_000))
    found = {"file": compared(train(19, None), 19, "3", warm_start=folder / "starts.npy")}
    return found | {"cold": compared(train(19, None, **slow), 19, "3", **slow)}


def main(cases: list[str]) -> None:
    compile_cheaply(pytest.MonkeyPatch())
    found: dict[str, Any] = {}
    for case in cases:
        batch, meshes = case.split(":")
        batch_size = None if batch == "full" else int(batch)
        alone = train(batch_size, None)
        found[batch] = {mesh: compared(alone, batch_size, mesh) for mesh in meshes.split(",")}
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps({"same": found, "others": others(Path(folder))}))


if __name__ == "__main__":
    main(sys.argv[1:])
