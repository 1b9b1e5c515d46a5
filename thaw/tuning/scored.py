"""One score of a model, from whatever says how to measure it."""

import dataclasses
import math

import numpy as np

from thaw.examples import Examples
from thaw.probabilities import probabilities
from thaw.share import share

BATCH = 32


@dataclasses.dataclass(frozen=True)
class Scored:
    """A score, higher is better.

    Args:
        value: the score.
        low: lower end of its 95 % interval, or ``None`` where there is none.
        high: upper end.
    """

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self):
        between = "" if self.low is None else f" ({self.low:.3f} to {self.high:.3f})"
        return f"{self.value:.3f}{between}"


def score_of(model, measure):
    """Measure a model; it stays as it is.

    Args:
        model: the ``keras.Model``.
        measure: one of

            - labelled data, :class:`thaw.Examples` or ``(x, y)`` arrays: the score is the accuracy, with the
              interval of Wilson (1927);
            - ``(other, data)``: the accuracy of another model that shares variables with this one: the old head on
              the same backbone, or a suffix from :func:`thaw.split` on what :func:`thaw.precompute` has kept, which
              costs a fraction;
            - a function of the model that returns a number, higher is better, or a dict with ``value``, ``low``
              and ``high``, such as ``lambda m: thaw.evaluate(m, data)["balanced_accuracy"]``.

    Returns:
        :class:`Scored`.

    Raises:
        ValueError: something else, or a function that returns no number.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.tuning.scored import score_of
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Softmax()])
        >>> str(score_of(model, (np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([0, 0]))))
        '0.500 (0.095 to 0.905)'
    """
    import keras

    if callable(measure) and not isinstance(measure, keras.Model):
        return _of_function(measure, measure(model))
    if isinstance(measure, (tuple, list)) and len(measure) == 2 and isinstance(measure[0], keras.Model):
        model, measure = measure
    measure = Examples.of(measure)
    if not isinstance(measure, Examples):
        raise ValueError(
            f"A model cannot be scored by {type(measure).__name__}; expected labelled Examples, arrays (x, y), "
            "(another model, labelled data), or a function of the model that returns a number."
        )
    return _accuracy(model, measure)


def _accuracy(model, examples):
    batches = (x for x, *_ in examples.ordered(BATCH))
    p = probabilities(model, batches, examples=len(examples))
    y = np.asarray(examples.y)
    y = y.argmax(axis=1) if y.ndim == 2 and y.shape[1] > 1 else y.reshape(len(y))
    if y.dtype.kind not in "iubf" or not np.isfinite(y).all():
        raise ValueError(f"The labels are {y.dtype}, such as {y[0]!s}; expected class numbers.")
    if y.min() < 0 or y.max() >= p.shape[1]:
        raise ValueError(
            f"The labels go from {y.min():g} to {y.max():g} and {model.name} has {p.shape[1]} classes, 0 to "
            f"{p.shape[1] - 1}; expected the numbers of its classes."
        )
    return accuracy_of(p, y)


def accuracy_of(p, y):
    """Share of the examples whose class is the most probable one, with its 95 % interval (Wilson 1927).

    Args:
        p: ``(n, classes)`` probabilities.
        y: ``(n,)`` class numbers.

    Returns:
        :class:`Scored`.

    Example:
        >>> from thaw.tuning.scored import accuracy_of
        >>> accuracy_of(np.array([[0.9, 0.1], [0.8, 0.2]]), np.array([0, 1])).value
        0.5
    """
    return Scored(*share((p.argmax(axis=1) == y).sum(), len(y)))


def _of_function(measure, found):
    name = getattr(measure, "__name__", type(measure).__name__)
    try:
        if isinstance(found, dict):
            low, high = found.get("low"), found.get("high")
            if low is None or high is None:
                return Scored(float(found["value"]))
            return Scored(float(found["value"]), float(low), float(high))
        return Scored(float(found))
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(
            f"The function {name} returned {found!r}; expected a number, higher is better, or a dict with value, "
            "low and high."
        ) from error


def finite(scored):
    """Is the score a number at all?"""
    return math.isfinite(scored.value)
