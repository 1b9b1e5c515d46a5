"""The learning rate over the steps of one phase."""


def schedule(kind, peak, steps, warmup=0.1):
    """A warm-up to ``peak``, then a fall to zero or a constant rate.

    Args:
        kind: ``"cosine"`` (Loshchilov and Hutter 2017), ``"linear"`` or ``"constant"``.
        peak: the highest rate.
        steps: optimizer steps in the phase.
        warmup: share of the steps in which the rate rises, linearly, to its peak.

    Returns:
        A ``keras.optimizers.schedules.LearningRateSchedule``; or ``peak`` itself, a plain number that Keras'
        callbacks may change, when the rate is constant without a warm-up.

    Raises:
        ValueError: an unknown kind, or a number outside its range.

    Example:
        >>> from thaw import schedule
        >>> rate = schedule("linear", 1.0, steps=8, warmup=0.25)
        >>> [float(rate(step)) for step in (0, 1, 2, 5, 8)]
        [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    import keras

    if not (peak > 0 and steps >= 1 and 0 <= warmup <= 1):
        raise ValueError(
            f"peak={peak!r}, steps={steps!r}, warmup={warmup!r}; expected a peak above 0, a step at least, "
            "and a share from 0 to 1."
        )
    rise = round(warmup * steps)
    if kind == "constant" and rise == 0:
        return peak
    if kind == "cosine":
        # The first step already moves: Keras starts at its initial rate, so that is one step's rise, not zero.
        first = {"initial_learning_rate": peak / rise, "warmup_target": peak, "warmup_steps": rise} if rise else {}
        return keras.optimizers.schedules.CosineDecay(
            **({"initial_learning_rate": peak} | first), decay_steps=max(1, steps - rise)
        )
    if kind not in ("linear", "constant"):
        raise ValueError(f'schedule={kind!r}; expected "cosine", "linear" or "constant".')
    return _piecewise_linear(peak, steps, rise, 0.0 if kind == "linear" else peak)


def _piecewise_linear(peak, steps, rise, final):
    """Up to ``peak`` in ``rise`` steps, then on a line to ``final``; Keras has no such schedule."""
    import keras
    from keras import ops

    class WarmUpThenLine(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            step = ops.cast(step, "float32")
            up = peak * (step + 1) / max(1, rise)
            along = ops.clip((step - rise) / max(1, steps - rise), 0.0, 1.0)
            return ops.where(step < rise, up, peak + (final - peak) * along)

        def get_config(self):
            return {"peak": peak, "steps": steps, "rise": rise, "final": final}

    return WarmUpThenLine()
