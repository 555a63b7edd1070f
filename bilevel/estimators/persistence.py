"""Fitted estimators as directories without pickle: written whole or not at all, and verified before they are read."""

import contextlib
import hashlib
import inspect
import io
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from bilevel.estimators.archetypal_analysis import ArchetypalAnalysis
from bilevel.estimators.dictionary_learning import DictionaryLearning
from bilevel.estimators.encoding import Unwritable, decoded, encoded
from bilevel.estimators.energy_autoencoder import EnergyAutoencoder
from bilevel.estimators.task_driven import TaskDrivenDictionaryClassifier, TaskDrivenDictionaryRegressor
from bilevel.estimators.tuned import ElasticNetTuned, RidgeTuned

#: The version of the layout described in `save`. A change of it adds one, and `load` goes on to read the old ones.
FORMAT = 1

ESTIMATORS = {
    cls.__name__: cls
    for cls in (
        ArchetypalAnalysis,
        DictionaryLearning,
        ElasticNetTuned,
        EnergyAutoencoder,
        RidgeTuned,
        TaskDrivenDictionaryClassifier,
        TaskDrivenDictionaryRegressor,
    )
}

DESCRIPTION, ARRAYS, SUMS = "estimator.json", "arrays.npz", "SHA256SUMS"

#: Parameters of these types name the devices of a process, and are left out.
OF_A_PROCESS = (jax.sharding.Mesh, jax.sharding.Sharding, jax.Device)

PACKAGES = ("bilevel", "jax", "numpy", "scikit-learn")


