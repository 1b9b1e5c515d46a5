"""What is tried leaves no trace."""

import random

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from thaw.data.dataset import Dataset
from thaw.finetune import fine_tune
from thaw.models.state import preserve_model, preserve_rng
from thaw.plan import Phase, Plan
from thaw.training.freezing import freeze

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(32, 6, 6, 1)).astype("float32"), np.arange(32) % 3


def net():
    keras.utils.set_random_seed(0)
    x = entry = keras.Input((6, 6, 1))
    inner = keras.Sequential([keras.Input((6, 6, 1)), layers.Conv2D(4, 3), layers.BatchNormalization()])
    x = layers.Dropout(0.5)(layers.Conv2D(4, 3, 2)(inner(x)))
    model = keras.Model(entry, layers.Dense(3, "softmax")(layers.GlobalAveragePooling2D()(x)))
    inner.layers[0].trainable = False
    metrics = [keras.metrics.SparseCategoricalAccuracy("own")]
    model.compile("adam", "sparse_categorical_crossentropy", metrics=metrics, run_eagerly=True)  # not traced
    model.fit(X, Y, verbose=0)  # the optimizer and the metrics hold something
    return model


def trace(model):
    """Everything that can be seen."""
    variables = [*model.variables, *model.metrics_variables, *model.optimizer.variables]
    return (
        [v.numpy().tolist() for v in variables],
        [(layer.name, layer.trainable) for layer in model._flatten_layers()],
        [(v.path, v.trainable) for v in model.weights],
        [id(w) for w in model.trainable_variables],
        id(model.optimizer),
        id(model.train_function),
        model.compiled,
        random.getstate(),
        str(np.random.get_state()),  # noqa: NPY002
    )


def meddle(model):
    freeze(model, "head")
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    fine_tune(
        model,
        Plan([Phase(name="all", epochs=1, learning_rate=0.1)]),
        Dataset(x=X, y=Y),
        validation_data=Dataset(x=X, y=Y),
    )
    draw()


def draw():
    random.random()
    np.random.rand()  # noqa: NPY002
    keras.random.normal((2,))


def meddle_and_fail(model):
    with preserve_model(model):
        freeze(model, "head")
        model.compile("sgd", "sparse_categorical_crossentropy")
        model.set_weights([np.zeros_like(w) for w in model.get_weights()])
        draw()
        raise KeyboardInterrupt


def test_preserve_model_leaves_no_trace():
    """The model is as it was, also after an error, and the next steps of training are the same to the bit as without
    it; and so is what Keras and TensorFlow draw next."""
    after = []
    for meddled in (False, True):
        model = net()
        tf.random.set_seed(4)
        before = trace(model)
        if meddled:
            with preserve_model(model):
                meddle(model)
            assert trace(model) == before
            with pytest.raises(KeyboardInterrupt):
                meddle_and_fail(model)
        assert trace(model) == before
        drawn = float(keras.random.uniform(())), float(tf.random.uniform(()))
        model.fit(X, Y, verbose=0, shuffle=False)
        after.append(([w.numpy().tolist() for w in model.weights], drawn))
    assert after[0] == after[1]


def test_a_model_that_is_not_compiled():
    model = keras.Sequential([keras.Input((1,)), layers.Dense(1)])
    with preserve_model(model):
        model.compile("sgd", "mse")
        model.set_weights([np.ones((1, 1)), np.ones(1)])
    assert not model.compiled
    assert model.get_weights()[1].tolist() == [0.0]


def test_preserve_rng_restores_what_keras_draws_also_after_set_random_seed():
    keras.utils.set_random_seed(3)
    keras.random.normal((2,))
    drawn = []
    for reseeds in (False, True):
        with preserve_rng():
            with preserve_rng():
                if reseeds:
                    keras.utils.set_random_seed(9)
                    keras.random.normal((2,))
            drawn.append((keras.random.normal((2,)).numpy().tolist(), random.random()))
    assert drawn[0] == drawn[1]
