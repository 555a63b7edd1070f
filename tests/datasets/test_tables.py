import numpy as np
import pytest
from sklearn import datasets

from bilevel.datasets import gene_expression, load_breast_cancer, load_diabetes, load_gene_expression, packages
from tests.datasets.needs import needs


@pytest.mark.parametrize("load", [load_diabetes, load_breast_cancer])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_training_part_is_standardized(load, dtype):
    table = load(dtype)
    assert table.train.X.dtype == table.test.X.dtype == dtype
    np.testing.assert_allclose(table.train.X.mean(axis=0), 0, atol=100 * np.finfo(dtype).eps)
    np.testing.assert_allclose(table.train.X.std(axis=0), 1, rtol=100 * np.finfo(dtype).eps)
    assert len(table.feature_names) == table.train.X.shape[1]


def test_the_parts_are_the_whole_and_units_lead_back():
    table, source = load_diabetes(np.float64), datasets.load_diabetes(scaled=False)
    assert [len(part.y) for part in table[:3]] == [266, 88, 88]
    back = np.concatenate([part.y for part in table[:3]]) * table.target_scale + table.target_mean
    np.testing.assert_allclose(np.sort(back), np.sort(source.target))
    # Every sample of ours is an affine image of one of theirs, the same for all features of one column.
    order, sorted_back = np.lexsort((source.data[:, 2], source.target)), np.concatenate([p.X for p in table[:3]])
    ours = np.lexsort((sorted_back[:, 2], np.round(back)))
    slope, offset = np.polyfit(source.data[order][:, 2], sorted_back[ours][:, 2], 1)
    np.testing.assert_allclose(sorted_back[ours][:, 2], slope * source.data[order][:, 2] + offset, atol=1e-10)


def test_the_split_is_that_of_its_seed_and_both_classes_are_in_each_part():
    first, again, other = (load_breast_cancer(seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.train.X, again.train.X)
    assert not np.array_equal(first.train.y, other.train.y)
    assert [len(part.y) for part in first[:3]] == [341, 114, 114]
    for part in first[:3]:
        assert part.y.mean() == pytest.approx(357 / 569, abs=0.01)
    assert first.target_names == ("malignant", "benign")


def test_all_of_it_for_training():
    table = load_breast_cancer(fractions=(1, 0, 0))
    assert table.train.X.shape == (569, 30) and table.validation.X.shape == table.test.X.shape == (0, 30)
    source = datasets.load_breast_cancer()
    np.testing.assert_array_equal(table.train.y, source.target)
    np.testing.assert_allclose(
        table.train.X, (source.data - source.data.mean(0)) / source.data.std(0), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0, 0.5, 0.5), (0.5, 0.6, -0.1), (0.5, 0.2, 0.2), (np.nan, 0, 1)])
def test_fractions_that_are_none_are_refused(fractions):
    with pytest.raises(ValueError, match="fractions"):
        load_diabetes(fractions=fractions)


@needs("SurvSet")
def test_gene_expression():
    data = load_gene_expression()
    assert data.X.shape == (295, 4919) and data.X.dtype == np.float32 and np.isfinite(data.X).all()
    assert data.time.min() > 0 and data.event.sum() == 79
    # Events are deaths: after ten years 54.6 % of 180 women and 94.5 % of 115 were alive, as published, but only
    # 50.6 % and 85.2 % without metastases. Here by Kaplan and Meier.
    at_risk = np.array([np.sum(data.time >= t) for t in data.time[data.event & (data.time <= 10)]])
    assert abs(np.prod(1 - 1 / at_risk) - (180 * 0.546 + 115 * 0.945) / 295) < 0.01


def test_gene_expression_says_what_to_install(monkeypatch):
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install SurvSet==0\.2\.11"):
        load_gene_expression()


def test_another_pickle_is_not_opened(monkeypatch, tmp_path):
    other = tmp_path / "DBCD.pickle"
    other.write_bytes(b"cbuiltins\nexit\n(tR.")
    monkeypatch.setattr(gene_expression, "packaged_file", lambda *_: other)
    with pytest.raises(ValueError, match="not unpickled"):
        load_gene_expression()
