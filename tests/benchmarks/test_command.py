"""`python -m benchmarks`: what it lists, refuses and writes; and what the benchmarks compute beside times."""

import base64
import csv
import json
import re

import jax
import numpy as np
import pytest

from benchmarks import hypergradient_errors, sparse_coding, unrolled_vs_implicit
from benchmarks.__main__ import found, main
from benchmarks.dictionary_training import time_to
from benchmarks.measure import Timed
from benchmarks.results import Results, slug, write
from benchmarks.unrolled_vs_implicit import Program

NAMES = """archetypes autoencoder certificates dictionary_training hypergradient hypergradient_errors
hyperparameter_selection sparse_coding unrolled_vs_implicit weak_scaling""".split()


@pytest.fixture
def own_configuration():
    """The command's choices end with the test."""
    before = jax.config.jax_enable_compilation_cache
    yield
    jax.config.update("jax_enable_compilation_cache", before)


def test_the_list_names_every_benchmark_and_what_it_asks(capsys):
    main([])
    lines = capsys.readouterr().out.splitlines()
    listed = {line.split()[0]: line for line in lines}
    assert NAMES == list(found()) and [*NAMES, "report"] == list(listed)
    assert all(len(line.split()) > 5 for line in lines)


def test_an_unknown_name_is_answered_with_the_known_ones(capsys):
    with pytest.raises(SystemExit) as error:
        main(["sparse_codes"])
    message = capsys.readouterr().err
    assert error.value.code == 2 and "'sparse_codes'" in message and "sparse_coding" in message


def test_a_device_that_is_not_there(capsys):
    if any(device.platform == "tpu" for device in jax.devices()):
        pytest.skip("there is a TPU")
    with pytest.raises(SystemExit):
        main(["certificates", "--device", "tpu"])
    assert "no tpu" in capsys.readouterr().err


def test_a_report_of_nothing(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["report", "--out", str(tmp_path)])
    assert "no results" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_to_is_named_before_anything_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.__main__.measure", lambda *_: pytest.fail("it was measured"))
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit):
        main(["certificates", "--out", str(tmp_path / "file" / "folder")])
    assert "--out" in capsys.readouterr().err


def test_a_run_writes_tables_figures_and_what_was_measured_on_what(tmp_path, monkeypatch, capsys, own_configuration):
    all_ways, first = hypergradient_errors.ways, next(hypergradient_errors.problems())
    chosen = ("Implicit (direct or CG)", "OneStep")
    monkeypatch.setattr(hypergradient_errors, "ways", lambda dtype: {name: all_ways(dtype)[name] for name in chosen})
    monkeypatch.setattr(hypergradient_errors, "problems", lambda: iter([first]))
    main(["hypergradient_errors", "--quick", "--out", str(tmp_path)])
    folder = tmp_path / "hypergradient_errors"
    record = json.loads((folder / "results.json").read_text())
    assert record["benchmark"] == "hypergradient_errors" and record["quick"] and record["seconds"] > 0
    assert {"bilevel", "Python", "jax", "numpy"} <= set(record["versions"])
    assert record["device"].startswith(jax.devices()[0].platform) and record["cores"] >= 1
    assert record["precision"] == "32 and 64 bits" and re.match(r"[0-9a-f]{40}|unknown", record["commit"])
    rows = list(csv.DictReader((folder / "relative_errors.csv").read_text().splitlines()))
    assert [row["way of differentiating"] for row in rows] == list(chosen)
    errors = [float(row["ridge, float64"]) for row in rows]
    assert errors == [row["ridge, float64"] for row in record["tables"]["Relative errors"]]
    assert errors[0] <= 1e-10 < errors[1]
    (figure,) = (folder / name for name in record["figures"].values())
    assert figure.read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "hypergradient_errors.md").read_text()
    assert page in capsys.readouterr().out.replace("\r", "") and f"({folder.name}/{figure.name})" in page

    main(["report", "--out", str(tmp_path)])
    report = (tmp_path / "report.html").read_text()
    assert base64.b64encode(figure.read_bytes()).decode() in report and "OneStep" in report
    assert re.findall(r'(?:src|href)="(?!data:|#)', report) == [] and "@import" not in report


def test_a_second_run_leaves_nothing_of_the_first(tmp_path):
    record = {"quick": True, "versions": {}, "device": "cpu", "cores": 1, "commit": "unknown", "seconds": 0.0}
    for title in ("Before", "After"):
        write("name", "Text.", Results({title: [{"a": 0.123456, "b": None}]}, {}, "64 bits"), record, tmp_path)
    assert [path.name for path in (tmp_path / "name").glob("*.csv")] == ["after.csv"]
    assert "| 0.123 |  |" in (tmp_path / "name.md").read_text() and slug("A b, (c)") == "a_b_c"


