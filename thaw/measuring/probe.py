"""Probe: how far each stage of a model already gets on new data, before anything is tuned."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from thaw.measuring.class_numbers import class_numbers
from thaw.measuring.h_score import h_score
from thaw.measuring.log_me import log_me
from thaw.measuring.neighbour_readout import neighbour_readout
from thaw.measuring.ridge_readout import ridge_readout
from thaw.measuring.stage_features import stage_features
from thaw.measuring.stratified_folds import stratified_folds
from thaw.share import share

NEIGHBOURS = 5
_RESAMPLES = 1000


@dataclasses.dataclass(frozen=True, eq=False)
class ProbeRow:
    """What was measured behind one stage.

    Attributes:
        stage: its name.
        width: how many numbers its features are.
        score: of the ridge readout on what it was not fitted to: the accuracy, in regression R².
        low, high: 95 % interval of the score.
        neighbours, neighbours_low, neighbours_high: accuracy of the nearest neighbours; ``None`` in regression.
        log_me: see :func:`thaw.measuring.log_me.log_me`; in regression for targets scaled to mean 0 and standard
            deviation 1, so that their unit does not matter.
        h_score: see :func:`thaw.measuring.h_score.h_score`; ``None`` in regression.
        errors: ``(n,)`` of the ridge readout for each example: 1 where it is wrong, else 0; in regression the squared
            error relative to the variance. Two stages or models that saw the same examples are compared by the
            differences, more sharply than by their intervals.
    """

    stage: str
    width: int
    score: float
    low: float
    high: float
    neighbours: float | None
    neighbours_low: float | None
    neighbours_high: float | None
    log_me: float
    h_score: float | None
    errors: np.ndarray = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, eq=False)
class Probe:
    """What :func:`probe` found; ``str()`` is a table.

    Attributes:
        rows: one :class:`ProbeRow` for each stage but the head, from input to output.
        examples: how many were used.
        classes: how many occur; ``None`` in regression.
        most_frequent: share of the most frequent class, which says how good an accuracy is without any features;
            ``None`` in regression.
        folds: of the cross-validation.
        shrunk: the H-scores are of the regularised form, because there are fewer than ten examples for each feature of
            the widest stage.
    """

    rows: tuple[ProbeRow, ...]
    examples: int
    classes: int | None
    most_frequent: float | None
    folds: int
    shrunk: bool

    @property
    def best(self):
        """The row with the highest score, the deepest of equals."""
        return max(reversed(self.rows), key=lambda row: row.score)

    def __str__(self):
        what = f"{self.examples} examples, {self.folds} folds"
        head = f"{'stage':<8} {'width':>5}  {'ridge R2':<20}  {'LogME':>7}"
        if self.classes is not None:
            what += f", {self.classes} classes, the most frequent {self.most_frequent:.3f}"
            head = f"{'stage':<8} {'width':>5}  {'ridge accuracy':<20}  {f'{NEIGHBOURS} neighbours':<20}  "
            head += f"{'LogME':>7}  {'H shr.' if self.shrunk else 'H-score':>7}"
        lines = [what, head]
        for row in self.rows:
            line = f"{row.stage:<8} {row.width:>5}  {_with_interval(row.score, row.low, row.high):<20}  "
            if self.classes is None:
                line += f"{row.log_me:>7.3f}"
            else:
                near = _with_interval(row.neighbours, row.neighbours_low, row.neighbours_high)
                line += f"{near:<20}  {row.log_me:>7.3f}  {row.h_score:>7.3g}"
            lines.append(line + (" *" if row is self.best and len(self.rows) > 1 else ""))
        return "\n".join(lines)


def probe(model, data, *, folds=5, most=5000, batch_size=32, regression=False, seed=0):
    """Measure how much of the labels each stage of a frozen model already tells, in one pass over the data.

    At every stage boundary the features, averaged over positions, are read out linearly (ridge) and by nearest
    neighbours, each cross-validated with the same stratified folds, and scored by LogME and the H-score. Where an
    early stage is as good as a late one, the stages between do not help this task as they are.

    The interval of an accuracy is that of Wilson (1927) over the examples, each predicted once. In 150 trials each
    with 100 to 500 examples of normal classes it held the mean accuracy of readouts fitted to as many examples in 93
    to 97 of 100, that of a readout fitted to all of them in 89 to 93. That the best stage was chosen by it is not
    in it.

    Args:
        model: a functional or sequential ``keras.Model``, with or without a head, which is left out; the same
            afterwards, to the bit.
        data: :class:`thaw.Examples`, arrays ``(x, y)``, or a batched ``tf.data.Dataset`` of ``(x, y)``; ``y`` class
            numbers ``(n,)`` or one-hot rows, with ``regression`` numbers ``(n,)`` or ``(n, targets)``.
        folds: of the cross-validation; the readouts are fitted to all but one.
        most: use this many examples at most, drawn at random, of a data set the first; ``None`` for all.
        batch_size: examples in a batch; a data set keeps its own.
        regression: the labels are numbers, not classes.
        seed: of the drawing, the folds, and the resampling behind R²'s interval.

    Returns:
        :class:`Probe`.

    Raises:
        ValueError: a model without a graph to read or with nothing but a head, labels that are no classes, a single
            class, or too few examples.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.measuring.probe import probe
        >>> keras.utils.set_random_seed(0)
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2)])
        >>> x = np.random.default_rng(0).normal(size=(60, 2)).astype("float32")
        >>> found = probe(model, (x, (x[:, 0] > 0).astype(int)))
        >>> [row.stage for row in found.rows], found.classes, found.best.score > 0.8
        (['stage1'], 2, True)
    """
    features, y = stage_features(model, data, most=most, batch_size=batch_size, seed=seed)
    return probe_features(features, y, folds=folds, regression=regression, seed=seed)


def probe_features(features, y, *, folds=5, regression=False, seed=0):
    """The second half of :func:`probe`, for features that are there already.

    Args:
        features: ``{stage: (n, width)}``, from :func:`thaw.stage_features`.
        y: the labels, as in :func:`probe`.
        folds: of the cross-validation.
        regression: the labels are numbers, not classes.
        seed: of the folds, and the resampling behind R²'s interval.

    Returns:
        :class:`Probe`.
    """
    if regression:
        targets, labels = _numbers(y), np.zeros(len(y), np.int64)
    else:
        labels = _class_numbers(y)
        targets = np.eye(labels.max() + 1)[labels]
    fold = stratified_folds(labels, folds, seed)
    shrink = len(y) < 10 * max(found.shape[1] for found in features.values())
    rows = []
    for stage, found in features.items():
        told, near, apart = ridge_readout(found, targets, fold), (None,) * 3, None
        if regression:
            errors = ((told - targets) ** 2 / targets.var(axis=0)).mean(axis=1)
            score = _r2(targets, told, seed)
            evidence = _log_me(found, (targets - targets.mean(axis=0)) / targets.std(axis=0), True)
        else:
            errors = (told.argmax(axis=1) != labels).astype(np.float64)
            score = share((errors == 0).sum(), len(y))
            near = share((neighbour_readout(found, labels, fold, NEIGHBOURS) == labels).sum(), len(y))
            evidence, apart = _log_me(found, labels, False), _h_score(found, labels, shrink)
        rows.append(ProbeRow(stage, found.shape[1], *score, *near, evidence, apart, errors))
    shares = np.bincount(labels) / len(labels)
    known = (None, None) if regression else (len(shares), float(shares.max()))
    return Probe(tuple(rows), len(y), *known, folds, shrink)


def _class_numbers(y):
    """Class numbers from 0 without gaps."""
    y = class_numbers(y, "expected one class number for each example, or regression=True for numbers to predict.")
    classes, labels = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(
            f"All {len(y)} examples are of class {classes[0]}; expected at least two classes. A data set is read from "
            "its beginning: shuffle it before."
        )
    return labels


def _numbers(y):
    if y.dtype.kind not in "iubf" or y.ndim > 2 or not np.isfinite(y).all():
        raise ValueError(f"The labels are {y.dtype} of shape {y.shape}; expected numbers, (n,) or (n, targets).")
    targets = y.astype(np.float64).reshape(len(y), -1)
    if (targets.std(axis=0) == 0).any():
        raise ValueError("The labels are the same for all examples; expected numbers that differ.")
    return targets


def _r2(targets, told, seed):
    """Mean share of the variance explained, and its percentile bootstrap over examples (Efron 1979)."""
    n = len(targets)
    told, targets = told - targets.mean(axis=0), targets - targets.mean(axis=0)

    def measure(counts):  # (resamples, n) -> (resamples,)
        total = counts.sum(axis=1, keepdims=True)
        spread = counts @ targets**2 - (counts @ targets) ** 2 / total
        with np.errstate(invalid="ignore", divide="ignore"):
            return (1 - counts @ (targets - told) ** 2 / spread).mean(axis=1)

    rng = np.random.default_rng(seed)
    drawn = np.concatenate(
        [measure(rng.multinomial(n, np.full(n, 1 / n), 100).astype(np.float64)) for _ in range(_RESAMPLES // 100)]
    )
    low, high = np.quantile(drawn[np.isfinite(drawn)], (0.025, 0.975))
    return float(measure(np.ones((1, n)))[0]), float(low), float(high)


def _log_me(features, y, regression):
    """LogME; minus infinity for features that are all 0, which explain nothing at all."""
    return log_me(features, y, regression=regression) if features.any() else -math.inf


def _h_score(features, y, shrink):
    """The H-score; 0 for features that are the same for all examples."""
    return h_score(features, y, shrink=shrink) if (features != features[0]).any() else 0.0


def _with_interval(value, low, high):
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"
