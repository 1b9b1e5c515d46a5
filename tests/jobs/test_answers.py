"""The answers of a model, with what stands still run once."""

import numpy as np
import pytest

keras = pytest.importorskip("keras")
from keras import layers

from thaw.examples import Examples
from thaw.jobs import answers as module
from thaw.jobs.answers import Answers
from thaw.probabilities import probabilities
from thaw.tuning.freeze import freeze


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


DATA = Examples(x=np.random.default_rng(0).normal(size=(21, 8, 8, 2)).astype("float32"), y=np.zeros(21))


def plain(model):
    return probabilities(model, [x for x, _ in DATA.ordered(8)])


def nudge(layer):
    layer.set_weights([w + 0.1 for w in layer.get_weights()])


def convolutions(model):
    return [layer for layer in model._flatten_layers() if isinstance(layer, layers.Conv2D)]


@pytest.mark.parametrize("nested", [False, True])
def test_they_are_those_of_the_model(nested):
    model = net(nested)
    answers = Answers(model, DATA, batch_size=8)
    np.testing.assert_array_equal(answers(), plain(model))
    freeze(model, 1)
    answers.follow()
    for _ in range(2):
        nudge(convolutions(model)[-1])
        np.testing.assert_allclose(answers(), plain(model), rtol=1e-6)


def test_what_stands_still_is_run_once_and_what_has_not_changed_not_at_all(monkeypatch):
    ran = []
    features, inputs = Answers._features, Answers._inputs
    monkeypatch.setattr(Answers, "_features", lambda self: ran.append("prefix") or features(self))
    monkeypatch.setattr(Answers, "_inputs", lambda self: ran.append("rest") or inputs(self))
    model = net()
    freeze(model, 1)
    answers = Answers(model, DATA, batch_size=8)
    answers.follow()
    answers()
    answers()
    nudge(convolutions(model)[-1])
    answers()
    assert ran == ["rest", "prefix", "rest"]
    nudge(convolutions(model)[0])  # it was said to stand still
    np.testing.assert_allclose(answers(), plain(model), rtol=1e-6)
    assert ran == ["rest", "prefix", "rest", "rest", "prefix"]


def test_too_much_to_keep_is_not_kept(monkeypatch):
    monkeypatch.setattr(module, "MOST_BYTES", 100)
    model = net()
    freeze(model, 1)
    answers = Answers(model, DATA, batch_size=8)
    answers.follow()
    np.testing.assert_array_equal(answers(), plain(model))
    assert answers._kept is None


def test_the_model_stays_as_it_is():
    model = net()
    freeze(model, 1)
    model.compile("adam", "mse")
    before = [w.numpy().tobytes() for w in model.weights], [w.trainable for w in model.weights], model.optimizer
    nodes = [len(layer._outbound_nodes) for layer in model.layers]
    answers = Answers(model, DATA, batch_size=8)
    answers.follow()
    answers()
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
    answers = Answers(model, DATA, batch_size=8)
    answers.follow()
    np.testing.assert_array_equal(answers(), plain(model))
