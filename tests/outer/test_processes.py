"""Trainings in several processes, and in processes that are killed."""

import random
import time

import numpy as np
import pytest

from tests.outer.processes import child, children, ended, loaded, until
from tests.outer.scaled import seen, signals, trainer

#: Within this time the others stop after one of several processes was killed, where silence is borne for 10 seconds;
#: `jax.distributed.initialize` bears it for 100 by default.
STOPPED, SILENCE = 60, 10


def trained_alone(steps: int, every: int, path=None) -> dict[str, np.ndarray]:
    """What the processes should end with."""
    return seen(trainer(shards=4).fit(signals(), steps, every=every, validation=signals(31, seed=1)))


def assert_close(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Variables, optimizer, losses. Each process keeps warm starts and order of its own samples alone; when an inner
    solve ends, and how near, is its own affair, too."""
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        if name.endswith(".order"):
            own = found[name] != 0
            assert np.any(own)
            np.testing.assert_array_equal(found[name][own], values[own])
        elif "warm_start" not in name and name not in ("optimality", "inner_steps"):
            error = np.linalg.norm(np.asarray(found[name], float) - values)
            assert error <= 1e-12 * np.linalg.norm(values), name


def assert_identical(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == values.dtype, name
        np.testing.assert_array_equal(found[name], values, err_msg=name)


# --- Several ----------------------------------------------------------------------------------------------------------


def together(processes: int, **options) -> None:
    for process in children(processes, **options):
        ended(process)


def test_two_processes_train_as_one(tmp_path):
    out = tmp_path / "out.npz"
    together(2, steps=9, every=3, checkpoint=tmp_path / "saved", out=out)
    assert_close(loaded(out), trained_alone(9, 3))
    # What two have saved, one goes on from.
    ended(child(steps=12, every=3, checkpoint=tmp_path / "saved", out=out))
    found = loaded(out)
    assert_close(found, trained_alone(12, 3))


@pytest.mark.long
@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_train_as_one(processes, devices, tmp_path):
    together(processes, devices=devices, steps=50, every=10, out=tmp_path / "out.npz")
    assert_close(loaded(tmp_path / "out.npz"), trained_alone(50, 10))


@pytest.mark.long
def test_without_one_of_four_the_others_stop_and_three_go_on(tmp_path):
    options = dict(every=5, checkpoint=tmp_path / "saved")
    processes = children(4, steps=10_000, heartbeat=SILENCE, **options)
    for process in processes:
        until(process, "look 20")
    processes[2].kill()
    killed = time.monotonic()
    for rank in (0, 1, 3):
        said, _ = processes[rank].communicate(timeout=STOPPED)
        assert processes[rank].returncode != 0, said
        assert "rror" in said
    print(f"the others stopped after {time.monotonic() - killed:.1f} s")
    processes[2].communicate()
    steps = max(int(path.name) for path in (tmp_path / "saved").glob("*") if path.name.isdigit()) + 20
    together(3, steps=steps, out=tmp_path / "out.npz", **options)
    assert_close(loaded(tmp_path / "out.npz"), trained_alone(steps, 5))


# --- Killed -----------------------------------------------------------------------------------------------------------


def test_a_training_that_is_killed_while_saving_and_at_any_moment_ends_as_if_it_was_not(tmp_path):
    options = dict(steps=24, every=2, checkpoint=tmp_path / "saved", out=tmp_path / "out.npz")
    ended(child(die_in_save=4, **options), -9)
    assert [path for path in (tmp_path / "saved").iterdir() if "tmp" in path.name]
    killed = child(**options)
    until(killed, "look 12")
    killed.kill()
    ended(killed, -9)
    ended(child(**options))
    assert_identical(loaded(tmp_path / "out.npz"), trained_alone(24, 2))


@pytest.mark.long
def test_a_training_that_is_killed_at_twenty_moments_ends_as_if_it_was_not(tmp_path):
    options = dict(steps=600, every=2, checkpoint=tmp_path / "saved", out=tmp_path / "out.npz")
    draw, kills, halfway = random.Random(0), 0, 0
    while kills < 20:
        process = child(**options)
        # Some while it starts or resumes, most while it trains, which is for the most part to save.
        if kills % 4:
            until(process, "look")
        time.sleep(draw.uniform(0, 1 if kills % 4 else 4))
        assert process.poll() is None, "it ended before it was killed often enough"
        process.kill()
        ended(process, -9)
        kills += 1
        found = list((tmp_path / "saved").iterdir()) if (tmp_path / "saved").exists() else []
        halfway += any("tmp" in path.name for path in found)
    print(f"{halfway} of {kills} kills left a checkpoint half written")
    assert halfway > 0
    ended(child(**options))
    assert_identical(loaded(tmp_path / "out.npz"), trained_alone(600, 2))
