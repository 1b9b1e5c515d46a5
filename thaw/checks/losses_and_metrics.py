"""Which labels a loss takes, and which outputs and labels a metric takes."""

from __future__ import annotations

import numpy as np

from thaw.models.heads import output_activation
from thaw.models.inputs import fits_shape
from thaw.tasks import compiled_metrics, loss_name, metric_name

# Losses that subtract or divide number by number, and would broadcast labels of another width.
ELEMENTWISE = (
    *("mean_squared_error", "mean_absolute_error", "mean_absolute_percentage_error", "mean_squared_logarithmic_error"),
    *("huber", "log_cosh", "poisson"),
)


def wrong_labels(loss, name, y, output, subject):
    """Say what is wrong with labels for a loss, and what to write instead.

    Args:
        loss: as it was given to ``compile``.
        name: of the loss, in snake case.
        y: array of the labels.
        output: shape of the model's output, with the batch first.
        subject: how a sentence about the labels begins, such as ``"The labels"``.

    Returns:
        Two sentences, ``(what, fix)``; ``None`` where nothing is wrong.

    Example:
        >>> from thaw.checks.losses_and_metrics import wrong_labels
        >>> loss = "sparse_categorical_crossentropy"
        >>> wrong_labels(loss, loss, np.eye(3), (None, 3), "The labels")[0]
        'The labels have shape (3,) (one-hot) and the loss is sparse.'
    """
    import keras

    if y.dtype.kind in "USO":
        if y.dtype.kind == "O" and not isinstance(y.flat[0], (str, bytes)):
            return None
        return f"{subject} are texts, such as {y.flat[0]!s}.", "Number the classes from 0."
    if not hasattr(keras.losses, name) and not hasattr(keras.losses, type(loss).__name__):
        return None  # the user's own, which may expect anything
    broken = int((~np.isfinite(y)).sum()) if y.dtype.kind == "f" else 0
    if broken:
        return f"{subject} hold NaN or infinity, {broken} of {y.size}.", "Leave these examples out."
    units, shape = output[-1], y.shape
    column = len(shape) < len(output) or shape[-1] == 1  # one number for each position
    if name == "sparse_categorical_crossentropy":
        if not column:
            fix = "Use categorical_crossentropy, or labels.argmax(-1)."
            return f"{subject} have shape {shape[1:]} (one-hot) and the loss is sparse.", fix
        if y.dtype.kind == "f" and (y != np.floor(y)).any():
            return f"{subject} are not whole numbers and the loss is sparse.", "Number the classes from 0."
        ignored = getattr(loss, "ignore_class", None)
        counted = y if ignored is None else y[y != ignored]
        low, high = (int(counted.min()), int(counted.max())) if counted.size else (0, 0)
        if low < 0 or high >= units:
            return (
                f"{subject} go from {low} to {high} and the model has {units} classes, 0 to {units - 1}.",
                "Number the classes from 0, or give the head as many classes as there are.",
            )
    elif name == "categorical_crossentropy" and (column or shape[-1] != units):
        what = f"{subject} are class numbers, or not {units} wide, and categorical_crossentropy expects one-hot."
        return what, "Use sparse_categorical_crossentropy."
    elif name == "binary_crossentropy":
        if (1 if column else shape[-1]) != units:
            what = f"{subject} have shape {shape[1:]} and the model has {units} outputs for binary_crossentropy."
            return what, "Give as many labels of 0 or 1 as there are outputs."
        if y.min() < 0 or y.max() > 1:
            what = f"{subject} go from {y.min():g} to {y.max():g} and binary_crossentropy expects 0 to 1."
            return what, "For more classes use a softmax and sparse_categorical_crossentropy."
    elif name in ELEMENTWISE and not fits_shape(shape[1:], tuple(output[1:])):
        count = f"{units} output{'s' if units != 1 else ''}" if len(output) == 2 else f"outputs of shape {output[1:]}"
        what = f"{subject} have shape {shape[1:]} and the model has {count}."
        return what, "Give as many numbers for each example as there are outputs."
    return None


