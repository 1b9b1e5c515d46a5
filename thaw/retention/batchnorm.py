"""Estimate BatchNorm statistics on other data."""

import numpy as np

from thaw._keras import mask_of, run_graph, set_mask, sublayers
from thaw.data.conversion import as_dataset
from thaw.models.stages import calls_of, is_graph, is_of_keras
from thaw.models.state import preserve_variables
from thaw.training.freezing import batchnorm_layers, head_norms


def estimate_batchnorm(model, x, layers=None, *, batch_size=128):
    """Set the statistics of BatchNorm layers to the mean and variance of their inputs over all of the data.

    Averaged weights make other activations than the weights that they were averaged from, so that the statistics have
    to be estimated again (Izmailov et al. 2018). Here they are no moving averages: in one pass, mean and variance over
    every position of every example are pooled over the batches, while the layers before it normalise by the batch, as
    in training. Where all examples are one batch, the result is exact: at inference each layer then normalises by the
    mean and variance of just its inputs. In several batches this holds for a layer with no other before it, and
    for the others the more nearly the larger the batches are.

    Dropout is off. Nothing but these statistics changes: no ``trainable`` flag and no random state. After an error or
    an interruption they are restored. A layer that is made of other layers, BatchNorm among them, is measured on a copy
    from its config.

    Args:
        model: a built ``keras.Model``; compiled or not.
        x: inputs, as an array, a tuple or dict of arrays, a :class:`thaw.Dataset` (read shuffled, not augmented), or a
            batched, finite ``tf.data.Dataset``. A few hundred examples are enough.
        layers: a list of BatchNorm layers; ``None`` for all but those of a wide head (see :func:`thaw.attach_head`).
        batch_size: examples in a batch, as many as memory allows. Default 128.

    Returns:
        A tuple of the layers whose statistics were estimated.

    Raises:
        ValueError: there are no examples, inputs of a layer that are not finite, or a layer that cannot be copied.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.retention import estimate_batchnorm
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.BatchNormalization()])
        >>> _ = estimate_batchnorm(model, np.array([[1.0], [2.0], [6.0]], "float32"))
        >>> [round(float(v[0]), 3) for v in model.non_trainable_variables]
        [3.0, 4.667]
    """
    layers = _without_constants(model, batchnorm_layers(model)) if layers is None else layers
    if not layers:
        return ()
    batches = _batches(as_dataset(x), batch_size)
    statistics = {id(v) for layer in layers for v in (layer.moving_mean, layer.moving_variance)}
    with preserve_variables([v for v in model.non_trainable_variables if id(v) not in statistics]):
        estimates = _estimates(model, batches, layers)
    start = [(v, v.numpy()) for layer in layers for v in (layer.moving_mean, layer.moving_variance)]
    try:
        for layer, (mean, variance) in estimates.items():
            layer.moving_mean.assign(mean)
            layer.moving_variance.assign(variance)
    except BaseException:
        for variable, value in start:
            variable.assign(value)
        raise
    return tuple(estimates)


def changed_batchnorms(model, versions):
    """Find the BatchNorm layers whose inputs differ between versions of the weights.

    A layer whose inputs come from equal weights is left out, whatever its own statistics are.

    Args:
        model: a built ``keras.Model``.
        versions: a list of lists of arrays in the order of ``model.weights``.

    Returns:
        A tuple of layers; all of them for a subclassed model whose weights differ, as it has no graph to read.
    """
    first, *rest = versions
    differ = {
        id(variable)
        for variable, value, *others in zip(model.weights, first, *rest)
        if not all(np.array_equal(value, other) for other in others)
    }
    calls = calls_of(model)
    if calls is None:
        return batchnorm_layers(model) if differ else ()
    layers, changed = {}, set()
    for call in calls:
        inside = {id(layer): layer for layer in batchnorm_layers(call.layer)} if hasattr(call.layer, "weights") else {}
        own = {id(w) for w in getattr(call.layer, "weights", ())} & differ
        inputs_changed = not changed.isdisjoint(call.inputs)
        # What comes before a BatchNorm inside a layer made of layers cannot be seen.
        if inputs_changed or (own and id(call.layer) not in inside):
            layers.update(inside)
        if inputs_changed or own:
            changed.update(call.outputs)
    return _without_constants(model, layers.values())


