"""Every finding fires where the mistake is, and is silent where it is not."""

import numpy as np
import pytest

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")
from keras import layers

from thaw.checks import preflight
from thaw.data.dataset import Dataset
from thaw.features.inference import inference_runner
from thaw.models.state import state_variables
from thaw.plan import Phase, Plan
from thaw.training.freezing import freeze

SPARSE = "sparse_categorical_crossentropy"


def net(activation="softmax", units=3, loss=SPARSE, rate=1e-4, norm=False, first=(), freezing=None):
    entry = x = keras.Input((8, 8, 3))
    for layer in first:
        x = layer(x)
    for filters in (4, 6):
        x = layers.Conv2D(filters, 3, 2, padding="same")(x)
        if norm:
            x = layers.BatchNormalization()(x)
    x = layers.Dense(units, activation=activation)(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(entry, x, name="net")
    if freezing:
        freeze(model, *freezing)
    model.compile(keras.optimizers.Adam(rate), loss)
    return model


def pictures(scale=1.0, n=4, dtype="float32"):
    return (np.random.default_rng(0).uniform(0, 1, (n, 8, 8, 3)) * scale).astype(dtype)


def codes(found):
    return [finding.code for finding in found]


def look(model, x=None, y=None, **options):
    x = pictures() if x is None else x
    y = np.array([0, 1, 2, 1]) if y is None else y
    return preflight(model, x, y, **{"validation_data": (x, y)} | options)


def test_nothing_to_say():
    assert look(net()) == ()
    assert preflight(net()) == ()
    assert look(net(), plan=Plan.named("probe_then_tune")) == ()


def logits(name):
    return getattr(keras.losses, name)(from_logits=True)


@pytest.mark.parametrize(
    ("activation", "units", "loss", "y", "code", "words"),
    [
        ("softmax", 3, logits("SparseCategoricalCrossentropy"), [0, 1, 2, 1], "logits", "the model ends in softmax"),
        (None, 3, SPARSE, [0, 1, 2, 1], "logits", "ends without softmax or sigmoid"),
        (None, 1, "binary_crossentropy", [0, 1, 0, 1], "logits", "expects probabilities"),
        ("sigmoid", 1, logits("BinaryCrossentropy"), [0, 1, 0, 1], "logits", "the model ends in sigmoid"),
        ("softmax", 3, SPARSE, [0, 1, 3, 1], "labels", "The labels go from 0 to 3 and the model has 3 classes, 0 to 2"),
        ("softmax", 3, SPARSE, [1, 2, 2, -1], "labels", "The labels go from -1 to 2"),
        ("softmax", 3, SPARSE, np.eye(3)[[0, 1, 2, 1]], "labels", r"(3,) (one-hot) and the loss is sparse"),
        ("softmax", 3, "categorical_crossentropy", [0, 1, 2, 1], "labels", "expects one-hot"),
        ("softmax", 3, "categorical_crossentropy", np.eye(4)[[0, 1, 2, 1]], "labels", "not 3 wide"),
        ("softmax", 2, "binary_crossentropy", np.eye(2)[[0, 1, 1, 1]], "labels", "which allows one class only"),
        ("softmax", 1, "binary_crossentropy", [0, 1, 0, 1], "one-softmax", "which is always 1"),
    ],
)
def test_loss_and_labels_that_do_not_fit(activation, units, loss, y, code, words):
    found = look(net(activation, units, loss), y=np.array(y))
    assert code in codes(found)
    (finding,) = [f for f in found if f.code == code]
    assert finding.level == "error"
    assert words in finding.what
    assert finding.fix
    assert str(finding) == f"{finding.what} {finding.fix}"
    with_plan = look(net(activation, units, loss), y=np.array(y), plan=Plan.named("probe"))
    assert code in codes(with_plan)


@pytest.mark.parametrize(
    ("activation", "units", "loss", "y"),
    [
        ("softmax", 3, SPARSE, [[0], [1], [2], [1]]),
        ("softmax", 3, keras.losses.SparseCategoricalCrossentropy(), [0, 1, 2, 1]),
        (None, 3, logits("SparseCategoricalCrossentropy"), [0, 1, 2, 1]),
        ("softmax", 3, "categorical_crossentropy", np.eye(3)[[0, 1, 2, 1]]),
        (None, 3, logits("CategoricalCrossentropy"), np.eye(3)[[0, 1, 2, 1]]),
        ("sigmoid", 1, "binary_crossentropy", [0, 1, 0, 1]),
        (None, 1, logits("BinaryCrossentropy"), [0, 1, 0, 1]),
        ("sigmoid", 3, "binary_crossentropy", np.eye(3)[[0, 1, 2, 1]]),
        (None, 1, "mse", [0.5, 1.5, 2, 9]),
        ("softmax", 3, keras.losses.SparseCategoricalCrossentropy(ignore_class=-1), [0, 1, -1, 2]),
    ],
)
def test_loss_and_labels_that_fit(activation, units, loss, y):
    assert look(net(activation, units, loss), y=np.array(y)) == ()


def test_a_label_for_every_position():
    entry = keras.Input((6,))
    x = layers.Embedding(9, 4)(entry)
    model = keras.Model(entry, layers.Dense(3, activation="softmax")(x))
    model.compile("adam", SPARSE)
    x = np.zeros((4, 6), "int32")
    assert look(model, x, np.random.default_rng(0).integers(0, 3, (4, 6))) == ()
    assert codes(look(model, x, np.full((4, 6), 3))) == ["labels"]


def test_a_rare_label_is_found_in_examples():
    y = np.zeros(100, int)
    y[77] = 5
    examples = Dataset(x=np.zeros((100, 8, 8, 3), "float32"), y=y)
    assert codes(preflight(net(), examples, validation_data=examples)) == ["labels"]


def test_metrics_in_the_place_of_loss_weights():
    model = net()
    model.compile("adam", SPARSE, ["accuracy"])
    assert codes(look(model))[0] == "metrics-as-weights"
    model.compile(keras.optimizers.Adam(1e-4), SPARSE, metrics=["accuracy"])
    assert look(model) == ()


@pytest.mark.parametrize(
    ("first", "x", "expected"),
    [
        ([layers.Rescaling(1 / 255)], pictures(), ["rescaled-twice"]),
        ([layers.Rescaling(1 / 127.5, -1)], pictures(2) - 1, ["rescaled-twice"]),
        ([layers.Normalization(mean=[120.0] * 3, variance=[3600.0] * 3)], pictures(), ["rescaled-twice"]),
        ([layers.Rescaling(1 / 255)], pictures(255), []),
        ([layers.Rescaling(1 / 255)], pictures(255, dtype="uint8"), []),
        ([layers.Rescaling(1 / 255)], np.zeros((4, 8, 8, 3), "float32"), []),  # black
        ([layers.Rescaling(1 / 255)], np.eye(8, dtype="uint8")[None, ..., None].repeat(4, 0).repeat(3, 3), []),
        ([layers.Rescaling(255.0)], pictures(), []),  # the other way round
        ([layers.Normalization(mean=[0.45] * 3, variance=[0.05] * 3)], pictures(), []),  # made from scaled pixels
        ([layers.Normalization(mean=[0.45] * 3, variance=[0.05] * 3)], pictures(255), ["never-rescaled"]),
        ([], pictures(255), ["never-rescaled"]),
        ([], pictures(), []),
    ],
)
def test_pixels_scaled_twice_or_never(first, x, expected):
    found = look(net(first=first), x)
    assert codes(found) == expected
    assert [f.level for f in found] == ["error" if code == "rescaled-twice" else "warning" for code in expected]


def test_what_is_no_picture_is_not_looked_at_for_pixels():
    model = keras.Sequential([keras.Input((4,)), layers.Rescaling(0.01), layers.Dense(2, activation="softmax")])
    model.compile("adam", SPARSE)
    assert look(model, np.ones((4, 4), "float32") * 0.5, np.array([0, 1, 0, 1])) == ()


def test_trainable_changed_after_compile():
    model = net()
    model.layers[1].trainable = False
    found = look(model)
    assert codes(found) == ["stale-trainable"]
    assert found[0].level == "error"
    model.compile(keras.optimizers.Adam(1e-4), SPARSE)
    assert look(model) == ()


def test_batchnorm_that_moves_in_fit():
    assert codes(look(net(norm=True))) == ["trainable-batchnorm"]
    assert codes(look(net(norm=True), batch_size=8)) == ["trainable-batchnorm", "batchnorm-small-batch"]
    assert look(net(norm=True, freezing=("head",))) == ()
    assert look(net(norm=True, freezing=("all", "frozen"))) == ()
    # As the guide has it: frozen weights of other layers, and BatchNorm called with training=False.
    inner = net(norm=True)
    for layer in inner.layers:
        layer.trainable = isinstance(layer, layers.BatchNormalization)
    entry = keras.Input((8, 8, 3))
    model = keras.Model(entry, layers.Dense(3, activation="softmax")(inner(entry, training=False)))
    model.compile(keras.optimizers.Adam(1e-4), SPARSE)
    assert "trainable-batchnorm" in codes(look(model))


def test_batchnorm_in_a_plan():
    trained = Plan([Phase(name="top", epochs=1, train=1, batchnorm="trained")])
    found = look(net(norm=True), plan=trained, batch_size=8)
    assert codes(found) == ["trainable-batchnorm", "batchnorm-small-batch"]
    assert found[0].what.startswith('Phase "top" updates the statistics of 1 BatchNorm layers')
    assert codes(look(net(norm=True), plan=trained)) == ["trainable-batchnorm"]
    assert look(net(norm=True), plan=Plan([Phase(name="top", epochs=1, train=1)])) == ()
    assert look(net(), plan=trained) == ()


@pytest.mark.parametrize(("rate", "is_high"), [(1e-2, False), (3e-2, True)])
def test_preflight_knows_that_sgd_needs_higher_rates(rate, is_high):
    model = net()
    model.compile(keras.optimizers.SGD(rate), SPARSE)
    everything = Plan([Phase(name="all", epochs=1, learning_rate=rate)])
    for found in (look(model), look(model, plan=everything)):
        assert codes(found) == ["high-rate"] * is_high
        assert all("use 0.002 or less" in finding.fix for finding in found)


def test_a_rate_that_washes_out():
    assert codes(look(net(rate=1e-3))) == ["high-rate"]
    assert look(net(rate=1e-3, freezing=("head",))) == ()
    everything = Plan([Phase(name="all", epochs=1, learning_rate=1e-2)])
    found = look(net(), plan=everything)
    assert codes(found) == ["high-rate"]
    assert 'Phase "all" is set to train all layers at a learning rate of 0.01' in found[0].what
    assert look(net(), plan=Plan([Phase(name="all", epochs=1, learning_rate=1e-2, layer_decay=0.1)])) == ()
    assert look(net(), plan=Plan([Phase(name="head", epochs=1, learning_rate=1e-2, train="head")])) == ()


def test_no_validation():
    assert codes(look(net(), validation_data=None)) == ["no-validation"]
    assert preflight(net()) == ()


def test_errors_come_first():
    model = net(None, rate=1.0, norm=True)
    levels = [f.level for f in look(model, pictures(255), validation_data=None)]
    assert levels == sorted(levels)
    assert levels[0] == "error"
    assert "warning" in levels


def test_plain_data_sets_and_several_inputs():
    dataset = tf.data.Dataset.from_tensor_slices((pictures(), [0, 1, 2, 3])).batch(4)
    assert codes(preflight(net(), dataset, validation_data=dataset)) == ["labels"]
    a, b = keras.Input((4,), name="a"), keras.Input((3,), name="b")
    model = keras.Model({"a": a, "b": b}, layers.Dense(2, activation="softmax")(layers.Concatenate()([a, b])))
    model.compile("adam", SPARSE)
    dataset = tf.data.Dataset.from_tensor_slices(({"a": np.zeros((4, 4)), "b": np.zeros((4, 3))}, [0, 1, 2, 1])).batch(
        4
    )
    assert codes(preflight(model, dataset, validation_data=dataset)) == ["labels"]


def test_it_only_looks():
    model = net(None, rate=1.0, norm=True)
    model.layers[1].trainable = False
    before = [w.numpy() for w in model.weights]
    flags = [layer.trainable for layer in model.layers]
    optimizer = model.optimizer
    look(model, pictures(255), plan=Plan.named("full"))
    assert all(np.array_equal(a, w.numpy()) for a, w in zip(before, model.weights))
    assert [layer.trainable for layer in model.layers] == flags
    assert model.compiled
    assert model.optimizer is optimizer


def test_what_cannot_be_looked_at():
    model = net()
    model.compiled = False
    with pytest.raises(ValueError, match=r"net is not compiled; call model\.compile"):
        preflight(model, plan=Plan.named("probe"))
    assert preflight(model) == ()
    with pytest.raises(ValueError, match="not built yet"):
        preflight(keras.Sequential([layers.Dense(2)]))
    with pytest.raises(ValueError, match='The model has no stage "stem"'):
        preflight(net(), plan=Plan([Phase(name="a", epochs=1, train=("stem",))]))


METRIC = keras.metrics


@pytest.mark.parametrize(
    ("units", "metric", "fix"),
    [
        (1, "accuracy", "BinaryAccuracy(threshold=0)"),
        (1, METRIC.BinaryAccuracy(), "BinaryAccuracy(threshold=0)"),
        (1, "binary_accuracy", "BinaryAccuracy(threshold=0)"),
        (1, METRIC.binary_accuracy, "BinaryAccuracy(threshold=0)"),
        (1, METRIC.AUC(), "AUC(from_logits=True)"),
        (1, METRIC.Precision(), "Precision(thresholds=0)"),
        (3, METRIC.Recall(), "Recall(thresholds=0)"),
        (1, METRIC.F1Score(threshold=0.5), "end the model in sigmoid"),
        (1, METRIC.PrecisionAtRecall(0.5), "end the model in sigmoid"),
        (3, METRIC.BinaryCrossentropy(), "BinaryCrossentropy(from_logits=True)"),
        (3, "categorical_crossentropy", "from_logits=True"),
        (1, METRIC.BinaryAccuracy(threshold=0), None),
        (1, METRIC.AUC(from_logits=True), None),
        (1, METRIC.Precision(thresholds=0), None),
        (3, METRIC.Precision(top_k=1), None),
        (3, "accuracy", None),
        (3, METRIC.F1Score(), None),
        (1, "mse", None),
        (1, lambda y, p: p, None),
    ],
)
def test_metrics_that_take_logits_for_probabilities(units, metric, fix):
    """https://github.com/tensorflow/tensorflow/issues/41413"""
    rate = {"optimizer": keras.optimizers.Adam(1e-4)}
    model = net(None, units)
    model.compile(**rate, loss=logits("BinaryCrossentropy"), metrics=[metric])
    found = look(model, y=np.eye(3)[[0, 1, 2, 1]][:, :units])
    assert codes(found) == ([] if fix is None else ["metric-of-logits"])
    assert fix is None or fix in found[0].fix
    model = net("sigmoid", units)
    model.compile(**rate, loss="binary_crossentropy", metrics=[metric])
    assert look(model, y=np.eye(3)[[0, 1, 2, 1]][:, :units]) == ()


@pytest.mark.parametrize(
    ("train", "validation", "found"),
    [
        (pictures(255.0), pictures(), ["validation-pixels", "never-rescaled"]),
        (pictures(), pictures(255.0, dtype="uint8"), ["validation-pixels"]),
        (pictures() * 2 - 1, pictures(), []),
        (pictures(), np.zeros((4, 8, 8, 3), "float32"), []),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_pixels_of_the_validation_data(train, validation, found, stream):
    y = np.array([0, 1, 2, 1])
    given = tf.data.Dataset.from_tensor_slices((validation, y)).batch(2) if stream else (validation, y)
    findings = look(net(), train, validation_data=given)
    assert codes(findings) == found
    assert not found or "the training data go from" in findings[0].what


def test_batch_sizes_of_stacked_stateful_cells():
    """Their states are a list for each cell, and not one variable."""
    cells = [layers.LSTMCell(4), layers.GRUCell(2)]
    stacked = layers.RNN(cells, stateful=True, name="stacked")
    model = keras.Sequential([keras.Input(batch_shape=(4, 5, 3)), stacked, layers.Dense(3, "softmax")])
    model.compile(keras.optimizers.Adam(1e-4), SPARSE)
    assert [v.shape for v in state_variables(model)] == [(4, 4), (4, 4), (4, 2)]
    x, y = np.zeros((10, 5, 3), "float32"), np.arange(10) % 3
    found = look(model, x, y, batch_size=4)
    assert codes(found)[0] == "stateful-batch"
    assert found[0].what.endswith("stacked takes batches of 4 examples, and 10 examples in batches of 4 leave 2.")
    assert codes(look(model, x[:8], y[:8], batch_size=4)) == ["stateful-order"]
    with pytest.raises(ValueError, match="The stateful layer stacked takes batches of 4 examples; got 5"):
        inference_runner(model, 5)
    assert inference_runner(model, 4, runtime="tensorflow")(x[:2])[0].shape == (2, 3)
