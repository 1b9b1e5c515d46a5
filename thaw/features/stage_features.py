"""Features at the end of every stage, and the norm of the loss's gradient at each."""

from __future__ import annotations

import itertools
import math

import numpy as np

from thaw._keras import compile_settings, graph_nodes, learnable_variables, mask_of, sublayers
from thaw._validation import all_finite, as_int, as_seed, check_model
from thaw.data.conversion import as_dataset
from thaw.features.inference import inference_runner
from thaw.features.split import CannotSplit, flatten_model, operations_in, preserve_graph, submodel
from thaw.models.inputs import check_inputs
from thaw.models.stages import HEAD, calls_of, crossing_bytes, data_format_of, is_graph, stages_of
from thaw.models.state import preserve_variables, stateful_layers
from thaw.models.wide_heads import backbone_path


def stage_features(model, x, y=None, *, max_examples=None, batch_size=32, seed=0, progress=None):
    """Run a model once over the data and pool the features at each stage boundary into one vector for each example.

    Feature maps are averaged over their positions, sequences over the steps that their mask leaves; where several
    tensors cross a boundary, their vectors are concatenated. The model is only called, in inference, in the fastest
    runtime (:func:`thaw.features.inference.inference_runner`): nothing in it changes.

    Args:
        model: a functional or sequential ``keras.Model``, flat or nested, with or without a head.
        x: inputs, as :func:`thaw.as_dataset` takes them; a :class:`thaw.Dataset`, which is not augmented; or a stream.
        y: labels. Default ``None``: in ``x``.
        max_examples: use this many examples at most, drawn at random; of a stream the first. Default ``None``: all.
        batch_size: examples in a batch; a stream keeps its own. Default 32.
        seed: seed of the drawing. Default 0.
        progress: called with ``(done, total)`` examples after each batch; ``total`` is ``None`` for a stream of unknown
            length. Default ``None``.

    Returns:
        ``(features, y)``: a dict from the name of each stage but the head, from input to output, to a float32 array
        ``(n, width)``; and the labels.

    Raises:
        ValueError: a model whose graph cannot be read, that has nothing but a head, or a stateful layer; data without
            labels or of another shape than the model's input; or features that are not finite.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.transfer import stage_features
        >>> net = [keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3), keras.layers.Conv2D(6, 3, strides=2)]
        >>> features, y = stage_features(keras.Sequential(net), np.ones((5, 8, 8, 3), "float32"), np.arange(5))
        >>> {name: rows.shape for name, rows in features.items()}
        {'stage1': (5, 4), 'stage2': (5, 6)}
    """
    check_model(model)
    as_seed(seed)
    max_examples = None if max_examples is None else as_int("max_examples", max_examples, 1)
    dataset = as_dataset(x, y, labelled=True)
    for layer in stateful_layers(model)[:1]:
        raise ValueError(
            f"{layer.name} of {model.name} is stateful: its features of an example depend on the batch before, so that "
            "they say nothing about the example; build it with stateful=False."
        )
    flat, names, pooled = pooled_stages(model)
    batches, examples = _labelled_batches(dataset, batch_size, max_examples, seed)
    runner, rows, labels, left, done = None, [], [], max_examples, 0
    for batch in batches:
        inputs, targets = batch[0], np.asarray(batch[1])
        if runner is None:  # an error about the shape is raised here, and not inside a trace
            check_inputs(flat, inputs)
            runner = inference_runner(pooled, len(targets), examples=examples)
        if not dataset.random_access and not all_finite(inputs):
            raise ValueError("The inputs hold NaN or infinity; expected numbers. Leave these examples out.")
        count = len(targets) if left is None else min(len(targets), left)
        for start in range(0, count, runner.batch_size):
            rows.append(runner(_slice(inputs, start, min(start + runner.batch_size, count))))
        labels.append(targets[:count])
        left, done = None if left is None else left - count, done + count
        if progress is not None:
            progress(done, examples)
        if left == 0:
            break
    if not rows:
        raise ValueError("There are no examples; expected at least one batch.")
    features = {name: np.concatenate([outputs[i] for outputs in rows]) for i, name in enumerate(names)}
    for name, vectors in features.items():
        broken = int((~np.isfinite(vectors)).any(axis=1).sum())
        if broken:
            raise ValueError(
                f"{name} of {model.name} puts out NaN or infinity for {broken} of {len(vectors)} examples; expected "
                "numbers. Its weights may be damaged, or the inputs scaled wrongly: look at its preprocessing."
            )
    return features, np.concatenate(labels)


