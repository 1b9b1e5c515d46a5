"""Scale raw pixels inside a model, the way a pre-trained net expects them, with ordinary Keras layers."""

import numpy as np

# Published conventions by the name a user gives them; the three of keras.applications are asked of
# Keras itself.
KINDS = ("none", "-1..1", "0..1", "caffe", "torch")
_MODES = {"-1..1": "tf", "caffe": "caffe", "torch": "torch"}


def preprocess(pixels, like):
    """Turn raw pixels, 0 to 255 in the order red, green, blue, into what a pre-trained net was trained on.

    What ``like`` does is found by giving it a few pixels: nothing, or a scale and an offset per channel,
    with or without the channels in reverse order. That is then written with ``Rescaling`` and ``flip``,
    which every Keras loads without code of ours.

    Args:
        pixels: symbolic tensor ``(batch, height, width, 3)``.
        like: a ``preprocess_input`` of ``keras.applications``, or ``"none"``, ``"-1..1"``, ``"0..1"``,
            ``"caffe"`` (blue, green, red minus the ImageNet mean) or ``"torch"`` (0..1, then ImageNet mean
            and deviation).

    Returns:
        A symbolic tensor of the same shape; ``pixels`` itself where nothing is to be done.

    Raises:
        ValueError: an unknown kind, or a function that is not a scale and an offset per channel.

    Example:
        >>> import keras
        >>> pixels = keras.Input((8, 8, 3))
        >>> model = keras.Model(pixels, preprocess(pixels, "-1..1"))
        >>> float(model(127.5 * keras.ops.ones((1, 8, 8, 3)))[0, 0, 0, 0])
        0.0
    """
    import keras

    reverse, scale, offset = _found(_function(like))
    x = pixels
    if reverse:
        x = keras.ops.flip(x, axis=-1)
    if scale != [1.0] * 3 or offset != [0.0] * 3:
        # float32 also under mixed precision: half precision would round the scaled pixels twice.
        x = keras.layers.Rescaling(scale, offset, dtype="float32", name="preprocessing")(x)
    return x


def _function(like):
    import keras

    if callable(like):
        return like
    if like == "none":
        return lambda x: x
    if like == "0..1":
        return lambda x: x / 255
    if like in _MODES:
        return lambda x: keras.applications.imagenet_utils.preprocess_input(
            x, data_format="channels_last", mode=_MODES[like]
        )
    raise ValueError(f"preprocessing={like!r}; expected one of {', '.join(KINDS)}.")


def _found(function):
    """Whether ``function`` reverses the channels, and its scale and offset per channel that it puts out."""

    def ask(pixels):
        asked = np.array(pixels, "float64").reshape(1, -1, 1, 3)
        return np.asarray(function(asked), "float64").reshape(-1, 3)

    offset, *rows = ask([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]])
    matrix = (np.array(rows) - offset) / 255  # [channel in, channel out]
    reverse = not np.allclose(matrix, np.diag(np.diag(matrix)), atol=1e-7)
    scale = np.diag(matrix[::-1] if reverse else matrix)
    trial = np.array([[1, 2, 3], [250, 7, 99], [31, 128, 254]])
    expected = (trial[:, ::-1] if reverse else trial) * scale + offset
    if not np.allclose(ask(trial), expected, atol=1e-4):
        raise ValueError(
            f"{getattr(function, '__module__', function)} does not scale each channel on its own; "
            f"expected a scale "
            "and an offset per channel. Put such layers into the model yourself and pass the saved file."
        )
    # Eight figures are all that float32 holds; without the rest the numbers read as they were published.
    return reverse, [float(f"{v:.8g}") for v in scale], [float(f"{v:.8g}") + 0.0 for v in offset]
