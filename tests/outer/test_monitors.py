"""What is seen of a training: the protocol of callbacks, logs and how they go on, measures, dead atoms."""

import csv
import importlib.util
import json
import socket
import struct
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel as bl
from bilevel.core import packages
from bilevel.outer.monitors.reseeding import reseeded
from tests.compiling import compilations, compiled
from tests.outer.examples import (
    ATOMS,
    FEATURES,
    SAMPLES,
    coding_problem,
    coding_variables,
    leaves_of,
    regression_loss,
    ridge_problem,
    same,
    signals,
    split_of,
)

KEY = jax.random.key(3)
TRAINER = bl.Trainer(coding_problem(), optax.adam(0.05), 4)
DATA = signals()
TIMES = ("time", "seconds", "steps_per_second")


def fit(*callbacks, num_steps=8, every=2, state=None, trainer=TRAINER, **options):
    start = dict(key=KEY) if state is None else dict(state=state)
    return trainer.fit(DATA, num_steps, every=every, callback=callbacks, **start, **options)


# --- The protocol -----------------------------------------------------------------------------------------------------


def test_every_callback_is_called_and_one_may_stop():
    seen = []

    def stop(state, history):
        seen.append("stop")
        return int(state.step) == 4

    def look(state, history):
        seen.append((int(state.step), len(history["loss"])))

    fitted = fit(stop, look)
    assert seen == ["stop", (2, 2), "stop", (4, 4)]
    assert len(fitted.history["loss"]) == 4


def test_training_goes_on_from_the_state_that_a_callback_returns():
    seen = []

    def undo(state, history):
        first = TRAINER.problem.project(TRAINER.problem.variables)
        return eqx.tree_at(lambda s: s.variables, state, first)

    fitted = fit(undo, lambda state, history: seen.append(state.variables), num_steps=4)
    assert all(same(variables, TRAINER.problem.project(TRAINER.problem.variables)) for variables in seen)
    assert same(fitted.variables, seen[0]) and same(fitted.state.variables, seen[0])
    # The same batch from the same dictionary, and from another.
    plain = fit(num_steps=4)
    np.testing.assert_array_equal(fitted.history["loss"][:2], plain.history["loss"][:2])
    assert fitted.history["loss"][2] != plain.history["loss"][2]


def test_what_no_training_can_go_on_from_is_refused():
    shorter = lambda state, history: eqx.tree_at(lambda s: s.variables.task, state, jnp.zeros(2))
    with pytest.raises(ValueError, match=r"^`callback\(state, history\)` belongs to another trainer"):
        fit(shorter)


@pytest.mark.parametrize("callback", [3, [print, 3]])
def test_what_is_no_callback_is_named(callback):
    with pytest.raises(ValueError, match=r"^`callback` must be a function, a monitor or a sequence of them, got 3"):
        TRAINER.fit(DATA, 2, callback=callback)


# --- Rows -------------------------------------------------------------------------------------------------------------


def rows_of(path: Path) -> list[dict[str, float]]:
    text = path.read_text()
    if path.suffix == ".csv":
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(text.splitlines())]
    return [json.loads(line) for line in text.splitlines()]


def spoiled_loss(variables, codes, batch):
    """NaN where sample 7 is in the batch."""
    return regression_loss(variables, codes, batch[:2]) + jnp.where(jnp.any(batch[2] == 7), jnp.nan, 0.0)


def test_a_row_is_what_happened_since_the_last_look(tmp_path):
    trainer = bl.Trainer(coding_problem(spoiled_loss), optax.adam(0.05), 5)
    data = (*DATA, jnp.arange(SAMPLES))
    log = bl.monitors.CSVLog(tmp_path / "folder" / "log.csv", measures=[lambda state: {"twice": 2 * int(state.step)}])
    judge = lambda variables, codes, batch: regression_loss(variables, codes, batch[:2])
    options = dict(key=KEY, every=4, validation=data, validation_loss=judge, on_failure="skip")
    fitted = trainer.fit(data, 10, callback=log, **options)
    history, rows = fitted.history, rows_of(log.path)
    assert [row["step"] for row in rows] == [4, 8, 10] and [row["twice"] for row in rows] == [8, 16, 20]
    assert len(fitted.history["validation_loss"]) == 3
    for row, loss, begin, end in zip(rows, history["validation_loss"], [0, 4, 8], [4, 8, 10], strict=True):
        steps = range(begin, end)
        taken = [i for i in steps if not history["refused"][i]]
        assert row["refused_steps"] == (end - begin) / 2 == len(steps) - len(taken)
        assert row["loss"] == pytest.approx(sum(history["loss"][i] for i in taken) / len(taken))
        assert row["gradient_norm"] == pytest.approx(sum(history["gradient_norm"][i] for i in taken) / len(taken))
        assert row["optimality"] == max(history["optimality"][i] for i in steps)
        assert row["inner_steps"] == pytest.approx(sum(history["inner_steps"][i] for i in steps) / len(steps))
        assert row["failed_solves"] == 0
        assert row["validation_loss"] == loss
    times, seconds, rates = ([row[name] for row in rows] for name in TIMES)
    assert times == sorted(times) and seconds == sorted(seconds)
    np.testing.assert_allclose(np.diff(seconds) * rates[1:], [4, 2])
    assert seconds[0] * rates[0] == pytest.approx(4)


