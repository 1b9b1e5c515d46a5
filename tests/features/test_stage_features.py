"""What leaves each stage is what a model cut there puts out, and nothing notices that it was looked at."""

import importlib.util
import random

import keras
import numpy as np
import pytest
from keras import layers

from thaw.data.dataset import Dataset
from thaw.features.inference import inference_runner
from thaw.features.stage_features import pooled_stages, stage_features
from thaw.models.stages import stages_of

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(11, 16, 16, 3)).astype("float32"), np.arange(11) % 3


@keras.saving.register_keras_serializable("test_stage_features")
class Counts(layers.Layer):
    """Counts its calls, is random in inference too, and adds a loss."""

    def build(self, shape):
        self.calls = self.add_weight(shape=(), trainable=False, initializer="zeros")
        self.random = keras.random.SeedGenerator(3)

    def call(self, x):
        self.calls.assign_add(1)
        self.add_loss(keras.ops.sum(x))
        return x + 1e-3 * keras.random.normal(keras.ops.shape(x), seed=self.random)


def net(*, counts=False, head=True, nested=False):
    """Convolutions with a shortcut that an operation adds, where the grid halves right behind it."""
    keras.utils.set_random_seed(0)
    given = keras.Input((16, 16, 3))
    x = a = layers.Conv2D(4, 3, padding="same", name="first", activity_regularizer="l2")(given)
    x = layers.BatchNormalization()(x)
    x = layers.Dropout(0.5)(x, training=True) + a
    x = Counts()(x) if counts else x
    x = layers.Conv2D(5, 3, strides=2, padding="same", name="second")(x)
    x = layers.ReLU(name="relu")(x)
    x = layers.Conv2D(6, 3, strides=2, padding="same", name="third")(x)
    if nested:
        backbone = keras.Model(given, x, name="inside")
        given = keras.Input((16, 16, 3))
        x = backbone(layers.Rescaling(2.0)(given))
    if head:
        x = layers.Dense(3)(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(given, x)
    model.compile("adam", "mse")
    return model


def means(model, at, x):
    return keras.Model(model.input, at)(x, training=False).numpy().mean(axis=(1, 2))


def test_equal_to_models_cut_at_the_boundaries():
    model = net()
    found, y = stage_features(model, X, Y, batch_size=4)
    assert list(found) == [stage.name for stage in stages_of(model)[:-1]] == ["stage1", "stage2", "stage3"]
    assert y.tolist() == Y.tolist()
    expected = {
        "stage1": model.get_layer("second").input,  # what the operation behind the last layer made of it
        "stage2": model.get_layer("relu").output,
        "stage3": model.get_layer("third").output,
    }
    for name, at in expected.items():
        assert found[name].dtype == np.float32
        assert found[name] == pytest.approx(means(model, at, X), abs=1e-6)


def test_nested_and_without_a_head():
    flat, nested, bare = net(), net(nested=True), net(head=False)
    expected = stage_features(flat, 2 * X, Y)[0]
    for found in (stage_features(nested, X, Y)[0], stage_features(bare, 2 * X, Y)[0]):
        assert list(found) == list(expected)
        for name, rows in expected.items():
            assert found[name] == pytest.approx(rows, abs=1e-6)


def test_all_forms_of_data_say_the_same():
    import tensorflow as tf

    model = net()
    expected = stage_features(model, X, Y)[0]["stage3"]
    whole = tf.data.Dataset.from_tensor_slices((X, Y))
    uneven = tf.data.Dataset.range(3).flat_map(
        lambda i: whole.skip(i * i).take(2 * i + 1).batch(5)
    )  # 1, 3 and 5 examples
    for data in (
        Dataset(x=X, y=Y, augment=lambda x, seed: x * 0),
        whole.batch(4),
        whole.batch(4).map(lambda x, y: (x, y, y)),
    ):
        found, y = stage_features(model, data, batch_size=3)
        assert found["stage3"] == pytest.approx(expected, abs=1e-6)
        assert y.tolist() == Y.tolist()
    assert stage_features(model, uneven)[0]["stage3"] == pytest.approx(expected[:9], abs=1e-6)


def test_pooled_stages_give_the_same_in_openvino():
    pytest.importorskip("openvino")
    _, names, pooled = pooled_stages(net(nested=True))
    found = inference_runner(pooled, 11, runtime="openvino")(X)
    expected = stage_features(net(), 2 * X, Y)[0]
    assert list(names) == list(expected)
    for rows, own in zip(found, expected.values(), strict=True):
        assert rows == pytest.approx(own, abs=1e-4)


def test_stage_features_looks_for_the_fastest_runtime_where_there_are_many_examples(monkeypatch):
    asked = []
    monkeypatch.setattr(importlib.util, "find_spec", asked.append)  # which also says that there is no other
    model = keras.Sequential([keras.Input((3,)), layers.Dense(4), layers.Dense(2)])
    for n, looked_for in ((256, ["openvino"]), (255, [])):
        asked.clear()
        stage_features(model, np.ones((n, 3), "float32"), np.arange(n), batch_size=128)
        assert asked == looked_for


def test_some_of_the_examples():
    import tensorflow as tf

    model, data = net(), Dataset(x=X, y=np.arange(11))
    whole = stage_features(model, data)[0]["stage2"]
    found, y = stage_features(model, data, max_examples=6, batch_size=4, seed=1)
    assert len(y) == len(set(y.tolist())) == 6
    assert found["stage2"] == pytest.approx(whole[y], abs=1e-6)
    assert stage_features(model, data, max_examples=6, seed=1)[1].tolist() == y.tolist()
    assert stage_features(model, data, max_examples=6, seed=2)[1].tolist() != y.tolist()
    endless = tf.data.Dataset.from_tensor_slices((X, np.arange(11))).batch(4).repeat()
    assert stage_features(model, endless, max_examples=6)[1].tolist() == [0, 1, 2, 3, 4, 5]


def test_a_sequence_is_averaged_over_what_its_mask_leaves():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4,), dtype="int32"),
            layers.Embedding(9, 3, mask_zero=True),
            layers.LSTM(5, return_sequences=True),
            layers.LSTM(2),
            layers.Dense(2),
        ]
    )
    x = np.array([[3, 4, 0, 0], [1, 2, 3, 4]])
    found = stage_features(model, x, np.arange(2))[0]
    table = model.layers[0].embeddings.numpy()
    assert found["stage1"] == pytest.approx(np.stack([table[[3, 4]].mean(0), table[[1, 2, 3, 4]].mean(0)]), abs=1e-6)
    last = keras.Sequential(model.layers[:3])(x).numpy()
    assert found["stage3"] == pytest.approx(last, abs=1e-6)


