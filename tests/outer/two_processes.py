"""What one of two processes measures, each with half of the samples; `test_monitors.py` runs it twice.

Arguments: the number of the process, a port, a folder with the arrays.
"""

import json
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import bilevel as bl


def main(process: int, port: str, folder: Path) -> None:
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=process)
    X, codes = np.load(folder / "samples.npy")[process::2], np.load(folder / "codes.npy")
    # Each process has room for the solutions of all samples, and those of its own.
    codes[1 - process :: 2] = 0
    dictionary = np.load(folder / "dictionary.npy")
    objective, step = bl.objectives.SparseCoding(dictionary, l1=0.2, l2=0.1), jnp.asarray(2, jnp.int32)
    state = bl.TrainingState(bl.Variables(objective), None, codes, jnp.arange(0), step, jax.random.key(0))

    log = bl.monitors.JSONLines(folder / f"log{process}.jsonl", [bl.monitors.Sparsity()])
    history = {name: np.ones(1) for name in ("loss", "gradient_norm", "optimality", "inner_steps")}
    history |= {name: np.full(1, name == "inner_success") for name in ("inner_success", "refused")}
    log.start(state)(eqx.tree_at(lambda s: s.step, state, step + 1), history)

    found: dict = {"of data": bl.monitors.Sparsity(X)(state), "kept": bl.monitors.Sparsity()(state)}
    reports = []
    after = bl.monitors.ReseedDeadAtoms(X, report=reports.append).start(state)(state, {})
    atoms = after.variables.objective.dictionary
    found |= {"reports": reports, "dictionary": np.asarray(atoms).tolist()}
    (folder / f"found{process}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_platforms", "cpu")
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