def test_failed_solves_are_counted(tmp_path):
    trainer = bl.Trainer(coding_problem(), optax.adam(0.05), solver=bl.solvers.ProximalGradient(max_steps=1))
    log = bl.monitors.JSONLines(tmp_path / "log.jsonl")
    fit(log, trainer=trainer, num_steps=2, on_failure="skip")
    (row,) = rows_of(log.path)
    assert row["failed_solves"] == row["refused_steps"] == 2
    # There is no mean of no loss.
    assert row["loss"] is None and row["optimality"] > 1e-8


def test_measures_that_hide_a_loss_are_refused(tmp_path):
    log = bl.monitors.CSVLog(tmp_path / "log.csv", measures=[lambda state: {"loss": 1.0}])
    with pytest.raises(ValueError, match=r"`measures` give \['loss'\] twice"):
        fit(log)
    with pytest.raises(ValueError, match=r"^`measures` must be functions of a state, got 'dead'"):
        bl.monitors.Console(measures=["dead"])


# --- Files ------------------------------------------------------------------------------------------------------------

FILES = [(bl.monitors.CSVLog, "log.csv"), (bl.monitors.JSONLines, "log.jsonl")]
every_file = pytest.mark.parametrize(("kind", "name"), FILES)


@every_file
def test_a_row_is_on_the_disk_before_training_goes_on(kind, name, tmp_path):
    log, seen = kind(tmp_path / name), []
    fit(log, lambda state, history: seen.append(log.path.read_bytes()))
    assert all(text.endswith(b"\n") for text in seen)
    assert [text.count(b"\n") - (name == "log.csv") for text in seen] == [1, 2, 3, 4]


@every_file
@pytest.mark.parametrize("torn", [0, 1, 9])
def test_the_log_of_a_resumed_training_is_that_of_an_undisturbed_one(kind, name, torn, tmp_path):
    """It is killed while it writes the row of step 8, and resumed from step 4."""
    whole, log = (kind(tmp_path / which / name, [bl.monitors.Sparsity()]) for which in ("whole", "resumed"))
    states = {}
    fit(whole, log, lambda state, history: states.update({int(state.step): state}), num_steps=8)
    log.path.write_bytes(log.path.read_bytes()[:-torn] if torn else log.path.read_bytes())
    fit(log, state=states[4], num_steps=6)
    fit(whole, state=states[8], num_steps=2)
    for a, b in zip(rows_of(whole.path), rows_of(log.path), strict=True):
        assert a.keys() == b.keys()
        assert [a[k] for k in a if k not in TIMES] == [b[k] for k in b if k not in TIMES]
    assert [row["step"] for row in rows_of(log.path)] == [2, 4, 6, 8, 10]


@every_file
def test_rows_of_other_looks_than_those_to_come_are_dropped_too(kind, name, tmp_path):
    log, states = kind(tmp_path / name), {}
    fit(log, lambda state, history: states.update({int(state.step): state}))
    fit(log, state=states[4], num_steps=6, every=3)
    assert [row["step"] for row in rows_of(log.path)] == [2, 4, 7, 10]


@every_file
def test_a_new_training_starts_its_log_anew(kind, name, tmp_path):
    fit(kind(tmp_path / name, [bl.monitors.Sparsity()]))
    log = kind(tmp_path / name)
    fit(log, num_steps=2)
    (row,) = rows_of(log.path)
    assert row["step"] == 2 and "nonzeros" not in row


