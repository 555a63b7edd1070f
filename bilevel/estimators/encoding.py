"""What an estimator holds, as JSON and plain arrays, and back: data alone, nothing that could run when it is read."""

import inspect
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.model_selection import KFold, LeaveOneOut, LeavePOut, PredefinedSplit, ShuffleSplit, TimeSeriesSplit

from bilevel.estimators.energy_autoencoder import Seen

#: Classes that are their constructor's arguments, kept under the same names.
RECORDS = {
    cls.__name__: cls for cls in (Seen, KFold, LeaveOneOut, LeavePOut, PredefinedSplit, ShuffleSplit, TimeSeriesSplit)
}

#: Booleans, numbers, strings and times. NumPy writes all others as pickles, or as bytes without their meaning.
KINDS = "biufcUSMm"


class Unwritable(Exception):
    """A value that is not data, by its type and where it stands."""


# JSON has None, booleans, strings, lists, whole and finite numbers, which are written as they are. All else is an
# object of one entry, {kind: content}.
def encoded(value: Any, path: str, arrays: dict[str, np.ndarray]) -> Any:
    """`value` as JSON; its arrays, and its scalars of NumPy, are put into `arrays`, under names that begin with `path`.

    Raises `Unwritable`.
    """
    match value:
        case np.generic():
            return {"scalar": _stored(np.asarray(value), path, arrays)}
        case np.ndarray() if type(value) in (np.ndarray, np.memmap):
            if value.dtype == object:
                return {"objects": {"shape": list(value.shape), "items": encoded(list(value.flat), path, arrays)}}
            return {"array": _stored(value, path, arrays)}
        case int() if type(value) is int and abs(value) >= 2**63:
            return {"int": hex(value)}
        case float() if type(value) is float and not math.isfinite(value):
            return {"float": repr(value)}
        case None | bool() | int() | float() | str() if type(value) in (type(None), bool, int, float, str):
            return value
        case list() if type(value) is list:
            return [encoded(item, f"{path}.{i}", arrays) for i, item in enumerate(value)]
        case tuple() if type(value) is tuple:
            return {"tuple": encoded(list(value), path, arrays)}
        case dict() if type(value) is dict and all(type(key) is str for key in value):
            return {"dict": {key: encoded(item, f"{path}.{key}", arrays) for key, item in value.items()}}
    name = type(value).__name__
    if RECORDS.get(name) is not type(value):
        raise Unwritable(f"`{path}` is a {type(value).__module__}.{type(value).__qualname__}")
    fields = {field: getattr(value, field) for field in inspect.signature(type(value)).parameters}
    return {name: {field: encoded(item, f"{path}.{field}", arrays) for field, item in fields.items()}}


def decoded(code: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """The value that `encoded` made `code` of. Code of another making raises one error or another, and runs nothing."""
    if isinstance(code, list):
        return [decoded(item, arrays) for item in code]
    if not isinstance(code, dict):
        return code
    ((kind, content),) = code.items()
    match kind:
        case "array" | "scalar":
            array = arrays[content["name"]]
            if (array.dtype.str, list(array.shape)) != (content["dtype"], content["shape"]):
                raise ValueError(f"array {content['name']} is another than that described")
            return array if kind == "array" else array[()]
        case "objects":
            items = decoded(content["items"], arrays)
            return np.fromiter(items, dtype=object, count=len(items)).reshape(content["shape"])
        case "int":
            return int(content, 16)
        case "float":
            return float(content)
        case "tuple":
            return tuple(decoded(content, arrays))
        case "dict":
            return {key: decoded(item, arrays) for key, item in content.items()}
    return RECORDS[kind](**{key: decoded(item, arrays) for key, item in content.items()})


def _stored(array: np.ndarray, path: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    if array.dtype.kind not in KINDS:
        raise Unwritable(f"`{path}` is an array of {array.dtype}")
    # Names that any file system takes.
    name = path if re.fullmatch(r"[\w.]+", path, re.ASCII) and path not in arrays else str(len(arrays))
    arrays[name] = np.asarray(array)
    return {"name": name, "dtype": array.dtype.str, "shape": list(array.shape)}