def test_several_tensors_that_cross_stand_side_by_side():
    keras.utils.set_random_seed(0)
    given = {"a": keras.Input((3,), name="a"), "b": keras.Input((2,), name="b")}
    left, right = layers.Dense(4, name="left")(given["a"]), layers.Dense(5, name="right")(given["b"])
    model = keras.Model(given, layers.Dense(2)(layers.concatenate([left, right])))
    x = {"a": RNG.normal(size=(6, 3)).astype("float32"), "b": RNG.normal(size=(6, 2)).astype("float32")}
    found = stage_features(model, x, np.arange(6))[0]
    both = np.concatenate(
        [layer(x[k]).numpy() for k, layer in (("a", model.get_layer("left")), ("b", model.get_layer("right")))], axis=1
    )
    assert list(found.values())[-1] == pytest.approx(both, abs=1e-6)


def state(model):
    every = list(model._flatten_layers())
    return {
        "variables": [v.numpy().tobytes() for v in model.variables],
        "optimizer": [v.numpy().tobytes() for v in model.optimizer.variables],
        "trainable": [layer.trainable for layer in every],
        "compiled": (model.compiled, id(model.optimizer)),
        "notes": [(len(layer._inbound_nodes), len(layer._outbound_nodes)) for layer in every],
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tobytes(),  # noqa: NPY002
    }


def test_nothing_is_changed_also_after_an_error():
    model = net(counts=True, nested=True)
    model.optimizer.build(model.trainable_variables)
    for variable in model.optimizer.variables:
        variable.assign(variable + 1)  # as after some training
    model.get_layer("inside").get_layer("first").trainable = False
    before = state(model)
    stage_features(model, X, Y, batch_size=4)
    assert state(model) == before

    def broken():
        yield X[:4], Y[:4]
        raise RuntimeError("the disk is gone")

    import tensorflow as tf

    data = tf.data.Dataset.from_generator(
        broken, output_signature=(tf.TensorSpec((None, 16, 16, 3)), tf.TensorSpec((None,), tf.int64))
    )
    with pytest.raises(Exception, match="the disk is gone"):
        stage_features(model, data)
    assert state(model) == before


