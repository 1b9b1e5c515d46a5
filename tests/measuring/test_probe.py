"""The probe finds where the labels can be read, and says how sure it is."""

import keras
import numpy as np
import pytest
from keras import layers
from scipy.stats import binomtest

from thaw.examples import Examples
from thaw.measuring.h_score import h_score
from thaw.measuring.log_me import log_me
from thaw.measuring.probe import probe

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


def test_each_stage_gets_as_far_as_what_it_holds():
    found = probe(net(), Examples(x=X, y=Y))
    first, second, third = found.rows
    assert [row.stage for row in found.rows] == ["stage1", "stage2", "stage3"]
    assert [row.width for row in found.rows] == [6, 3, 2]
    assert found.best is first
    assert first.score > 0.75 > 0.55 > second.score
    assert first.neighbours > second.neighbours
    assert first.log_me > second.log_me > third.log_me == -np.inf
    assert first.h_score > second.h_score >= third.h_score == 0
    # Nothing to read: the answer is the class that is the most frequent among what was fitted.
    assert third.score == pytest.approx(found.most_frequent, abs=0.03)
    assert (found.examples, found.classes, found.folds) == (120, 3, 5)


def test_the_scores_are_those_of_the_functions_that_can_be_had_alone():
    row = probe(net(), (X, Y)).rows[0]
    assert row.log_me == pytest.approx(log_me(X, Y), abs=1e-6)
    assert row.h_score == pytest.approx(h_score(X, Y), abs=1e-6)
    few = probe(net(), (X[:50], Y[:50]))  # fewer than ten examples for each of the six features
    assert few.shrunk
    assert "H shr." in str(few)
    assert few.rows[0].h_score == pytest.approx(h_score(X[:50], Y[:50], shrink=True), abs=1e-6)
    assert row.score == pytest.approx(1 - row.errors.mean(), abs=1e-12)
    assert set(row.errors) == {0.0, 1.0}


def test_the_interval_is_that_of_wilson():
    for row in probe(net(), (X, Y)).rows:
        exact = binomtest(round(row.score * 120), 120).proportion_ci(0.95, method="wilson")
        assert (row.low, row.high) == pytest.approx((exact.low, exact.high), abs=1e-6)
        exact = binomtest(round(row.neighbours * 120), 120).proportion_ci(0.95, method="wilson")
        assert (row.neighbours_low, row.neighbours_high) == pytest.approx((exact.low, exact.high), abs=1e-6)


def test_all_forms_of_labels_say_the_same():
    expected = probe(net(), (X, Y)).rows[0]
    for y in (Y[:, None], np.eye(3)[Y], Y.astype("float32"), np.array([3, 7, 40])[Y]):
        row = probe(net(), (X, y)).rows[0]
        assert (row.score, row.neighbours) == (expected.score, expected.neighbours)
        assert row.log_me == pytest.approx(expected.log_me, abs=1e-12)


def test_the_same_call_gives_the_same_and_another_seed_deals_otherwise():
    first, again, other = (probe(net(), (X, Y), seed=seed) for seed in (3, 3, 4))
    assert str(first) == str(again)
    assert (first.rows[0].errors == again.rows[0].errors).all()
    assert (first.rows[0].errors != other.rows[0].errors).any()


def test_regression():
    y = 1000 + np.stack([X[:, 0], X[:, 1] + 0.5 * RNG.normal(size=120)], axis=1)
    found = probe(net(), (X, y), regression=True)
    first, second, _ = found.rows
    assert first.score == pytest.approx((1 + 0.8) / 2, abs=0.06)
    assert first.low < first.score < first.high < 1
    assert first.score == pytest.approx(1 - first.errors.mean(), abs=1e-9)
    assert second.score < 0.1
    assert first.log_me > second.log_me
    assert first.neighbours is first.h_score is found.classes is None
    # Another unit is the same task.
    for row, other in zip(found.rows, probe(net(), (X, y / 7 - 3), regression=True).rows):
        assert other.score == pytest.approx(row.score, abs=1e-6)
        if np.isfinite(row.log_me):
            assert other.log_me == pytest.approx(row.log_me, abs=1e-6)
    assert max(map(len, str(found).splitlines())) <= 80
    assert "ridge R2" in str(found)


def test_the_table_fits_the_terminal():
    lines = str(probe(net(), (X, Y))).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == f"120 examples, 5 folds, 3 classes, the most frequent {np.bincount(Y).max() / 120:.3f}"
    assert [line.split()[0] for line in lines[1:]] == ["stage", "stage1", "stage2", "stage3"]
    assert [line.endswith(" *") for line in lines[2:]] == [True, False, False]


def test_what_does_not_fit_is_said():
    model = net()
    with pytest.raises(ValueError, match="regression=True"):
        probe(model, (X, X[:, 0]))
    with pytest.raises(ValueError, match="shuffle it before"):
        probe(model, (X, np.zeros(120, int)))
    with pytest.raises(ValueError, match="5 folds"):
        probe(model, (X[:4], np.array([0, 1, 0, 1])))
    with pytest.raises(ValueError, match="numbers that differ"):
        probe(model, (X, np.zeros(120)), regression=True)
