"""The probe finds where the labels can be read, and says how sure it is."""

import keras
import numpy as np
import pytest
from keras import layers
from scipy.stats import binomtest

from thaw.data.dataset import Dataset
from thaw.transfer.probing import probe, probe_features
from thaw.transfer.transferability import h_score, logme

RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 6)).astype("float32")
Y = np.stack([X[:, 0], X[:, 1], -X[:, 0] - X[:, 1]]).argmax(axis=0)


def net():
    """Three stages: the first hands on all inputs, the second what the labels do not depend on, the third nothing."""
    model = keras.Sequential([keras.Input((6,)), *(layers.Dense(n) for n in (6, 3, 2, 4))])
    kernels = [np.eye(6), np.eye(6)[:, 2:5], np.zeros((3, 2)), np.ones((2, 4))]
    for layer, kernel in zip(model.layers, kernels):
        layer.set_weights([kernel, np.zeros(kernel.shape[1])])
    return model


@pytest.fixture(scope="module")
def found():
    return probe(net(), Dataset(x=X, y=Y))


def test_probe_scores_each_stage_by_what_it_holds(found):
    first, second, third = found.rows
    assert [row.stage for row in found.rows] == ["stage1", "stage2", "stage3"]
    assert [row.width for row in found.rows] == [6, 3, 2]
    assert found.best is first
    assert first.score.value > 0.75 > 0.55 > second.score.value
    assert first.knn_score.value > second.knn_score.value
    assert first.logme > second.logme > third.logme == -np.inf
    assert first.h_score > second.h_score >= third.h_score == 0
    # Nothing to read: the answer is the class that is the most frequent among what was fitted.
    assert third.score.value == pytest.approx(found.majority, abs=0.03)
    assert (found.examples, found.classes, found.folds) == (120, 3, 5)


def test_probe_scores_equal_those_of_the_single_functions(found):
    row = found.rows[0]
    assert row.logme == pytest.approx(logme(X, Y), abs=1e-6)
    assert row.h_score == pytest.approx(h_score(X, Y), abs=1e-6)
    few = probe(net(), X[:50], Y[:50])  # fewer than ten examples for each of the six features
    assert few.shrunk
    assert "H shr." in str(few)
    assert few.rows[0].h_score == pytest.approx(h_score(X[:50], Y[:50], shrink=True), abs=1e-6)
    assert row.score.value == pytest.approx(1 - row.errors.mean(), abs=1e-12)
    assert set(row.errors) == {0.0, 1.0}


def test_probe_interval_is_that_of_wilson(found):
    for row in found.rows:
        exact = binomtest(round(row.score.value * 120), 120).proportion_ci(0.95, method="wilson")
        assert (row.score.low, row.score.high) == pytest.approx((exact.low, exact.high), abs=1e-6)
        exact = binomtest(round(row.knn_score.value * 120), 120).proportion_ci(0.95, method="wilson")
        assert (row.knn_score.low, row.knn_score.high) == pytest.approx((exact.low, exact.high), abs=1e-6)


def test_probe_takes_all_forms_of_labels(found):
    expected = found.rows[0]
    for y in (Y, Y[:, None], np.eye(3)[Y], Y.astype("float32"), np.array([3, 7, 40])[Y]):
        row = probe(net(), X, y).rows[0]
        assert (row.score.value, row.knn_score.value) == (expected.score.value, expected.knn_score.value)
        assert row.logme == pytest.approx(expected.logme, abs=1e-12)


def test_probe_follows_the_seed_and_reports_its_progress():
    told = []
    first = probe(net(), X, Y, batch_size=50, seed=3, progress=lambda *count: told.append(count))
    again = probe(net(), X, Y, batch_size=50, seed=3)
    assert str(first) == str(again)
    assert (first.rows[0].errors == again.rows[0].errors).all()
    other = probe(net(), X, Y, seed=4)
    assert (first.rows[0].errors != other.rows[0].errors).any()
    assert told == [(50, 120), (100, 120), (120, 120)]


def test_probe_regression():
    y = 1000 + np.stack([X[:, 0], X[:, 1] + 0.5 * RNG.normal(size=120)], axis=1)
    found = probe(net(), X, y, regression=True)
    first, second, _ = found.rows
    assert first.score.value == pytest.approx((1 + 0.8) / 2, abs=0.06)
    assert first.score.low < first.score.value < first.score.high < 1
    assert first.score.value == pytest.approx(1 - first.errors.mean(), abs=1e-9)
    assert second.score.value < 0.1
    assert first.logme > second.logme
    assert first.knn_score is first.h_score is found.classes is None
    # Another unit is the same task.
    for row, other in zip(found.rows, probe(net(), X, y / 7 - 3, regression=True).rows):
        assert other.score.value == pytest.approx(row.score.value, abs=1e-6)
        if np.isfinite(row.logme):
            assert other.logme == pytest.approx(row.logme, abs=1e-6)
    assert max(map(len, str(found).splitlines())) <= 80
    assert "ridge R2" in str(found)


def test_probe_prints_80_columns(found):
    lines = str(found).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == f"120 examples, 5 folds, 3 classes, the most frequent {np.bincount(Y).max() / 120:.3f}"
    assert [line.split()[0] for line in lines[1:]] == ["stage", "stage1", "stage2", "stage3"]
    assert [line.endswith(" *") for line in lines[2:]] == [True, False, False]


def test_probe_names_what_is_invalid():
    model = net()
    with pytest.raises(ValueError, match="regression=True"):
        probe(model, X, X[:, 0])
    with pytest.raises(ValueError, match="shuffle it before"):
        probe(model, X, np.zeros(120, int))
    with pytest.raises(ValueError, match="5 folds"):
        probe(model, X[:4], np.array([0, 1, 0, 1]))
    with pytest.raises(ValueError, match="numbers that differ"):
        probe(model, X, np.zeros(120), regression=True)
    for change, said in (
        ({"folds": 2.5}, "folds=2.5; expected a whole number from 2"),
        ({"regression": "yes"}, "regression='yes'; expected True or False"),
    ):
        with pytest.raises(ValueError, match=said):
            probe(model, X, Y, **change)


@pytest.mark.parametrize(
    ("features", "y", "said"),
    [
        (X, Y, "features is a ndarray; expected a dict from stages"),
        ({}, Y, "features is empty; expected a dict from stages"),
        ({"a": X[:0]}, Y[:0], r"The features of a have shape \(0, "),
        ({"a": X, "b": X[:5]}, Y, r"The features of b have shape \(5, "),
    ],
    ids=["array", "empty", "no rows", "other rows"],
)
def test_probe_features_names_what_is_invalid(features, y, said):
    with pytest.raises(ValueError, match=said):
        probe_features(features, y)
