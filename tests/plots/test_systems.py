"""Figures of the auto-encoder, the clamp study, archetypes and costs: what is drawn is what was given."""

import numpy as np
import pytest
from matplotlib.colors import LogNorm, to_rgba

from bilevel import plots
from bilevel.plots.colors import BLUE, GREEN, SERIES, VERMILION
from bilevel.plots.simplex import simplex_corners

HISTORY = np.array([[9.0, 7.0, 6.0], [5.5, 5.5, 4.0], [np.nan, np.nan, np.nan]])
BLOCKS = ("codes", "decoder", "encoder")


@pytest.fixture(autouse=True)
def drawn(axes):
    """Whatever a test draws can be drawn: without a warning, as warnings are errors."""
    yield
    axes.figure.canvas.draw()


def by_label(ax):
    return {line.get_label(): line for line in ax.lines}


def notes(ax):
    return [text.get_text() for text in ax.texts]


def test_convergence_draws_each_step_in_the_color_of_its_block_from_where_the_last_one_ended(axes):
    assert plots.plot_convergence(HISTORY, blocks=BLOCKS, start=20.0, ax=axes) is axes
    lines = by_label(axes)
    codes, decoder = lines["codes"], lines["decoder"]
    np.testing.assert_allclose(codes.get_xdata(), [0, 1 / 3, np.nan, 1, 4 / 3, np.nan])
    np.testing.assert_allclose(codes.get_ydata(), [20, 9, np.nan, 6, 5.5, np.nan])
    np.testing.assert_allclose(decoder.get_ydata(), [9, 7, np.nan, 5.5, 5.5, np.nan])
    # A round ends at a whole number; the mark is where the step ended, not where it began.
    np.testing.assert_allclose(lines["encoder"].get_xdata()[1::3], [1, 2])
    assert codes.get_markevery() == slice(1, None, 3)
    assert [lines[name].get_color() for name in BLOCKS] == [BLUE, VERMILION, GREEN]
    np.testing.assert_allclose(lines["start"].get_ydata(), [20])
    assert axes.get_yscale() == "linear" and axes.get_ylabel() == "objective"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [*BLOCKS, "start"]


def test_convergence_above_an_optimum_is_logarithmic_and_so_are_many_decades(axes):
    plots.plot_convergence(HISTORY, optimum=4.0, ax=axes)
    np.testing.assert_allclose(axes.lines[2].get_ydata()[1::3], [2.0, np.nan])
    assert axes.get_yscale() == "log" and "optimum" in axes.get_ylabel()
    axes.clear()
    plots.plot_convergence([100.0, 1.0], ax=axes)
    assert axes.get_yscale() == "log" and axes.get_legend() is None
    axes.clear()
    plots.plot_convergence([100.0, -1.0], ax=axes)
    assert axes.get_yscale() == "linear"


def test_decrease_is_that_of_each_step_and_a_gap_where_there_is_none(axes):
    plots.plot_decrease(HISTORY, blocks=BLOCKS, start=20.0, ax=axes)
    drawn = {name: line.get_ydata() for name, line in by_label(axes).items()}
    np.testing.assert_allclose(drawn["codes"], [11, 0.5])
    np.testing.assert_allclose(drawn["decoder"], [2, np.nan])
    np.testing.assert_allclose(drawn["encoder"], [1, 1.5])
    axes.clear()
    plots.plot_decrease(HISTORY, ax=axes)
    assert np.isnan(by_label(axes)["block 1"].get_ydata()[0])


def test_sparsity_is_the_pattern_of_nonzeros_atoms_downwards(axes):
    codes = np.array([[0.0, -2.0, 1.0], [0.0, 3.0, 0.0]])
    plots.plot_sparsity(codes, ax=axes)
    np.testing.assert_array_equal(axes.images[0].get_array(), [[0, 0], [1, 1], [1, 0]])
    assert axes.get_ylim() == (2.5, -0.5) and notes(axes) == ["50.0 % nonzero"]
    axes.clear()
    plots.plot_sparsity(codes, sort=True, ax=axes)
    np.testing.assert_array_equal(axes.images[0].get_array(), [[1, 1], [1, 0], [0, 0]])