@every_file
@pytest.mark.parametrize("text", [b"samples,features\n1,2\n", b"\x00" * 99, b"{}\n"])
def test_other_files_are_left_alone(kind, name, text, tmp_path):
    (tmp_path / name).write_bytes(text)
    with pytest.raises(ValueError, match=f"{name} is not a log of this kind"):
        fit(kind(tmp_path / name))
    assert (tmp_path / name).read_bytes() == text


def test_a_log_of_other_columns_is_refused(tmp_path):
    log = bl.monitors.CSVLog(tmp_path / "log.csv")
    state = fit(log, num_steps=4).state
    with pytest.raises(ValueError, match=r"log\.csv has the columns step,.*, but now they are step,.*,dead_atoms"):
        fit(bl.monitors.CSVLog(log.path, [bl.monitors.Sparsity()]), state=state)
    assert [row["step"] for row in rows_of(log.path)] == [2, 4]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_a_full_disk_is_named(tmp_path):
    log, states = bl.monitors.JSONLines(tmp_path / "log.jsonl"), []

    def fill_the_disk(state, history):
        states.append(int(state.step))
        log.path.unlink()
        log.path.symlink_to("/dev/full")

    with pytest.raises(OSError, match=r"This log cannot be written: No space left .*log\.jsonl"):
        fit(log, fill_the_disk)
    assert states == [2]


@pytest.mark.parametrize("kind", [kind for kind, _ in FILES])
def test_a_place_that_cannot_be_written_is_named_before_training_begins(kind, tmp_path):
    (tmp_path / "file").write_text("")
    seen = []
    for path in (tmp_path, tmp_path / "file" / "log"):
        with pytest.raises(OSError, match="This log cannot be written: ") as caught:
            fit(lambda state, history: seen.append(state), kind(path))
        assert str(tmp_path) in str(caught.value)
    assert seen == []


# --- TensorBoard and console ------------------------------------------------------------------------------------------


def events_of(file: Path) -> list:
    """The events of a file: each is its length, a checksum, its bytes, a checksum."""
    from tensorboardX.proto.event_pb2 import Event

    data, events = file.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return events


@pytest.mark.skipif(importlib.util.find_spec("tensorboardX") is None, reason="tensorboardX is not installed")
def test_tensorboard_gets_the_curves(tmp_path):
    board, log = bl.monitors.TensorBoard(tmp_path / "runs"), bl.monitors.CSVLog(tmp_path / "log.csv")
    counts = []
    state = fit(board, log, lambda *_: counts.append(sum(map(len, map(events_of, board.directory.iterdir()))))).state
    # Each row at once.
    assert len(set(np.diff(counts))) == 1 and counts[0] < counts[1]
    first, start, *events = [event for file in board.directory.iterdir() for event in events_of(file)]
    assert first.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (1, start.session_log.START)
    curves = {}
    for event in events:
        for value in event.summary.value:
            curves.setdefault(value.tag, []).append((event.step, value.simple_value))
    rows = rows_of(log.path)
    assert curves.keys() == rows[0].keys() - {"step", "time"}
    for name in curves.keys() - set(TIMES):
        np.testing.assert_allclose(curves[name], [(row["step"], row[name]) for row in rows], rtol=1e-6)
    # A second training writes another file, and hides steps after its first.
    known = set(board.directory.iterdir())
    fit(board, state=state, num_steps=2)
    (new,) = set(board.directory.iterdir()) - known
    assert events_of(new)[1].step == 9


def test_without_tensorboardx_its_group_is_named(monkeypatch):
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'bilevel\[tensorboard\]'"):
        bl.monitors.TensorBoard("runs")


def test_the_console_gets_a_line_a_look(capfd):
    fit(bl.monitors.Console(last_step=8, measures=[lambda state: {"answer": 42}]))
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["2/8", "4/8", "6/8", "8/8"]
    assert all(" steps/s, " in line and " left: loss " in line and line.endswith("answer 42") for line in lines)
    assert " 00:00 left" in lines[-1]


def test_lines_and_the_progress_bar_do_not_mix(capfd):
    fit(bl.monitors.Console(), progress=True)
    shown = capfd.readouterr()
    assert len(shown.out.splitlines()) == 4
    assert all(part in shown.err for part in ("8/8", "loss=", "it/s", "00:00<"))


