"""Tasks: labels, baselines, and which metric decides in which direction."""

import keras
import numpy as np
import pytest

from thaw import Classification
from thaw.checks.losses_and_metrics import one_hot_metrics
from thaw.tasks import class_numbers, first_metric, loss_name, monitor_of, smoothed_crossentropy


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


@pytest.mark.parametrize(
    ("metric", "name", "mode"),
    [
        ("accuracy", "val_accuracy", "max"),
        ("mse", "val_mse", "min"),
        ("mae", "val_mae", "min"),
        (keras.metrics.MeanSquaredError(), "val_mean_squared_error", "min"),
        (keras.metrics.mean_absolute_percentage_error, "val_mean_absolute_percentage_error", "min"),
        (keras.metrics.sparse_categorical_crossentropy, "val_sparse_categorical_crossentropy", "min"),
        (keras.metrics.KLDivergence(), "val_kl_divergence", "min"),
        (keras.metrics.F1Score(average="macro"), "val_f1_score", "max"),
        (keras.metrics.AUC(name="auc_loss_like"), "val_auc_loss_like", "max"),  # the name says nothing
        (keras.metrics.SparseCategoricalAccuracy(name="gloss_accuracy"), "val_gloss_accuracy", "max"),
    ],
)
def test_monitor_of_asks_the_metric_for_its_direction(metric, name, mode):
    """B2 of the first version: a name that held "loss" or "error" was minimized, and anything unknown maximized."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, "softmax")])
    model.compile("adam", "sparse_categorical_crossentropy", metrics=[metric])
    assert monitor_of(model) == (name, mode)
    assert monitor_of(model, validation=False) == ("loss", "min")
    assert monitor_of(model, "loss") == ("val_loss", "min")


def edit_distance(y, p):
    return keras.ops.mean(keras.ops.abs(y - p[:, 0]))


def test_monitor_of_refuses_a_metric_without_a_direction():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    for metric in (edit_distance, keras.metrics.Mean(name="edit_distance")):
        model.compile("adam", "mse", metrics=[metric])
        with pytest.raises(
            ValueError, match=r"edit_distance does not declare .* mode=\"min\" \(--metric NAME --mode max"
        ):
            monitor_of(model)
        assert monitor_of(model, mode="min") == ("val_edit_distance", "min")
        assert monitor_of(model, "edit_distance", "max") == ("val_edit_distance", "max")
    with pytest.raises(ValueError, match="mode='up'; expected"):
        monitor_of(model, mode="up")


@pytest.mark.parametrize(
    ("monitor", "mode", "sentence"),
    [
        (None, "min", "mode='min', and accuracy is better when higher; leave mode"),
        ("val_accuracy", "min", "mode='min', and accuracy is better when higher; leave mode"),
        ("loss", "max", "mode='max', and loss is better when lower; leave mode"),
        ("val_auc", None, "There is no metric 'auc'; expected one of loss, accuracy"),
    ],
)
def test_monitor_of_refuses_what_would_keep_the_worst_epoch(monitor, mode, sentence):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("adam", "mse", metrics=["accuracy"])
    with pytest.raises(ValueError, match=sentence):
        monitor_of(model, monitor, mode)
    assert monitor_of(model, "accuracy", "max") == ("val_accuracy", "max")  # as it declares


def test_monitor_of_several_outputs_and_of_a_callback():
    inputs = keras.Input((2,))
    model = keras.Model(inputs, {"a": keras.layers.Dense(1, name="a")(inputs), "b": keras.layers.Dense(1)(inputs)})
    model.compile("adam", {"a": "mse", "b": "mse"}, metrics={"a": ["mae"], "b": ["mse"]})
    assert monitor_of(model) == ("val_loss", "min")
    assert monitor_of(model, "val_a_mae") == ("val_a_mae", "min")
    assert monitor_of(model, "retention", "max") == ("retention", "max")
    assert monitor_of(model, "val_a_loss") == ("val_a_loss", "min")


def test_classification_encodes_and_decodes():
    task = Classification(("ant", "bee", "3"))
    assert (task.units, task.loss, task.monitor, task.mode) == (3, "sparse_categorical_crossentropy", "accuracy", "max")
    assert task.encode(["bee", 3, "ant"]).tolist() == [1, 2, 0]
    assert task.decode(np.eye(3)[[2, 0]]) == ["3", "ant"]
    assert task.baseline([0, 1, 1, 1]) == 0.75
    assert Classification.of(2).labels == ("0", "1")
    with pytest.raises(ValueError, match="'' is no label of the task"):
        task.encode([""])
    with pytest.raises(ValueError, match="'wasp' is no label of the task; expected one of ant, bee, 3"):
        task.encode(["wasp"])
    for labels, message in (((), "there are 0"), (("a",), "there are 1"), (("a", "a"), "'a' is there twice")):
        with pytest.raises(ValueError, match=message):
            Classification(labels)


@pytest.mark.parametrize(
    ("y", "numbers"),
    [
        ([0, 2, 1], [0, 2, 1]),
        ([[0], [2]], [0, 2]),
        (np.eye(3)[[2, 0]], [2, 0]),
        (np.array([1.0, 0.0], "float32"), [1, 0]),
        ([True, False], [1, 0]),
    ],
)
def test_class_numbers(y, numbers):
    assert (
        class_numbers(y).tolist() == class_numbers(y, 3 if np.ndim(y) == 2 and np.shape(y)[1] == 3 else None).tolist()
    )
    assert class_numbers(y).tolist() == numbers


@pytest.mark.parametrize(
    ("y", "classes", "message"),
    [
        ([0.5, 1.0], None, r"The labels are float64 of shape \(2,\); expected one class number"),
        ([[0.5, 0.5]], None, "rows of 2 numbers that are not one-hot"),
        (["a"], None, "The labels are <U1"),
        ([0, 3], 3, "go from 0 to 3; expected class numbers 0 to 2"),
        ([-1, 0], 3, "go from -1 to 0"),
        (np.zeros((2, 2, 2)), None, r"of shape \(2, 2, 2\)"),
    ],
)
def test_class_numbers_refuses(y, classes, message):
    with pytest.raises(ValueError, match=message):
        class_numbers(y, classes)


def test_weighted_metrics_beside_others_are_known():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, "softmax")])
    weighted = [
        keras.metrics.Recall(name="recall"),
        keras.metrics.F1Score(average="macro"),
        keras.metrics.MeanSquaredError("accuracy"),
    ]
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"], weighted_metrics=weighted)
    assert first_metric(model) == ("accuracy", True)
    assert monitor_of(model, "recall") == ("val_recall", "max")
    assert monitor_of(model, "accuracy") == ("val_accuracy", "max")  # the weighted one of this name is renamed
    assert one_hot_metrics(model) == ["f1_score"]


# ----------------------------------------------------------------- label smoothing


@pytest.mark.parametrize("from_logits", [False, True])
@pytest.mark.parametrize("column", [False, True])
def test_smoothing_is_that_of_one_hot_labels(from_logits, column):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 5, 40)
    outputs = rng.normal(size=(40, 5)).astype("float32") * 3
    outputs = outputs if from_logits else np.exp(outputs) / np.exp(outputs).sum(1, keepdims=True)
    loss = smoothed_crossentropy(0.1, from_logits=from_logits)
    dense = keras.losses.CategoricalCrossentropy(label_smoothing=0.1, from_logits=from_logits)
    weight = rng.uniform(size=40)
    given = float(loss(y[:, None] if column else y, outputs, sample_weight=weight))
    assert given == pytest.approx(float(dense(np.eye(5)[y], outputs, sample_weight=weight)), abs=1e-6)
    assert abs(given - float(smoothed_crossentropy(0, from_logits=from_logits)(y, outputs, weight))) > 0.01


def test_smoothing_by_hand():
    loss = float(smoothed_crossentropy(0.2)(np.array([1]), np.array([[0.25, 0.75]], "float32")))
    assert loss == pytest.approx(-0.9 * np.log(0.75) - 0.1 * np.log(0.25), abs=1e-6)
    one = float(smoothed_crossentropy(0.2, units=1)(np.array([[1.0]]), np.array([[0.75]], "float32")))
    assert one == pytest.approx(loss, abs=1e-6)


def test_a_task_with_smoothing():
    task = Classification(["a", "b", "c"], label_smoothing=0.1)
    assert loss_name(task.loss) == ("sparse_categorical_crossentropy", False)
    assert Classification(["a", "b"]).loss == "sparse_categorical_crossentropy"
    for wrong in (1, -0.1, True, "0.1", float("nan")):
        with pytest.raises(ValueError, match=r"label_smoothing=.*; expected a share from 0 to below 1"):
            Classification(["a", "b"], label_smoothing=wrong)


def test_a_file_with_smoothing_opens_with_keras_alone(tmp_path, python):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "softmax")])
    model.compile("adam", Classification.of(3).loss, metrics=["accuracy"])
    model.compile("adam", smoothed_crossentropy(0.1), metrics=["accuracy"])
    model.fit(np.eye(4), np.array([0, 1, 2, 0]), verbose=0)
    model.save(tmp_path / "m.keras")
    code = "import keras, sys; print(type(keras.models.load_model(sys.argv[1]).loss).__module__.split('.')[0])"
    done = python("-c", code, str(tmp_path / "m.keras"))
    assert done.stdout.split() == ["keras"], done.stderr
