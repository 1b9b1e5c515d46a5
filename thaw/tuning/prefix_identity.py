"""What a part of a model computes, as a name: the same layers with the same weights have the same one."""

import hashlib
import json

import numpy as np

from thaw.stages import nodes_of, sublayers

KNOWN = ("keras", "keras_hub")
# Of no influence on what is computed from an input: names, what training may change, how weights began.
LEFT_OUT = {"name", "trainable", "seed", "build_config", "kernel_initializer", "bias_initializer"}
# What Keras keeps on every operation for its own use.
BOOKKEEPING = {"_lock", "_auto_config", "name", "_inbound_nodes", "_outbound_nodes", "_remat_mode"}


def prefix_identity(prefix):
    """A digest of everything that the output of a model depends on, but for its input.

    Names are left out: Keras numbers layers within a process, and renames them when a model is loaded. Only what is
    written in a layer's settings and weights can be named. Code of the user's (a layer, a ``Lambda``, an activation)
    can do anything, and a lookup keeps its vocabulary elsewhere: such a prefix has no name.

    Args:
        prefix: a functional ``keras.Model`` without a model inside it, as from :func:`thaw.split`.

    Returns:
        64 hexadecimal digits, or ``None`` where there is no name.

    Example:
        >>> import keras
        >>> from thaw.tuning.prefix_identity import prefix_identity
        >>> one = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones")])
        >>> two = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones")])
        >>> prefix_identity(one) == prefix_identity(two)
        True
        >>> own = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: 2 * x)])
        >>> prefix_identity(own) is None
        True
    """
    import keras

    digest = hashlib.sha256(f"keras {keras.__version__}".encode())
    number = {}  # of each tensor, in the order of the computation
    try:
        for node in nodes_of(prefix):
            wires = [number[id(t)] for t in node.input_tensors]
            for tensor in node.output_tensors:
                number[id(tensor)] = len(number)
            fixed = keras.tree.map_structure(_constant, (node.arguments.args, node.arguments.kwargs))
            shapes = [(t.shape, t.dtype) for t in node.output_tensors]
            digest.update(f"{type(node.operation).__name__} {wires} {shapes} {fixed}".encode())
            _add(digest, node.operation)
    except _NoName:
        return None
    digest.update(str([number[id(t)] for t in keras.tree.flatten(prefix.outputs)]).encode())
    return digest.hexdigest()


class _NoName(Exception):
    pass


def _add(digest, operation):
    """The settings and weights of a layer; an operation such as ``x + y`` has its own settings only."""
    import keras

    if not isinstance(operation, keras.layers.Layer):
        _check(type(operation))
        digest.update(_settings({k: v for k, v in vars(operation).items() if k not in BOOKKEEPING}).encode())
        return
    for layer in sublayers(operation):
        _check(type(layer))
        if isinstance(layer, keras.layers.Lambda) or hasattr(layer, "save_assets"):
            raise _NoName
        digest.update(f"{type(layer).__module__}.{type(layer).__qualname__} ".encode())
    digest.update(_settings(operation.get_config()).encode())
    for variable in operation.weights:
        digest.update(_bits(variable))


def _check(kind):
    if kind.__module__.split(".")[0] not in KNOWN:
        raise _NoName


def _settings(config):
    """As text, without names."""

    def plain(value):
        if isinstance(value, dict):
            if value.get("class_name") in ("function", "__lambda__", "__numpy__", "__tensor__"):
                raise _NoName  # code, which may change under the same name
            module = value.get("module")
            if isinstance(module, str) and module.split(".")[0] not in KNOWN:
                raise _NoName
            return {str(k): plain(v) for k, v in value.items() if k not in LEFT_OUT}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        if isinstance(value, (np.ndarray, np.generic)):
            return value.tolist()
        if isinstance(value, (str, int, float, bool, type(None))):
            return value
        raise _NoName

    return json.dumps(plain(config), sort_keys=True)


def _constant(leaf):
    import keras

    if isinstance(leaf, keras.KerasTensor):
        return "tensor"
    if keras.ops.is_tensor(leaf) or isinstance(leaf, (np.ndarray, keras.Variable)):  # as text it would be shortened
        return hashlib.sha256(_bits(leaf)).hexdigest()
    if isinstance(leaf, (str, int, float, bool, complex, type(None), slice, type(...), np.generic)):
        return str(leaf)
    raise _NoName


def _bits(array):
    value = np.asarray(array)
    return f"{value.dtype} {value.shape}".encode() + np.ascontiguousarray(value).tobytes()
