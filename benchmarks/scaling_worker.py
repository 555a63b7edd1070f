"""A process of `weak_scaling`: trains on its devices, times it, and prints what it found as JSON.

Devices of XLA's host platform have to be asked for before JAX starts, hence a process for each number of them.
"""

import json
import os
import sys
import time
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec

import bilevel as bl
from benchmarks.hypergradient import task_loss
from benchmarks.measure import L1, L2, patches
from bilevel.outer import runners

#: An epoch is so many batches, and so many epochs pass before steps are timed: by then codes start from their last.
STEPS, WARM_UP = 4, 2


def trainer(D: np.ndarray, batch_size: int, mesh: Mesh | None) -> bl.Trainer:
    """Task-driven dictionary learning, as in the benchmark of hypergradients; on a mesh where there is one."""
    problem = bl.BilevelProblem(
        lambda variables, codes, batch: task_loss(codes, variables.task, batch[1]),
        bl.Variables(bl.objectives.SparseCoding(D, L1, L2), task=jnp.zeros(len(D), D.dtype)),
        inner_data=lambda batch: batch[0],
        train=lambda variables: (variables.objective.dictionary, variables.task),
        constraints=[bl.Constrained(lambda variables: variables.objective.dictionary, bl.prox.UnitBall())],
    )
    return bl.Trainer(problem, optax.adam(1e-3), batch_size, mesh=mesh)


def train(mesh: Mesh, per_device: int, epochs: int, atoms: int, count: bool) -> dict[str, Any]:
    """The seconds of a step, epoch by epoch; the support of codes; and what the compiler counts in its program."""
    batch_size = mesh.size * per_device
    X, D = (x.astype(np.float32) for x in patches(STEPS * batch_size, atoms))
    training, times = trainer(D, batch_size, mesh), [0.0]
    seen: list[tuple] = []
    run_step = runners._run_step

    def spy(*args: Any) -> Any:
        seen[:] = [args]
        return run_step(*args)

    with mock.patch.object(runners, "_run_step", spy):
        fitted = training.fit(
            (X, np.sign(X[:, 0])),
            STEPS * (WARM_UP + epochs),
            every=STEPS,
            callback=lambda *_: times.append(time.perf_counter()),
        )
    found = {"seconds": (np.diff(times[WARM_UP:]) / STEPS).tolist()}
    found["support"] = float(np.mean(np.count_nonzero(fitted.state.warm_start, axis=1)))
    if count:
        costs: Any = run_step.lower(*seen[0]).compile().compiled.cost_analysis()
        found |= {"flops": costs["flops"], "bytes": costs["bytes accessed"]}
    return found


def all_reduce(mesh: Mesh, numbers: int, repeats: int) -> list[float]:
    """Seconds of the sum over devices of so many numbers on each, and of nothing else."""
    spec = PartitionSpec("data")
    add = lambda x: jax.lax.psum(x, "data")
    run = jax.jit(jax.shard_map(add, mesh=mesh, in_specs=spec, out_specs=PartitionSpec(), check_vma=False))
    rows = np.ones((mesh.size, numbers), np.float32)
    x = jax.make_array_from_callback(rows.shape, jax.NamedSharding(mesh, spec), lambda index: rows[index])
    jax.block_until_ready(run(x))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run(x))
        seconds.append(time.perf_counter() - start)
    return seconds


def main(job: dict[str, Any]) -> dict[str, Any]:
    if job["processes"] > 1:
        jax.distributed.initialize(f"127.0.0.1:{job['port']}", job["processes"], job["process"])
    jax.config.update("jax_enable_x64", True)
    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    found = {"all_reduce": all_reduce(mesh, job["numbers"], job["repeats"])}
    sizes = {"epochs": job["epochs"], "atoms": job["atoms"], "count": jax.device_count() == 1}
    return found | {"steps": {str(size): train(mesh, size, **sizes) for size in job["per_device"]}}


if __name__ == "__main__":
    work = json.loads(sys.argv[1])
    assert f"device_count={work['devices']}" in os.environ["XLA_FLAGS"]
    print(json.dumps(main(work)))
