"""How far every stage moved, and the alarms."""

import numpy as np
import pytest

keras = pytest.importorskip("keras")
from keras import layers

from thaw.stages import stages_of
from thaw.tuning.movement import Moved, alarms, movement, snapshot


def net():
    return keras.Sequential(
        [keras.Input((2,)), layers.Dense(2), layers.BatchNormalization(), layers.Dense(2, use_bias=False)]
    )


def test_by_hand():
    model = net()
    dense, norm, _ = model.layers
    dense.kernel.assign([[3.0, 0.0], [0.0, 4.0]])
    stages = stages_of(model)
    before = snapshot(stages)
    assert movement(stages, before) == (Moved("stage1", 0.0, 0.0), Moved("head", 0.0, 0.0))
    dense.kernel.assign([[3.0, 2.0], [1.0, 4.0]])
    norm.beta.assign([2.0, 0.0])
    norm.moving_mean.assign([1.0, 1.0])
    first, second = movement(stages, before)
    assert first.stage == "stage1"
    assert first.weights == pytest.approx(3 / 6)  # change 4 + 1 + 4; length afterwards 30 + 2 (gamma) + 4 (beta)
    assert first.statistics == pytest.approx(np.sqrt(2 / 4))  # the variances are ones
    assert second == Moved("head", 0.0, 0.0)


def test_from_nothing_it_is_one():
    model = net()
    head = model.layers[-1]
    head.kernel.assign(np.zeros((2, 2)))
    stages = stages_of(model)
    before = snapshot(stages)
    head.kernel.assign([[3.0, 0.0], [0.0, 4.0]])
    assert movement(stages, before)[1].weights == 1.0
    head.kernel.assign([[0.0, 0.0], [0.0, 0.0]])
    assert movement(stages, before)[1].weights == 0.0


def test_it_does_not_matter_what_is_trainable_now():
    model = net()
    stages = stages_of(model)
    before = snapshot(stages)
    model.layers[0].kernel.assign_add(np.ones((2, 2)))
    model.layers[1].moving_mean.assign([1.0, 1.0])
    free = movement(stages, before)
    model.trainable = False
    assert movement(stages, before) == free


def test_the_snapshot_is_a_copy():
    model = net()
    before = snapshot(stages_of(model))
    old = model.layers[0].kernel.numpy().copy()
    model.layers[0].kernel.assign_add(np.ones((2, 2)))
    assert np.array_equal(before[0][0][0], old)


@pytest.mark.parametrize(
    ("moved", "moving", "batchnorm", "expected"),
    [
        (Moved("head", 0.1, 0.0), ["head"], "frozen", []),
        (Moved("stage1", 0.0, 0.0), ["head"], "frozen", []),
        (Moved("stage1", 0.1, 0.2), ["stage1"], "trained", []),
        (Moved("head", 0.0, 0.0), ["head"], "frozen", ["head should have moved and did not: no gradient reached it"]),
        (Moved("stage1", 0.25, 0.0), ["head"], "frozen", ["stage1 was to stand still and moved by 0.25"]),
        (Moved("stage1", 0.1, 0.5), ["stage1"], "frozen", ["BatchNorm's statistics were held and moved by 0.5"]),
        (Moved("stage1", 0.0, 0.5), ["head"], "trained", ["BatchNorm's statistics were held and moved by 0.5"]),
        (Moved("head", float("nan"), 0.0), ["head"], "frozen", ["head holds numbers that are not finite"]),
    ],
)
def test_alarms(moved, moving, batchnorm, expected):
    found = alarms((moved,), moving, batchnorm)
    assert len(found) == len(expected)
    assert all(part in sentence for part, sentence in zip(expected, found))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_told(value):
    model = net()
    stages = stages_of(model)
    before = snapshot(stages)
    model.layers[-1].kernel.assign(np.full((2, 2), value))
    found = alarms(movement(stages, before), ["stage1", "head"], "frozen")
    assert "head holds numbers that are not finite." in found