def _without_constants(model, layers):
    """Leave out the layers of a wide head, whose statistics are constants that its weights were found with."""
    constants = {id(layer) for layer in head_norms(model)}
    return tuple(layer for layer in layers if id(layer) not in constants)


def _batches(dataset, batch_size):
    """Batches of inputs, shuffled so that they mix the classes, because layers normalise by them."""
    import keras

    if dataset.random_access:
        plain = dataset.replace(augment=None)
        batches = plain.epochs(batch_size, seed=0).take(plain.steps(batch_size))
    else:
        batches = dataset.ordered(batch_size)
    if isinstance(batches.element_spec, tuple):
        batches = batches.map(lambda *batch: keras.utils.unpack_x_y_sample_weight(batch)[0])
    return batches


def _estimates(model, batches, layers):
    """Estimate mean and variance of the inputs of each layer that is called, float64, over all of the data."""
    import tensorflow as tf

    order, sums, examples = [], {}, 0
    run = _Measurement(layers)

    def moments(x):
        results = run(model, x)
        order[:] = [layer for layer, _ in results]
        return [values for _, values in results]

    traced = tf.function(moments, input_signature=[batches.element_spec], jit_compile=False).get_concrete_function()
    for batch in batches:
        flat = tf.nest.flatten(batch)
        examples += len(flat[0])
        for layer, values in zip(order, traced(*flat)):
            _add(sums, layer, *(np.asarray(value, np.float64) for value in values))
    if not examples:
        raise ValueError("There are no examples; expected at least one to estimate BatchNorm statistics on.")
    estimates = {layer: (mean, squares / count) for layer, (count, mean, squares) in sums.items() if count.any()}
    for layer, values in estimates.items():
        if not all(np.isfinite(value).all() for value in values):
            raise ValueError(
                f"The inputs of {layer.name} hold NaN or infinity; expected numbers. Look for inputs that are not "
                "finite, or for weights that are damaged."
            )
    return estimates


class _Measurement:
    """Runs a model with some BatchNorm layers replaced by ones that normalise by the batch and record its moments."""

    def __init__(self, layers):
        self.wanted = set(map(id, layers))
        self.copies = {}
        self.results = []

    def __call__(self, model, x):
        """Return a list of ``(layer, (count, mean, variance))`` in the order of the calls."""
        self.results = []
        self._replacement(model)(x)
        return self.results

    def _replacement(self, operation):
        import keras

        if not isinstance(operation, keras.Layer):
            return operation
        if id(operation) in self.wanted:
            return lambda inputs, mask=None, **options: self._batchnorm(operation, inputs, mask)
        if self.wanted.isdisjoint(map(id, sublayers(operation))):
            return lambda *inputs, **options: operation(*inputs, **options | {"training": False})
        if is_graph(operation) and is_of_keras(operation, "call"):
            return lambda inputs, **options: run_graph(operation, inputs, self._replacement)
        return lambda *inputs, **options: self._copied(operation, *inputs, **options)

    def _batchnorm(self, layer, inputs, mask):
        from keras import ops

        mask = mask_of(inputs) if mask is None else mask
        x = ops.cast(inputs, layer.compute_dtype)
        x = ops.cast(x, "float64" if layer.moving_mean.dtype == "float64" else "float32")
        count, mean, variance = _moments(x, layer.axis, mask)
        self.results.append((layer, (count, mean, variance)))
        outputs = ops.batch_normalization(
            x, mean, variance, layer.axis, offset=layer.beta, scale=layer.gamma, epsilon=layer.epsilon
        )
        outputs = ops.cast(outputs, layer.compute_dtype)
        if mask is not None:
            set_mask(outputs, mask)
        return outputs

    def _copied(self, layer, *inputs, **options):
        """Call a copy of a layer in training, with momentum 0: its BatchNorm layers then hold the batch's moments."""
        import keras
        import tensorflow as tf
        from keras import ops

        if id(layer) not in self.copies:
            with tf.init_scope():  # outside of the graph that is traced
                self.copies[id(layer)] = _training_copy(layer, self.wanted)
        copy, pairs = self.copies[id(layer)]
        for _, inner in pairs:
            inner.moving_variance.assign(-ops.ones_like(inner.moving_variance))  # stays so where it is not called
        outputs = copy(*inputs, **options | {"training": True})
        examples = ops.cast(ops.shape(keras.tree.flatten(inputs)[0])[0], "float32")
        for original, inner in pairs:
            mean, variance = ops.copy(inner.moving_mean), ops.copy(inner.moving_variance)
            count = ops.where(variance < 0, 0.0, examples)
            self.results.append((original, (count, mean, variance)))
        return outputs


