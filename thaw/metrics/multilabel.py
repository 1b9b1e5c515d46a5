"""Metrics of several labels for each example, with 95 % intervals; thresholds from held-out examples."""

from __future__ import annotations

import numpy as np

from thaw.metrics.classification import MAX_RANKED_SCORES, MIN_PROBABILITY
from thaw.metrics.intervals import Estimate, binomial_interval, estimate_rows, mean_of_known, number_counts

HEADLINES = ("mean_average_precision", "micro_f1", "macro_f1", "subset_accuracy", "log_loss")
THRESHOLD = 0.5


def multilabel_metrics(y, p, *, labels=None, thresholds=None, seed=0):
    """Compute the metrics of several labels for each example, with intervals.

    Every headline metric comes with a 95 % interval: the percentile bootstrap over examples (Efron 1979), and for the
    subset accuracy Wilson's (1927).

    - ``mean_average_precision``: mean over the labels that occur of the average precision, the area under the steps of
      the precision-recall curve; it needs no thresholds.
    - ``micro_f1``: F1 of all decisions together.
    - ``macro_f1``: mean F1 over the labels that occur or are predicted.
    - ``subset_accuracy``: proportion of the examples whose labels are all right.
    - ``log_loss``: mean over examples and labels, in nats, probabilities clipped at 1e-7.

    Args:
        y: ``(n, labels)`` numbers 0 or 1.
        p: ``(n, labels)`` probabilities.
        labels: names of the labels. Default ``None``: ``"0"``, ``"1"``, ...
        thresholds: ``(labels,)`` probabilities from which a label is predicted, chosen on other examples. Default
            ``None``: 0.5.
        seed: seed of the bootstrap. Default 0.

    Returns:
        A dict for JSON: ``examples``; each headline metric as ``{"value", "low", "high"}``, with ``"reason"`` where a
        number is ``None``; ``labels``, a list of ``{"label", "threshold", "average_precision", "precision", "recall",
        "f1", "support"}``; ``notes``, a list of sentences.

    Raises:
        ValueError: arrays of other shapes, numbers other than 0 and 1, or no probabilities.

    Example:
        >>> import numpy as np
        >>> from thaw.metrics import multilabel_metrics
        >>> y = np.array([[1, 0], [0, 1], [1, 1]])
        >>> metrics = multilabel_metrics(y, np.array([[0.9, 0.2], [0.3, 0.8], [0.7, 0.4]]))
        >>> metrics["mean_average_precision"]["value"], metrics["subset_accuracy"]["value"]
        (1.0, 0.6666666666666666)
    """
    y, p = _checked(y, p)
    n, k = p.shape
    labels = [str(i) for i in range(k)] if labels is None else [str(name) for name in labels]
    thresholds = np.full(k, THRESHOLD) if thresholds is None else np.asarray(thresholds, np.float64)
    if len(labels) != k or thresholds.shape != (k,):
        raise ValueError(
            f"There are {len(labels)} labels, {thresholds.size} thresholds and {k} columns; expected one of each for "
            "each label."
        )
    predicted = (p >= thresholds).astype(np.int64)
    width = n * (k + 1)
    estimates = dict(zip(HEADLINES, estimate_rows(_metrics_of_rows(y, p, predicted), n, width=width, seed=seed)))
    if n * k > MAX_RANKED_SCORES:
        reason = f"too many examples and labels ({n} x {k}) for an interval"
        estimates["mean_average_precision"] = Estimate(estimates["mean_average_precision"].value, reason=reason)
    if n > 1:
        right = int((predicted == y).all(axis=1).sum())
        estimates["subset_accuracy"] = binomial_interval(right, n, "exact" if right in (0, n) else "wilson")
    absent = [label for label, count in zip(labels, y.sum(axis=0)) if not count]
    notes = []
    if absent:
        shown = ", ".join(f'"{name}"' for name in absent[:5]) + (f" and {len(absent) - 5} others" * (len(absent) > 5))
        notes.append(f"The data have no example of {shown}; macro averages leave such labels out.")
    hits, chosen, true = (y * predicted).sum(axis=0), predicted.sum(axis=0), y.sum(axis=0)
    weights = np.ones((1, n))
    return {
        "examples": n,
        **{name: estimates[name].to_dict() for name in HEADLINES},
        "labels": [
            {
                "label": labels[c],
                "threshold": float(thresholds[c]),
                "average_precision": _ratio(*_average_precision(weights, y[:, c], p[:, c])),
                "precision": _ratio(hits[c], chosen[c]),
                "recall": _ratio(hits[c], true[c]),
                "f1": _ratio(2 * hits[c], true[c] + chosen[c]),
                "support": int(true[c]),
            }
            for c in range(k)
        ],
        "notes": notes,
    }


