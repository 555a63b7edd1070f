"""What is seen of a training from outside: metrics of its steps, validation losses, the best so far."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import PyTree, Scalar

from bilevel.core import InnerSolveError
from bilevel.outer.naming import filled, named
from bilevel.outer.problem import Variables
from bilevel.outer.runners import History, Runner
from bilevel.outer.state import TrainingState


class Validation(NamedTuple):
    """`evaluate(variables, start)` gives the validation loss and the next start; the first one is `start`."""

    evaluate: Callable[[Variables, PyTree], tuple[Scalar, PyTree]]
    start: PyTree


class Record:
    """What is seen of training from outside: the metrics of its steps, the validation losses, the best so far."""

    def __init__(self, validation: Validation | None, state: TrainingState):
        self.validation = validation
        self.first_step, self.taken, self.stopped = int(state.step), 0, False
        self.metrics: list[History] = []
        self.losses: list[float] = []
        self.steps: list[int] = []
        self.best_variables, self.best_loss, self.since_best = state.variables, np.inf, 0

    def add(self, metrics: History) -> None:
        self.metrics.append(metrics)
        self.taken += len(metrics["loss"])

    def validate(self, runner: Runner) -> None:
        if self.validation is None:
            return
        state = runner.state
        loss, start = self.validation.evaluate(state.variables, self.validation.start)
        self.validation = self.validation._replace(start=start)
        self.losses.append(float(loss))
        self.steps.append(int(state.step))
        better = self.losses[-1] < self.best_loss
        self.since_best = 0 if better else self.since_best + 1
        if better:
            self.best_loss = self.losses[-1]
        # Where no loss was ever finite there is no best, and the last is as good as any.
        if better or np.isinf(self.best_loss):
            self.best_variables = state.variables

    def ended(self, patience: int | None) -> bool:
        """Whether a callback stopped training, or validation has seen no new best for so long."""
        return self.stopped or (patience is not None and self.since_best >= patience)

    def raise_on_failed_step(self) -> None:
        last = self.metrics[-1]
        failed = np.flatnonzero(last["refused"] | ~last["inner_success"])
        if failed.size:
            at = failed[0]
            if last["suspect"][at] >= 0:
                raise InnerSolveError(
                    f"Step {self.first_step + self.taken - len(last['loss']) + at} of training failed: sample "
                    f"{last['suspect'][at]}, in its batch, has entries that are not finite. Mend or remove it; "
                    '`on_failure="skip"` goes on without the batches that it is in.'
                )
            raise InnerSolveError(
                f"Step {self.first_step + self.taken - len(last['loss']) + at} of training failed: the inner solve's "
                f"relative optimality error is {last['optimality'][at]:.2e} after {last['inner_steps'][at]} steps, the "
                f"outer loss {last['loss'][at]:.3g}, the norm of its gradient {last['gradient_norm'][at]:.3g}. Likely "
                "causes: a learning rate too large, an inner tolerance out of reach, or a singular Hessian (duplicated "
                "atoms with l2 = 0). Try a smaller learning rate, a solver with a larger `max_steps` or `tol`, or "
                'l2 > 0; `on_failure="skip"` goes on without such steps.'
            )

    def raise_on_failed_validation(self) -> None:
        if self.validation is not None and np.isnan(self.losses[-1]):
            raise InnerSolveError(
                f"No validation loss after step {self.steps[-1] - 1}: it is not finite, or the inner solve on the "
                "validation data missed its tolerance. Try a solver with a larger `max_steps` or `tol`, or look for "
                'outliers in `validation`; `on_failure="skip"` goes on, and records NaN.'
            )

    def latest(self) -> dict[str, str]:
        """For the progress bar."""
        validation = {"validation": f"{self.losses[-1]:.4g}"} if self.losses else {}
        return {"loss": f"{self.metrics[-1]['loss'][-1]:.4g}", **validation}

    def history(self) -> History:
        self.metrics = [{name: np.concatenate([m[name] for m in self.metrics]) for name in self.metrics[0]}]
        history = dict(self.metrics[0])
        if self.validation is not None:
            history["validation_loss"] = np.asarray(self.losses)
            history["validation_step"] = np.asarray(self.steps)
        return history

    def arrays(self) -> dict[str, np.ndarray]:
        """All that there is, for a checkpoint; the rest of it is `facts`."""
        start = None if self.validation is None else self.validation.start
        seen = named("best", self.best_variables) | named("validation_start", start)
        return seen | {f"history.{name}": x for name, x in self.history().items()}

    def facts(self) -> dict[str, Any]:
        return {
            "first_step": self.first_step,
            "best_loss": float(self.best_loss).hex(),
            "since_best": self.since_best,
            "stopped": self.stopped,
        }

    def restore(self, arrays: dict[str, np.ndarray], facts: dict[str, Any], place: str) -> None:
        """Become what a checkpoint holds."""
        history = {name.removeprefix("history."): x for name, x in arrays.items() if name.startswith("history.")}
        losses, steps = history.pop("validation_loss", np.zeros(0)), history.pop("validation_step", np.zeros(0))
        self.losses, self.steps = [float(x) for x in losses], [int(x) for x in steps]
        self.metrics, self.taken = [history], len(history["loss"])
        self.first_step, self.since_best, self.stopped = facts["first_step"], facts["since_best"], facts["stopped"]
        self.best_loss = float.fromhex(facts["best_loss"])
        self.best_variables = filled("best", self.best_variables, arrays, place)
        if self.validation is not None:
            start = filled("validation_start", self.validation.start, arrays, place)
            self.validation = self.validation._replace(start=start)
