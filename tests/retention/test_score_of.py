"""One score, however it is to be measured."""

import numpy as np
import pytest

keras = pytest.importorskip("keras")

from thaw.data.dataset import Dataset
from thaw.metrics.intervals import Estimate
from thaw.retention.merging import score_of

X = np.eye(2, dtype="float32")[[0, 1, 0, 0, 1]] * 3
Y = np.array([0, 1, 1, 0, 1])


def net(flip=False):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, use_bias=False)])
    model.set_weights([np.eye(2)[::-1] if flip else np.eye(2)])
    return model


@pytest.mark.parametrize("data", [(X, Y), Dataset(x=X, y=Y), Dataset(x=X, y=np.eye(2)[Y]), [X, Y[:, None]]])
def test_score_of_data_is_the_accuracy_with_its_interval(data):
    found = score_of(net(), data)
    assert found.value == 0.8
    # Wilson 1927, by its formula.
    z, n, p = 1.959964, 5, 0.8
    middle, half = (p + z**2 / (2 * n)), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert found.low == pytest.approx((middle - half) / (1 + z**2 / n), abs=1e-6)
    assert found.high == pytest.approx((middle + half) / (1 + z**2 / n), abs=1e-6)


def test_score_of_another_model():
    assert score_of(net(), (net(flip=True), (X, Y))).value == pytest.approx(0.2)


def test_score_of_functions():
    model = net()
    assert score_of(model, lambda m: float(m is model)) == Estimate(1.0)
    assert score_of(model, lambda m: {"value": 0.5, "low": 0.4, "high": 0.6, "x": 1}) == Estimate(0.5, 0.4, 0.6)
    assert score_of(model, lambda m: {"value": 0.5, "low": None, "high": None}) == Estimate(0.5)
    assert score_of(model, lambda m: Estimate(0.5, 0.4, 0.6)) == Estimate(0.5, 0.4, 0.6)


def test_score_of_refuses_what_gives_no_number():
    with pytest.raises(ValueError, match="data to score by are a str; expected"):
        score_of(net(), "accuracy")
    for wrong in (None, {"accuracy": 1}, "high", [1, 2]):
        with pytest.raises(ValueError, match=r"returned .*; expected a number, higher is better"):
            score_of(net(), lambda m, wrong=wrong: wrong)
