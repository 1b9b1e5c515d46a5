"""Save the adapters of a model alone, and load them onto the same backbone."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np

from thaw._files import write_atomically
from thaw._keras import graph_nodes, sublayers
from thaw._validation import as_number, check_model
from thaw.models.flat import CannotSplit, flatten_model
from thaw.models.lora import adapter_variables, forget_traces, scope_of
from thaw.models.stages import HEAD, stages_of

SUFFIX = ".npz"
FORMAT = 1  # of the file
# Settings without influence on the predictions: names, flags, how weights were initialized, and LoRA itself.
_IGNORED_SETTINGS = {"name", "trainable", "seed", "dtype", "lora_rank", "lora_alpha", "shared_object_id"}
_IGNORED_ENDINGS = ("_initializer", "_regularizer")


def save_adapters(model, path):
    """Save the adapters of a model, and its head, in a file of their own: kilobytes instead of the whole model.

    The file also holds a fingerprint of the backbone: the wiring, the settings and the weights of its layers, names
    left out. :func:`thaw.load_adapters` refuses every other one. What else was trained below the head is not in the
    file; a phase with ``variables="adapters"`` trains nothing else.

    Args:
        model: a built ``keras.Model`` with LoRA: see :func:`thaw.add_lora`.
        path: path of the file, which ends in ``.npz``. It holds arrays and JSON, nothing that is executed, and is
            written atomically.

    Returns:
        The path, as a ``pathlib.Path``.

    Raises:
        ValueError: the model has no adapters, or the path ends otherwise.
        OSError: the disk is full or cannot be written to; a file that was there before is unharmed.

    Example:
        >>> import keras
        >>> from thaw import add_lora, save_adapters
        >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(256), keras.layers.Dense(2)])
        >>> _ = add_lora(model, rank=1)
        >>> save_adapters(model, "dogs.npz").stat().st_size < 9000
        True
    """
    check_model(model)
    path = Path(path)
    if path.suffix.lower() != SUFFIX:
        raise ValueError(f"{path} does not end in {SUFFIX}; expected a name such as adapters{SUFFIX}.")
    described = _described(model)
    adapters, arrays = [], {}
    for number, layer in enumerate(_parts(described)):
        if variables := adapter_variables(layer):
            adapters.append({"layer": number, "rank": int(layer.lora_rank), "alpha": as_number(layer.lora_alpha)})
            arrays |= {f"adapter/{number}/{i}": v.numpy() for i, v in enumerate(variables)}
    if not adapters:
        raise ValueError(f"{model.name} has no adapters; add them first: add_lora(model).")
    head = [w.numpy() for w in _head_weights(model)]
    # NumPy cannot read what it writes of bfloat16; float32 holds the same numbers.
    head = [array.astype("float32") if array.dtype.isbuiltin == 2 else array for array in head]
    arrays |= {f"head/{i}": array for i, array in enumerate(head)}
    meta = {"format": FORMAT, "adapters": adapters, "fingerprint": [digests for _, *digests in described]}
    text = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    return write_atomically(path, lambda temporary: np.savez(temporary, meta=text, **arrays))


def load_adapters(model, path):
    """Load adapters and the head that belongs to them onto the backbone they were trained on.

    Where the model has no adapters yet, they are added. The predictions are bit-identical to those of the model that
    was saved.

    Args:
        model: a built ``keras.Model``, changed in place: the same backbone with the same weights, and a head of the
            same shape, flat or nested, built again or loaded from a file.
        path: path of a file that :func:`thaw.save_adapters` wrote.

    Returns:
        The model. One that was trained before has to be compiled again.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is no file of adapters or is damaged; or the model has another backbone, another head, or other
            adapters. The model is not changed.

    Example:
        >>> import keras, numpy as np
        >>> from thaw import add_lora, load_adapters, save_adapters
        >>> def build():
        ...     layers = [keras.layers.Dense(4, kernel_initializer="ones"), keras.layers.Dense(2)]
        ...     return keras.Sequential([keras.Input((3,)), *layers])
        >>> model, x = build(), np.ones((1, 3))
        >>> _ = add_lora(model, rank=1)
        >>> path = save_adapters(model, "dogs.npz")
        >>> np.array_equal(load_adapters(build(), path)(x), model(x))
        True
    """
    check_model(model)
    path = Path(path)
    meta, arrays = _read(path)
    described = _described(model)
    _refuse_another(path, model, described, meta["fingerprint"])
    parts, adapted = _parts(described), {}
    for entry in meta["adapters"]:
        number = entry["layer"]
        values = [arrays[f"adapter/{number}/{i}"] for i in range(2)]
        adapted[number] = parts[number], entry, values
    own = {number: int(layer.lora_rank) for number, layer in enumerate(parts) if adapter_variables(layer)}
    if own and own != {number: entry["rank"] for number, (_, entry, _) in adapted.items()}:
        raise ValueError(
            f"{model.name} has adapters on other layers, or of another rank, than {path}; load them onto the backbone "
            "without adapters."
        )
    head = _head_weights(model)
    values = [arrays[key] for key in sorted((k for k in arrays if k.startswith("head/")), key=_number)]
    if [tuple(w.shape) for w in head] != [v.shape for v in values]:
        raise ValueError(
            f"{path} was saved with a head whose weights have other shapes than those of {model.name}; build the model "
            "with the same head."
        )
    pairs = list(zip(head, values))
    with scope_of(model):
        for layer, entry, values in adapted.values():
            if not own:
                layer.enable_lora(entry["rank"], a_initializer="zeros")
            layer.lora_alpha = entry["alpha"]
            pairs += zip(adapter_variables(layer), values)
    for variable, value in pairs:
        variable.assign(value)
    forget_traces(model)
    return model


def _read(path):
    """Return the JSON and the arrays of a file of adapters."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; expected a file of adapters, {SUFFIX}.")
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files}
        meta = json.loads(arrays.pop("meta").tobytes())
        version = meta["format"]
    except (zipfile.BadZipFile, ValueError, TypeError, KeyError, EOFError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged, or no file of adapters; expected one that thaw.save_adapters wrote."
        ) from error
    if version != FORMAT:
        raise ValueError(f"{path} was written by another version of thaw; expected format {FORMAT}, not {version}.")
    return meta, arrays


