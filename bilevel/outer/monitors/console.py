"""The row of each look, printed."""

import equinox as eqx
from tqdm import tqdm

from bilevel.outer.callbacks import AbstractMonitor, Callback
from bilevel.outer.monitors.rows import Measure, Row, as_measures, log
from bilevel.outer.state import TrainingState


class Console(AbstractMonitor):
    """Prints a line at each look: for the logs of batch jobs, where a progress bar is of no use.

    `last_step`, where it is given, is the step at which training will end, by which the time left is told; `measures`
    are as in `CSVLog`.
    """

    last_step: int | None = None
    measures: tuple[Measure, ...] = eqx.field(converter=as_measures, default=())

    def start(self, state: TrainingState) -> Callback:
        return log(self.measures, self._write, state)

    def _write(self, row: Row) -> None:
        rest = dict(row)
        step, seconds, rate = int(rest.pop("step")), rest.pop("seconds"), rest.pop("steps_per_second")
        del rest["time"]
        whole, left = "", ""
        if self.last_step is not None:
            whole, left = f"/{self.last_step}", f", {tqdm.format_interval((self.last_step - step) / rate)} left"
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in rest.items())
        say(f"step {step}{whole} after {tqdm.format_interval(seconds)}, {rate:.3g} steps/s{left}: {numbers}")


def say(line: str) -> None:
    """Print at once, and not across a progress bar."""
    with tqdm.external_write_mode():
        print(line, flush=True)
