"""The same architecture, from scratch."""

import random


def reinitialise(model, seed=0):
    """Give every weight of a model a fresh random value, as its layer's own initializer draws it.

    What a network learns from scratch is the yardstick of pre-training: where it is as good, pre-training did not help.
    BatchNorm's statistics begin anew too. What only scales inputs (``Normalization``) keeps its numbers. The random
    states of Python and NumPy are left as they were.

    Args:
        model: a built functional or sequential ``keras.Model``; changed in place, its ``trainable`` flags and its
            compilation are not.
        seed: of the values. Initializers that were given a seed of their own draw what they always draw.

    Returns:
        The model.

    Raises:
        ValueError: the model cannot be built anew from its settings.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.tuning.reinitialise import reinitialise
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
        >>> before = model.get_weights()[0]
        >>> same = np.array_equal(before, reinitialise(model, seed=1).get_weights()[0])
        >>> again = np.array_equal(model.get_weights()[0], reinitialise(model, seed=1).get_weights()[0])
        >>> same, again
        (False, True)
    """
    import keras

    if not model.built:
        raise ValueError(f"{model.name} is not built yet; call it on an input, or begin it with keras.Input.")
    state = random.getstate()
    random.seed(seed)  # from it Keras draws the seed of every initializer that has none
    try:
        fresh = keras.models.clone_model(model)
    except Exception as error:  # whatever the settings of somebody's layer raise
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ValueError(
            f"{model.name} cannot be built anew from its settings ({first}); expected a functional or sequential model "
            "whose layers have get_config."
        ) from error
    finally:
        random.setstate(state)
    if [w.shape for w in fresh.weights] != [w.shape for w in model.weights]:
        raise ValueError(f"{model.name}, built anew from its settings, has other weights; expected the same shapes.")
    scaling = {
        id(w)
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.Normalization)
        for w in layer.weights
    }
    for own, new in zip(model.weights, fresh.weights):
        if id(own) not in scaling:
            own.assign(new)
    return model
