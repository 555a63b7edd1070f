"""A training in a process of its own, one of several or one that is killed: `python -m tests.outer.child OPTIONS`.

`OPTIONS` is a JSON object: `processes`, `rank` and `port` where there are several; `devices` of each; `steps`, `every`,
`checkpoint`; `heartbeat`, the seconds after which a silent process is given up; `out`, a file for what it ends with;
`die_in_save`, the number of the save in which it kills itself.
It says "start" on a line of its own before it trains, and "look N" at each look.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

OPTIONS: dict[str, Any] = json.loads(sys.argv[1]) if __name__ == "__main__" else {}
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={OPTIONS.get('devices', 1)}"

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_enable_x64", True)


def die_in_save(number: int, patch: pytest.MonkeyPatch) -> None:
    """Be killed halfway through the save of this number."""
    from bilevel.scale.orbax_adapter import RowsHandler

    save, saves = RowsHandler.save, []

    def dying(handler: Any, directory: Any, args: Any) -> None:
        saves.append(directory)
        if len(saves) == number:
            Path(directory, "000000.npz").write_bytes(b"PK")
            os.kill(os.getpid(), signal.SIGKILL)
        save(handler, directory, args)

    patch.setattr(RowsHandler, "save", dying)


def main(options: dict[str, Any]) -> None:
    processes = options.get("processes", 1)
    if processes > 1:
        address = f"127.0.0.1:{options['port']}"
        silence = options.get("heartbeat", 100)
        jax.distributed.initialize(address, processes, options["rank"], heartbeat_timeout_seconds=silence)

    import bilevel as bl
    from tests.outer.programs import compile_cheaply
    from tests.outer.scaled import mesh_of, seen, signals, trainer

    patch = pytest.MonkeyPatch()
    compile_cheaply(patch)
    if "die_in_save" in options:
        die_in_save(options["die_in_save"], patch)
    mesh = mesh_of(jax.device_count()) if "processes" in options else None
    saved = {}
    if "checkpoint" in options:
        saved = dict(checkpoint=bl.Checkpoints(options["checkpoint"], every=options["every"]), resume=True)
    print("start", flush=True)
    fitted = trainer(mesh=mesh, shards=4).fit(
        signals(),
        options["steps"],
        every=options["every"],
        validation=signals(31, seed=1),
        callback=lambda state, history: print("look", int(state.step), flush=True),
        **saved,
    )
    if "out" in options and options.get("rank", 0) == 0:
        np.savez(options["out"], **seen(fitted))


if __name__ == "__main__":
    main(OPTIONS)
