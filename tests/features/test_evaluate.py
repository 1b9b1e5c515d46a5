"""Evaluate composes the two, and leaves the model as it was."""

import random

import numpy as np
import pytest

from thaw.features.predictions import evaluate
from thaw.metrics.classification import classification_metrics

X = np.random.default_rng(0).normal(size=(40, 6, 6, 3)).astype("float32")
Y = np.arange(40) % 3


@pytest.fixture(scope="module")
def model():
    """Trained a little, partly frozen, with BatchNorm, dropout and random layers, and moments in the optimizer."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            layers.RandomFlip(),
            layers.Conv2D(4, 3),
            layers.BatchNormalization(),
            layers.GaussianNoise(0.1),
            layers.GlobalAveragePooling2D(),
            layers.Dropout(0.5),
            layers.Dense(3, "softmax"),
        ]
    )
    model.layers[1].trainable = False
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(X, Y, verbose=0)
    return model


def state(model):
    return {
        "variables": [v.numpy().tobytes() for v in model.variables],
        "optimizer": [v.numpy().tobytes() for v in model.optimizer.variables],
        "metrics": [v.numpy().tobytes() for v in model.metrics_variables],
        "trainable": [layer.trainable for layer in model.layers],
        "compiled": (model.compiled, id(model.optimizer), id(model.train_function)),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tobytes(),  # noqa: NPY002
    }


def test_the_model_and_all_random_state_are_bit_identical_afterwards(model):
    import keras
    import tensorflow as tf

    before = state(model)
    evaluate(model, X, Y)
    assert state(model) == before

    def next_numbers(measure):
        keras.utils.set_random_seed(7)
        if measure:
            evaluate(model, X, Y)
        return [keras.random.normal((3,)).numpy().tolist(), tf.random.normal((3,)).numpy().tolist()]

    assert next_numbers(True) == next_numbers(False)


def twin(model):
    import keras

    made = keras.models.clone_model(model)
    made.layers[1].trainable = False
    made.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"], run_eagerly=True)
    made.optimizer.build(made.trainable_variables)
    for mine, its in zip([*made.variables, *made.optimizer.variables], [*model.variables, *model.optimizer.variables]):
        mine.assign(its)
    return made


def test_the_next_training_step_is_the_same_with_and_without_evaluate(model):
    first, second = twin(model), twin(model)
    evaluate(first, X, Y)
    weights = []
    for trained in (first, second):
        trained.train_on_batch(X[:8], Y[:8])
        weights.append([v.numpy().tolist() for v in trained.weights])
    assert weights[0] == weights[1] != [v.numpy().tolist() for v in model.weights]


def test_it_measures_what_keras_measures(model):
    found = evaluate(model, X, Y, batch_size=16, labels=["a", "b", "c"])
    reference = model.evaluate(X, Y, verbose=0, return_dict=True)
    assert found["accuracy"]["value"] == pytest.approx(reference["accuracy"])
    assert found["log_loss"]["value"] == pytest.approx(reference["loss"], rel=1e-5)
    assert [row["label"] for row in found["classes"]] == ["a", "b", "c"]
    assert found == classification_metrics(
        Y, np.asarray(model(X, training=False), np.float64), labels=["a", "b", "c"]
    ) | {name: found[name] for name in ("log_loss", "calibration_error")}


def test_a_model_that_was_never_compiled_can_be_measured():
    import keras

    model = keras.Sequential([keras.Input((2,)), keras.layers.Softmax()])
    assert evaluate(model, np.eye(2), np.array([0, 1]))["accuracy"]["value"] == 1
    assert not model.compiled


@pytest.mark.parametrize("last", ["cast", "identity", "layer", "reshape", "operation", "logits"])
def test_what_stands_behind_the_softmax(last):
    """https://www.tensorflow.org/guide/mixed_precision ends in a layer that only casts: that is no logit."""
    import keras
    from keras import layers

    from thaw import Phase, Plan, fine_tune

    keras.utils.set_random_seed(0)
    entry = keras.Input((4,))
    logits = layers.Dense(3)(layers.Dense(8, "relu")(entry))
    softmax = layers.Softmax()(logits)
    outputs = {
        "cast": lambda: layers.Activation("linear", dtype="float32")(softmax),
        "identity": lambda: layers.Identity()(softmax),
        "layer": lambda: softmax,
        "reshape": lambda: layers.Reshape((3,))(layers.Softmax()(layers.Reshape((1, 3))(logits))),
        "operation": lambda: keras.ops.cast(keras.ops.softmax(logits), "float32"),
        "logits": lambda: layers.Activation("linear", dtype="float32")(logits),
    }
    model = keras.Model(entry, outputs[last]())
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=last == "logits")
    model.compile("adam", loss, metrics=["accuracy"])
    x = np.random.default_rng(0).normal(size=(40, 4)).astype("float32")
    y = x[:, :3].argmax(axis=1)
    p = keras.Model(entry, softmax).predict(x, verbose=0)
    expected = float(-np.log(p[np.arange(40), y]).mean())
    assert evaluate(model, x, y)["log_loss"]["value"] == pytest.approx(expected, abs=1e-5)
    if last in ("cast", "logits"):  # the two forms that a check of the loss could take for one another
        fine_tune(model, Plan([Phase(name="all", epochs=1, train="all")]), x, y, validation_data=(x, y), verbose=0)
