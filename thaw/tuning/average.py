"""The average of several runs' weights."""

import numpy as np

from thaw.tuning.estimate_batchnorm import changed_batchnorms, estimate_batchnorm

EVEN = 0.1  # added to importances that are one in the mean, so that what matters to no version is averaged as usual


def average(model, versions, shares=None, data=None, *, importance=None, batch_size=128):
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
        importance: one list of arrays for each version, in the order of ``model.weights``: how much each weight
            matters to it, numbers from 0 such as :func:`thaw.fisher` gives. A weight then comes more from the version
            to which it matters more (Matena and Raffel 2022): the shares are multiplied by the importances, those of
            each version brought to one in the mean, plus a tenth. ``None``: all alike.
        batch_size: examples of ``data`` in a batch; all in one batch make the statistics exact.

    Returns:
        The same model.

    Raises:
        ValueError: versions or importances that do not fit the model, or shares that are not one number for each.

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
    alike = [1.0] * len(model.weights)
    each = [alike] * len(versions) if importance is None else _even(model, versions, importance)
    chosen = [one for one in zip(versions, shares / shares.sum(), each) if one[1] > 0]
    versions, shares, each = zip(*chosen)
    start = [v.numpy() for v in model.weights]
    try:
        for i, variable in enumerate(model.weights):
            weights = [share * factors[i] for share, factors in zip(shares, each)]
            variable.assign(_averaged([version[i] for version in versions], weights, shares, variable.dtype))
        layers = changed_batchnorms(model, versions) if data is not None and len(versions) > 1 else ()
        if layers:
            estimate_batchnorm(model, data, layers, batch_size=batch_size)
    except BaseException:
        for variable, value in zip(model.weights, start):
            variable.assign(value)
        raise
    return model


def _averaged(values, weights, shares, dtype):
    largest = values[int(np.argmax(shares))]
    if "float" not in dtype or all(np.array_equal(largest, value) for value in values):
        return largest
    mixed = sum(weight * value.astype(np.float64) for weight, value in zip(weights, values)) / sum(weights)
    # Rounding must not move what is equal in all versions.
    equal = np.all([value == values[0] for value in values], axis=0)
    return np.where(equal, values[0].astype(np.float64), mixed).astype(largest.dtype)


def _even(model, versions, importance):
    """Importances that can be compared: of each version one in the mean of all that differs, and nowhere nothing."""
    if len(importance) != len(versions):
        raise ValueError(
            f"There are {len(versions)} versions and {len(importance)} importances; expected one for each version."
        )
    apart = [np.any([a != arrays[0] for a in arrays[1:]], axis=0) for arrays in zip(*versions)]
    found = []
    for i, arrays in enumerate(importance):
        arrays = _checked(model, arrays, i, "Importance")
        if not all(np.isfinite(a).all() and (a >= 0).all() for a in arrays):
            raise ValueError(f"Importance {i} holds numbers below 0 or not finite; expected numbers from 0.")
        arrays = [a.astype(np.float64) for a in arrays]
        mean = sum(a[where].sum() for a, where in zip(arrays, apart)) / max(1, sum(map(np.count_nonzero, apart)))
        found.append([(a / mean if mean > 0 else np.ones_like(a)) + EVEN for a in arrays])
    return found


def _checked(model, version, i, what="Version"):
    version = [np.asarray(value) for value in version]
    if len(version) != len(model.weights):
        raise ValueError(
            f"{what} {i} holds {len(version)} arrays and {model.name} has {len(model.weights)} weights; expected "
            "one array for each, as model.get_weights() gives them."
        )
    for variable, value in zip(model.weights, version):
        if tuple(variable.shape) != value.shape:
            raise ValueError(
                f"{what} {i} holds an array of shape {value.shape} for {variable.path}, which has "
                f"{tuple(variable.shape)}; expected weights of the same model."
            )
    return version
