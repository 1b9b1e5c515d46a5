"""``stage_outputs`` gives what leaves each stage, with nested and subclassed models too."""

import numpy as np
import pytest

from thaw.features.stage_features import stage_outputs

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


class Own(keras.Model):
    """Subclassed, with a functional model, dropout, an operation, and a layer that is used twice."""

    def __init__(self):
        super().__init__()
        entry = keras.Input((4,))
        self.inner = keras.Model(entry, layers.Dense(5, "relu")(layers.Dense(6)(entry)))
        self.drop, self.norm, self.last = layers.Dropout(0.5), layers.BatchNormalization(), layers.Dense(5)

    def call(self, x, training=None):
        x = self.drop(self.inner(x), training=training)
        return self.last(self.last(self.norm(x, training=training)) * 2)


def test_stage_outputs_end_with_the_output_of_the_model():
    model = nested()
    stages, outputs = stage_outputs(model, X)
    found = outputs(X)
    assert len(found) == len(stages)
    assert [tuple(out.shape[1:]) for out in found] == [stage.shape for stage in stages]
    assert np.array_equal(found[-1], model(X, training=False))


def test_stage_outputs_of_a_nested_model_as_computed_by_hand():
    model = nested()
    stages, outputs = stage_outputs(model, X)
    x, by_layer = X, {}
    for layer in model.layers[1].layers:
        x = by_layer[id(layer)] = layer(x)
    for stage, out in zip(stages, outputs(X)):
        assert stage.name == "head" or np.array_equal(out, by_layer[id(stage.layers[-1])])


@pytest.mark.parametrize("build", [nested, Own])
def test_stage_outputs_leave_nothing_on_the_layers(build):
    model, x = build(), X if build is nested else X[:, 0, 0, :1].repeat(4, axis=1)
    model(x)

    def state():
        every = model._flatten_layers()
        return [(layer.name, len(layer._inbound_nodes), len(layer._outbound_nodes), *vars(layer)) for layer in every]

    before = state()
    stage_outputs(model, x)[1](x)
    assert state() == before


def test_stage_outputs_of_a_subclassed_model():
    keras.utils.set_random_seed(0)
    model, x = Own(), np.random.default_rng(0).normal(size=(3, 4))
    expected = model(x, training=False)
    stages, outputs = stage_outputs(model, x)
    found = outputs(x, training=False)
    assert [id(stage.layers[-1]) for stage in stages] == [id(model.inner), id(model.norm), id(model.last)]
    assert np.array_equal(found[0], model.inner(x))
    assert np.array_equal(found[2], model.last(model.norm(model.inner(x), training=False)))  # the first use
    assert np.array_equal(model(x, training=False), expected)


def test_stage_outputs_of_a_model_that_cannot_be_traced():
    import tensorflow as tf

    class Eager(keras.Model):
        def __init__(self):
            super().__init__()
            self.last = layers.Dense(2)

        def call(self, x):
            return self.last(tf.math.cumsum(x, axis=1))

    model = Eager()
    model(np.zeros((1, 4)))
    with pytest.raises(ValueError, match=r"subclassed model whose call cannot be traced .* keras\.ops only"):
        stage_outputs(model, np.zeros((3, 4)))


def test_stage_outputs_name_a_stage_that_is_never_called():
    class Unused(keras.Model):
        def __init__(self):
            super().__init__()
            self.one, self.two = layers.Dense(2), layers.Dense(2)
            self.two.build((None, 4))

        def call(self, x):
            return self.one(x)

    model = Unused()
    model(np.zeros((1, 4)))
    with pytest.raises(ValueError, match="does not call the last layer of head"):
        stage_outputs(model, np.zeros((3, 4)))
