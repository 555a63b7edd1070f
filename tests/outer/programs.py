"""The programs that training compiles for itself."""

import pytest

from bilevel.estimators import base, energy_autoencoder
from bilevel.outer import runners, trainer
from bilevel.outer.monitors import reseeding, sparsity
from tests.compiling import compiled

PROGRAMS = ((runners, "_run_chunk"), (runners, "_run_step"), (trainer, "_start_jit"), (trainer, "_validate"))
PROGRAMS += ((base, "_encode"), (sparsity, "_solve"), (reseeding, "_explain"))
PROGRAMS += tuple((energy_autoencoder, name) for name in ("_alternate", "_code", "_fit_to"))


def compile_cheaply(patch: pytest.MonkeyPatch) -> None:
    """The same functions, compiled as the tests' own are."""
    for module, name in PROGRAMS:
        patch.setattr(module, name, compiled(getattr(module, name).__wrapped__))
