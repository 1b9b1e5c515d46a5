"""The diagonal Fisher information against formulas worked out by hand."""

import numpy as np
import pytest

keras = pytest.importorskip("keras")
from keras import layers

from thaw.data.dataset import Dataset
from thaw.retention.fisher_information import fisher

RNG = np.random.default_rng(0)
X = RNG.normal(size=(30, 3)).astype("float32")
Y = RNG.integers(0, 4, 30)


def softmax_regression(activation="softmax"):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((3,)), layers.Dense(4, activation)])


def by_hand(model, shares):
    """For softmax regression d log p_c / d W = x (e_c - p), d log p_c / d b = e_c - p; ``shares`` (n, classes)."""
    kernel, bias = (w.astype("float64") for w in model.get_weights())
    p = np.exp(X @ kernel + bias)
    p /= p.sum(axis=1, keepdims=True)
    shares = p if shares is None else shares
    squares = (np.eye(4)[None] - p[:, None]) ** 2  # (n, c, output)
    per_output = (shares[:, :, None] * squares).sum(axis=1)
    return (X.astype("float64") ** 2).T @ per_output / len(X), per_output.mean(axis=0)


@pytest.mark.parametrize("activation", ["softmax", None])
@pytest.mark.parametrize("classes", ["all", "true"])
def test_softmax_regression(activation, classes):
    model = softmax_regression(activation)
    expected = by_hand(model, None if classes == "all" else np.eye(4)[Y])
    for found, value in zip(fisher(model, X, Y, classes=classes), expected):
        np.testing.assert_allclose(found, value, rtol=1e-4)


def test_fisher_draws_an_unbiased_and_reproducible_sample():
    model = softmax_regression()
    p = model(X).numpy().astype("float64")
    squares = (np.eye(4)[None] - p[:, None]) ** 2  # (n, c, output)
    x, y = np.tile(X, (10, 1)), np.tile(Y, 10)  # the class of each example is drawn ten times
    drawn = fisher(model, x, y, max_examples=None)
    one, again, other = (fisher(model, X, Y, seed=seed) for seed in (3, 3, 4))
    for i, value in enumerate(by_hand(model, None)):
        assert np.array_equal(one[i], again[i])
        assert not np.array_equal(one[i], other[i])
        of_class = squares if i else X.astype("float64")[:, None, :, None] ** 2 * squares[:, :, None]
        share = p.reshape(*p.shape, *[1] * (of_class.ndim - 2))
        variance = (share * of_class**2).sum(axis=1) - (share * of_class).sum(axis=1) ** 2
        error = np.sqrt(variance.mean(axis=0) / len(x))
        assert (np.abs(drawn[i] - value) < 4 * error).all()
        assert (error < 0.2 * value).all()


def test_one_sigmoid_unit():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(1, "sigmoid", use_bias=False)])
    p = model.predict(X, verbose=0).astype("float64")
    expected = (X**2 * p * (1 - p)).mean(axis=0)
    np.testing.assert_allclose(fisher(model, X, Y, classes="all")[0][:, 0], expected, rtol=1e-4)


def test_nothing_is_touched_and_flags_do_not_matter():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(5),
            layers.BatchNormalization(),
            layers.Dropout(0.5),
            layers.Dense(4, "softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", run_eagerly=True)
    model.fit(X, Y, verbose=0)
    before = [v.numpy().tobytes() for v in (*model.variables, *model.optimizer.variables)]
    free = fisher(model, X, Y, max_examples=10)
    model.layers[0].trainable = False
    model.layers[1].trainable = False
    frozen = fisher(model, X, Y, max_examples=10)
    model.layers[0].trainable = model.layers[1].trainable = True
    assert before == [v.numpy().tobytes() for v in (*model.variables, *model.optimizer.variables)]
    assert [f.shape for f in free] == [tuple(w.shape) for w in model.weights]
    by_path = {w.path: f for w, f in zip(model.weights, free)}
    for w, f in zip(model.weights, frozen):
        assert np.array_equal(f, by_path[w.path]), w.path
        assert f.any() != ("moving" in w.path), w.path  # statistics are not learned


def test_examples_are_drawn_from_all():
    model = softmax_regression()
    by_class = Dataset(x=X, y=np.sort(Y))
    few = fisher(model, by_class, classes="true", max_examples=8)
    first = fisher(model, by_class.take(np.arange(8)), classes="true")
    assert not np.allclose(few[0], first[0])


def test_a_data_set():
    import tensorflow as tf

    model = softmax_regression()
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(7)
    for a, b in zip(fisher(model, data, classes="all"), fisher(model, X, Y, classes="all")):
        np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize(
    ("x", "y", "classes", "message"),
    [
        (X, Y, "drawn", '"sample", "all" or "true"'),
        ("photos", None, "all", "are a str; expected"),
        (X, Y + 9, "true", "expected a class number from 0 to 3"),
        (X, None, "true", "have no labels"),
    ],
)
def test_fisher_refuses_invalid_arguments(x, y, classes, message):
    with pytest.raises(ValueError, match=message):
        fisher(softmax_regression(), x, y, classes=classes)


def test_fisher_needs_no_labels():
    model = softmax_regression()
    for a, b in zip(fisher(model, X, classes="all"), fisher(model, X, Y, classes="all")):
        assert np.array_equal(a, b)
