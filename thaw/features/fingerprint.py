"""Fingerprint a model: a digest of its layers, weights and wiring."""

from __future__ import annotations

import hashlib
import json

import numpy as np

from thaw._keras import graph_nodes, sublayers

KNOWN_PACKAGES = ("keras", "keras_hub")
# Settings without influence on the output: names, what training may change, how weights were initialized.
IGNORED_SETTINGS = {"name", "trainable", "seed", "build_config", "kernel_initializer", "bias_initializer"}
# Attributes of an operation that Keras uses itself.
IGNORED_ATTRIBUTES = {"_lock", "_auto_config", "name", "_inbound_nodes", "_outbound_nodes", "_remat_mode"}


def fingerprint_model(model):
    """Compute a digest of everything that the output of a model depends on, except its input.

    Names are ignored: Keras numbers layers within a process, and renames them when a model is loaded. The digest covers
    the settings and weights of the layers. Code of the user's own (a layer, a ``Lambda``, an activation) can compute
    anything, and a lookup keeps its vocabulary elsewhere: such a model has no fingerprint.

    Args:
        model: a functional ``keras.Model`` without nested models, as from :func:`thaw.split_model`.

    Returns:
        64 hexadecimal digits, or ``None`` where there is no fingerprint.

    Example:
        >>> import keras
        >>> from thaw.features.fingerprint import fingerprint_model
        >>> one = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones")])
        >>> two = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones")])
        >>> fingerprint_model(one) == fingerprint_model(two)
        True
        >>> own = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: 2 * x)])
        >>> fingerprint_model(own) is None
        True
    """
    import keras

    digest = hashlib.sha256(f"keras {keras.__version__}".encode())
    numbers = {}  # of each tensor, in the order of the computation
    try:
        for node in graph_nodes(model):
            wires = [numbers[id(t)] for t in node.input_tensors]
            for tensor in node.output_tensors:
                numbers[id(tensor)] = len(numbers)
            constants = keras.tree.map_structure(_constant, (node.arguments.args, node.arguments.kwargs))
            shapes = [(t.shape, t.dtype) for t in node.output_tensors]
            digest.update(f"{type(node.operation).__name__} {wires} {shapes} {constants}".encode())
            _update(digest, node.operation)
    except _NoFingerprint:
        return None
    digest.update(str([numbers[id(t)] for t in keras.tree.flatten(model.outputs)]).encode())
    return digest.hexdigest()


class _NoFingerprint(Exception):
    pass


def _update(digest, operation):
    """Add the settings and weights of a layer; an operation such as ``x + y`` has settings only."""
    import keras

    if not isinstance(operation, keras.layers.Layer):
        _check_package(type(operation))
        settings = {k: v for k, v in vars(operation).items() if k not in IGNORED_ATTRIBUTES}
        digest.update(_settings_text(settings).encode())
        return
    for layer in sublayers(operation):
        _check_package(type(layer))
        if isinstance(layer, keras.layers.Lambda) or hasattr(layer, "save_assets"):
            raise _NoFingerprint
        digest.update(f"{type(layer).__module__}.{type(layer).__qualname__} ".encode())
    digest.update(_settings_text(operation.get_config()).encode())
    for variable in operation.weights:
        digest.update(_content(variable))


def _check_package(kind):
    if kind.__module__.split(".")[0] not in KNOWN_PACKAGES:
        raise _NoFingerprint


def _settings_text(config):
    """Return settings as JSON, without names."""

    def plain(value):
        if isinstance(value, dict):
            if value.get("class_name") in ("function", "__lambda__", "__numpy__", "__tensor__"):
                raise _NoFingerprint  # code, which may change under the same name
            module = value.get("module")
            if isinstance(module, str) and module.split(".")[0] not in KNOWN_PACKAGES:
                raise _NoFingerprint
            return {str(k): plain(v) for k, v in value.items() if k not in IGNORED_SETTINGS}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        if isinstance(value, (np.ndarray, np.generic)):
            return value.tolist()
        if isinstance(value, (str, int, float, bool, type(None))):
            return value
        raise _NoFingerprint

    return json.dumps(plain(config), sort_keys=True)


def _constant(leaf):
    import keras

    if isinstance(leaf, keras.KerasTensor):
        return "tensor"
    if keras.ops.is_tensor(leaf) or isinstance(leaf, (np.ndarray, keras.Variable)):  # its text would be abbreviated
        return hashlib.sha256(_content(leaf)).hexdigest()
    if isinstance(leaf, (str, int, float, bool, complex, type(None), slice, type(...), np.generic)):
        return str(leaf)
    raise _NoFingerprint


def _content(array):
    value = np.asarray(array)
    return f"{value.dtype} {value.shape}".encode() + np.ascontiguousarray(value).tobytes()
