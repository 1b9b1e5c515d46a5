"""join_backbones: one head over several backbones, computed by hand, solved, tuned, and opened with Keras alone."""

import datetime

import keras
import numpy as np
import pytest
from keras import layers
from sklearn.linear_model import LogisticRegression

from thaw import Dataset, Phase, Plan, fine_tune, freeze, stages_of
from thaw.data.column_kinds import Column, encode_columns
from thaw.models.column_features import column_features
from thaw.models.flat import flatten_model
from thaw.models.joined import join_backbones
from thaw.models.linear_heads import linear_head
from thaw.targets import Regression
from thaw.transfer import solve_head

COLUMNS = (Column("price", "number"), Column("town", "category"))


def pictures():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, strides=2, padding="same", activation="relu")(inputs)
    x = layers.Conv2D(8, 3, strides=2, padding="same")(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    return keras.Model(inputs, x, name="net")


def words():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6,), dtype="int32")
    return keras.Model(inputs, layers.Embedding(20, 5, mask_zero=True)(inputs), name="words")


def rows(n=90, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    x = {
        "image": (rng.normal(size=(n, 8, 8, 3)) + 0.3 * y[:, None, None, None]).astype("float32"),
        "text": np.where(np.arange(6) < rng.integers(2, 7, (n, 1)), rng.integers(1, 20, (n, 6)), 0).astype("int32"),
        "price": (rng.normal(size=(n, 1)) + y[:, None]).astype("float32"),
        "town": np.where(rng.random((n, 1)) < 0.5, "Ulm", "Bonn"),
    }
    return x, y


@pytest.fixture
def joined():
    x, _ = rows()
    return join_backbones({"image": pictures(), "text": words(), "numbers": column_features(COLUMNS, x)}, 2)


def features_by_hand(x):
    """Pooled outputs of each backbone, the mask of a text respected."""
    maps = np.asarray(pictures()(x["image"]))
    vectors, is_word = words().get_layer(index=1)(x["text"]).numpy(), x["text"] != 0
    means = (vectors * is_word[..., None]).sum(1) / is_word.sum(1, keepdims=True)
    numbers = np.asarray(column_features(COLUMNS, rows()[0])(as_tensors({k: x[k] for k in ("price", "town")})))
    return np.concatenate([maps.mean((1, 2)), means, numbers], axis=1)


def as_tensors(x):
    import tensorflow as tf

    return {name: tf.constant(values) for name, values in x.items()}


def predicted(model, x):
    return np.asarray(model(as_tensors(x), training=False))


def test_it_is_a_linear_head_on_what_each_backbone_says(joined):
    x, _ = rows()
    assert list(joined.input) == ["image", "text", "price", "town"]
    np.testing.assert_allclose(predicted(joined, x), 0.5)  # the head begins at zero
    head, rng, raw = linear_head(flatten_model(joined)), np.random.default_rng(2), features_by_hand(x)
    widths = [int(tensor.shape[-1]) for tensor in head.inputs]
    assert widths == [8, 5, raw.shape[1] - 13]
    mean, variance, kernel = rng.normal(size=raw.shape[1]), rng.random(raw.shape[1]), rng.normal(size=(raw.shape[1], 2))
    begin = 0
    for norm, width in zip(head.norms, widths, strict=True):
        norm.moving_mean.assign(mean[begin : begin + width])
        norm.moving_variance.assign(variance[begin : begin + width])
        begin += width
    head.dense.kernel.assign(kernel)
    z = np.clip((raw - mean) / np.sqrt(variance), -5, 5) @ kernel
    p = np.exp(z - z.max(1, keepdims=True))
    np.testing.assert_allclose(predicted(joined, x), p / p.sum(1, keepdims=True), atol=1e-4)


def test_its_solved_head_is_that_of_scikit_learn(joined, tmp_path):
    x, y = rows()
    raw = features_by_hand(x)
    readout = solve_head(joined, Dataset(x=x, y=y), cache_dir=tmp_path)
    varies = raw.std(0) > 1e-6
    z = np.clip((raw - raw.mean(0))[:, varies] / raw.std(0)[varies], -5, 5)
    # Two logits share what one has in scikit-learn: the penalty of each is half of it.
    oracle = LogisticRegression(C=2 * readout.strength / raw.shape[1], tol=1e-8, max_iter=10_000).fit(z, y)
    expected = 1 / (1 + np.exp(-oracle.decision_function(z) / readout.temperature))
    np.testing.assert_allclose(predicted(joined, x)[:, 1], expected, atol=2e-3)


def test_the_file_opens_with_keras_alone(joined, tmp_path, with_keras_alone):
    x, y = rows()
    solve_head(joined, Dataset(x=x, y=y), cache_dir=tmp_path / "cache")
    joined.save(tmp_path / "model.keras")
    np.savez(tmp_path / "x.npz", **x)
    expected = predicted(joined, x)
    assert expected.std() > 0.05
    np.save(tmp_path / "expected.npy", expected)
    code = """
import keras, numpy as np, tensorflow as tf
model = keras.saving.load_model("model.keras", safe_mode=True)
x = {name: tf.constant(values) for name, values in np.load("x.npz").items()}
print(float(np.abs(model.predict(x, verbose=0) - np.load("expected.npy")).max()))
"""
    assert float(with_keras_alone(tmp_path, code)[-1]) < 1e-6


def test_beside_numbers_the_stages_are_those_of_the_backbone():
    x, _ = rows()
    net = pictures()
    model = join_backbones({"image": net, "numbers": column_features(COLUMNS, x)}, 2)

    def weighted(stages):
        return [[id(layer) for layer in stage.layers if layer.weights] for stage in stages]

    stages = stages_of(model)
    assert stages[-1].name == "head"
    assert weighted(stages)[:-1] == weighted(stages_of(net))
    everything = [id(layer) for stage in stages for layer in stage.layers]
    assert len(everything) == len(set(everything))


def test_it_is_tuned_further(tmp_path):
    x, y = rows()
    net = pictures()
    model = join_backbones({"image": net, "numbers": column_features(COLUMNS, x)}, 2)
    train, validation = Dataset(x=x, y=y), Dataset(x=rows(40, 1)[0], y=rows(40, 1)[1])
    keep = ["image", "price", "town"]
    train, validation = (part.replace(x={k: part.x[k] for k in keep}) for part in (train, validation))
    first, last = net.layers[1], net.layers[2]
    before = [weight.numpy() for weight in first.weights], [weight.numpy() for weight in last.weights]
    plan = Plan(
        [
            Phase(name="head", train="head", epochs=1, learning_rate=1e-3, solver="lbfgs"),
            Phase(name="top", train=1, epochs=2, learning_rate=1e-2),
        ]
    )
    history = fine_tune(model, plan, train, validation_data=validation, verbose=0, backup_dir=tmp_path)
    assert history.history["phase"] == ["head", "top", "top"]
    assert all(np.array_equal(old, new.numpy()) for old, new in zip(before[0], first.weights))
    assert any("computed once" in note for note in history.notes)
    assert all(not np.array_equal(old, new.numpy()) for old, new in zip(before[1], last.weights))
    freeze(model, 1)
    trained = [layer for layer in flatten_model(model).layers if layer.trainable_weights]
    assert [layer.name for layer in trained] == [last.name, "head_classes"]


def test_columns_become_features_as_computed_by_hand():
    columns = (
        Column("day", "date"),
        Column("new", "boolean"),
        Column("price", "number", fill=2.0, missing=True),
        Column("town", "category"),
    )
    days = [datetime.datetime(2024, 5, 31), datetime.datetime(2024, 5, 31), datetime.datetime(2024, 6, 2)]
    table = {"day": days, "new": [True, False, True], "price": [1.0, None, 3.0], "town": ["Ulm", "Ulm", "Bonn"]}
    net = column_features(columns, encode_columns(table, columns), bins=2)
    other = {"day": [datetime.datetime(2024, 6, 1)], "new": [False], "price": [2.5], "town": ["Jena"]}
    row = np.asarray(net(as_tensors(encode_columns(other, columns))))[0].tolist()
    # A day between two; prices from 1 to 2 and on to 3.
    assert row[:3] == [0.5, 1.0, 0.5]
    month, weekday = np.eye(12)[5].tolist(), np.eye(7)[5].tolist()  # June; a Saturday
    assert row[3:22] == month + weekday
    # No boolean, not missing, and a town that training never saw.
    assert row[22:] == [0.0, 0.0, 1.0, 0.0]
    known = np.asarray(net(as_tensors(encode_columns(table, columns))))
    assert known[:, -2:].tolist() == [[0, 1], [0, 1], [1, 0]]  # Bonn is there once, as those that are not known
    assert known[:, 22:24].tolist() == [[1, 0], [0, 1], [1, 0]]


def test_categories_alone_are_floats_too():
    x = {"town": np.array([["Ulm"], ["Bonn"], ["Ulm"], ["Bonn"]])}
    out = column_features([Column("town", "category")], x)(as_tensors(x))
    assert out.dtype == "float32"
    assert np.asarray(out).tolist() == [[0, 0, 1], [0, 1, 0], [0, 0, 1], [0, 1, 0]]


def test_numbers_far_from_zero_keep_their_differences():
    stamps = (1.7e9 + 4096.0 * np.arange(9))[:, None].astype("float32")
    net = column_features([Column("stamp", "number")], {"stamp": stamps}, bins=8)
    assert np.asarray(net({"stamp": stamps})).sum(axis=1).tolist() == list(range(9))


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: join_backbones({}, 2), "expected a dict from the names of inputs to models"),
        (lambda: join_backbones({"image": pictures()}, 2, pooling="sum"), 'expected "avg" or "max"'),
        (lambda: join_backbones({"image": pictures()}, Regression(["price"])), "is for classes and labels"),
        (lambda: join_backbones({"image": keras.Sequential([layers.Dense(3)])}, 2), "there is no graph to put a head"),
        (
            lambda: join_backbones({"a": keras.Sequential([keras.Input((4,)), layers.Dense(2, "softmax")])}, 2),
            "already ends in 2 softmax units",
        ),
        (
            lambda: join_backbones({"price": words(), "numbers": column_features(COLUMNS, rows()[0])}, 2),
            "Two backbones take an input 'price'",
        ),
        (lambda: column_features([], {}), "There are no columns"),
        (lambda: column_features(COLUMNS, {"price": np.ones((2, 1))}), "x has no input 'town'"),
    ],
)
def test_bad_arguments_are_refused_in_a_sentence(build, sentence):
    with pytest.raises(ValueError, match=sentence):
        build()
