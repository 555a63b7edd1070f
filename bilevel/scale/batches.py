"""Which samples a step sees: an order drawn anew each epoch, dealt to the slots of a batch."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key


class Batches(NamedTuple):
    """Batches of `batch_size` out of `num_samples`, drawn without replacement within an epoch.

    Samples are cut into `shards` ranges, and so are the slots of a batch: slots [sᵢ, sᵢ₊₁) see samples
    [⌊N sᵢ / B⌋, ⌊N sᵢ₊₁ / B⌋) alone, shuffled anew each epoch. Whoever owns a shard needs neither the samples nor the
    last solutions of any other, and what a batch consists of does not depend on how many owners there are. Ranges are
    as long as their slots are many, up to one sample, so that every sample weighs the same. The last batch of an epoch
    is filled up from its beginning, within each shard, so that every batch has one shape and every sample is seen.
    """

    num_samples: int
    batch_size: int
    shards: int = 1

    @property
    def steps_per_epoch(self) -> int:
        """How many batches see every sample."""
        return -(-self.num_samples // self.batch_size)

    @property
    def slots(self) -> Int[np.ndarray, " shards+1"]:
        """Where in a batch the slots of each shard begin, and where the last ones end."""
        return np.arange(self.shards + 1) * self.batch_size // self.shards

    @property
    def ranges(self) -> Int[np.ndarray, " shards+1"]:
        """Where among the samples those of each shard begin, and where the last ones end."""
        return self.num_samples * self.slots // self.batch_size

    def order(self, key: Key[Array, ""], epoch: Int[Array, ""] | int) -> Int[Array, " samples"]:
        """A permutation of the samples, which leaves each in its shard."""
        drawn = self._drawn(key, epoch, np.arange(self.shards))
        if self.shards == 1:
            return jnp.asarray(drawn[0])
        # Numbers that are none of a shard's go to its end.
        lengths = np.diff(self.ranges).astype(np.int32)
        drawn = jnp.take_along_axis(drawn, jnp.argsort(drawn >= lengths[:, None], axis=1, stable=True), axis=1)
        shard = np.repeat(np.arange(self.shards), lengths)
        first = jnp.asarray(self.ranges[shard], jnp.int32)
        return first + drawn[shard, jnp.arange(self.num_samples, dtype=jnp.int32) - first]

    def order_of(self, key: Key[Array, ""], epoch: int, shards: Sequence[int]) -> Int[np.ndarray, " samples"]:
        """`order`, of these shards alone: others are not drawn, and have zeros, which take no memory."""
        order = np.zeros(self.num_samples, np.int32)
        drawn = np.asarray(_drawn_jit(self, key, epoch, np.asarray(shards, np.int32)))
        for shard, numbers in zip(shards, drawn, strict=True):
            first, end = self.ranges[shard : shard + 2]
            order[first:end] = first + numbers[numbers < end - first]
        return order

    def order_after(self, key: Key[Array, ""], step: int, shards: Sequence[int]) -> Int[np.ndarray, " samples"]:
        """`order_of` the epoch in which so many steps end; before the first step, samples as they are."""
        if step == 0:
            return np.arange(self.num_samples, dtype=np.int32)
        return self.order_of(key, (step - 1) // self.steps_per_epoch, shards)

    # A permutation of more numbers than a shard has samples, less those that are too large, is one of its samples. So
    # all are drawn in the same way, whatever their sizes.
    def _drawn(self, key: Key[Array, ""], epoch: Any, shards: np.ndarray | Array) -> Int[Array, "shards numbers"]:
        """For each of these shards, a permutation of as many numbers as the largest one has samples."""
        key, most = jax.random.fold_in(key, epoch), int(np.max(np.diff(self.ranges)))
        draw = lambda key: jax.random.permutation(key, most).astype(jnp.int32)
        if self.shards == 1:
            return draw(key)[None][: len(shards)]
        # One by one: of keys of JAX's "rbg" together, what is drawn from one depends on which others there are.
        return jax.lax.map(lambda shard: draw(jax.random.fold_in(key, shard)), jnp.asarray(shards, jnp.int32))

    def places(
        self, place: Int[Array, ""] | int, slots: Int[np.ndarray, " slots"] | None = None
    ) -> Int[Array | np.ndarray, " slots"]:
        """Where in the order of an epoch its batch number `place` stands, or these of its slots."""
        slots, bounds, ranges = np.arange(self.batch_size) if slots is None else slots, self.slots, self.ranges
        shard = np.searchsorted(bounds, slots, side="right") - 1
        of_slots = lambda per_shard: per_shard[shard].astype(np.int32)
        within = slots.astype(np.int32) - of_slots(bounds)
        return of_slots(ranges) + (place * of_slots(np.diff(bounds)) + within) % of_slots(np.diff(ranges))

    def layout(self, devices: int) -> Int[np.ndarray, " devices*width"]:
        """Which slot of a batch lies where among `devices`, in equal parts; -1 is none.

        A device holds whole shards, one after the other, as many as each; the last ones may have fewer, or none.
        """
        per_device = -(-self.shards // devices)
        bounds = self.slots[np.minimum(np.arange(devices + 1) * per_device, self.shards)]
        places = bounds[:-1, None] + np.arange(np.max(np.diff(bounds)))
        return np.where(places < bounds[1:, None], places, -1).ravel()

    def owned(self, devices: int, places: list[int]) -> list[int]:
        """The shards that lie on the devices at these places among `devices`."""
        per_device = -(-self.shards // devices)
        return [i for place in places for i in range(place * per_device, min((place + 1) * per_device, self.shards))]


_drawn_jit = jax.jit(Batches._drawn, static_argnums=0)