def misread_metrics(model):
    """Find the metrics that take the model's logits for probabilities, and say what to write instead.

    Args:
        model: a compiled ``keras.Model``.

    Returns:
        A list of ``(name, fix)``; empty for a model with several outputs or a training step of its own.

    Example:
        >>> import keras
        >>> from thaw.checks.losses_and_metrics import misread_metrics
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile("adam", keras.losses.BinaryCrossentropy(from_logits=True), metrics=["accuracy"])
        >>> misread_metrics(model)
        [('accuracy', 'Write keras.metrics.BinaryAccuracy(threshold=0), or end the model in sigmoid.')]
    """
    import keras

    losses = keras.tree.flatten(model.loss)
    if len(losses) != 1 or losses[0] is None or output_activation(model) != "logits":
        return []
    if "crossentropy" not in loss_name(losses[0])[0]:
        return []  # a regression, say
    units = model.outputs[0].shape[-1]
    found = [(metric, _fix_for_logits(metric, units)) for metric in compiled_metrics(model)]
    return [(metric_name(metric), fix) for metric, fix in found if fix]


def one_hot_metrics(model):
    """Find the metrics that need one-hot labels where the loss takes class numbers: ``F1Score`` and ``FBetaScore``.

    Args:
        model: a compiled ``keras.Model``.

    Returns:
        A list of names; empty for a model with several losses.

    Example:
        >>> import keras
        >>> from thaw.checks.losses_and_metrics import one_hot_metrics
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, "softmax")])
        >>> model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy", keras.metrics.F1Score()])
        >>> one_hot_metrics(model)
        ['f1_score']
    """
    import keras

    losses = keras.tree.flatten(model.loss)
    if len(losses) != 1 or losses[0] is None or loss_name(losses[0])[0] != "sparse_categorical_crossentropy":
        return []
    return [metric_name(m) for m in compiled_metrics(model) if isinstance(m, keras.metrics.FBetaScore)]


def _fix_for_logits(metric, units):
    """What to write instead of a metric that would take logits for probabilities; ``None`` where it would not."""
    import keras

    end = "end the model in sigmoid" if units == 1 else "end the model in softmax or sigmoid"
    if isinstance(metric, str):
        if metric.lower() in ("acc", "accuracy"):
            return f"Write keras.metrics.BinaryAccuracy(threshold=0), or {end}." if units == 1 else None
        try:
            metric = keras.metrics.get(metric)
        except (ValueError, TypeError):
            return None
    if metric is keras.metrics.binary_accuracy:
        metric = keras.metrics.BinaryAccuracy()
    if not isinstance(metric, keras.metrics.Metric):
        name = getattr(metric, "__name__", "")
        of_keras = name.endswith("crossentropy") and getattr(keras.metrics, name, None) is metric
        return f"Write its class with from_logits=True, or {end}." if of_keras else None
    kind, config = type(metric).__name__, metric.get_config()
    if type(metric) is not getattr(keras.metrics, kind, None):
        return None  # of the user's own
    if "from_logits" in config:
        return None if config["from_logits"] else f"Write keras.metrics.{kind}(from_logits=True), or {end}."
    if kind == "BinaryAccuracy" and config["threshold"] > 0:
        return f"Write keras.metrics.BinaryAccuracy(threshold=0), or {end}."
    if kind in ("Precision", "Recall"):
        if config["top_k"] is None and np.any(
            np.asarray(0.5 if config["thresholds"] is None else config["thresholds"])
        ):
            return f"Write keras.metrics.{kind}(thresholds=0), or {end}."
    elif kind in ("F1Score", "FBetaScore"):
        if config["threshold"] is not None or units == 1:  # else the highest output is the class
            return f"It has no threshold for logits: {end}."
    elif "thresholds" in config or "num_thresholds" in config:
        return f"It has no thresholds for logits: {end}."
    return None
