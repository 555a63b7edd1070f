"""Estimators on meshes of eight devices of a CPU, in a process of its own, as their number is fixed when JAX starts.

`python -m tests.estimators.on_meshes MEMBER:DEVICES,DEVICES ...`; prints what the tests ask for as JSON.
"""

import json
import os
import re
import sys
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import numpy as np
import pytest
from sklearn.base import clone

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

from bilevel.estimators import (  # noqa: E402
    ArchetypalAnalysis,
    DictionaryLearning,
    ElasticNetTuned,
    EnergyAutoencoder,
    RidgeTuned,
    archetypal_analysis,
    base,
    energy_autoencoder,
    tuned,
)
from tests.compiling import compiled  # noqa: E402
from tests.estimators.examples import outputs, without_warnings  # noqa: E402
from tests.outer.on_meshes import COLLECTIVE  # noqa: E402
from tests.outer.programs import compile_cheaply  # noqa: E402

SAMPLES, FEATURES = 101, 6
#: A tolerance that is met ends an iteration; rounding must not decide after how many steps.
MEMBERS: dict[str, Any] = {
    "archetypes": ArchetypalAnalysis(4, max_iter=5, tol=1e-14, random_state=0),
    "archetypes from an array": ArchetypalAnalysis(4, init=np.eye(4, FEATURES), max_iter=2, tol=1e-14, normalize=True),
    "autoencoder": EnergyAutoencoder(8, max_iter=5, tol=0.0, random_state=0),
    "dictionary": DictionaryLearning(8, max_iter=3, random_state=0),
    "dictionary in batches": DictionaryLearning(8, batch_size=16, max_iter=2, random_state=0),
    "elastic net": ElasticNetTuned(max_iter=2, cv=5),
    "ridge": RidgeTuned(max_iter=2, cv=5, per_feature=True),
}
PROGRAMS = {archetypal_analysis: ("_alternate", "_solve_weights", "_verify", "_furthest_sum", "_nearest_in_hull")}
PROGRAMS |= {base: ("_encode",), energy_autoencoder: ("_alternate", "_code", "_fit_to"), tuned: ("_evaluate",)}


def samples() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.dirichlet(np.full(5, 0.3), size=SAMPLES) @ rng.normal(size=(5, FEATURES))
    X += 0.1 * rng.normal(size=X.shape)
    return X, X[:, 0] - X[:, 1] + 0.1 * rng.normal(size=SAMPLES)


def widest(program: Any) -> int:
    """The longest axis of what the devices tell each other."""
    told = COLLECTIVE.findall(program.compiled.as_text())
    return max((int(n) for shapes, _ in told for n in re.findall(r"(?<=[[,])\d+(?=[],])", shapes)), default=0)


def spied(function: Any, found: list[int]) -> Any:
    """The program of a function, which notes what its devices tell each other."""
    programs: dict[str, Any] = {}

    def run(*args: Any) -> Any:
        key = str(jax.tree.map(lambda x: (x.shape, x.dtype) if hasattr(x, "shape") else x, args))
        if key not in programs:
            programs[key] = compiled(function).lower(*args).compile()
            found.append(widest(programs[key]))
        return programs[key](*args)

    return run


def said(member: str, devices: int | None, found: list[int]) -> list[np.ndarray]:
    """All that is fitted, and said of other samples, on so many devices."""
    model = clone(MEMBERS[member]).set_params(mesh=devices)
    X, y = samples()
    with pytest.MonkeyPatch.context() as patch:
        for module, names in PROGRAMS.items():
            for name in names:
                patch.setattr(module, name, spied(getattr(module, name).__wrapped__, found))
        without_warnings(model.fit, X, y)
        if member == "autoencoder":
            without_warnings(model.partial_fit, X[:50])
        values = [value for value in vars(model).values() if isinstance(value, np.ndarray | float)]
        return values + outputs(model, X[:7])


def distance(values: list[np.ndarray], others: list[np.ndarray]) -> float:
    """The largest relative difference of an array."""
    norm = lambda x: float(np.linalg.norm(np.asarray(x, float).ravel()))
    return max(norm(np.subtract(a, b)) / max(norm(b), 1e-300) for a, b in zip(values, others, strict=True))


def main(cases: list[str]) -> None:
    compile_cheaply(pytest.MonkeyPatch())
    found: dict[str, Any] = {}
    for case in cases:
        member, counts = case.split(":")
        # Without a mesh, batches consist of other samples.
        alone = said(member, 1 if member == "dictionary in batches" else None, [])
        for count in map(int, counts.split(",")):
            told: list[int] = []
            found[f"{member} on {count}"] = {"distance": distance(said(member, count, told), alone), "told": max(told)}
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
