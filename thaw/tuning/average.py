"""The average of several runs' weights."""

import numpy as np

from thaw.tuning.estimate_batchnorm import changed_batchnorms, estimate_batchnorm


def average(model, versions, shares=None, data=None, *, batch_size=128):
    """Give a model the average of several versions of its weights.

    The average of several fine-tuned runs that began from the same weights is often better than the best of them,
    and costs no more than one to use (model soups, Wortsman et al. 2022). It is computed in double precision; a
    weight that is equal in all versions stays what it is, to the bit, and so does everything where one version has
    the whole share. What cannot be averaged, such as a counter, is taken from the version with the largest share.

    The optimizer is left alone, and what it has gathered belongs to other weights: compile again before training
    on. After an error or an interruption the weights are what they were before.

    Args:
        model: a built ``keras.Model``; changed in place.
        versions: one list of arrays for each version, in the order of ``model.weights``, such as
            ``model.get_weights()`` gives.
        shares: how much each version counts, numbers from 0; ``None`` for all alike.
        data: pictures to measure BatchNorm's statistics on anew, as :func:`estimate_batchnorm` takes them, wherever
            something else arrives in one version than in another; ``None``: these are averaged like the rest.
        batch_size: examples of ``data`` in a batch; all in one batch make the statistics exact.

    Returns:
        The same model.

    Raises:
        ValueError: versions that do not fit the model, or shares that are not one number for each.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.tuning.average import average
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
        >>> average(model, [[np.array([[1.0]])], [np.array([[4.0]])]]).get_weights()[0].tolist()
        [[2.5]]
    """
    versions = [_checked(model, version, i) for i, version in enumerate(versions)]
    shares = np.ones(len(versions)) if shares is None else np.asarray(shares, np.float64)
    if shares.shape != (len(versions),) or not (shares >= 0).all() or not 0 < shares.sum() < np.inf:
        raise ValueError(
            f"There are {len(versions)} versions and the shares {shares.tolist()}; expected one number from 0 for "
            "each, and one at least above 0."
        )
    chosen = [(version, share) for version, share in zip(versions, shares / shares.sum()) if share > 0]
    versions, shares = zip(*chosen)
    start = [v.numpy() for v in model.weights]
    try:
        for variable, *values in zip(model.weights, *versions):
            variable.assign(_averaged(values, shares, variable.dtype))
        layers = changed_batchnorms(model, versions) if data is not None and len(versions) > 1 else ()
        if layers:
            estimate_batchnorm(model, data, layers, batch_size=batch_size)
    except BaseException:
        for variable, value in zip(model.weights, start):
            variable.assign(value)
        raise
    return model


def _averaged(values, shares, dtype):
    largest = values[int(np.argmax(shares))]
    if "float" not in dtype or all(np.array_equal(largest, value) for value in values):
        return largest
    mixed = sum(share * value.astype(np.float64) for share, value in zip(shares, values))
    # Rounding must not move what is equal in all versions.
    equal = np.all([value == values[0] for value in values], axis=0)
    return np.where(equal, values[0].astype(np.float64), mixed).astype(largest.dtype)


def _checked(model, version, i):
    version = [np.asarray(value) for value in version]
    if len(version) != len(model.weights):
        raise ValueError(
            f"Version {i} holds {len(version)} arrays and {model.name} has {len(model.weights)} weights; expected "
            "one array for each, as model.get_weights() gives them."
        )
    for variable, value in zip(model.weights, version):
        if tuple(variable.shape) != value.shape:
            raise ValueError(
                f"Version {i} holds an array of shape {value.shape} for {variable.path}, which has "
                f"{tuple(variable.shape)}; expected weights of the same model."
            )
    return version
