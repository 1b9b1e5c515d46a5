"""Metrics of predicted numbers with 95 % intervals, beside those of the mean; and what held-out residuals say."""

from __future__ import annotations

import math

import numpy as np

from thaw.metrics.intervals import Estimate, binomial_interval, estimate_rows, number_counts

HEADLINES = ("rmse", "mae", "r2", "log_likelihood", "coverage", "quadratic_weighted_kappa")
LEVEL = 0.9  # of intervals of predictions


def regression_metrics(y, predicted, *, targets=None, spread=None, levels=None, seed=0):
    """Compute the metrics of predicted numbers, with intervals.

    Every metric comes with a 95 % interval: the percentile bootstrap over examples (Efron 1979), and for the coverage
    Wilson's (1927).

    - ``rmse``: root mean squared error, in the unit of the target; ``mae``: mean absolute error.
    - ``r2``: 1 less the squared error as a fraction of that of the mean; of several targets, the mean over them.
    - ``log_likelihood``: mean log density of a normal distribution around the prediction, whose standard deviation
      comes from other, held-out examples; in nats.
    - ``coverage``: proportion of the examples inside the interval of split conformal prediction.
    - ``quadratic_weighted_kappa``: agreement of ordered classes beyond chance (Cohen 1968), where there are ``levels``.

    Args:
        y: ``(n, targets)`` numbers, or ``(n,)`` of one target.
        predicted: numbers of the same shape.
        targets: names of the targets. Default ``None``: ``"0"``, ``"1"``, ...
        spread: dict of :func:`residual_spread`, from other examples. Default ``None``: no log-likelihood and coverage.
        levels: ascending values of ordered classes, of one target; each prediction counts as the nearest. Default
            ``None``.
        seed: seed of the bootstrap. Default 0.

    Returns:
        A dict for JSON: ``examples``; ``targets``, a list of dicts with ``target``, each metric as ``{"value", "low",
        "high"}``, with ``"reason"`` where a number is ``None``, and ``baseline``, the root mean squared error of always
        predicting the mean; ``r2``, and where there is one target all of its metrics and its ``baseline`` too;
        ``interval``, the spread; ``notes``, a list of sentences.

    Raises:
        ValueError: arrays of other shapes, or numbers that are not finite.

    Example:
        >>> from thaw.metrics import regression_metrics
        >>> metrics = regression_metrics([1.0, 2.0, 3.0, 6.0], [1.0, 2.0, 3.0, 4.0])
        >>> metrics["rmse"]["value"], metrics["mae"]["value"], round(metrics["r2"]["value"], 3)
        (1.0, 0.5, 0.714)
    """
    y, predicted = _checked(y, predicted)
    n, k = y.shape
    targets = [str(i) for i in range(k)] if targets is None else [str(name) for name in targets]
    if len(targets) != k or (levels is not None and k > 1):
        raise ValueError(
            f"There are {len(targets)} names and {k} targets; expected a name for each, and levels of one target only."
        )
    parts = []
    for c, name in enumerate(targets):
        own = None if spread is None else {key: spread[key][c] for key in ("deviation", "half_width")}
        part = {"target": name} | _metrics_of_target(y[:, c], predicted[:, c], own, levels, seed)
        parts.append(part | {"baseline": float(y[:, c].std())})
    notes = [f"All examples have the same {p['target']!r}; R² is not defined." for p in parts if not p["baseline"]]
    found = {"examples": n}
    if k == 1:
        found |= {name: value for name, value in parts[0].items() if name != "target"}
    else:
        [mean] = estimate_rows(_mean_r2_of_rows(y, predicted), n, width=2 * y.size, seed=seed, reason=_SAME)
        found["r2"] = mean.to_dict()
    return found | ({} if spread is None else {"interval": spread}) | {"targets": parts, "notes": notes}


def residual_spread(y, predicted, level=LEVEL):
    """Measure how far predictions are off, on examples that decide nothing else and are not reported.

    The half width makes an interval around a prediction by split conformal prediction (Vovk et al. 2005; Lei et al.
    2018): the k-th smallest absolute residual of n, with k = ceil((n + 1) level). For examples that are drawn alike it
    covers at least that level on average, whatever the model is.

    Args:
        y: ``(n, targets)`` numbers, or ``(n,)`` of one target.
        predicted: numbers of the same shape, of a model that has not seen these examples.
        level: of the interval, between 0 and 1. Default 0.9.

    Returns:
        A dict for JSON: ``level``; ``examples``, their number; and for each target ``deviation``, the root mean squared
        residual, and ``half_width``, of the interval; ``None`` with fewer than ``level / (1 - level)`` examples.

    Raises:
        ValueError: as :func:`regression_metrics`, or another level.

    Example:
        >>> from thaw.metrics import residual_spread
        >>> residual_spread([0.0] * 9, [1, -2, 3, -4, 5, -6, 7, -8, 9])["half_width"]
        [9.0]
    """
    if not 0 < level < 1:
        raise ValueError(f"level={level!r}; expected a number between 0 and 1, such as 0.9.")
    y, predicted = _checked(y, predicted)
    residuals = np.sort(np.abs(y - predicted), axis=0)
    n = len(residuals)
    rank = math.ceil((n + 1) * level - 1e-9)  # 0.9 has no exact binary form
    widths = [None] * y.shape[1] if rank > n else residuals[rank - 1].tolist()
    deviation = np.sqrt((residuals**2).mean(axis=0)).tolist()
    return {"level": level, "examples": n, "deviation": deviation, "half_width": widths}


