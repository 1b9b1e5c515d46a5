"""Ridge regression of features, whose penalty has the smallest leave-one-out error."""

from __future__ import annotations

import numpy as np

# Ridge penalties relative to the mean eigenvalue of the features: from nearly none to nothing but the mean.
RIDGE_PENALTIES = np.logspace(-5, 3, 17)
MIN_RELATIVE_SPREAD = 1e-7  # standard deviation over mean; a feature below it is constant, but for rounding


def ridge_predict(x, y, new_x):
    """Fit a ridge regression to some examples and predict others (Hoerl and Kennard 1970).

    Features are scaled to mean 0 and standard deviation 1 on the fitted examples. The penalty has the smallest
    leave-one-out error (Allen 1974) on them.

    One eigendecomposition, of the smaller of the two Gram matrices, serves all penalties and sets their scale;
    ``sklearn.linear_model.RidgeCV`` needs another one for the scale and takes three times as long. The tests compare
    the two.

    Args:
        x: ``(n, d)`` features to fit to.
        y: ``(n, t)`` float64 targets.
        new_x: ``(m, d)`` features to predict for.

    Returns:
        Float64 ``(m, t)``.

    Example:
        >>> import numpy as np
        >>> from thaw.features.ridge import ridge_predict
        >>> x = np.arange(6.0)[:, None]
        >>> ridge_predict(x, 2 * x, np.array([[7.0]])).round(2).tolist()
        [[14.0]]
    """
    x, new_x = standardized(x, new_x)
    intercept = y.mean(axis=0)
    y = y - intercept
    if not x.size:
        return np.broadcast_to(intercept, (len(new_x), len(intercept)))
    is_wide = x.shape[1] > x.shape[0]
    values, vectors = np.linalg.eigh(x @ x.T if is_wide else x.T @ x)
    nonzero = values > values[-1] * max(x.shape) * np.finfo(np.float64).eps
    values, vectors = values[nonzero], vectors[:, nonzero]
    left = vectors if is_wide else x @ vectors / np.sqrt(values)  # left singular vectors
    projections = left.T @ y
    penalty = min(
        RIDGE_PENALTIES * values.mean(), key=lambda penalty: _leave_one_out(left, values, projections, y, penalty)
    )
    coefficients = projections * (np.sqrt(values) / (values + penalty))[:, None]
    right = x.T @ vectors / np.sqrt(values) if is_wide else vectors
    return new_x @ (right @ coefficients) + intercept


def _leave_one_out(left, values, projections, y, penalty):
    """Return the mean squared leave-one-out error, which has a closed form (Allen 1974)."""
    shrunk = values / (values + penalty)
    leverage = left**2 @ shrunk + 1 / len(y)
    error = (y - left @ (shrunk[:, None] * projections)) / np.maximum(1 - leverage, 1e-12)[:, None]
    return float((error**2).mean())


def standardized(x, new_x):
    """Scale the features of both to mean 0 and standard deviation 1 on the first, without constant ones.

    Args:
        x: ``(n, d)`` features.
        new_x: ``(m, d)`` features.

    Returns:
        Both as float64, with at most ``d`` columns.
    """
    x = x.astype(np.float64)
    mean, scale = x.mean(axis=0), x.std(axis=0)
    varies = scale > MIN_RELATIVE_SPREAD * np.abs(mean)
    mean, scale = mean[varies], scale[varies]
    return (x[:, varies] - mean) / scale, (new_x[:, varies].astype(np.float64) - mean) / scale