def stage_outputs(model, x):
    """Build a model that returns the output of every stage.

    It shares the layers of the model and leaves no nodes on them. A subclassed model is called once on symbolic inputs,
    which gives its graph.

    Args:
        model: a built ``keras.Model``.
        x: one batch of inputs, for the shapes of a subclassed model.

    Returns:
        ``(stages, outputs)``: the tuple of :func:`thaw.stages_of`, and a ``keras.Model`` with one output for each: that
        of its last layer (the first tensor, where it has several; the first call, where it is used more than once).

    Raises:
        ValueError: the last layer of a stage is not called, or the ``call`` of a subclassed model cannot be traced.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.features.stage_features import stage_outputs
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(2)])
        >>> stages, outputs = stage_outputs(model, np.zeros((3, 4)))
        >>> [tuple(out.shape) for out in outputs(np.zeros((3, 4)))]
        [(3, 8), (3, 2)]
    """
    stages = stages_of(model)
    try:
        graph = flatten_model(model, training=False)
    except CannotSplit:
        graph = _trace_graph(model, x)
    made = {}
    for node in graph_nodes(graph):
        made.setdefault(id(node.operation), node.outputs[0])
    missing = [stage.name for stage in stages if id(stage.layers[-1]) not in made]
    if missing:
        raise ValueError(
            f"{model.name} does not call the last layer of {', '.join(missing)}; expected a model that uses all its "
            "layers."
        )
    return stages, submodel(graph, None, [made[id(stage.layers[-1])] for stage in stages])


def _trace_graph(model, x):
    """Call a subclassed model on symbolic inputs, and return the graph of that call as a functional model."""
    import keras

    def symbolic(a):
        dtype = keras.backend.standardize_dtype(a.dtype)
        # A layer casts what it is given to its own float type.
        return keras.Input(a.shape[1:], dtype=model.compute_dtype if "float" in dtype else dtype)

    inputs = keras.tree.map_structure(symbolic, x)
    layers = sublayers(model)
    inner = [operation for layer in layers if is_graph(layer) for operation in operations_in(layer)]
    try:
        with preserve_graph([*layers, *inner]):
            return keras.Model(inputs, model.call(inputs), name=model.name)
    except Exception as error:  # whatever the user's code raises for symbolic inputs
        raise ValueError(
            f"{model.name} is a subclassed model whose call cannot be traced "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]}); expected one that uses keras.layers and "
            "keras.ops only."
        ) from error


def pooled_stages(model):
    """Build a function that computes one vector for each stage boundary.

    Args:
        model: as in :func:`stage_features`.

    Returns:
        ``(flat, names, pooled)``: the model without nesting; the name of each stage but the head; and a function of
        inputs, called like a model, that returns the vector at the end of each of them.
    """
    flat, boundaries = _stage_boundaries(model)
    return flat, tuple(boundaries), _pooled_at(flat, boundaries.values())


def _stage_boundaries(model):
    """Return the flat model, and for each stage but the head the list of its tensors that leave the stage."""
    flat = flatten_model(model, training=False)
    stages, calls = stages_of(flat), backbone_path(calls_of(flat))
    sizes = crossing_bytes(flat, calls)
    if [stage.name for stage in stages] == [HEAD]:
        raise ValueError(f"{model.name} is all head; expected at least one stage below it.")
    first_call = {}
    for i, call in enumerate(calls):
        first_call.setdefault(id(call.layer), i)
    tensors = {id(t): t for node in graph_nodes(flat) for t in node.outputs}
    boundaries = {}
    for stage, above in itertools.pairwise(stages):
        # Between the last layer of one stage and the first of the next there are only operations such as x + y, which
        # no stage lists: the boundary is where as many bytes cross as the stage above says.
        low = max(first_call[id(layer)] for layer in stage.layers) + 1
        high = min(first_call[id(layer)] for layer in above.layers)
        position = max((p for p in range(low, high + 1) if sizes[p] == above.crossing), default=high)
        made = dict.fromkeys(key for call in calls[:position] for key in call.outputs)
        read = {key for call in calls[position:] for key in call.inputs} | {id(t) for t in flat.outputs}
        boundaries[stage.name] = [tensors[key] for key in made if key in read]
    if stages[-1].name != HEAD:
        boundaries[stages[-1].name] = list(flat.outputs)
    return flat, boundaries


def _pooled_at(flat, boundaries):
    """Return a function, called like a model, that computes one vector for each boundary."""
    import keras

    boundaries = list(boundaries)
    tensors = list({id(t): t for boundary in boundaries for t in boundary}.values())
    part, data_format = submodel(flat, None, tensors), data_format_of(flat.layers)

    def pooled(x, training=False):
        with keras.StatelessScope():  # variables that a layer changes of its own are changed in there only
            values = dict(zip(map(id, tensors), keras.tree.flatten(part(x, training=training))))
        return [_vector([values[id(t)] for t in boundary], data_format) for boundary in boundaries]

    return pooled


def _vector(tensors, data_format):
    """Concatenate what crosses a boundary into one vector for each example."""
    import keras

    floats = [t for t in tensors if "float" in keras.backend.standardize_dtype(t.dtype)]
    vectors = [_pooled(t, data_format) for t in floats or tensors]
    return vectors[0] if len(vectors) == 1 else keras.ops.concatenate(vectors, axis=-1)


