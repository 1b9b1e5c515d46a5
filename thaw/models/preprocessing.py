"""Put the preprocessing of a backbone inside the model."""

import numpy as np

from thaw._keras import sublayers
from thaw.models.stages import calls_of

# Published conventions by the user's names for them; three of them are those of keras.applications.
KINDS = ("none", "-1..1", "0..1", "caffe", "torch")
_KERAS_MODES = {"-1..1": "tf", "caffe": "caffe", "torch": "torch"}


def preprocess(pixels, like):
    """Scale raw pixels, 0 to 255 in the order red, green, blue, in the way of the pre-training.

    The function ``like`` is applied to a few pixels to read its scale and offset per channel, and whether it reverses
    the channels. These become a ``Rescaling`` layer and ``keras.ops.flip``, which every Keras loads without our code.

    Args:
        pixels: symbolic tensor ``(batch, height, width, 3)``.
        like: a ``preprocess_input`` of ``keras.applications``, or ``"none"``, ``"-1..1"``, ``"0..1"``, ``"caffe"``
            (blue, green, red minus the ImageNet mean) or ``"torch"`` (0..1, then ImageNet mean and standard deviation).

    Returns:
        A symbolic tensor of the same shape; ``pixels`` itself for ``"none"``.

    Raises:
        ValueError: an unknown kind, or a function that is no scale and offset per channel.

    Example:
        >>> import keras
        >>> pixels = keras.Input((8, 8, 3))
        >>> model = keras.Model(pixels, preprocess(pixels, "-1..1"))
        >>> float(model(127.5 * keras.ops.ones((1, 8, 8, 3)))[0, 0, 0, 0])
        0.0
    """
    import keras

    reverse, scale, offset = _read_scaling(_scaling_function(like))
    x = pixels
    if reverse:
        x = keras.ops.flip(x, axis=-1)
    if scale != [1.0] * 3 or offset != [0.0] * 3:
        # float32 also under mixed precision: half precision would round the scaled pixels twice.
        x = keras.layers.Rescaling(scale, offset, dtype="float32", name="preprocessing")(x)
    return x


def _scaling_function(like):
    import keras

    if callable(like):
        return like
    if like == "none":
        return lambda x: x
    if like == "0..1":
        return lambda x: x / 255
    if like in _KERAS_MODES:
        return lambda x: keras.applications.imagenet_utils.preprocess_input(
            x, data_format="channels_last", mode=_KERAS_MODES[like]
        )
    raise ValueError(f"preprocessing={like!r}; expected one of {', '.join(KINDS)}.")


def _read_scaling(function):
    """Return whether a function reverses the channels, and the scale and offset of each output channel."""

    def apply(pixels):
        batch = np.array(pixels, "float64").reshape(1, -1, 1, 3)
        return np.asarray(function(batch), "float64").reshape(-1, 3)

    offset, *rows = apply([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]])
    matrix = (np.array(rows) - offset) / 255  # [channel in, channel out]
    reverse = not np.allclose(matrix, np.diag(np.diag(matrix)), atol=1e-7)
    scale = np.diag(matrix[::-1] if reverse else matrix)
    trial = np.array([[1, 2, 3], [250, 7, 99], [31, 128, 254]])
    expected = (trial[:, ::-1] if reverse else trial) * scale + offset
    if not np.allclose(apply(trial), expected, atol=1e-4):
        raise ValueError(
            f"{getattr(function, '__module__', function)} does not scale each channel on its own; expected a scale "
            "and an offset per channel. Put such layers into the model yourself and pass the saved file."
        )
    # float32 has eight digits; without the rest the numbers are the published ones.
    return reverse, [float(f"{v:.8g}") for v in scale], [float(f"{v:.8g}") + 0.0 for v in offset]


_ARITHMETIC = {"Add", "Divide", "Flip", "Multiply", "Subtract", "TrueDivide"}


def scales_pixels(model):
    """Say whether a model has preprocessing of its own: whether it scales or normalizes before its first weights.

    Args:
        model: functional or sequential ``keras.Model``; nested models are opened.

    Returns:
        bool.

    Example:
        >>> import keras
        >>> layers = [keras.layers.Rescaling(1 / 255), keras.layers.Conv2D(4, 3)]
        >>> scales_pixels(keras.Sequential([keras.Input((8, 8, 3)), *layers]))
        True
        >>> scales_pixels(keras.Sequential([keras.Input((8, 8, 3)), layers[1]]))
        False
    """
    import keras
    from keras import layers

    norms = (
        layers.Rescaling,
        layers.Normalization,
        layers.BatchNormalization,
        layers.LayerNormalization,
        layers.GroupNormalization,
    )
    for call in calls_of(model) or ():
        if isinstance(call.layer, norms):
            return True
        if not isinstance(call.layer, keras.Layer) and type(call.layer).__name__ in _ARITHMETIC:
            return True
        if getattr(call.layer, "weights", ()):
            return False
    return False


def rebuild(model, before=None, *, after=None, input_shape=None):
    """Copy a model with its weights and insert layers, as one flat graph.

    Calling ``model(scaled)`` would nest the model in one layer.

    Args:
        model: functional or sequential ``keras.Model`` with one input.
        before: function from the symbolic input to the tensor that the model gets instead; ``None`` (default) for none.
        after: dict from the name of a layer to the layer to insert behind it; ``None`` (default) for none.
        input_shape: input shape of the copy, without the batch; ``None`` (default) for that of the model.

    Returns:
        A plain ``keras.Model``.

    Example:
        >>> import keras
        >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
        >>> [type(layer).__name__ for layer in rebuild(net, keras.layers.Rescaling(2.0)).layers]
        ['InputLayer', 'Rescaling', 'Dense']
    """
    import keras

    after = after or {}
    net = keras.Model(model.inputs[0], model.outputs[0], name=model.name)  # functional, also of a Sequential
    pixels = keras.Input(input_shape or net.inputs[0].shape[1:], name="pixels", dtype=net.inputs[0].dtype)
    scaled = pixels if before is None else before(pixels)

    def call(layer, *args, **kwargs):
        args, kwargs = keras.tree.map_structure(lambda x: scaled if x is pixels else x, (args, kwargs))
        x = layer(*args, **kwargs)
        return after[layer.name](x) if layer.name in after else x

    copy = keras.models.clone_model(net, input_tensors=pixels, call_function=call)
    copy.set_weights(net.get_weights())
    finalize_normalizations(copy)
    return copy


def finalize_normalizations(model):
    """Let every ``Normalization`` layer, nested ones included, compute with the weights that were set from outside.

    The layer computes with a second copy of its mean and variance, which only its own loading brings up to date
    (keras#20147).

    Args:
        model: ``keras.Model``.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Normalization()])
        >>> model.set_weights([np.array([5.0]), np.array([1.0]), np.array(0)])
        >>> finalize_normalizations(model)
        >>> float(model(np.array([[5.0]]))[0, 0])
        0.0
    """
    import keras

    for layer in sublayers(model):
        if isinstance(layer, keras.layers.Normalization) and layer.built:
            layer.finalize_state()
