"""Orbax's checkpoint manager, with one more kind of item: rows, of which each process writes its own."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np

from bilevel.scale.rows import Rows

try:
    import orbax.checkpoint as ocp
except ImportError as error:
    raise ImportError(
        "Checkpoints are written by Orbax, which is not installed. Install it with: pip install 'bilevel[scale]'"
    ) from error

# It remarks on every array that is read without a device to read it to, which is how they are read here.
logging.getLogger("absl").addFilter(lambda record: "Sharding info not provided" not in record.getMessage())


class RowsHandler(ocp.CheckpointHandler):
    """A file for each shard, which can be read by whoever owns the shard later. ZIP files carry checksums."""

    def save(self, directory: Any, args: "RowsSave") -> None:
        for i in args.rows.owned:
            np.savez(Path(directory, f"{i:06d}.npz"), *args.rows.shard(i))

    def restore(self, directory: Any, args: "RowsRestore") -> None:
        for i in args.rows.owned:
            with np.load(Path(directory, f"{i:06d}.npz"), allow_pickle=False) as file:
                for target, name in zip(args.rows.shard(i), file.files, strict=True):
                    found = file[name]
                    if (found.shape, found.dtype) != (target.shape, target.dtype):
                        raise ValueError(f"samples of shard {i} are not those that were written")
                    target[...] = found


@ocp.args.register_with_handler(RowsHandler, for_save=True)
@dataclasses.dataclass
class RowsSave(ocp.args.CheckpointArgs):
    rows: Rows


@ocp.args.register_with_handler(RowsHandler, for_restore=True)
@dataclasses.dataclass
class RowsRestore(ocp.args.CheckpointArgs):
    rows: Rows


def open_manager(path: Path, keep: int) -> ocp.CheckpointManager:
    """The manager of a directory, in which the last ones and the best one are kept."""
    policies = ocp.checkpoint_managers
    best = policies.BestN(
        get_metric_fn=lambda metrics: metrics["loss"], reverse=True, n=1, keep_checkpoints_without_metrics=False
    )
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
        # Rows are written at once, into a directory that must be there.
        async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
    )
    handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
    for args in (RowsSave, RowsRestore):
        handlers.add("rows", args, RowsHandler())
    return ocp.CheckpointManager(path, options=options, handler_registry=handlers)


def save(
    manager: Any, step: int, arrays: dict[str, np.ndarray], rows: Rows | None, facts: dict, loss: float | None
) -> None:
    items = {"arrays": ocp.args.StandardSave(arrays), "facts": ocp.args.JsonSave(facts)}
    if rows is not None:
        items["rows"] = RowsSave(rows)
    metrics = None if loss is None or not np.isfinite(loss) else {"loss": float(loss)}
    manager.save(step, args=ocp.args.Composite(**items), metrics=metrics, force=True)


def load_facts(manager: Any, step: int) -> dict[str, Any]:
    return manager.restore(step, args=ocp.args.Composite(facts=ocp.args.JsonRestore()))["facts"]


def load(manager: Any, step: int, rows: Rows | None) -> dict[str, np.ndarray]:
    """The arrays; entries for samples are written into `rows`."""
    items: dict[str, Any] = {"arrays": ocp.args.StandardRestore()}
    if rows is not None:
        items["rows"] = RowsRestore(rows)
    found = manager.restore(step, args=ocp.args.Composite(**items))["arrays"]
    return {name: np.asarray(x) for name, x in found.items()}