def test_small_losses_show(capfd):
    tiny = lambda variables, codes, batch: 1e-7 * regression_loss(variables, codes, batch)
    fitted = fit(trainer=bl.Trainer(coding_problem(tiny), optax.sgd(0.1)), num_steps=1, progress=True)
    assert f"loss={fitted.history['loss'][-1]:.4g}" in capfd.readouterr().err


# --- Measures ---------------------------------------------------------------------------------------------------------


def with_dead_atoms(count=2, task=None):
    """Variables whose last atoms are orthogonal to all samples and to the other atoms, and the samples."""
    X = np.array(DATA[0])
    X[:, -1] = 0
    variables = coding_variables(task)
    dictionary = np.array(variables.objective.dictionary)
    dictionary[:, -1] = 0
    dictionary[-count:] = np.eye(FEATURES)[-1]
    return eqx.tree_at(lambda v: v.objective.dictionary, variables, jnp.asarray(dictionary)), jnp.asarray(X)


def codes_by_hand(objective, X, steps=3000):
    """By proximal gradient in NumPy."""
    D, l1, l2 = (np.asarray(x) for x in (objective.dictionary, objective.l1, objective.l2))
    codes, L = np.zeros((len(X), len(D))), np.linalg.norm(D, 2) ** 2 + l2
    for _ in range(steps):
        z = codes - ((codes @ D - X) @ D.T + l2 * codes) / L
        codes = np.sign(z) * np.maximum(np.abs(z) - l1 / L, 0)
    return codes


def state_of(variables, X, optimizer=optax.adam(0.05)):
    trainer = bl.Trainer(coding_problem(variables=variables), optimizer)
    return trainer.init((X, DATA[1]), KEY)


@pytest.mark.parametrize("kept", [True, False])
def test_sparsity_and_dead_atoms_are_counted(kept):
    variables, X = with_dead_atoms()
    state, codes = state_of(variables, X), codes_by_hand(variables.objective, np.asarray(X))
    if kept:
        state = eqx.tree_at(lambda s: s.warm_start, state, jnp.asarray(codes))
    found = bl.monitors.Sparsity(None if kept else X)(state)
    dead = sum(not np.any(codes[:, atom]) for atom in range(ATOMS))
    assert found == {"nonzeros": np.mean(codes != 0), "dead_atoms": dead}
    assert 0 < found["nonzeros"] < 1 and dead >= 2


def test_warm_starts_may_be_numpy_arrays():
    variables, X = with_dead_atoms()
    codes = codes_by_hand(variables.objective, np.asarray(X))
    states = [
        eqx.tree_at(lambda s: s.warm_start, state_of(variables, X), kind(codes)) for kind in (np.asarray, jnp.asarray)
    ]
    assert bl.monitors.Sparsity()(states[0]) == bl.monitors.Sparsity()(states[1])


def test_other_inner_solutions_are_sparse_or_not_too():
    trainer, batch = bl.Trainer(ridge_problem(0.5), optax.sgd(0.1)), split_of()
    state = trainer.fit(batch, 1).state
    assert bl.monitors.Sparsity()(state) == {"nonzeros": 1.0}
    without = bl.Trainer(trainer.problem, trainer.optimizer, warm_start=False).init(batch, KEY)
    with pytest.raises(ValueError, match="training keeps no warm starts: give it `data`"):
        bl.monitors.Sparsity()(without)
    assert bl.monitors.Sparsity(batch.fit)(without) == {"nonzeros": 1.0}


def test_failed_solves_have_no_sparsity():
    variables, X = with_dead_atoms()
    hasty = bl.solvers.ProximalGradient(max_steps=1)
    found = bl.monitors.Sparsity(X, hasty)(state_of(variables, X))
    assert np.isnan(found["nonzeros"]) and np.isnan(found["dead_atoms"])


@pytest.fixture(scope="module")
def hasty():
    return bl.Trainer(coding_problem(), optax.adam(0.05), solver=bl.solvers.ProximalGradient(tol=1e-3))


