"""A pull back to where the weights came from."""

import numpy as np
from keras import ops


def anchored(optimizer, model, strength, *, importance=None, start=None, free=()):
    """Pull weights back to their start in every step of training, so that less of the old task is forgotten.

    To the loss belongs ``strength / 2 x sum(importance x (w - start)^2)``. With equal importance that is L2-SP
    (Li et al. 2018); with the diagonal Fisher information of the old task, from
    :func:`thaw.tuning.fisher.fisher`, elastic weight consolidation (Kirkpatrick et al. 2017).

    The pull is added to the gradient inside the optimizer's own ``update_step``, on the instance, so that its class
    stays what it was and a saved file names nothing of ours. That is the gradient of the loss above under every
    optimizer, Adam's moments included, and so the weights go to the minimum that the papers speak of. Taking the
    pull past the moments, as AdamW does with its decay, would weigh it against a gradient of length one, and
    importance and gradient would no longer be in the same units. The loss that ``fit`` shows stays that of the new
    task; gradients are clipped without the pull; where they are accumulated or their loss is scaled, the pull
    counts once and as it is. Decoupled weight decay, where the optimizer has one, comes first, and the pull is from
    where it left the weight. Plain SGD overshoots where rate x strength x importance comes near 2.

    To hold several old tasks, call it once for each. Keras does not carry the pull over when it makes an optimizer
    anew from its configuration, as ``load_model`` does: call this again, with ``start``.

    Args:
        optimizer: any Keras optimizer, also inside a ``LossScaleOptimizer``; changed in place.
        model: what shall stay as it is, a ``keras.Model`` or layer that shares its variables with the one that is
            trained: the backbone, or backbone and old head. What it does not hold, such as a new head, is free.
        strength: from 0. For L2-SP with SGD, 0.001 to 0.1 is usual; for a Fisher, tens to thousands.
        importance: a number from 0 or an array like the weight, for each of ``model.weights``; ``None`` for 1.
        start: arrays in the order of ``model.weights``; ``None`` for the weights as they are now.
        free: layers of ``model`` that are not held, for instance ``stages_of(model)[-1].layers``, its head.

    Returns:
        The same optimizer.

    Raises:
        ValueError: a strength or importance below 0 or not finite, or arrays that do not fit the weights.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.tuning.anchored import anchored
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
        >>> optimizer = anchored(keras.optimizers.SGD(0.5), model, 0.2, start=[np.zeros((1, 1))])
        >>> model.layers[0].set_weights([np.ones((1, 1))])
        >>> optimizer.build(model.trainable_variables)
        >>> optimizer.apply([np.zeros((1, 1))])
        >>> round(float(model.layers[0].kernel[0, 0]), 6)
        0.9
    """
    if not (np.isscalar(strength) and 0 <= strength < np.inf):
        raise ValueError(f"strength={strength!r}; expected a finite number from 0.")
    weights = model.weights
    start = [w.numpy() for w in weights] if start is None else _fitting(start, weights, "start")
    importance = [1.0] * len(weights) if importance is None else _fitting(importance, weights, "importance")
    if strength == 0:
        return optimizer
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    without = {id(w) for layer in free for w in layer.weights}
    pull = {}
    for weight, value, factor in zip(weights, start, importance):
        if id(weight) in without or not np.any(factor) or "float" not in weight.dtype:
            continue
        # Made here and now, outside of any graph: a graph then refers to them and does not hold a copy.
        held = ops.convert_to_tensor(np.asarray(value), weight.dtype)
        pull[inner._var_key(weight)] = held, ops.convert_to_tensor(np.asarray(strength * factor), weight.dtype)
    update_step = inner.update_step

    def anchored_update_step(gradient, variable, learning_rate):
        held = pull.get(inner._var_key(variable))
        if held is not None:
            where, factor = held
            # A sparse gradient, as of an embedding, becomes dense: the rows that were not read are pulled too.
            gradient = ops.cast(ops.convert_to_tensor(gradient), variable.dtype)
            gradient = gradient + factor * (ops.convert_to_tensor(variable) - where)
        update_step(gradient, variable, learning_rate)

    inner.update_step = anchored_update_step
    return optimizer


def _fitting(values, weights, name):
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
