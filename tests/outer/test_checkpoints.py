"""Trainings saved and resumed: as if nothing had happened, and refused where a checkpoint is not what it should be."""

import gc
import json
import os
import shutil
import signal
import types
from pathlib import Path

import grain
import numpy as np
import pytest

import bilevel as bl
from bilevel.scale import CheckpointError, orbax_adapter
from tests.outer.scaled import ADAM, loss, mesh_of, problem, seen, signals, trainer

STEPS, EVERY = 12, 3
DATA, VALIDATION = signals(), signals(31, seed=1)
#: One for all tests: another would compile anew.
TRAINER = trainer(shards=4)


def fit(directory=None, data=DATA, steps=STEPS, trainer=TRAINER, **options):
    saving = {} if directory is None else dict(checkpoint=bl.Checkpoints(directory, every=EVERY))
    return trainer.fit(data, steps, **(dict(every=EVERY, validation=VALIDATION) | saving | options))


def assert_same(a: bl.Fitted, b: bl.Fitted) -> None:
    a, b = seen(a), seen(b)
    assert a.keys() == b.keys()
    for name, x in a.items():
        assert x.dtype == b[name].dtype, name
        np.testing.assert_array_equal(x, b[name], err_msg=name)


class Interrupted(Exception):
    pass


def interrupt(state, history):
    if int(state.step) == 9:
        raise Interrupted


@pytest.fixture(scope="module")
def whole() -> bl.Fitted:
    return fit()


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """The checkpoints of steps 6, 9 and 12."""
    directory = tmp_path_factory.mktemp("checkpoints") / "saved"
    fit(directory)
    return directory


@pytest.fixture
def saved(original, tmp_path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "saved"))


def steps_in(directory: Path) -> list[int]:
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())


# --- As if nothing had happened ---------------------------------------------------------------------------------------


def on_one_device():
    return trainer(mesh=mesh_of(1), shards=4)


@pytest.mark.parametrize(
    "make", [lambda: TRAINER, on_one_device, lambda: trainer(None)], ids=["batches", "a mesh", "all samples"]
)
def test_what_was_interrupted_ends_as_if_it_was_not(make, tmp_path):
    training = make()
    with pytest.raises(Interrupted):
        fit(tmp_path, trainer=training, callback=interrupt)
    # A look that was interrupted was not saved.
    assert steps_in(tmp_path) == [3, 6]
    assert_same(fit(tmp_path, trainer=training, resume=True), fit(trainer=training))


def test_what_has_ended_goes_on_and_saving_changes_nothing(saved, whole):
    assert steps_in(saved) == [6, 9, 12]
    assert_same(fit(saved, resume=True), whole)
    assert_same(fit(saved, resume=True, steps=15), fit(steps=15))
    assert steps_in(saved) == [9, 12, 15]


def test_it_goes_on_from_any_step_there_is(saved, whole):
    assert_same(fit(saved, resume=9), whole)
    with pytest.raises(CheckpointError, match=r"has no checkpoint of step 4; it has those of \[6, 9, 12\]"):
        fit(saved, resume=4)


def test_without_a_checkpoint_it_begins(tmp_path, whole):
    assert_same(fit(tmp_path / "new" / "deep", resume=True), whole)


def test_asked_to_end_it_saves_and_leaves(tmp_path, whole, capfd):
    before = signal.getsignal(signal.SIGTERM)

    def ask(state, history):
        if int(state.step) == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    # It saves though that is not due.
    options = dict(checkpoint=bl.Checkpoints(tmp_path, every=100))
    with pytest.raises(SystemExit) as left:
        fit(callback=ask, **options)
    assert left.value.code == 143
    assert f"Asked to end by SIGTERM: step 6 is saved in {tmp_path}; `resume=True` goes on" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before
    assert steps_in(tmp_path) == [6]
    assert_same(fit(resume=True, **options), whole)


def test_the_last_ones_are_kept_and_the_best(tmp_path):
    # What falls in training rises in this validation: the first one is best.
    rising = lambda *args: -loss(*args)
    fitted = fit(tmp_path, validation_loss=rising, checkpoint=bl.Checkpoints(tmp_path, every=EVERY, keep=1))
    steps, losses = (fitted.history[f"validation_{name}"] for name in ("step", "loss"))
    assert np.argmin(losses) < len(losses) - 1
    assert steps_in(tmp_path) == [steps[np.argmin(losses)], STEPS]


def loader(seed=0, batch_size=16):
    rows = grain.MapDataset.source(list(zip(*DATA, strict=True)))
    return rows.seed(seed).shuffle().repeat().batch(batch_size, drop_remainder=True)


def test_a_loader_goes_on_where_it_stood(tmp_path):
    fed = trainer(None)
    make = lambda: loader().to_iter_dataset()
    with pytest.raises(Interrupted):
        fit(tmp_path, make(), trainer=fed, callback=interrupt)
    found, expected = fit(tmp_path, make(), trainer=fed, resume=True), fit(data=loader(), trainer=fed)
    assert_same(found, expected)
    assert len(set(expected.history["loss"])) == STEPS


