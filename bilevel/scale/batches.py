"""Which samples a step sees: an order drawn anew each epoch, dealt to the slots of a batch."""

from typing import NamedTuple

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
        order = jax.random.permutation(jax.random.fold_in(key, epoch), self.num_samples).astype(jnp.int32)
        if self.shards == 1:
            return order
        shard = np.repeat(np.arange(self.shards, dtype=np.int32), np.diff(self.ranges))
        return order[jnp.argsort(jnp.asarray(shard)[order], stable=True)]

    def places(self, place: Int[Array, ""] | int) -> Int[Array | np.ndarray, " batch"]:
        """Where in the order of an epoch its batch number `place` stands."""
        slots, ranges = self.slots, self.ranges
        widths = np.diff(slots)
        per_slot = lambda per_shard: np.repeat(per_shard, widths).astype(np.int32)
        first, within = per_slot(ranges[:-1]), np.arange(self.batch_size, dtype=np.int32) - per_slot(slots[:-1])
        return first + (place * per_slot(widths) + within) % per_slot(np.diff(ranges))

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
