import sys

import numpy as np
import pytest

from bilevel.plots import page, plot_atoms, plot_losses


def test_atoms_are_drawn_in_a_grid_scaled_and_with_their_sum_positive(axes):
    dictionary = np.array([[1.0, 2.0, 3.0, 4.0], [-1.0, -2.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert plot_atoms(dictionary, (2, 2), columns=2, ax=axes) is axes
    drawn = np.ma.filled(axes.images[0].get_array(), np.nan)
    assert drawn.shape == (7, 7)
    np.testing.assert_allclose(drawn[1:3, 1:3], [[0.25, 0.5], [0.75, 1.0]])
    np.testing.assert_allclose(drawn[1:3, 4:6], [[0.5, 1.0], [0.0, 0.0]])
    np.testing.assert_allclose(drawn[4:6, 1:3], 0)
    assert np.isnan(drawn[4:6, 4:6]).all()


def test_what_stands_beside_an_atom_has_its_sign(axes):
    dictionary = np.array([[1.0, 2.0, 3.0, 4.0], [-1.0, -2.0, 0.0, 0.0]])
    beside = np.array([[0.0, -4.0, 0.0, 2.0], [-3.0, 0.0, 0.0, 6.0]])
    plot_atoms(dictionary, (2, 2), beside=beside, columns=1, ax=axes)
    drawn = np.ma.filled(axes.images[0].get_array(), np.nan)
    np.testing.assert_allclose(drawn[4:6, 4:9], [[0.25, 0.5, np.nan, 0, -1], [0.75, 1, np.nan, 0, 0.5]])
    np.testing.assert_allclose(drawn[10:12, 4:9], [[0.5, 1, np.nan, 0.5, 0], [0, 0, np.nan, 0, -1]])
    assert np.isfinite(drawn).sum() == 16


def test_atoms_that_are_no_images_are_refused(axes):
    with pytest.raises(ValueError, match="image_shape"):
        plot_atoms(np.ones((2, 5)), (2, 2), ax=axes)
    with pytest.raises(ValueError, match="`dictionary`"):
        plot_atoms(np.ones(4), (2, 2), ax=axes)
    with pytest.raises(ValueError, match="`beside`"):
        plot_atoms(np.ones((2, 4)), (2, 2), beside=np.ones((4, 2)), ax=axes)


def test_losses_show_each_run_and_the_median_of_what_all_have(axes):
    runs = [np.full(4, 1.0), np.full(6, 2.0), np.full(8, 3.0)]
    assert plot_losses(runs, window=2, label="x", ax=axes) is axes
    median, *each = axes.lines
    np.testing.assert_allclose(median.get_ydata(), [2.0, 2.0])
    np.testing.assert_allclose(median.get_xdata(), [1.0, 3.0])
    assert [len(line.get_ydata()) for line in each] == [2, 3, 4]


def test_a_figure_of_its_own_where_no_axes_are_given():
    import matplotlib.pyplot as plt

    ax = plot_atoms(np.eye(4), (2, 2))
    assert ax.figure is not None
    plt.close(ax.figure)


def test_without_matplotlib_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"bilevel\[plots\]"):
        plot_atoms(np.eye(4), (2, 2))


def test_a_page_is_self_contained_and_escapes_its_text(axes):
    png = page.to_png(axes.figure)
    parts = [page.paragraph("a < b"), page.table(("x",), (("1 & 2",),), "t"), page.figure(png, "f")]
    text = page.page("T", parts, "foot")
    assert png.startswith(b"\x89PNG")
    assert "a &lt; b" in text and "1 &amp; 2" in text and "data:image/png;base64," in text
    assert "http" not in text and "<script" not in text
