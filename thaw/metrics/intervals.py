"""Estimates with 95 % intervals: binomial intervals and the bootstrap."""

from __future__ import annotations

import dataclasses

import numpy as np

RESAMPLES = 2000
RESAMPLES_OF_ROWS = 1000
MAX_UNDEFINED_RESAMPLES = 0.05  # proportion without a class, and so without a metric, that an interval may leave out
MAX_NUMBERS_IN_BLOCK = 2_000_000  # resampled at a time, so that memory stays small


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A measured number with its 95 % interval.

    ``str()`` is for sentences, ``"0.906 (0.89 to 0.92)"``; a format such as ``f"{estimate:.3f}"`` is for tables,
    ``"0.906 [0.890, 0.920]"``. It unpacks into ``value, low, high``.

    Args:
        value: the number; ``None`` where it is not defined.
        low: lower end of the interval; ``None`` where there is none.
        high: upper end of the interval; ``None`` where there is none.
        reason: why a number is missing, as part of a sentence; ``None`` where none is.

    Example:
        >>> from thaw.metrics.intervals import Estimate
        >>> print(Estimate(0.906, 0.89, 0.92), f"{Estimate(0.05, -0.01, 0.11):+.2f}")
        0.906 (0.89 to 0.92) +0.05 [-0.01, +0.11]
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str | None = None

    def __iter__(self):
        return iter((self.value, self.low, self.high))

    def __str__(self):
        if self.value is None:
            return "unknown" if self.reason is None else f"unknown: {self.reason}"
        if self.low is None or self.high is None:
            return f"{self.value:.3f}"
        return f"{self.value:.3f} ({round(self.low, 3):g} to {round(self.high, 3):g})"

    def __format__(self, spec):
        if not spec:
            return str(self)
        if self.value is None:
            return "unknown"
        if self.low is None or self.high is None:
            return format(self.value, spec)
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"

    def to_dict(self):
        """Return ``{"value", "low", "high"}`` for JSON, and ``"reason"`` where a number is missing."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        return numbers if self.reason is None else numbers | {"reason": self.reason}


def binomial_interval(count, n, method="wilson"):
    """Estimate a proportion with its 95 % interval.

    Args:
        count: number of examples that have the property.
        n: number of all examples, at least 1.
        method: ``"wilson"`` (Wilson 1927), whose coverage is 95 % on average; ``"exact"`` (Clopper and Pearson 1934),
            whose coverage is never below.

    Returns:
        :class:`Estimate`.

    Example:
        >>> from thaw.metrics.intervals import binomial_interval
        >>> print(binomial_interval(9, 10))
        0.900 (0.596 to 0.982)
    """
    from scipy.stats import binomtest

    value, ends = int(count) / int(n), binomtest(int(count), int(n)).proportion_ci(0.95, method=method)
    # At 0 and 1 rounding would leave the value outside by its last bit.
    return Estimate(value, float(min(ends.low, value)), float(max(ends.high, value)))


def bootstrap(statistic, *arrays, resamples=RESAMPLES, axes=1, max_undefined=1.0, block=None, seed=0):
    """Estimate statistics with their 95 % intervals by the percentile bootstrap (Efron 1979).

    Every resample draws as many rows as there are, with replacement, and the same rows of all arrays: what belongs to
    one example, such as its label and its prediction or the errors of two models, stays together. To resample
    clusters, give arrays with one row for each cluster.

    Args:
        statistic: function of the resampled arrays ``(resamples, rows, ...)`` that returns ``(resamples,)``, or
            ``(resamples, k)`` for several statistics of the same resamples. It is called for blocks of resamples.
        *arrays: ``(rows, ...)`` each, of equal length.
        resamples: number of resamples.
        axes: number of leading axes that are resampled, independently of one another: 2 for arrays ``(seeds, rows,
            ...)``, where the same seeds and the same rows are drawn for everything behind.
        max_undefined: proportion of resamples that may lack a finite value, from 0 to 1; they are left out. Where it
            is more, or all, there is no interval.
        block: number of resamples to compute at a time, for a statistic that needs much memory. Default ``None``: as
            many as two million resampled numbers. It changes no result.
        seed: seed of the resampling.

    Returns:
        :class:`Estimate`; a list of ``k`` of them where the statistic returns several.

    Example:
        >>> import numpy as np
        >>> from thaw.metrics.intervals import bootstrap
        >>> y, predicted = np.array([0, 1, 1, 0, 1, 0]), np.array([0, 1, 0, 0, 1, 0])
        >>> print(bootstrap(lambda y, predicted: (y == predicted).mean(axis=1), y, predicted))
        0.833 (0.5 to 1)
    """
    arrays = [np.asarray(array) for array in arrays]
    shape = arrays[0].shape[:axes]
    rng = np.random.default_rng(seed)
    value = np.asarray(statistic(*(array[None] for array in arrays)))[0]
    block = block or max(1, MAX_NUMBERS_IN_BLOCK // max(1, max(array.size for array in arrays)))
    drawn = []
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        rows = [rng.integers(0, n, (count, n)) for n in shape]
        # Shaped so that the drawn positions of all axes are combined: (count, rows) or (count, seeds, rows).
        at = tuple(r.reshape(count, *(r.shape[1] if i == j else 1 for j in range(axes))) for i, r in enumerate(rows))
        drawn.append(statistic(*(array[at] for array in arrays)))
    drawn = np.concatenate(drawn).astype(np.float64)
    if drawn.ndim == 1:
        return _percentile_interval(value, drawn, max_undefined)
    return [_percentile_interval(v, column, max_undefined) for v, column in zip(value, drawn.T)]


def _percentile_interval(value, drawn, max_undefined):
    value = float(value) if np.isfinite(value) else None
    defined = drawn[np.isfinite(drawn)]
    if not len(defined) or 1 - len(defined) / len(drawn) > max_undefined:
        return Estimate(value)
    low, high = np.quantile(defined, (0.025, 0.975))
    return Estimate(value, float(low), float(high))


def estimate_rows(metrics, n, *, width, seed=0, reason="too few examples of a class for an interval"):
    """Estimate several metrics of the same examples by one bootstrap.

    Args:
        metrics: function from row numbers ``(resamples, n)`` to the metrics ``(resamples, k)``; NaN where one is not
            defined.
        n: number of examples.
        width: numbers that the function computes for each resample, so that memory stays small.
        seed: seed of the resampling. Default 0.
        reason: of an estimate without an interval, as part of a sentence.

    Returns:
        A list of ``k`` :class:`Estimate`. A metric that more than 5 % of the resamples lack has no interval.

    Example:
        >>> import numpy as np
        >>> from thaw.metrics.intervals import estimate_rows
        >>> right = np.array([1.0, 1.0, 0.0, 1.0])
        >>> print(estimate_rows(lambda rows: right[rows].mean(axis=-1)[..., None], 4, width=4)[0])
        0.750 (0.25 to 1)
    """
    if n < 2:
        values = metrics(np.arange(n)[None])[0]
        values = [float(value) if np.isfinite(value) else None for value in values]
        return [Estimate(value, reason="one example allows no interval") for value in values]
    estimates = bootstrap(
        metrics,
        np.arange(n),
        resamples=RESAMPLES_OF_ROWS,
        max_undefined=MAX_UNDEFINED_RESAMPLES,
        block=max(2, MAX_NUMBERS_IN_BLOCK // width),
        seed=seed,
    )
    return [Estimate(e.value, reason=reason) if e.low is None else e for e in estimates]


def number_counts(numbers, size):
    """Count how often each number occurs along the last axis: ``bincount`` of many rows at once.

    Args:
        numbers: ``(..., n)`` whole numbers from 0.
        size: number of different ones.

    Returns:
        ``(..., size)`` int64.

    Example:
        >>> import numpy as np
        >>> from thaw.metrics.intervals import number_counts
        >>> number_counts(np.array([[0, 1, 1], [2, 2, 2]]), 3).tolist()
        [[1, 2, 0], [0, 0, 3]]
    """
    rows = numbers.reshape(-1, numbers.shape[-1])
    flat = (rows + size * np.arange(len(rows))[:, None]).ravel()
    return np.bincount(flat, minlength=size * len(rows)).reshape(*numbers.shape[:-1], size)


def mean_of_known(values):
    """Return the mean over the last axis without its NaNs; NaN, without a warning, where nothing is left.

    Args:
        values: ``(..., n)`` numbers.
    """
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(axis=-1) / known.sum(axis=-1)
