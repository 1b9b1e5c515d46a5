"""What an .h5 file holds and Keras does not bring over, or what it cannot hold: repaired, or refused."""

import json

import h5py
import keras
import numpy as np
import pytest
from keras import layers

from thaw.models.backbone import backbone
from thaw.models.loading import _verify_h5, load_model_file

X = np.random.default_rng(0).uniform(0, 255, (8, 4)).astype("float32")


def adapted(layer, data):
    layer.adapt(data)
    return layer


def nested(layer, depth, shape=(4,), dtype="float32"):
    """A layer behind so many models within models, functional and sequential in turn, and a dense layer."""
    entry = keras.Input(shape, dtype=dtype)
    model = keras.Model(entry, layer(entry))
    for i in range(depth):
        entry = keras.Input(shape, dtype=dtype)
        model = keras.Sequential([entry, model]) if i % 2 == 0 else keras.Model(entry, model(entry))
    entry = keras.Input(shape, dtype=dtype)
    return keras.Model(entry, layers.Dense(3)(model(entry)))


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_nested_normalization(tmp_path, suffix, depth):
    """https://github.com/keras-team/keras/issues/20147: Keras loads the mean and computes without it."""
    model = nested(adapted(layers.Normalization(), X), depth)
    model.save(tmp_path / f"own{suffix}")
    np.testing.assert_allclose(load_model_file(tmp_path / f"own{suffix}")(X), model(X), atol=1e-5)


def test_features_of_a_backbone_that_normalizes(tmp_path):
    pixels = np.random.default_rng(0).uniform(0, 255, (4, 32, 32, 3)).astype("float32")
    net = [keras.Input((32, 32, 3)), adapted(layers.Normalization(), pixels), layers.Conv2D(8, 3, 2)]
    base = keras.Sequential(net)
    inputs = keras.Input((32, 32, 3))
    outputs = layers.Dense(3, "softmax")(layers.GlobalAveragePooling2D()(base(inputs)))
    keras.Model(inputs, outputs).save(tmp_path / "own.h5")
    np.testing.assert_allclose(backbone(tmp_path / "own.h5")(pixels), base(pixels), atol=1e-4)


TEXTS = np.array([["b"], ["a"], ["other"]])
NUMBERS = np.array([[3], [5], [7]])
STATES = {
    "given mean": (lambda: layers.Normalization(mean=[1.0, 2, 3, 4], variance=[4.0, 4, 9, 9]), X),
    "one mean": (lambda: layers.Normalization(axis=None, mean=5.0, variance=4.0), X),
    "bins": (lambda: layers.Discretization([50.0, 100.0], output_mode="multi_hot"), X),
    "adapted bins": (lambda: adapted(layers.Discretization(num_bins=3, output_mode="multi_hot"), X), X),
    "strings": (lambda: layers.StringLookup(vocabulary=["a", "b"], output_mode="multi_hot"), TEXTS),
    "integers": (lambda: layers.IntegerLookup(vocabulary=[3, 5], output_mode="multi_hot"), NUMBERS),
    "hashes": (lambda: layers.Hashing(5, output_mode="multi_hot", salt=3), TEXTS),
    "one-hot": (lambda: layers.CategoryEncoding(9, output_mode="multi_hot"), NUMBERS),
}
VOCABULARIES = {
    "adapted strings": (lambda: adapted(layers.StringLookup(output_mode="multi_hot"), ["a", "b", "b"]), TEXTS),
    "adapted integers": (lambda: adapted(layers.IntegerLookup(output_mode="multi_hot"), np.array([3, 5])), NUMBERS),
    "adapted texts": (
        lambda: adapted(layers.TextVectorization(9, output_mode="multi_hot", pad_to_max_tokens=True), ["a b", "b"]),
        TEXTS,
    ),
}


def of(state):
    build, x = state
    dtype = {"U": "string", "i": "int64"}.get(x.dtype.kind, "float32")
    return nested(build(), 1, x.shape[1:], dtype), keras.ops.convert_to_tensor(x)


@pytest.mark.parametrize("kind", STATES)
@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_state_outside_the_weights(tmp_path, suffix, kind):
    model, x = of(STATES[kind])
    model.save(tmp_path / f"own{suffix}")
    np.testing.assert_allclose(load_model_file(tmp_path / f"own{suffix}")(x), model(x), atol=1e-6)


@pytest.mark.parametrize("kind", VOCABULARIES)
def test_vocabularies(tmp_path, kind):
    model, x = of(VOCABULARIES[kind])
    model.save(tmp_path / "own.h5")
    with pytest.raises(ValueError, match=r"lacks the vocabulary of its layer \w+, which an .h5 file cannot hold; save"):
        load_model_file(tmp_path / "own.h5")
    model.save(tmp_path / "own.keras")
    np.testing.assert_array_equal(load_model_file(tmp_path / "own.keras")(x), model(x))


