"""How a batch of images is scaled, and whether a model scales its inputs itself."""

from __future__ import annotations

import numpy as np

from thaw.models.stages import calls_of


def pixel_range(x):
    """Return how a batch of images is scaled, and its lowest and highest pixel.

    Args:
        x: one batch; ``None`` or anything but ``(n, height, width, 1 or 3)`` numbers says nothing.

    Returns:
        ``("raw" or "rescaled" or None, low, high)``.

    Example:
        >>> from thaw.checks.pixels import pixel_range
        >>> pixel_range(np.linspace(0, 1, 12).reshape(1, 2, 2, 3))
        ('rescaled', 0.0, 1.0)
    """
    shape = np.shape(x)
    if x is None or len(shape) != 4 or shape[-1] not in (1, 3) or x.dtype.kind not in "iuf":
        return None, 0.0, 0.0
    low, high = float(np.min(x)), float(np.max(x))
    # Whole numbers are raw; and a batch that is black all over says nothing.
    if x.dtype.kind == "f" and low < high and (high <= 1.0 + 1e-6 or low < -1e-6):
        return "rescaled", low, high
    return ("raw" if high > 10 else None), low, high


def scaling_layer(model):
    """Return the name of the layer before the first weights that scales raw pixels, or ``None``.

    Args:
        model: a built ``keras.Model``.

    Example:
        >>> import keras
        >>> from thaw.checks.pixels import scaling_layer
        >>> scale = keras.layers.Rescaling(1 / 255, name="scale")
        >>> scaling_layer(keras.Sequential([keras.Input((8, 8, 3)), scale, keras.layers.Conv2D(4, 3)]))
        'scale'
    """
    import keras

    for call in calls_of(model) or ():
        layer = call.layer
        if isinstance(layer, keras.layers.Rescaling):
            if np.max(np.abs(layer.scale)) < 0.1 or np.max(np.abs(layer.offset)) > 4:
                return layer.name
        elif isinstance(layer, keras.layers.Normalization):
            # One that was made from scaled pixels has a small mean and a small variance.
            if layer.mean is not None and max(np.max(np.abs(layer.mean)), np.max(layer.variance)) > 4:
                return layer.name
        elif getattr(layer, "weights", ()):
            return None
    return None
