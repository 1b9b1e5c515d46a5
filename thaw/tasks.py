"""Task: what a model predicts. It knows the loss, the metrics, the one that decides, the baseline and the labels.

A task knows no Keras graph: :func:`thaw.models.heads.task_of` reads the last layer. ``Classification`` is the first;
several labels at once and numbers to predict will have the same interface.
"""

from __future__ import annotations

import dataclasses
import re

import numpy as np

from thaw._keras import compile_settings, metric_direction, serialized_as

# Names and classes, without underscores. Top-k accuracy is another metric.
ACCURACIES = ("acc", "accuracy", "binaryaccuracy", "categoricalaccuracy", "sparsecategoricalaccuracy")


@dataclasses.dataclass(frozen=True)
class Task:
    """The interface of every task.

    Attributes:
        units: size of the last axis of the model's output.
        activation: of the last layer: ``"softmax"``, ``"sigmoid"`` or ``"linear"``.
        loss: the Keras loss, as ``compile`` takes it.
        monitor: name of the metric that decides which epoch is best.
        mode: ``"max"`` or ``"min"``: which direction of it is better.
    """

    activation = loss = monitor = mode = None

    @property
    def units(self):
        raise NotImplementedError

    def metrics(self):
        """Return the metrics for ``compile``."""
        return [self.monitor]

    def baseline(self, y):
        """Return the metric that decides for a model that ignores its input."""
        raise NotImplementedError

    def encode(self, values):
        """Return targets as numbers."""
        raise NotImplementedError

    def decode(self, predictions):
        """Return predictions as the user's own labels."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Classification(Task):
    """One class for each example.

    Args:
        labels: names of the classes, in the order of the model's outputs; at least two, all different.
        label_smoothing: share of each target, 0 to below 1, that is spread over all classes (Szegedy et al. 2016); 0.1
            is usual. See :func:`thaw.tasks.smoothed_crossentropy`. Default 0.

    Raises:
        ValueError: fewer than two labels, or the same one twice; or another ``label_smoothing``.

    Example:
        >>> from thaw import Classification
        >>> task = Classification(["ant", "bee"])
        >>> task.encode(["bee", "ant"]).tolist(), task.decode([[0.2, 0.8]])
        ([1, 0], ['bee'])
        >>> task.baseline([0, 0, 0, 1])
        0.75
    """

    labels: tuple[str, ...]
    label_smoothing: float = 0.0

    activation, monitor, mode = "softmax", "accuracy", "max"

    def __post_init__(self):
        if isinstance(self.labels, str):
            raise ValueError(f"labels={self.labels!r}; expected a list of names, one for each class.")
        labels = tuple(map(str, self.labels))
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if len(labels) < 2 or twice:
            what = f"{twice[0]!r} is there twice" if twice else f"there are {len(labels)}"
            raise ValueError(f"Classification needs at least two different labels; {what}.")
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "label_smoothing", _checked_smoothing(self.label_smoothing))

    @classmethod
    def of(cls, classes):
        """Return the task for a number of classes without names: they are called ``"0"``, ``"1"``, ...

        Args:
            classes: int, at least 2.

        Raises:
            ValueError: not a whole number from 2.
        """
        from thaw._validation import as_int

        if isinstance(classes, (list, tuple)):
            shown = ", ".join(map(repr, classes[:3])) + (", ..." if len(classes) > 3 else "")
            raise ValueError(
                f"classes=[{shown}]; expected a number of classes from 2, or a task: Classification([{shown}]), or "
                "splits.task."
            )
        return cls(tuple(map(str, range(as_int("classes", classes, 2)))))

    @property
    def units(self):
        return len(self.labels)

    @property
    def loss(self):
        """The crossentropy of class numbers: its name, or with ``label_smoothing`` an object."""
        smooth = self.label_smoothing
        return smoothed_crossentropy(smooth) if smooth else "sparse_categorical_crossentropy"

    def baseline(self, y):
        """Return the accuracy of always predicting the most frequent class.

        Args:
            y: ``(n,)`` class numbers.
        """
        counts = np.bincount(class_numbers(y, self.units))
        return float(counts.max() / counts.sum())

    def encode(self, values):
        """Return class numbers.

        Args:
            values: ``(n,)`` labels.

        Returns:
            ``(n,)`` int64.

        Raises:
            ValueError: a value is no label of the task.
        """
        numbers = {label: number for number, label in enumerate(self.labels)}
        values = [str(value) for value in values]
        unknown = next((value for value in values if value not in numbers), None)
        if unknown is not None:
            shown = ", ".join(self.labels[:8]) + (", ..." if self.units > 8 else "")
            raise ValueError(f"{unknown!r} is no label of the task; expected one of {shown}.")
        return np.array([numbers[value] for value in values], np.int64)

    def decode(self, predictions):
        """Return the most probable label of each example.

        Args:
            predictions: ``(n, classes)`` probabilities or logits.

        Returns:
            A list of ``n`` labels.
        """
        return [self.labels[number] for number in np.asarray(predictions).argmax(axis=-1)]


def class_numbers(y, classes=None, expected="expected one class number for each example."):
    """Return labels as one whole number for each example: the one converter of labels.

    Args:
        y: ``(n,)`` or ``(n, 1)`` whole numbers, of any numeric type, or one-hot rows ``(n, classes)``.
        classes: how many classes there are, to check the range against; ``None`` for no check.
        expected: end of the error message.

    Returns:
        ``(n,)`` int64.

    Raises:
        ValueError: they are not one class for each example, or outside ``0 .. classes - 1``.

    Example:
        >>> from thaw.tasks import class_numbers
        >>> class_numbers([[0, 1], [1, 0]]).tolist(), class_numbers([2.0, 0.0]).tolist()
        ([1, 0], [2, 0])
    """
    y = np.asarray(y)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim == 2 and classes in (None, y.shape[1]):
        if not (np.isin(y, (0, 1)).all() and (y.sum(axis=1) == 1).all()):
            raise ValueError(f"The labels are rows of {y.shape[1]} numbers that are not one-hot; {expected}")
        y = y.argmax(axis=1)
    whole = y.dtype.kind in "iub" or (y.dtype.kind == "f" and (y == np.floor(y)).all())
    if y.ndim != 1 or not whole:
        raise ValueError(f"The labels are {y.dtype} of shape {y.shape}; {expected}")
    if classes is not None and len(y) and not (y.min() >= 0 and y.max() < classes):
        raise ValueError(f"The labels go from {y.min():g} to {y.max():g}; expected class numbers 0 to {classes - 1}.")
    return y.astype(np.int64)


def loss_name(loss):
    """Return the name of a loss in snake case, and whether it expects logits.

    Args:
        loss: the argument of ``compile``: a name, a function or a ``keras.losses.Loss``.

    Example:
        >>> import keras
        >>> from thaw.tasks import loss_name
        >>> loss_name(keras.losses.BinaryCrossentropy(from_logits=True))
        ('binary_crossentropy', True)
    """
    import keras

    loss = keras.losses.get(loss) if isinstance(loss, str) else loss
    name = getattr(loss, "__name__", None) or type(loss).__name__
    snake = "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")
    config = loss.get_config() if isinstance(loss, keras.losses.Loss) else {}
    return snake, bool(config.get("from_logits", False))


def smoothed_crossentropy(label_smoothing, *, units=None, from_logits=False):
    """Make the crossentropy of class numbers with label smoothing (Szegedy et al. 2016).

    It is the ``CategoricalCrossentropy(label_smoothing=...)`` of the same labels as one-hot rows: a share of each
    target is spread over all classes. A model that is saved compiled with it holds Keras' own crossentropy, without
    smoothing, so that the file opens with Keras alone; compile again to train on with smoothing.

    Args:
        label_smoothing: the share, 0 to below 1.
        units: size of the last axis of the model's output: 1 for a single unit, which is class 1 against class 0.
            Default ``None``: as many as there are classes.
        from_logits: whether the model puts out logits. Default ``False``.

    Returns:
        A ``keras.losses.Loss``, for ``compile``.

    Raises:
        ValueError: another ``label_smoothing``.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.tasks import smoothed_crossentropy
        >>> p = np.array([[0.7, 0.2, 0.1]], "float32")
        >>> dense = keras.losses.CategoricalCrossentropy(label_smoothing=0.1)(np.array([[1.0, 0.0, 0.0]]), p)
        >>> abs(float(smoothed_crossentropy(0.1)(np.array([0]), p)) - float(dense)) < 1e-6
        True
    """
    import keras

    smooth = _checked_smoothing(label_smoothing)
    if units == 1:
        return keras.losses.BinaryCrossentropy(label_smoothing=smooth, from_logits=from_logits)
    public = keras.losses.SparseCategoricalCrossentropy

    class SparseCategoricalCrossentropy(public):
        __class__ = serialized_as(public)
        label_smoothing = smooth

        def call(self, y_true, y_pred):
            uniform = keras.ops.full_like(y_pred, 1 / y_pred.shape[-1])
            spread = keras.ops.categorical_crossentropy(uniform, y_pred, from_logits=from_logits)
            return (1 - smooth) * super().call(y_true, y_pred) + smooth * spread

    return SparseCategoricalCrossentropy(from_logits=from_logits)


def _checked_smoothing(value):
    if isinstance(value, bool) or not _is_number(value) or not 0 <= value < 1:
        raise ValueError(f"label_smoothing={value!r}; expected a share from 0 to below 1, such as 0.1.")
    return float(value)


def checked_class_weight(class_weight):
    """Return the weights of classes as a dict from int to float.

    Args:
        class_weight: dict from class number to weight, as ``fit`` takes it.

    Raises:
        ValueError: not a dict, a key that is no class number (Keras looks it up in vain, and says nothing), or a weight
            below 0, infinite or NaN.

    Example:
        >>> from thaw.tasks import checked_class_weight
        >>> checked_class_weight({0: 1, 1.0: 2.5})
        {0: 1.0, 1: 2.5}
    """
    if not isinstance(class_weight, dict):
        raise ValueError(
            f"class_weight={class_weight!r}; expected a dict from class number to weight, such as {{0: 1.0, 1: 2.5}}."
        )
    checked = {}
    for key, value in class_weight.items():
        if not _is_number(key) or key < 0 or key != int(key):
            raise ValueError(f"class_weight has the key {key!r}; expected class numbers: 0, 1, ...")
        if not _is_number(value) or value < 0:
            raise ValueError(f"class_weight has {value!r} for class {key}; expected a finite number of 0 or more.")
        checked[int(key)] = float(value)
    return checked


def _is_number(value):
    """Is it one finite number, of Python or of NumPy?"""
    number = np.asarray(value)
    return number.ndim == 0 and number.dtype.kind in "iufb" and bool(np.isfinite(number))


def compiled_metrics(model):
    """Return the metrics as they were given to ``compile``, the weighted ones after the others.

    Args:
        model: a compiled ``keras.Model``.

    Returns:
        A list of names, functions and objects; empty where there are none.
    """
    import keras

    settings = compile_settings(model)
    given = keras.tree.flatten([settings.get("metrics") or [], settings.get("weighted_metrics") or []])
    return [metric for metric in given if metric is not None]


def metric_name(metric):
    """Return the name of a metric in the logs.

    Args:
        metric: as it was given to ``compile``: a name, a function or an object.

    Example:
        >>> from thaw.tasks import metric_name
        >>> metric_name("acc"), metric_name(lambda y, p: 0.0)
        ('acc', 'lambda')
    """
    if isinstance(metric, str):
        return metric
    if name := getattr(metric, "name", None):
        return name
    word = re.sub(r"\W", "", getattr(metric, "__name__", type(metric).__name__))
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=.)(?=[A-Z][a-z])", "_", word).lower()  # as Keras does


def first_metric(model):
    """Return the name of the first compiled metric, and whether it is the accuracy.

    Args:
        model: a compiled ``keras.Model``.

    Returns:
        ``(name, is_accuracy)``; the name is ``None`` where the model has no metric. Accuracy is the fraction of
        the examples whose most probable class is right, and nothing else.

    Example:
        >>> import keras
        >>> from thaw.tasks import first_metric
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Softmax()])
        >>> model.compile("adam", "sparse_categorical_crossentropy", metrics=["acc"])
        >>> first_metric(model)
        ('acc', True)
    """
    metrics = compiled_metrics(model)
    if not metrics:
        return None, False
    name, kind = metric_name(metrics[0]), type(metrics[0]).__name__
    known = any(word.replace("_", "").lower() in ACCURACIES for word in (name, kind))
    return name, known and "TopK" not in kind  # which may be called anything


def check_mode(mode):
    """Raise ``ValueError`` for a direction other than ``"max"``, ``"min"`` and ``None``."""
    if mode not in (None, "max", "min"):
        raise ValueError(f'mode={mode!r}; expected "max", "min", or None to ask the metric.')


def monitor_of(model, monitor=None, mode=None, *, validation=True):
    """Return the value in the logs that decides which epoch is best, and which direction of it is better.

    The first metric that was compiled, or the loss where there is none or the model has several outputs. The direction
    is the one that the metric declares to Keras.

    Args:
        model: a compiled ``keras.Model``.
        monitor: name of a metric, ``"loss"``, or a value that a callback writes into the logs; ``None`` for the usual.
        mode: ``"max"`` or ``"min"``, for a metric that declares no direction, and for what a callback writes; ``None``
            to ask the metric.
        validation: whether there are validation data, so that the name begins with ``val_``.

    Returns:
        ``(name, "max" or "min")``.

    Raises:
        ValueError: an unknown mode, or one that contradicts what the metric declares; no such metric; or a metric that
            declares no direction, and no ``mode``.

    Example:
        >>> import keras
        >>> from thaw.tasks import monitor_of
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile("adam", "mse", metrics=["mae"])
        >>> monitor_of(model), monitor_of(model, "loss", validation=False)
        (('val_mae', 'min'), ('loss', 'min'))
    """
    check_mode(mode)
    if monitor is None:
        several = len(getattr(model, "outputs", None) or ()) > 1  # whose metrics have other names in the logs
        monitor = None if several or not validation else first_metric(model)[0]
        monitor = monitor or "loss"
    plain = monitor.removeprefix("val_")
    given = {}
    for metric in compiled_metrics(model):
        given.setdefault(metric_name(metric), metric)  # a second one of the same name has another in the logs
    metric = given.get(plain) or next((m for name, m in given.items() if plain.endswith(f"_{name}")), None)
    is_loss = plain == "loss" or plain.endswith("_loss")
    name = f"val_{plain}" if validation and (plain == "loss" or plain in given) else monitor
    declared = "min" if is_loss and metric is None else _direction(metric)
    if declared and mode not in (None, declared):
        better = "higher" if declared == "max" else "lower"
        raise ValueError(f"mode={mode!r}, and {plain} is better when {better}; leave mode (--mode) out.")
    direction = declared or mode
    if direction is None and metric is None:
        names = ", ".join(["loss", *given])
        raise ValueError(
            f"There is no metric {plain!r}; expected one of {names}. For what a callback writes into the logs, say "
            'mode="max" or mode="min".'
        )
    if direction is None:
        raise ValueError(
            f"The metric {plain} does not declare whether higher or lower is better; say it: "
            'mode="max" or mode="min" (--metric NAME --mode max at the command line).'
        )
    return name, direction


def _direction(metric):
    """The direction that a metric, as it was given to ``compile``, declares; ``None`` where it declares none."""
    import keras

    if metric is None:
        return None
    if isinstance(metric, str):
        if metric.lower() in ("acc", "accuracy"):
            return "max"
        if metric.lower() in ("ce", "crossentropy"):
            return "min"
    elif not isinstance(metric, keras.metrics.Metric):
        name = getattr(metric, "__name__", "")
        if getattr(keras.metrics, name, None) is not metric:
            return None  # a function of the user's own
        metric = name
    if isinstance(metric, str):
        try:
            metric = keras.metrics.get(metric)
        except (ValueError, TypeError):
            return None
        if not isinstance(metric, keras.metrics.Metric):  # a function; its class has the direction
            classes = [c for c in vars(keras.metrics).values() if isinstance(c, type)]
            word = getattr(metric, "__name__", "").replace("_", "").lower()
            metric = next((c for c in classes if c.__name__.lower() == word), None)
    return metric_direction(metric)
