"""What a part of a model computes, as a name: the same layers with the same weights have the same one."""

import hashlib
import json

import numpy as np

from thaw.stages import nodes_of, sublayers


def prefix_identity(prefix):
    """A digest of everything that the output of a model depends on, but for its input.

    Names are left out: Keras numbers layers within a process, and renames them when a model is loaded.

    Args:
        prefix: a functional ``keras.Model`` without a model inside it, as from :func:`thaw.split`.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> import keras
        >>> from thaw.tuning.prefix_identity import prefix_identity
        >>> one = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones")])
        >>> two = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones")])
        >>> prefix_identity(one) == prefix_identity(two)
        True
    """
    import keras

    digest = hashlib.sha256(f"keras {keras.__version__}".encode())
    number = {}  # of each tensor, in the order of the computation
    for node in nodes_of(prefix):
        wires = [number[id(t)] for t in node.input_tensors]
        for tensor in node.output_tensors:
            number[id(tensor)] = len(number)
        fixed = keras.tree.map_structure(_constant, (node.arguments.args, node.arguments.kwargs))
        shapes = [(t.shape, t.dtype) for t in node.output_tensors]
        digest.update(f"{type(node.operation).__name__} {wires} {shapes} {fixed}".encode())
        _add(digest, node.operation)
    digest.update(str([number[id(t)] for t in keras.tree.flatten(prefix.outputs)]).encode())
    return digest.hexdigest()


def _add(digest, operation):
    """The settings and weights of a layer; an operation such as ``x + y`` has its own settings only."""
    import keras

    if not isinstance(operation, keras.layers.Layer):
        digest.update(_settings(vars(operation)).encode())
        return
    for layer in sublayers(operation):
        digest.update(f"{type(layer).__module__}.{type(layer).__qualname__} ".encode())
    try:
        config = operation.get_config()
    except NotImplementedError:  # a layer of the user's that cannot be saved: what it carries
        config = vars(operation)
    digest.update(_settings(config).encode())
    for variable in operation.weights:
        value = np.asarray(variable)
        digest.update(f"{value.dtype} {value.shape}".encode() + np.ascontiguousarray(value).tobytes())


def _settings(config):
    """As text, without names, and without what Keras keeps for its own use."""

    def plain(value):
        if isinstance(value, dict):
            return {str(k): plain(v) for k, v in value.items() if k not in LEFT_OUT and not str(k).startswith("_")}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        if isinstance(value, np.ndarray):
            return value.tolist()
        return value if isinstance(value, (str, int, float, bool, type(None))) else type(value).__name__

    return json.dumps(plain(config), sort_keys=True)


# Of no influence on what is computed: names, and whether training may change the weights.
LEFT_OUT = {"name", "trainable", "seed", "build_config", "kernel_initializer", "bias_initializer"}


def _constant(leaf):
    import keras

    if isinstance(leaf, keras.KerasTensor):
        return "tensor"
    if keras.ops.is_tensor(leaf) or isinstance(leaf, np.ndarray):  # as text a large one would be shortened
        return hashlib.sha256(np.ascontiguousarray(leaf).tobytes()).hexdigest()
    return str(leaf)
