"""Packages that come with an optional group."""

import importlib.util


def require(package: str, purpose: str, group: str) -> None:
    """Raise an `ImportError` that states the purpose and says how to install the group, unless the package is there."""
    if importlib.util.find_spec(package) is None:
        raise ImportError(f"{purpose} Install it with: pip install 'bilevel[{group}]'")
