"""Learning rates that fall from stage to stage."""

import contextlib


def per_stage(optimizer, stages, decay):
    """Make each stage learn at ``decay`` times the rate of the stage above it.

    These are discriminative, or layer-wise, learning rates (Howard and Ruder 2018). The rate is scaled where
    the optimizer applies it: scaled gradients would do nothing under Adam, which divides their size out
    again. Decoupled weight decay is scaled with its stage. The clip norm stays one over all weights, the
    optimizer keeps one ``learning_rate`` that Keras' schedules and callbacks steer, and its class stays what
    it was, so that a file saved with it opens with Keras alone.

    Args:
        optimizer: any Keras optimizer, also inside a ``LossScaleOptimizer``; changed in place.
        stages: from :func:`thaw.stages_of`, input to output. The last learns at the full rate.
        decay: above 0, at most 1. At 1 the optimizer is left as it is.

    Returns:
        The same optimizer.

    Raises:
        ValueError: a decay outside its range.

    Example:
        >>> import keras
        >>> from thaw import per_stage, stages_of
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(2)])
        >>> optimizer = per_stage(keras.optimizers.Adam(1e-3), stages_of(model), 0.5)
        >>> model.compile(optimizer, "mse")
    """
    if not 0 < decay <= 1:
        raise ValueError(f"decay={decay!r}; expected a number above 0, at most 1.")
    if decay == 1:
        return optimizer
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    scale = {}
    for depth, stage in enumerate(reversed(stages)):
        for layer in stage.layers:
            for variable in layer.weights:
                scale[inner._var_key(variable)] = decay**depth
    update_step, apply_decay, current_rate = (
        inner.update_step,
        inner._apply_weight_decay,
        inner._get_current_learning_rate,
    )

    def scaled_update_step(gradient, variable, learning_rate):
        update_step(gradient, variable, learning_rate * scale.get(inner._var_key(variable), 1.0))

    @contextlib.contextmanager
    def learning_at(rate):
        inner._get_current_learning_rate = lambda: rate
        try:
            yield
        finally:
            inner._get_current_learning_rate = current_rate

    def scaled_weight_decay(variables):
        # Keras reads the rate inside, for each variable; give it each stage's own while its variables decay. It is
        # computed once: a schedule for every variable makes the step longer, and its tracing a lot.
        groups, rate = {}, current_rate()
        for variable in variables:
            groups.setdefault(scale.get(inner._var_key(variable), 1.0), []).append(variable)
        for factor, group in groups.items():
            with learning_at(rate * factor):
                apply_decay(group)

    inner.update_step = scaled_update_step
    inner._apply_weight_decay = scaled_weight_decay
    return optimizer
