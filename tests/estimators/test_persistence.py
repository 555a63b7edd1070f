"""Estimators that are saved come back as they were, in another process too; what is not as it was saved is refused.

The models in `saved/` are of format 1, and every later version must read them. A new format adds a folder:
`python -m tests.estimators.test_persistence`.
"""

import copy
import errno
import hashlib
import inspect
import io
import json
import math
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import KFold, LeaveOneOut, PredefinedSplit, RepeatedKFold, ShuffleSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import bilevel
from bilevel import estimators
from bilevel.estimators import (
    ArchetypalAnalysis,
    DictionaryLearning,
    ElasticNetTuned,
    EnergyAutoencoder,
    RidgeTuned,
    TaskDrivenDictionaryClassifier,
    TaskDrivenDictionaryRegressor,
    archetypal_analysis,
    load,
    persistence,
    save,
    tuned,
)
from bilevel.estimators.encoding import decoded, encoded
from bilevel.estimators.energy_autoencoder import Seen
from tests.compiling import compiled
from tests.estimators.examples import outputs, samples, without_warnings
from tests.outer.programs import compile_cheaply

SAVED = Path(__file__).parent / "saved"
FILES = ["SHA256SUMS", "arrays.npz", "estimator.json"]

X = samples()
FRAME = pd.DataFrame(X, columns=["a", "b b", "ä", "/", "\ud800"])
LABELS = np.array(["low", "middle", "hoch"], object)[np.digitize(X[:, 0], [-0.5, 0.5])]
TARGETS = np.stack([X[:, 0] - X[:, 1], X[:, 2]], axis=1).astype(np.float32)
BRIEF = dict(n_components=2, max_iter=2, random_state=0)

#: What is fitted, with samples and targets, so that every kind of thing that an estimator may hold is there.
MEMBERS: dict[str, tuple[Any, Any, Any]] = {
    "ArchetypalAnalysis": (ArchetypalAnalysis(2, init=X[:2].T.copy().T, normalize=True, max_iter=2), X, None),
    "DictionaryLearning": (DictionaryLearning(**BRIEF), FRAME, None),
    "ElasticNetTuned": (
        ElasticNetTuned(l1_ratio=None, cv=[(np.arange(12), np.arange(12, 24))], max_iter=1),
        X,
        TARGETS[:, 0],
    ),
    "EnergyAutoencoder": (EnergyAutoencoder(**BRIEF, mesh=1), X, None),
    "RidgeTuned": (RidgeTuned(per_feature=True, cv=KFold(2), max_iter=np.int64(1)), X, TARGETS),
    "TaskDrivenDictionaryClassifier": (TaskDrivenDictionaryClassifier(**BRIEF), FRAME, LABELS),
    "TaskDrivenDictionaryRegressor": (TaskDrivenDictionaryRegressor(**BRIEF), X.astype(np.float32), TARGETS),
}
every_member = pytest.mark.parametrize("name", MEMBERS)


def fitted(name: str) -> Any:
    estimator, X, y = MEMBERS[name]
    model = without_warnings(clone(estimator).fit, X, y)
    return without_warnings(model.partial_fit, X[:7]) if name == "EnergyAutoencoder" else model


def all_outputs(name: str, model: Any) -> list[np.ndarray]:
    X = MEMBERS[name][1]
    extra = [model.encode(X)] if name == "EnergyAutoencoder" else []
    said = [np.asarray(output) for output in without_warnings(outputs, model, X)] + extra
    return [output.astype(str) if output.dtype == object else output for output in said]


def compile_all_cheaply(patch: pytest.MonkeyPatch) -> None:
    """In every process alike: programs that are compiled in other ways round in other ways."""
    compile_cheaply(patch)
    programs = ("_alternate", "_solve_weights", "_verify", "_furthest_sum", "_nearest_in_hull")
    for module, name in (*((archetypal_analysis, name) for name in programs), (tuned, "_evaluate")):
        patch.setattr(module, name, compiled(getattr(module, name).__wrapped__))


