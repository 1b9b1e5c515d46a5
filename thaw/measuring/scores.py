"""Scores of a classifier, each with the interval that the number of examples allows."""

from __future__ import annotations

import math
import warnings

import numpy as np

from thaw.share import share

HEADLINES = ("accuracy", "balanced_accuracy", "macro_f1", "roc_auc", "log_loss", "calibration_error")
RESAMPLES = 1000
BINS = 15
# A thousand resamples of more ranks than this take longer than anybody waits for the interval of one figure.
MOST_RANKS = 500_000


def scores(y, p, *, labels=None, seed=0):
    """Score probabilities against the truth.

    Every headline figure comes with a 95 % interval: the percentile bootstrap over examples (Efron 1979),
    which leaves each example's truth and prediction together. A bootstrap of nothing but right answers sees
    no doubt, so an accuracy of 1 or 0 has the exact binomial interval (Clopper and Pearson 1934) instead.
    The calibration error has none: it takes noise for error, in a resample more than in the sample, and no
    shift of the bootstrap held the true value as often as it said (55 % of 300 trials with a calibrated model).

    - ``balanced_accuracy``: mean recall over the classes that occur in ``y``.
    - ``macro_f1``: mean F1 over the classes that occur in ``y`` or are predicted.
    - ``roc_auc``: of class 1 against class 0; with more classes, the mean of each against the rest.
    - ``log_loss``: in nats, probabilities held above 1e-7.
    - ``calibration_error``: expected calibration error, 15 bins of equal width over the probability of the
      predicted class (Guo et al. 2017).

    Args:
        y: class numbers ``(n,)``.
        p: probabilities ``(n, classes)``, rows summing to 1.
        labels: names of the classes; ``None`` for ``"0"``, ``"1"`` …
        seed: of the resampling.

    Returns:
        A dict that goes into JSON as it is: ``examples``; each headline as ``{"value", "low", "high"}``, and
        ``"reason"`` where a number is ``None``; ``classes``, a list of ``{"label", "precision", "recall",
        "f1", "support"}``; ``confusion``, rows the truth and columns the prediction; ``notes``, a list of
        sentences.

    Raises:
        ValueError: arrays that do not belong together, or labels outside the classes.

    Example:
        >>> import numpy as np
        >>> from thaw import scores
        >>> found = scores(np.array([0, 0, 1, 1]), np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.1, 0.9]]))
        >>> found["accuracy"]["value"], found["roc_auc"]["value"], found["confusion"]
        (0.75, 1.0, [[1, 1], [0, 2]])
    """
    y, p, labels = _checked(y, p, labels)
    n, k = p.shape
    measure = _measures(y, p)
    value = dict(zip(HEADLINES, measure(np.arange(n)[None])[:, 0])) | {"calibration_error": _calibration_error(y, p)}
    low, high, why = _intervals(measure, n, k, seed)
    found = {"examples": n}
    absent = [labels[c] for c in range(k) if c not in y]
    for i, name in enumerate(HEADLINES):
        if name == "roc_auc" and absent:
            reason = f"the data have no example of {_listed(absent)}"
            found[name] = {"value": None, "low": None, "high": None, "reason": reason}
            continue
        if name == "calibration_error":
            reason = "the bootstrap does not hold the true value as often as it says"
            found[name] = {"value": float(value[name]), "low": None, "high": None, "reason": reason}
            continue
        found[name] = {"value": float(value[name]), "low": _number(low[i]), "high": _number(high[i])}
        if found[name]["low"] is None:
            if name == "roc_auc" and n * k > MOST_RANKS:
                why = f"too many examples and classes ({n} x {k}) for an interval"
            found[name]["reason"] = why
    notes = []
    if absent:
        notes.append(f"The data have no example of {_listed(absent)}; macro figures leave such classes out.")
    right = round(value["accuracy"] * n)
    if right in (0, n) and n > 1:
        _, low, high = share(right, n, "exact")
        found["accuracy"] |= {"low": low, "high": high}
        notes.append(
            f"{'All' if right else 'None'} of the {n} examples are right; only the interval of the accuracy "
            "says how little that may mean."
        )
    matrix = np.bincount(y * k + p.argmax(axis=1), minlength=k * k).reshape(k, k)
    precision, recall, f1 = _by_class(matrix[None])
    found["classes"] = [
        {
            "label": labels[c],
            "precision": _number(precision[0, c]),
            "recall": _number(recall[0, c]),
            "f1": _number(f1[0, c]),
            "support": int(matrix[c].sum()),
        }
        for c in range(k)
    ]
    return found | {"confusion": matrix.tolist(), "notes": notes}