def _training_copy(layer, wanted):
    """Copy a layer with its weights, so that only some of its BatchNorm layers are in training, and no dropout."""
    import keras

    try:
        copy = type(layer).from_config(layer.get_config())
        copy.build_from_config(layer.get_build_config())
        copy.set_weights(layer.get_weights())
        pairs = list(zip(sublayers(layer), sublayers(copy), strict=True))
        matching = all(type(a) is type(b) for a, b in pairs)
    except Exception as error:  # whatever a user's layer raises
        raise ValueError(_no_copy(layer, (str(error).strip() or type(error).__name__).splitlines()[0][:200])) from error
    if not matching:
        raise ValueError(_no_copy(layer, "its layers come in another order"))
    for original, inner in pairs:
        if isinstance(inner, keras.layers.BatchNormalization):
            inner.trainable = id(original) in wanted
            inner.momentum = 0.0
        elif isinstance(inner, keras.layers.Dropout):
            inner.rate = 0.0
    pairs = [(original, inner) for original, inner in pairs if id(original) in wanted]
    for _, inner in pairs:
        inner.moving_mean.assign(np.zeros(inner.moving_mean.shape))
    return copy, pairs


def _no_copy(layer, reason):
    return (
        f"{layer.name} is made of layers, BatchNorm among them, and cannot be copied from its config ({reason}), so "
        "its statistics cannot be estimated; let get_config return every argument of __init__."
    )


def _moments(x, axis, mask):
    """Compute the number of positions, and mean and variance over them for each channel."""
    from keras import ops

    axes = [i for i in range(len(x.shape)) if i != axis % len(x.shape)]
    if mask is None:
        mean, variance = ops.moments(x, axes)
        return ops.cast(ops.size(x), x.dtype) / x.shape[axis] * ops.ones_like(mean), mean, variance
    weight = ops.cast(ops.broadcast_to(ops.expand_dims(mask, -1), ops.shape(x)), x.dtype)
    x = ops.where(weight > 0, x, 0)
    count = ops.sum(weight, axes, keepdims=True)
    divisor = ops.maximum(count, 1)
    mean = ops.sum(x, axes, keepdims=True) / divisor
    variance = ops.sum(weight * (x - mean) ** 2, axes, keepdims=True) / divisor
    return tuple(ops.reshape(value, (-1,)) for value in (count, mean, variance))


def _add(sums, layer, count, mean, variance):
    """Pool count, mean and sum of squares over the batches (Chan, Golub and LeVeque 1983)."""
    count_before, mean_before, squares = sums.get(layer, (0.0, 0.0, 0.0))
    total = np.maximum(count_before + count, 1)
    step = mean - mean_before
    squares = squares + variance * count + step**2 * count_before * count / total
    sums[layer] = (count_before + count, mean_before + step * count / total, squares)
