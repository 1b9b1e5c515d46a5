"""A user's model file: opened whole, or refused in one clear sentence."""

import json
import pickle
import zipfile

import h5py
import keras
import numpy as np
import pytest
from keras import layers

from thaw.models.loading import load_model_file


@pytest.fixture(scope="module")
def net():
    return keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(2)])


def message(path):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load_model_file(path)
    text = str(caught.value)
    assert text.startswith(str(path)), text
    assert len(text) < 450
    assert "\n" not in text
    return text.removeprefix(str(path)).strip()


@pytest.mark.parametrize("name", ["net.keras", "net.h5"])
def test_both_formats(tmp_path, net, name):
    net.compile("adam", "mse")
    net.save(tmp_path / name)
    found = load_model_file(tmp_path / name)
    assert not found.compiled
    pixels = np.ones((1, 8, 8, 3), "float32")
    np.testing.assert_array_equal(found(pixels), net(pixels))


@pytest.mark.parametrize("name", ["net.keras", "net.h5"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_cut_short(tmp_path, net, name, share):
    net.save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(len(whole) * share)])
    assert "cut short or damaged" in message(tmp_path / name)


def test_a_flipped_bit(tmp_path, net):
    net.save(tmp_path / "net.keras")
    content = bytearray((tmp_path / "net.keras").read_bytes())
    content[len(content) // 2] ^= 4
    (tmp_path / "net.keras").write_bytes(content)
    assert "damaged" in message(tmp_path / "net.keras")


def test_what_is_no_model(tmp_path, net):
    missing = tmp_path / "none.keras"
    assert message(missing) == "does not exist; expected a model file, .keras or .h5."
    (tmp_path / "empty.keras").touch()
    assert message(tmp_path / "empty.keras").startswith("is empty; expected a file made by model.save")
    (tmp_path / "text.h5").write_text("hello, I am a text")
    assert message(tmp_path / "text.h5").startswith("is not a Keras model; expected a file made by model.save")
    with zipfile.ZipFile(tmp_path / "other.keras", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert message(tmp_path / "other.keras").startswith("is a zip file but not a Keras model")
    saved = tmp_path / "saved"
    saved.mkdir()
    assert message(saved).startswith("is a folder; expected a .keras or .h5 file")
    (saved / "saved_model.pb").touch()
    assert message(saved).startswith("is a SavedModel folder; expected a .keras or .h5 file. Load it where")


def test_weights_alone(tmp_path, net):
    net.save_weights(tmp_path / "net.weights.h5")
    assert message(tmp_path / "net.weights.h5").startswith("holds weights without a model; name the model")
    with h5py.File(tmp_path / "old.h5", "w") as file:
        file.attrs["layer_names"] = [b"dense"]
    assert "backbone(NAME, weights=" in message(tmp_path / "old.h5")


@pytest.mark.parametrize("name", ["model.pkl", "model.keras", "model.h5"])
def test_a_pickle_is_not_opened(tmp_path, name):
    class Evil:
        def __reduce__(self):
            return (tmp_path / "ran").touch, ()

    (tmp_path / name).write_bytes(pickle.dumps(Evil()))
    assert message(tmp_path / name).startswith("is a pickle, which can run any code when opened; expected a .keras")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("name", ["net.keras", "net.h5"])
def test_a_lambda_does_not_run(tmp_path, monkeypatch, name, nested):
    net = keras.Sequential([keras.Input((4,)), layers.Lambda(lambda x: x * 2), layers.Dense(2)])
    if nested:
        net = keras.Sequential([keras.Input((4,)), net])
    net.save(tmp_path / name)
    # Another library may have switched Keras' own guard off: Keras must not even be asked.
    monkeypatch.setattr(keras.saving, "load_model", lambda *_, **__: pytest.fail("Keras was asked"))
    text = message(tmp_path / name)
    assert text.startswith("has a Lambda layer, which would run code from the file; it is not loaded")


def test_operations_of_keras_2(tmp_path, net):
    net.save(tmp_path / "old.h5")
    with h5py.File(tmp_path / "old.h5", "r+") as file:
        config = json.loads(file.attrs["model_config"])
        config["config"]["layers"].append({"class_name": "TFOpLambda", "config": {"name": "tf.math.truediv"}})
        file.attrs["model_config"] = json.dumps(config)
    assert message(tmp_path / "old.h5").startswith("has a TFOpLambda layer, which only Keras 2 can load")


def test_a_layer_of_their_own(tmp_path):
    class Own(layers.Layer):
        def call(self, x):
            return x

    keras.Sequential([keras.Input((4,)), Own(), layers.Dense(2)]).save(tmp_path / "own.keras")
    assert message(tmp_path / "own.keras") == (
        "cannot be loaded (it uses the class 'Own', which Keras does not know); register that class with "
        "keras.saving.register_keras_serializable before loading."
    )


def test_the_wrong_ending(tmp_path, net):
    net.save(tmp_path / "net.h5")
    (tmp_path / "net.h5").rename(tmp_path / "net.keras")
    assert message(tmp_path / "net.keras").endswith("rename it to end in .h5.")
    net.save(tmp_path / "other.keras")
    (tmp_path / "other.keras").rename(tmp_path / "other.h5")
    assert message(tmp_path / "other.h5").endswith("rename it to end in .keras.")


def deep(levels):
    return b'{"a":' * levels + b"1" + b"}" * levels


@pytest.mark.parametrize("levels", [600, 950, 5000])  # too deep for Keras, for us, and for the reader of JSON
@pytest.mark.parametrize("name", ["deep.keras", "deep.h5"])
def test_a_deeply_nested_config(tmp_path, name, levels):
    if name == "deep.h5":
        with h5py.File(tmp_path / name, "w") as file:
            file.attrs["model_config"], file.attrs["keras_version"] = deep(levels), "3.0.0"
    else:
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("config.json", deep(levels))
            archive.writestr("model.weights.h5", b"")
    text = message(tmp_path / name)
    assert "damaged" in text or text.startswith("cannot be loaded (")


@pytest.mark.parametrize("large", ["config.json", "metadata.json"])
def test_a_config_of_any_size(tmp_path, large):
    """A zip of 100 kB can hold it."""
    with zipfile.ZipFile(tmp_path / "large.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("config.json", "metadata.json", "model.weights.h5"):
            archive.writestr(name, b"{}" + b" " * (65_000_000 if name == large else 0))
    expected = f"is no Keras model: its {large} has 65 MB; expected at most 64, in a file"
    assert message(tmp_path / "large.keras").startswith(expected)