# --- What is damaged --------------------------------------------------------------------------------------------------


def files_of(checkpoint: Path) -> list[Path]:
    return sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.stat().st_size)


# What Orbax began to read when an error came is thrown away, and complains.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_a_damaged_checkpoint_is_refused_whichever_file_it_is(saved, whole, damage):
    files, refused = files_of(saved / "12"), set()
    for path in files:
        content = path.read_bytes()
        middle = len(content) // 2
        if damage == "flipped":
            path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        elif damage == "truncated":
            path.write_bytes(content[:middle])
        else:
            path.unlink()
        try:
            found = fit(saved, resume=12)
        except CheckpointError as error:
            assert str(saved) in str(error) and "`resume=9` goes on from another" in str(error), (path, error)
            refused.add(str(path.relative_to(saved / "12")))
        else:
            # Orbax writes some things twice, and notes that decide nothing here: then all of it must be right.
            assert_same(found, whole)
        path.write_bytes(content)
    assert {"facts/metadata", *(f"rows/{i:06d}.npz" for i in range(4))} <= refused
    assert any(name.startswith("arrays/d/") for name in refused), refused
    assert_same(fit(saved, resume=9), whole)
    gc.collect()


def rewrite_facts(checkpoint: Path, change) -> None:
    (path,) = (path for path in files_of(checkpoint / "facts") if path.name == "metadata")
    facts = json.loads(path.read_text())
    change(facts)
    path.write_text(json.dumps(facts))


def test_a_newer_format_is_refused(saved):
    rewrite_facts(saved / "12", lambda facts: facts.update(format=1_000))
    with pytest.raises(CheckpointError, match=r"step 12 in .* is of format 1000, written by a newer .*Update bilevel"):
        fit(saved, resume=True)


def test_an_incomplete_checkpoint_is_as_if_it_were_not_there(saved, whole):
    shutil.move(saved / "12", saved / "12.orbax-checkpoint-tmp")
    assert_same(fit(saved, resume=True), whole)


# --- What is foreign --------------------------------------------------------------------------------------------------

FOREIGN = {
    "`num_samples` was 101, and is 100 now": lambda: dict(data=signals(100)),
    "`batch_size` was 16, and is 17 now": lambda: dict(trainer=trainer(17, shards=4)),
    "`shards` was 4, and is 2 now": lambda: dict(trainer=trainer(shards=2)),
}


@pytest.mark.parametrize("said", FOREIGN)
def test_a_checkpoint_of_another_training_is_refused(said, saved):
    with pytest.raises(CheckpointError, match=r"is of another training") as caught:
        fit(saved, resume=True, **FOREIGN[said]())
    assert said in str(caught.value) and str(saved) in str(caught.value)
    assert "Pass what it was, or another directory" in str(caught.value)


def test_a_checkpoint_of_another_problem_is_refused(saved):
    other = bl.Trainer(problem(atoms=7), ADAM, 16, shards=4)
    with pytest.raises(CheckpointError, match=rf"{saved}.*"):
        fit(saved, trainer=other, resume=True)


def test_checkpoints_are_not_written_over(saved):
    with pytest.raises(CheckpointError, match=r"has checkpoints already, of steps \[6, 9, 12\]: `resume=True` goes on"):
        fit(saved)


# --- Where it can't be written ----------------------------------------------------------------------------------------


def test_a_full_disk_is_named_and_what_was_saved_stays(tmp_path, whole, monkeypatch):
    save, saves = orbax_adapter.RowsHandler.save, []

    def full(handler, directory, args):
        saves.append(directory)
        if len(saves) == 3:
            raise OSError(28, os.strerror(28))
        save(handler, directory, args)

    with monkeypatch.context() as patch:
        patch.setattr(orbax_adapter.RowsHandler, "save", full)
        with pytest.raises(CheckpointError, match=r"can't be written at step 9: .*No space left.*Is there space left"):
            fit(tmp_path)
    # Orbax leaves what it was about to write besides, unawaited, which is a warning to Python.
    for each in gc.get_objects():
        # Not `isinstance`, which asks proxies of what is no longer there.
        if type(each) is types.CoroutineType and "async_save" in each.__qualname__:
            each.close()
    assert_same(fit(tmp_path, resume=True), whole)


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"can't be opened: .*may this process write there") as caught:
        fit(tmp_path / "file" / "saved")
    assert str(tmp_path / "file" / "saved") in str(caught.value)


# --- Bad input --------------------------------------------------------------------------------------------------------

BAD = {
    "`resume` needs `checkpoint`": dict(resume=True),
    "`resume` must be True, False or a step": dict(resume=-1, checkpoint="saved"),
    "`checkpoint` must be a path or `Checkpoints`": dict(checkpoint=3),
}


@pytest.mark.parametrize("said", BAD)
def test_bad_input_is_named(said):
    with pytest.raises(ValueError, match=f"^{said}"):
        fit(**BAD[said])
