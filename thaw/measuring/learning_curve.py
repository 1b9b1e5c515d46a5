"""What more examples would bring, from how it went with fewer."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from thaw.measuring.ridge_readout import ridge_predict
from thaw.measuring.stratified_folds import stratified_folds

_Z = 1.959964  # 97.5 % of a normal distribution lie below
_PARTS = (4, 2, 1)  # the examples are dealt into


@dataclasses.dataclass(frozen=True)
class CurvePoint:
    """The readout fitted to so many examples.

    Args:
        examples: how many.
        score: accuracy on the new examples, the mean over the draws.
        low, high: 95 % interval of the score.
        draws: how many different parts of so many examples were fitted to.
    """

    examples: int
    score: float
    low: float
    high: float
    draws: int


@dataclasses.dataclass(frozen=True)
class LearningCurve:
    """What :func:`learning_curve` found; ``str()`` is a table.

    Args:
        points: a quarter, a half and all of the examples.
        gained: what the last doubling, from a half to all, brought.
        low, high: 95 % interval of what it brought.
        expected: what one more doubling may bring.
        right: ``(m,)``, whether the readout of all examples was right on each new one.
    """

    points: tuple[CurvePoint, ...]
    gained: float
    low: float
    high: float
    expected: float
    right: np.ndarray = dataclasses.field(repr=False, compare=False)

    def __str__(self):
        lines = ["examples  accuracy of a ridge readout"]
        lines += [f"{p.examples:>8}  {p.score:.3f} [{p.low:.3f}, {p.high:.3f}]" for p in self.points]
        return "\n".join([*lines, f"the last doubling: {self.gained:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"])


def learning_curve(features, y, new_features, new_y, *, draws=3, seed=0):
    """Fit a ridge readout to a quarter, a half and all of the examples, and score it on others.

    Where the curve still climbs, more examples are worth getting. The error of most learners falls by about the same
    share with each doubling (Hestness et al. 2017), so the next doubling is expected to bring what the last one did,
    times the share that this was of the one before it, held between a half and 1.

    The examples are dealt into four and into two parts several times, each class evenly, and a readout is fitted to
    each part. The intervals hold two things: the new examples (of a gain: the differences of the same examples), and
    the examples that were fitted to, by how much the parts of one deal differ.

    Args:
        features: ``(n, d)`` of the examples to fit to, as :func:`thaw.stage_features` gives them for a stage.
        y: ``(n,)`` their class numbers.
        new_features: ``(m, d)`` of the examples to score on.
        new_y: ``(m,)`` their class numbers.
        draws: how often the examples are dealt.
        seed: of the drawing.

    Returns:
        :class:`LearningCurve`.

    Raises:
        ValueError: fewer than 8 examples, fewer than 2 new ones, or arrays that do not belong together.

    Example:
        >>> import numpy as np
        >>> from thaw.measuring.learning_curve import learning_curve
        >>> x = np.random.default_rng(0).normal(size=(80, 3))
        >>> y = (x[:, 0] > 0).astype(int)
        >>> [point.examples for point in learning_curve(x[:40], y[:40], x[40:], y[40:]).points]
        [10, 20, 40]
    """
    features, new_features, y, new_y = map(np.asarray, (features, new_features, y, new_y))
    if len(features) != len(y) or len(new_features) != len(new_y) or y.ndim != 1 or new_y.ndim != 1:
        raise ValueError(
            f"There are {len(features)} rows of features for labels of shape {y.shape}, and {len(new_features)} new "
            f"ones for {new_y.shape}; expected one class number for each row."
        )
    if len(y) < 8 or len(new_y) < 2:
        raise ValueError(
            f"There are {len(y)} examples and {len(new_y)} new ones; expected at least 8, to draw a "
            "quarter of them, and 2."
        )
    targets = np.eye(int(max(y.max(), new_y.max())) + 1)[y]
    right, doubt, counts = [], [], []
    for parts in _PARTS:
        found = []
        for draw in range(1 if parts == 1 else draws):
            deal = stratified_folds(y, 4, seed + draw) % parts if parts > 1 else np.zeros(len(y), np.int64)
            for number in range(parts):
                rows = deal == number
                found.append(ridge_predict(features[rows], targets[rows], new_features).argmax(axis=1) == new_y)
        found = np.asarray(found, np.float64)
        right.append(found.mean(axis=0))
        counts.append(int((deal == 0).sum()))
        # Parts of one deal share no example: how much they differ is what another set of so many would do.
        scores = found.mean(axis=1).reshape(-1, parts)
        doubt.append(float(scores.var(axis=1, ddof=1).mean()) if parts > 1 else doubt[-1] / 2)
    points = [
        CurvePoint(n, *_held(*_mean(r, d)), 1 if parts == 1 else parts * draws)
        for n, r, d, parts in zip(counts, right, doubt, _PARTS)
    ]
    # All examples and their halves have the same luck: in trials with normal classes, or with none, the gain varied by
    # less than half as much as the score of one half.
    gained, low, high = _mean(right[2] - right[1], doubt[1] / 2)
    before = float((right[1] - right[0]).mean())
    share = min(1.0, max(0.5, gained / before)) if before > 0 else 1.0
    return LearningCurve(tuple(points), gained, low, high, share * gained, right[2])


def _mean(values, doubt):
    """A mean and its normal 95 % interval, with the variance that another training set would add."""
    middle, half = float(values.mean()), _Z * math.sqrt(float(values.var(ddof=1)) / len(values) + doubt)
    return middle, middle - half, middle + half


def _held(middle, low, high):
    """No accuracy is below 0 or above 1."""
    return middle, max(0.0, low), min(1.0, high)
