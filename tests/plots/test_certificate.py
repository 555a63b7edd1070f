"""The figure of a certificate: of a real one, and of hand-made ones with what real ones rarely have."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.core import RESULTS
from bilevel.differentiation.certificate import Certificate, SampleCertificates
from bilevel.plots import plot_certificate
from bilevel.plots.colors import BLUE, SKY, VERMILION


def certificate(**changes):
    values = {"optimality": 1e-6, "tol": 1e-5, "adjoint_residual": 1e-15, "relative_error": 1e-4, "margin": 1e-2}
    values |= {"at_risk": 0.0, "samples": None, "result": RESULTS.successful} | changes
    return Certificate(**{k: jnp.asarray(v) if isinstance(v, float) else v for k, v in values.items()})


def diamonds(ax):
    return {int(line.get_ydata()[0]): line.get_xdata()[0] for line in ax.lines if line.get_marker() == "D"}


def test_a_real_certificate(axes):
    rng = np.random.default_rng(0)
    D = rng.normal(size=(6, 4))
    coding = bl.objectives.SparseCoding(jnp.asarray(D / np.linalg.norm(D, axis=1, keepdims=True)), 0.1, 0.01)
    loss = lambda objective, codes, data: jnp.sum((codes @ objective.dictionary - data) ** 2)
    found = bl.hypergradient(loss, coding, jnp.asarray(rng.normal(size=(5, 4)))).certificate
    assert plot_certificate(found, true_error=1e-9, ax=axes) is axes
    drawn = diamonds(axes)
    for row, name in enumerate(("relative_error", "optimality", "adjoint_residual", "margin")):
        np.testing.assert_allclose(drawn[row], max(float(getattr(found, name)), 1e-17))
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert sum(len(line.get_xdata()) for line in dots) == 4 * 5
    (truth,) = [line for line in axes.lines if line.get_label() == "true error"]
    np.testing.assert_allclose(truth.get_xydata(), [[1e-9, 0]])
    assert not axes.texts


def test_samples_at_risk_are_in_another_color_each_in_its_row(axes):
    columns = {"optimality": [1e-7, 1e-6], "adjoint_residual": [0.0, 1e-15], "relative_error": [1e-5, 0.5]}
    columns |= {"margin": [0.1, 1e-9], "at_risk": [0.0, 0.25]}
    samples = SampleCertificates(**{name: jnp.asarray(values) for name, values in columns.items()})
    plot_certificate(certificate(samples=samples), ax=axes)
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    drawn = {(line.get_color(), round(float(line.get_ydata()[0]))): float(line.get_xdata()[0]) for line in dots}
    for row, name in enumerate(("relative_error", "optimality", "adjoint_residual", "margin")):
        calm, risky = columns[name]
        assert drawn[SKY, row] == pytest.approx(max(calm, 1e-17))
        assert drawn[VERMILION, row] == pytest.approx(risky)
    (tolerance,) = [line for line in axes.lines if line.get_label() == "tolerance"]
    np.testing.assert_allclose(tolerance.get_xydata(), [[1e-5, 1]])
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["sample", "sample, support at risk", "of all", "tolerance"]


def test_what_is_not_known_or_failed_is_said(axes):
    plot_certificate(
        certificate(adjoint_residual=float("nan"), margin=float("inf"), result=RESULTS.inaccurate), ax=axes
    )
    assert set(diamonds(axes)) == {0, 1}
    missing, kinks, failure = axes.texts
    assert (missing.get_text(), missing.xy[1]) == ("not known", 2)
    assert (kinks.get_text(), kinks.xy[1]) == ("no kinks", 3)
    assert failure.get_text() in RESULTS[RESULTS.inaccurate] and failure.get_color() == VERMILION
    assert {line.get_color() for line in axes.lines if line.get_marker() == "D"} == {BLUE}


def test_a_batch_of_certificates_is_refused(axes):
    batch = jax.tree.map(lambda x: jnp.stack([x, x]) if eqx.is_array(x) else x, certificate())
    with pytest.raises(ValueError, match="`certificate`"):
        plot_certificate(batch, ax=axes)
