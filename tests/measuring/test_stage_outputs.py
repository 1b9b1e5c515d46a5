"""What leaves each stage, with nested models too, and nothing left behind."""

import numpy as np
import pytest

from thaw.measuring.stage_outputs import StageOutputs

keras = pytest.importorskip("keras")
from keras import layers

X = np.random.default_rng(0).normal(size=(3, 8, 8, 2)).astype("float32")


def nested():
    inner = keras.Sequential(
        [keras.Input((8, 8, 2)), layers.Conv2D(4, 3, padding="same"), layers.MaxPooling2D(), layers.Conv2D(6, 3)]
    )
    pixels = keras.Input((8, 8, 2))
    x = layers.Flatten()(inner(pixels))
    return keras.Model(pixels, layers.Dense(2)(layers.Dropout(0.5)(x)))


def test_the_last_is_what_the_model_says():
    model = nested()
    outputs = StageOutputs(model)
    found = outputs(X)
    assert len(found) == len(outputs.stages)
    assert [tuple(out.shape[1:]) for out in found] == [stage.shape for stage in outputs.stages]
    assert np.array_equal(found[-1], model(X, training=False))


def test_inside_a_nested_model_as_computed_by_hand():
    model = nested()
    inner = model.layers[1]
    outputs = StageOutputs(model)
    x, by_layer = X, {}
    for layer in inner.layers:
        x = by_layer[id(layer)] = layer(x)
    for stage, out in zip(outputs.stages, outputs(X)):
        last = by_layer.get(id(stage.layers[-1]))
        assert stage.name == "head" or np.array_equal(out, last)


def test_nothing_is_left_also_after_an_exception():
    model = nested()
    outputs = StageOutputs(model)
    outputs(X)
    with pytest.raises(ValueError):
        outputs(np.zeros((3, 5)))
    assert not any("call" in vars(layer) for stage in outputs.stages for layer in stage.layers)


def test_a_call_of_the_users_own_is_put_back():
    model = nested()
    layer, calls = model.layers[-1], []
    plain = layer.call
    layer.call = lambda x, training=None: calls.append(1) or plain(x)
    own = layer.call
    StageOutputs(model)(X)
    assert calls == [1]
    assert vars(layer)["call"] is own


def test_a_model_without_a_graph():
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.one, self.two = layers.Dense(5), layers.Dense(2)

        def call(self, x):
            return self.two(self.one(x))

    model = Net()
    model(np.zeros((1, 4)))
    assert [tuple(out.shape) for out in StageOutputs(model)(np.zeros((3, 4)))] == [(3, 5), (3, 2)]
