"""The ways of differentiating, side by side on one problem: error, time, memory."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
import optax
from jaxtyping import PyTree

from bilevel.core import RESULTS, tree
from bilevel.differentiation import AbstractDifferentiation, Implicit, OneStep, Truncated, Unrolled, argmin
from bilevel.differentiation.certificate import OuterLoss, value_and_aux
from bilevel.objectives import AbstractObjective
from bilevel.outer.hypergradient import hypergradient
from bilevel.solvers import AbstractSolver


class ModeResult(NamedTuple):
    """One way of differentiating.

    `relative_error` of its gradient against the reference; median `seconds` of a value and gradient, compiled;
    `compile_seconds`; `temporary_bytes` that the compiled program uses beside its inputs and outputs, at most; `note`,
    why the numbers are missing where they are.
    """

    mode: str
    relative_error: float
    seconds: float
    compile_seconds: float
    temporary_bytes: int
    note: str


class ModeComparison(NamedTuple):
    """The rows of `compare_modes`; printable, and a pandas frame by `frame()`."""

    rows: list[ModeResult]

    def frame(self) -> Any:
        """A `pandas.DataFrame`, one row for each way."""
        import pandas

        return pandas.DataFrame(self.rows, columns=ModeResult._fields).set_index("mode")

    def __str__(self) -> str:
        header = ("mode", "relative error", "seconds", "compile seconds", "temporary MB", "")
        cells = [
            (r.mode, f"{r.relative_error:.1e}", f"{r.seconds:.2e}", f"{r.compile_seconds:.2f}", megabytes(r), r.note)
            for r in self.rows
        ]
        widths = [max(len(row[i]) for row in (header, *cells)) for i in range(len(header))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in (header, *cells)]
        return "\n".join(lines)


def megabytes(result: ModeResult) -> str:
    """`temporary_bytes` as text."""
    return f"{result.temporary_bytes / 2**20:.3f}"


def default_modes() -> dict[str, AbstractDifferentiation]:
    """What is compared unless something else is asked for."""
    return {
        "implicit": Implicit(),
        "unrolled": Unrolled(),
        "unrolled, checkpointed": Unrolled(checkpoint=True),
        "truncated, 10 steps": Truncated(10),
        "one step": OneStep(),
    }


def compare_modes(
    outer_loss: OuterLoss,
    objective: AbstractObjective,
    data: PyTree = None,
    *,
    modes: Mapping[str, AbstractDifferentiation] | None = None,
    solver: AbstractSolver | None = None,
    init: PyTree = None,
    repeats: int = 5,
) -> ModeComparison:
    """Value and gradient of outer_loss(objective, params*, data) in the objective, by each way of differentiating.

    All see the same solver, with its tolerance and number of steps, and a failed solve keeps its derivative, which is
    among what is to be seen. The reference is the hypergradient at the default solver's solution after a Newton step,
    whose own error is quadratic in that of the solution; where it fails, every note says so. Runs are interleaved, so
    that a busy machine is busy for all. `Unrolled` keeps `max_steps` iterates: set it low.

    **Arguments:** as in `hypergradient`; `modes`, names and ways, `default_modes()` by default; `repeats`, how often
    each is timed.
    """
    modes = default_modes() if modes is None else modes
    if not isinstance(modes, Mapping):
        raise ValueError(f"`modes` must map names to ways of differentiating, got {type(modes).__name__}.")
    if repeats < 1:
        raise ValueError(f"`repeats` must be at least 1, got {repeats}.")
    objective, data = tree.to_arrays((objective, data))
    if not any(map(eqx.is_inexact_array, jax.tree.leaves(objective))):
        raise ValueError("`objective` has no floating leaves, so there is no gradient in them to compare.")
    exact = hypergradient(outer_loss, objective, data, init=init, correct=True, on_failure="ignore")
    result = exact.certificate.result
    doubt = "" if result == RESULTS.successful else f"The reference failed: {RESULTS[result]}"
    runs: dict[str, Callable[[], Any]] = {}
    rows: dict[str, ModeResult] = {}
    for name, diff in modes.items():
        try:
            runs[name], rows[name] = _prepared(
                name, outer_loss, objective, data, solver, init, diff.with_policy("ignore"), exact.gradient
            )
            rows[name] = rows[name]._replace(note=doubt)
        except (ValueError, TypeError, NotImplementedError) as error:
            note = str(error).strip().splitlines()[0]
            rows[name] = ModeResult(name, np.nan, np.nan, np.nan, 0, note)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            times[name].append(time.perf_counter() - start)
    return ModeComparison(
        [row._replace(seconds=float(np.median(times[name]))) if name in times else row for name, row in rows.items()]
    )


def _prepared(
    name: str,
    outer_loss: OuterLoss,
    objective: AbstractObjective,
    data: PyTree,
    solver: AbstractSolver | None,
    init: PyTree,
    diff: AbstractDifferentiation,
    reference: PyTree,
) -> tuple[Callable[[], Any], ModeResult]:
    """The compiled program, and its row without the time it takes."""
    moving, still = eqx.partition(objective, eqx.is_inexact_array)

    def loss(moving: PyTree, data: PyTree) -> Any:
        objective = eqx.combine(moving, still)
        params = argmin(objective, data, solver=solver, init=init, diff=diff, throw=False).params
        return value_and_aux(outer_loss(objective, params, data))[0]

    lowered = jax.jit(jax.value_and_grad(loss)).lower(moving, data)
    start = time.perf_counter()
    compiled = lowered.compile()
    compile_seconds = time.perf_counter() - start
    _, gradient = compiled(moving, data)
    distance, size = float(tree.norm(optax.tree.sub(gradient, reference))), float(tree.norm(reference))
    error = 0.0 if distance == 0 else distance / (size or 1.0)
    memory = compiled.memory_analysis()
    used = 0 if memory is None else int(memory.temp_size_in_bytes)
    return lambda: compiled(moving, data), ModeResult(name, error, np.nan, compile_seconds, used, "")