def _checked(y, p, labels):
    y, p = np.asarray(y), np.asarray(p, np.float64)
    if p.ndim != 2 or p.shape[1] < 2:
        raise ValueError(f"p has shape {p.shape}; expected (examples, classes), with at least 2 classes.")
    k = p.shape[1]
    if y.shape != p.shape[:1] or y.dtype.kind not in "iub":
        raise ValueError(f"y is {y.dtype} of shape {y.shape}; expected {len(p)} class numbers.")
    if len(y) == 0:
        raise ValueError("There are no examples; expected at least one.")
    if y.min() < 0 or y.max() >= k:
        raise ValueError(f"y goes from {y.min()} to {y.max()}; the model has the classes 0 to {k - 1}.")
    if not np.allclose(p.sum(axis=1), 1, atol=1e-3) or p.min() < 0:
        raise ValueError("The rows of p do not sum to 1; expected probabilities, not logits.")
    labels = [str(c) for c in range(k)] if labels is None else [str(name) for name in labels]
    if len(labels) != k:
        raise ValueError(f"There are {len(labels)} labels and {k} classes; expected one label for each class.")
    return y.astype(np.int64), p, labels


def _measures(y, p):
    """A function from resampled positions ``(..., n)`` to the headline figures but the last, ``(5, ...)``."""
    n, k = p.shape
    top = p.argmax(axis=1)
    cell = y * k + top
    surprise = -np.log(np.maximum(p[np.arange(n), y], 1e-7))
    ranked = range(k) if k > 2 else (1,)  # class 0 of two is the mirror image of class 1
    small = n * k <= MOST_RANKS
    rankings = [_ranking(y == c, p[:, c]) for c in ranked] if small else None

    def areas(at):
        if small:
            return [_auc(at, *ranking) for ranking in rankings]
        if at.size > n:
            return [np.full(at.shape[:-1], np.nan)]
        return [_auc(at, *_ranking(y == c, p[:, c])) for c in ranked]

    def measure(at, axis=-1):
        matrix = _counts(cell[at], k * k).reshape(*at.shape[:-1], k, k)
        right = np.trace(matrix, axis1=-2, axis2=-1)
        _, recall, f1 = _by_class(matrix)
        return np.stack(
            [
                right / n,
                _mean_of_known(recall),
                _mean_of_known(f1),
                _mean_of_known(np.stack(areas(at), axis=-1)),
                surprise[at].mean(axis=-1),
            ]
        )

    return measure


def _calibration_error(y, p):
    """How far confidence and accuracy lie apart, over bins of equal width."""
    confidence = p.max(axis=1)
    bins = np.minimum(np.ceil(confidence * BINS).astype(np.int64) - 1, BINS - 1)
    return np.abs(np.bincount(bins, (p.argmax(axis=1) == y) - confidence)).sum() / len(y)


def _intervals(measure, n, k, seed):
    """Low and high of every headline, NaN where there is none, and why."""
    nothing = np.full(len(HEADLINES), np.nan)
    if n < 2:
        return nothing, nothing, "one example allows no interval"
    from scipy.stats import bootstrap

    with warnings.catch_warnings():  # about resamples without a figure, which are looked at below
        warnings.simplefilter("ignore")
        drawn = bootstrap(
            (np.arange(n),),
            measure,
            n_resamples=RESAMPLES,
            batch=max(2, 2_000_000 // (n + k * k)),
            vectorized=True,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).bootstrap_distribution
    # A resample without one of the classes has no such figure. A few of them do no harm.
    few = np.isnan(drawn).mean(axis=-1) > 0.05
    low, high = np.nanquantile(np.where(few[:, None], 0, drawn), (0.025, 0.975), axis=-1)
    why = "too few examples of a class for an interval"
    return np.where(few, np.nan, low), np.where(few, np.nan, high), why


def _counts(codes, size):
    """``bincount`` along the last axis."""
    rows = codes.reshape(-1, codes.shape[-1])
    flat = (rows + size * np.arange(len(rows))[:, None]).ravel()
    return np.bincount(flat, minlength=size * len(rows)).reshape(*codes.shape[:-1], size)


def _by_class(matrix):
    """Precision, recall and F1 of each class; NaN where there is nothing to divide by."""
    hit = np.diagonal(matrix, axis1=-2, axis2=-1)
    truth, said = matrix.sum(axis=-1), matrix.sum(axis=-2)
    with np.errstate(invalid="ignore"):
        return hit / said, hit / truth, 2 * hit / (truth + said)


def _ranking(positive, score):
    """For each example the place of its score among the different scores, and whether it is positive."""
    different, place = np.unique(score, return_inverse=True)
    return positive, place, len(different)


def _auc(at, positive, place, places):
    """Share of (positive, negative) pairs in the right order, ties counting half (Mann and Whitney 1947)."""
    both = _counts(2 * place[at] + positive[at], 2 * places)
    ups, downs = both[..., 1::2], both[..., 0::2]
    below = np.cumsum(downs, axis=-1) - downs / 2
    pairs = ups.sum(axis=-1) * downs.sum(axis=-1)
    with np.errstate(invalid="ignore"):
        return (ups * below).sum(axis=-1) / np.where(pairs, pairs, np.nan)


def _mean_of_known(values):
    """Mean over the last axis without its NaNs; NaN where nothing is left."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(axis=-1) / known.sum(axis=-1)


def _number(value):
    return None if math.isnan(value) else float(value)


def _listed(names):
    shown = ", ".join(f'"{name}"' for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} other classes"
