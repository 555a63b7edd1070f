"""The table of ways of differentiating."""

import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest

import bilevel as bl
from bilevel.plots import plot_modes
from tests.problems import RIDGES

matplotlib.use("agg")
SOLVER = bl.solvers.GradientDescent(max_steps=60, acceleration=False, tol=1e-14)
MODES = {
    "implicit": bl.Implicit(on_failure="ignore"),
    "unrolled": bl.Unrolled(),
    "one step": bl.OneStep(on_failure="ignore"),
    "not for this solver": bl.Shine(),
}


@pytest.fixture(scope="module")
def comparison():
    loss = lambda objective, model, data: jnp.sum(jnp.sin(model(data[0])))
    return bl.compare_modes(loss, RIDGES[0].objective, RIDGES[0].data, modes=MODES, solver=SOLVER, repeats=3)


def test_errors_times_and_memory(comparison):
    rows = {row.mode: row for row in comparison.rows}
    assert list(rows) == list(MODES)
    assert rows["implicit"].relative_error < rows["unrolled"].relative_error < 1e-1 < rows["one step"].relative_error
    for name in ("implicit", "unrolled", "one step"):
        assert 0 < rows[name].seconds < 1 and rows[name].compile_seconds > 0
    # The iterates are kept.
    assert rows["unrolled"].temporary_bytes > rows["implicit"].temporary_bytes > 0


def test_what_cannot_be_had_says_why(comparison):
    row = comparison.rows[-1]
    assert np.isnan(row.relative_error) and "LBFGS" in row.note


def test_as_text_as_a_frame_and_as_a_figure(comparison):
    text = str(comparison)
    assert text.count("\n") == len(MODES) and all(name in text for name in MODES)
    frame = comparison.frame()
    assert list(frame.index) == list(MODES)
    assert frame.loc["implicit", "relative_error"] == comparison.rows[0].relative_error
    for against in ("seconds", "temporary_bytes"):
        ax = plot_modes(comparison, against=against)
        assert [line.get_label() for line in ax.lines] == ["implicit", "unrolled", "one step"]
        np.testing.assert_allclose(ax.lines[1].get_ydata(), comparison.rows[1].relative_error)
    with pytest.raises(ValueError, match="`against` must be one of"):
        plot_modes(comparison, against="hope")
