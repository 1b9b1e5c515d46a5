"""Every form of labelled data gives the same labels and probabilities."""

import importlib.util

import numpy as np
import pytest

from thaw.data.dataset import Dataset
from thaw.features.predictions import predict_proba, predict_proba_with_labels

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(10, 3)).astype("float32"), RNG.integers(0, 3, 10)


@pytest.fixture(scope="module")
def model():
    import keras

    return keras.Sequential([keras.Input((3,)), keras.layers.Softmax()])


def dataset(y):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((X, y))


def test_predict_proba_with_labels_takes_all_forms_of_data(model):
    expected = np.exp(X) / np.exp(X).sum(axis=1, keepdims=True)
    for data in (
        (X, Y),
        (X, Y.tolist()),
        (Dataset(x=X, y=Y),),
        (dataset(Y).batch(4),),
        (dataset(Y[:, None]).batch(3),),
        (dataset(np.eye(3)[Y]).batch(4),),
        (dataset(Y.astype("float32")).batch(4),),
        (dataset(Y).batch(4).map(lambda x, y: (x, y, y * 0 + 1)),),
    ):
        y, p = predict_proba_with_labels(model, *data, batch_size=4)
        assert y.tolist() == Y.tolist()
        assert y.dtype == np.int64
        assert p == pytest.approx(expected, abs=1e-6)
        if len(data) == 1:
            assert np.array_equal(predict_proba(model, *data, batch_size=4), p)


def test_predict_proba_of_several_inputs():
    import keras

    entries = {name: keras.Input((3,), name=name) for name in "ab"}
    out = keras.layers.Softmax()(keras.layers.Add()([entries["a"], entries["b"]]))
    expected = np.exp(3 * X) / np.exp(3 * X).sum(axis=1, keepdims=True)
    for inputs, x in (
        (entries, {"a": X, "b": 2 * X}),
        (list(entries.values()), (X, 2 * X)),
        (list(entries.values()), [X, 2 * X]),
    ):
        assert predict_proba(keras.Model(inputs, out), x, batch_size=4) == pytest.approx(expected, abs=1e-6)
    one = keras.Sequential([keras.Input((3,)), keras.layers.Softmax()])
    assert len(predict_proba(one, X.tolist())) == 10  # a list of numbers is one input


def test_labels_and_probabilities_stay_together_in_a_shuffled_data_set(model):
    y, p = predict_proba_with_labels(model, dataset(X.argmax(axis=1)).shuffle(10).batch(4))
    assert (p.argmax(axis=1) == y).all()


def test_predict_proba_does_not_augment(model):
    examples = Dataset(x=X, y=Y, augment=lambda x, seed: x * 0)
    assert predict_proba(model, examples).argmax(axis=1).tolist() == X.argmax(axis=1).tolist()


def test_predict_proba_looks_for_the_fastest_runtime_where_many_examples_are_known(monkeypatch):
    import keras
    import tensorflow as tf

    class Own(keras.Model):
        """Without a graph nobody knows how long it takes."""

        def call(self, x):
            return keras.ops.softmax(x)

    asked = []
    monkeypatch.setattr(importlib.util, "find_spec", asked.append)  # is another runtime looked for?
    model, x, y = Own(), np.repeat(X[:1], 256, axis=0), np.repeat(Y[:1], 256)
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(64)
    unknown = batches.filter(lambda x, y: True)
    for data, looked_for in (
        ((x, y), True),
        ((Dataset(x=x, y=y),), True),
        ((batches,), True),
        ((x[:255], y[:255]), False),
        ((batches.take(3),), False),
        ((unknown,), False),
    ):
        predict_proba_with_labels(model, *data, batch_size=64)
        assert asked == ["openvino"] * looked_for
        asked.clear()
    predict_proba(model, x, batch_size=64)
    assert asked == ["openvino"]
    predict_proba_with_labels(model, x, y, runtime="tensorflow")
    assert asked == ["openvino"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: (dataset(Y).batch(4).repeat(),), "never ends; measure on one without repeat"),
        (lambda: (dataset(np.full((10, 3), 1 / 3)).batch(4),), "rows of 3 numbers that are not one-hot"),
        (lambda: (dataset(Y + 0.5).batch(4),), "labels are float64 .* expected one class number"),
        (lambda: (dataset(np.zeros((10, 2))).batch(4),), r"labels are float64 of shape \(10, 2\)"),
        (lambda: (dataset(Y).batch(4).map(lambda x, y: x),), "inputs and no labels"),
        (lambda: (X,), "have no labels"),
        (lambda: ("photos/", Y), "str"),
        (lambda: (X, Y[:4]), "10 inputs and 4 labels"),
    ],
)
def test_predict_proba_with_labels_names_what_cannot_be_read(model, data, message):
    with pytest.raises(ValueError, match=message):
        predict_proba_with_labels(model, *data())


IMAGES = RNG.uniform(0, 255, (7, 4, 4, 3)).astype("float32")


@pytest.fixture(scope="module")
def image_model():
    """A linear layer of all pixels, which sees which way an image is turned."""
    import keras

    keras.utils.set_random_seed(0)
    last = keras.layers.Dense(3, "softmax")
    return keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Rescaling(1 / 50), keras.layers.Flatten(), last])


def test_views_are_the_mean_of_the_probabilities_of_the_flips(image_model):
    import tensorflow as tf

    turned = [IMAGES, IMAGES[:, :, ::-1], IMAGES[:, ::-1], IMAGES[:, ::-1, ::-1]]
    each = np.stack([predict_proba(image_model, np.ascontiguousarray(images)) for images in turned])
    assert np.ptp(each, axis=0).max() > 0.1
    y = np.arange(7) % 3
    stream = tf.data.Dataset.from_tensor_slices((IMAGES, y)).batch(3)
    for views, flips, used in (
        (2, "horizontal", [0, 1]),
        (2, "vertical", [0, 2]),
        (3, "both", [0, 1, 2]),
        (4, "both", [0, 1, 2, 3]),
    ):
        expected = each[used].mean(axis=0)
        for data in ((IMAGES, y), (Dataset(x=IMAGES, y=y),), (stream,)):
            for batch_size in (3, 32):
                options = {"batch_size": batch_size, "views": views, "flips": flips}
                labels, p = predict_proba_with_labels(image_model, *data, **options)
                assert labels.tolist() == y.tolist()
                assert p == pytest.approx(expected, abs=1e-6)
        assert predict_proba(image_model, IMAGES, views=views, flips=flips) == pytest.approx(expected, abs=1e-6)


def test_one_view_is_bit_identical_to_none(image_model):
    expected = predict_proba(image_model, IMAGES)
    assert predict_proba(image_model, IMAGES, views=1, flips="both").tobytes() == expected.tobytes()


def test_views_that_there_are_not(model, image_model):
    with pytest.raises(ValueError, match="views=4, and flips='horizontal' makes 2 different versions"):
        predict_proba(image_model, IMAGES, views=4)
    with pytest.raises(ValueError, match="views=0; expected a whole number from 1"):
        predict_proba(image_model, IMAGES, views=0)
    with pytest.raises(ValueError, match="flips='sideways'"):
        predict_proba(image_model, IMAGES, views=2, flips="sideways")
    with pytest.raises(ValueError, match=r"views=2 is for images, \(n, height, width, channels\)"):
        predict_proba(model, X, views=2)
