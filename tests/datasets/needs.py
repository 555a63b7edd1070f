"""Marks of tests whose data ship with packages that may be missing."""

from importlib.util import find_spec

import pytest


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed")
