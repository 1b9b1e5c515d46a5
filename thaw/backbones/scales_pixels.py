"""Does a model scale its pixels itself?"""

from thaw.stages import calls_of

_ARITHMETIC = {"Add", "Divide", "Flip", "Multiply", "Subtract", "TrueDivide"}


def scales_pixels(model):
    """Tell whether a model has preprocessing of its own: whether it scales or normalizes before its
    first weights.

    Args:
        model: a functional or sequential ``keras.Model``; nested models are looked into.

    Returns:
        ``True`` or ``False``.

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