def test_histogram_counts_what_is_not_zero_in_bins_that_zero_divides(axes):
    codes = np.array([[0.0, -1.0, -0.9, 0.1], [0.0, 3.0, 0.2, 0.0]])
    plots.plot_code_histogram(codes, bins=4, ax=axes)
    edges = [bar.get_x() for bar in axes.patches]
    np.testing.assert_allclose(edges, [-1, 0, 1, 2], atol=1e-12)
    np.testing.assert_allclose([bar.get_height() for bar in axes.patches], [2, 2, 0, 1])
    assert notes(axes) == ["37.5 % zero"] and axes.get_yscale() == "log"
    axes.clear()
    plots.plot_code_histogram(np.zeros((2, 3)), ax=axes)
    assert notes(axes) == ["100.0 % zero"] and len(axes.patches) == 0


def test_norms_above_the_bound_are_marked(axes):
    rows = np.array([[0.6, 0.8], [3.0, 4.0], [0.0, 0.5], [1.0 + 1e-9, 0.0]])
    plots.plot_norms(rows, label="feature", ax=axes)
    within, bound, above = axes.lines
    np.testing.assert_allclose(within.get_xydata(), [[0, 1], [2, 0.5], [3, 1]])
    np.testing.assert_allclose(above.get_xydata(), [[1, 5]])
    assert (within.get_color(), above.get_color()) == (BLUE, VERMILION)
    np.testing.assert_allclose(bound.get_ydata(), 1)
    assert above.get_label() == "1 above the bound" and axes.get_xlabel() == "feature"
    axes.clear()
    plots.plot_norms(rows, bound=None, ax=axes)
    assert len(axes.lines) == 1 and len(axes.lines[0].get_xdata()) == 4


def test_reconstruction_stands_beside_the_original_with_its_error_and_psnr(axes):
    original = np.arange(12.0).reshape(3, 4)
    reconstruction = original + np.where(np.arange(12).reshape(3, 4) % 2, 0.5, -0.5)
    plots.plot_reconstruction(original, reconstruction, peak=10, ax=axes)
    first, second, error = axes.images
    np.testing.assert_allclose(first.get_array(), original)
    np.testing.assert_allclose(second.get_array(), reconstruction)
    np.testing.assert_allclose(error.get_array(), reconstruction - original)
    assert first.get_clim() == second.get_clim() == (0, 11)
    assert error.get_clim() == (-0.5, 0.5)
    lefts = [image.get_extent()[0] for image in axes.images]
    assert np.all(np.diff(lefts) > 4)
    # 10 log₁₀(100 / 0.25)
    assert [label.get_text() for label in axes.get_xticklabels()][1] == "reconstruction\nPSNR 26.0 dB"


def test_a_perfect_reconstruction_has_no_noise(axes):
    plots.plot_reconstruction(np.eye(3), np.eye(3), ax=axes)
    assert "PSNR ∞ dB" in axes.get_xticklabels()[1].get_text()


def test_encoder_counts_every_entry_against_its_own(axes):
    rng = np.random.default_rng(0)
    D = rng.normal(size=(5, 7))
    plots.plot_encoder(D, 0.5 * D.T, ax=axes)
    hexagons = axes.collections[0]
    assert hexagons.get_array().sum() == D.size
    # All on the line of slope ½, to the size of a hexagon.
    x, y = np.asarray(hexagons.get_offsets()).T
    assert np.abs(y - 0.5 * x).max() < 0.05 * np.abs(D).max()
    assert notes(axes) == ["cos∠(E, Dᵀ) = 1.00"]
    assert isinstance(hexagons.norm, LogNorm)
    np.testing.assert_array_equal(*axes.lines[0].get_data())


@pytest.fixture
def clamp():
    z0, mu = np.array([3.0, -4.0, 0.0]), np.array([0.1, 1.0])
    return np.clip(z0, 1 - 0.5 / mu[:, None], 1 + 0.5 / mu[:, None]), z0, mu


def test_clamp_solutions_are_functions_of_z0_colored_by_mu(clamp, axes):
    z, z0, mu = clamp
    plots.plot_clamp_solutions(z, z0, mu, ax=axes)
    small, large, identity = axes.lines
    np.testing.assert_allclose(small.get_xydata(), [[-4, -4], [0, 0], [3, 3]])
    np.testing.assert_allclose(large.get_xydata(), [[-4, 0.5], [0, 0.5], [3, 1.5]])
    np.testing.assert_array_equal(*identity.get_data())
    assert small.get_color() != large.get_color()
    bar = axes.figure.axes[1]
    assert bar.get_ylabel() == "μ"
    np.testing.assert_allclose(bar.get_ylim(), (0.1, 1))