def test_training_goes_on_after_stage_features_as_without():
    def losses(look):
        keras.utils.set_random_seed(5)
        x = layers.BatchNormalization()(layers.Dense(4)(given := keras.Input((3,))))
        model = keras.Model(given, layers.Dense(2)(layers.Dropout(0.5)(x, training=True)))
        model.compile("adam", "mse", run_eagerly=True)
        if look:
            stage_features(model, X[:, 0, 0], Y)
        drawn = keras.random.normal((2,)).numpy().tolist()
        return drawn, model.fit(X[:, 0, 0], np.zeros((11, 2)), batch_size=4, verbose=0).history["loss"]

    assert losses(True) == losses(False)


class Own(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2)

    def call(self, x):
        return self.dense(x)


@keras.saving.register_keras_serializable("test_stage_features")
class Twice(keras.Model):
    def call(self, x, training=None):
        return 2 * super().call(x, training=training)


def test_what_does_not_fit_is_said():
    own = Own()
    own(X[:, 0, 0])
    with pytest.raises(ValueError, match="subclassed"):
        stage_features(own, X[:, 0, 0], Y)
    given = keras.Input((3,))
    twice = Twice(given, layers.Dense(2)(layers.Dense(2)(given)))
    with pytest.raises(ValueError, match="call of its own"):
        stage_features(twice, X[:, 0, 0], Y)
    with pytest.raises(ValueError, match="all head"):
        stage_features(keras.Sequential([keras.Input((3,)), layers.Dense(2)]), X[:, 0, 0], Y)
    model = keras.Sequential([keras.Input((3,)), layers.Dense(4), layers.Dense(2)])
    with pytest.raises(ValueError, match="have no labels"):
        stage_features(model, X[:, 0, 0])
    with pytest.raises(ValueError, match=r"shape \(8, 16, 3\); expected \(16, 16, 3\)"):
        stage_features(net(), X[:, :8], Y)
    model.layers[0].set_weights([np.full((3, 4), np.nan), np.zeros(4)])
    with pytest.raises(ValueError, match=r"stage1 of .* NaN or infinity for 11 of 11"):
        stage_features(model, X[:, 0, 0], Y)


def test_stage_features_of_two_inputs():
    """Several arrays and dicts are inputs of the model, not examples."""
    keras.utils.set_random_seed(0)
    one, two = keras.Input((3,), name="one"), keras.Input((2,), name="two")
    x = layers.Concatenate()([layers.Dense(4)(one), layers.Dense(4)(two)])
    model = keras.Model([one, two], layers.Dense(2)(layers.Dense(5)(x)))
    a, b = RNG.normal(size=(6, 3)).astype("float32"), RNG.normal(size=(6, 2)).astype("float32")
    expected = stage_features(model, {"one": a, "two": b}, np.arange(6))[0]
    found, y = stage_features(model, (a, b), np.arange(6), batch_size=4)
    assert y.tolist() == list(range(6))
    for name, rows in expected.items():
        assert found[name] == pytest.approx(rows, abs=1e-6)


def test_stateful_layers():
    """Their features would be those of the batches before, and of a batch of another size there are none."""
    net = [keras.Input(batch_shape=(4, 5, 3)), layers.GRU(4, stateful=True, name="carries"), layers.Dense(2)]
    with pytest.raises(ValueError, match=r"carries of \w+ is stateful: .* build it with stateful=False"):
        stage_features(keras.Sequential(net), np.zeros((8, 5, 3), "float32"), np.zeros(8))


def test_layers_say_the_data_format():
    """Whatever keras.json says: a map is averaged over its positions and not over its channels."""
    expected, _ = stage_features(net(), X, Y)
    model = net()
    keras.config.set_image_data_format("channels_first")
    try:
        features, _ = stage_features(model, X, Y)
    finally:
        keras.config.set_image_data_format("channels_last")
    assert features.keys() == expected.keys()
    assert all(np.array_equal(features[name], expected[name]) for name in expected)
