"""A new optimizer like another."""


def fresh_optimizer(optimizer, learning_rate=None):
    """Make an optimizer of the same class and settings, with nothing learned yet.

    An optimizer belongs to one set of variables: after unfreezing, the old one raises "Unknown variable".

    Args:
        optimizer: a Keras optimizer, its name, or one inside a ``LossScaleOptimizer``.
        learning_rate: a number or a schedule to use instead of its own.

    Returns:
        The new optimizer.

    Raises:
        ValueError: an optimizer of the user's own that does not say what it is made of.

    Example:
        >>> import keras
        >>> from thaw.tuning.fresh_optimizer import fresh_optimizer
        >>> fresh_optimizer(keras.optimizers.SGD(0.5, momentum=0.9), 0.25).momentum
        0.9
    """
    import keras

    optimizer = keras.optimizers.get(optimizer)
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    try:
        config = inner.get_config()
        if learning_rate is not None:
            config["learning_rate"] = learning_rate
        fresh = type(inner).from_config(config)
    except (TypeError, KeyError, NotImplementedError) as error:
        raise ValueError(
            f"{type(inner).__name__} cannot be made anew from its get_config ({error}), and each stretch of training "
            "needs a fresh optimizer: let get_config return every argument of __init__."
        ) from error
    # Which variables do not decay is set by a call, and is in no config.
    for name in ("_exclude_from_weight_decay", "_exclude_from_weight_decay_pattern"):
        if hasattr(inner, name):
            setattr(fresh, name, getattr(inner, name))
    if inner is optimizer:
        return fresh
    return keras.optimizers.LossScaleOptimizer(
        fresh, initial_scale=optimizer.initial_scale, dynamic_growth_steps=optimizer.dynamic_growth_steps
    )
