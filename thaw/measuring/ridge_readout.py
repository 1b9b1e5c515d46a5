"""A linear readout of features, measured on what it was not fitted to."""

from __future__ import annotations

import numpy as np

# Penalties relative to the mean eigenvalue of the features: from nearly none to nothing but the mean.
_PENALTIES = np.logspace(-5, 3, 17)


def ridge_readout(features, targets, fold):
    """Predict each example by a ridge regression fitted to the other folds (Hoerl and Kennard 1970).

    Features are scaled to mean 0 and standard deviation 1 on what is fitted. The penalty is the one with the smallest
    squared error of leaving one out, which has a closed form, among what is fitted: the fold that is predicted has
    no part in it.

    Args:
        features: ``(n, d)`` numbers, one row for each example.
        targets: ``(n, t)`` numbers to predict; for classes, one column each, 1 where it is the class and 0 elsewhere.
        fold: ``(n,)`` fold numbers, as :func:`stratified_folds` gives them.

    Returns:
        Float64 ``(n, t)``: the predictions; of classes, the largest in a row is the one.

    Raises:
        ValueError: arrays that do not belong together, or a fold that holds everything.

    Example:
        >>> import numpy as np
        >>> from thaw.measuring.ridge_readout import ridge_readout
        >>> x = np.arange(6.0)[:, None]
        >>> ridge_readout(x, 2 * x, np.array([0, 1, 0, 1, 0, 1])).round(2)[:, 0].tolist()
        [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    """
    features, targets, fold = np.asarray(features), np.asarray(targets, np.float64), np.asarray(fold)
    if features.ndim != 2 or targets.ndim != 2 or not len(features) == len(targets) == len(fold):
        raise ValueError(
            f"features has shape {features.shape}, targets {targets.shape} and fold {fold.shape}; expected (n, d), "
            "(n, t) and (n,)."
        )
    if len(np.unique(fold)) < 2:
        raise ValueError("All examples are in one fold; expected at least two, to fit on one what the other is told.")
    predicted = np.empty_like(targets)
    for f in np.unique(fold):
        out = fold == f
        predicted[out] = ridge_predict(features[~out], targets[~out], features[out])
    return predicted


def ridge_predict(x, y, new):
    """One fit of :func:`ridge_readout`: fitted to some examples, told of others.

    Args:
        x: ``(n, d)`` features to fit to.
        y: ``(n, t)`` float64 targets.
        new: ``(m, d)`` features of the others.

    Returns:
        Float64 ``(m, t)``.
    """
    x = x.astype(np.float64)
    mean, scale = x.mean(axis=0), x.std(axis=0)
    # A feature that is the same everywhere in the fitted folds says nothing; rounding may give it some spread.
    varies = scale > 1e-7 * np.abs(mean)
    mean, scale = mean[varies], scale[varies]
    x, new = (x[:, varies] - mean) / scale, (new[:, varies].astype(np.float64) - mean) / scale
    level = y.mean(axis=0)
    y = y - level
    if not x.size:
        return np.broadcast_to(level, (len(new), len(level)))
    wide = x.shape[1] > x.shape[0]
    values, vectors = np.linalg.eigh(x @ x.T if wide else x.T @ x)
    known = values > values[-1] * max(x.shape) * np.finfo(np.float64).eps
    values, vectors = values[known], vectors[:, known]
    left = vectors if wide else x @ vectors / np.sqrt(values)  # left singular vectors
    along = left.T @ y
    penalty = min(_PENALTIES * values.mean(), key=lambda p: _left_out(left, values, along, y, p))
    weights = along * (np.sqrt(values) / (values + penalty))[:, None]
    right = x.T @ vectors / np.sqrt(values) if wide else vectors
    return new @ (right @ weights) + level


def _left_out(left, values, along, y, penalty):
    """Mean squared error over examples, each predicted by what was fitted to all others (Allen 1974)."""
    shrunk = values / (values + penalty)
    leverage = left**2 @ shrunk + 1 / len(y)
    error = (y - left @ (shrunk[:, None] * along)) / np.maximum(1 - leverage, 1e-12)[:, None]
    return float((error**2).mean())
