"""Inputs of public bug reports that no other file of tests is about; each link tells the story."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from thaw import Phase, Plan, as_dataset, attach_head, fine_tune, preflight


def test_head_under_channels_first():
    """keras#20414: keras.json says channels_first, and the backbone does not."""
    inputs = keras.Input((8, 6, 3))
    maps = layers.Conv2D(5, 3, data_format="channels_last")(inputs)
    keras.config.set_image_data_format("channels_first")
    try:
        model = attach_head(keras.Model(inputs, maps), 2)
    finally:
        keras.config.set_image_data_format("channels_last")
    assert model.layers[-1].kernel.shape == (5, 2)


def test_frozen_spectral_normalization():
    """keras#8372: what is frozen changes all the same."""
    keras.utils.set_random_seed(0)
    body = [layers.SpectralNormalization(layers.Dense(6, "relu"), name="norm"), layers.Dense(6, "relu")]
    model = keras.Sequential([keras.Input((4,)), *body, layers.Dense(2, "softmax")])
    model.compile("adam", "sparse_categorical_crossentropy")
    x, y = np.random.default_rng(0).normal(size=(16, 4)).astype("float32"), np.arange(16) % 2
    before = [w.numpy().copy() for w in body[0].weights]
    plan = Plan([Phase(name="head", epochs=1, train="head")])
    fine_tune(model, plan, x, y, validation_data=(x, y), verbose=0)
    with pytest.raises(ValueError, match='Phase "head" freezes norm, a SpectralNormalization, which changes'):
        fine_tune(model, plan, tf.data.Dataset.from_tensor_slices((x, y)).batch(8), verbose=0)
    assert all(np.array_equal(old, w.numpy()) for old, w in zip(before, body[0].weights, strict=True))


def test_f1_score_of_class_numbers():
    """tf-keras#33: the metric stops the first epoch with a word about dimensions."""
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, "softmax")])
    x, y = np.zeros((6, 4), "float32"), np.arange(6) % 3
    for loss, labels, expected in (
        ("sparse_categorical_crossentropy", y, ["metric-labels"]),
        ("categorical_crossentropy", np.eye(3)[y], []),
    ):
        model.compile("adam", loss, metrics=[keras.metrics.F1Score(average="macro")])
        findings = preflight(model, x, labels, validation_data=(x, labels))
        assert [finding.code for finding in findings if finding.level == "error"] == expected


class Endless(keras.utils.PyDataset):
    def __getitem__(self, index):
        return np.zeros((2, 4), "float32"), np.zeros(2)


class Unbounded(Endless):
    num_batches = None


@pytest.mark.parametrize("kind", [Endless, Unbounded])
def test_py_dataset_without_an_end(kind):
    """keras#8595: the training never comes to its second epoch."""
    with pytest.raises(ValueError, match="The training data never end: give the PyDataset a __len__"):
        as_dataset(kind(), name="training data")
