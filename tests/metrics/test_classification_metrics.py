"""Scores against scikit-learn, by hand, and their intervals."""

import json

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st

from thaw.metrics.classification import HEADLINES, classification_metrics


def drawn(n, k, seed=0, ties=False):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(k), n)
    if ties:
        p = np.maximum(np.round(p, 1), 0.05)
        p /= p.sum(axis=1, keepdims=True)
    y = np.array([rng.choice(k, p=row) for row in p])
    y[:k] = np.arange(k)
    return y, p


@given(n=st.integers(12, 80), k=st.integers(2, 5), seed=st.integers(0, 10**6), ties=st.booleans())
def test_classification_metrics_equal_those_of_scikit_learn(n, k, seed, ties):
    y, p = drawn(n, k, seed, ties)
    metrics, predicted = classification_metrics(y, p), p.argmax(axis=1)
    auc = (
        sklearn.metrics.roc_auc_score(y, p[:, 1]) if k == 2 else sklearn.metrics.roc_auc_score(y, p, multi_class="ovr")
    )
    expected = {
        "accuracy": sklearn.metrics.accuracy_score(y, predicted),
        "balanced_accuracy": sklearn.metrics.balanced_accuracy_score(y, predicted),
        "macro_f1": sklearn.metrics.f1_score(y, predicted, average="macro"),
        "roc_auc": auc,
        "log_loss": sklearn.metrics.log_loss(y, np.maximum(p, 1e-7)),
    }
    assert {name: metrics[name]["value"] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert metrics["confusion"] == sklearn.metrics.confusion_matrix(y, predicted).tolist()
    reference = sklearn.metrics.precision_recall_fscore_support(y, predicted, zero_division=np.nan)
    for name, column in zip(("precision", "recall", "f1", "support"), reference):
        mine = [np.nan if row[name] is None else row[name] for row in metrics["classes"]]
        assert mine == pytest.approx(list(column), nan_ok=True)


def test_classification_metrics_calibration_error_by_hand():
    # Bin (0.6, 0.667] holds 0.65 twice, one right; bin (0.867, 0.933] holds 0.9 twice, both right.
    p = np.array([[0.65, 0.35], [0.35, 0.65], [0.9, 0.1], [0.1, 0.9]])
    metrics = classification_metrics(np.array([0, 0, 0, 1]), p)
    assert metrics["calibration_error"]["value"] == pytest.approx((abs(1 - 1.3) + abs(2 - 1.8)) / 4)


def test_classification_metrics_interval_by_hand():
    # Of 400 examples 300 are right: the normal approximation is 0.75 +- 1.96 sqrt(0.75 0.25 / 400).
    y = np.repeat([0, 1], 200)
    right = np.arange(400) % 4 > 0
    p = np.where((y == 1) == right, 0.8, 0.2)
    metrics = classification_metrics(y, np.stack([1 - p, p], axis=1))["accuracy"]
    assert metrics == {
        "value": 0.75,
        "low": pytest.approx(0.75 - 0.0424, abs=0.006),
        "high": pytest.approx(0.75 + 0.0424, abs=0.006),
    }


def test_classification_metrics_intervals_have_their_coverage():
    y, p = drawn(100_000, 2, seed=1)
    predicted = p.argmax(axis=1)
    truth = {
        "accuracy": (predicted == y).mean(),
        "macro_f1": sklearn.metrics.f1_score(y, predicted, average="macro"),
        "roc_auc": sklearn.metrics.roc_auc_score(y, p[:, 1]),
        "log_loss": sklearn.metrics.log_loss(y, p),
    }
    held = dict.fromkeys(truth, 0)
    for i in range(100):
        part = slice(200 * i, 200 * i + 200)
        metrics = classification_metrics(y[part], p[part])
        for name, value in truth.items():
            held[name] += metrics[name]["low"] <= value <= metrics[name]["high"]
    assert all(87 <= count <= 100 for count in held.values()), held


def test_classification_metrics_calibration_error_has_no_interval():
    # A resample is always less calibrated than the sample; an interval that does not hold what it says is a lie.
    metrics = classification_metrics(*drawn(300, 2, 0))["calibration_error"]
    assert 0 < metrics["value"] < 1
    assert metrics["low"] is metrics["high"] is None
    assert "below nominal" in metrics["reason"]


def test_classification_metrics_intervals_follow_the_seed():
    y, p = drawn(60, 3)
    assert classification_metrics(y, p, seed=5) == classification_metrics(y, p, seed=5)
    assert classification_metrics(y, p, seed=5)["log_loss"] != classification_metrics(y, p, seed=6)["log_loss"]


def test_classification_metrics_names_an_absent_class():
    y, p = drawn(30, 3)
    y[y == 2] = 0
    metrics = classification_metrics(y, p, labels=["ant", "bee", "cat"])
    assert metrics["roc_auc"] == {
        "value": None,
        "low": None,
        "high": None,
        "reason": 'the data have no example of "cat"',
    }
    assert metrics["notes"] == ['The data have no example of "cat"; macro averages leave such classes out.']
    recall = sklearn.metrics.recall_score(y, p.argmax(axis=1), average=None, labels=[0, 1])
    assert metrics["balanced_accuracy"]["value"] == pytest.approx(recall.mean())
    assert metrics["classes"][2] | {"precision": 0.0} == {
        "label": "cat",
        "precision": 0.0,
        "recall": None,
        "f1": 0.0,
        "support": 0,
    }


def test_classification_metrics_all_correct_has_the_exact_interval():
    metrics = classification_metrics(np.repeat([0, 1], 10), np.repeat(np.eye(2), 10, axis=0))
    assert metrics["accuracy"]["low"] == pytest.approx(0.025 ** (1 / 20))  # Clopper and Pearson's closed form
    assert metrics["accuracy"]["high"] == 1
    assert metrics["notes"][0].startswith("All of the 20 examples are predicted correctly;")


def test_classification_metrics_accuracy_below_one_has_an_interval_below_one():
    y = np.repeat([0, 1], 10)
    p = np.eye(2)[np.where(np.arange(20) < 3, 1, y)]  # three errors in 20
    # Wilson's closed form, with z = 1.96.
    centre, half = (0.85 + 1.96**2 / 40) / (1 + 1.96**2 / 20), np.sqrt(0.85 * 0.15 / 20 + 1.96**2 / 1600)
    expected = centre + 1.96 * half / (1 + 1.96**2 / 20) * np.array([-1, 1])
    accuracy = classification_metrics(y, p)["accuracy"]
    assert [accuracy["low"], accuracy["high"]] == pytest.approx(expected, abs=1e-4)
    assert accuracy["high"] < 0.96


def test_classification_metrics_gives_a_reason_without_interval():
    one = classification_metrics(np.array([1]), np.array([[0.4, 0.6]]))
    assert one["log_loss"]["low"] is None
    assert one["log_loss"]["reason"] == "one example allows no interval"
    two = classification_metrics(np.array([0, 1]), np.array([[0.6, 0.4], [0.7, 0.3]]))
    assert two["roc_auc"]["reason"] == "too few examples of a class for an interval"


def test_classification_metrics_leaves_out_too_large_an_interval():
    y, p = drawn(5001, 100)  # above half a million scores
    metrics = classification_metrics(y, p)
    assert metrics["roc_auc"]["value"] == pytest.approx(sklearn.metrics.roc_auc_score(y, p, multi_class="ovr"))
    assert metrics["roc_auc"]["reason"] == "too many examples and classes (5001 x 100) for an interval"
    assert metrics["accuracy"]["low"] is not None


def test_classification_metrics_go_into_json():
    y, p = drawn(20, 3)
    metrics = classification_metrics(y, p)
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    assert set(HEADLINES) < set(metrics)


@pytest.mark.parametrize(
    ("y", "p", "labels", "message"),
    [
        ([0, 1], [0.5, 0.5], None, r"p has shape \(2,\); expected \(examples, classes\)"),
        ([0], [[1.0]], None, "with at least 2 classes"),
        ([0, 1, 1], [[0.5, 0.5]] * 2, None, r"y is int64 of shape \(3,\); expected 2 class numbers"),
        ([0.5, 1], [[0.5, 0.5]] * 2, None, "y is float64"),
        ([0, 2], [[0.5, 0.5]] * 2, None, "y goes from 0 to 2; the model has the classes 0 to 1"),
        ([-1, 0], [[0.5, 0.5]] * 2, None, "y goes from -1 to 0"),
        ([0, 1], [[3.0, -2.0]] * 2, None, "expected probabilities, not logits"),
        ([0, 1], [[0.5, 0.5]] * 2, ["a"], "There are 1 labels and 2 classes"),
    ],
)
def test_classification_metrics_names_what_is_invalid(y, p, labels, message):
    with pytest.raises(ValueError, match=message):
        classification_metrics(np.array(y), np.array(p), labels=labels)


def test_classification_metrics_refuses_no_examples():
    with pytest.raises(ValueError, match="There are no examples"):
        classification_metrics(np.zeros(0, int), np.zeros((0, 2)))
