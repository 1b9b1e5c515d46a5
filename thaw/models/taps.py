"""Tap a backbone at many depths: pool, standardize and concatenate the outputs of its activations or blocks."""

from __future__ import annotations

import bisect
import math

from thaw._keras import graph_nodes
from thaw.models.flat import operations_in, preserve_graph
from thaw.models.stages import HEAD, after_last_block, calls_of, repeated_blocks, stages_of, weights_of

FEATURES = ("last", "upper", "all")
MAX_STANDARDIZED = 5.0  # standardized values are clipped here: a channel far off decides nothing alone
MIN_VARIANCE = 1e-12  # keeps a constant channel finite; far below the variance of one that varies
_GATES = ("linear", "sigmoid", "hardsigmoid", "softmax", "logsoftmax", "sparsesigmoid")
_SQUEEZING = ("Mean", "Max", "Amax")  # of keras.ops, besides the global poolings


def pooling_layer(pooling, rank, **options):
    """Return the layer that pools a feature map or a sequence to a vector.

    Args:
        pooling: ``"avg"`` or ``"max"``.
        rank: number of axes with the batch: 4 for a feature map, 3 for a sequence.
        options: arguments of the layer, such as ``name``.

    Returns:
        A ``keras.layers.Layer``.
    """
    from keras import layers

    kind = {
        ("avg", 4): layers.GlobalAveragePooling2D,
        ("max", 4): layers.GlobalMaxPooling2D,
        ("avg", 3): layers.GlobalAveragePooling1D,
        ("max", 3): layers.GlobalMaxPooling1D,
    }[pooling, rank]
    # A feature map is (height, width, channels), whatever keras.json says.
    return kind(data_format="channels_last", **options)


def wide_features(flat, features, pooling, name):
    """Pool, standardize and clip what is tapped of a backbone, and concatenate it to one vector.

    One vector for each stage crosses a cut: the taps of a stage are concatenated before they are standardized. The
    constants are the moving mean and variance of a frozen ``BatchNormalization`` without scale and offset, as in linear
    probing of He et al. (2022); they begin at 0 and 1. All of it is float32.

    Args:
        flat: functional ``keras.Model`` without nested models and with one output, the backbone, from
            :func:`thaw.models.flat.open_model`.
        features: ``"upper"`` or ``"all"``, see :func:`thaw.attach_head`.
        pooling: ``"avg"`` or ``"max"``.
        name: that of the backbone in messages.

    Returns:
        A symbolic tensor ``(batch, width)``.

    Raises:
        ValueError: there is no feature map and no sequence to pool.
    """
    from keras import layers

    groups = tapped_stages(flat)
    if not groups:
        raise ValueError(
            f"{name} puts out a vector, and no activation in it a feature map or a sequence to pool; leave features "
            'out, or write features="last".'
        )
    if features == "upper":
        last_two = [name for name in groups if name != HEAD][-2:]
        groups = {name: taps for name, taps in groups.items() if name in (*last_two, HEAD)}
    vectors = []
    for stage, taps in groups.items():
        prefix = "head_output" if stage == HEAD else f"head_{stage}"
        pooled = []
        for i, tensor in enumerate(taps):
            options = {"dtype": "float32", "name": f"{prefix}_pool{i + 1}" if len(taps) > 1 else f"{prefix}_pool"}
            rank = len(tensor.shape)
            layer = layers.Activation("linear", **options) if rank == 2 else pooling_layer(pooling, rank, **options)
            pooled.append(layer(tensor))
        joined = pooled[0] if len(pooled) == 1 else _concatenate(pooled, f"{prefix}_features")
        vectors.append(standardized(joined, f"{prefix}_norm"))
    return clipped(vectors)


def standardized(tensor, name):
    """Standardize a vector by constants that are weights: the moving mean and variance of a frozen norm.

    Args:
        tensor: ``(batch, width)``.
        name: of the layer.
    """
    from keras import layers

    norm = layers.BatchNormalization(
        center=False, scale=False, epsilon=MIN_VARIANCE, dtype="float32", trainable=False, name=name
    )
    return norm(tensor)


def clipped(vectors):
    """Concatenate standardized vectors, and clip them.

    Args:
        vectors: list of symbolic tensors ``(batch, width)``, float32.
    """
    from keras import layers

    x = vectors[0] if len(vectors) == 1 else _concatenate(vectors, "head_standardized")
    # hard_tanh clips at 1. A file in HDF5 with keras.ops.clip does not open again.
    x = layers.Rescaling(1 / MAX_STANDARDIZED, dtype="float32", name="head_shrink")(x)
    x = layers.Activation("hard_tanh", dtype="float32", name="head_clip")(x)
    return layers.Rescaling(MAX_STANDARDIZED, dtype="float32", name="head_features")(x)


