"""Which metrics are the accuracy."""

import keras
import pytest

from thaw.tuning.first_metric import first_metric


def found(**metrics):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(9, "softmax")])
    model.compile("adam", "sparse_categorical_crossentropy", **metrics)
    return first_metric(model)


@pytest.mark.parametrize(
    ("metric", "name", "is_accuracy"),
    [
        ("accuracy", "accuracy", True),
        ("acc", "acc", True),
        ("sparse_categorical_accuracy", "sparse_categorical_accuracy", True),
        (keras.metrics.categorical_accuracy, "categorical_accuracy", True),
        (keras.metrics.SparseCategoricalAccuracy(name="right"), "right", True),
        (keras.metrics.BinaryAccuracy(), "binary_accuracy", True),
        ("sparse_top_k_categorical_accuracy", "sparse_top_k_categorical_accuracy", False),
        (keras.metrics.SparseTopKCategoricalAccuracy(name="accuracy"), "accuracy", False),
        (keras.metrics.AUC(name="area_accross"), "area_accross", False),
        ("mae", "mae", False),
        (lambda y, p: p, "lambda", False),  # as it stands in the logs
    ],
)
def test_top_1_accuracy_and_nothing_else(metric, name, is_accuracy):
    assert found(metrics=[metric, "accuracy"]) == (name, is_accuracy)


def test_no_metric_and_weighted_ones():
    assert found() == (None, False)
    assert found(weighted_metrics=["acc"]) == ("acc", True)
