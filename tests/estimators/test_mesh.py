"""Estimators on meshes: what is fitted is the same, and what devices tell each other does not grow with the samples."""

import json

import numpy as np
import pytest
from sklearn.base import clone

from bilevel import estimators
from tests.estimators.examples import samples, without_warnings
from tests.outer.processes import ended, module

#: A number of devices that divides neither samples nor folds; in the long form all, and one that does.
SHORT = ("archetypes:3", "autoencoder:3", "dictionary in batches:3", "elastic net:3")
LONG = tuple(
    f"{member}:1,2,3,8"
    for member in (
        "archetypes",
        "archetypes from an array",
        "autoencoder",
        "dictionary",
        "dictionary in batches",
        "elastic net",
        "ridge",
    )
)
ALL = [
    estimators.ArchetypalAnalysis(2),
    estimators.DictionaryLearning(2),
    estimators.ElasticNetTuned(),
    estimators.EnergyAutoencoder(2),
    estimators.RidgeTuned(),
    estimators.TaskDrivenDictionaryClassifier(2),
    estimators.TaskDrivenDictionaryRegressor(2),
]
every_estimator = pytest.mark.parametrize("estimator", ALL, ids=lambda estimator: type(estimator).__name__)


@pytest.mark.parametrize("cases", [SHORT, pytest.param(LONG, marks=pytest.mark.long)], ids=["short", "long"])
def test_what_is_fitted_on_a_mesh_is_what_is_fitted_without(cases):
    found = json.loads(ended(module("tests.estimators.on_meshes", *cases)).splitlines()[-1])
    assert len(found) == sum(len(case.split(",")) for case in cases)
    for case, compared in found.items():
        assert compared["distance"] < 1e-12, (case, compared)
        # Of 101 samples three devices have 34 each.
        assert compared["told"] < 34, (case, compared)


@every_estimator
def test_a_clone_has_the_mesh_of_the_original(estimator):
    assert clone(estimator).set_params(mesh=2).get_params()["mesh"] == 2
    assert clone(clone(estimator).set_params(mesh=2)).mesh == 2


@every_estimator
@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        (0, "`mesh` must be a whole number of devices, at least 1, or None"),
        (True, "`mesh` must be a whole number of devices, at least 1, or None"),
        ("data", "`mesh` must be a whole number of devices, at least 1, or None"),
        (np.int64(64), "`mesh` asks for 64 devices; there are"),
    ],
    ids=lambda value: repr(value)[:12],
)
def test_no_mesh_and_more_devices_than_there_are_are_refused(estimator, mesh, message):
    X = samples()
    with pytest.raises(ValueError, match=f"^{message}"):
        clone(estimator).set_params(mesh=mesh).fit(X, np.arange(len(X)) % 2)


@pytest.mark.parametrize("mesh", [True, 1.5, "data"], ids=repr)
def test_what_is_no_mesh_is_refused_after_fitting_too(mesh):
    model = estimators.DictionaryLearning(2, max_iter=1, random_state=0)
    X = samples()
    without_warnings(model.fit, X)
    with pytest.raises(ValueError, match=r"^`mesh` must be a whole number of devices, at least 1, or None, got"):
        model.set_params(mesh=mesh).transform(X)
