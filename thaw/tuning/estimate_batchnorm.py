"""BatchNorm's statistics, measured anew for weights that no training has led to."""

import contextlib
import dataclasses

import numpy as np

from thaw.examples import Examples
from thaw.forward import held
from thaw.stages import calls_of, sublayers


def estimate_batchnorm(model, data, layers=None, *, batch_size=128):
    """Give BatchNorm layers the mean and variance, over all of the data, of what arrives at them.

    Averaged weights make other activations than the weights that they were averaged from, and the statistics have
    to be measured again (Izmailov et al. 2018). Here they are no moving averages: in one pass, the mean and the
    variance over every position of every example are pooled over the batches. Meanwhile the layers in front
    normalise by the batch at hand, as they do in training. Where all examples go into one batch, the result is
    exact: in inference each layer then normalises by the mean and variance of just what arrives at it. In several
    batches that holds for a layer with no other in front of it, and for the others more nearly the larger the batches
    are.

    Dropout is off, and nothing but these statistics changes: no ``trainable`` flag, no random state. After an
    error or an interruption they are what they were before.

    Args:
        model: a built ``keras.Model``; compiled or not.
        data: :class:`thaw.Examples` (read in a mixed order, not augmented), arrays ``x`` or ``(x, y)``, or a batched,
            finite ``tf.data.Dataset``. A few hundred examples of what the model is to work on.
        layers: the BatchNorm layers; ``None`` for all of the model's.
        batch_size: examples in a batch; as many as memory allows.

    Returns:
        The layers whose statistics were measured, as a tuple.

    Raises:
        ValueError: there are no examples, it is something else, or what arrives at a layer is not finite.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.tuning.estimate_batchnorm import estimate_batchnorm
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.BatchNormalization()])
        >>> _ = estimate_batchnorm(model, np.array([[1.0], [2.0], [6.0]], "float32"))
        >>> [round(float(v[0]), 3) for v in model.non_trainable_variables]
        [3.0, 4.667]
    """
    layers = batchnorms(model) if layers is None else tuple(layers)
    statistics = {id(v) for layer in layers for v in (layer.moving_mean, layer.moving_variance)}
    others = [v for v in model.non_trainable_variables if id(v) not in statistics]
    start = [(v, v.numpy()) for layer in layers for v in (layer.moving_mean, layer.moving_variance)]
    try:
        with held(others):
            found = _measured(model, _batches(data, batch_size), layers) if layers else {}
            for layer, (mean, variance) in found.items():
                layer.moving_mean.assign(mean)
                layer.moving_variance.assign(variance)
    except BaseException:
        for variable, value in start:
            variable.assign(value)
        raise
    return tuple(found)


def batchnorms(model):
    """All BatchNorm layers of a model, also those inside other layers, as a tuple."""
    import keras

    return tuple(layer for layer in sublayers(model) if isinstance(layer, keras.layers.BatchNormalization))


