"""The predictions of a model, with the frozen prefix computed once."""

import numpy as np
import pytest

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")
from keras import layers

from thaw.data.dataset import Dataset
from thaw.features.cached_predictor import CachedPredictor
from thaw.features.predictions import batch_probabilities
from thaw.training.freezing import freeze


def net(nested=False):
    keras.utils.set_random_seed(0)
    entry = keras.Input((8, 8, 2))
    x = entry
    for filters in (4, 6, 6):
        y = layers.Conv2D(filters, 3, 2, padding="same")(x)
        x = layers.ReLU()(layers.BatchNormalization()(y))
    inner = keras.Model(entry, x)
    if nested:
        entry = keras.Input((8, 8, 2))
        x = inner(entry)
    x = layers.Dropout(0.5, seed=1)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(entry, layers.Dense(3)(x))


DATA = Dataset(x=np.random.default_rng(0).normal(size=(21, 8, 8, 2)).astype("float32"), y=np.zeros(21))


def plain(model):
    return batch_probabilities(model, [x for x, _ in DATA.ordered(8)])


def nudge(layer):
    layer.set_weights([w + 0.1 for w in layer.get_weights()])


def convolutions(model):
    return [layer for layer in model._flatten_layers() if isinstance(layer, layers.Conv2D)]


@pytest.mark.parametrize("nested", [False, True])
def test_cached_predictor_gives_the_probabilities_of_the_model(nested):
    model = net(nested)
    predictor = CachedPredictor(model, DATA, batch_size=8)
    np.testing.assert_array_equal(predictor(), plain(model))
    freeze(model, 1)
    predictor.follow()
    for _ in range(2):
        nudge(convolutions(model)[-1])
        np.testing.assert_allclose(predictor(), plain(model), rtol=1e-6)


class Counts(layers.Layer):
    """Counts how often it runs."""

    def __init__(self):
        super().__init__()
        self.runs = []

    def call(self, x):
        out = tf.py_function(lambda x: self.runs.append(1) or x, [x], x.dtype)
        return tf.ensure_shape(out, x.shape)

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


def counted_net():
    """A layer that counts its runs among the frozen layers, and one before the head."""
    keras.utils.set_random_seed(0)
    low, high = Counts(), Counts()
    x = entry = keras.Input((8, 8, 2))
    x = low(layers.Conv2D(4, 3, 2)(x))
    x = high(layers.Conv2D(6, 3, 2)(x))
    model = keras.Model(entry, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))
    freeze(model, "head")
    model.layers[3].trainable = True
    return model, low.runs, high.runs


def test_cached_predictor_runs_the_prefix_once_and_nothing_where_no_weight_changed():
    model, low, high = counted_net()
    predictor = CachedPredictor(model, DATA, batch_size=21)
    predictor.follow()
    predictor()
    predictor()
    assert (len(low), len(high)) == (1, 1)
    nudge(convolutions(model)[-1])
    predictor()
    assert (len(low), len(high)) == (1, 2)
    nudge(convolutions(model)[0])  # although it is frozen
    np.testing.assert_allclose(predictor(), plain(model), rtol=1e-6)
    predictor()
    assert len(low) == 1 + 1 + 3  # `plain` runs three batches


def test_cached_predictor_sees_a_training_step_and_a_restored_weight():
    """The values that it compares with are not those that training changes in place."""
    model = net()
    freeze(model, 1)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), run_eagerly=True)
    predictor = CachedPredictor(model, DATA, batch_size=8)
    predictor.follow()
    first, weights = predictor(), model.get_weights()
    model.fit(DATA.x, np.zeros(21), verbose=0)
    second = predictor()
    np.testing.assert_allclose(second, plain(model), rtol=1e-5)
    assert not np.array_equal(first, second)
    model.set_weights(weights)
    np.testing.assert_array_equal(predictor(), first)


def test_cached_predictor_runs_the_whole_model_without_memory_for_features():
    model, low, _ = counted_net()
    predictor = CachedPredictor(model, DATA, batch_size=21, max_bytes=21 * 3 * 3 * 4 * 4 - 1)  # of 3 x 3 x 4 floats
    predictor.follow()
    predictor()
    before = len(low)
    nudge(convolutions(model)[-1])
    found = predictor()
    assert len(low) == before + 1
    np.testing.assert_allclose(found, plain(model), rtol=1e-6)


def test_cached_predictor_leaves_the_model_bit_identical():
    model = net()
    freeze(model, 1)
    model.compile("adam", "mse")
    before = [w.numpy().tobytes() for w in model.weights], [w.trainable for w in model.weights], model.optimizer
    nodes = [len(layer._outbound_nodes) for layer in model.layers]
    predictor = CachedPredictor(model, DATA, batch_size=8)
    predictor.follow()
    predictor()
    again = [w.numpy().tobytes() for w in model.weights], [w.trainable for w in model.weights], model.optimizer
    assert again == before
    assert [len(layer._outbound_nodes) for layer in model.layers] == nodes
    assert model.compiled


def test_a_model_without_a_graph_is_run_whole():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.last = layers.Dense(3)

        def call(self, x):
            return self.last(keras.ops.mean(x, axis=(1, 2)))

    model = Own()
    model(DATA.x[:1])
    predictor = CachedPredictor(model, DATA, batch_size=8)
    predictor.follow()
    np.testing.assert_array_equal(predictor(), plain(model))
