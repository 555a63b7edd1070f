"""Laws of batches: what they consist of, to whom it belongs, where it lies."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from bilevel.scale import Batches

KEY = jax.random.key(0)


@st.composite
def batches(draw):
    size = draw(st.integers(1, 40))
    batch_size = draw(st.integers(1, size))
    return Batches(size, batch_size, draw(st.integers(1, batch_size)))


def epoch_of(cut: Batches, epoch: int) -> list[np.ndarray]:
    """The samples of each batch of an epoch."""
    order = np.asarray(cut.order(KEY, epoch))
    return [order[np.asarray(cut.places(place))] for place in range(cut.steps_per_epoch)]


def shard_of(cut: Batches) -> np.ndarray:
    """That of each sample."""
    return np.repeat(np.arange(cut.shards), np.diff(cut.ranges))


laws = settings(deadline=None, derandomize=True)


# Few, as each size is compiled for itself.
@settings(laws, max_examples=8)
@given(batches(), st.integers(0, 3))
def test_an_epoch_sees_every_sample_of_each_shard_and_as_few_of_them_twice_as_can_be(cut, epoch):
    order = np.asarray(cut.order(KEY, epoch))
    seen = np.bincount(np.concatenate(epoch_of(cut, epoch)), minlength=cut.num_samples)
    assert seen.min() == 1
    for low, high, slots in zip(cut.ranges[:-1], cut.ranges[1:], np.diff(cut.slots), strict=True):
        # A permutation within the shard; its slots see it and nothing else, filled up from its beginning.
        np.testing.assert_array_equal(np.sort(order[low:high]), np.arange(low, high))
        assert seen[low:high].sum() == slots * cut.steps_per_epoch
        assert np.all(np.diff(seen[order[low:high]]) <= 0)
        assert seen[low:high].max() - seen[low:high].min() <= 1 or high - low < slots
    # Who draws some of the shards alone gets the same.
    some = range(0, cut.shards, 2)
    drawn, mine = cut.order_of(KEY, epoch, some), np.isin(shard_of(cut), some)
    np.testing.assert_array_equal(drawn, np.where(mine, order, 0))
    np.testing.assert_array_equal(cut.order_after(KEY, cut.steps_per_epoch * epoch + 1, some), drawn)
    slots = np.arange(cut.batch_size)[::3]
    np.testing.assert_array_equal(cut.places(0, slots), np.asarray(cut.places(0))[slots])
    for rows in epoch_of(cut, epoch):
        assert rows.shape == (cut.batch_size,)
        for shard in range(cut.shards):
            mine = rows[cut.slots[shard] : cut.slots[shard + 1]]
            assert np.all((cut.ranges[shard] <= mine) & (mine < cut.ranges[shard + 1]))


def test_epochs_and_keys_have_orders_of_their_own():
    cut = Batches(100, 10, 4)
    orders = [np.asarray(cut.order(key, epoch)) for key in (KEY, jax.random.key(1)) for epoch in (0, 1)]
    assert len({order.tobytes() for order in orders}) == 4


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
@pytest.mark.parametrize("shards", [1, 3])
def test_the_order_of_a_shard_does_not_depend_on_which_others_are_drawn_if_any(shards, impl):
    cut, key = Batches(30, 6, shards), jax.random.key(0, impl=impl)
    order = np.asarray(cut.order(key, 1))
    for shard in range(shards):
        alone = cut.order_of(key, 1, [shard])
        np.testing.assert_array_equal(alone, np.where(shard_of(cut) == shard, order, 0))
    # A process whose devices have no shard draws nothing.
    assert not np.any(cut.order_of(key, 1, []))


@laws
@given(batches())
def test_shards_have_as_many_samples_a_slot_up_to_one(cut):
    assert (cut.slots[0], cut.slots[-1]) == (0, cut.batch_size)
    assert (cut.ranges[0], cut.ranges[-1]) == (0, cut.num_samples)
    slots, samples = np.diff(cut.slots), np.diff(cut.ranges)
    assert slots.min() >= 1
    assert np.all(np.abs(samples - slots * cut.num_samples / cut.batch_size) < 1)


@laws
@given(batches(), st.integers(1, 12))
def test_a_layout_puts_each_slot_once_on_the_device_that_owns_its_shard(cut, devices):
    layout = cut.layout(devices).reshape(devices, -1)
    np.testing.assert_array_equal(np.sort(layout[layout >= 0]), np.arange(cut.batch_size))
    owned = [cut.owned(devices, [device]) for device in range(devices)]
    assert [shard for shards in owned for shard in shards] == list(range(cut.shards))
    for slots, shards in zip(layout, owned, strict=True):
        mine = [i for shard in shards for i in range(cut.slots[shard], cut.slots[shard + 1])]
        assert slots[slots >= 0].tolist() == mine
