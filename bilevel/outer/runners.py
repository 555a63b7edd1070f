"""Who takes the steps of a training: a compiled loop over data on one device, or one program a batch."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

from bilevel.outer.feeds import ArrayFeed, Feed
from bilevel.outer.state import StepMetrics, TrainingState
from bilevel.outer.warm_starts import WarmStarts, with_own
from bilevel.scale import DeviceMesh

History = dict[str, np.ndarray]

#: One training step.
Step = Callable[[TrainingState, PyTree], tuple[TrainingState, StepMetrics]]


class Runner(Protocol):
    """Takes steps, and has the state after them, whole and in this process."""

    @property
    def state(self) -> TrainingState:
        """The state after the steps taken; to set it is to go on from another."""
        ...

    @state.setter
    def state(self, state: TrainingState) -> None: ...

    def go_on(self, state: TrainingState) -> None:
        """Set the state to one whose arrays nobody else has, so that none is copied."""
        ...

    @property
    def position(self) -> str | None:
        """Where the source of batches stands, if that does not follow from the step."""
        ...

    @position.setter
    def position(self, position: str | None) -> None: ...

    def advance(self, count: int) -> History:
        """`count` steps; their metrics."""
        ...


class CompiledRunner:
    """Up to `chunk` steps in one program, in which all data are on one device."""

    def __init__(self, step: Step, state: TrainingState, data: PyTree, chunk: int):
        self.state: TrainingState = state
        self.position: str | None = None
        self._step, self._data, self._chunk = step, data, chunk

    def go_on(self, state: TrainingState) -> None:
        self.state = state

    def advance(self, count: int) -> History:
        state = jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, self.state)
        self.state, metrics = _run_chunk(self._step, state, self._data, jnp.asarray(count, jnp.int32), self._chunk)
        return {name: x[:count] for name, x in _by_name(metrics).items()}


class FedRunner:
    """A program for a batch, which the feed brings to one device or to those of a mesh."""

    def __init__(self, update: Any, state: TrainingState, feed: Feed, mesh: DeviceMesh | None):
        self._update, self._feed, self._mesh = update, feed, mesh
        self.go_on(state)

    @property
    def state(self) -> TrainingState:
        """Variables and optimizer come from the devices; warm starts are a view of those that go on being used."""
        if self._seen is None or int(self._seen.step) != self._step:
            variables, memory = self._moving if self._mesh is None else self._mesh.fetch(self._moving)
            step = jnp.asarray(self._step, jnp.int32)
            starts = self._starts.view() if isinstance(self._starts, WarmStarts) else self._starts
            self._seen = TrainingState(variables, memory, starts, self._feed.order(self._step), step, self._key)
        return self._seen

    @state.setter
    def state(self, state: TrainingState) -> None:
        self.go_on(with_own(state))

    def go_on(self, state: TrainingState) -> None:
        """To set a state copies its warm starts in memory; this does not."""
        moving = state.variables, state.optimizer
        self._moving = moving if self._mesh is None else self._mesh.place(moving)
        self._step, self._key, self._seen = int(state.step), state.key, None
        self._feed.begin(state.key)
        self._starts = state.warm_start
        by_sample = state.variables.objective.samplewise and state.warm_start is not None
        if by_sample and isinstance(self._feed, ArrayFeed):
            self._starts = WarmStarts(state.warm_start, self._feed.put)

    @property
    def position(self) -> str | None:
        return self._feed.position()

    @position.setter
    def position(self, position: str | None) -> None:
        self._feed.go_to(position)

    def advance(self, count: int) -> History:
        taken = []
        for _ in range(count):
            fed, starts = self._feed.at(self._step), self._starts
            start = starts.start(fed.rows) if isinstance(starts, WarmStarts) else starts
            *moving, params, metrics = _run_step(self._update, *self._moving, fed.batch, start, fed.weights)
            self._moving = tuple(moving)
            if isinstance(starts, WarmStarts):
                starts.update(fed.rows, params)
            elif starts is not None:
                self._starts = params
            taken.append((metrics, self._step))
            self._step += 1
            # Batches must not pile up before a device that is behind.
            jax.block_until_ready(taken[-2:][0][0].loss)
        return _joined(taken, self._feed)


def _joined(taken: list[tuple[StepMetrics, int]], feed: Feed) -> History:
    history = {name: np.stack([getattr(m, name) for m, _ in taken]) for name in _by_name(taken[0][0])}
    slots = zip(history["suspect"], taken, strict=True)
    samples = [-1 if slot < 0 else feed.sample(step, int(slot)) for slot, (_, step) in slots]
    return history | {"suspect": np.asarray(samples, np.int32)}


def _by_name(metrics: StepMetrics) -> History:
    return {field.name: np.asarray(getattr(metrics, field.name)) for field in dataclasses.fields(metrics)}


@eqx.filter_jit
def _run_step(update: Any, *args: PyTree) -> tuple[PyTree, PyTree, PyTree, StepMetrics]:
    return update(*args)


@eqx.filter_jit
def _run_chunk(
    step: Step, state: TrainingState, data: PyTree, count: Int[Array, ""], chunk: int
) -> tuple[TrainingState, StepMetrics]:
    """`count` steps, in a program for up to `chunk` of them, so that a last, shorter chunk compiles nothing new."""
    arrays, static = eqx.partition(state, eqx.is_array)

    # A program of its own only so that `fori_loop` does not trace it again.
    @jax.jit
    def one(arrays: PyTree) -> tuple[PyTree, StepMetrics]:
        state, metrics = step(eqx.combine(arrays, static), data)
        return eqx.filter(state, eqx.is_array), metrics

    def body(index: Int[Array, ""], carry: tuple[PyTree, StepMetrics]) -> tuple[PyTree, StepMetrics]:
        arrays, metrics = one(carry[0])
        return arrays, jax.tree.map(lambda all, new: all.at[index].set(new), carry[1], metrics)

    _, shapes = jax.eval_shape(one, arrays)
    metrics = jax.tree.map(lambda s: jnp.zeros((chunk, *s.shape), s.dtype), shapes)
    arrays, metrics = jax.lax.fori_loop(0, count, body, (arrays, metrics))
    return eqx.combine(arrays, static), metrics
