"""The row of each look, for TensorBoard."""

import time
import weakref
from pathlib import Path
from typing import Any

import equinox as eqx

from bilevel.core.packages import require
from bilevel.outer.callbacks import AbstractMonitor, Callback
from bilevel.outer.monitors.files import named
from bilevel.outer.monitors.rows import Measure, Row, as_measures, log, writes
from bilevel.outer.state import TrainingState


class TensorBoard(AbstractMonitor):
    """Writes the numbers of each look, those of `CSVLog`, as curves for TensorBoard into the folder `directory`.

    Each training writes a file of its own, and tells TensorBoard to hide what earlier ones wrote of later steps than
    that from which it starts. Needs the group `tensorboard`: `pip install 'bilevel[tensorboard]'`.
    """

    directory: Path = eqx.field(converter=Path)
    measures: tuple[Measure, ...] = eqx.field(converter=as_measures, default=())

    def __check_init__(self):
        require("tensorboardX", "Curves for TensorBoard are written by tensorboardX.", "tensorboard")

    def start(self, state: TrainingState) -> Callback:
        if not writes():
            return log(self.measures, lambda row: None, state)
        writer = _Writer(self.directory, int(state.step) + 1)
        return log(self.measures, writer.write, state)


class _Writer:
    """An event file. tensorboardX's own `SummaryWriter` hands events to a thread, where they and errors can be lost."""

    def __init__(self, directory: Path, purge_step: int):
        # Only here, as it is optional.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        self.directory = directory
        self.event: Any = event_pb2.Event  # pyright: ignore[reportAttributeAccessIssue]
        with named(directory):
            directory.mkdir(parents=True, exist_ok=True)
            # Two files of one second would have one name.
            self.file = EventsWriter(str(directory / "events"), f".{time.time_ns()}")
            weakref.finalize(self, self.file.close)
            event = self.event(step=purge_step, wall_time=time.time())
            event.session_log.status = event.session_log.START
            self.file.write_event(event)
            self.file.flush()

    def write(self, row: Row) -> None:
        from tensorboardX.summary import scalar

        with named(self.directory):
            for name, value in row.items():
                if name not in ("step", "time"):
                    event = self.event(step=int(row["step"]), wall_time=row["time"], summary=scalar(name, value))
                    self.file.write_event(event)
            self.file.flush()
