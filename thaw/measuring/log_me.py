"""LogME: how well a linear readout of features explains labels, without training one."""

from __future__ import annotations

import math

import numpy as np

# Searched first on a grid of alpha / beta, which spans more than double precision can tell apart, then between the
# neighbours of the best grid point. A narrowing by 0.618 in each of 50 steps leaves nothing to see in the evidence.
_GRID = np.logspace(-16, 16, 129)
_STEPS = 50


def log_me(features, y, *, regression=False):
    """The logarithm of the maximum evidence for labels given features, for one example (You et al. 2021).

    Each class against the rest is a Bayesian linear model ``y = features @ w + noise`` with ``w`` normal of
    precision alpha and noise of precision beta; both are set to where the evidence is largest. The mean over
    classes is the score: higher is better. It has no interval; two close values say nothing.

    The singular values make the evidence a function of ``alpha / beta`` alone, which is searched over its whole
    range: this is the maximum the published fixed-point iteration moves towards, not where it stops, and where
    there are more features than examples the terms of the missing directions are not left out.

    Args:
        features: ``(n, d)`` numbers, one row for each example.
        y: ``(n,)`` class numbers; with ``regression``, ``(n,)`` or ``(n, targets)`` numbers.
        regression: the labels are numbers, not classes.

    Returns:
        The score, a float in nats for one example; infinite where the labels are an exact linear function of fewer
        features than there are examples.

    Raises:
        ValueError: arrays that do not belong together, numbers that are not finite, or a single class.

    Example:
        >>> import numpy as np
        >>> from thaw.measuring.log_me import log_me
        >>> y = np.array([0, 0, 1, 1])
        >>> clear, blurred = np.array([[-1.0], [-1.1], [1.0], [1.1]]), np.array([[-1.0], [1.1], [1.0], [-0.9]])
        >>> log_me(clear, y) > log_me(blurred, y)
        True
    """
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(f"features has shape {features.shape}; expected (examples, numbers for each).")
    targets = _targets(np.asarray(y), len(features), regression)
    if not (np.isfinite(features).all() and np.isfinite(targets).all()):
        raise ValueError("There is NaN or infinity among the features or the labels; expected numbers.")
    u, s, _ = np.linalg.svd(features, full_matrices=False)
    if s[0] == 0:
        raise ValueError("All features are 0; expected features that differ between examples.")
    known = s > s[0] * max(features.shape) * np.finfo(np.float64).eps
    sigma = (s[known] / s[0]) ** 2  # the scale of the features does not matter: alpha takes it up
    along = (u[:, known].T @ targets) ** 2
    square = (targets**2).sum(axis=0)
    beside = square - along.sum(axis=0)  # what no weighting of the features gives
    beside[beside < square * len(features) * np.finfo(np.float64).eps] = 0
    if len(sigma) < len(features) and (beside == 0).any():
        return math.inf
    return float(np.mean(_evidence(sigma, along, beside, len(features))) / len(features))


def _evidence(sigma, along, beside, n):
    """The largest logarithm of the evidence, for each column of the targets.

    With ``t = alpha / beta``, the best beta is ``n / E(t)`` where ``E`` is the squared error plus ``t`` times the
    squared weights, and what is left to maximise is a function of ``t``.
    """

    def profile(t):  # (candidates, columns) -> the same
        shares = t[..., None] / (t[..., None] + sigma)
        error = (shares * along.T).sum(axis=-1) + beside
        logs = -np.log1p(sigma / t[..., None]).sum(axis=-1)
        return (logs - n * np.log(error)) / 2

    # On the grid t is the same for all columns, so that one matrix product does.
    shares = _GRID[:, None] / (_GRID[:, None] + sigma)
    logs = -np.log1p(sigma / _GRID[:, None]).sum(axis=1)
    on_grid = (logs[:, None] - n * np.log(shares @ along + beside)) / 2
    best = on_grid.argmax(axis=0)
    low = np.log(_GRID[np.maximum(best - 1, 0)])
    high = np.log(_GRID[np.minimum(best + 1, len(_GRID) - 1)])
    golden = (math.sqrt(5) - 1) / 2
    left, right = high - golden * (high - low), low + golden * (high - low)
    at_left, at_right = profile(np.exp(left)), profile(np.exp(right))
    for _ in range(_STEPS):  # golden section (Kiefer 1953), all columns at once
        go_left = at_left >= at_right
        low, high = np.where(go_left, low, left), np.where(go_left, right, high)
        new = np.where(go_left, high - golden * (high - low), low + golden * (high - low))
        at_new = profile(np.exp(new))
        left, right, at_left, at_right = (
            np.where(go_left, new, right),
            np.where(go_left, left, new),
            np.where(go_left, at_new, at_right),
            np.where(go_left, at_left, at_new),
        )
    found = np.maximum(on_grid.max(axis=0), np.maximum(at_left, at_right))
    return found + n * (math.log(n) - 1 - math.log(2 * math.pi)) / 2


def _targets(y, n, regression):
    """One column for each class that occurs, or for each number to be predicted."""
    if y.shape[:1] != (n,) or y.ndim > (2 if regression else 1):
        raise ValueError(
            f"y has shape {y.shape} for {n} examples; expected one {'row' if regression else 'class'} each."
        )
    if regression:
        targets = np.asarray(y, np.float64).reshape(n, -1)
        if not targets.any(axis=0).all():
            raise ValueError("A column of y is all 0; expected numbers that differ between examples.")
        return targets
    if y.dtype.kind not in "iub":
        raise ValueError(f"y is {y.dtype}; expected class numbers, or regression=True for numbers to predict.")
    classes = np.unique(y)
    if len(classes) < 2:
        raise ValueError(f"All examples are of class {classes[0]}; expected at least two classes.")
    return (y[:, None] == classes).astype(np.float64)