def changed_batchnorms(model, versions):
    """The BatchNorm layers at which something else arrives in one version of the weights than in another.

    A layer whose inputs come from equal weights is left out, whatever its own statistics are.

    Args:
        model: a built ``keras.Model``.
        versions: several lists of arrays in the order of ``model.weights``.

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
        return batchnorms(model) if differ else ()
    found, changed = {}, set()
    for call in calls:
        inside = {id(layer): layer for layer in _batchnorms_in(call.layer)}
        own = {id(w) for w in getattr(call.layer, "weights", ())} & differ
        arrives = not changed.isdisjoint(call.inputs)
        # In a layer made of layers nobody can see what stands in front of its BatchNorm.
        if arrives or (own and id(call.layer) not in inside):
            found.update(inside)
        if arrives or own:
            changed.update(call.outputs)
    return tuple(found.values())


def _batchnorms_in(layer):
    import keras

    inside = sublayers(layer) if isinstance(layer, keras.layers.Layer) else []
    return [inner for inner in inside if isinstance(inner, keras.layers.BatchNormalization)]


def _measured(model, batches, layers):
    """Mean and variance of what arrives at each layer that is called, float64, over all of the data."""
    import keras
    import tensorflow as tf

    order, sums, examples = [], {}, 0

    def moments(x):
        seen = []
        with _listening(layers, seen):
            model(x, training=False)
        order[:] = [layer for layer, _ in seen]
        return [found for _, found in seen]

    spec = keras.utils.unpack_x_y_sample_weight(batches.element_spec)[0]
    traced = tf.function(moments, input_signature=[spec], jit_compile=False).get_concrete_function()
    for batch in batches:
        flat = tf.nest.flatten(keras.utils.unpack_x_y_sample_weight(batch)[0])
        examples += len(flat[0])
        for layer, found in zip(order, traced(*flat)):
            _add(sums, layer, *(np.asarray(value, np.float64) for value in found))
    if not examples:
        raise ValueError("There are no examples; expected at least one to measure BatchNorm's statistics on.")
    result = {layer: (mean, squares / count) for layer, (count, mean, squares) in sums.items() if count.any()}
    for layer, values in result.items():
        if not all(np.isfinite(value).all() for value in values):
            raise ValueError(
                f"NaN or infinity arrives at {layer.name}; expected numbers. Look for inputs that are not finite, or "
                "for weights that are damaged."
            )
    return result


@contextlib.contextmanager
def _listening(layers, seen):
    """Let each layer note the moments of what arrives, and normalise by them.

    The function is put on the instance while the model is traced: this reaches layers wherever they are, inside
    other layers too.
    """

    def listening(layer):
        def noted(inputs, training=None, mask=None):
            from keras import ops

            x = ops.cast(inputs, "float64" if layer.moving_mean.dtype == "float64" else "float32")
            count, mean, variance = _moments(x, layer.axis, mask)
            seen.append((layer, (count, mean, variance)))
            out = ops.batch_normalization(
                x, mean, variance, layer.axis, offset=layer.beta, scale=layer.gamma, epsilon=layer.epsilon
            )
            return ops.cast(out, layer.compute_dtype)

        return noted

    try:
        for layer in layers:
            object.__setattr__(layer, "call", listening(layer))  # not through Keras' own bookkeeping
        yield
    finally:
        for layer in layers:
            vars(layer).pop("call", None)


def _moments(x, axis, mask):
    """Number of positions, and mean and variance over them for each channel."""
    from keras import ops

    axes = [i for i in range(len(x.shape)) if i != axis % len(x.shape)]
    if mask is None:
        mean, variance = ops.moments(x, axes)
        return ops.cast(ops.size(x), x.dtype) / x.shape[axis] * ops.ones_like(mean), mean, variance
    weight = ops.cast(ops.broadcast_to(ops.expand_dims(mask, -1), ops.shape(x)), x.dtype)
    x = ops.where(weight > 0, x, 0)
    count = ops.sum(weight, axes, keepdims=True)
    some = ops.maximum(count, 1)
    mean = ops.sum(x, axes, keepdims=True) / some
    variance = ops.sum(weight * (x - mean) ** 2, axes, keepdims=True) / some
    return tuple(ops.reshape(value, (-1,)) for value in (count, mean, variance))


def _add(sums, layer, count, mean, variance):
    """Count, mean and sum of squares of all batches so far (Chan, Golub and LeVeque 1983)."""
    before, old, squares = sums.get(layer, (0.0, 0.0, 0.0))
    total = np.maximum(before + count, 1)
    step = mean - old
    squares = squares + variance * count + step**2 * before * count / total
    sums[layer] = (before + count, old + step * count / total, squares)


def _batches(data, batch_size):
    """Batches in an order that mixes the classes, because layers normalise by them."""
    import tensorflow as tf

    if isinstance(data, (tuple, list)):
        data = data[0]
    if isinstance(data, np.ndarray):
        data = Examples(x=data, y=np.zeros(len(data), np.int32))
    if isinstance(data, Examples):
        plain = dataclasses.replace(data, augment=None)
        return plain.epochs(batch_size, seed=0).take(plain.steps(batch_size))
    if not isinstance(data, tf.data.Dataset):
        raise ValueError(f"data is {type(data).__name__}; expected Examples, arrays, or a batched tf.data.Dataset.")
    return data
