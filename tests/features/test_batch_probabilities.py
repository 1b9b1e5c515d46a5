"""Softmax, logits, sigmoid: what the last layer puts out becomes probabilities."""

import importlib.util

import numpy as np
import pytest

from thaw.features.predictions import batch_probabilities

X = np.array([[0.0, np.log(3.0)], [1.0, 1.0]], np.float32)


def model_of(*layers, shape=(2,)):
    import keras

    return keras.Sequential([keras.Input(shape), *layers])


def dense(units, activation, kernel):
    import keras

    return keras.layers.Dense(units, activation, kernel_initializer=keras.initializers.Constant(kernel))


def test_softmax_and_logits_say_the_same():
    import keras

    expected = [[0.25, 0.75], [0.5, 0.5]]
    same = np.eye(2)
    activation = keras.layers.Activation("softmax")
    for last in (
        [dense(2, "softmax", same)],
        [dense(2, None, same)],
        [keras.layers.Softmax()],
        [activation],
        [keras.Sequential([keras.Input((2,)), dense(2, "softmax", same)])],
    ):
        assert batch_probabilities(model_of(*last), [X]) == pytest.approx(np.array(expected), abs=1e-6)


@pytest.mark.parametrize("activation", ["sigmoid", None])
def test_a_single_unit_is_class_1(activation):
    model = model_of(dense(1, activation, [[0.0], [1.0]]))
    assert batch_probabilities(model, [X[:1]]) == pytest.approx(np.array([[0.25, 0.75]]), abs=1e-6)


def test_where_the_last_layer_says_nothing_the_numbers_do():
    import keras

    model = model_of(keras.layers.Softmax(), keras.layers.Dropout(0.5))
    assert batch_probabilities(model, [X])[0] == pytest.approx([0.25, 0.75], abs=1e-6)
    model = model_of(dense(2, None, np.eye(2)), keras.layers.Dropout(0.5))
    assert batch_probabilities(model, [X])[0] == pytest.approx([0.25, 0.75], abs=1e-6)


def test_a_softmax_that_is_no_layer_is_not_applied_twice():
    import keras

    inputs = keras.Input((2,))
    model = keras.Model(inputs, keras.ops.softmax(dense(2, None, np.eye(2))(inputs)))
    nested = keras.Model(inputs, model(inputs))
    for m in (model, nested):
        assert batch_probabilities(m, [X])[0] == pytest.approx([0.25, 0.75], abs=1e-6)


def test_a_subclassed_model_is_judged_by_its_numbers():
    import keras

    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.last = keras.layers.Softmax()
            self.first = keras.layers.Dense(2, kernel_initializer="identity")

        def call(self, x):
            return self.last(self.first(x))

    assert batch_probabilities(Own(), [X])[0] == pytest.approx([0.25, 0.75], abs=1e-6)


def test_rows_of_half_precision_sum_to_one():
    import keras

    model = model_of(keras.layers.Dense(50, "softmax", dtype="float16"))
    sums = batch_probabilities(model, [np.random.default_rng(0).normal(size=(9, 2))]).sum(axis=1)
    assert np.abs(sums - 1).max() < 1e-12


def test_batches_of_different_sizes_are_traced_once():
    import keras

    class Counting(keras.layers.Layer):
        traces = 0

        def call(self, x):
            Counting.traces += 1
            return x

    model = model_of(Counting(), keras.layers.Softmax())
    before = Counting.traces
    assert batch_probabilities(model, [X, X[:1], np.repeat(X, 5, axis=0)]).shape == (13, 2)
    assert Counting.traces == before + 1


def test_batches_larger_than_the_first_and_empty_ones():
    import tensorflow as tf

    model = model_of(dense(2, None, np.eye(2)))
    x = np.random.default_rng(0).normal(size=(11, 2)).astype(np.float32)
    expected = np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
    for batches in ([x[:0], x[:2], x[2:10], x[10:10], x[10:]], [tf.constant(x[:3]), tf.constant(x[3:])]):
        assert batch_probabilities(model, batches) == pytest.approx(expected, abs=1e-6)


def test_batch_probabilities_computes_many_inputs_in_the_fastest_runtime_and_few_in_tensorflow(monkeypatch):
    model = model_of(dense(2, "softmax", [[1.0, 2.0], [3.0, -1.0]]))
    x = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)
    many = 10**12  # so many that it pays for a small model too
    expected = batch_probabilities(model, [x[:5], x[5:]])
    assert batch_probabilities(model, [x[:5], x[5:]], examples=many) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    asked = []
    monkeypatch.setattr(importlib.util, "find_spec", asked.append)  # is another runtime looked for?
    for examples, looked_for in ((None, []), (255, []), (many, ["openvino"])):
        assert batch_probabilities(model, [x[:5], x[5:]], examples=examples).tolist() == expected.tolist()
        assert asked == looked_for


def test_the_state_of_layers_that_are_random_in_inference_is_put_back():
    import keras

    class Noise(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.seeds = keras.random.SeedGenerator(3)

        def call(self, x):
            return x + keras.random.normal(keras.ops.shape(x), seed=self.seeds)

    model = model_of(Noise(), keras.layers.Softmax())
    first = batch_probabilities(model, [X])
    state = [v.numpy().copy() for v in model.non_trainable_variables]
    assert (batch_probabilities(model, [X]) == first).all()
    assert len(state) == 1
    assert (model.non_trainable_variables[0].numpy() == state[0]).all()


def test_the_state_is_put_back_after_an_error_too():
    import keras

    class Counts(keras.layers.Layer):
        def build(self, _):
            self.calls = self.add_weight(name="calls", trainable=False, initializer="zeros")

        def call(self, x):
            self.calls.assign_add(1.0)
            return x

    model = model_of(Counts(), keras.layers.Softmax())
    with pytest.raises(ValueError, match="A batch has inputs"):
        batch_probabilities(model, [X, X[:, :1]])
    assert model.non_trainable_variables[0].numpy() == 0


@pytest.mark.filterwarnings("ignore:You are using a softmax over axis")  # that is the mistake
@pytest.mark.parametrize(
    ("layers", "shape", "x", "message"),
    [
        (lambda k: [k.layers.Dense(2, "sigmoid")], (2,), X, "2 sigmoid units, which are independent"),
        (lambda k: [k.layers.Dense(1, "softmax")], (2,), X, "softmax over a single unit, which is always 1"),
        (lambda k: [k.layers.Conv1D(2, 1)], (4, 3), np.zeros((5, 4, 3)), r"shape \(4, 2\) for one input"),
        (lambda k: [k.layers.Dense(2)], (2,), X * np.nan, "NaN or infinity for 2 of 2 inputs"),
    ],
)
def test_what_is_no_classifier_is_named(layers, shape, x, message):
    import keras

    with pytest.raises(ValueError, match=message):
        batch_probabilities(model_of(*layers(keras), shape=shape), [x])


def test_no_inputs_and_two_outputs():
    import keras

    with pytest.raises(ValueError, match=r"There are no inputs"):
        batch_probabilities(model_of(keras.layers.Softmax()), [])
    inputs = keras.Input((2,))
    with pytest.raises(ValueError, match="has 2 outputs; expected one"):
        batch_probabilities(keras.Model(inputs, [inputs * 1, inputs * 2]), [X])
