"""What archetypes are judged by."""

import numpy as np
import pytest

from benchmarks.archetypes import gap, worst_vertex


def test_the_worst_vertex_is_that_of_the_best_matching():
    vertices = np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    found = np.array([[0.0, 4.0], [0.5, 0.0], [3.1, 0.0]])
    assert worst_vertex(found, vertices) == pytest.approx(0.5 / 5)


def test_the_gap_of_one_archetype():
    """Of three points on a line: 0 at their mean; at an end, slopes are −3, 0 and 3, and the loss is 5/2."""
    X, A = np.array([[-1.0], [0.0], [1.0]]), np.ones((3, 1))
    assert gap(X, A, np.full((1, 3), 1 / 3)) == pytest.approx(0, abs=1e-15)
    assert gap(X + 7, A, np.array([[0.0, 0.0, 1.0]])) == pytest.approx((3 + 3) / 2.5)