def test_the_order_of_weights(tmp_path):
    """Keras goes by their order, in which a variable that was frozen alone comes last; the names say which is which."""
    entry = keras.Input((4,))
    base = keras.Sequential([keras.Input((4,)), layers.Dense(4, use_bias=False), layers.Dense(4, use_bias=False)])
    model = keras.Model(entry, layers.Dense(2)(base(entry)))
    base.layers[0].kernel.trainable = False
    model.save(tmp_path / "own.h5")
    with h5py.File(tmp_path / "own.h5", "r+") as file:  # in a file with other names the difference shows
        group = file["model_weights"][base.name]
        names = [name.decode() if isinstance(name, bytes) else name for name in group.attrs["weight_names"]]
        assert [name.split("/")[-2] for name in names] == [base.layers[1].name, base.layers[0].name]
    with pytest.raises(ValueError, match="does not load as it was saved"):
        load_model_file(tmp_path / "own.h5")


def test_operations(tmp_path):
    entry = keras.Input((4,))
    keras.Model(entry, layers.Dense(2)(keras.ops.true_divide(entry, 255.0))).save(tmp_path / "own.h5")
    with pytest.raises(
        ValueError, match=r"it has the operation TrueDivide, which an .h5 file cannot hold\); save the model"
    ):
        load_model_file(tmp_path / "own.h5")


@keras.saving.register_keras_serializable("test_h5_state")
class Block(layers.Layer):
    def build(self, shape):
        self.one, self.two = layers.Dense(4), layers.Dense(4)
        self.one.build(shape)
        self.two.build(shape)

    def call(self, x):
        return self.two(self.one(x))


def test_new_names_inside(tmp_path):
    """The layers inside one of another class have other names whenever it is made; that is no other order."""
    model = nested(Block(), 1)
    model.save(tmp_path / "own.h5")
    np.testing.assert_array_equal(load_model_file(tmp_path / "own.h5")(X), model(X))


def test_config_of_another_version(tmp_path):
    model = nested(layers.Dense(4), 0)
    model.save(tmp_path / "own.h5")
    with h5py.File(tmp_path / "own.h5", "r+") as file:
        config = json.loads(file.attrs["model_config"])
        config["config"]["layers"][-1]["config"]["units"] = 7
        file.attrs["model_config"] = json.dumps(config)
    with pytest.raises(ValueError, match=r"own.h5 cannot be loaded"):
        load_model_file(tmp_path / "own.h5")


def names_of(path, layer):
    with h5py.File(path, "r") as file:
        return [name.rpartition("/")[2] for name in file["model_weights"][layer].attrs["weight_names"]]


@pytest.mark.parametrize("alone", ["beta", "gamma"])
def test_the_order_of_weights_of_keras_2(tmp_path, alone):
    """The weights of a BatchNorm have one shape: in another order they load, and each is taken for another."""
    entry = keras.Input((4,))
    base = keras.Sequential([keras.Input((4,)), layers.BatchNormalization()], name="base")
    model = keras.Model(entry, layers.Dense(2)(base(entry)))
    path, order = tmp_path / "old.h5", ["gamma", "beta", "moving_mean", "moving_variance"]
    norm = base.layers[0]
    norm.set_weights([np.full(4, i + 0.5, "float32") for i in range(4)])
    model.save(path)
    with h5py.File(path, "r+") as file:
        file.attrs["keras_version"] = "2.15.0"
        group = file["model_weights"]["base"]
        saved = list(group.attrs["weight_names"])
        group.attrs["weight_names"] = [name + ":0" for name in saved]
        for name in saved:
            group.move(name, name + ":0")
    assert names_of(path, "base") == [f"{name}:0" for name in order]
    np.testing.assert_array_equal(load_model_file(path)(X), model(X))  # as Keras 2 wrote it
    with h5py.File(path, "r+") as file:  # where that one was frozen alone, it came after the trainable ones
        names = list(file["model_weights"]["base"].attrs["weight_names"])
        names.sort(key=lambda name: 2 if "moving" in name else name.endswith(f"/{alone}:0"))
        file["model_weights"]["base"].attrs["weight_names"] = names
    if alone == "beta":  # it is the last one of them anyway
        np.testing.assert_array_equal(load_model_file(path)(X), model(X))
        return
    assert names_of(path, "base")[0] == "beta:0"
    with pytest.raises(ValueError, match=r"does not load as it was saved \(2 weights, the first of them .*beta:0\)"):
        load_model_file(path)


def test_another_number_of_weights(tmp_path):
    nested(layers.Dense(4), 0).save(tmp_path / "own.h5")
    with pytest.raises(ValueError, match=r"own.h5 does not hold one array for each weight of its model \(.*\); save"):
        _verify_h5(tmp_path / "own.h5", nested(layers.Dense(4, use_bias=False), 0), "3.0.0")
