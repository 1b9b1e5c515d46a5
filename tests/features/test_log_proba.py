"""Every kind of head gives the same logarithms of probabilities as computed by hand."""

import numpy as np
import pytest

keras = pytest.importorskip("keras")
from keras import layers

from thaw.features.predictions import batch_probabilities, log_proba

X = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")

HEADS = {
    "softmax": [layers.Dense, (3, "softmax")],
    "logits": [layers.Dense, (3,)],
    "sigmoid": [layers.Dense, (1, "sigmoid")],
    "logit": [layers.Dense, (1,)],
}


@pytest.mark.parametrize("name", HEADS)
def test_as_our_reader_of_classifiers_says(name):
    kind, arguments = HEADS[name]
    model = keras.Sequential([keras.Input((4,)), kind(*arguments)])
    found = np.asarray(log_proba(model, model(X)))
    assert np.exp(found) == pytest.approx(batch_probabilities(model, [X]), abs=1e-6)


def test_softmax_as_a_layer_and_inside_a_nested_model():
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.Activation("softmax")])
    pixels = keras.Input((4,))
    model = keras.Model(pixels, inner(pixels))
    assert np.exp(log_proba(model, model(X))) == pytest.approx(np.asarray(model(X)), abs=1e-6)


@pytest.mark.parametrize("last", [layers.Dense(3, "sigmoid"), layers.Dense(3, "relu"), layers.ReLU()])
def test_what_says_no_probability_is_named(last):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3), last])
    with pytest.raises(ValueError, match="expected a layer with softmax"):
        log_proba(model, model(X))


def test_a_map_is_no_classifier():
    model = keras.Sequential([keras.Input((4, 4)), layers.Dense(3)])
    with pytest.raises(ValueError, match=r"expected shape \(n, classes\)"):
        log_proba(model, model(np.zeros((1, 4, 4))))
