"""The search for a few hyperparameters against minima that are known, whatever the scale of the loss."""

import numpy as np
import pytest

from bilevel.outer import search

CENTER = np.array([1.5, -2.0])


def bowl(height: float, curvature: float, offset: np.ndarray = CENTER):
    """height + ½ curvature ‖x − offset‖² and its gradient."""
    return lambda x: (height + 0.5 * curvature * np.sum((x - offset) ** 2), curvature * (x - offset))


@pytest.mark.parametrize("curvature", [1e-3, 1.0, 1e3])
def test_finds_a_minimum_that_lowers_the_loss_by_little(curvature: float):
    """By 3 parts in 10⁴: a step as short as the gradient, in units of the loss, would lower it by 6e-8."""
    found = search(bowl(1e4 * curvature, curvature), np.zeros(2), -5.0, 5.0, tol=1e-6)
    np.testing.assert_allclose(found.point, CENTER, atol=0.15)
    assert len(found.history["loss"]) <= 8 and not found.failed


@pytest.mark.parametrize("height", [0.0, 1.0])
def test_finds_a_minimum_far_below_the_first_loss(height: float):
    found = search(bowl(height, 100.0), np.zeros(2), -5.0, 5.0, tol=1e-8)
    np.testing.assert_allclose(found.point, CENTER, atol=1e-3)


def test_stays_in_the_box():
    found = search(bowl(1.0, 1.0), np.zeros(2), -1.0, 1.0)
    np.testing.assert_allclose(found.point, [1.0, -1.0])
    assert np.all(np.abs(found.history["point"]) <= 1)


def test_ends_at_once_where_there_is_nothing_to_gain():
    found = search(bowl(1.0, 1.0), CENTER, -5.0, 5.0)
    assert len(found.history["loss"]) == 1 and found.loss == 1.0


def test_takes_no_more_evaluations_than_allowed():
    calls = []

    def banana(x: np.ndarray) -> tuple[float, np.ndarray]:
        calls.append(x)
        valley = x[1] - x[0] ** 2
        gradient = np.array([-400 * x[0] * valley - 2 * (1 - x[0]), 200 * valley])
        return 100 * valley**2 + (1 - x[0]) ** 2, gradient

    found = search(banana, np.array([-1.2, 1.0]), -5.0, 5.0, max_steps=7, tol=0.0)
    assert len(calls) == len(found.history["loss"]) == 7
    assert found.loss == np.min(found.history["loss"])


@pytest.mark.parametrize("wrong", ["loss", "gradient"])
def test_a_value_that_is_not_finite_ends_it(wrong: str):
    def broken(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = bowl(1.0, 1.0)(x)
        if np.linalg.norm(x) > 0:
            value, gradient = (np.nan, gradient) if wrong == "loss" else (value, gradient * np.nan)
        return value, gradient

    found = search(broken, np.zeros(2), -5.0, 5.0)
    assert found.failed and len(found.history["loss"]) == 2
    if wrong == "loss":
        np.testing.assert_array_equal(found.point, np.zeros(2))
