"""The learning rate over the steps of one phase."""

import math

import numpy as np
import pytest

from thaw.training.optimizers import lr_schedule


def rates(kind, peak, steps, warmup):
    rate = lr_schedule(kind, peak, steps, warmup)
    return [float(rate(step)) for step in range(steps + 1)]


def test_constant_without_warmup_is_a_plain_number():
    assert lr_schedule("constant", 0.25, 10, 0) == 0.25
    assert lr_schedule("constant", 0.25, 4, 0.1) == 0.25  # a tenth of four steps is none
    assert isinstance(lr_schedule("constant", 0.25, 10, 0), float)


def test_constant_after_a_warmup():
    assert rates("constant", 1.0, 8, 0.5) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]


def test_linear():
    assert rates("linear", 1.0, 8, 0.0) == [1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0]
    assert rates("linear", 2.0, 8, 0.25) == pytest.approx([1, 2, 2, 5 / 3, 4 / 3, 1, 2 / 3, 1 / 3, 0])


def test_cosine():
    expected = [0.5 * 0.3 * (1 + math.cos(math.pi * step / 10)) for step in range(11)]
    assert rates("cosine", 0.3, 10, 0.0) == pytest.approx(expected, abs=1e-6)


def test_cosine_with_warmup():
    found = rates("cosine", 1.0, 20, 0.2)
    # From a quarter of the peak up to it in four steps, a straight line ...
    assert found[:5] == pytest.approx([0.25, 0.4375, 0.625, 0.8125, 1.0])
    # ... and down to nothing in the other sixteen.
    assert found[4:] == pytest.approx([0.5 * (1 + math.cos(math.pi * k / 16)) for k in range(17)], abs=1e-6)


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 97])
@pytest.mark.parametrize("warmup", [0.0, 0.01, 0.1, 0.5, 1.0])
def test_every_step_moves_and_none_is_above_the_peak(kind, steps, warmup):
    rate = lr_schedule(kind, 1e-3, steps, warmup)
    found = [float(rate(step)) if callable(rate) else rate for step in range(steps)]
    assert all(0 < value <= 1e-3 * (1 + 1e-6) for value in found)
    top = int(np.argmax(found))
    assert found[top] > 0.5e-3
    assert all(a <= b * (1 + 1e-6) for a, b in zip(found[:top], found[1 : top + 1]))
    assert all(a >= b * (1 - 1e-6) for a, b in zip(found[top:], found[top + 1 :]))


def test_it_drives_an_optimizer():
    import keras

    rate = lr_schedule("linear", 1.0, 4, 0.0)
    optimizer = keras.optimizers.SGD(rate)
    variable = keras.Variable(np.float32(0))
    optimizer.build([variable])
    path = []
    for _ in range(4):
        optimizer.apply([np.float32(-1)])
        path.append(float(variable))
    assert path == [1, 1.75, 2.25, 2.5]


@pytest.mark.parametrize("warmup", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_schedules_are_saved_as_classes_of_keras(kind, warmup):
    """https://github.com/keras-team/keras/issues/18887"""
    import keras

    rate = lr_schedule(kind, 0.5, 20, warmup)
    if not callable(rate):
        assert (kind, warmup, rate) == ("constant", 0.0, 0.5)
        return
    config = keras.optimizers.schedules.serialize(rate)
    assert config["module"] == "keras.optimizers.schedules"
    assert config["registered_name"] is None
    again = keras.optimizers.schedules.deserialize(config)
    first = 6 if kind == "linear" else 0  # Keras' own linear decay has no warm-up
    assert [float(again(n)) for n in range(first, 21)] == [float(rate(n)) for n in range(first, 21)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cosine", 0, 10, 0.1), r"peak=0, steps=10, warmup=0.1; expected a peak above 0"),
        (("cosine", -1e-3, 10, 0.1), "a peak above 0"),
        (("cosine", math.nan, 10, 0.1), "a peak above 0"),
        (("linear", 1e-3, 0, 0.1), "steps=0"),
        (("linear", 1e-3, 10, 1.5), "warmup=1.5"),
        (("step", 1e-3, 10, 0.1), 'schedule=\'step\'; expected "cosine", "linear" or "constant"'),
    ],
)
def test_what_cannot_be_meant(arguments, message):
    with pytest.raises(ValueError, match=message):
        lr_schedule(*arguments)