def save(estimator: BaseEstimator, directory: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write a fitted estimator of `bilevel.estimators` into a new directory, which holds data alone, and no pickle.

    It holds `estimator.json`: the class, its parameters, its fitted attributes, and the versions of format and
    packages; `arrays.npz`: the arrays, which NumPy reads by itself, too; `SHA256SUMS`: the digests of both, which
    `sha256sum --check` verifies. Equal estimators give equal bytes.

    The directory is written beside its place under another name, and renamed when it is complete: whatever fails,
    nothing half-written is left. A directory that is replaced is renamed in turn, and removed at last.

    **Arguments:**

    - `estimator`: a fitted one. Of a pipeline, save the estimator by itself, `pipeline[-1]`.
    - `directory`: where to; the folder above it must exist.
    - `overwrite`: whether to replace an estimator that was saved there; a directory with other files never is.

    What is fitted comes back exactly: dtypes, labels, feature names, what `partial_fit` needs to go on. A parameter
    that names the devices of a process, such as a `jax.sharding.Mesh`, is left out: after `load` it has its default,
    and `set_params` gives another. A number of devices is kept: where there are fewer, `set_params(mesh=None)`.

    **Raises:** `sklearn.exceptions.NotFittedError`; `ValueError` for an object of another class, and for a parameter or
    attribute that is not data, such as a random state or a function; `FileExistsError`; `OSError` where the directory
    cannot be written.
    """
    name = type(estimator).__name__
    if ESTIMATORS.get(name) is not type(estimator):
        raise ValueError(
            f"`save` takes an estimator of `bilevel.estimators`, {', '.join(ESTIMATORS)}; got {name}. Of a pipeline, "
            "save its estimator by itself, `pipeline[-1]`."
        )
    check_is_fitted(estimator, msg="This %(name)s is not fitted, so that there is nothing to save. Call `fit` first.")
    arrays: dict[str, np.ndarray] = {}
    description = {"format": FORMAT, "versions": _versions(), "estimator": name, **_described(estimator, arrays)}
    archive = io.BytesIO()
    np.savez(archive, **arrays)  # pyright: ignore[reportArgumentType]
    text = json.dumps(description, indent=1, allow_nan=False) + "\n"
    files = {DESCRIPTION: text.encode(), ARRAYS: archive.getvalue()}
    files[SUMS] = b"".join(_sum(name, content) for name, content in files.items())
    # A link is followed, and stays.
    _write(files, Path(os.path.realpath(directory)), overwrite)


def load(directory: str | os.PathLike[str]) -> Any:
    """The estimator that `save` wrote into a directory, in this process or another, by this version or an older one.

    Every byte is verified before it is used. Only the classes of `bilevel.estimators` are made, and nothing that the
    directory holds is run. With the same packages on the same machine, what the estimator says is the same bit for
    bit; with others it may differ by rounding.

    **Raises:** `FileNotFoundError` or `NotADirectoryError` where there is no directory, or one of its files is missing;
    `ValueError` where a file is damaged, where the format or a parameter is newer than this version of the library, or
    the class is not one of its estimators.
    """
    directory = Path(directory)
    if not directory.is_dir():
        error = NotADirectoryError if directory.exists() else FileNotFoundError
        raise error(f"There is no directory {str(directory)!r}. Pass `load` one that `save` wrote.")
    sums = _read(directory, SUMS).splitlines(keepends=True)
    text = _verified(directory, DESCRIPTION, sums)
    with _complaining(directory):
        description = json.loads(text)
        version, name, writer = description["format"], description["estimator"], description["versions"]["bilevel"]
        is_newer, is_known = version > FORMAT, name in ESTIMATORS
    here = f"{str(directory)!r}, written by bilevel {writer},"
    reader = f"this is bilevel {_versions()['bilevel']}. Upgrade it, or fit and save anew"
    if is_newer:
        raise ValueError(f"{here} has format {version}, and formats up to {FORMAT} are known here; {reader}.")
    if not is_known:
        raise ValueError(
            f"{here} holds a {name!r}, which is none of the estimators here, {list(ESTIMATORS)}; {reader}."
        )
    content = _verified(directory, ARRAYS, sums)
    with _complaining(directory):
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
        parameters, attributes = (
            {key: decoded(code, arrays) for key, code in description[part].items()}
            for part in ("parameters", "attributes")
        )
    if unknown := sorted(parameters.keys() - inspect.signature(ESTIMATORS[name]).parameters.keys()):
        raise ValueError(f"{here} has parameters that {name} does not have here, {unknown}; {reader}.")
    estimator = ESTIMATORS[name](**parameters)
    vars(estimator).update(attributes)
    return estimator


def _described(estimator: BaseEstimator, arrays: dict[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Parameters, and all else that the estimator holds, as JSON."""
    parameters = estimator.get_params(deep=False)
    attributes = {name: value for name, value in vars(estimator).items() if name not in parameters}
    kept = {name: value for name, value in parameters.items() if not isinstance(value, OF_A_PROCESS)}
    advice = {
        "parameters": "What is fitted does not depend on it any more: give it another value by `set_params`, such as "
        "None, a number, or a NumPy array, save, and set it again after `load`.",
        "attributes": "Fit with labels and feature names that are numbers or strings, or delete what was added.",
    }
    described = {}
    for part, values in (("parameters", kept), ("attributes", attributes)):
        try:
            described[part] = {name: encoded(value, f"{part}.{name}", arrays) for name, value in values.items()}
        except Unwritable as error:
            raise ValueError(
                f"{type(estimator).__name__} cannot be saved: {error}, which is not data, and would need a pickle. "
                f"{advice[part]}"
            ) from error
    return described


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        # The library also runs from its source, without being installed.
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {"bilevel": "unknown", **versions}


def _sum(name: str, content: bytes) -> bytes:
    """A line as `sha256sum` writes it."""
    return f"{hashlib.sha256(content).hexdigest()}  {name}\n".encode()


def _write(files: dict[str, bytes], directory: Path, overwrite: bool) -> None:
    """The files as a directory, by a rename. What was there before comes back if that fails."""
    new, old = (directory.parent / f".{uuid.uuid4().hex}.{part}" for part in ("new", "old"))
    if os.path.lexists(directory):
        _check_replaceable(directory, files, overwrite)
    try:
        new.mkdir()
        for name, content in files.items():
            with open(new / name, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        _sync(new)
        try:
            if overwrite and directory.exists():
                os.rename(directory, old)
            os.rename(new, directory)
        except BaseException:
            if old.exists() and not directory.exists():
                os.rename(old, directory)
            raise
        _sync(directory.parent)
    except OSError as error:
        raise OSError(
            error.errno,
            f"Could not save to {str(directory)!r}: {error.strerror}. Nothing half-written is left. See that the "
            "folder above it exists, that you may write there, and that there is space.",
        ) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _check_replaceable(directory: Path, files: dict[str, bytes], overwrite: bool) -> None:
    if not overwrite:
        raise FileExistsError(
            f"{str(directory)!r} exists. Choose another directory, or pass `overwrite=True` to replace an estimator "
            "that was saved there."
        )
    others = sorted(set(os.listdir(directory)) - files.keys()) if directory.is_dir() else ["a file"]
    if others:
        raise FileExistsError(
            f"{str(directory)!r} is not a saved estimator, and is not replaced: it holds {', '.join(others[:3])}. "
            "Choose another directory."
        )


def _sync(folder: Path) -> None:
    """Have the names in a folder on disk, where the system can: Windows and some network disks cannot."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _read(directory: Path, name: str) -> bytes:
    try:
        return (directory / name).read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{str(directory)!r} has no file {name!r}: it was not written by `save`, or was copied in part. Copy it "
            "anew, or fit and save anew."
        ) from error


def _verified(directory: Path, name: str, sums: list[bytes]) -> bytes:
    """The content of a file with the digest that stands in `sums`."""
    content = _read(directory, name)
    if _sum(name, content) not in sums:
        raise ValueError(
            f"{str(directory / name)!r} is not as `save` wrote it: its SHA-256 is not the one in {SUMS}. One of the "
            "two was damaged, cut short or edited. Copy the directory anew, or fit and save anew."
        )
    return content


@contextlib.contextmanager
def _complaining(directory: Path) -> Iterator[None]:
    """Whatever is wrong inside, although the sums were right, is a directory which `save` did not write."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(
            f"{str(directory)!r} cannot be read: {type(error).__name__}, {error}. It was edited, or `save` did not "
            "write it. Fit and save anew."
        ) from error
