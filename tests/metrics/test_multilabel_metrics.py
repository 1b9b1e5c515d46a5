"""Metrics of several labels, compared with scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, log_loss

from thaw.metrics import best_thresholds, multilabel_metrics


def some(n=60, k=3, seed=0, ties=True):
    rng = np.random.default_rng(seed)
    y = (rng.random((n, k)) < (0.2, 0.5, 0.7)[:k]).astype(int)
    p = 0.4 * y + 0.6 * rng.random((n, k))
    return y, p.round(1) if ties else p


@pytest.mark.parametrize("ties", [True, False])
def test_the_values_are_those_of_scikit_learn(ties):
    y, p = some(ties=ties)
    thresholds = (0.3, 0.5, 0.6)
    found, predicted = multilabel_metrics(y, p, thresholds=thresholds), p >= thresholds
    expected = {
        "mean_average_precision": average_precision_score(y, p),
        "micro_f1": f1_score(y, predicted, average="micro"),
        "macro_f1": f1_score(y, predicted, average="macro"),
        "subset_accuracy": accuracy_score(y, predicted),
        "log_loss": np.mean([log_loss(y[:, c], np.clip(p[:, c], 1e-7, 1 - 1e-7)) for c in range(3)]),
    }
    for name, value in expected.items():
        assert found[name]["value"] == pytest.approx(value), name
        assert found[name]["low"] <= value <= found[name]["high"]
    assert [row["f1"] for row in found["labels"]] == pytest.approx(f1_score(y, predicted, average=None).tolist())
    assert [row["average_precision"] for row in found["labels"]] == pytest.approx(
        average_precision_score(y, p, average=None).tolist()
    )
    assert [row["support"] for row in found["labels"]] == y.sum(axis=0).tolist()


def test_the_interval_is_that_of_a_bootstrap_one_sample_at_a_time():
    y, p = some()
    rows = np.random.default_rng(7).integers(0, len(y), (1000, len(y)))
    scores = [average_precision_score(y[r], p[r]) for r in rows]
    found = multilabel_metrics(y, p, seed=7)["mean_average_precision"]
    np.testing.assert_allclose([found["low"], found["high"]], np.quantile(scores, (0.025, 0.975)))


def test_a_label_that_nothing_has_is_left_out():
    y, p = some()
    y[:, 1] = 0
    found = multilabel_metrics(y, p, labels=["a", "b", "c"])
    kept = [average_precision_score(y[:, c], p[:, c]) for c in (0, 2)]
    assert found["mean_average_precision"]["value"] == pytest.approx(np.mean(kept))
    assert found["labels"][1]["average_precision"] is None
    assert found["notes"] == ['The data have no example of "b"; macro averages leave such labels out.']


def test_the_thresholds_are_the_best_of_all():
    y, p = some(seed=3, ties=False)
    for c, threshold in enumerate(best_thresholds(y, p)):
        scores = [f1_score(y[:, c], p[:, c] >= t) for t in np.concatenate([p[:, c], [0, 1]])]
        assert f1_score(y[:, c], p[:, c] >= threshold) == pytest.approx(max(scores))


def test_of_equally_good_thresholds_the_one_nearest_to_a_half():
    assert best_thresholds([[0], [0], [1], [1]], [[0.1], [0.2], [0.8], [0.9]]) == (0.5,)
    assert best_thresholds([[1], [1]], [[0.1], [0.2]]) == (0.5,)


@pytest.mark.parametrize(
    ("y", "p", "message"),
    [
        ([[0, 1]], [[0.1]], "expected the same"),
        ([[0, 2]], [[0.1, 0.2]], "other numbers than 0 and 1"),
        ([[0, 1]], [[0.1, 1.2]], "not logits"),
        ([[0, 1]], [[0.1, np.nan]], "expected probabilities"),
    ],
)
def test_what_is_not_a_yes_or_no_is_refused(y, p, message):
    with pytest.raises(ValueError, match=message):
        multilabel_metrics(np.array(y), np.array(p))


def test_names_and_thresholds_belong_to_labels():
    y, p = some()
    with pytest.raises(ValueError, match="There are 2 labels, 3 thresholds and 3 columns"):
        multilabel_metrics(y, p, labels=["a", "b"])


def test_one_example_has_values_and_no_intervals():
    found = multilabel_metrics(np.array([[1, 0]]), np.array([[0.9, 0.1]]))
    assert found["micro_f1"] == {"value": 1.0, "low": None, "high": None, "reason": "one example allows no interval"}
