"""How far every stage moved, and the alarms."""

import numpy as np
import pytest

keras = pytest.importorskip("keras")
from keras import layers

from thaw.models.stages import stages_of
from thaw.training.freezing import WeightChange, snapshot_weights, unexpected_changes, weight_change


def net():
    return keras.Sequential(
        [keras.Input((2,)), layers.Dense(2), layers.BatchNormalization(), layers.Dense(2, use_bias=False)]
    )


def test_by_hand():
    model = net()
    dense, norm, _ = model.layers
    dense.kernel.assign([[3.0, 0.0], [0.0, 4.0]])
    stages = stages_of(model)
    before = snapshot_weights(stages)
    assert weight_change(stages, before) == (WeightChange("stage1", 0.0, 0.0), WeightChange("head", 0.0, 0.0))
    dense.kernel.assign([[3.0, 2.0], [1.0, 4.0]])
    norm.beta.assign([2.0, 0.0])
    norm.moving_mean.assign([1.0, 1.0])
    first, second = weight_change(stages, before)
    assert first.stage == "stage1"
    assert first.weights == pytest.approx(3 / 6)  # change 4 + 1 + 4; length afterwards 30 + 2 (gamma) + 4 (beta)
    assert first.statistics == pytest.approx(np.sqrt(2 / 4))  # the variances are ones
    assert second == WeightChange("head", 0.0, 0.0)


def test_from_nothing_it_is_one():
    model = net()
    head = model.layers[-1]
    head.kernel.assign(np.zeros((2, 2)))
    stages = stages_of(model)
    before = snapshot_weights(stages)
    head.kernel.assign([[3.0, 0.0], [0.0, 4.0]])
    assert weight_change(stages, before)[1].weights == 1.0
    head.kernel.assign([[0.0, 0.0], [0.0, 0.0]])
    assert weight_change(stages, before)[1].weights == 0.0


def test_it_does_not_matter_what_is_trainable_now():
    model = net()
    stages = stages_of(model)
    before = snapshot_weights(stages)
    model.layers[0].kernel.assign_add(np.ones((2, 2)))
    model.layers[1].moving_mean.assign([1.0, 1.0])
    free = weight_change(stages, before)
    model.trainable = False
    assert weight_change(stages, before) == free


def test_the_snapshot_is_a_copy():
    model = net()
    before = snapshot_weights(stages_of(model))
    old = model.layers[0].kernel.numpy().copy()
    model.layers[0].kernel.assign_add(np.ones((2, 2)))
    assert np.array_equal(before[0][0][0], old)


@pytest.mark.parametrize(
    ("moved", "moving", "batchnorm", "expected"),
    [
        (WeightChange("head", 0.1, 0.0), ["head"], "frozen", []),
        (WeightChange("stage1", 0.0, 0.0), ["head"], "frozen", []),
        (WeightChange("stage1", 0.1, 0.2), ["stage1"], "trained", []),
        (
            WeightChange("head", 0.0, 0.0),
            ["head"],
            "frozen",
            ["head was trainable and did not change: no gradient reached it"],
        ),
        (WeightChange("stage1", 0.25, 0.0), ["head"], "frozen", ["stage1 was frozen and changed by 0.25"]),
        (
            WeightChange("stage1", 0.1, 0.5),
            ["stage1"],
            "frozen",
            ["BatchNorm statistics were frozen and changed by 0.5"],
        ),
        (
            WeightChange("stage1", 0.0, 0.5),
            ["head"],
            "trained",
            ["BatchNorm statistics were frozen and changed by 0.5"],
        ),
        (WeightChange("head", float("nan"), 0.0), ["head"], "frozen", ["head holds numbers that are not finite"]),
    ],
)
def test_alarms(moved, moving, batchnorm, expected):
    found = unexpected_changes((moved,), moving, batchnorm)
    assert len(found) == len(expected)
    assert all(part in sentence for part, sentence in zip(expected, found))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_told(value):
    model = net()
    stages = stages_of(model)
    before = snapshot_weights(stages)
    model.layers[-1].kernel.assign(np.full((2, 2), value))
    found = unexpected_changes(weight_change(stages, before), ["stage1", "head"], "frozen")
    assert "head holds numbers that are not finite." in found


def test_unexpected_changes_says_nothing_of_what_changes_by_design():
    """A frozen SpectralNormalization goes on with its power iteration; that is no BatchNorm statistic."""
    model = keras.Sequential([keras.Input((3,)), layers.SpectralNormalization(layers.Dense(4)), layers.Dense(2)])
    stages = stages_of(model)
    before = snapshot_weights(stages)
    vector = next(w for w in model.layers[0].weights if "vector" in w.path)
    vector.assign_add(np.ones(vector.shape))
    changes = weight_change(stages, before)
    assert all((change.weights, change.statistics) == (0.0, 0.0) for change in changes)
    assert unexpected_changes(changes, [], "frozen") == []
