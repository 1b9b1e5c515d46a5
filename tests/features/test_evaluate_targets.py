"""evaluate of several labels and of numbers."""

import keras
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, root_mean_squared_error

from thaw import Dataset, attach_head, evaluate
from thaw.metrics import residual_spread
from thaw.targets import MultiLabel, Regression


def linear(units, activation):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(units, activation=activation)])
    model.layers[-1].kernel.assign(np.random.default_rng(0).normal(size=(3, units)))
    return model


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(1).normal(size=(50, 3)).astype("float32")


def test_labels_from_probabilities_and_from_logits(x):
    task, y = MultiLabel(["a", "b"], thresholds=(0.4, 0.6)), (x[:, :2] > 0).astype(int)
    found = evaluate(linear(2, "sigmoid"), Dataset(x=x, y=y), task=task)
    p = 1 / (1 + np.exp(-x @ np.random.default_rng(0).normal(size=(3, 2))))
    assert found["mean_average_precision"]["value"] == pytest.approx(average_precision_score(y, p), abs=1e-6)
    assert [row["threshold"] for row in found["labels"]] == [0.4, 0.6]
    assert [row["label"] for row in found["labels"]] == ["a", "b"]
    logits = evaluate(linear(2, "linear"), x, y, task=task)
    assert logits["log_loss"]["value"] == pytest.approx(found["log_loss"]["value"], abs=1e-6)


def test_numbers_in_their_units(x):
    task = Regression(["price"], mean=[100.0], deviation=[10.0])
    model = attach_head(keras.Sequential([keras.Input((3,)), keras.layers.Rescaling(1.0)]), task)
    y = 100 + 10 * x[:, 0]
    spread = residual_spread(y[:20], np.full(20, 100.0))
    found = evaluate(model, x[20:], y[20:], task=task, spread=spread)
    assert found["rmse"]["value"] == pytest.approx(root_mean_squared_error(y[20:], np.full(30, 100.0)), rel=1e-5)
    assert found["coverage"]["value"] is not None
    assert found["targets"][0]["target"] == "price"


@pytest.mark.parametrize(
    ("model", "task", "message"),
    [
        (lambda: linear(3, "sigmoid"), MultiLabel(["a", "b"]), "expected 2 numbers"),
        (lambda: linear(2, "softmax"), MultiLabel(["a", "b"]), "does not end in sigmoid units"),
        (lambda: linear(2, "sigmoid"), Regression(["a"]), "expected 1 numbers"),
    ],
)
def test_a_model_of_something_else_is_refused(model, task, message, x):
    with pytest.raises(ValueError, match=message):
        evaluate(model(), x, np.zeros((50, task.units)), task=task)


def test_targets_that_are_not_those_of_the_task_are_refused(x):
    with pytest.raises(ValueError, match="expected 0 and 1"):
        evaluate(linear(2, "sigmoid"), x, np.full((50, 2), 0.5), task=MultiLabel(["a", "b"]))
