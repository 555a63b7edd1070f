"""Data that ship with other packages, found as files: the packages themselves are not imported."""

import importlib.util
from pathlib import Path


def packaged_file(package: str, file: str, distribution: str, advice: str = "pip install 'bilevel[data]'") -> Path:
    """Where `file` of `package` lies on this machine.

    Raises `ImportError` with `advice` where the package is missing, or has no such file (any longer).
    """
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ImportError(f"These data ship with `{distribution}`, which is not installed. Install it with: {advice}")
    path = Path(found.submodule_search_locations[0], file)
    if not path.is_file():
        raise ImportError(
            f"The `{distribution}` that is installed has no file {file}; another version may. Install a tested one "
            f"with: {advice}"
        )
    return path