def _refuse_another(path, model, described, fingerprint):
    """Raise where the graph of a model, or a weight of its backbone, is not that in the fingerprint of a file."""
    for (operation, settings, _), saved in zip(described, fingerprint):
        if settings != saved[0]:
            raise ValueError(
                f"{path} belongs to another model: {operation.name} of {model.name}, a {type(operation).__name__}, has "
                "other settings or inputs there; load the adapters onto the model they were trained on."
            )
    if len(described) != len(fingerprint):
        raise ValueError(
            f"{path} belongs to another model, of {len(fingerprint)} layers and operations, and {model.name} has "
            f"{len(described)}; load the adapters onto the model they were trained on."
        )
    other = [operation.name for (operation, _, weights), saved in zip(described, fingerprint) if weights != saved[1]]
    if other:
        more = f" and {len(other) - 1} more" if len(other) > 1 else ""
        raise ValueError(
            f"{path} belongs to another backbone: {other[0]}{more} of {model.name} had other weights there; load the "
            "adapters onto the weights beside which they were trained, by phases that train nothing else below the "
            'head (variables="adapters").'
        )


def _described(model):
    """Return ``(operation, settings, weights)`` for each call of a graph, nested models opened, with two digests.

    The weights are those of its layer without the adapters; those of the head, and those of a layer that is called
    again, are left out.
    """
    import keras

    in_head = {id(layer) for layer in _head_layers(model)}
    numbers, seen, described = {}, set(), []
    for operation, node in _calls(model):
        text = [type(operation).__qualname__]
        if node is not None:
            constants = [_constant(leaf) for leaf in keras.tree.flatten((node.arguments.args, node.arguments.kwargs))]
            text += [[numbers[id(t)] for t in node.input_tensors], constants]
            for tensor in node.output_tensors:
                numbers[id(tensor)] = len(numbers)
        weights = ""
        if id(operation) not in seen and not (node and node.is_input):  # of any size
            seen.add(id(operation))
            text.append(_settings(operation))
            if isinstance(operation, keras.Layer):
                text += [part.dtype_policy.name for part in sublayers(operation)]
                if id(operation) not in in_head:
                    weights = _digest(*map(_content, _base_weights(operation)))
        described.append((operation, _digest(json.dumps(text, sort_keys=True).encode()), weights))
    return described


def _calls(model):
    """Yield ``(operation, node)`` for each call in the order of the computation; no nodes where there is no graph."""
    try:
        graph = flatten_model(model, training=False)
    except CannotSplit:
        yield from ((layer, None) for stage in stages_of(model) for layer in stage.layers)
        return
    for node in graph_nodes(graph):
        yield node.operation, node


def _parts(described):
    """Return the layers, and the layers inside them, each once, in the order of the computation."""
    import keras

    operations = {id(operation): operation for operation, _, _ in described}.values()
    parts = [part for layer in operations if isinstance(layer, keras.Layer) for part in sublayers(layer)]
    return list({id(part): part for part in parts}.values())


def _head_layers(model):
    *_, last = stages_of(model)
    return last.layers if last.name == HEAD else ()


def _head_weights(model):
    return [weight for layer in _head_layers(model) for weight in _base_weights(layer)]


def _base_weights(layer):
    """Return the weights of a layer without its adapters."""
    adapters = {id(v) for part in sublayers(layer) for v in adapter_variables(part)}
    return [weight for weight in layer.weights if id(weight) not in adapters]


def _settings(operation):
    """Return the settings of a layer or operation that its output depends on, as values that JSON can hold."""

    def plain(value):
        if isinstance(value, dict):
            if value.get("class_name") == "__lambda__":  # its code, with path and line number
                return "lambda"
            # A setting that is None is left out, so that one which a later Keras adds makes no difference.
            return {str(k): plain(v) for k, v in value.items() if v is not None and not _ignored(str(k))}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        if isinstance(value, (np.ndarray, np.generic)):
            return value.tolist()
        return value if isinstance(value, (str, int, float)) else type(value).__name__

    try:
        return plain(operation.get_config())
    except NotImplementedError:  # Keras', for a class without get_config
        return {}


def _ignored(key):
    return key in _IGNORED_SETTINGS or key.endswith(_IGNORED_ENDINGS)


def _constant(leaf):
    """Describe an argument of a call that is no tensor of the graph."""
    import keras

    if isinstance(leaf, keras.KerasTensor):
        return "tensor"
    if keras.ops.is_tensor(leaf) or isinstance(leaf, (np.ndarray, keras.Variable)):
        return _digest(_content(leaf))
    return str(leaf) if isinstance(leaf, (str, int, float, slice, np.generic, type(None))) else type(leaf).__name__


def _content(array):
    value = np.asarray(array)
    return f"{value.dtype} {value.shape}".encode() + value.tobytes()


def _digest(*parts):
    return hashlib.blake2b(b"".join(parts), digest_size=8).hexdigest()


def _number(key):
    return int(key.rpartition("/")[2])