def tapped_stages(flat):
    """Choose the tensors of a backbone that a wide head reads.

    In a transformer these are the outputs of its blocks; elsewhere the output of every activation, a layer's own
    included, and every residual sum. What a squeeze-and-excite computes from one position, and gates (sigmoid and
    softmax), do not count. The output of the backbone is always one of them.

    Args:
        flat: as for :func:`wide_features`.

    Returns:
        A dict from the name of each stage with taps to a list of symbolic tensors. ``"head"`` stands for the norm
        behind the last block, where that belongs to the head. Empty where there are nothing but vectors.
    """
    import keras

    output = flat.outputs[0]
    # The stages are those of the model with the usual head.
    with preserve_graph(operations_in(flat)):
        rank = len(output.shape)
        pooled = output if rank == 2 else pooling_layer("avg", rank, name="head_pool")(output)
        last = keras.layers.Dense(1, kernel_initializer="zeros", name="head_classes")(pooled)
        narrow = keras.Model(flat.input, last)
        calls, stages = calls_of(narrow), stages_of(narrow)
    tensors = {id(t): t for node in graph_nodes(flat) for t in node.output_tensors}
    blocks = repeated_blocks(calls)
    keys = _block_outputs(calls, blocks) if blocks else _activations_and_sums(calls)
    keys = [key for key in keys if key in tensors and len(tensors[key].shape) in (3, 4)]
    if not keys and rank == 2:
        return {}
    if id(output) not in keys:
        # Features that the backbone pools itself would be there twice.
        read = {k for c in calls if id(output) in c.outputs and "Global" in type(c.layer).__name__ for k in c.inputs}
        keys = [key for key in keys if key not in read] + [id(output)]
    # A tap belongs to the last stage whose weights it depends on: it changes when that stage is trained.
    first = {}
    for i, call in enumerate(calls):
        if weights_of(call.layer):
            first.setdefault(id(call.layer), i)
    begins = [min((first[id(layer)] for layer in stage.layers if id(layer) in first), default=0) for stage in stages]
    made_at = {key: i for i, call in enumerate(calls) for key in call.outputs}
    groups = {}
    for key in sorted(keys, key=lambda key: made_at.get(key, -1)):
        stage = stages[max(0, bisect.bisect_right(begins, made_at.get(key, -1)) - 1)]
        groups.setdefault(stage.name, []).append(tensors[key])
    return groups


def _concatenate(tensors, name):
    from keras import layers

    return layers.Concatenate(dtype="float32", name=name)(tensors)


def _block_outputs(calls, blocks):
    """Return the tensor that leaves each repeated block: the last made in it that is read behind it."""
    tail = [i for i in range(max(blocks) + 1, len(calls)) if weights_of(calls[i].layer)]
    last = after_last_block(calls, blocks, tail)
    keys = []
    for begin, end in zip(blocks, [*blocks[1:], len(calls) if last is None else last]):
        read = {key for call in calls[end:] for key in call.inputs}
        made = [key for call in calls[begin:end] for key, s in zip(call.outputs, call.shapes) if len(s) > 2]
        keys += [key for key in made if key in read][-1:]
    return keys


def _activations_and_sums(calls):
    """Return the outputs of activations and residual sums, but for those of one position of a larger map."""
    squeezed, made_from, keys = set(), {}, []
    for call in calls:
        if _squeezes(call) or (call.inputs and squeezed.issuperset(call.inputs)):
            squeezed.update(call.outputs)
            continue
        if len(call.inputs) == 1 and not weights_of(call.layer):
            made_from[call.outputs[0]] = call.inputs[0]
        if _is_activation(call, made_from) or _is_sum(call):
            keys.append(call.outputs[0])
    return keys


def _squeezes(call):
    """Say whether a call pools over all positions."""
    kind = type(call.layer).__name__
    if kind.startswith("AveragePooling"):  # by a window as large as the map; one that only makes it smaller is small
        return math.prod(n or 1 for n in call.input_shapes[0]) > 9 * math.prod(n or 1 for n in call.shapes[0])
    return kind.startswith("Global") or kind in _SQUEEZING


def _is_activation(call, made_from):
    name = activation_of(call.layer)
    if name is not None:
        return name not in _GATES
    # A product may be one too: x * sigmoid(x) is swish, x * relu6(x + 3) / 6 its hard form.
    if type(call.layer).__name__ != "Multiply" or len(call.inputs) != 2:
        return False
    a, b = call.inputs
    return b in _origins(a, made_from) or a in _origins(b, made_from)


def _origins(key, made_from):
    """Yield the tensors that one is made from, by calls of one input without weights."""
    while key in made_from:
        key = made_from[key]
        yield key


def _is_sum(call):
    return type(call.layer).__name__ == "Add" and len(call.inputs) > 1 and len(set(call.input_shapes)) == 1


def activation_of(operation):
    """Return the name of the activation that a layer or operation ends in, in lower case without underscores.

    Args:
        operation: layer or operation of ``keras.ops``.

    Returns:
        str, such as ``"relu"`` or ``"linear"``; ``None`` for what is no activation and has none.

    Example:
        >>> import keras
        >>> from thaw.models.taps import activation_of
        >>> [activation_of(layer) for layer in (keras.layers.ReLU(6.0), keras.layers.Dense(2), keras.layers.Flatten())]
        ['relu', 'linear', None]
    """
    import keras
    from keras import layers

    while isinstance(operation, (layers.TimeDistributed, layers.SpectralNormalization)):
        operation = operation.layer
    activation = getattr(operation, "activation", None)
    if activation is None:
        name = type(operation).__name__
        known = {n.replace("_", "").lower() for n in dir(keras.activations)} | {"prelu"}
        return name.lower() if name.lower() in known else None
    name = (getattr(activation, "__name__", None) or type(activation).__name__).replace("_", "").lower()
    return {"softmaxv2": "softmax"}.get(name, name)  # of TensorFlow