@pytest.mark.parametrize("mu", [[0.3], [0.3, 0.35]])
def test_clamp_figures_of_few_strengths_have_a_scale(mu, axes):
    z0 = np.arange(3.0)
    plots.plot_clamp_solutions(np.ones((len(mu), 3)), z0, mu, ax=axes)
    axes.clear()
    plots.plot_clamp_map(np.ones((len(mu), 3)), z0, mu, ax=axes)
    axes.figure.canvas.draw()
    for labelled in axes.figure.axes:
        assert any(label.get_text() for label in labelled.get_yticklabels(which="both"))
    assert axes.collections[0].get_clim() == (0, 2)


def test_clamp_map_has_mu_upwards_and_c_white(clamp, axes):
    z, z0, mu = clamp
    plots.plot_clamp_map(z[::-1], z0, mu[::-1], c=1.0, ax=axes)
    mesh = axes.collections[0]
    np.testing.assert_allclose(mesh.get_array(), z[:, [1, 2, 0]])
    assert mesh.get_clim() == (-4, 6) and axes.get_yscale() == "log"
    np.testing.assert_allclose(mesh.cmap(mesh.norm(1.0))[:3], 1, atol=0.05)


def test_clamp_curves_are_one_line_for_each_mu_from_the_start_on(axes):
    values = np.array([[4.0, 2.0, 1.0], [3.0, 1e-3, 0.0]])
    plots.plot_clamp_curves(values, [0.1, 1.0], quantity="gradient_norm", ax=axes)
    # The large ones are drawn first.
    large, small = axes.lines
    np.testing.assert_allclose(small.get_xydata(), [[0, 4], [1, 2], [2, 1]])
    np.testing.assert_allclose(large.get_ydata(), [3, 1e-3, np.nan])
    assert axes.get_yscale() == "log" and axes.get_xlim() == (0, 2)
    axes.clear()
    plots.plot_clamp_curves(values, [0.1, 1.0], quantity="fit", colorbar=False, ax=axes)
    assert axes.get_yscale() == "linear" and axes.get_ylabel() == "fit  ‖z − z₀‖₁"


def test_archetypes_are_numbered_within_their_hull(axes):
    X = np.array([[0, 0], [4, 0], [4, 4], [0, 4], [2, 2]], float)
    archetypes = np.array([[1, 1], [3, 1], [2, 3], [2, 1.5]])
    plots.plot_archetypes(X, archetypes, ax=axes)
    lines = by_label(axes)
    np.testing.assert_allclose(np.asarray(axes.collections[0].get_offsets()), X)
    hull = lines["hull of the data"].get_xydata()
    assert {tuple(p) for p in hull} == {(0, 0), (4, 0), (4, 4), (0, 4)}
    np.testing.assert_allclose(hull[0], hull[-1])
    assert {tuple(p) for p in lines["hull of the archetypes"].get_xydata()} == {(1, 1), (3, 1), (2, 3)}
    np.testing.assert_allclose(lines["archetypes"].get_xydata(), archetypes)
    assert [(text.get_text(), tuple(text.xy)) for text in axes.texts] == [
        (str(1 + i), tuple(p)) for i, p in enumerate(archetypes)
    ]


@pytest.mark.parametrize("archetypes", [[[1, 1]], [[1, 1], [2, 3]], [[2, 2], [1, 1], [3, 3]], [[1, 1]] * 4])
def test_hulls_without_a_surface(archetypes, axes):
    plots.plot_archetypes(np.eye(2).repeat(2, axis=0), archetypes, ax=axes)
    drawn = by_label(axes)["hull of the archetypes"].get_xydata()
    np.testing.assert_allclose(np.sort(drawn[:2], axis=0), [np.min(archetypes, axis=0), np.max(archetypes, axis=0)])
    assert not axes.patches


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_simplex_maps_corners_to_the_regular_polygon_and_the_center_to_its_own(count, axes):
    corners = simplex_corners(count)
    np.testing.assert_allclose(np.linalg.norm(corners, axis=1), 1)
    np.testing.assert_allclose(corners[0], [0, 1], atol=1e-12)
    sides = np.linalg.norm(corners - np.roll(corners, 1, axis=0), axis=1)
    np.testing.assert_allclose(sides, 2 * np.sin(np.pi / count), atol=1e-12)
    weights = np.concatenate([np.eye(count), np.full((1, count), 1 / count)])
    plots.plot_simplex(weights, color=np.arange(count + 1), ax=axes)
    drawn = np.asarray(axes.collections[0].get_offsets())
    np.testing.assert_allclose(drawn[:-1], corners)
    np.testing.assert_allclose(drawn[-1], corners.mean(axis=0), atol=1e-12)
    np.testing.assert_array_equal(axes.collections[0].get_array(), np.arange(count + 1))
    assert notes(axes) == [str(1 + i) for i in range(count)]