def test_the_error_that_a_certificate_estimates_is_the_true_one(hasty):
    measure, state = bl.monitors.HypergradientCertificate(hasty, DATA), hasty.init(DATA, KEY)
    found = measure(state)

    @compiled
    def gradient(variables, solver):
        loss = lambda variables: hasty.problem.loss(variables, DATA, solver=solver)[0]
        return eqx.filter_grad(loss)(variables).objective

    rough, exact = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(gradient(state.variables, solver))])
                    for solver in (hasty.solver, None))  # fmt: skip
    true = np.linalg.norm(rough - exact) / np.linalg.norm(exact)
    assert true > 1e-6
    assert found["hypergradient_error"] == pytest.approx(true, rel=0.1)
    assert 1e-8 < found["hypergradient_optimality"] <= 1e-3
    assert found["hypergradient_certified"] == 1 and found["hypergradient_at_risk"] == 0


def test_a_certificate_is_of_the_state_and_needs_no_new_program(hasty):
    """Another head is another gradient: its error is another, too."""
    measure, state = bl.monitors.HypergradientCertificate(hasty, DATA), hasty.init(DATA, KEY)
    first = measure(state)
    other = eqx.tree_at(lambda s: s.variables.task, state, state.variables.task[::-1] + 1)
    before = compilations()
    second = measure(other)
    assert compilations() == before
    assert first["hypergradient_margin"] == second["hypergradient_margin"]
    assert first["hypergradient_error"] != second["hypergradient_error"]
    loss = lambda objective, codes, X: regression_loss(bl.Variables(objective, other.variables.task), codes, DATA)
    options = dict(solver=hasty.solver, on_failure="ignore")
    done = bl.hypergradient(loss, other.variables.objective, DATA[0], **options)
    np.testing.assert_allclose(second["hypergradient_error"], done.certificate.relative_error, rtol=1e-6)
    assert second["hypergradient_optimality"] == float(jnp.max(done.certificate.samples.optimality))


def test_failed_hypergradients_are_measured_not_raised():
    trainer = bl.Trainer(coding_problem(), optax.adam(0.05), solver=bl.solvers.ProximalGradient(max_steps=1))
    found = bl.monitors.HypergradientCertificate(trainer, DATA)(trainer.init(DATA, KEY))
    assert found["hypergradient_certified"] == 0
    with pytest.raises(ValueError, match="`trainer` must be a Trainer, got BilevelProblem"):
        bl.monitors.HypergradientCertificate(trainer.problem, DATA)


# --- Dead atoms -------------------------------------------------------------------------------------------------------


def test_dead_atoms_become_the_residuals_of_the_samples_reconstructed_worst():
    variables, X = with_dead_atoms(task=np.arange(float(ATOMS)))
    trainer = bl.Trainer(coding_problem(variables=variables), optax.adam(0.05))
    states, lines = [], []
    reseed = bl.monitors.ReseedDeadAtoms(X, report=lines.append)
    keep = lambda state, history: states.append(state)
    trainer.fit((X, DATA[1]), 10, every=5, key=KEY, callback=[keep, reseed, keep])
    before, after, later, last = states
    old, new = (np.asarray(s.variables.objective.dictionary) for s in (before, after))
    residuals = np.asarray(X) - codes_by_hand(before.variables.objective, np.asarray(X)) @ old
    worst = residuals[np.argsort(-np.linalg.norm(residuals, axis=1))]
    dead = [atom for atom in range(ATOMS) if not np.any(np.asarray(before.warm_start)[:, atom])]
    assert dead == [ATOMS - 2, ATOMS - 1]
    np.testing.assert_array_equal(np.delete(new, dead, 0), np.delete(old, dead, 0))
    length = np.max(np.linalg.norm(old, axis=1))
    np.testing.assert_allclose(new[dead[0]], length * worst[0] / np.linalg.norm(worst[0]), rtol=1e-6)
    assert lines == ["step 5: 2 of 2 dead atoms re-seeded"]
    # Steps later they are in use, and stay in the ball.
    assert bl.monitors.Sparsity()(before)["dead_atoms"] == 2
    assert bl.monitors.Sparsity()(later)["dead_atoms"] == 0
    assert same(later, last)
    # All else is as it was, but the moments of these atoms.
    assert same(after.variables.task, before.variables.task) and same(after.warm_start, before.warm_start)
    for name in ("mu", "nu"):
        moments, forgotten = (getattr(s.optimizer[0], name) for s in (before, after))
        assert same(moments.task, forgotten.task)
        moments, forgotten = (np.asarray(m.objective.dictionary) for m in (moments, forgotten))
        np.testing.assert_array_equal(np.delete(forgotten, dead, 0), np.delete(moments, dead, 0))
        assert not np.any(forgotten[dead])


