"""Tasks of several labels and of numbers: targets, losses, baselines and the metric that decides."""

import keras
import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from thaw.targets import MultiLabel, Regression, label_rows, standardized_squared_error
from thaw.tasks import loss_name, monitor_of

LABELS = ("cat", "dog", "hat")


@pytest.mark.parametrize(
    "values",
    [
        ["cat|hat", "", "dog"],
        [" cat | hat ", "  ", "dog|dog"],
        [["hat", "cat"], [], ("dog",)],
        [{"cat", "hat"}, set(), "dog"],
        np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0]]),
        [[True, False, True], [0, 0, 0], [0.0, 1.0, 0.0]],
    ],
    ids=["texts", "spaces", "lists", "sets", "matrix", "rows"],
)
def test_several_labels_in_every_form(values):
    encoded = MultiLabel(LABELS).encode(values)
    assert encoded.dtype == np.float32
    assert encoded.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]


def test_labels_come_back_by_their_thresholds():
    p = [[0.5, 0.49, 0.7], [0.1, 0.2, 0.1]]
    assert MultiLabel(LABELS).decode(p) == [("cat", "hat"), ()]
    assert MultiLabel(LABELS, thresholds=(0.6, 0.2, 0.71)).decode(p) == [("dog",), ("dog",)]
    assert MultiLabel(LABELS, thresholds=0.1).thresholds == (0.1, 0.1, 0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MultiLabel(["a"]), "at least two labels"),
        (lambda: MultiLabel("ab"), "expected a list of names"),
        (lambda: MultiLabel(["a", "a"]), "'a' is there twice"),
        (lambda: MultiLabel(["a|b", "c"]), "holds '|'"),
        (lambda: MultiLabel(LABELS, thresholds=(0.5, 0.5)), "expected 3 numbers between 0 and 1"),
        (lambda: MultiLabel(LABELS, thresholds=1.0), "expected 3 numbers between 0 and 1"),
        (lambda: MultiLabel(LABELS).encode(["cow"]), "'cow' is no label of the task; expected one of cat, dog, hat"),
        (lambda: MultiLabel(LABELS).encode(np.eye(2)), r"expected rows of 0 and 1, \(n, 3\)"),
        (lambda: MultiLabel(LABELS).encode([[0.0, 0.5, 1.0]]), "expected 0 and 1"),
        (lambda: label_rows([0, 1]), "one column for each label"),
        (lambda: Regression([]), "at least one target"),
        (lambda: Regression(["a", "a"]), "'a' is there twice"),
        (lambda: Regression(["a"], mean=[0, 1]), "expected 1 finite number"),
        (lambda: Regression(["a"], deviation=[0.0]), "above 0"),
        (lambda: Regression(["a"], levels=[2, 1]), "ascending"),
        (lambda: Regression(["a", "b"], levels=[1, 2]), "one target"),
        (lambda: Regression(["a", "b"]).encode([1.0, 2.0]), r"have shape \(2,\); expected 2 numbers .*: a, b"),
        (lambda: Regression().encode(["cat"]), "no numbers"),
        (lambda: Regression().encode([1.0, np.nan]), "NaN or infinity in 1 of 2 rows"),
        (lambda: Regression(["a"]).standardized_by([3.0, 3.0]), "'a' is 3 in all examples"),
    ],
)
def test_what_cannot_be_a_target_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_numbers_and_back():
    one, two = Regression(["price"]), Regression(["x", "y"])
    assert one.encode(["1.5", 2]).tolist() == [[1.5], [2.0]]
    assert one.decode(np.array([[1.5], [2.0]])) == [1.5, 2.0]
    assert two.encode([[1, 2]]).tolist() == [[1.0, 2.0]]
    assert two.decode([[1, 2]]) == [{"x": 1.0, "y": 2.0}]


def test_baselines_are_those_of_models_that_ignore_their_input():
    rng = np.random.default_rng(0)
    y = (rng.random((50, 3)) < (0.1, 0.5, 0.8)).astype(int)
    expected = average_precision_score(y, np.ones((50, 3)), average="macro")
    assert MultiLabel(LABELS).baseline(y) == pytest.approx(expected)
    assert MultiLabel(LABELS).baseline([[1, 0, 0], [0, 0, 0]]) == 0.5  # labels that nothing has say nothing
    t = rng.normal(3, 2, 40)
    assert Regression().baseline(t) == pytest.approx(np.sqrt(np.mean((t - t.mean()) ** 2)), rel=1e-6)
    assert Regression(["a", "b"]).baseline(rng.normal(size=(4, 2))) == 0


def test_standardization_is_that_of_the_training_targets():
    y = np.array([[1.0, 100.0], [3.0, 300.0], [5.0, 200.0]])
    task = Regression(["a", "b"]).standardized_by(y)
    np.testing.assert_allclose(task.mean, y.mean(axis=0))
    np.testing.assert_allclose(task.deviation, y.std(axis=0))


def test_the_loss_is_that_of_standardized_numbers_and_is_saved_as_one_of_keras():
    rng = np.random.default_rng(1)
    y, p = rng.normal(0, 50, (7, 2)), rng.normal(0, 50, (7, 2))
    loss = standardized_squared_error([2.0, 30.0])
    assert float(loss(y, p)) == pytest.approx(np.mean(((y - p) / [2, 30]) ** 2), rel=1e-5)
    assert loss_name(loss) == ("mean_squared_error", False)
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert type(again) is keras.losses.MeanSquaredError
    one = standardized_squared_error([4.0])
    assert float(one(y[:, 0], p[:, :1])) == pytest.approx(np.mean(((y - p)[:, 0] / 4) ** 2), rel=1e-5)


@pytest.mark.parametrize(
    ("task", "decides"),
    [
        (MultiLabel(LABELS), ("val_pr_auc", "max")),
        (Regression(), ("val_root_mean_squared_error", "min")),
        (Regression(["a", "b"]), ("val_r2_score", "max")),
    ],
    ids=["labels", "number", "numbers"],
)
def test_the_metric_that_decides_declares_its_direction(task, decides):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(task.units, activation=task.activation)])
    model.compile("sgd", task.loss, metrics=task.metrics())
    assert monitor_of(model) == decides == (f"val_{task.monitor}", task.mode)
    x = np.random.default_rng(0).normal(size=(12, 4))
    y = (x[:, : task.units] > 0).astype("float32")
    assert f"val_{task.monitor}" in model.fit(x, y, validation_data=(x, y), verbose=0).history


def test_the_area_is_the_mean_average_precision_but_for_its_thresholds():
    rng = np.random.default_rng(2)
    y = (rng.random((300, 3)) < 0.4).astype("float32")
    p = np.clip(y * 0.3 + rng.random((300, 3)) * 0.7, 0, 1)
    [metric] = MultiLabel(LABELS).metrics()
    metric.update_state(y, p)
    assert float(metric.result()) == pytest.approx(average_precision_score(y, p), abs=0.02)
