"""From scratch: other weights, the same everything else."""

import random

import keras
import numpy as np
import pytest
from keras import layers

from thaw.models.state import reinitialize_weights


def net():
    keras.utils.set_random_seed(3)
    entry = keras.Input((8, 8, 3))
    scaled = layers.Normalization(mean=[1.0, 2.0, 3.0], variance=[4.0, 4.0, 4.0], name="fixed")(entry)
    adapted = layers.Normalization(name="adapted")
    adapted.adapt(np.random.default_rng(0).normal(7, 2, (64, 8, 8, 3)).astype("float32"))
    inner = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.BatchNormalization()], name="inner")
    x = layers.GlobalAveragePooling2D()(inner(adapted(scaled)))
    model = keras.Model(entry, layers.Dense(2, "softmax", kernel_initializer="zeros")(layers.Dropout(0.3)(x)))
    model.compile("sgd", "sparse_categorical_crossentropy")
    x = np.random.default_rng(1).normal(size=(32, 8, 8, 3)).astype("float32")
    model.fit(x, np.arange(32) % 2, verbose=0)  # BatchNorm's statistics and the zeros of the head move
    return model


def test_every_weight_is_as_its_layer_begins():
    model = net()
    before = [w.numpy() for w in model.weights]
    assert reinitialize_weights(model, seed=1) is model
    after = {w.path: w.numpy() for w in model.weights}
    kernel = next(v for k, v in after.items() if "conv2d" in k and k.endswith("kernel"))
    assert not any(np.array_equal(kernel, b) for b in before)
    limit = np.sqrt(6 / (27 + 36))  # Glorot and Bengio (2010): 3 x 3 x 3 in, 3 x 3 x 4 out
    assert limit * 0.8 < np.abs(kernel).max() <= limit
    assert all((v == 0).all() for k, v in after.items() if k.endswith(("moving_mean", "bias", "beta")))
    assert all((v == 1).all() for k, v in after.items() if k.endswith(("moving_variance", "gamma")))
    head = model.layers[-1].kernel.numpy()
    assert (head == 0).all()  # as its own initializer says


def test_the_scaling_of_inputs_stays():
    model = net()
    x = np.random.default_rng(2).normal(7, 2, (4, 8, 8, 3)).astype("float32")
    scaled = keras.Model(model.input, model.get_layer("adapted").output)
    before, weights = scaled.predict(x, verbose=0), model.get_layer("adapted").get_weights()
    reinitialize_weights(model)
    np.testing.assert_array_equal(scaled.predict(x, verbose=0), before)
    for old, new in zip(weights, model.get_layer("adapted").get_weights()):
        np.testing.assert_array_equal(old, new)


def test_the_seed_decides_and_nothing_else_moves():
    model = net()
    model.get_layer("inner").trainable = False
    flags, optimizer = [layer.trainable for layer in model._flatten_layers()], model.optimizer
    state = random.getstate()
    first = reinitialize_weights(model, seed=5).get_weights()
    random.seed(99)
    again = reinitialize_weights(model, seed=5).get_weights()
    other = reinitialize_weights(model, seed=6).get_weights()
    assert all(np.array_equal(a, b) for a, b in zip(first, again))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other))
    random.setstate(state)
    reinitialize_weights(model, seed=7)
    assert random.getstate() == state
    assert [layer.trainable for layer in model._flatten_layers()] == flags
    assert model.optimizer is optimizer
    assert model.compiled


def test_a_model_that_cannot_be_built_anew():
    class Own(keras.Model):
        def __init__(self, width):
            super().__init__()
            self.dense = layers.Dense(width)

        def call(self, x):
            return self.dense(x)

    model = Own(3)
    with pytest.raises(ValueError, match="is not built yet"):
        reinitialize_weights(model)
    model(np.zeros((1, 2), "float32"))
    state = random.getstate()
    with pytest.raises(ValueError, match="cannot be cloned from its config"):
        reinitialize_weights(model)
    assert random.getstate() == state