def _pooled(tensor, data_format):
    from keras import ops

    mask = mask_of(tensor)
    tensor = ops.cast(tensor, "float32")
    rank = len(tensor.shape)
    if rank < 3:
        return tensor if rank == 2 else ops.expand_dims(tensor, -1)
    if rank == 3 and mask is not None:
        counts = ops.expand_dims(ops.cast(mask, "float32"), -1)
        return ops.sum(tensor * counts, axis=1) / ops.maximum(ops.sum(counts, axis=1), 1.0)
    channels = 1 if rank > 3 and data_format == "channels_first" else rank - 1
    return ops.mean(tensor, axis=[axis for axis in range(1, rank) if axis != channels])


def _labelled_batches(dataset, batch_size, max_examples, seed):
    """Return batches of the data, and the number of examples; ``None`` where it is unknown."""
    if dataset.random_access:
        if max_examples is not None and len(dataset) > max_examples:
            drawn = np.random.default_rng(seed).choice(len(dataset), max_examples, replace=False)
            dataset = dataset.take(np.sort(drawn))
        return dataset.ordered(min(batch_size, len(dataset))), len(dataset)
    import tensorflow as tf

    batches = int(dataset.batches.cardinality())
    if max_examples is None and batches == tf.data.INFINITE_CARDINALITY:
        raise ValueError("The data set never ends; give one without repeat(), or max_examples.")
    return dataset.batches, max_examples if batches < 0 else batches * batch_size


def _slice(x, start, end):
    import keras

    return keras.tree.map_structure(lambda a: a[start:end], x)


def relative_gradient_norm(model, x, y=None, *, batches=8, batch_size=32, seed=0):
    """Compute the norm of the loss's gradient at each stage relative to the norm of its weights.

    Where the data have shifted, the gradient is largest at the stage that the shift concerns: Auto-RGN (Lee et al.
    2022) scales the learning rate of each layer by this ratio. It is a hint and no proof; a stage of few weights near
    zero has a high ratio whatever the shift. The model is only called, in inference: nothing in it changes.

    Args:
        model: a built and compiled ``keras.Model`` with one output; its loss is used.
        x: inputs, as :func:`thaw.as_dataset` takes them, or a :class:`thaw.Dataset`, which is not augmented.
        y: labels. Default ``None``: in ``x``.
        batches: number of batches, drawn at random. Default 8.
        batch_size: examples in a batch. Default 32.
        seed: seed of the drawing. Default 0.

    Returns:
        A dict from the name of each stage to its ratio, the median over the batches.

    Raises:
        ValueError: the model is not compiled with a single loss, or the data have no labels or no random access.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.transfer import relative_gradient_norm
        >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(4), keras.layers.Dense(1)])
        >>> net.compile("sgd", "mse")
        >>> list(relative_gradient_norm(net, np.ones((8, 2), "float32"), np.ones((8, 1), "float32")))
        ['stage1', 'head']
    """
    import keras
    import tensorflow as tf

    loss = compile_settings(model)["loss"] if model.compiled else None
    if loss is None or isinstance(loss, (dict, list, tuple)):
        raise ValueError(f"{model.name} is not compiled with one loss; write model.compile(optimizer, loss) first.")
    loss = keras.losses.get(loss)
    dataset = as_dataset(x, y, labelled=True)
    if not dataset.random_access:
        raise ValueError(f"The data are a {type(x).__name__}; expected arrays or a thaw.Dataset.")
    batch_size = min(batch_size, len(dataset))
    count = min(len(dataset) // batch_size, batches) * batch_size
    drawn = np.random.default_rng(seed).choice(len(dataset), count, replace=False)
    stages = stages_of(model)
    # Weights that their layer would train if it were trainable; statistics are not among them.
    learnable = {id(v) for layer in sublayers(model) for v in learnable_variables(layer)}
    weights = [[w for layer in stage.layers for w in layer.weights if id(w) in learnable] for stage in stages]
    values = [w.value for stage in weights for w in stage]

    def gradient_norms(x, y):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            p = model(x, training=False)
            if p.shape.rank == y.shape.rank + 1 and p.shape[-1] == 1:  # one number for each example, as fit takes it
                y = tf.expand_dims(y, -1)
            value = tf.reduce_mean(loss(y, p))
        gradients = iter(tape.gradient(value, values, unconnected_gradients="zero"))
        squares = ([tf.reduce_sum(tf.square(tf.cast(next(gradients), tf.float32))) for _ in stage] for stage in weights)
        return [tf.sqrt(sum(stage, tf.constant(0.0))) for stage in squares]

    with preserve_variables(model.non_trainable_variables):
        traced = tf.function(gradient_norms, jit_compile=False)
        norms = [[float(n) for n in traced(x, y)] for x, y, *_ in dataset.take(drawn).ordered(batch_size)]
    sizes = [math.sqrt(sum(float((np.asarray(w, np.float64) ** 2).sum()) for w in stage)) for stage in weights]
    ratios = np.median(np.asarray(norms), axis=0) / np.maximum(sizes, 1e-12)
    return {stage.name: float(ratio) for stage, ratio in zip(stages, ratios)}
