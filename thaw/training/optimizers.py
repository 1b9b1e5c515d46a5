"""Optimizers and learning rates: clones, schedules, layerwise decay, L2-SP and EWC."""

import numpy as np
from keras import ops

from thaw._keras import (
    copy_weight_decay_exclusions,
    inner_optimizer,
    patch_update_step,
    scale_weight_decay,
    serialized_as,
    variable_key,
)
from thaw.models.stages import stages_of
from thaw.training.freezing import head_norms

# Of a head on standardized features, whose sum grows with their number: the change of a logit in one step of Adam where
# they are 1 on average, so that it stays below 0.1 where they are twice as large.
MAX_LOGIT_STEP = 0.05


def clone_optimizer(optimizer, learning_rate=None):
    """Make an optimizer of the same class and settings, without its state.

    An optimizer belongs to one set of variables: after unfreezing, the old one raises "Unknown variable".

    Args:
        optimizer: a Keras optimizer, its name, or one inside a ``LossScaleOptimizer``.
        learning_rate: a float or a ``LearningRateSchedule`` to use instead of its own; ``None`` for its own.

    Returns:
        A new ``keras.optimizers.Optimizer``.

    Raises:
        ValueError: an optimizer of the user's own whose ``get_config`` is not complete.

    Example:
        >>> import keras
        >>> from thaw.training.optimizers import clone_optimizer
        >>> clone_optimizer(keras.optimizers.SGD(0.5, momentum=0.9), 0.25).momentum
        0.9
    """
    import keras

    optimizer = keras.optimizers.get(optimizer)
    inner = inner_optimizer(optimizer)
    try:
        config = inner.get_config()
        if learning_rate is not None:
            config["learning_rate"] = learning_rate
        clone = type(inner).from_config(config)
    except (TypeError, KeyError, NotImplementedError) as error:
        raise ValueError(
            f"{type(inner).__name__} cannot be cloned from its get_config ({error}), and each phase of training needs "
            "a fresh optimizer: let get_config return every argument of __init__."
        ) from error
    copy_weight_decay_exclusions(inner, clone)
    if inner is optimizer:
        return clone
    return keras.optimizers.LossScaleOptimizer(
        clone, initial_scale=optimizer.initial_scale, dynamic_growth_steps=optimizer.dynamic_growth_steps
    )