def test_moments_of_others_in_the_shape_of_the_dictionary_stay():
    """The task is a dictionary, too; momentum of the dead atom comes from a decay of its length."""
    variables, X = with_dead_atoms(task=np.ones((ATOMS, FEATURES)))
    loss = lambda v, codes, batch: jnp.mean((codes @ v.task) ** 2) + jnp.sum(v.objective.dictionary**2)
    trainer = bl.Trainer(coding_problem(loss, variables=variables), optax.sgd(0.01, momentum=0.9))
    state = trainer.fit((X, DATA[1]), 2, key=KEY).state
    after = bl.monitors.ReseedDeadAtoms(X, report=None).start(state)(state, {})
    (trace,), (forgotten,) = ([x for x in jax.tree.leaves(s.optimizer, is_leaf=lambda x: isinstance(x, bl.Variables))
                               if isinstance(x, bl.Variables)] for s in (state, after))  # fmt: skip
    assert same(trace.task, forgotten.task) and np.any(trace.task)
    assert np.all(np.any(trace.objective.dictionary[-2:] != 0, axis=1))
    np.testing.assert_array_equal(np.asarray(forgotten.objective.dictionary[-2:]), 0)
    assert same(trace.objective.dictionary[:-2], forgotten.objective.dictionary[:-2])


def test_reseeding_is_deterministic_and_ends():
    variables, X = with_dead_atoms()
    trainer = bl.Trainer(coding_problem(variables=variables), optax.adam(0.05))
    run = lambda **options: trainer.fit(
        (X, DATA[1]), 4, every=2, key=KEY, callback=bl.monitors.ReseedDeadAtoms(X, report=None, **options)
    )
    first, second, never = run(), run(), run(until=0)
    assert same(first.state, second.state)
    assert not same(first.state, never.state)
    np.testing.assert_array_equal(never.variables.objective.dictionary[-1], np.eye(FEATURES)[-1])


def test_an_atom_that_some_sample_uses_is_not_dead(capfd):
    """The samples given do not use it, but one of the others did when it was last seen."""
    variables, X = with_dead_atoms(1)
    # An optimizer without memory, too.
    state = state_of(variables, X, optax.sgd(0.1))
    reseed = bl.monitors.ReseedDeadAtoms(X)
    replaced = reseed.start(state)(state, {})
    assert capfd.readouterr().out == "step 0: 1 of 1 dead atoms re-seeded\n"
    assert not same(replaced.variables, state.variables)
    used = eqx.tree_at(lambda s: s.warm_start, state, state.warm_start.at[3, -1].set(0.1))
    assert reseed.start(used)(used, {}) is None
    assert capfd.readouterr().out == ""


def test_where_codes_are_not_solved_nothing_is_replaced():
    variables, X = with_dead_atoms()
    state = state_of(variables, X)
    reseed = bl.monitors.ReseedDeadAtoms(X, solver=bl.solvers.ProximalGradient(max_steps=1))
    assert reseed.start(state)(state, {}) is None


def huber(x, reconstruction):
    return jnp.sum(optax.losses.huber_loss(reconstruction, x, delta=0.5))


def test_residuals_are_those_of_the_loss():
    variables, X = with_dead_atoms(1)
    objective = bl.objectives.SparseCoding(variables.objective.dictionary, l1=0.2, l2=0.1, loss=huber)
    state = state_of(bl.Variables(objective, variables.task), X)
    after = bl.monitors.ReseedDeadAtoms(X, report=None).start(state)(state, {})
    codes = np.asarray(bl.argmin(objective, X).params)
    slopes = np.clip(np.asarray(X) - codes @ np.asarray(objective.dictionary), -0.5, 0.5)
    worst = slopes[np.argmax(np.linalg.norm(slopes, axis=1))]
    np.testing.assert_allclose(after.variables.objective.dictionary[-1], worst / np.linalg.norm(worst), rtol=1e-5)


def test_reseeding_needs_a_dictionary_and_fitting_samples():
    state = bl.Trainer(ridge_problem(0.5), optax.sgd(0.1)).init(split_of(), KEY)
    with pytest.raises(ValueError, match="`ReseedDeadAtoms` needs a SparseCoding objective, got Ridge"):
        bl.monitors.ReseedDeadAtoms(DATA[0]).start(state)
    with pytest.raises(ValueError, match="`X` has 3 features"):
        fit(bl.monitors.ReseedDeadAtoms(DATA[0][:, :3]))


