"""restore_after_error, preserve_flags: flags and compilation after an error, an interrupt, and with LoRA."""

import keras
import numpy as np
import pytest
from keras import layers

from thaw._keras import sublayers, trainable_flag
from thaw.models.state import preserve_flags, preserve_model, restore_after_error
from thaw.training.freezing import freeze

X, Y = np.random.default_rng(0).normal(size=(8, 3)).astype("float32"), np.arange(8) % 2


def net():
    model = keras.Sequential(
        [keras.Input((3,)), layers.Dense(4), layers.BatchNormalization(), layers.Dense(2, "softmax")]
    )
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def flags(model):
    return [trainable_flag(layer) for layer in sublayers(model)], [(v.path, v.trainable) for v in model.variables]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, ValueError])
def test_restore_after_error_restores_after_ctrl_c_during_fit(kind):
    class Stops(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise kind

    model = net()
    before, optimizer = flags(model), model.optimizer

    def train():
        with restore_after_error(model):
            freeze(model, "head")
            model.compile("adam", "sparse_categorical_crossentropy")
            model.fit(X, Y, verbose=0, callbacks=[Stops()])

    with pytest.raises(kind):
        train()
    assert flags(model) == before
    assert model.compiled
    assert model.optimizer is optimizer
    model.fit(X, Y, verbose=0)


def test_restore_after_error_leaves_a_block_that_ends_well():
    model = net()
    with restore_after_error(model):
        freeze(model, "head")
    assert not model.layers[0].trainable


def test_restore_after_error_restores_the_flags_of_a_training_that_diverged():
    model = net()

    def diverge():
        with restore_after_error(model):
            freeze(model, "head")
            raise FloatingPointError

    with pytest.raises(FloatingPointError):
        diverge()
    assert model.layers[0].trainable


@pytest.mark.parametrize("preserve", [preserve_flags, preserve_model, restore_after_error])
def test_preserve_does_not_unfreeze_the_kernel_under_lora(preserve):
    model = net()
    model.layers[0].enable_lora(2)
    before = flags(model)
    assert not model.layers[0]._kernel.trainable

    def unfreeze():
        with preserve(model):
            model.trainable = False
            model.trainable = True  # sets every variable, the kernel too
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unfreeze()
    assert flags(model) == before
