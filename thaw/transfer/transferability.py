"""Score without training how well features or predictions transfer to a target task: LogME, H-score, LEEP, NCE."""

from __future__ import annotations

import math

import numpy as np

# The evidence is maximized over alpha / beta: on a grid that spans more than double precision can resolve, then between
# the neighbors of the best grid point. 50 golden sections, each to 0.618 of the interval, change nothing visible.
RATIO_GRID = np.logspace(-16, 16, 129)
GOLDEN_SECTION_STEPS = 50


def logme(features, y, *, regression=False):
    """Compute LogME: the logarithm of the maximum evidence of labels given features, per example (You et al. 2021).

    Each class against the rest is a Bayesian linear model ``y = features @ w + noise`` with ``w`` normal of
    precision alpha and noise of precision beta, both at the maximum of the evidence. The score is the mean over
    classes: higher is better. It has no interval; a small difference says nothing.

    By the singular values the evidence is a function of ``alpha / beta`` alone, which is searched over its whole
    range: this is the maximum that the published fixed-point iteration approaches, not where it stops, and with
    more features than examples the terms of the missing directions are included.

    Args:
        features: ``(n, d)`` numbers.
        y: ``(n,)`` class numbers; with ``regression``, ``(n,)`` or ``(n, targets)`` numbers.
        regression: whether ``y`` are numbers to predict, not classes. Default ``False``.

    Returns:
        The score, a float in nats per example; infinite where the labels are an exact linear function of fewer
        features than there are examples.

    Raises:
        ValueError: arrays of different length, numbers that are not finite, or a single class.

    Example:
        >>> import numpy as np
        >>> from thaw.transfer import logme
        >>> y = np.array([0, 0, 1, 1])
        >>> clear, blurred = np.array([[-1.0], [-1.1], [1.0], [1.1]]), np.array([[-1.0], [1.1], [1.0], [-0.9]])
        >>> logme(clear, y) > logme(blurred, y)
        True
    """
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(f"features has shape {features.shape}; expected (n, d).")
    targets = _targets(np.asarray(y), len(features), regression)
    if not (np.isfinite(features).all() and np.isfinite(targets).all()):
        raise ValueError("The features or the labels hold NaN or infinity; expected finite numbers.")
    u, s, _ = np.linalg.svd(features, full_matrices=False)
    if s[0] == 0:
        raise ValueError("All features are 0; expected features that differ between examples.")
    nonzero = s > s[0] * max(features.shape) * np.finfo(np.float64).eps
    sigma = (s[nonzero] / s[0]) ** 2  # alpha absorbs the scale of the features
    projected = (u[:, nonzero].T @ targets) ** 2
    square = (targets**2).sum(axis=0)
    residual = square - projected.sum(axis=0)  # outside the span of the features
    residual[residual < square * len(features) * np.finfo(np.float64).eps] = 0
    if len(sigma) < len(features) and (residual == 0).any():
        return math.inf
    return float(np.mean(_max_log_evidence(sigma, projected, residual, len(features))) / len(features))


def _max_log_evidence(sigma, projected, residual, n):
    """Return the maximum of the log evidence for each column of the targets.

    With ``t = alpha / beta``, the best beta is ``n / E(t)`` where ``E`` is the squared error plus ``t`` times the
    squared weights, and what is left to maximize is a function of ``t``.
    """

    def profile(t):  # (candidates, columns) -> the same
        shrinkage = t[..., None] / (t[..., None] + sigma)
        error = (shrinkage * projected.T).sum(axis=-1) + residual
        logs = -np.log1p(sigma / t[..., None]).sum(axis=-1)
        return (logs - n * np.log(error)) / 2

    # On the grid t is the same for all columns: one matrix product for all of them.
    shrinkage = RATIO_GRID[:, None] / (RATIO_GRID[:, None] + sigma)
    logs = -np.log1p(sigma / RATIO_GRID[:, None]).sum(axis=1)
    on_grid = (logs[:, None] - n * np.log(shrinkage @ projected + residual)) / 2
    best = on_grid.argmax(axis=0)
    low = np.log(RATIO_GRID[np.maximum(best - 1, 0)])
    high = np.log(RATIO_GRID[np.minimum(best + 1, len(RATIO_GRID) - 1)])
    golden = (math.sqrt(5) - 1) / 2
    left, right = high - golden * (high - low), low + golden * (high - low)
    at_left, at_right = profile(np.exp(left)), profile(np.exp(right))
    for _ in range(GOLDEN_SECTION_STEPS):  # golden section (Kiefer 1953), all columns at once
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
    maximum = np.maximum(on_grid.max(axis=0), np.maximum(at_left, at_right))
    return maximum + n * (math.log(n) - 1 - math.log(2 * math.pi)) / 2


def _targets(y, n, regression):
    """Return one column for each class that occurs, or for each number to predict."""
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


