"""How large a learning rate is for an optimizer, beside Adam."""

from __future__ import annotations


def step_size(optimizer):
    """By how much to multiply a learning rate that is meant for Adam and the like.

    A step of SGD is as long as the gradient is, and wants a larger rate; Lion's steps are of length one in every
    weight, and its authors take a rate 3 to 10 times smaller (Chen et al. 2023).

    Args:
        optimizer: a Keras optimizer, also inside a ``LossScaleOptimizer``.

    Returns:
        20 for SGD, 0.2 for Lion, 1 for any other.

    Example:
        >>> import keras
        >>> from thaw.advising.step_size import step_size
        >>> step_size(keras.optimizers.SGD()), step_size(keras.optimizers.Adam())
        (20.0, 1.0)
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    return {"SGD": 20.0, "Lion": 0.2}.get(type(inner).__name__, 1.0)
