"""remove_head: where a head begins."""

import keras
import numpy as np
import pytest
from keras import layers

from thaw.models.heads import remove_head

PIXELS = (16, 16, 3)


def base(*, nested):
    x = inputs = keras.Input(PIXELS)
    x = layers.Conv2D(4, 3, strides=2, padding="same", activation="relu", name="map")(x)
    net = keras.Model(inputs, x, name="base")
    if nested:
        again = keras.Input(PIXELS)
        return again, net(again, training=False)
    return inputs, x


def dense(x):
    return layers.Dense(2, activation="softmax")(x)


HEADS = {
    "pooling": lambda x: dense(layers.GlobalAveragePooling2D()(x)),
    "kept dimensions": lambda x: layers.Softmax()(
        layers.Reshape((2,))(layers.Conv2D(2, 1)(layers.Dropout(0.1)(layers.GlobalMaxPooling2D(keepdims=True)(x))))
    ),
    "flatten": lambda x: dense(layers.Dropout(0.5)(layers.Dense(8, activation="relu")(layers.Flatten()(x)))),
    "normed": lambda x: layers.Activation("softmax")(
        layers.Dense(2)(layers.BatchNormalization()(layers.GlobalAveragePooling2D()(x)))
    ),
    "operations": lambda x: keras.ops.softmax(layers.Dense(2)(keras.ops.mean(x, axis=(1, 2)))),
    "cast": lambda x: layers.Activation("linear", dtype="float32")(layers.Softmax()(HEADS["pooling only"](x))),
    "nested": lambda x: keras.Sequential([layers.GlobalAveragePooling2D(), layers.Dense(2), layers.Softmax()])(x),
    "none": lambda x: x,
    "pooling only": lambda x: layers.GlobalAveragePooling2D()(x),
}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_cut_behind_the_feature_map(head, nested):
    inputs, x = base(nested=nested)
    model = keras.Model(inputs, HEADS[head](x))
    found = remove_head(model)
    pixels = np.random.default_rng(0).random((2, *PIXELS), "float32")
    assert found.output_shape == (None, 8, 8, 4)
    np.testing.assert_array_equal(found(pixels), keras.Model(inputs, x)(pixels))
    assert (found is model) == (head == "none")


def test_sequential_with_a_model_inside():
    inputs, x = base(nested=False)
    net = keras.Sequential([keras.Model(inputs, x), layers.GlobalAveragePooling2D(), layers.Dense(3)])
    assert remove_head(net).output_shape == (None, 8, 8, 4)


def test_remove_head_finds_a_head_inside_a_nested_model():
    inputs, x = base(nested=False)
    whole = keras.Model(inputs, HEADS["pooling"](x))
    model = keras.Sequential([keras.Input(PIXELS), layers.Rescaling(2.0), whole])
    bare = remove_head(model)
    assert bare.output_shape == (None, 8, 8, 4)
    pixels = np.random.default_rng(0).random((2, *PIXELS), "float32")
    np.testing.assert_array_equal(bare(pixels), keras.Model(inputs, x)(2 * pixels))


def test_remove_head_cuts_inside_a_nested_classifier_of_vectors():
    net = keras.Sequential([keras.Input((5,)), layers.Dense(7, "relu"), layers.Dense(2, "softmax")])
    inputs = keras.Input((5,))
    assert remove_head(keras.Model(inputs, net(inputs))).output_shape == (None, 7)
    head = keras.Sequential([keras.Input((7,)), layers.Dense(2), layers.Softmax()])
    assert remove_head(keras.Model(inputs, head(layers.Dense(7)(inputs)))).output_shape == (None, 7)


def test_a_map_of_one_position_is_kept():
    """At 32 pixels the last map of VGG16 is 1 x 1: the head still begins behind it."""
    net = keras.applications.VGG16(weights=None, input_shape=(32, 32, 3), classes=3)
    assert remove_head(net).layers[-1].name == "block5_pool"


@pytest.mark.parametrize(
    ("name", "last", "size"),
    [("MobileNet", "conv_pw_13_relu", 32), ("MobileNet", "conv_pw_13_relu", 64), ("MobileNetV2", "out_relu", 32)],
)
def test_remove_head_of_mobilenets(name, last, size):
    net = getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3), classes=3)
    assert remove_head(net).layers[-1].name == last


def test_pictures_of_any_size():
    inputs = keras.Input((None, None, 3))
    x = layers.Conv2D(4, 3)(inputs)
    assert remove_head(keras.Model(inputs, HEADS["pooling"](x))).output_shape == (None, None, None, 4)


def test_without_pictures_the_last_dense_layer_goes():
    hidden = [keras.Input((5,)), layers.Dense(7, activation="relu"), layers.Dropout(0.1)]
    found = remove_head(keras.Sequential([*hidden, layers.Dense(2), layers.Softmax()]))
    assert found.output_shape == (None, 7)


def test_transformer_keeps_its_tokens():
    inputs = keras.Input(PIXELS)
    x = layers.Reshape((16, 6))(layers.Conv2D(6, 4, strides=4)(inputs))
    x = layers.Add()([x, layers.MultiHeadAttention(2, 3)(x, x)])
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    assert remove_head(keras.Model(inputs, dense(x))).output_shape == (None, 6)


def test_refusals():
    inputs, x = base(nested=False)
    with pytest.raises(ValueError, match="has 1 inputs and 2 outputs; expected one of each"):
        remove_head(keras.Model(inputs, [x, HEADS["pooling"](x)]))
    with pytest.raises(ValueError, match="is all head: nothing is left before its dense layers"):
        remove_head(keras.Sequential([keras.Input((5,)), layers.Dense(2)]))

    class Own(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match="is a subclassed model, whose layers have no known order"):
        remove_head(Own())
