"""Predictions by name."""

import subprocess
import sys

import numpy as np
import pytest

from thaw.data.dataset import Dataset
from thaw.runs.predictor import predict

LABELS = ["ant", "bee", "cat"]
X = np.log([[0.2, 0.5, 0.3], [0.7, 0.1, 0.2]])


@pytest.fixture(scope="module")
def model():
    import keras

    return keras.Sequential([keras.Input((3,)), keras.layers.Softmax()])


def test_the_most_probable_come_first(model):
    found = predict(model, X, LABELS, top=2)
    assert [row["label"] for row in found] == ["bee", "ant"]
    assert [row["probability"] for row in found] == pytest.approx([0.5, 0.7], abs=1e-6)
    assert [(best["label"], round(best["probability"], 5)) for best in found[0]["top"]] == [
        ("bee", 0.5),
        ("cat", 0.3),
    ]


def test_top_stops_at_the_number_of_classes_and_ties_keep_the_order(model):
    found = predict(model, np.zeros((1, 3)), LABELS, top=9)
    assert [best["label"] for best in found[0]["top"]] == LABELS


def test_batches_lists_and_examples_say_the_same(model):
    many = np.tile(X, (4, 1))
    expected = predict(model, many, LABELS)
    assert predict(model, many.tolist(), LABELS) == expected
    for other in (
        predict(model, many, LABELS, batch_size=3),
        predict(model, Dataset(x=many, y=np.zeros(8, int)), LABELS, batch_size=5),
    ):
        for found, row in zip(other, expected, strict=True):  # the last bits may differ
            assert [best["label"] for best in found["top"]] == [best["label"] for best in row["top"]]
            probabilities = [best["probability"] for best in row["top"]]
            assert [best["probability"] for best in found["top"]] == pytest.approx(probabilities, abs=1e-6)


def test_predict_looks_for_a_faster_runtime_where_there_are_many_inputs(monkeypatch):
    """It counts them all, and not those of a batch. Of a model that cannot be read, nobody knows that it is small."""
    import importlib.util

    import keras

    class Unreadable(keras.Model):
        input_shape = (None, 3)

        def call(self, x):
            return keras.ops.softmax(x)

    looked_for, find = [], importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: looked_for.append(name) or find(name, *more))
    few, many = np.tile(X, (10, 1)), np.tile(X, (200, 1))
    for x, found in ((few, False), (many, True)):
        for inputs in (x, Dataset(x=x, y=np.zeros(len(x), int))):
            looked_for.clear()
            predict(Unreadable(), inputs, LABELS, batch_size=100)
            assert ("openvino" in looked_for) is found


def test_predictor_imports_neither_keras_nor_tensorflow():
    code = "import sys, thaw.runs.predictor; print([m for m in ('keras', 'tensorflow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_pixels_of_a_byte():
    import keras

    model = keras.Sequential([keras.Input((2, 2, 3)), keras.layers.GlobalAveragePooling2D(), keras.layers.Softmax()])
    pictures = np.zeros((1, 2, 2, 3), np.uint8)
    pictures[..., 2] = 255
    assert predict(model, pictures, LABELS)[0]["label"] == "cat"


def test_views_of_the_flips_that_are_asked_for():
    """The right half decides, and the mean with its mirror image is even."""
    import keras

    last = [keras.layers.Cropping2D(((0, 0), (1, 0))), keras.layers.Flatten(), keras.layers.Softmax()]
    model = keras.Sequential([keras.Input((1, 2, 3)), *last])
    picture = np.log([[[[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]]]])
    assert predict(model, picture, LABELS)[0]["label"] == "ant"
    (found,) = predict(model, picture, LABELS, views=2)
    assert {best["label"]: round(best["probability"], 5) for best in found["top"]} == {
        "ant": 0.4,
        "bee": 0.3,
        "cat": 0.3,
    }
    assert predict(model, picture, LABELS, views=2, flips="vertical") == predict(model, picture, LABELS)


def test_nothing_gives_nothing(model):
    assert predict(model, np.zeros((0, 3)), LABELS) == []


@pytest.mark.parametrize(
    ("inputs", "labels", "top", "message"),
    [
        (X[:, :2], LABELS, 3, r"shape \(2, 2\); .* takes numbers of shape \(n, 3\)"),
        (X[0], LABELS, 3, r"shape \(3,\)"),
        (np.array([["a.png"] * 3]), LABELS, 3, "inputs are <U5"),
        (X, LABELS[:2], 3, "There are 2 labels and 3 classes"),
        (X, LABELS, 0, "top=0; expected a whole number from 1"),
        (X, LABELS, True, "top=True"),
    ],
)
def test_what_does_not_fit_is_named(model, inputs, labels, top, message):
    with pytest.raises(ValueError, match=message):
        predict(model, inputs, labels, top=top)


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: Dataset(x=x, y=np.zeros(len(x)))], ids=["array", "dataset"])
def test_pixels_that_are_no_numbers(model, wrap):
    with pytest.raises(ValueError, match="1 of 2 inputs hold NaN or infinity, the first of them at 1"):
        predict(model, wrap(np.array([[0.0, 1, 2], [0, np.nan, 1]])), LABELS)