def test_spread():
    assert Timed(0.0, [1.0, 2.0, 3.0, 4.0, 5.0], None).spread == "± 33%"
    assert Timed(0.0, [1.0], None).spread == "one run"


def test_a_rival_that_is_not_installed_is_said_in_the_table(monkeypatch):
    monkeypatch.setattr(sparse_coding, "rival", lambda _: None)
    with jax.enable_x64(False):
        rows = sparse_coding.rivals(40, True, 1)
    (spams,) = [row for row in rows if row["solver"].startswith("SPAMS")]
    assert spams["seconds"] == "not installed" and all(set(row) == set(rows[0]) for row in rows)
    (ours,) = [row for row in rows if row["solver"] == "bilevel"]
    assert ours["worst gap"] <= 1e-5 and ours["of bilevel"] == 1


def test_time_to_a_target():
    rows = [
        {"learner": name, "seconds": float(s), "loss": loss}
        for name, s, loss in (("a", 1, 3), ("a", 2, 1), ("b", 3, 2))
    ]
    rows.append({"learner": "c", "seconds": "not installed", "loss": None})
    table = time_to(rows, "learner", "loss", {"near": 2, "nearer": 1})
    assert table[0] == {"target": "near", "loss": 2, "a, s": 2.0, "b, s": 3.0, "c, s": "not installed"}
    assert table[1]["b, s"] == "not met"


def test_the_reference_of_the_ways_is_the_closed_form_of_ridge_regression():
    problem = unrolled_vs_implicit.ridge(6)
    (X, y), (V, z), alpha = (*map(np.asarray, problem.data),), (*map(np.asarray, problem.held_out),), 1e-2
    M = X.T @ X / len(X) + alpha * np.eye(6)
    w = np.linalg.solve(M, X.T @ y / len(X))
    slope = 2 * V.T @ (V @ w - z) / len(V)
    assert unrolled_vs_implicit.reference(problem) == pytest.approx(-alpha * slope @ np.linalg.solve(M, w), rel=1e-9)


def test_fewest_steps_within_the_target():
    at = lambda steps: float(np.exp(-steps / 20))
    exact = 20 * np.log(1 / unrolled_vs_implicit.TARGET)
    errors = {steps: at(steps) for steps in (10, 100, 1000, 3000)}
    found = unrolled_vs_implicit.fewest(at, errors, tries=6)
    assert exact <= found <= 1.2 * exact and len(errors) <= 7
    assert unrolled_vs_implicit.fewest(at, {10: at(10), 1000: at(1000)}, tries=0) == 1000
    # One that crosses the target and comes back, is not there at the end, or is there from the first on.
    never = lambda steps: pytest.fail(f"{steps} steps were tried")
    assert unrolled_vs_implicit.fewest(never, {10: 1e-2, 100: 3e-7, 1000: 1e-5}, tries=6) is None
    assert unrolled_vs_implicit.fewest(never, {10: 1e-2, 100: 3e-7, 1000: np.nan}, tries=6) is None
    assert unrolled_vs_implicit.fewest(never, {10: 1e-8, 100: 1e-9}, tries=6) == 10
    assert unrolled_vs_implicit.fewest(at, {10: 3e-7, 100: np.inf, 1000: 1e-9}, tries=6) >= exact


def test_ways_at_equal_error(monkeypatch):
    """Of a derivative that is 2, with an error of exp(−steps / 20)."""
    chosen, problem = ("Implicit", "OneStep", "Shine (L-BFGS)"), unrolled_vs_implicit.ridge(4)
    every = unrolled_vs_implicit.ways()
    fake = lambda problem, name, diff, steps: Program(lambda: (0.0, 2 + 2 * np.exp(-steps / 20)), 0.1, 2**20)
    monkeypatch.setattr(unrolled_vs_implicit, "ways", lambda: {name: every[name] for name in chosen})
    monkeypatch.setattr(unrolled_vs_implicit, "compiled", fake)
    errors = {("Implicit", 100): 7e-3, ("Implicit", 2000): 0.0, ("OneStep", 100): 1e-7, ("OneStep", 2000): 1e-2}
    rows = [
        {"problem": "ridge", "way": name, "inner steps": steps, "error": errors.get((name, steps)), "note": note}
        for steps in (100, 2000)
        for name, note in zip(chosen, (None, None, "refused"), strict=True)
    ]
    first, second, third = unrolled_vs_implicit.at_equal_error(problem, rows, repeats=1, tries=6, exact=2.0)
    assert 1e-7 <= first["error"] <= 1e-6 and first["times Implicit"] == 1 and first["temporary MiB"] == 1
    assert first["error"] == pytest.approx(np.exp(-first["inner steps"] / 20), rel=1e-6)
    assert second["seconds"] is None and second["note"] == "not met; error 1e-02 at 2000 steps"
    assert third["note"] == "refused" and all(set(row) == set(first) for row in (second, third))
