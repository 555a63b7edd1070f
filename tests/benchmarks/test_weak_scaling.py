"""The model of weak scaling, and that its measurements come from processes of their own."""

import json

import numpy as np
import pytest

from benchmarks import weak_scaling
from benchmarks.results import slug
from benchmarks.scaling_model import (
    LINKS,
    Accelerator,
    Cost,
    Link,
    Problem,
    efficiency,
    fit,
    operations,
    total,
    traffic,
)

SMALL = Problem(atoms=64, features=144, classes=1, support=10.0, steps=80)


def test_an_all_reduce_sends_nearly_twice_what_is_reduced_and_waits_for_every_hop():
    link = Link(bandwidth=1e9, latency=1e-5)
    assert link.all_reduce(10**6, 1) == 0
    assert link.all_reduce(10**6, 8) == pytest.approx(2 * 7 / 8 * 4e6 / 1e9 + 6e-5)
    assert link.all_reduce(10**6, 8, ring=True) == pytest.approx(2 * 7 / 8 * 4e6 / 1e9 + 14e-5)
    # As many numbers as gradient, loss and what each device says of itself.
    assert SMALL.reduced(8) == 64 * 145 + 1 + 32


def test_work_grows_with_samples_and_efficiency_falls_with_devices():
    for terms in (operations(SMALL, on_cpu=True), operations(SMALL, on_cpu=False), traffic(SMALL)):
        work = total(terms)
        assert work.of(300) - work.of(100) == pytest.approx(200 * work.sample) and work.step > 0
    accelerator = Accelerator(rate=1e13, memory=1e12)
    for link in LINKS.values():
        found = np.array(
            [
                [
                    efficiency(accelerator.seconds(SMALL, samples), link.all_reduce(SMALL.reduced(n), n))
                    for n in (1, 8, 64, 512)
                ]
                for samples in (64, 4096)
            ]
        )
        assert np.all(found[:, 0] == 1) and np.all(np.diff(found, axis=1) < 0) and np.all(found[1, 1:] > found[0, 1:])


def test_the_line_through_measured_steps():
    line = fit({samples: 2e-3 + samples * 3e-6 for samples in (64, 256, 1024)})
    assert line == pytest.approx(Cost(2e-3, 3e-6), rel=1e-9)
    assert fit({64: 1e-3}) == pytest.approx(Cost(0.0, 1e-3 / 64))


@pytest.mark.long
def test_processes_measure_and_the_page_tells_what_was_not_measured(monkeypatch):
    monkeypatch.setattr(weak_scaling, "DEVICES", (1, 2))
    monkeypatch.setattr(weak_scaling, "PROCESSES", ())
    monkeypatch.setattr(weak_scaling, "PER_DEVICE", (16, 32))
    results = weak_scaling.run(quick=True)
    json.dumps(results.tables)
    steps = results.tables["Steps on devices that share these cores"]
    assert [(row["devices"], row["samples on each"]) for row in steps] == [(1, 16), (1, 32), (2, 16), (2, 32)]
    assert all(row["a step, ms"] > 0 for row in steps) and [row["efficiency"] for row in steps[:2]] == [1, 1]
    assert len(results.tables["Steps that are fed"]) == 3
    assert all(row["a step, ms"] > 0 for row in results.tables["Steps that are fed"])
    (stops,) = results.tables["Stops for checkpoints"]
    assert stops["checkpoints"] == 3 and 0 < stops["training stops, ms"] and stops["megabytes of a checkpoint"] > 0
    counted = results.tables["What the compiler counts"]
    grown = {key: counted[1][key] - counted[0][key] for key in counted[0]}
    # Each further sample costs the compiler's program at least its correlations, and the model no more than twice that.
    assert grown["operations, compiler"] >= 16 * 2 * 64 * 144
    assert grown["operations, compiler"] <= 4 * grown["operations, model without foreign calls"]
    assert all("%" in row["on 512"] for row in results.tables["Extrapolated efficiency"])
    assert {"assumed_not_measured", "extrapolated_efficiency"} <= {slug(title) for title in results.tables}
