"""The library's own programs, compiled cheaply."""

import pytest

from tests.outer.programs import compile_cheaply


@pytest.fixture(scope="package", autouse=True)
def cheap_programs():
    with pytest.MonkeyPatch.context() as patch:
        compile_cheaply(patch)
        yield
