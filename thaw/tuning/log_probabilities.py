"""A classifier's output as logarithms of probabilities, inside a graph."""

import keras
from keras import ops

SMALLEST = 1e-7  # probabilities are held above it, so that there is a logarithm


def log_probabilities(model, output):
    """Turn what a classifier puts out into logarithms of probabilities, with plain Keras operations.

    Args:
        model: a ``keras.Model`` that ends in a layer with softmax, in a linear one (logits), or in a single unit
            with sigmoid.
        output: its output ``(n, classes)`` or ``(n, 1)``, symbolic or not.

    Returns:
        ``(n, classes)``; two classes for the single unit.

    Raises:
        ValueError: another last layer, from which it cannot be known what the numbers mean.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.tuning.log_probabilities import log_probabilities
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Softmax()])
        >>> np.exp(log_probabilities(model, model(np.zeros((1, 2))))).tolist()
        [[0.5, 0.5]]
    """
    if isinstance(output, (list, tuple, dict)) or len(output.shape) != 2:
        raise ValueError(f"{model.name} does not put out one score for each class; expected shape (n, classes).")
    last = model
    while isinstance(last, keras.Model):
        # A functional model may end in an operation; the layers of a class stand in no order.
        inside = last.layers if isinstance(last, keras.Sequential) else getattr(last, "operations", None)
        last = inside[-1] if inside else None
    activation = getattr(last, "activation", None)
    classes = output.shape[-1]
    if classes == 1 and activation is keras.activations.sigmoid:
        output = ops.concatenate([1 - output, output], axis=-1)
    elif classes == 1 and activation is keras.activations.linear and isinstance(last, keras.layers.Dense):
        return ops.concatenate([ops.log_sigmoid(-output), ops.log_sigmoid(output)], axis=-1)
    elif classes > 1 and activation is keras.activations.linear and isinstance(last, keras.layers.Dense):
        return ops.log_softmax(output, axis=-1)
    elif classes == 1 or not (isinstance(last, keras.layers.Softmax) or activation is keras.activations.softmax):
        raise ValueError(
            f"{model.name} ends in {getattr(last, 'name', 'no layer')}; expected a layer with softmax, a linear Dense "
            "layer (logits), or a single unit with sigmoid."
        )
    return ops.log(ops.maximum(ops.cast(output, "float32"), SMALLEST))