def lr_schedule(schedule, peak, steps, warmup=0.1):
    """Make a learning-rate schedule: a linear warm-up to ``peak``, then a decay to zero or a constant rate.

    Args:
        schedule: ``"cosine"`` (Loshchilov and Hutter 2017), ``"linear"`` or ``"constant"``.
        peak: the highest learning rate, above 0.
        steps: optimizer steps in all, at least 1.
        warmup: fraction of the steps spent in the warm-up, from 0 to 1. Default 0.1.

    Returns:
        A ``keras.optimizers.schedules.LearningRateSchedule``, which a saved model names by a class of Keras; or
        ``peak`` itself, a float that Keras' callbacks may change, where the rate is the same in every step.

    Raises:
        ValueError: an unknown schedule, or a number outside its range.

    Example:
        >>> from thaw.training import lr_schedule
        >>> rate = lr_schedule("linear", 1.0, steps=8, warmup=0.25)
        >>> [float(rate(step)) for step in (0, 1, 2, 5, 8)]
        [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    import keras

    if not (peak > 0 and steps >= 1 and 0 <= warmup <= 1):
        raise ValueError(
            f"peak={peak!r}, steps={steps!r}, warmup={warmup!r}; expected a peak above 0, at least one step, and a "
            "fraction from 0 to 1."
        )
    if schedule not in ("cosine", "linear", "constant"):
        raise ValueError(f'schedule={schedule!r}; expected "cosine", "linear" or "constant".')
    warmup_steps = round(warmup * steps)
    if schedule == "cosine":
        if warmup_steps == 0:
            return keras.optimizers.schedules.CosineDecay(peak, decay_steps=max(1, steps))
        # The first step trains too: Keras starts at its initial rate, so that is the rise of one step, not zero.
        return keras.optimizers.schedules.CosineDecay(
            initial_learning_rate=peak / warmup_steps,
            decay_steps=max(1, steps - warmup_steps),
            warmup_target=peak,
            warmup_steps=warmup_steps,
        )
    if schedule == "linear" and warmup_steps < steps:
        return _linear_decay(peak, steps, warmup_steps)
    if warmup_steps <= 1:  # the first step has the peak already
        return peak
    # Constant after the warm-up: a cosine that ends where it begins.
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=peak / warmup_steps,
        decay_steps=1,
        alpha=1.0,
        warmup_target=peak,
        warmup_steps=warmup_steps - 1,
    )


def _linear_decay(peak, steps, warmup_steps):
    """Make a schedule that rises to ``peak``, then goes linearly to zero, in a class that every Keras can open.

    Keras has no warm-up before its ``PolynomialDecay``. The decay is one that began ``warmup_steps`` earlier, higher
    than ``peak``, so that it is the same from the peak on; the warm-up keeps it below. A model that is saved names
    ``PolynomialDecay``, which continues at the same rates, but for a file from the middle of the warm-up, which leaves
    it out.
    """
    import keras

    public = keras.optimizers.schedules.PolynomialDecay
    if warmup_steps == 0:
        return public(peak, decay_steps=steps, end_learning_rate=0.0)

    class WarmupThenLinear(public):
        __class__ = serialized_as(public)

        def __call__(self, step):
            return ops.minimum(peak * (ops.cast(step, "float32") + 1) / warmup_steps, super().__call__(step))

    return WarmupThenLinear(peak * steps / (steps - warmup_steps), decay_steps=steps, end_learning_rate=0.0)


def layerwise_lr_decay(optimizer, model, decay, *, head=1.0):
    """Make each stage of a model learn at ``decay`` times the rate of the stage above it.

    These are discriminative, or layerwise, learning rates (Howard and Ruder 2018). The rate is scaled where the
    optimizer applies it: scaled gradients would do nothing under Adam, which divides their size out again. Decoupled
    weight decay is scaled with its stage. The clip norm stays one over all weights, the optimizer keeps one
    ``learning_rate`` that Keras' schedules and callbacks set, and its class does not change, so that a file saved with
    it opens with Keras alone.

    Args:
        optimizer: any Keras optimizer, also inside a ``LossScaleOptimizer``; changed in place.
        model: a built ``keras.Model``, or its stages from :func:`thaw.stages_of`. The last stage learns at the full
            rate.
        decay: factor from one stage to the one below it, above 0, at most 1.
        head: factor of the last stage alone, for a head of so many features that its steps would be too long. Default
            1. Where both factors are 1, the optimizer is not changed.

    Returns:
        The same optimizer.

    Raises:
        ValueError: a decay outside its range.

    Example:
        >>> import keras
        >>> from thaw import layerwise_lr_decay
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(2)])
        >>> optimizer = layerwise_lr_decay(keras.optimizers.SGD(1.0), model, 0.5)
        >>> optimizer.build(model.trainable_variables)
        >>> optimizer.apply([keras.ops.ones(v.shape) for v in model.trainable_variables])
        >>> [float(layer.bias[0]) for layer in model.layers]
        [-0.5, -1.0]
    """
    if not 0 < decay <= 1:
        raise ValueError(f"decay={decay!r}; expected a number above 0, at most 1.")
    if decay == head == 1:
        return optimizer
    stages = model if isinstance(model, (tuple, list)) else stages_of(model)
    factors = {}
    for depth, stage in enumerate(reversed(stages)):
        for layer in stage.layers:
            for variable in layer.weights:
                factors[variable_key(optimizer, variable)] = decay**depth if depth else head
    return _scale_rates(optimizer, lambda variable: factors.get(variable_key(optimizer, variable), 1.0))


def wide_head_factor(optimizer, model, learning_rate):
    """Return the factor of the learning rate that keeps the steps of a wide head short.

    Args:
        optimizer: a Keras optimizer, also inside a ``LossScaleOptimizer``.
        model: a built ``keras.Model``.
        learning_rate: peak learning rate.

    Returns:
        A float, at most 1; 1 for a head that does not standardize its features, and for SGD, whose step is as long as
        the gradient.

    Example:
        >>> import keras
        >>> from thaw.training.optimizers import wide_head_factor
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, "softmax")])
        >>> wide_head_factor(keras.optimizers.Adam(), model, 1e-3)
        1.0
    """
    import keras

    if isinstance(inner_optimizer(optimizer), keras.optimizers.SGD):
        return 1.0
    width = sum(int(norm.moving_mean.shape[0]) for norm in head_norms(model))
    return min(1.0, MAX_LOGIT_STEP / (width * learning_rate)) if width else 1.0


def scale_learning_rate(optimizer, layers, factor):
    """Multiply the learning rate of some layers, where the optimizer applies it, as :func:`layerwise_lr_decay` does.

    Args:
        optimizer: any Keras optimizer, also inside a ``LossScaleOptimizer``; changed in place.
        layers: the layers.
        factor: float from 0; at 0 their weights do not change.

    Returns:
        The same optimizer.

    Example:
        >>> import keras
        >>> from thaw.training.optimizers import scale_learning_rate
        >>> layer = keras.layers.Dense(1)
        >>> layer.build((None, 1))
        >>> optimizer = scale_learning_rate(keras.optimizers.SGD(1.0), [layer], 0.0)
        >>> optimizer.build(layer.trainable_variables)
        >>> optimizer.apply([keras.ops.ones(v.shape) for v in layer.trainable_variables])
        >>> layer.bias.numpy().tolist()
        [0.0]
    """
    keys = {variable_key(optimizer, variable) for layer in layers for variable in layer.weights}
    return _scale_rates(optimizer, lambda variable: factor if variable_key(optimizer, variable) in keys else 1.0)


def _scale_rates(optimizer, factor_of):
    def scaled(update_step):
        def step(gradient, variable, rate):
            if factor := factor_of(variable):  # at 0 some optimizers would divide by the rate
                update_step(gradient, variable, rate * factor)

        return step

    patch_update_step(optimizer, scaled)
    scale_weight_decay(optimizer, factor_of)
    return optimizer


def l2_sp(optimizer, model, strength, *, start=None, free=()):
    """Regularize weights toward their starting point in every step, so that less of the source task is forgotten.

    L2-SP (Li et al. 2018) adds ``strength / 2 * sum((w - start)^2)`` to the loss. Its gradient is added inside the
    optimizer's own ``update_step``, on the instance, so that its class does not change and a saved file names nothing
    of thaw's. That is the gradient of the loss above under every optimizer, Adam's moments included. The loss that
    ``fit`` shows stays that of the target task; gradients are clipped without the penalty; where they are accumulated
    or their loss is scaled, the penalty counts once and is not scaled. Decoupled weight decay, where the optimizer has
    one, comes first. Plain SGD overshoots where rate x strength comes near 2.

    Call it once for each of several source tasks. Keras does not copy the penalty when it makes an optimizer from its
    configuration, as ``load_model`` does: call this again, with ``start``.

    Args:
        optimizer: any Keras optimizer, also inside a ``LossScaleOptimizer``; changed in place.
        model: the ``keras.Model`` or layer to regularize, which shares its variables with the one that is trained: the
            backbone, or backbone and source head. Weights outside of it, such as a new head, are free.
        strength: a float from 0. With SGD, 0.001 to 0.1 is usual.
        start: a list of arrays in the order of ``model.weights``; ``None`` for the present weights.
        free: layers of ``model`` that are not regularized, such as ``stages_of(model)[-1].layers``, its head.

    Returns:
        The same optimizer.

    Raises:
        ValueError: a strength below 0 or not finite, or arrays that do not fit the weights.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.retention import l2_sp
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
        >>> optimizer = l2_sp(keras.optimizers.SGD(0.5), model, 0.2, start=[np.zeros((1, 1))])
        >>> model.layers[0].set_weights([np.ones((1, 1))])
        >>> optimizer.build(model.trainable_variables)
        >>> optimizer.apply([np.zeros((1, 1))])
        >>> round(float(model.layers[0].kernel[0, 0]), 6)
        0.9
    """
    return _add_penalty(optimizer, model, strength, None, start, free)


def ewc(optimizer, model, strength, importance, *, start=None, free=()):
    """Regularize weights toward their starting point by their importance to the source task.

    Elastic weight consolidation (Kirkpatrick et al. 2017) adds ``strength / 2 * sum(importance * (w - start)^2)`` to
    the loss; the importance is the diagonal Fisher information of the source task, from
    :func:`thaw.retention.fisher`. All else is as for :func:`thaw.retention.l2_sp`.

    Args:
        optimizer: any Keras optimizer, also inside a ``LossScaleOptimizer``; changed in place.
        model: the ``keras.Model`` or layer to regularize, which shares its variables with the one that is trained.
        strength: a float from 0. With a Fisher information, tens to thousands are usual.
        importance: for each of ``model.weights`` a float from 0 or an array of its shape.
        start: a list of arrays in the order of ``model.weights``; ``None`` for the present weights.
        free: layers of ``model`` that are not regularized.

    Returns:
        The same optimizer.

    Raises:
        ValueError: a strength or importance below 0 or not finite, or arrays that do not fit the weights.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.retention import ewc
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
        >>> optimizer = ewc(keras.optimizers.SGD(0.5), model, 0.2, [4.0], start=[np.zeros((1, 1))])
        >>> model.layers[0].set_weights([np.ones((1, 1))])
        >>> optimizer.build(model.trainable_variables)
        >>> optimizer.apply([np.zeros((1, 1))])
        >>> round(float(model.layers[0].kernel[0, 0]), 6)
        0.6
    """
    return _add_penalty(optimizer, model, strength, importance, start, free)


def _add_penalty(optimizer, model, strength, importance, start, free):
    """Add the gradient of a quadratic penalty around ``start`` to every step of an optimizer."""
    if not (np.isscalar(strength) and 0 <= strength < np.inf):
        raise ValueError(f"strength={strength!r}; expected a finite number from 0.")
    weights = model.weights
    start = [w.numpy() for w in weights] if start is None else _checked_arrays(start, weights, "start")
    factors = [1.0] * len(weights) if importance is None else _checked_arrays(importance, weights, "importance")
    if strength == 0:
        return optimizer
    unregularized = {id(w) for layer in free for w in layer.weights}
    penalties = {}
    for weight, value, factor in zip(weights, start, factors):
        if id(weight) in unregularized or not np.any(factor) or "float" not in weight.dtype:
            continue
        # Tensors are made here, outside of any graph: a graph then refers to them and does not hold a copy.
        penalties[variable_key(optimizer, weight)] = (
            ops.convert_to_tensor(np.asarray(value), weight.dtype),
            ops.convert_to_tensor(np.asarray(strength * factor), weight.dtype),
        )

    def regularized(update_step):
        def step(gradient, variable, learning_rate):
            penalty = penalties.get(variable_key(optimizer, variable))
            if penalty is not None:
                center, factor = penalty
                # A sparse gradient, as of an embedding, becomes dense: the penalty is on rows that were not read too.
                gradient = ops.cast(ops.convert_to_tensor(gradient), variable.dtype)
                gradient = gradient + factor * (ops.convert_to_tensor(variable) - center)
            update_step(gradient, variable, learning_rate)

        return step

    patch_update_step(optimizer, regularized)
    return optimizer


def _checked_arrays(values, weights, name):
    values = [np.asarray(value) for value in values]
    if len(values) != len(weights):
        raise ValueError(f"{name} has {len(values)} arrays; expected {len(weights)}, one for each of model.weights.")
    for value, weight in zip(values, weights):
        if value.shape != tuple(weight.shape) and not (name == "importance" and value.shape == ()):
            raise ValueError(
                f"{name} holds shape {value.shape} for {weight.path}, which has {tuple(weight.shape)}; expected "
                "arrays in the order of model.weights."
            )
        if name == "importance" and not (np.isfinite(value).all() and (value >= 0).all()):
            raise ValueError(f"The importance of {weight.path} is below 0 or not finite; expected numbers from 0.")
    return values


def lr_scale(optimizer):
    """Return the factor from learning rates for Adam to those for another optimizer.

    A step of SGD is as long as the gradient, and needs a higher rate; Lion's steps have length one in every
    weight, and its authors use rates 3 to 10 times lower (Chen et al. 2023).

    Args:
        optimizer: a Keras optimizer, also inside a ``LossScaleOptimizer``.

    Returns:
        20 for SGD, 0.2 for Lion, 1 for any other.

    Example:
        >>> import keras
        >>> from thaw.training.optimizers import lr_scale
        >>> lr_scale(keras.optimizers.SGD()), lr_scale(keras.optimizers.Adam())
        (20.0, 1.0)
    """
    inner = inner_optimizer(optimizer)
    return {"SGD": 20.0, "Lion": 0.2}.get(type(inner).__name__, 1.0)
