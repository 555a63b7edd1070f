"""Dictionaries learned for a task: better than two stages, heads exact, labels and targets of every kind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import make_regression
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss

import bilevel as bl
from bilevel.estimators import TaskDrivenDictionaryClassifier, TaskDrivenDictionaryRegressor
from bilevel.estimators.task_driven import CrossEntropy, SquaredError
from tests.compiling import compiled
from tests.estimators.examples import SAMPLES, digits, fitted, hidden_signal, samples

# --- Against two stages -----------------------------------------------------------------------------------------------


def two_stage_codes(model, X):
    """Codes in the dictionary at which the joint training began."""
    coding = bl.objectives.SparseCoding(model.unsupervised_dictionary_, model.l1, model.l2)
    return np.asarray(bl.argmin(coding, X).params)


def test_on_digits_both_errors_are_below_those_of_two_stages():
    X, labels = digits(1000)
    model = TaskDrivenDictionaryClassifier(8, l1=0.1, l2=0.1, max_iter=30, random_state=0).fit(X[:500], labels[:500])
    head = LogisticRegression(C=1 / (500 * model.alpha), max_iter=5000)
    head.fit(two_stage_codes(model, X[:500]), labels[:500])
    for part in (slice(500), slice(500, None)):
        two_stage = 1 - head.score(two_stage_codes(model, X[part]), labels[part])
        assert two_stage > 0.05
        assert 1 - model.score(X[part], labels[part]) < 0.7 * two_stage


def test_a_target_made_of_weak_components_is_found():
    X, y = hidden_signal(400)
    model = TaskDrivenDictionaryRegressor(4, l1=0.05, l2=0.05, max_iter=60, batch_size=50, random_state=0)
    model.fit(X[:200], y[:200])
    head = Ridge(alpha=200 * model.alpha).fit(two_stage_codes(model, X[:200]), y[:200])
    assert head.score(two_stage_codes(model, X[200:]), y[200:]) < 0.2
    assert model.score(X[:200], y[:200]) > 0.8
    assert model.score(X[200:], y[200:]) > 0.8


def test_targets_of_any_scale_in_32_bits():
    X, y = (x.astype(np.float32) for x in hidden_signal(100))
    fit = lambda scale: TaskDrivenDictionaryRegressor(4, max_iter=3, random_state=0).fit(X, np.float32(scale) * y)
    plain = fit(1).predict(X)
    for scale in (1e-20, 1e20):
        np.testing.assert_allclose(fit(scale).predict(X) / np.float32(scale), plain, atol=5e-3)


def test_targets_whose_variance_overflows_are_named():
    X, y = hidden_signal(20)
    with pytest.raises(ValueError, match="`y` is so large"):
        TaskDrivenDictionaryRegressor(4, max_iter=1).fit(X, 1e200 * y)


# --- Heads ------------------------------------------------------------------------------------------------------------


def labels_of(X, classes):
    return np.digitize(X[:, 0] - X[:, 1], np.linspace(-0.8, 0.8, classes - 1)) if classes > 2 else (X[:, 0] > 0) * 1


def slope_of_head(loss, model, weights, intercept, X, targets):
    """The gradient of the joint loss in the head alone, at the fitted model."""
    codes = jnp.asarray(model.transform(X))
    objective = bl.objectives.SparseCoding(model.dictionary_, model.l1, model.l2)

    def of_head(head):
        return loss(bl.Variables(objective, head), codes, (jnp.asarray(X), jnp.asarray(targets)))

    gradient = compiled(jax.grad(of_head))((jnp.asarray(weights), jnp.asarray(intercept)))
    return max(float(jnp.max(jnp.abs(g))) for g in gradient)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_classifier_s_head_minimizes_the_joint_loss(classes):
    X = samples()
    labels = labels_of(X, classes)
    model = fitted(TaskDrivenDictionaryClassifier, X, labels, alpha=0.05)
    assert model.coef_.shape == ((1, 3) if classes == 2 else (3, 3))
    loss = CrossEntropy(jnp.asarray(0.05))
    assert slope_of_head(loss, model, model.coef_.T, model.intercept_, X, labels) < 1e-4
    assert slope_of_head(loss, model, 2 * model.coef_.T, model.intercept_, X, labels) > 1e-3
    head = LogisticRegression(C=1 / (0.05 * SAMPLES)).fit(model.transform(X), labels)
    np.testing.assert_allclose(model.predict_proba(X), head.predict_proba(model.transform(X)), rtol=1e-10)


@pytest.mark.parametrize("columns", [1, 2])
def test_the_regressor_s_head_minimizes_the_joint_loss(columns):
    X = samples()
    y = np.column_stack([3 * X[:, 0] + 1, np.sin(X[:, 1])])[:, :columns]
    model = fitted(TaskDrivenDictionaryRegressor, X, y, alpha=0.05)
    mean, scale = y.mean(axis=0), y.std(axis=0)
    standard = (y - mean) / scale
    weights, intercept = model.coef_.T / scale, (model.intercept_ - mean) / scale
    loss = SquaredError(jnp.asarray(0.05))
    assert slope_of_head(loss, model, weights, intercept, X, standard) < 1e-10
    assert slope_of_head(loss, model, 2 * weights, intercept, X, standard) > 1e-3


@pytest.mark.parametrize("outputs", [1, 3])
def test_the_cross_entropy_is_scikit_learn_s(outputs):
    rng = np.random.default_rng(0)
    codes, weights, intercept = rng.normal(size=(9, 4)), rng.normal(size=(4, outputs)), rng.normal(size=outputs)
    labels = np.arange(9) % max(outputs, 2)
    variables = bl.Variables(bl.objectives.SparseCoding(np.eye(4), 0.1), (weights, intercept))
    loss = compiled(CrossEntropy(jnp.asarray(0.3)))(variables, jnp.asarray(codes), (codes, jnp.asarray(labels)))
    scores = codes @ weights + intercept
    scores = np.column_stack([0 * scores, scores]) if outputs == 1 else scores
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(loss, log_loss(labels, probabilities) + 0.15 * np.sum(weights**2), rtol=1e-12)


# --- Labels -----------------------------------------------------------------------------------------------------------

LABELS = {
    "bool": np.array([False, True]),
    "int": np.array([7, -3, 12]),
    "uint8": np.array([200, 3], np.uint8),
    "strings": np.array(["no", "yes", "a word"]),
    "objects": np.array(["no", "yes"], object),
    "floats": np.array([0.0, 1.0, 2.0]),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_every_kind_come_back(kind):
    names = LABELS[kind]
    X = samples()
    y = names[labels_of(X, len(names))]
    model = fitted(TaskDrivenDictionaryClassifier, X, y)
    np.testing.assert_array_equal(model.classes_, np.unique(names))
    predicted = model.predict(X)
    assert predicted.dtype == y.dtype
    assert np.mean(predicted == y) > 0.6
    probabilities, scores = model.predict_proba(X), model.decision_function(X)
    assert probabilities.shape == (SAMPLES, len(names))
    assert scores.shape == ((SAMPLES,) if len(names) == 2 else (SAMPLES, len(names)))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_array_equal(model.classes_[np.argmax(probabilities, axis=1)], predicted)


def test_continuous_labels_are_refused():
    with pytest.raises(ValueError, match="Unknown label type"):
        fitted(TaskDrivenDictionaryClassifier, y=samples()[:, 0])


# --- Targets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(SAMPLES,), (SAMPLES, 1), (SAMPLES, 2)])
def test_predictions_have_the_shape_of_the_targets(shape):
    X = samples()
    y = np.reshape(X[:, : int(np.prod(shape)) // SAMPLES], shape)
    model = fitted(TaskDrivenDictionaryRegressor, X, y)
    assert model.predict(X).shape == shape
    assert model.coef_.shape == (*shape[1:], 3)
    assert np.shape(model.intercept_) == shape[1:]
    assert model.score(X, y) > 0.2


def test_units_of_the_target_do_not_matter():
    X, y = make_regression(SAMPLES, 5, noise=1.0, random_state=0)
    plain, scaled = (fitted(TaskDrivenDictionaryRegressor, X, target) for target in (y, 1e6 * y - 3e7))
    np.testing.assert_allclose(1e6 * plain.predict(X) - 3e7, scaled.predict(X), rtol=1e-6)


def test_a_constant_target_is_predicted():
    X = samples()
    y = np.column_stack([np.full(SAMPLES, 4.0), X[:, 0]])
    np.testing.assert_allclose(fitted(TaskDrivenDictionaryRegressor, X, y).predict(X)[:, 0], 4, rtol=1e-10)


def test_integers_are_targets():
    X = samples()
    y = np.round(3 * X[:, 0]).astype(int)
    predictions = fitted(TaskDrivenDictionaryRegressor, X, y).predict(X)
    np.testing.assert_allclose(predictions, fitted(TaskDrivenDictionaryRegressor, X, y.astype(float)).predict(X))
    assert predictions.dtype == np.float64


# --- The joint stage --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", [TaskDrivenDictionaryClassifier, TaskDrivenDictionaryRegressor])
def test_the_joint_stage_moves_the_dictionary_as_its_rate_says(estimator):
    still, moving = fitted(estimator, learning_rate=1e-300), fitted(estimator, learning_rate=0.01)
    np.testing.assert_allclose(still.dictionary_, still.unsupervised_dictionary_, rtol=1e-12)
    np.testing.assert_array_equal(moving.unsupervised_dictionary_, still.unsupervised_dictionary_)
    assert not np.allclose(moving.dictionary_, moving.unsupervised_dictionary_, atol=1e-3)


@pytest.mark.parametrize("estimator", [TaskDrivenDictionaryClassifier, TaskDrivenDictionaryRegressor])
def test_a_larger_alpha_is_a_smaller_head(estimator):
    small, large = (np.linalg.norm(fitted(estimator, alpha=alpha).coef_) for alpha in (1e-3, 1.0))
    assert large < 0.7 * small
