"""scikit-learn's own checks of an estimator, and its tools around one."""

import pickle

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from bilevel.estimators import TaskDrivenDictionaryClassifier
from tests.estimators.examples import ALL, fitted, outputs, samples, small, targets_of


@parametrize_with_checks([estimator(n_components=3, max_iter=10) for estimator in ALL])
def test_scikit_learn_s_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("estimator", ALL)
def test_a_clone_and_a_pickle_say_the_same(estimator):
    model, X = fitted(estimator), samples(seed=1)
    again = clone(model)
    assert "dictionary_" not in vars(again)
    again.fit(samples(), targets_of(estimator, samples()))
    unpickled = pickle.loads(pickle.dumps(model))
    for other in (again, unpickled):
        for a, b in zip(outputs(model, X), outputs(other, X), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("estimator", ALL)
def test_a_pipeline_does_what_its_parts_do(estimator):
    X, scaler = 5 + 3 * samples(), StandardScaler()
    y = targets_of(estimator, samples())
    pipeline = make_pipeline(StandardScaler(), small(estimator)).fit(X, y)
    model = small(estimator).fit(scaler.fit_transform(X), y)
    for a, b in zip(outputs(pipeline, X), outputs(model, scaler.transform(X)), strict=False):
        np.testing.assert_array_equal(a, b)
    assert list(pipeline.get_feature_names_out()) == list(model.get_feature_names_out())


def test_a_grid_search_prefers_the_better_penalty():
    X = samples()
    y = targets_of(TaskDrivenDictionaryClassifier, X)
    search = GridSearchCV(small(TaskDrivenDictionaryClassifier), {"l1": [0.05, 100.0]}, cv=2).fit(X, y)
    # At a hundred all codes are zero, and every sample gets the most frequent label.
    assert search.best_params_ == {"l1": 0.05}
    assert search.best_score_ > search.cv_results_["mean_test_score"][1]


@pytest.mark.parametrize("estimator", ALL)
def test_data_frames_go_in_and_come_out(estimator):
    X, frame = samples(), pd.DataFrame(samples(), columns=list("abcde"))
    plain, model = fitted(estimator), fitted(estimator, frame)
    np.testing.assert_array_equal(model.feature_names_in_, list("abcde"))
    codes = model.set_output(transform="pandas").transform(frame)
    assert isinstance(codes, pd.DataFrame)
    assert list(codes.columns) == [f"{estimator.__name__.lower()}{i}" for i in range(3)]
    assert list(codes.columns) == list(model.get_feature_names_out())
    np.testing.assert_array_equal(codes, plain.transform(X))
    # Predictions are made of codes, which are a data frame now for others.
    for a, b in zip(outputs(model, frame)[1:], outputs(plain, X)[1:], strict=True):
        assert isinstance(a, np.ndarray)
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="feature names"):
        model.transform(frame[list("edcba")])
