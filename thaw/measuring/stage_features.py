"""What leaves each stage of a model for every example, in one pass."""

from __future__ import annotations

import inspect
import itertools

import numpy as np

from thaw.examples import Examples
from thaw.forward import forward
from thaw.number import all_finite, whole_number
from thaw.stages import HEAD, calls_of, crossing_bytes, graph_of, is_graph, is_of_keras, nodes_of, stages_of


def stage_features(model, data, *, most=None, batch_size=32, seed=0):
    """Run a model once over the data and keep what crosses each stage boundary, as one vector for each example.

    Feature maps are averaged over their positions, sequences over their steps (those that their mask leaves); where
    several tensors cross, their vectors stand side by side. The model is only called, as in inference, in the
    fastest runtime (:func:`thaw.forward.forward`): nothing in it changes.

    Args:
        model: a functional or sequential ``keras.Model``, flat or nested, with or without a head.
        data: :class:`thaw.Examples` (not augmented), arrays ``(x, y)``, or a batched ``tf.data.Dataset`` of
            ``(x, y)``.
        most: use this many examples at most: drawn at random, of a data set the first. ``None`` for all.
        batch_size: examples in a batch; a data set keeps its own.
        seed: of the drawing.

    Returns:
        ``(features, y)``: a dict from the name of each stage but the head, from input to output, to a float32 array
        ``(n, width)``; and the labels as they are in the data.

    Raises:
        ValueError: a model whose graph cannot be read or that has nothing but a head; data without labels or of
            another shape than the model's input; or features that are not finite.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.measuring.stage_features import stage_features
        >>> net = [keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3), keras.layers.Conv2D(6, 3, strides=2)]
        >>> features, y = stage_features(keras.Sequential(net), (np.ones((5, 8, 8, 3), "float32"), np.arange(5)))
        >>> {name: rows.shape for name, rows in features.items()}
        {'stage1': (5, 4), 'stage2': (5, 6)}
    """
    most = None if most is None else whole_number("most", most, 1)
    boundaries = _boundaries(model)
    batches, examples = _batches(data, batch_size, most, seed)

    def at_boundaries(x, training=False):
        values = _run(model, x)
        return [_vector([values[key] for key in keys]) for keys in boundaries.values()]

    run, rows, labels, left = None, [], [], most
    for batch in batches:
        if not isinstance(batch, (tuple, list)) or len(batch) < 2:
            raise ValueError("The data have inputs and no labels; expected (x, y).")
        y = np.asarray(batch[1])
        if y.ndim == 0:
            raise ValueError("The data set is not batched; write data.batch(32).")
        if run is None:  # a mistake in the shape is said here, and not inside a trace
            _given(graph_of(model), batch[0])
        if not all_finite(batch[0]):
            raise ValueError("The inputs hold NaN or infinity; expected numbers. Leave these examples out.")
        keep = len(y) if left is None else min(len(y), left)
        for begin in range(0, keep, run.batch_size if run else len(y)):
            if run is None:
                run = forward(at_boundaries, len(y), examples=examples)
            end = min(begin + run.batch_size, keep)
            rows.append(run(_each(lambda a: a[begin:end], batch[0])))  # noqa: B023
        labels.append(y[:keep])
        left = None if left is None else left - keep
        if left == 0:
            break
    if not rows:
        raise ValueError("There are no examples; expected at least one batch.")
    features = {name: np.concatenate([out[i] for out in rows]) for i, name in enumerate(boundaries)}
    for name, found in features.items():
        wrong = int((~np.isfinite(found)).any(axis=1).sum())
        if wrong:
            raise ValueError(
                f"{name} of {model.name} puts out NaN or infinity for {wrong} of {len(found)} examples; expected "
                "numbers. Its weights may be damaged, or the pictures scaled wrongly: look at its preprocessing."
            )
    return features, np.concatenate(labels)


def _boundaries(model):
    """For each stage but the head, the tensors that leave it, by the id they have in the graph."""
    calls = calls_of(model)
    if calls is None:
        raise ValueError(
            f"{model.name} is a subclassed model, whose graph cannot be read; expected a functional or sequential one."
        )
    _check(model)
    stages, sizes = stages_of(model), crossing_bytes(model, calls)
    if [stage.name for stage in stages] == [HEAD]:
        raise ValueError(f"{model.name} is all head; expected at least one stage below it to look at.")
    first = {}
    for i, call in enumerate(calls):
        first.setdefault(id(call.layer), i)
    found = {}
    for stage, above in itertools.pairwise(stages):
        # Between the last layer of the one and the first of the other there are only operations such as x + y, which
        # no stage lists: the boundary is where as many bytes cross as the stage above says.
        low = max(first[id(layer)] for layer in stage.layers) + 1
        high = min(first[id(layer)] for layer in above.layers)
        place = max((p for p in range(low, high + 1) if sizes[p] == above.crossing), default=high)
        made = dict.fromkeys(key for call in calls[:place] for key in call.outputs)
        read = {key for call in calls[place:] for key in call.inputs}
        read |= {id(t) for t in model.outputs}
        found[stage.name] = [key for key in made if key in read]
    if stages[-1].name != HEAD:
        found[stages[-1].name] = [id(t) for t in model.outputs]
    return found