def test_simplex_labels_stand_at_their_corners_outside(axes):
    plots.plot_simplex(np.eye(3), labels=["a", "b", "c"], ax=axes)
    assert [(t.get_text(), t.get_ha()) for t in axes.texts] == [("a", "center"), ("b", "left"), ("c", "right")]
    np.testing.assert_allclose([t.xy for t in axes.texts], 1.06 * simplex_corners(3))
    assert tuple(axes.collections[0].get_facecolor()[0][:3]) == to_rgba(BLUE)[:3]


def test_costs_are_one_line_for_each_way_in_units_that_the_label_says(axes):
    costs = {"implicit": [2**20, 2**20, 2**20], "unrolled": [2**21, 2**22, np.nan]}
    plots.plot_costs([10, 100, 1000], costs, ax=axes)
    lines = by_label(axes)
    np.testing.assert_allclose(lines["implicit"].get_xydata(), [[10, 1], [100, 1], [1000, 1]])
    np.testing.assert_allclose(lines["unrolled"].get_ydata(), [2, 4, np.nan])
    assert [line.get_color() for line in axes.lines] == list(SERIES[:2])
    assert axes.get_xlabel() == "inner iterations" and axes.get_ylabel() == "memory (MiB)"
    axes.clear()
    plots.plot_costs([10, 100, 1000], costs, quantity="seconds", ax=axes)
    np.testing.assert_allclose(axes.lines[0].get_ydata(), 2**20)
    assert axes.get_ylabel() == "time (s)"


@pytest.mark.parametrize(
    ("name", "draw"),
    [
        ("history", lambda ax: plots.plot_convergence(np.ones((2, 3, 4)), ax=ax)),
        ("history", lambda ax: plots.plot_convergence(np.full((2, 3), np.nan), ax=ax)),
        ("blocks", lambda ax: plots.plot_decrease(HISTORY, blocks=("a", "b"), ax=ax)),
        ("codes", lambda ax: plots.plot_sparsity(np.ones(3), ax=ax)),
        ("codes", lambda ax: plots.plot_sparsity(np.array([["a"]]), ax=ax)),
        ("codes", lambda ax: plots.plot_code_histogram(np.ones((0, 3)), ax=ax)),
        ("codes", lambda ax: plots.plot_code_histogram([[np.nan, 1.0]], ax=ax)),
        ("rows", lambda ax: plots.plot_norms(np.ones(3), ax=ax)),
        ("original", lambda ax: plots.plot_reconstruction(np.ones((3, 3, 3)), np.ones((3, 3, 3)), ax=ax)),
        ("reconstruction", lambda ax: plots.plot_reconstruction(np.ones((3, 3)), np.ones((3, 4)), ax=ax)),
        ("encoder", lambda ax: plots.plot_encoder(np.ones((3, 4)), np.ones((3, 4)), ax=ax)),
        ("values", lambda ax: plots.plot_clamp_curves(np.ones((3, 4)), np.ones(2), ax=ax)),
        ("quantity", lambda ax: plots.plot_clamp_curves(np.ones((3, 4)), np.ones(3), quantity="loss", ax=ax)),
        ("mu", lambda ax: plots.plot_clamp_curves(np.ones((1, 4)), [0.0], ax=ax)),
        ("z", lambda ax: plots.plot_clamp_map(np.ones((3, 2)), np.ones(3), np.ones(2), ax=ax)),
        ("X", lambda ax: plots.plot_archetypes(np.ones((5, 3)), np.ones((2, 2)), ax=ax)),
        ("archetypes", lambda ax: plots.plot_archetypes(np.ones((5, 2)), np.ones((2, 3)), ax=ax)),
        ("weights", lambda ax: plots.plot_simplex([[0.7, 0.7]], ax=ax)),
        ("weights", lambda ax: plots.plot_simplex([[1.5, -0.5]], ax=ax)),
        ("labels", lambda ax: plots.plot_simplex(np.eye(3), labels=["a"], ax=ax)),
        (r"costs\['a'\]", lambda ax: plots.plot_costs([1, 2], {"a": [1.0]}, ax=ax)),
        ("costs", lambda ax: plots.plot_costs([1, 2], {}, ax=ax)),
        ("quantity", lambda ax: plots.plot_costs([1], {"a": [1.0]}, quantity="joules", ax=ax)),
    ],
)
def test_bad_input_is_named(name, draw, axes):
    with pytest.raises(ValueError, match=f"`{name}`"):
        draw(axes)