@pytest.fixture(scope="module")
def models() -> Iterator[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        compile_all_cheaply(patch)
        yield {name: fitted(name) for name in MEMBERS}


@pytest.fixture(scope="module")
def saved(models, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved models, with spaces")
    for name, model in models.items():
        save(model, folder / name)
    return folder


@pytest.fixture
def one(saved, tmp_path) -> Path:
    """A saved model that a test may spoil."""
    return Path(shutil.copytree(saved / "DictionaryLearning", tmp_path / "one"))


def same(a: Any, b: Any) -> bool:
    """Of the same types and the same bits, in all depths."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray) and a.dtype == object:
        return a.shape == b.shape and same(list(a.flat), list(b.flat))
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if type(a).__module__.startswith("sklearn."):
        return same(vars(a), vars(b))
    return a == b if isinstance(a, int) else repr(a) == repr(b)


def bytes_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


# --- What comes back --------------------------------------------------------------------------------------------------


def test_every_estimator_is_a_member():
    public = [
        value for value in vars(estimators).values() if inspect.isclass(value) and issubclass(value, BaseEstimator)
    ]
    assert sorted(cls.__name__ for cls in public) == list(MEMBERS) == list(persistence.ESTIMATORS)


@every_member
def test_all_that_is_held_comes_back(models, saved, name):
    model, loaded = models[name], load(saved / name)
    assert type(loaded) is type(model)
    assert same(loaded.get_params(), model.get_params())
    assert same(dict(sorted(vars(loaded).items())), dict(sorted(vars(model).items())))
    for a, b in zip(all_outputs(name, model), all_outputs(name, loaded), strict=True):
        assert same(a, b)


def test_members_hold_every_kind(models):
    assert models["DictionaryLearning"].feature_names_in_.dtype == object
    assert models["TaskDrivenDictionaryClassifier"].classes_.dtype == object
    assert models["TaskDrivenDictionaryRegressor"].dictionary_.dtype == np.float32
    assert models["EnergyAutoencoder"]._num_batches == 2


SCRIPT = """
import sys
from pathlib import Path
import numpy as np, pytest
from bilevel.estimators import load
from tests.estimators.test_persistence import MEMBERS, all_outputs, compile_all_cheaply
compile_all_cheaply(pytest.MonkeyPatch())
for name in MEMBERS:
    np.savez(Path(sys.argv[2], f"{name}.npz"), *all_outputs(name, load(Path(sys.argv[1], name))))
"""


def test_another_process_says_the_same(models, saved, tmp_path):
    root = Path(bilevel.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", SCRIPT, saved, tmp_path], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, model in models.items():
        with np.load(tmp_path / f"{name}.npz") as said:
            for i, expected in enumerate(all_outputs(name, model)):
                assert same(said[f"arr_{i}"], expected)


@pytest.mark.parametrize("name", MEMBERS)
def test_models_saved_by_the_first_version_load(name):
    model = load(SAVED / "format_1" / name)
    with np.load(SAVED / "format_1" / "outputs.npz") as expected:
        for i, output in enumerate(all_outputs(name, model)):
            if output.dtype.kind == "U":
                np.testing.assert_array_equal(output, expected[f"{name}.{i}"])
            else:
                tol = 1e-3 if output.dtype == np.float32 else 1e-6
                np.testing.assert_allclose(output, expected[f"{name}.{i}"], rtol=tol, atol=tol)


def test_learning_goes_on_as_if_nothing_had_been(models, saved):
    model, loaded = copy.deepcopy(models["EnergyAutoencoder"]), load(saved / "EnergyAutoencoder")
    for batch in (samples(9, seed=1), samples(5, seed=2)):
        without_warnings(model.partial_fit, batch)
        without_warnings(loaded.partial_fit, batch)
    assert same(loaded.dictionary_, model.dictionary_)
    assert same(loaded.encoder_, model.encoder_)
    assert same(loaded._seen, model._seen)


@every_member
def test_a_clone_of_what_is_loaded_is_a_clone(models, saved, name):
    again = clone(load(saved / name))
    assert same(again.get_params(), models[name].get_params())
    with pytest.raises(NotFittedError):
        all_outputs(name, again)


@every_member
def test_equal_estimators_give_equal_bytes(saved, name, tmp_path):
    save(load(saved / name), tmp_path / "again")
    assert bytes_of(tmp_path / "again") == bytes_of(saved / name)


@every_member
def test_nothing_is_a_pickle(models, saved, name, tmp_path, monkeypatch):
    assert sorted(bytes_of(saved / name)) == FILES
    with zipfile.ZipFile(saved / name / "arrays.npz") as archive:
        assert len(archive.namelist()) >= 2
        for member in archive.namelist():
            with archive.open(member) as file:
                assert np.lib.format.read_magic(file) == (1, 0)
                assert not np.lib.format.read_array_header_1_0(file)[2].hasobject
    json.loads((saved / name / "estimator.json").read_text(encoding="ascii"))

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("pickle was used")

    for function in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, function, refuse)
    save(models[name], tmp_path / "model")
    load(tmp_path / "model")


@every_member
def test_arrays_keep_their_layout(models, saved, name):
    """Rounding in products depends on it."""
    arrays = {key: value for key, value in vars(load(saved / name)).items() if isinstance(value, np.ndarray)}
    for key, value in arrays.items():
        before = getattr(models[name], key)
        assert before.dtype == object or before.flags.c_contiguous or before.flags.f_contiguous
        assert value.flags.f_contiguous == before.flags.f_contiguous


def test_sums_are_those_of_sha256sum(saved):
    for line in (saved / "RidgeTuned" / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((saved / "RidgeTuned" / name).read_bytes()).hexdigest() == digest


def test_the_output_that_was_set_stays_set(models, tmp_path):
    model = copy.deepcopy(models["DictionaryLearning"]).set_output(transform="pandas")
    save(model, tmp_path / "model")
    assert isinstance(load(tmp_path / "model").transform(FRAME), pd.DataFrame)


def test_what_names_the_devices_of_a_process_is_left_out(models, tmp_path):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("samples",))
    model = copy.deepcopy(models["DictionaryLearning"]).set_params(verbose=mesh)
    save(model, tmp_path / "model")
    assert load(tmp_path / "model").verbose is False


def test_paths_may_be_relative_strings_and_links(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("deep").mkdir()
    Path("link").symlink_to("deep/model", target_is_directory=True)
    save(models["RidgeTuned"], "deep/../link")
    assert Path("link").is_symlink() and Path("deep", "model").is_dir()
    save(models["DictionaryLearning"], "link/", overwrite=True)
    assert Path("link").is_symlink() and os.listdir("deep") == ["model"]
    assert isinstance(load("link"), DictionaryLearning)


VALUES = {
    "nothing": [None, True, False, 0, -1, 2**63 - 1, 2**63, -(2**64), 10**5000, "", "ä\ud800\0\n", 0.1, -0.0, 5e-324],
    "not finite": [math.nan, math.inf, -math.inf],
    "scalars": [np.float32(0.1), np.float64(-0.0), np.int8(3), np.bool_(True), np.str_("ä"), np.float16(np.nan)],
    "more scalars": [np.longdouble(1) / 3, np.complex64(1j), np.datetime64("2020-01-01"), np.uint64(2**64 - 1)],
    "nested": [(), [], {}, ([1, (2, [3])], {"a": {"b": (None,)}}), {"": 1, "a.b": 2, "ä": np.ones(2), "../x": 0}],
    "alike": {"a": {"b": np.zeros(2)}, "a.b": np.ones(2), "0": np.ones(3), "a/b": np.ones(4), "a\0": np.ones(5)},
    "arrays": [np.zeros((0, 3)), np.array(1.5), np.arange(6.0).reshape(2, 3, 1), np.array([np.nan, -0.0, np.inf])],
    "layouts": [np.asfortranarray(X), X.T, X[::2, ::-1], np.broadcast_to(1.0, (3, 2)), X.astype(">f8")],
    "labels": [np.array(["ä", "b"]), np.array([b"a"]), np.array([True, False]), np.array([3, -5], np.int16)],
    "objects": [np.array(["a", 1, None, 2.5, (1,)], object), np.array([[1, "b"]], object), np.array(None, object)],
    "times": [np.array(["2020-01-01", "NaT"], "M8[ns]"), np.array([3], "m8[D]")],
    "records": [Seen(np.ones(2), np.zeros((1, 2)), 3)],
    "splitters": [KFold(3, shuffle=True, random_state=0), ShuffleSplit(1), PredefinedSplit([0, -1, 1]), LeaveOneOut()],
}  # fmt: skip


@pytest.mark.parametrize("kind", VALUES)
def test_every_value_comes_back(kind):
    arrays: dict[str, np.ndarray] = {}
    archive = io.BytesIO()
    code = json.dumps(encoded(VALUES[kind], "value", arrays), allow_nan=False)
    np.savez(archive, **arrays)
    archive.seek(0)
    with np.load(archive, allow_pickle=False) as stored:
        assert same(decoded(json.loads(code), stored), VALUES[kind])


# --- What is not saved ------------------------------------------------------------------------------------------------


def test_what_is_not_fitted_is_not_saved(tmp_path):
    with pytest.raises(NotFittedError, match=r"^This RidgeTuned is not fitted.*Call `fit` first"):
        save(RidgeTuned(), tmp_path / "model")
    assert os.listdir(tmp_path) == []


class Subclass(RidgeTuned):
    pass


@pytest.mark.parametrize("other", [make_pipeline(StandardScaler(), RidgeTuned()), Subclass(), 3, RidgeTuned])
def test_only_the_library_s_own_classes_are_saved(other, tmp_path):
    with pytest.raises(ValueError, match=r"^`save` takes an estimator of `bilevel\.estimators`, .*; got"):
        save(other, tmp_path / "model")


NO_DATA = {
    "random_state": [np.random.RandomState(0), np.random],
    "init": [lambda: 0, pd.DataFrame(X), np.ma.array([1.0]), jax.numpy.ones(2), np.array([{1}], object)],
    "l1": [
        1j,
        2**0.5 + 0j,
        {1: 2},
        {1, 2},
        b"a",
        np.array([1], np.dtype([("a", int)])),
        np.ones(1, jax.numpy.bfloat16),
    ],
    "tol": [RepeatedKFold(), KFold(2, shuffle=True, random_state=np.random.RandomState(0)), iter([]), type],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in NO_DATA.items() for value in values])
def test_a_parameter_that_is_not_data_is_named(models, name, value, tmp_path):
    model = copy.deepcopy(models["DictionaryLearning"]).set_params(**{name: value})
    message = rf"^DictionaryLearning cannot be saved: `parameters\.{name}[\w.]*` is .*pickle\. .*`set_params`"
    with pytest.raises(ValueError, match=message):
        save(model, tmp_path / "model")
    assert os.listdir(tmp_path) == []


def test_an_attribute_that_is_not_data_is_named(models, tmp_path):
    model = copy.deepcopy(models["TaskDrivenDictionaryClassifier"])
    model.classes_ = np.array([frozenset([1]), frozenset([2])], object)
    with pytest.raises(ValueError, match=r"`attributes\.classes_\.0` is a builtins\.frozenset, .*labels"):
        save(model, tmp_path / "model")


def test_what_exists_is_not_replaced_unless_it_is_a_saved_estimator(models, saved, one):
    before = bytes_of(one)
    with pytest.raises(FileExistsError, match=r"one' exists.*overwrite=True"):
        save(models["RidgeTuned"], one)
    assert bytes_of(one) == before
    save(models["RidgeTuned"], one, overwrite=True)
    assert bytes_of(one) == bytes_of(saved / "RidgeTuned")
    Path(one, "thesis.tex").write_text("precious")
    Path(one.parent, "file").write_text("precious")
    for precious, what in ((one, "thesis.tex"), (one.parent / "file", "a file"), (one.parent, "file, one")):
        with pytest.raises(FileExistsError, match=f"not a saved estimator.* {what}"):
            save(models["RidgeTuned"], precious, overwrite=True)
    assert Path(one, "thesis.tex").exists() and sorted(os.listdir(one.parent)) == ["file", "one"]
    Path(one.parent, "empty").mkdir()
    save(models["RidgeTuned"], one.parent / "empty", overwrite=True)


def test_a_missing_parent_is_named(models, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Could not save to .*model'.*folder above"):
        save(models["RidgeTuned"], tmp_path / "no" / "model")


def test_a_full_disk_leaves_nothing(models, tmp_path):
    """A limit on the size of files is the full disk that every user may have."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, before[1]))
    try:
        with pytest.raises(OSError, match=r"Could not save to .*model'.*Nothing half-written"):
            save(models["EnergyAutoencoder"], tmp_path / "model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_whatever_step_fails_the_old_or_the_new_is_there_and_nothing_else(models, tmp_path, monkeypatch, exists, code):
    target = tmp_path / "model"
    if exists:
        save(models["RidgeTuned"], target)
    turn, raised, finished = 0, 0, False
    while not finished:
        turn += 1
        with monkeypatch.context() as patch:
            steps = fail_at(turn, OSError(code, os.strerror(code)), patch)
            try:
                save(models["DictionaryLearning"], target, overwrite=exists)
                error = None
            except OSError as raised_error:
                error = raised_error
        finished = len(steps) < turn
        if error is not None:
            raised += 1
            assert error.errno == code and str(target) in str(error)
            assert os.listdir(tmp_path) == (["model"] if exists else [])
            assert not exists or isinstance(load(target), RidgeTuned)
        else:
            assert os.listdir(tmp_path) == ["model"]
            assert isinstance(load(target), DictionaryLearning)
            shutil.rmtree(target)
            if exists:
                save(models["RidgeTuned"], target)
    # The folder, three files, a rename or two; folders are synchronized where that is possible.
    assert raised == 5 + exists


def fail_at(turn: int, error: OSError, patch: pytest.MonkeyPatch) -> list[str]:
    """Let the `turn`-th of these steps fail; the list of them grows while they are taken."""
    steps: list[str] = []

    def step(name: str, function: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            steps.append(name)
            if len(steps) == turn:
                raise error
            return function(*args, **options)

        return call

    for name in ("mkdir", "fsync", "rename"):
        patch.setattr(os, name, step(name, getattr(os, name)))
    return steps


# --- What is not loaded -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_named(one, file):
    Path(one, file).unlink()
    with pytest.raises(FileNotFoundError, match=f"one' has no file '{file}'.*Copy it anew"):
        load(one)


def test_what_is_no_directory_is_refused(one):
    with pytest.raises(FileNotFoundError, match=r"There is no directory .*none'"):
        load(one / "none")
    with pytest.raises(NotADirectoryError, match=r"There is no directory .*npz'"):
        load(one / "arrays.npz")
    with pytest.raises(FileNotFoundError, match="was not written by `save`"):
        load(one.parent)


@pytest.mark.parametrize("file", FILES)
def test_a_byte_that_is_not_as_it_was_is_noticed(one, file):
    content = Path(one, file).read_bytes()
    spoiled = [content[:length] for length in (0, 1, len(content) // 2, len(content) - 1)] + [content + b"\n"]
    for place in range(0, len(content), 1 if file == "SHA256SUMS" else 23):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        spoiled.append(bytes(flipped))
    if file == "SHA256SUMS":
        # A line more says nothing of the other files.
        spoiled.remove(content + b"\n")
    for other in spoiled:
        Path(one, file).write_bytes(other)
        with pytest.raises(ValueError, match=r"is not as `save` wrote it.*damaged.*Copy the directory anew"):
            load(one)
    Path(one, file).write_bytes(content)
    load(one)


def reseal(directory: Path) -> None:
    """Give edited files the digests that they should have."""
    files = sorted(set(FILES) - {"SHA256SUMS"})
    digests = (hashlib.sha256(Path(directory, name).read_bytes()).hexdigest() for name in files)
    Path(directory, "SHA256SUMS").write_text("".join(f"{a}  {b}\n" for a, b in zip(digests, files, strict=True)))


def edit(directory: Path, *path: str, value: Any) -> None:
    """Set one entry of the description."""
    description = part = json.loads(Path(directory, "estimator.json").read_text())
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    Path(directory, "estimator.json").write_text(json.dumps(description))
    reseal(directory)


def test_an_edited_number_is_what_is_loaded(one):
    edit(one, "parameters", "l1", value=0.25)
    assert load(one).l1 == 0.25


ANOTHER_VERSION = [
    (("format",), 2, "has format 2, and formats up to 1 are known here; this is bilevel .*Upgrade"),
    (("estimator",), "Pipeline", "holds a 'Pipeline', which is none of the estimators here.*Upgrade"),
    (("estimator",), "os.system", "holds a 'os.system', which is none"),
    (("estimator",), "sklearn.pipeline.Pipeline", "holds a 'sklearn.pipeline.Pipeline', which is none"),
    (("parameters", "smoothness"), 3, r"parameters that DictionaryLearning does not have here, \['smoothness'\]"),
]
ARRAY = ("attributes", "dictionary_", "array")
EDITED = [
    (("format",), "2"),
    (("versions",), None),
    (("estimator",), ["RidgeTuned"]),
    (("parameters",), []),
    (("attributes",), {"a": {"system": {"command": "false"}}}),
    (("attributes",), {"a": {}}),
    (("attributes",), {"a": {"int": "0", "float": "0"}}),
    (("attributes",), {"a": {"int": "x"}}),
    (("attributes",), {"a": {"KFold": {"n_splits": -1}}}),
    (("attributes",), {"a": {"objects": {"shape": [3], "items": [1]}}}),
    ((*ARRAY, "name"), "../../secret"),
    ((*ARRAY, "name"), "attributes.usage_"),
    ((*ARRAY, "dtype"), "<f4"),
    ((*ARRAY, "shape"), [1]),
]


@pytest.mark.parametrize(("path", "value", "message"), ANOTHER_VERSION)
def test_what_a_newer_version_wrote_is_refused(one, path, value, message):
    edit(one, *path, value=value)
    with pytest.raises(ValueError, match=f"one', written by bilevel .*{message}"):
        load(one)


@pytest.mark.parametrize(("path", "value"), EDITED)
def test_what_save_does_not_write_is_refused(one, path, value):
    edit(one, *path, value=value)
    with pytest.raises(ValueError, match=r"one' cannot be read: .*It was edited"):
        load(one)


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", "[" * 100_000, '{"format": 1'])
def test_what_is_no_description_is_refused(one, text):
    Path(one, "estimator.json").write_text(text)
    reseal(one)
    with pytest.raises(ValueError, match="one' cannot be read: "):
        load(one)


class Payload:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("it-ran",)


@pytest.mark.parametrize("kind", ["pickle", "array", "archive"])
def test_a_smuggled_pickle_does_not_run(one, kind, monkeypatch):
    monkeypatch.chdir(one.parent)
    smuggled = np.array([Payload()], object)
    with open(one / "arrays.npz", "wb") as file:
        if kind == "pickle":
            pickle.dump(Payload(), file)
        elif kind == "array":
            np.save(file, smuggled, allow_pickle=True)
        else:
            np.savez(file, **{"attributes.dictionary_": smuggled})
    reseal(one)
    with pytest.raises(ValueError, match="one' cannot be read: "):
        load(one)
    assert os.listdir(one.parent) == ["one"]


def write_models() -> None:
    """Models of this format, and what they say."""
    folder = SAVED / f"format_{persistence.FORMAT}"
    folder.mkdir(parents=True)
    said = {}
    for name in MEMBERS:
        model = fitted(name)
        save(model, folder / name)
        for i, output in enumerate(all_outputs(name, model)):
            said[f"{name}.{i}"] = output
    np.savez(folder / "outputs.npz", **said)


if __name__ == "__main__":
    write_models()
