"""Files of Keras 2 (https://github.com/keras-team/keras/issues/19089): loaded, or refused with the way out.

Those in ``keras2/`` were written by Keras 2; ``predictions.json`` is what Keras 2 predicted.
"""

import json
import re
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from keras import layers

from thaw.models.backbone import backbone
from thaw.models.keras2 import upgrade_config
from thaw.models.loading import load_model_file
from thaw.models.stages import stages_of

FOLDER = Path(__file__).parent / "keras2"


@pytest.mark.parametrize("name", ["images.keras", "images.h5", "sequences.keras", "sequences.h5"])
def test_predictions_of_keras_2(name):
    model = load_model_file(FOLDER / name)
    shape = (2, *model.input_shape[1:])
    x = np.linspace(-1, 2, int(np.prod(shape)), dtype="float32").reshape(shape)
    expected = json.loads((FOLDER / "predictions.json").read_text())[name.partition(".")[0]]
    np.testing.assert_allclose(model(x), expected, atol=1e-6)
    assert stages_of(model)[-1].name == "head"


def test_saved_again_it_is_a_file_of_keras_3(tmp_path, with_keras_alone):
    model = load_model_file(FOLDER / "sequences.h5")
    model.save(tmp_path / "new.keras")
    code = (
        "import keras, numpy as np; m = keras.saving.load_model('new.keras'); print(float(m(np.ones((1, 5, 4)))[0, 0]))"
    )
    assert float(with_keras_alone(tmp_path, code)[-1]) == pytest.approx(
        float(model(np.ones((1, 5, 4)))[0, 0]), abs=1e-6
    )


def as_keras_2(path, model, edit=lambda config: config):
    """Save a model, and write over it that Keras 2.15 did, in the modules of Keras 2.15."""
    model.save(path)
    if path.suffix == ".h5":
        with h5py.File(path, "r+") as file:
            file.attrs["keras_version"] = "2.15.0"
            file.attrs["model_config"] = json.dumps(edit(json.loads(file.attrs["model_config"])))
        return path
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    contents["metadata.json"] = json.dumps({"keras_version": "2.15.0", "date_saved": "2024-01-24@10:00:00"})
    config = contents["config.json"].replace(b"keras.src.models.functional", b"keras.src.engine.functional")
    contents["config.json"] = json.dumps(edit(json.loads(config)))
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


def image_model(activation="relu"):
    inputs = keras.Input((32, 32, 3))
    maps = layers.Conv2D(4, 3, 2, activation=activation)(layers.Rescaling(1 / 255)(inputs))
    outputs = layers.Dense(2, "softmax")(layers.GlobalAveragePooling2D()(maps))
    return keras.Model(inputs, outputs), keras.Model(inputs, maps)


@pytest.mark.parametrize("name", ["old.keras", "old.h5"])
def test_backbone_of_a_file_of_keras_2(tmp_path, name):
    model, features = image_model()
    x = np.random.default_rng(0).uniform(0, 255, (4, 32, 32, 3)).astype("float32")
    np.testing.assert_allclose(backbone(as_keras_2(tmp_path / name, model))(x), features(x), atol=1e-6)


@pytest.mark.parametrize("name", ["old.keras", "old.h5"])
def test_hard_sigmoid(tmp_path, name):
    """It is another function in Keras 3: the same weights would predict something else, without a word."""
    path = as_keras_2(tmp_path / name, image_model("hard_sigmoid")[0])
    with pytest.raises(
        ValueError, match=r"activation hard_sigmoid, which Keras 3 computes otherwise\); Keras 2.15.0 wr"
    ):
        load_model_file(path)


def test_an_argument_that_is_gone(tmp_path):
    def edit(config):
        config["config"]["layers"][2]["config"]["renorm"] = True
        return config

    path = as_keras_2(tmp_path / "old.keras", image_model()[0], edit)
    with pytest.raises(
        ValueError, match=r"a Conv2D layer of it was made with renorm=True, .* Keras 2.15.0 wrote it: rep"
    ):
        load_model_file(path)


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        ("DepthwiseConv2D", {"kernel_size": [3, 3], "groups": 1}, {"kernel_size": [3, 3]}),
        ("LSTM", {"units": 2, "time_major": False, "implementation": 2}, {"units": 2}),
        ("GRU", {"units": 2}, {"units": 2, "reset_after": False}),
        ("Embedding", {"input_dim": 3, "output_dim": 2, "input_length": 7}, {"input_dim": 3, "output_dim": 2}),
        ("RandomFlip", {"mode": "vertical", "rng_type": "stateful"}, {"mode": "vertical"}),
        ("LeakyReLU", {"alpha": 0.25}, {"negative_slope": 0.25}),
        ("BatchNormalization", {"axis": [3], "virtual_batch_size": None}, {"axis": 3}),
        ("GlorotUniform", {"seed": None, "dtype": "float32"}, {"seed": None}),
        ("InputLayer", {"batch_input_shape": [None, 2]}, {"batch_input_shape": [None, 2]}),
    ],
)
def test_arguments(kind, old, new):
    assert upgrade_config({"class_name": kind, "config": old}) == {"class_name": kind, "config": new}


@pytest.mark.parametrize("value", [0, 0.0, True, "", []])
def test_values_that_are_not_unset(value):
    """0 is equal to False, and sets what Keras 3 does not have."""
    with pytest.raises(ValueError, match=f"a Conv2D layer of it was made with renorm={re.escape(repr(value))}, which"):
        upgrade_config({"class_name": "Conv2D", "config": {"renorm": value}})


def test_an_h5_file_that_ends_as_a_zip(tmp_path):
    """The format of a file is in its first bytes; zipfile looks at the last ones."""
    end = b"PK\5\6" + bytes(18)
    (tmp_path / "old.h5").write_bytes((FOLDER / "images.h5").read_bytes() + end)
    assert zipfile.is_zipfile(tmp_path / "old.h5")
    assert load_model_file(tmp_path / "old.h5").count_params() == load_model_file(FOLDER / "images.h5").count_params()


def test_policies_and_modules():
    policy = {"module": "keras.mixed_precision", "class_name": "Policy", "config": {"name": "mixed_float16"}}
    upgraded = upgrade_config(policy)
    assert keras.saving.deserialize_keras_object(upgraded).name == "mixed_float16"
    own = {"module": "mine", "class_name": "Dense", "config": {"odd": 1}, "registered_name": "mine>Dense"}
    assert upgrade_config(own) == own