def best_thresholds(y, p):
    """Choose for each label the probability from which predicting it gives the best F1.

    Choose them on examples that are not reported: of as many thresholds as there are examples the best one always looks
    better than it is.

    Args:
        y: ``(n, labels)`` numbers 0 or 1 of held-out examples.
        p: ``(n, labels)`` probabilities.

    Returns:
        A tuple of floats between 0 and 1, halfway between two neighbouring probabilities, of equally good ones the one
        nearest to 0.5; 0.5 for a label that all or none of the examples have.

    Raises:
        ValueError: as :func:`multilabel_metrics`.

    Example:
        >>> from thaw.metrics import best_thresholds
        >>> best_thresholds([[1, 0], [1, 0], [0, 0]], [[0.4, 0.1], [0.3, 0.2], [0.1, 0.3]])
        (0.2, 0.5)
    """
    y, p = _checked(y, p)
    found = []
    for truth, score in zip(y.T, p.T):
        if truth.min() == truth.max():
            found.append(THRESHOLD)
            continue
        distinct = np.unique(score)  # a threshold between two of them predicts all from the upper one on
        hits = number_counts(np.searchsorted(distinct, score[truth == 1]), len(distinct))[::-1].cumsum()[::-1]
        chosen = number_counts(np.searchsorted(distinct, score), len(distinct))[::-1].cumsum()[::-1]
        f1 = 2 * hits / (truth.sum() + chosen)
        lower = np.concatenate([[0.0], distinct[:-1]])
        middle = np.clip((lower + distinct) / 2, MIN_PROBABILITY, 1 - MIN_PROBABILITY)
        best = np.flatnonzero(f1 >= f1.max() - 1e-12)
        found.append(float(middle[best[np.abs(middle[best] - THRESHOLD).argmin()]].round(12)))
    return tuple(found)


def _checked(y, p):
    y, p = np.asarray(y), np.asarray(p, np.float64)
    if p.ndim != 2 or y.shape != p.shape or 0 in p.shape:
        raise ValueError(f"y has shape {y.shape} and p {p.shape}; expected the same, (examples, labels).")
    if y.dtype.kind not in "iubf" or not np.isin(y, (0, 1)).all():
        raise ValueError("y holds other numbers than 0 and 1; expected a yes or no for each label.")
    if not (p >= 0).all() or not (p <= 1).all():
        raise ValueError(f"p goes from {p.min():g} to {p.max():g}; expected probabilities, not logits.")
    return y.astype(np.int64), p


def _metrics_of_rows(y, p, predicted):
    """Return a function from resampled row numbers ``(resamples, n)`` to the metrics ``(resamples, 5)``.

    Written with the number of times that each row is drawn, over all resamples at once: scikit-learn's functions take
    one sample at a time. The tests compare the two.
    """
    n, k = p.shape
    hits, is_small = y * predicted, n * k <= MAX_RANKED_SCORES
    right = (predicted == y).all(axis=1)
    clipped = np.clip(p, MIN_PROBABILITY, 1 - MIN_PROBABILITY)
    log_loss = -np.where(y == 1, np.log(clipped), np.log1p(-clipped)).mean(axis=1)

    def metrics(rows):
        drawn = number_counts(rows, n).astype(np.float64)
        hit, true, chosen = drawn @ hits, drawn @ y, drawn @ predicted
        areas = np.full((len(rows), 1), np.nan)
        if is_small or len(rows) == 1:
            parts = [_average_precision(drawn, y[:, c], p[:, c]) for c in range(k)]
            areas = np.stack([_divide(area, total) for area, total in parts], axis=-1)
        return np.stack(
            [
                mean_of_known(areas),
                _divide(2 * hit.sum(axis=-1), true.sum(axis=-1) + chosen.sum(axis=-1)),
                mean_of_known(_divide(2 * hit, true + chosen)),
                drawn @ right / n,
                drawn @ log_loss / n,
            ],
            axis=-1,
        )

    return metrics


def _average_precision(drawn, y, score):
    """Return the sum of the precisions at all positives, and the number of positives, for weights ``(resamples, n)``.

    Examples of the same score are found together, as in scikit-learn.
    """
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
    drawn = drawn[:, order]
    found, positives = drawn.cumsum(axis=-1)[:, ends], (drawn * y[order]).cumsum(axis=-1)[:, ends]
    gained = np.diff(positives, axis=-1, prepend=0)
    precision = positives / np.maximum(found, 1)
    return (gained * precision).sum(axis=-1), positives[:, -1]


def _divide(a, b):
    return np.divide(a, b, out=np.full(np.shape(a), np.nan), where=b > 0)


def _ratio(a, b):
    a, b = float(np.squeeze(a)), float(np.squeeze(b))
    return a / b if b else None
