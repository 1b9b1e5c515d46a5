"""Estimate from a learning curve what more examples would bring."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from thaw._validation import as_int, as_seed
from thaw.features.ridge import ridge_predict
from thaw.metrics.intervals import Estimate
from thaw.tasks import class_numbers
from thaw.transfer.readouts import stratified_folds

NORMAL_QUANTILE = 1.959964  # 97.5 % of a normal distribution lie below
PARTS = (4, 2, 1)  # into which the examples are split for the three points of the curve
MIN_EXAMPLES = 8  # to fit to; a quarter of them are two
MIN_TEST_EXAMPLES = 2


@dataclasses.dataclass(frozen=True)
class CurvePoint:
    """One point of a learning curve.

    Args:
        examples: number of examples that the readout was fitted to.
        score: :class:`~thaw.metrics.intervals.Estimate` of the accuracy on the test examples, the mean over the draws.
        draws: number of subsets of this size that were fitted to.
    """

    examples: int
    score: Estimate
    draws: int


@dataclasses.dataclass(frozen=True)
class LearningCurve:
    """The result of :func:`learning_curve`; ``str()`` is a table.

    Args:
        points: for a quarter, a half and all of the examples.
        gain: :class:`~thaw.metrics.intervals.Estimate` of the gain of the last doubling, from a half to all examples.
        expected_gain: gain to expect from one more doubling.
        correct: ``(m,)``, 1 where the readout of all examples is correct on a test example, else 0.
    """

    points: tuple[CurvePoint, ...]
    gain: Estimate
    expected_gain: float
    correct: np.ndarray = dataclasses.field(repr=False, compare=False)

    def __str__(self):
        lines = ["examples  accuracy of a ridge readout"]
        lines += [f"{point.examples:>8}  {point.score:.3f}" for point in self.points]
        return "\n".join([*lines, f"the last doubling: {self.gain:+.3f}"])


def learning_curve(features, y, test_features, test_y, *, draws=3, seed=0):
    """Fit a ridge readout to a quarter, a half and all of the examples, and score it on test examples.

    Where the curve still rises, more examples are worth getting. The error of most learners falls by about the same
    proportion with each doubling (Hestness et al. 2017): the next doubling is expected to gain what the last one did,
    times the ratio of that to the gain of the one before, clipped to 0.5 and 1.

    The examples are split into four and into two parts several times, stratified by class, and a readout is fitted to
    each part. The intervals include two sources of variance: the test examples (of a gain, paired differences), and
    the fitted examples, by how much the parts of one split differ.

    Args:
        features: ``(n, d)`` features to fit to, as from :func:`thaw.transfer.stage_features` for one stage.
        y: ``(n,)`` class numbers.
        test_features: ``(m, d)`` features to score on.
        test_y: ``(m,)`` class numbers.
        draws: number of times that the examples are split. Default 3.
        seed: seed of the splits. Default 0.

    Returns:
        :class:`LearningCurve`.

    Raises:
        ValueError: fewer than 8 examples, fewer than 2 test examples, arrays that do not belong together, or labels
            that are no class numbers.

    Example:
        >>> import numpy as np
        >>> from thaw.transfer import learning_curve
        >>> x = np.random.default_rng(0).normal(size=(80, 3))
        >>> y = (x[:, 0] > 0).astype(int)
        >>> [point.examples for point in learning_curve(x[:40], y[:40], x[40:], y[40:]).points]
        [10, 20, 40]
    """
    draws, seed = as_int("draws", draws, 1), as_seed(seed)
    features, test_features, y, test_y = map(np.asarray, (features, test_features, y, test_y))
    if features.ndim != 2 or test_features.ndim != 2 or features.shape[1] != test_features.shape[1]:
        raise ValueError(
            f"The features have shape {features.shape} and the test features {test_features.shape}; expected (n, d) "
            "and (m, d)."
        )
    if len(features) != len(y) or len(test_features) != len(test_y) or y.ndim != 1 or test_y.ndim != 1:
        raise ValueError(
            f"There are {len(features)} rows of features for labels of shape {y.shape}, and {len(test_features)} test "
            f"rows for {test_y.shape}; expected one class number for each row."
        )
    if len(y) < MIN_EXAMPLES or len(test_y) < MIN_TEST_EXAMPLES:
        raise ValueError(
            f"There are {len(y)} examples and {len(test_y)} test examples; expected at least {MIN_EXAMPLES}, to draw a "
            f"quarter of them, and {MIN_TEST_EXAMPLES}."
        )
    y, test_y = class_numbers(y), class_numbers(test_y)
    targets = np.eye(int(max(y.max(), test_y.max())) + 1)[y]
    correct, variances, counts = [], [], []
    for parts in PARTS:
        of_fits = []
        for draw in range(1 if parts == 1 else draws):
            split = stratified_folds(y, 4, seed + draw) % parts if parts > 1 else np.zeros(len(y), np.int64)
            for part in range(parts):
                rows = split == part
                predicted = ridge_predict(features[rows], targets[rows], test_features).argmax(axis=1)
                of_fits.append(predicted == test_y)
        of_fits = np.asarray(of_fits, np.float64)
        correct.append(of_fits.mean(axis=0))
        counts.append(int((split == 0).sum()))
        # The parts of one split share no example: their variance is that of drawing other examples.
        scores = of_fits.mean(axis=1).reshape(-1, parts)
        variances.append(float(scores.var(axis=1, ddof=1).mean()) if parts > 1 else variances[-1] / 2)
    points = [
        CurvePoint(count, _clipped(_mean(values, variance)), 1 if parts == 1 else parts * draws)
        for count, values, variance, parts in zip(counts, correct, variances, PARTS)
    ]
    # All examples and their halves share their luck: in simulations with normal classes, or with none, the variance of
    # the gain was less than half that of the score of one half.
    gain = _mean(correct[2] - correct[1], variances[1] / 2)
    gain_before = float((correct[1] - correct[0]).mean())
    ratio = min(1.0, max(0.5, gain.value / gain_before)) if gain_before > 0 else 1.0
    return LearningCurve(tuple(points), gain, ratio * gain.value, correct[2])


def _mean(values, variance):
    """Estimate a mean with its normal 95 % interval, given the variance that other fitted examples would add."""
    mean, half = float(values.mean()), NORMAL_QUANTILE * math.sqrt(float(values.var(ddof=1)) / len(values) + variance)
    return Estimate(mean, mean - half, mean + half)


def _clipped(estimate):
    """Clip the interval of an accuracy to 0 and 1."""
    return Estimate(estimate.value, max(0.0, estimate.low), min(1.0, estimate.high))
