"""Averages of several versions of the weights."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

keras = pytest.importorskip("keras")
from keras import layers

from thaw.retention.merging import average_weights
from thaw.training.freezing import batchnorm_layers


class Counting(layers.Layer):
    """Has a weight that is a whole number."""

    def build(self, shape):
        self.count = self.add_weight(shape=(), dtype="int32", initializer="zeros", trainable=False)

    def call(self, x):
        return x


def net():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [keras.Input((3,)), layers.Dense(4), layers.BatchNormalization(), layers.Dropout(0.5), layers.Dense(2)]
    )


def versions(model, n=3, seed=0):
    rng = np.random.default_rng(seed)
    return [[rng.uniform(0.1, 2, w.shape).astype("float32") for w in model.weights] for _ in range(n)]


def same(model, weights):
    return all(a.tobytes() == b.tobytes() for a, b in zip(model.get_weights(), weights))


def test_the_mean_in_double_precision():
    model = net()
    given_ = versions(model)
    assert average_weights(model, given_) is model
    for variable, *values in zip(model.weights, *given_):
        mean = np.mean(np.array(values, np.float64), axis=0)
        np.testing.assert_array_equal(variable.numpy(), mean.astype("float32"))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 10), min_size=3, max_size=3).filter(lambda s: sum(s) > 1e-3))
def test_shares(shares):
    model = keras.Sequential([keras.Input((1,)), layers.Dense(1, use_bias=False)])
    average_weights(model, [[np.array([[v]])] for v in (1.0, 2.0, 4.0)], shares)
    expected = np.dot(shares, [1, 2, 4]) / sum(shares)
    assert model.get_weights()[0].item() == pytest.approx(expected, rel=1e-6)


def test_the_whole_share_is_exact_even_beside_damaged_weights():
    model = net()
    first, second, third = versions(model)
    third = [np.full_like(w, np.nan) for w in third]
    assert same(average_weights(model, [first, second, third], [0, 1, 0]), second)


def test_what_is_equal_stays_to_the_bit():
    model = net()
    first = versions(model, 1)[0]
    second = [w.copy() for w in first]
    second[0][0] += 1
    average_weights(model, [first, second, first], [0.1, 0.2, 0.7])
    equal = first[0] == second[0]
    assert equal.any()
    assert not equal.all()
    np.testing.assert_array_equal(model.get_weights()[0][equal], first[0][equal])
    assert same(model.layers[-1], first[-2:])


def test_counters_are_not_averaged():
    model = keras.Sequential([keras.Input((2,)), Counting(), layers.Dense(1)])
    (place,) = (i for i, w in enumerate(model.weights) if w.dtype == "int32")
    given_ = [[np.full(w.shape, v, w.dtype) for w in model.weights] for v in (2, 5)]
    average_weights(model, given_, [0.3, 0.7])
    assert model.get_weights()[place] == 5
    assert model.get_weights()[-1][0] == pytest.approx(4.1)


def test_random_states_are_not_touched():
    model = net()
    seeds = [v.numpy().tobytes() for v in model.non_trainable_variables if "seed" in v.path]
    assert seeds
    average_weights(model, versions(model))
    assert [v.numpy().tobytes() for v in model.non_trainable_variables if "seed" in v.path] == seeds


def test_statistics_are_measured_anew_where_pictures_are_given():
    model = net()
    x = np.random.default_rng(1).normal(size=(40, 3)).astype("float32")
    given_ = versions(model)
    average_weights(model, given_, x=x)
    arrives = x @ model.layers[0].kernel.numpy() + model.layers[0].bias.numpy()
    (norm,) = batchnorm_layers(model)
    np.testing.assert_allclose(norm.moving_mean.numpy(), arrives.mean(0), rtol=1e-4)
    np.testing.assert_allclose(norm.moving_variance.numpy(), arrives.var(0), rtol=1e-4)


def test_statistics_stay_where_nothing_else_arrives():
    model = net()
    first = versions(model, 1)[0]
    second = [*first[:-2], *(w + 1 for w in first[-2:])]
    average_weights(model, [first, second], x=np.ones((4, 3), "float32"))
    assert same(batchnorm_layers(model)[0], first[2:6])


def test_a_model_is_never_left_half_way():
    model = net()
    before = model.get_weights()
    with pytest.raises(ValueError, match="NaN or infinity"):
        average_weights(model, versions(model), x=np.full((4, 3), np.nan, "float32"))
    assert same(model, before)


def test_mistakes():
    model = net()
    before = model.get_weights()
    good = versions(model, 2)
    with pytest.raises(ValueError, match=r"Version 1 holds 7 arrays and .* has 8 weights"):
        average_weights(model, [good[0], good[1][:-1]])
    with pytest.raises(ValueError, match=r"Version 0 holds an array of shape \(4,\) for .*kernel, which has \(3, 4\)"):
        average_weights(model, [good[0][1:2] + good[0][1:]])
    for shares in ([1], [1, -1], [0, 0], [1, float("nan")]):
        with pytest.raises(ValueError, match="There are 2 versions and the shares"):
            average_weights(model, good, shares)
    with pytest.raises(ValueError, match="There are 0 versions"):
        average_weights(model, [])
    assert same(model, before)


def test_the_file_names_nothing_of_ours(tmp_path):
    model = net()
    average_weights(model, versions(model))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True, compile=False)
    assert same(loaded, model.get_weights())


def two_weights(first, second):
    return [np.array([[first], [second]], "float32")]


def test_what_matters_more_to_a_version_comes_more_from_it():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1, use_bias=False)])
    ends = two_weights(0, 0), two_weights(1, 1)
    # Brought to a mean of one these are (1.5, 0.5) and (0.2, 1.8), and a tenth more.
    importance = two_weights(3, 1), two_weights(10, 90)
    average_weights(model, ends, (0.75, 0.25), importance=importance)
    expected = [0.25 * 0.3 / (0.75 * 1.6 + 0.25 * 0.3), 0.25 * 1.9 / (0.75 * 0.6 + 0.25 * 1.9)]
    np.testing.assert_allclose(model.get_weights()[0][:, 0], expected, rtol=1e-6)
    # What is equal in both counts for nothing, however much it matters.
    ends = two_weights(0, 7), two_weights(1, 7)
    average_weights(model, ends, (0.75, 0.25), importance=(two_weights(5, 1e6), two_weights(1, 0)))
    np.testing.assert_allclose(model.get_weights()[0][:, 0], [0.25, 7], rtol=1e-6)
    # No importance at all says nothing.
    average_weights(model, ends, (0.75, 0.25), importance=(two_weights(0, 0), two_weights(0, 0)))
    np.testing.assert_allclose(model.get_weights()[0][:, 0], [0.25, 7], rtol=1e-6)


@pytest.mark.parametrize(
    ("importance", "message"),
    [
        ([two_weights(1, 1)], "2 versions and 1 importances"),
        ([two_weights(1, 1), two_weights(-1, 1)], "Importance 1 holds numbers below 0"),
        ([two_weights(np.nan, 1), two_weights(1, 1)], "Importance 0 holds numbers below 0 or not finite"),
        ([[np.ones(2)], two_weights(1, 1)], "Importance 0 holds an array of shape"),
    ],
)
def test_importances_that_cannot_be_meant(importance, message):
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1, use_bias=False)])
    with pytest.raises(ValueError, match=message):
        average_weights(model, [two_weights(0, 0), two_weights(1, 1)], importance=importance)
