"""Between the weights before and after."""

import numpy as np
import pytest

keras = pytest.importorskip("keras")
from keras import layers

from thaw.retention.fisher_information import fisher
from thaw.retention.merging import interpolate_weights
from thaw.training.freezing import batchnorm_layers

X = np.random.default_rng(0).normal(2, 3, (64, 6, 6, 1)).astype("float32")


def net():
    keras.utils.set_random_seed(0)
    x = entry = keras.Input((6, 6, 1))
    x = layers.BatchNormalization(name="first")(x)
    for filters in (3, 4):
        x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(filters, 3)(x)))
    return keras.Model(entry, layers.Dense(2)(layers.Flatten()(x)))


@pytest.fixture(scope="module")
def ends():
    """Weights before and after all of them have changed, BatchNorm's statistics too, as in a training."""
    rng = np.random.default_rng(1)
    before = net().get_weights()
    return before, [(w * rng.uniform(0.5, 2, w.shape) + rng.uniform(0, 0.2, w.shape)).astype(w.dtype) for w in before]


@pytest.mark.parametrize("data", [None, X])
def test_the_ends_are_the_ends_to_the_bit(ends, data):
    model = net()
    for alpha, end in zip((0, 1, 0.0, 1.0), (*ends, *ends)):
        interpolate_weights(model, *ends, alpha, data)
        assert all(a.tobytes() == b.tobytes() for a, b in zip(model.get_weights(), end))


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.7])
def test_the_formula(ends, alpha):
    model = net()
    interpolate_weights(model, *ends, alpha)
    for found, old, new in zip(model.get_weights(), *ends):
        old, new = old.astype("float64"), new.astype("float64")
        np.testing.assert_allclose(found, (1 - alpha) * old + alpha * new, rtol=1e-6, atol=1e-8)


def test_statistics_are_measured_where_something_else_arrives_and_only_there(ends):
    model = net()
    interpolate_weights(model, *ends, 0.5, X)
    first, *others = batchnorm_layers(model)
    place = next(i for i, w in enumerate(model.weights) if w is first.moving_mean)
    # At the first one the pictures arrive, whatever the weights are.
    expected = (ends[0][place].astype("float64") + ends[1][place]) / 2
    np.testing.assert_allclose(first.moving_mean.numpy(), expected, rtol=1e-6)
    for layer in others:
        out = np.asarray(keras.Model(model.input, layer.input)(X, training=False), np.float64)
        spread = out.std(axis=(0, 1, 2))
        assert np.abs(layer.moving_mean.numpy() - out.mean(axis=(0, 1, 2))).max() < 2e-3 * spread.max()
        np.testing.assert_allclose(layer.moving_variance.numpy(), spread**2, rtol=5e-3)


def test_where_a_straight_line_leads_to_dead_activations_new_statistics_revive_them():
    """Half way between a net and the same net with its channels swapped, activations shrink (Jordan et al. 2023)."""
    rng = np.random.default_rng(1)
    dense = keras.Sequential([keras.Input((8,)), layers.Dense(64), layers.BatchNormalization(center=False)])
    x = rng.normal(size=(256, 8)).astype("float32")
    kernel = rng.normal(size=(8, 64)).astype("float32")
    order = rng.permutation(64)

    def weights(columns):
        arrives = x @ kernel[:, columns]
        return [kernel[:, columns], np.zeros(64), np.ones(64), arrives.mean(0), arrives.var(0)]

    ends = weights(np.arange(64)), weights(order)
    plain = np.asarray(interpolate_weights(dense, *ends, 0.5)(x)).std()
    again = np.asarray(interpolate_weights(dense, *ends, 0.5, x)(x)).std()
    assert plain < 0.8
    assert again == pytest.approx(1, abs=0.01)


def test_mistakes(ends):
    model = net()
    for alpha in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="expected a number from 0, the weights before, to 1"):
            interpolate_weights(model, *ends, alpha)
    with pytest.raises(ValueError, match="Version 1 holds 2 arrays"):
        interpolate_weights(model, ends[0], ends[1][:2], 0.5)


def test_a_curve_between_the_same_ends_by_importance():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1, use_bias=False)])
    ends = [np.array([[0.0], [0.0]], "float32")], [np.array([[1.0], [1.0]], "float32")]
    importance = [np.array([[2.0], [0.0]])], [np.array([[1.0], [1.0]])]
    for alpha in (0, 0.5, 1):
        interpolate_weights(model, *ends, alpha, importance=importance)
        expected = [alpha * 1.1 / (alpha * 1.1 + (1 - alpha) * old) for old in (2.1, 0.1)]
        np.testing.assert_allclose(model.get_weights()[0][:, 0], expected, rtol=1e-6)


def test_importance_of_another_model_on_the_same_weights():
    """Two heads on two features; the old one reads the first, and the new one the second."""
    entry = keras.Input((2,))
    features = layers.Dense(2, use_bias=False, name="features")(entry)
    old = keras.Model(entry, layers.Dense(2, use_bias=False)(features))
    new = keras.Model(entry, layers.Dense(2, use_bias=False)(features))
    x, y = np.random.default_rng(0).normal(size=(20, 2)).astype("float32"), np.zeros(20, int)
    for model, reads in ((old, 0), (new, 1)):
        head = np.zeros((2, 2))
        head[reads] = [1, -1]
        model.set_weights([np.eye(2), head])
    found = fisher(old, (x, y), weights_of=new), fisher(new, (x, y), weights_of=new)
    assert found[0][1].tolist() == [[0, 0], [0, 0]]  # the head that the old model does not have
    before, after = new.get_weights(), [2 * np.eye(2, dtype="float32"), new.get_weights()[1]]
    interpolate_weights(new, before, after, 0.5, importance=found)
    kernel = new.get_weights()[0]
    assert kernel[0, 0] < 1.2
    assert kernel[1, 1] > 1.8