@pytest.mark.parametrize("l2", [0.0, 0.3])
@pytest.mark.parametrize("above", [True, False])
def test_a_new_atom_is_taken_just_where_its_sample_would_use_it(l2, above):
    """Against codes by proximal gradient in NumPy, l1 a hundredth below or above the residual's length."""
    rng = np.random.default_rng(0)
    dictionary = np.vstack([rng.normal(size=(2, FEATURES)), np.zeros((1, FEATURES))])
    dictionary /= np.maximum(np.linalg.norm(dictionary, axis=1, keepdims=True), 1e-12)
    x, dead = rng.normal(size=(1, FEATURES)), np.array([False, False, True])
    # The residual depends on l1: find the l1 at which it is as long as l1.
    low, high = 0.0, 10.0
    residual = lambda l1: x - codes_by_hand(bl.objectives.SparseCoding(dictionary, l1, l2), x) @ dictionary
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if np.linalg.norm(residual(middle)) > middle else (low, middle)
    l1 = low * (0.99 if above else 1.01)
    new, replaced = reseeded(dictionary, dead, residual(l1), l1)
    np.testing.assert_array_equal(replaced, [False, False, above])
    with_atom = dictionary.copy()
    with_atom[2] = residual(l1)[0] / np.linalg.norm(residual(l1))
    codes = codes_by_hand(bl.objectives.SparseCoding(with_atom, l1, l2), x)
    assert (codes[0, 2] != 0) == above
    np.testing.assert_allclose(new, with_atom if above else dictionary)


def test_atoms_are_not_replaced_by_others_alike():
    dictionary = np.diag([2.0, 1.0, 1.0, 1.0])
    dead = np.array([False, True, True, False])
    residuals = np.array([[9.0, 0, 0, 0.1], [0, 8, 0, 0], [0, 7, 0.2, 0], [0, 0, 5, 0], [0, 1, 1, 0]])
    new, replaced = reseeded(dictionary, dead, residuals, 0.1)
    np.testing.assert_allclose(new, [[2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]])
    np.testing.assert_array_equal(replaced, dead)
    # As few as there are residuals; and from nothing but dead atoms.
    new, replaced = reseeded(np.zeros((3, 4)), np.ones(3, bool), residuals[1:4], 0.1)
    np.testing.assert_allclose(new, np.eye(4)[[1, 2, 3]] * [[1], [1], [0]])
    np.testing.assert_array_equal(replaced, [True, True, False])


# --- Several processes ------------------------------------------------------------------------------------------------


def test_two_processes_count_all_samples_and_one_writes(tmp_path):
    variables, X = with_dead_atoms()
    objective, X = variables.objective, np.asarray(X)
    codes = codes_by_hand(objective, X)
    for name, array in dict(samples=X, codes=codes, dictionary=np.asarray(objective.dictionary)).items():
        np.save(tmp_path / f"{name}.npy", array)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.outer.two_processes"]
    root = Path(__file__).parents[2]
    processes = [
        subprocess.Popen([*command, str(i), str(port), tmp_path], cwd=root, stderr=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    first, second = (json.loads((tmp_path / f"found{i}.json").read_text()) for i in range(2))
    dead = int(np.sum(~np.any(codes, axis=0)))
    for name in ("of data", "kept"):
        assert first[name] == second[name] == {"nonzeros": np.mean(codes != 0), "dead_atoms": dead}
    (row,) = rows_of(tmp_path / "log0.jsonl")
    assert row["dead_atoms"] == dead and not (tmp_path / "log1.jsonl").exists()
    assert len(first["reports"]) == 1 and second["reports"] == []
    # As one process does it.
    state = eqx.tree_at(lambda s: s.warm_start, state_of(variables, X), codes)
    alone = bl.monitors.ReseedDeadAtoms(X, report=None).start(state)(state, {})
    assert first["dictionary"] == second["dictionary"]
    np.testing.assert_allclose(first["dictionary"], alone.variables.objective.dictionary, rtol=1e-7)


def test_states_are_compared_leaf_by_leaf():
    """Of the tests: two states that differ in one leaf are not the same."""
    state = state_of(*with_dead_atoms())
    assert len(leaves_of(state)) > 8
    assert not same(state, eqx.tree_at(lambda s: s.step, state, state.step + 1))
