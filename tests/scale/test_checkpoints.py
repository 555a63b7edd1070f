"""A folder of checkpoints: when it is time to save, what is kept, what is said of options that are none."""

import numpy as np
import pytest

from bilevel.scale import CheckpointError, CheckpointFolder, Checkpoints, Rows, Saved, checkpoints as room

ROWS = Rows([np.arange(12.0).reshape(6, 2), np.arange(6)], [0, 2, 5, 6], [0, 1, 2])
SAVED = Saved({"a": np.arange(3.0), "none": np.zeros((0, 4), np.float32), "flag": np.array(True)}, ROWS, {"b": "c"})


@pytest.fixture
def folder(tmp_path):
    opened = []

    def opening(**options) -> CheckpointFolder:
        opened.append(CheckpointFolder(Checkpoints(tmp_path / "deep" / "saved", **options)))
        return opened[-1]

    yield opening
    for each in opened:
        each.close()


def test_what_is_read_is_what_was_written(folder):
    first = folder()
    first.save(7, SAVED, loss=None)
    first.finish()
    blank = Rows([np.zeros_like(x) for x in ROWS.arrays], ROWS.bounds, [0, 2])
    reading = folder()
    arrays, rows, facts = reading.load(7, blank, reading.facts(7))
    assert arrays.keys() == SAVED.arrays.keys() and facts == SAVED.facts
    for name, x in SAVED.arrays.items():
        assert arrays[name].dtype == x.dtype
        np.testing.assert_array_equal(arrays[name], x)
    # Of the shards, those that are owned.
    np.testing.assert_array_equal(rows.arrays[1], [0, 1, 0, 0, 0, 5])


def test_the_last_and_the_best_are_kept(folder):
    saving = folder(keep=2)
    for step, loss in enumerate([3.0, 1.0, 2.0, np.nan, 4.0, 5.0], 1):
        saving.save(step, SAVED._replace(rows=None), loss)
    saving.finish()
    assert saving.steps == [2, 5, 6]


def test_who_goes_on_from_an_earlier_step_leaves_the_later_ones_behind(folder):
    saving = folder()
    for step in (2, 4, 6):
        saving.save(step, SAVED, None)
    saving.finish()
    going_on = folder()
    going_on.begin(2)
    assert going_on.steps == [2, 4, 6]
    going_on.save(3, SAVED, None)
    going_on.finish()
    assert going_on.steps == [2, 3]


def test_it_is_time_after_so_many_steps_or_minutes_or_at_every_look(folder, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(room.time, "monotonic", lambda: now[0])
    by_steps, by_time, always = folder(every=10), folder(minutes=2), folder()
    assert [by_steps.is_due(step) for step in (9, 10, 11)] == [False, True, True]
    by_steps.begin(12)
    assert [by_steps.is_due(step) for step in (12, 21, 22)] == [False, False, True]
    assert not by_time.is_due(1_000)
    now[0] = 120.0
    assert by_time.is_due(1) and not by_steps.is_due(15)
    by_time.begin(1)
    assert not by_time.is_due(2)
    assert always.is_due(1)
    always.begin(1)
    assert not always.is_due(1)


@pytest.mark.parametrize(
    "options",
    [
        dict(directory=3),
        dict(every=0),
        dict(every=2.0),
        dict(every=True),
        dict(keep=0),
        dict(keep=None),
        dict(minutes=0),
        dict(minutes=-1.5),
        dict(minutes=float("nan")),
    ],
    ids=str,
)
def test_options_that_are_none_are_named(options, tmp_path):
    with pytest.raises(ValueError, match=f"^`{next(iter(options))}` must be"):
        Checkpoints(**(dict(directory=tmp_path) | options))


def test_a_step_without_a_checkpoint_is_named(folder):
    saving = folder()
    saving.save(3, SAVED, None)
    saving.finish()
    with pytest.raises(CheckpointError, match=r"has no checkpoint of step 4; it has those of \[3\]"):
        saving.facts(4)
