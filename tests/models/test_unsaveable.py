"""unsaveable_reason: what could not be opened again is found before it is trained."""

import contextlib
import random
import re

import keras
import numpy as np
import pytest
from keras import layers
from PIL import Image

from thaw import Phase, Plan, load_images, preflight, tune
from thaw.models.loading import load_model_file, unsaveable_reason


def net(*more):
    return keras.Sequential([keras.Input((4,)), *more, layers.Dense(2)], name="net")


class NotRegistered(layers.Layer):
    def call(self, x):
        return x


@keras.saving.register_keras_serializable("test_unsaveable")
class WithoutConfig(layers.Layer):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, x):
        return self.function(x)


@keras.saving.register_keras_serializable("test_unsaveable")
class ForgetsItsSize(layers.Layer):
    def __init__(self, units=3, **options):
        super().__init__(**options)
        self.dense = layers.Dense(units)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        return self.dense(x)

    def get_config(self):
        return {"name": self.name}


@keras.saving.register_keras_serializable("test_unsaveable")
class Complete(ForgetsItsSize):
    def __init__(self, units=3, **options):
        super().__init__(units, **options)
        self.units = units

    def get_config(self):
        return {"name": self.name, "units": self.units}


def twice(x):
    return 2 * x


REFUSED = {
    "lambda layer": (lambda: net(layers.Lambda(lambda x: 2 * x)), "net has a Lambda layer, whose code would be in its"),
    "lambda inside": (lambda: net(net(layers.Lambda(twice))), "net has a Lambda layer"),
    "lambda as activation": (lambda: net(layers.Dense(3, lambda x: 2 * x)), "net has a lambda function, whose code"),
    "class": (
        lambda: net(NotRegistered()),
        r"it uses the class 'NotRegistered', which Keras does not know\)\. Register th",
    ),
    "function": (
        lambda: net(layers.Dense(3, twice)),
        r"it uses the function 'twice', which Keras does not know\)\. Regist",
    ),
    "no get_config": (lambda: net(WithoutConfig(np.tanh)), r"net cannot be saved so that the file opens again \("),
    "other weights": (
        lambda: keras.Sequential([keras.Input((4,)), ForgetsItsSize(7)]),
        r"its configuration makes weights of other shapes\)\. Let the get_config of each class",
    ),
    "other inputs": (lambda: net(ForgetsItsSize(7)), "Let the get_config of each class of your own return what it was"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_kinds(kind, tmp_path):
    build, expected = REFUSED[kind]
    model = build()
    what, fix = unsaveable_reason(model)
    assert re.search(expected, f"{what} {fix}"), (what, fix)
    assert "\n" not in what + fix
    assert what.endswith(".")
    assert fix.endswith(".")
    opened = None
    with contextlib.suppress(Exception):  # and so it is: the file cannot be written, or not be opened
        model.save(tmp_path / "model.keras")
        opened = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    assert opened is None


def test_preflight():
    found = [(finding.level, finding.what, finding.fix) for finding in preflight(net(layers.Lambda(twice)))]
    what = "net has a Lambda layer, whose code would be in its file, so that it would not be opened."
    assert ("warning", what, "Write that layer as a class, or as Keras operations.") in found


def lora_inside_attention():
    layer = layers.MultiHeadAttention(1, 2)
    inputs = keras.Input((4,))
    x = keras.ops.expand_dims(inputs, -1)
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling1D()(layer(x, x))))
    layer.query_dense.enable_lora(2)
    layer.query_dense.lora_kernel_b.assign_add(keras.ops.ones_like(layer.query_dense.lora_kernel_b))
    return model


SAVED = {
    "LoRA": lora_inside_attention,
    "of Keras": lambda: net(layers.Dense(3, "relu"), layers.Dropout(0.5), layers.BatchNormalization()),
    "registered": lambda: net(Complete(7)),
    "operations": lambda: keras.Model(
        *(lambda x: (x, keras.ops.softmax(layers.Dense(2)(x) * 2.0 + 1.0)))(keras.Input((4,)))
    ),
}


@pytest.mark.parametrize("kind", SAVED)
def test_saved_kinds(kind, tmp_path):
    model = SAVED[kind]()
    model.compile("sgd", lambda y, p: keras.ops.mean(p))  # a loss of one's own is not in the file of a run
    weights = model.get_weights()
    keras.utils.set_random_seed(3)
    expected = random.random()
    keras.utils.set_random_seed(3)
    assert unsaveable_reason(model) is None
    assert random.random() == expected
    assert all(np.array_equal(a, b) for a, b in zip(weights, model.get_weights()))
    model.compiled = False
    model.save(tmp_path / "model.keras")
    x = np.ones((2, 4), "float32")
    np.testing.assert_array_equal(load_model_file(tmp_path / "model.keras")(x), model(x))


def test_a_lambda_in_a_backbone(tmp_path):
    """https://github.com/keras-team/keras/issues/18284: the run would end in a file that nobody can open."""
    rng = np.random.default_rng(0)
    for label in ("crab", "shell"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{i}.png")
    inputs = keras.Input((32, 32, 3))
    maps = layers.Conv2D(4, 3, 2)(layers.Lambda(lambda t: t / 127.5 - 1.0)(inputs))
    epochs = []
    count = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: epochs.append(epoch))
    plan = Plan([Phase(name="head", epochs=2, train="head")])
    splits = load_images(tmp_path / "photos", image_size=32)
    model = keras.Model(inputs, maps)
    with pytest.raises(ValueError, match="has a Lambda layer, whose code would be in its file"):
        tune(splits, tmp_path / "run", model=model, plan=plan, callbacks=[count], verbose=0)
    assert epochs == []
    assert not (tmp_path / "run").exists()