def nearest_levels(numbers, levels):
    """Return the number of the nearest level; halfway between two, of the upper one.

    Args:
        numbers: ``(...)`` numbers.
        levels: ``(k,)`` ascending numbers.

    Example:
        >>> from thaw.metrics.regression import nearest_levels
        >>> nearest_levels([0.2, 0.5, 7.0], [0, 1, 2]).tolist()
        [0, 1, 2]
    """
    levels = np.asarray(levels, np.float64)
    return np.searchsorted((levels[1:] + levels[:-1]) / 2, numbers, side="right")


_SAME = "too few different values for an interval"


def _checked(y, predicted):
    y, predicted = np.asarray(y, np.float64), np.asarray(predicted, np.float64)
    y, predicted = (a[:, None] if a.ndim == 1 else a for a in (y, predicted))
    if y.ndim != 2 or y.shape != predicted.shape or 0 in y.shape:
        raise ValueError(
            f"y has shape {y.shape} and the predictions {predicted.shape}; expected the same, (examples, targets)."
        )
    if not (np.isfinite(y).all() and np.isfinite(predicted).all()):
        raise ValueError("y or the predictions hold NaN or infinity; expected finite numbers.")
    return y, predicted


def _metrics_of_target(y, predicted, spread, levels, seed):
    """Estimate the metrics of one target."""
    n, residual = len(y), y - predicted
    deviation, half_width = (None, None) if spread is None else (spread["deviation"], spread["half_width"])
    density = None
    if deviation:
        density = -0.5 * (np.log(2 * np.pi * deviation**2) + (residual / deviation) ** 2)
    cell = size = None
    if levels is not None:
        size = len(levels)
        cell = nearest_levels(y, levels) * size + nearest_levels(predicted, levels)

    def metrics(rows):
        r = residual[rows]
        columns = [np.sqrt((r**2).mean(axis=-1)), np.abs(r).mean(axis=-1), _r2(y[rows], r)]
        if density is not None:
            columns.append(density[rows].mean(axis=-1))
        if cell is not None:
            columns.append(_quadratic_kappa(number_counts(cell[rows], size * size).reshape(-1, size, size)))
        return np.stack(columns, axis=-1)

    names = ["rmse", "mae", "r2"] + ["log_likelihood"] * (density is not None)
    names += ["quadratic_weighted_kappa"] * (cell is not None)
    width = n + (0 if size is None else size * size)
    estimates = dict(zip(names, estimate_rows(metrics, n, width=width, seed=seed, reason=_SAME)))
    if spread is not None and density is None:
        estimates["log_likelihood"] = Estimate(None, reason="the held-out residuals are all 0")
    if half_width is not None:
        estimates["coverage"] = binomial_interval(int((np.abs(residual) <= half_width).sum()), n)
    elif spread is not None:
        estimates["coverage"] = Estimate(None, reason="too few held-out examples for an interval")
    return {name: estimates[name].to_dict() for name in HEADLINES if name in estimates}


def _mean_r2_of_rows(y, predicted):
    return lambda rows: _r2(y[rows], (y - predicted)[rows], axis=-2).mean(axis=-1, keepdims=True)


def _r2(y, residual, axis=-1):
    total = ((y - y.mean(axis=axis, keepdims=True)) ** 2).sum(axis=axis)
    error = (residual**2).sum(axis=axis)
    return 1 - np.divide(error, total, out=np.full(total.shape, np.nan), where=total > 0)


def _quadratic_kappa(confusion):
    """Return Cohen's kappa with quadratic weights of confusion matrices ``(resamples, k, k)``."""
    k = confusion.shape[-1]
    weights = (np.arange(k)[:, None] - np.arange(k)) ** 2
    total = confusion.sum(axis=(-2, -1))
    chance = confusion.sum(axis=-1)[..., None] * confusion.sum(axis=-2)[..., None, :] / total[..., None, None]
    observed, expected = (weights * confusion).sum(axis=(-2, -1)), (weights * chance).sum(axis=(-2, -1))
    return 1 - np.divide(observed, expected, out=np.full(expected.shape, np.nan), where=expected > 0)
