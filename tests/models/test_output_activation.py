"""output_activation, has_head, task_of: what a model predicts, read from its last layer."""

import keras
import pytest
import tensorflow as tf
from keras import layers

from thaw.models.heads import has_head, output_activation, task_of


def of_operation(function):
    entry = keras.Input((4,))
    return keras.Model(entry, function(layers.Dense(3)(entry)))


def nested(model):
    entry = keras.Input((4,))
    return keras.Sequential([keras.Input((4,)), keras.Model(entry, model(entry))])


def sequential(*net):
    return keras.Sequential([keras.Input((4,)), *net])


MODELS = {
    "softmax": [
        lambda: sequential(layers.Dense(3, "softmax")),
        lambda: sequential(layers.Dense(3), layers.Softmax()),
        lambda: sequential(layers.Dense(3), layers.Activation("softmax")),
        lambda: sequential(layers.Dense(3), layers.Activation(keras.ops.softmax)),
        lambda: of_operation(keras.ops.softmax),
        lambda: of_operation(lambda x: keras.ops.cast(keras.ops.softmax(x), "float32")),
        lambda: of_operation(lambda x: layers.Activation("linear", dtype="float32")(layers.Softmax()(x))),
        lambda: of_operation(lambda x: layers.Identity(dtype="float32")(layers.Softmax()(x))),
        lambda: of_operation(lambda x: layers.Reshape((3,))(layers.Softmax()(layers.Reshape((1, 3))(x)))),
        lambda: of_operation(lambda x: layers.Flatten()(keras.ops.expand_dims(layers.Softmax()(x), 1))),
        lambda: of_operation(lambda x: keras.ops.stop_gradient(layers.Softmax()(x))),
        lambda: sequential(layers.Dense(3, tf.nn.softmax)),
        lambda: sequential(layers.Dense(3, layers.Softmax())),
        lambda: sequential(layers.SpectralNormalization(layers.Dense(3, "softmax"))),
        lambda: nested(sequential(layers.Dense(3), layers.Softmax())),
        lambda: nested(of_operation(keras.ops.softmax)),
        lambda: nested(nested(sequential(layers.Dense(3), layers.Softmax(), layers.Activation("linear")))),
    ],
    "sigmoid": [
        lambda: sequential(layers.Dense(3, "sigmoid")),
        lambda: sequential(layers.Dense(3), layers.Activation("sigmoid"), layers.Activation("linear")),
        lambda: of_operation(keras.ops.sigmoid),
    ],
    "logits": [
        lambda: sequential(layers.Dense(3)),
        lambda: sequential(layers.Dense(3), layers.Activation("linear", dtype="float32")),
        lambda: nested(sequential(layers.Dense(3))),
        lambda: sequential(layers.Softmax(), layers.Dense(3)),
    ],
    "other": [
        lambda: sequential(layers.Dense(3, "relu")),
        lambda: sequential(layers.Dense(3), layers.ReLU()),
        lambda: sequential(layers.Dense(3, "softmax"), layers.Dropout(0.5)),
        lambda: of_operation(lambda x: layers.Flatten()(layers.Softmax()(layers.Reshape((3, 1))(x)))),
        lambda: of_operation(keras.ops.log_softmax),
        lambda: of_operation(lambda x: x + 1),
        lambda: sequential(layers.Activation("linear")),
        lambda: of_operation(lambda x: [layers.Softmax()(x), x]),
    ],
}
EACH = [(kind, i) for kind, builders in MODELS.items() for i in range(len(builders))]


@pytest.mark.parametrize(("kind", "i"), EACH)
def test_output_activation_reads_the_last_layer(kind, i):
    model = MODELS[kind][i]()
    assert output_activation(model) == kind
    assert has_head(model) == (kind in ("softmax", "sigmoid"))


def test_output_activation_of_one_output_of_a_nested_model():
    entry = keras.Input((4,))
    two = keras.Model(entry, [layers.Dense(3, "softmax")(entry), layers.Dense(2, "relu")(entry)])
    again = keras.Input((4,))
    first, second = two(again)
    assert output_activation(keras.Model(again, first)) == "softmax"
    assert output_activation(keras.Model(again, second)) == "other"


def test_output_activation_of_a_subclassed_model_is_unknown():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.last, self.first = layers.Softmax(), layers.Dense(3)

        def call(self, x):
            return self.last(self.first(x))

    assert output_activation(Own()) == "other"
    assert not has_head(Own())


def test_has_head_is_about_one_vector_of_probabilities():
    assert not has_head(keras.Sequential([keras.Input((6, 4)), layers.Dense(3, "softmax")]))  # one for each token


def test_task_of_reads_the_number_of_classes():
    assert task_of(sequential(layers.Dense(3), layers.Softmax())).units == 3
    assert task_of(sequential(layers.Dense(1, "sigmoid"))).labels == ("0", "1")
    for last in (layers.Dense(1, "softmax"), layers.Dense(3), layers.Dense(3, "relu")):
        assert task_of(sequential(last)) is None
