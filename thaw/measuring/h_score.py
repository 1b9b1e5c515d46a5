"""H-score: how much of the spread of features lies between the classes."""

from __future__ import annotations

import numpy as np


def h_score(features, y, *, shrink=False):
    """``trace(cov(features)^-1 cov(class means))`` (Bao et al. 2019): higher is better.

    0 where all classes have the same mean, at most the number of classes less one. No linear map of the features
    that can be undone changes it. With fewer examples than features, or hardly more, it is near its maximum for any
    labels: use ``shrink``, which replaces the covariance by the estimate of Ledoit and Wolf (2004) (Ibrahim et
    al. 2021). Of features that are nearly white that estimate keeps nothing, and the score is 0 whatever they say of
    the labels. It has no interval; two close values say nothing.

    Args:
        features: ``(n, d)`` numbers, one row for each example.
        y: ``(n,)`` class numbers.
        shrink: take the regularised form.

    Returns:
        The score, a float.

    Raises:
        ValueError: arrays that do not belong together, numbers that are not finite, a single class, or features that
            are the same for all examples.

    Example:
        >>> import numpy as np
        >>> from thaw.measuring.h_score import h_score
        >>> round(h_score(np.array([[-1.0], [1.0], [1.0], [3.0]]), np.array([0, 0, 1, 1])), 6)
        0.5
    """
    features, y = np.asarray(features, np.float64), np.asarray(y)
    if features.ndim != 2 or 0 in features.shape or y.shape != (len(features),) or y.dtype.kind not in "iub":
        raise ValueError(
            f"features has shape {features.shape} and y is {y.dtype} of shape {y.shape}; expected (n, d) and n "
            "class numbers."
        )
    if not np.isfinite(features).all():
        raise ValueError("There is NaN or infinity among the features; expected numbers.")
    classes, place, counts = np.unique(y, return_inverse=True, return_counts=True)
    if len(classes) < 2:
        raise ValueError(f"All examples are of class {classes[0]}; expected at least two classes.")
    n, d = features.shape
    centred = features - features.mean(axis=0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    known = s > max(np.abs(features).max(), s[0]) * max(n, d) * np.finfo(np.float64).eps
    if not known.any():
        raise ValueError("The features are the same for all examples; expected features that differ.")
    u, variances = u[:, known], s[known] ** 2 / n
    # In the directions of the singular vectors the covariance is diagonal, and each direction adds its own part: the
    # share of its spread that lies between the classes.
    sums = np.zeros((len(classes), u.shape[1]))
    np.add.at(sums, place, u)
    between = (sums**2 / counts[:, None]).sum(axis=0)
    if not shrink:
        return float(between.sum())
    mean = variances.sum() / d
    a = _shrinkage((centred**2).sum(axis=1), variances, n, d)
    return float(((1 - a) * variances * between / ((1 - a) * variances + a * mean)).sum())


def _shrinkage(norms, variances, n, d):
    """How far the covariance is pulled to a multiple of the identity (Ledoit and Wolf 2004), 0 to 1.

    Args:
        norms: squared lengths of the centred rows.
        variances: eigenvalues of the covariance that are not 0.
        n: rows.
        d: columns.
    """
    squares = (variances**2).sum()
    away = (squares - variances.sum() ** 2 / d) / d
    noise = ((norms**2).sum() / n - squares) / (d * n)
    return 1.0 if away <= 0 else float(min(max(noise, 0.0), away) / away)