def h_score(features, y, *, shrink=False):
    """Compute the H-score, ``trace(cov(features)^-1 cov(class means))`` (Bao et al. 2019): higher is better.

    It is 0 where all classes have the same mean, and at most the number of classes less one. Invertible linear maps of
    the features do not change it. With hardly more examples than features, or fewer, it is near its maximum for any
    labels: use ``shrink``, which replaces the covariance by the estimate of Ledoit and Wolf (2004) (Ibrahim et
    al. 2021). Of nearly white features that estimate keeps nothing, and the score is 0 whatever the labels. It has no
    interval; a small difference says nothing.

    Args:
        features: ``(n, d)`` numbers.
        y: ``(n,)`` class numbers.
        shrink: whether to regularize the covariance. Default ``False``.

    Returns:
        The score, a float.

    Raises:
        ValueError: arrays of different length, numbers that are not finite, a single class, or features that are the
            same for all examples.

    Example:
        >>> import numpy as np
        >>> from thaw.transfer import h_score
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
        raise ValueError("The features hold NaN or infinity; expected finite numbers.")
    classes, index, counts = np.unique(y, return_inverse=True, return_counts=True)
    if len(classes) < 2:
        raise ValueError(f"All examples are of class {classes[0]}; expected at least two classes.")
    n, d = features.shape
    centred = features - features.mean(axis=0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    nonzero = s > max(np.abs(features).max(), s[0]) * max(n, d) * np.finfo(np.float64).eps
    if not nonzero.any():
        raise ValueError("The features are the same for all examples; expected features that differ.")
    u, variances = u[:, nonzero], s[nonzero] ** 2 / n
    # In the basis of the singular vectors the covariance is diagonal, and each direction adds the proportion of its
    # variance that lies between the classes.
    sums = np.zeros((len(classes), u.shape[1]))
    np.add.at(sums, index, u)
    between = (sums**2 / counts[:, None]).sum(axis=0)
    if not shrink:
        return float(between.sum())
    mean = variances.sum() / d
    a = _shrinkage((centred**2).sum(axis=1), variances, n, d)
    return float(((1 - a) * variances * between / ((1 - a) * variances + a * mean)).sum())


def _shrinkage(norms, variances, n, d):
    """Return the shrinkage of the covariance towards a multiple of the identity (Ledoit and Wolf 2004), 0 to 1.

    Equal to ``sklearn.covariance.ledoit_wolf_shrinkage``, which takes twenty times as long where the eigenvalues are
    known already.

    Args:
        norms: ``(n,)`` squared lengths of the centered rows.
        variances: eigenvalues of the covariance that are not 0.
        n: number of rows.
        d: number of columns.
    """
    squares = (variances**2).sum()
    distance = (squares - variances.sum() ** 2 / d) / d  # of the covariance from the multiple of the identity
    noise = ((norms**2).sum() / n - squares) / (d * n)
    return 1.0 if distance <= 0 else float(min(max(noise, 0.0), distance) / distance)


def leep(y, p):
    """Compute LEEP: the mean log-likelihood of target labels given source classes (Nguyen et al. 2020).

    The source model gives each example probabilities over its own classes. Over the data, each source class has an
    empirical distribution of target labels; the likelihood of an example's label is the mean of these distributions,
    weighted by its probabilities. Nothing is trained. Higher is better, at most 0.

    Args:
        y: ``(n,)`` class numbers of the target task.
        p: ``(n, source classes)`` probabilities, rows summing to 1, as from :func:`thaw.features.predict_proba`.

    Returns:
        The score, a float in nats.

    Raises:
        ValueError: arrays of different length, or rows that are no probabilities.

    Example:
        >>> import numpy as np
        >>> from thaw.transfer import leep
        >>> leep(np.array([1, 0, 1]), np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]))
        0.0
    """
    y, p = np.asarray(y), np.asarray(p, np.float64)
    if p.ndim != 2 or 0 in p.shape or y.shape != p.shape[:1] or y.dtype.kind not in "iub":
        raise ValueError(
            f"y is {y.dtype} of shape {y.shape} and p has shape {p.shape}; expected n class numbers and "
            "(n, source classes)."
        )
    if not (np.isfinite(p).all() and p.min() >= 0 and np.allclose(p.sum(axis=1), 1, atol=1e-3)):
        raise ValueError("The rows of p do not sum to 1; expected probabilities, not logits.")
    classes, index = np.unique(y, return_inverse=True)
    joint = np.zeros((len(classes), p.shape[1]))
    np.add.at(joint, index, p)
    total = joint.sum(axis=0)
    conditional = joint / np.where(total > 0, total, 1)  # a source class without any probability adds nothing
    likelihood = (p * conditional[index]).sum(axis=1) / p.sum(axis=1)
    return float(np.minimum(np.log(likelihood), 0).mean())


def nce(y, source_labels):
    """Compute the negative conditional entropy of target labels given source labels (Tran et al. 2019).

    It is 0 where each source class has a single target label, and minus the entropy of the target labels where the
    source labels are independent of them: higher is better. With many source classes and few examples it is biased
    upwards, because each source class then has few examples.

    Args:
        y: ``(n,)`` class numbers of the target task.
        source_labels: ``(n,)`` class numbers of the source task for the same examples: labels, or predictions of the
            source model.

    Returns:
        The score, a float in nats.

    Raises:
        ValueError: arrays of different length, or no class numbers.

    Example:
        >>> import numpy as np
        >>> from thaw.transfer import nce
        >>> round(nce(np.array([0, 1, 0, 0]), np.array([0, 0, 1, 1])), 6)
        -0.346574
    """
    y, source = np.asarray(y), np.asarray(source_labels)
    if source.ndim != 1 or len(source) == 0 or source.shape != y.shape:
        raise ValueError(
            f"y has shape {y.shape} and source_labels {source.shape}; expected two class numbers for each example."
        )
    if source.dtype.kind not in "iub" or y.dtype.kind not in "iub":
        raise ValueError(f"y is {y.dtype} and source_labels {source.dtype}; expected class numbers.")
    pairs, counts = np.unique(np.stack([source, y], axis=1), axis=0, return_counts=True)
    sources, source_counts = np.unique(source, return_counts=True)
    totals = source_counts[np.searchsorted(sources, pairs[:, 0])]
    return float((counts / len(y) * np.log(counts / totals)).sum()) + 0.0
