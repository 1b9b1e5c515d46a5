"""Pixels are scaled once: as a published file says, in half precision, and after a file was opened again."""

import json

import keras
import numpy as np

from thaw.models.applications import correct_published_scaling
from thaw.models.backbone import backbone
from thaw.models.preprocessing import KINDS

MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def seen_by_the_first_weights(model, pixels):
    """What the first layer that learns is given, before the border of zeros that some lay around it."""
    scaling = (keras.layers.Rescaling, keras.layers.Normalization)
    first = next(
        x
        for x in model.layers
        if isinstance(x, keras.layers.ZeroPadding2D) or (x.weights and not isinstance(x, scaling))
    )
    return keras.Model(model.inputs[0], first.input)(pixels).numpy()


def scaled_as_published(x):
    return (x / 255 - MEAN) / DEVIATION


def pixels_of(size):
    x = np.random.default_rng(7).integers(0, 256, (2, size, size, 3)).astype("float32")
    x[:, 0], x[:, -1] = 0, 255
    return x


def test_efficientnet_file_as_published_divides_by_the_deviation(tmp_path):
    """The published file holds the deviation where Keras looks for the variance (tensorflow#49930)."""
    net = keras.applications.EfficientNetB0(weights=None, include_top=False, input_shape=(32, 32, 3))
    norm = next(x for x in net.layers if isinstance(x, keras.layers.Normalization))
    norm.set_weights([MEAN, DEVIATION, np.array(0)])
    net.save_weights(tmp_path / "published.weights.h5")
    pixels = pixels_of(32)
    model = backbone("efficientnet_b0", weights=tmp_path / "published.weights.h5", input_shape=(32, 32, 3))
    found = seen_by_the_first_weights(model, pixels)
    np.testing.assert_allclose(found, scaled_as_published(pixels), atol=1e-4)


def test_correct_published_scaling_adds_nothing_where_the_variance_is_in_its_place():
    norm = keras.layers.Normalization()
    net = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Rescaling(1 / 255), norm, keras.layers.Conv2D(2, 3)])
    pixels = pixels_of(8)
    norm.set_weights([MEAN, DEVIATION**2, np.array(0)])
    norm.finalize_state()  # as Keras does when it loads a file
    assert correct_published_scaling(net) is net
    np.testing.assert_allclose(seen_by_the_first_weights(net, pixels), scaled_as_published(pixels), atol=1e-4)
    norm.set_weights([MEAN, DEVIATION, np.array(0)])
    norm.finalize_state()
    found = correct_published_scaling(net)
    np.testing.assert_allclose(seen_by_the_first_weights(found, pixels), scaled_as_published(pixels), atol=1e-4)


def test_half_precision_does_not_round_the_scaling():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = backbone("mobilenet", weights=None, input_shape=(32, 32, 3))
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.get_layer("preprocessing").compute_dtype == "float32"
    assert model.get_layer("conv1").compute_dtype == "float16"


OPEN = """
import json, sys
import keras, numpy as np
assert not any(name.split(".")[0] == "thaw" for name in sys.modules)
pixels = np.load(sys.argv[1])
found = {}
for path in sys.argv[2:]:
    model = keras.saving.load_model(path, safe_mode=True)
    found[path] = np.asarray(model(pixels)).astype("float64").mean((1, 2)).tolist()
print(json.dumps(found))
"""


def test_saved_files_open_with_keras_alone(tmp_path, python):
    """A backbone of each kind of preprocessing, of which all but two are small, and the one that comes with thaw."""
    pixels, expected = pixels_of(32), {}
    np.save(tmp_path / "pixels.npy", pixels)
    keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Conv2D(4, 3)]).save(tmp_path / "small.keras")
    models = {kind: backbone(tmp_path / "small.keras", preprocessing=kind) for kind in KINDS}
    for name in ("mobilenet", "efficientnet_lite0"):
        models[name] = backbone(name, weights=None, input_shape=(32, 32, 3))
    for i, model in enumerate(models.values()):
        path = str(tmp_path / f"{i}.keras")
        model.save(path)
        expected[path] = np.asarray(model(pixels)).astype("float64").mean((1, 2))
    answer = python("-c", OPEN, tmp_path / "pixels.npy", *expected)
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout.splitlines()[-1])
    for path, value in expected.items():
        np.testing.assert_allclose(found[path], value, rtol=1e-5, atol=1e-6)
