"""Every family of keras.applications: known raw pixels reach the first weights scaled once, as published."""

import json

import keras
import numpy as np
import pytest

from thaw.models.applications import application_names, find_application
from thaw.models.backbone import backbone

MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
# Published conventions, written down apart from the code under test.
PUBLISHED = {
    "-1..1": lambda x: x / 127.5 - 1,
    "/128-1": lambda x: x / 128 - 1,
    "caffe": lambda x: x[..., ::-1] - np.array([103.939, 116.779, 123.68]),
    "torch": lambda x: (x / 255 - MEAN) / DEVIATION,
    "0..1": lambda x: x / 255,
}
# The smallest net of each module. EfficientNet's mean and deviation come with its weights: without them,
# 0..1 is right.
SMALLEST = {
    "convnext_tiny": "torch",
    "densenet121": "torch",
    "efficientnet_b0": "0..1",
    "efficientnet_v2_b0": "torch",
    "efficientnet_v2_s": "/128-1",
    "inception_resnet_v2": "-1..1",
    "inception_v3": "-1..1",
    "mobilenet": "-1..1",
    "mobilenet_v2": "-1..1",
    "mobilenet_v3_small": "-1..1",
    "nasnet_mobile": "-1..1",
    "resnet50": "caffe",
    "resnet50_v2": "-1..1",
    "vgg16": "caffe",
    "vgg19": "caffe",
    "xception": "-1..1",
}


def seen_by_the_first_weights(model, pixels):
    """What the first layer that learns is given, before the border of zeros that some lay around it."""
    scaling = (keras.layers.Rescaling, keras.layers.Normalization)
    first = next(
        x
        for x in model.layers
        if isinstance(x, keras.layers.ZeroPadding2D) or (x.weights and not isinstance(x, scaling))
    )
    return keras.Model(model.inputs[0], first.input)(pixels).numpy()


def pixels_of(size):
    x = np.random.default_rng(7).integers(0, 256, (2, size, size, 3)).astype("float32")
    x[:, 0], x[:, -1] = 0, 255
    return x


def test_every_family_is_in_the_table():
    scaling = {find_application(name)[1] for name in application_names()}
    assert scaling == {find_application(name)[1] for name in SMALLEST}
    assert len(application_names()) >= 38


@pytest.mark.parametrize("name", SMALLEST)
def test_scaled_once_as_published(name):
    size = {"inception_resnet_v2": 75, "inception_v3": 75, "xception": 71}.get(name, 32)
    model = backbone(name, weights=None, input_shape=(size, size, 3))
    pixels = pixels_of(size)
    expected = PUBLISHED[SMALLEST[name]](pixels.astype("float64"))
    np.testing.assert_allclose(seen_by_the_first_weights(model, pixels), expected, atol=2e-5 * np.abs(expected).max())
    assert not any(isinstance(layer, keras.Model) and "preprocess" in layer.name for layer in model.layers)
    assert len(model.output_shape) == 4
    # An integer picture gives the same as one in floating point.
    np.testing.assert_array_equal(model(pixels.astype("uint8")), model(pixels))


def test_efficientnet_file_as_published_divides_by_the_deviation(tmp_path):
    """The published file holds the deviation where Keras looks for the variance (tensorflow#49930)."""
    net = keras.applications.EfficientNetB0(weights=None, include_top=False, input_shape=(32, 32, 3))
    norm = next(x for x in net.layers if isinstance(x, keras.layers.Normalization))
    norm.set_weights([MEAN, DEVIATION, np.array(0)])
    net.save_weights(tmp_path / "published.weights.h5")
    pixels = pixels_of(32)
    model = backbone("efficientnet_b0", weights=tmp_path / "published.weights.h5", input_shape=(32, 32, 3))
    found = seen_by_the_first_weights(model, pixels)
    np.testing.assert_allclose(found, PUBLISHED["torch"](pixels), atol=1e-4)
    # With the variance in its place nothing is added.
    norm.set_weights([MEAN, DEVIATION**2, np.array(0)])
    net.save_weights(tmp_path / "own.weights.h5")
    model = backbone("efficientnet_b0", weights=tmp_path / "own.weights.h5", input_shape=(32, 32, 3))
    np.testing.assert_allclose(seen_by_the_first_weights(model, pixels), PUBLISHED["torch"](pixels), atol=1e-4)


def test_half_precision_does_not_round_the_scaling():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = backbone("resnet50", weights=None, input_shape=(32, 32, 3))
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.get_layer("preprocessing").compute_dtype == "float32"
    assert model.get_layer("conv1_conv").compute_dtype == "float16"


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
    pixels, expected = pixels_of(32), {}
    np.save(tmp_path / "pixels.npy", pixels)
    kinds = ("vgg16", "mobilenet", "densenet121", "efficientnet_b0", "efficientnet_lite0")
    for name in kinds:
        model = backbone(name, weights=None, input_shape=(32, 32, 3))
        path = str(tmp_path / f"{name}.keras")
        model.save(path)
        expected[path] = np.asarray(model(pixels)).astype("float64").mean((1, 2))
    answer = python("-c", OPEN, tmp_path / "pixels.npy", *expected)
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout.splitlines()[-1])
    for path, value in expected.items():
        np.testing.assert_allclose(found[path], value, rtol=1e-5, atol=1e-6)
