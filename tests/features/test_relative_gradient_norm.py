"""The ratio is the gradient's norm over the weights', and looking at it changes nothing."""

import keras
import numpy as np
import pytest
from keras import layers

from thaw.data.dataset import Dataset
from thaw.features.stage_features import relative_gradient_norm


def linear():
    """y = 3 * (2 x); the loss is the squared error."""
    model = keras.Sequential([keras.Input((1,)), *(layers.Dense(1, use_bias=False) for _ in range(2))])
    model.set_weights([np.array([[2.0]]), np.array([[3.0]])])
    model.compile("sgd", "mse")
    return model


def test_by_hand():
    x, y = np.ones((4, 1), "float32"), np.full((4, 1), 5.0, "float32")
    found = relative_gradient_norm(linear(), x, y)
    # The loss is (w2 w1 - 5)² = 1; d/dw1 = 2 * 3 = 6, d/dw2 = 2 * 2 = 4.
    assert found == pytest.approx({"stage1": 6 / 2, "head": 4 / 3})


def test_one_number_for_each_example_as_fit_takes_it():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(3, "relu"), layers.Dense(1, "sigmoid")])
    model.compile("sgd", "binary_crossentropy")
    x, y = np.random.default_rng(0).normal(size=(8, 2)).astype("float32"), np.tile([0.0, 1.0], 4).astype("float32")
    assert relative_gradient_norm(model, x, y) == relative_gradient_norm(model, x, y[:, None])


def net():
    keras.utils.set_random_seed(0)
    x = entry = keras.Input((8, 8, 1))
    for filters in (4, 6):
        x = layers.Conv2D(filters, 3, 2, padding="same")(x)
        x = layers.Dropout(0.5)(layers.ReLU()(layers.BatchNormalization()(x)))
    x = layers.Dense(3, "softmax")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(entry, x)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def test_frozen_stages_are_looked_at_too_and_nothing_changes():
    model = net()
    rng = np.random.default_rng(0)
    data = Dataset(x=rng.normal(size=(40, 8, 8, 1)).astype("float32"), y=rng.integers(0, 3, 40))
    free = relative_gradient_norm(model, data, batch_size=16)
    model.layers[1].trainable = False
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    before = [v.numpy() for v in model.variables]
    flags, optimizer = [layer.trainable for layer in model._flatten_layers()], model.optimizer
    found = relative_gradient_norm(model, data, batch_size=16)
    assert found == free
    assert set(found) == {"stage1", "stage2", "head"}
    assert all(ratio > 0 for ratio in found.values())
    assert all(np.array_equal(a, v.numpy()) for a, v in zip(before, model.variables))
    assert [layer.trainable for layer in model._flatten_layers()] == flags
    assert model.optimizer is optimizer
    assert model.compiled


def test_bad_input():
    with pytest.raises(ValueError, match=r"expected thaw\.Dataset"):
        relative_gradient_norm(linear(), "photos")
    model = linear()
    model.compiled = False
    with pytest.raises(ValueError, match="not compiled with one loss"):
        relative_gradient_norm(model, np.ones((4, 1)), np.ones((4, 1)))
