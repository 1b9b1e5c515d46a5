"""Tasks whose targets are rows of numbers: several labels for each example, or quantities to predict.

They have the interface of :class:`thaw.tasks.Task`, as :class:`thaw.Classification` has.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from thaw._keras import serialized_as
from thaw.tasks import Task

SEPARATOR = "|"  # between the labels of one example in a text
MEAN_AVERAGE_PRECISION, ROOT_MEAN_SQUARED_ERROR, R2 = "pr_auc", "root_mean_squared_error", "r2_score"


@dataclasses.dataclass(frozen=True)
class MultiLabel(Task):
    """Any number of labels for each example: a yes or no for each label.

    The metric that decides is the area under the precision-recall curve, the mean over the labels, as Keras
    approximates it with 200 thresholds: it needs no threshold, and rare labels count as much as frequent ones. Targets
    are rows of 0 and 1.

    Args:
        labels: names of the labels, in the order of the model's outputs; at least two, all different.
        thresholds: probability from which a label is predicted, between 0 and 1: a number, or one for each label.
            Default ``None``: 0.5.

    Raises:
        ValueError: fewer than two labels, the same one twice, or one that holds ``|``; or invalid thresholds.

    Example:
        >>> from thaw.targets import MultiLabel
        >>> task = MultiLabel(["cat", "dog", "hat"])
        >>> task.encode(["cat|hat", ""]).tolist(), task.decode([[0.9, 0.2, 0.6]])
        ([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]], [('cat', 'hat')])
        >>> task.baseline([[1, 1, 0], [1, 0, 0]])
        0.75
    """

    labels: tuple[str, ...]
    thresholds: tuple[float, ...] | None = None

    activation, loss, monitor, mode = "sigmoid", "binary_crossentropy", MEAN_AVERAGE_PRECISION, "max"

    def __post_init__(self):
        object.__setattr__(self, "labels", _names(self.labels, "labels", "label"))
        if len(self.labels) < 2:
            raise ValueError(
                f"MultiLabel needs at least two labels; there are {len(self.labels)}. For one yes or no write "
                'Classification(["no", "yes"]).'
            )
        if held := next((label for label in self.labels if SEPARATOR in label), None):
            raise ValueError(f"The label {held!r} holds {SEPARATOR!r}, which separates labels; give it another name.")
        if self.thresholds is not None:
            object.__setattr__(self, "thresholds", _checked_thresholds(self.thresholds, self.units))

    @property
    def units(self):
        return len(self.labels)

    def metrics(self):
        """Return the metrics for ``compile``: the area under the precision-recall curve."""
        import keras

        return [keras.metrics.AUC(curve="PR", multi_label=True, num_labels=self.units, name=self.monitor)]

    def baseline(self, y):
        """Return the mean average precision of the same score for every example: the mean frequency of the labels.

        Args:
            y: ``(n, labels)`` numbers 0 or 1. Labels that no example has are left out.
        """
        frequencies = label_rows(y, self.units).mean(axis=0)
        return float(frequencies[frequencies > 0].mean()) if frequencies.any() else 0.0

    def encode(self, values):
        """Return rows of 0 and 1.

        Args:
            values: for each example a text such as ``"cat|hat"``, or a list or set of labels; or a matrix ``(n,
                labels)`` of 0 and 1.

        Returns:
            ``(n, labels)`` float32.

        Raises:
            ValueError: a value is no label of the task, or a matrix holds other numbers.
        """
        values = values if isinstance(values, np.ndarray) else list(values)
        if len(values) and all(map(_is_numeric, values)):
            return label_rows(values, self.units)
        numbers = {label: number for number, label in enumerate(self.labels)}
        encoded = np.zeros((len(values), self.units), np.float32)
        for i, value in enumerate(values):
            for label in split_labels(value) if isinstance(value, str) else map(str, value):
                if label not in numbers:
                    shown = ", ".join(self.labels[:8]) + (", ..." if self.units > 8 else "")
                    raise ValueError(f"{label!r} is no label of the task; expected one of {shown}.")
                encoded[i, numbers[label]] = 1
        return encoded

    def decode(self, predictions):
        """Return the labels of each example whose probability reaches their threshold.

        Args:
            predictions: ``(n, labels)`` probabilities.

        Returns:
            A list of ``n`` tuples, each in the order of the labels.
        """
        chosen = np.asarray(predictions) >= (0.5 if self.thresholds is None else np.array(self.thresholds))
        return [tuple(label for label, is_chosen in zip(self.labels, row) if is_chosen) for row in chosen]


@dataclasses.dataclass(frozen=True)
class Regression(Task):
    """One number, or several, for each example.

    A model of :func:`thaw.attach_head` learns standardized targets, and its last layer puts them back into the user's
    units: mean and deviation are constants of that layer, and the loss is the mean squared error of standardized
    numbers, so that the rates that suit classes suit any unit. The metric that decides is the root mean squared error;
    of several targets, whose errors have different units, the mean R².

    Args:
        targets: names of the targets, in the order of the model's outputs; at least one, all different. Default
            ``("target",)``.
        mean: mean of each target in the training examples. Default ``None``: 0, not standardized.
        deviation: standard deviation of each target in the training examples, above 0. Default ``None``: 1.
        levels: the values of ordered classes, such as 1 to 5 stars, ascending, where the one target takes no others;
            they are measured by the quadratic weighted kappa too. Default ``None``.

    Raises:
        ValueError: no targets, the same one twice, or other numbers of means and deviations, or levels that are not
            ascending.

    Example:
        >>> from thaw.targets import Regression
        >>> task = Regression(["price"]).standardized_by([[1.0], [3.0]])
        >>> task.mean, task.deviation, task.baseline([1.0, 3.0])
        ((2.0,), (1.0,), 1.0)
        >>> task.decode([[2.5]])
        [2.5]
    """

    targets: tuple[str, ...] = ("target",)
    mean: tuple[float, ...] | None = None
    deviation: tuple[float, ...] | None = None
    levels: tuple[float, ...] | None = None

    activation = "linear"

    def __post_init__(self):
        object.__setattr__(self, "targets", _names(self.targets, "targets", "target"))
        if not self.targets:
            raise ValueError("Regression needs at least one target; there are none.")
        for name, least in (("mean", -np.inf), ("deviation", 0.0)):
            if (given := getattr(self, name)) is not None:
                numbers = np.asarray(given, np.float64).reshape(-1)
                if len(numbers) != self.units or not np.isfinite(numbers).all() or numbers.min() <= least:
                    rule = " above 0" if least == 0 else ""
                    raise ValueError(f"{name}={given!r}; expected {self.units} finite numbers{rule}, one a target.")
                object.__setattr__(self, name, tuple(numbers.tolist()))
        if self.levels is not None:
            levels = np.asarray(self.levels, np.float64).reshape(-1)
            if self.units > 1 or len(levels) < 2 or not np.isfinite(levels).all() or (np.diff(levels) <= 0).any():
                raise ValueError(
                    f"levels={self.levels!r} and {self.units} targets; expected two or more ascending numbers and one "
                    "target."
                )
            object.__setattr__(self, "levels", tuple(levels.tolist()))

    @property
    def units(self):
        return len(self.targets)

    @property
    def monitor(self):
        return ROOT_MEAN_SQUARED_ERROR if self.units == 1 else R2

    @property
    def mode(self):
        return "min" if self.units == 1 else "max"

    @property
    def loss(self):
        """The mean squared error: its name, or of standardized targets an object."""
        return "mean_squared_error" if self.deviation is None else standardized_squared_error(self.deviation)

    def standardized_by(self, y):
        """Return the task with the mean and the standard deviation of training targets.

        Args:
            y: ``(n, targets)`` numbers, or ``(n,)`` of one target.

        Raises:
            ValueError: numbers of another shape, or a target that is the same for all examples.
        """
        y = self.encode(y).astype(np.float64)
        deviation = y.std(axis=0)
        if (constant := np.flatnonzero(deviation == 0)).size:
            name = self.targets[constant[0]]
            raise ValueError(f"The target {name!r} is {y[0, constant[0]]:g} in all examples, with nothing to learn.")
        return dataclasses.replace(self, mean=tuple(y.mean(axis=0)), deviation=tuple(deviation))

    def baseline(self, y):
        """Return the root mean squared error of always predicting the mean; of several targets its R², which is 0.

        Args:
            y: ``(n, targets)`` numbers, or ``(n,)`` of one target.
        """
        return float(self.encode(y).astype(np.float64).std()) if self.units == 1 else 0.0

    def encode(self, values):
        """Return targets as rows of numbers.

        Args:
            values: ``(n, targets)`` numbers, or ``(n,)`` of one target, or texts that are numbers.

        Returns:
            ``(n, targets)`` float32.

        Raises:
            ValueError: numbers of another shape, texts that are none, or gaps.
        """
        try:
            numbers = np.asarray(values, np.float64)
        except (ValueError, TypeError):
            raise ValueError(f"The targets are no numbers; expected {self._shape()}.") from None
        if numbers.ndim == 1 and self.units == 1:
            numbers = numbers[:, None]
        if numbers.ndim != 2 or numbers.shape[1] != self.units:
            raise ValueError(f"The targets have shape {numbers.shape}; expected {self._shape()}.")
        if broken := int((~np.isfinite(numbers)).any(axis=1).sum()):
            raise ValueError(f"The targets hold NaN or infinity in {broken} of {len(numbers)} rows; leave them out.")
        return numbers.astype(np.float32)

    def decode(self, predictions):
        """Return the predicted numbers of each example.

        Args:
            predictions: ``(n, targets)`` numbers in the units of the targets.

        Returns:
            A list of ``n`` floats; of several targets, of dicts from target to float.
        """
        rows = np.asarray(predictions, np.float64).reshape(-1, self.units).tolist()
        return [row[0] for row in rows] if self.units == 1 else [dict(zip(self.targets, row)) for row in rows]

    def _shape(self):
        named = ", ".join(self.targets[:8]) + (", ..." if self.units > 8 else "")
        return f"{self.units} number{'s' if self.units > 1 else ''} for each example: {named}"


def label_rows(y, labels=None):
    """Return the labels of examples as rows of 0 and 1: the one converter of several labels.

    Args:
        y: ``(n, labels)`` numbers 0 or 1.
        labels: how many labels there are, to check the width against; ``None`` for no check.

    Returns:
        ``(n, labels)`` float32.

    Raises:
        ValueError: another shape, or other numbers.

    Example:
        >>> from thaw.targets import label_rows
        >>> label_rows([[True, False], [True, True]], 2).tolist()
        [[1.0, 0.0], [1.0, 1.0]]
    """
    y = np.asarray(y)
    if y.ndim != 2 or y.dtype.kind not in "iubf" or labels not in (None, y.shape[1]):
        width = "one column for each label" if labels is None else f"(n, {labels})"
        raise ValueError(f"The labels are {y.dtype} of shape {y.shape}; expected rows of 0 and 1, {width}.")
    if not np.isin(y, (0, 1)).all():
        raise ValueError(f"The labels go from {y.min():g} to {y.max():g}; expected 0 and 1, and nothing between.")
    return y.astype(np.float32)


def split_labels(text):
    """Return the labels in a text, in order: ``"cat|hat"`` holds two, an empty text none.

    Args:
        text: labels separated by ``|``.

    Example:
        >>> from thaw.targets import split_labels
        >>> split_labels("cat | hat"), split_labels(" ")
        (['cat', 'hat'], [])
    """
    return [label for part in text.split(SEPARATOR) if (label := part.strip())]


def standardized_squared_error(deviation):
    """Make the mean squared error of targets that are divided by their standard deviations.

    A model that is saved compiled with it holds Keras' own ``MeanSquaredError``, in the units of the targets, so that
    the file opens with Keras alone; compile again to train on.

    Args:
        deviation: ``(targets,)`` numbers above 0.

    Returns:
        A ``keras.losses.Loss``, for ``compile``.

    Example:
        >>> import numpy as np
        >>> from thaw.targets import standardized_squared_error
        >>> loss = standardized_squared_error([2.0, 100.0])
        >>> float(loss(np.array([[2.0, 300.0]]), np.array([[4.0, 200.0]])))
        1.0
    """
    import keras

    scale = np.asarray(deviation, np.float32)
    public = keras.losses.MeanSquaredError

    class MeanSquaredError(public):
        __class__ = serialized_as(public)
        deviation = tuple(map(float, scale))

        def call(self, y_true, y_pred):
            return super().call(y_true / scale, y_pred / scale)

    return MeanSquaredError()


def _names(names, argument, kind):
    if isinstance(names, str):
        raise ValueError(f"{argument}={names!r}; expected a list of names, one for each {kind}.")
    names = tuple(map(str, names))
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"The {kind} {twice[0]!r} is there twice; expected different {argument}.")
    return names


def _is_numeric(row):
    """Is it a row of numbers, and not a text or several labels?"""
    if isinstance(row, (str, set, frozenset)):
        return False
    row = np.asarray(row)
    return row.dtype.kind in "iubf" and row.ndim == 1 and row.size > 0


def _checked_thresholds(thresholds, units):
    numbers = np.asarray(thresholds, np.float64)
    if numbers.ndim == 0:
        numbers = np.full(units, numbers)
    if numbers.shape != (units,) or not ((numbers > 0) & (numbers < 1)).all():
        raise ValueError(f"thresholds={thresholds!r}; expected {units} numbers between 0 and 1, one for each label.")
    return tuple(numbers.tolist())
