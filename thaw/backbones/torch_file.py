"""Read the tensors of a PyTorch checkpoint without PyTorch and without trusting the file."""

import collections
import math
import pickle
from pathlib import Path

import numpy as np

_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
}


def torch_file(path):
    """Return the tensors of a *legacy* PyTorch state dict as numpy arrays.

    A pickle can run any code. This reader admits nothing but the rebuilding of tensors: every other
    global named in the file is refused before it is looked up.

    Args:
        path: a ``.pth`` file written by ``torch.save`` before PyTorch 1.6 (not a zip).

    Returns:
        ``dict[str, numpy.ndarray]`` in the order of the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not such a checkpoint, is cut short, or asks for anything but tensors.

    Example:
        >>> from thaw.backbones.torch_file import torch_file
        >>> torch_file("net.pth")
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
        if load(foreign) != _MAGIC:
            raise ValueError(foreign)
        # Version and sizes of C types tell nothing here: the storages are little-endian.
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
    """What ``torch._utils._rebuild_tensor_v2`` is called with."""

    def __init__(self, storage, offset, shape, stride, *_):
        self.storage, self.offset, self.shape, self.stride = storage, offset, shape, stride

    def array(self):
        data, item = self.storage.data, self.storage.dtype.itemsize
        spans = [(n - 1) * s for n, s in zip(self.shape, self.stride, strict=True)]
        whole = math.prod(self.shape)
        # Strides come from the file: one that reaches outside, or repeats without end, is not followed.
        if whole and (min(self.stride, default=0) < 0 or not 0 <= self.offset < data.size - sum(spans)):
            raise ValueError("a tensor reaches outside its storage")
        if whole > data.size:
            raise ValueError("a tensor is larger than its storage")
        strides = [s * item for s in self.stride]
        return np.lib.stride_tricks.as_strided(data[self.offset :], self.shape, strides).copy()
