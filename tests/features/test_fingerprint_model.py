"""Whatever changes what a prefix computes changes its name; what does not, does not."""

import numpy as np
import pytest

keras = pytest.importorskip("keras")
from keras import layers

from thaw.features.fingerprint import fingerprint_model


def net(seed=0, activation="relu", strides=1, swap=False, axis=-1, prefix="a"):
    keras.utils.set_random_seed(seed)
    entry = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, strides, activation=activation, name=f"{prefix}1")(entry)
    y = layers.BatchNormalization(axis=axis, name=f"{prefix}2")(layers.Conv2D(4, 3, strides, name=f"{prefix}3")(entry))
    z = layers.Subtract(name=f"{prefix}4")([y, x] if swap else [x, y])
    return keras.Model(entry, z * 2.0)


def test_the_same_has_the_same_name(tmp_path):
    model = net()
    name = fingerprint_model(model)
    assert name == fingerprint_model(net(prefix="other"))
    model.layers[1].trainable = False
    assert name == fingerprint_model(model)
    model.save(tmp_path / "m.keras")
    assert name == fingerprint_model(keras.saving.load_model(tmp_path / "m.keras"))


@pytest.mark.parametrize(
    "changed", [{"seed": 1}, {"activation": "elu"}, {"strides": 2}, {"swap": True}, {"axis": 1}], ids=str
)
def test_weights_settings_and_wiring_count(changed):
    if "axis" in changed:  # the two axes must be of equal length
        entry = keras.Input((4, 4, 4))
        one, two = (keras.Model(entry, layers.BatchNormalization(axis=a)(entry)) for a in (1, -1))
        assert fingerprint_model(one) != fingerprint_model(two)
        return
    assert fingerprint_model(net()) != fingerprint_model(net(**changed))


def test_statistics_count():
    model = net()
    name = fingerprint_model(model)
    model.get_layer("a2").moving_mean.assign(np.ones(4))
    assert fingerprint_model(model) != name


def test_constants_of_operations_count():
    entry = keras.Input((4,))
    names = {
        fingerprint_model(keras.Model(entry, made))
        for made in (
            entry * 2.0,
            entry * 3.0,
            entry[:, :2],
            entry[:, 1:3],
            keras.ops.sum(entry, axis=-1),
            keras.ops.sum(entry, axis=-1, keepdims=True),
            entry + np.arange(4, dtype="float32"),
            entry + np.arange(4, dtype="float32")[::-1].copy(),
        )
    }
    assert len(names) == 8
    assert None not in names


def test_large_constants_are_not_shortened():
    entry = keras.Input((3000,))
    one = np.zeros(3000, "float32")
    two = one.copy()
    two[1500] = 1
    a, b = (fingerprint_model(keras.Model(entry, entry + c)) for c in (one, two))
    assert a != b


class Own(layers.Layer):
    def call(self, x):
        return x + 1

    def compute_output_shape(self, shape):
        return shape


def own_activation(x):
    return 3 * x


@pytest.mark.parametrize(
    "layer",
    [
        lambda: layers.Lambda(lambda x: 2 * x),
        lambda: Own(),
        lambda: layers.Activation(own_activation),
        lambda: layers.Dense(2, activation=own_activation),
        lambda: layers.TimeDistributed(Own()),
    ],
)
def test_code_of_the_user_has_no_name(layer):
    entry = keras.Input((2, 4))
    assert fingerprint_model(keras.Model(entry, layer()(entry))) is None


def test_a_vocabulary_has_no_name():
    entry = keras.Input((1,), dtype="int64")
    assert fingerprint_model(keras.Model(entry, layers.IntegerLookup(vocabulary=[1, 2])(entry))) is None