def _check(model):
    """Does the graph say all that is computed?"""

    if not is_of_keras(model, "call"):
        raise ValueError(f"{model.name} has a call of its own, so that its graph does not say what is computed.")
    for node in nodes_of(model):
        if is_graph(node.operation):
            _check(node.operation)


def _run(model, x):
    """Every tensor of the graph, by id, nested models opened, as in inference.

    Nothing is built, so that no layer notes it; and in the scope what a layer changes of its own stays in there.
    """
    import keras

    found = {}
    with keras.StatelessScope():
        graph = graph_of(model)
        for tensor, value in zip(model.outputs, _compute(graph, _given(graph, x), found)):
            found.setdefault(id(tensor), value)
    return found


def _compute(graph, given, found):
    import keras

    values = dict(zip(map(id, graph.inputs), given))
    for node in nodes_of(graph):
        if node.is_input:
            continue
        operation = node.operation
        args, options = node.arguments.fill_in(values)
        if is_graph(operation):
            inner = graph_of(operation)
            out = _compute(inner, _given(inner, args[0] if args else options["inputs"]), found)
        else:
            if isinstance(operation, keras.Layer) and "training" in inspect.signature(operation.call).parameters:
                options = options | {"training": False}
            out = keras.tree.flatten(operation(*args, **options))
        values.update(zip(map(id, node.outputs), out))
    for key, value in values.items():  # of a model that is used twice, the first time
        found.setdefault(key, value)
    return [values[id(t)] for t in graph.outputs]


def _given(graph, x):
    """Inputs in the order, type and rank that a graph takes them in."""
    import keras

    if isinstance(x, dict) and not isinstance(graph.input, dict):
        x = [x[t.name] for t in graph.inputs]
    given = []
    for tensor, own in zip(keras.tree.flatten(x), graph.inputs, strict=True):
        mask = getattr(tensor, "_keras_mask", None)
        if keras.backend.standardize_dtype(tensor.dtype) != own.dtype:
            tensor = keras.ops.cast(tensor, own.dtype)
        if len(tensor.shape) == len(own.shape) - 1 and own.shape[-1] == 1:
            tensor = keras.ops.expand_dims(tensor, -1)
        pairs = list(zip(tensor.shape[1:], own.shape[1:]))  # a layer would compute on another size without a word
        if len(tensor.shape) != len(own.shape) or any(None not in p and p[0] != p[1] for p in pairs):
            raise ValueError(
                f"{graph.name} is given inputs of shape {tuple(tensor.shape[1:])}; expected {tuple(own.shape[1:])}. "
                "Resize the examples, or make the model for their size."
            )
        if mask is not None:
            tensor._keras_mask = mask
        given.append(tensor)
    return given


def _vector(tensors):
    """What crosses, as one vector for each example."""
    import keras

    floats = [t for t in tensors if "float" in keras.backend.standardize_dtype(t.dtype)]
    vectors = [_pooled(t) for t in floats or tensors]
    return vectors[0] if len(vectors) == 1 else keras.ops.concatenate(vectors, axis=-1)


def _pooled(tensor):
    import keras
    from keras import ops

    mask = getattr(tensor, "_keras_mask", None)
    tensor = ops.cast(tensor, "float32")
    rank = len(tensor.shape)
    if rank < 3:
        return tensor if rank == 2 else ops.expand_dims(tensor, -1)
    if rank == 3 and mask is not None:
        counts = ops.expand_dims(ops.cast(mask, "float32"), -1)
        return ops.sum(tensor * counts, axis=1) / ops.maximum(ops.sum(counts, axis=1), 1.0)
    channels = 1 if rank > 3 and keras.config.image_data_format() == "channels_first" else rank - 1
    return ops.mean(tensor, axis=[axis for axis in range(1, rank) if axis != channels])


def _batches(data, batch_size, most, seed):
    """Batches of the data, and how many examples there are, ``None`` where that is not known."""
    data = Examples.of(data)
    if isinstance(data, Examples):
        if most is not None and len(data) > most:
            drawn = np.random.default_rng(seed).choice(len(data), most, replace=False)
            data = data.take(np.sort(drawn))
        return data.ordered(min(batch_size, len(data))), len(data)
    import tensorflow as tf

    if not isinstance(data, tf.data.Dataset):
        raise ValueError(
            f"The data are a {type(data).__name__}; expected thaw.Examples, arrays (x, y) or a tf.data.Dataset."
        )
    if most is None and int(data.cardinality()) == tf.data.INFINITE_CARDINALITY:
        raise ValueError("The data set never ends; give one without repeat(), or say how many examples at most.")
    batches = int(data.cardinality())
    return data, most if batches < 0 else batches * batch_size


def _each(function, x):
    import keras

    return keras.tree.map_structure(function, x)
