"""The first metric of a model, by which its epochs are chosen."""

from __future__ import annotations

import re

# Names and classes, without underscores. Top-k accuracy is another score.
ACCURACIES = ("acc", "accuracy", "binaryaccuracy", "categoricalaccuracy", "sparsecategoricalaccuracy")


def first_metric(model):
    """Name of the first metric, and whether it is the accuracy.

    Args:
        model: a compiled ``keras.Model``.

    Returns:
        ``(name, is_accuracy)``; the name is ``None`` where the model has no metric. Accuracy is the share of the
        examples whose most probable class is right, and nothing else.

    Example:
        >>> import keras
        >>> from thaw.tuning.first_metric import first_metric
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Softmax()])
        >>> model.compile("adam", "sparse_categorical_crossentropy", metrics=["acc"])
        >>> first_metric(model)
        ('acc', True)
    """
    metrics = given_metrics(model)
    if not metrics:
        return None, False
    name, kind = metric_name(metrics[0]), type(metrics[0]).__name__
    known = any(word.replace("_", "").lower() in ACCURACIES for word in (name, kind))
    return name, known and "TopK" not in kind  # which may be called anything


def metric_name(metric):
    """What the logs call a metric.

    Args:
        metric: as it was given to ``compile``: a name, a function or an object.

    Example:
        >>> from thaw.tuning.first_metric import metric_name
        >>> metric_name("acc"), metric_name(lambda y, p: 0.0)
        ('acc', 'lambda')
    """
    if isinstance(metric, str):
        return metric
    if name := getattr(metric, "name", None):
        return name
    word = re.sub(r"\W", "", getattr(metric, "__name__", type(metric).__name__))
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=.)(?=[A-Z][a-z])", "_", word).lower()  # as Keras does


def given_metrics(model):
    """The metrics as they were given to ``compile``, or the weighted ones where there are no others.

    Args:
        model: a compiled ``keras.Model``.

    Returns:
        A list of names, functions and objects; empty where there are none.
    """
    import keras

    config = model._compile_config.config
    given = keras.tree.flatten(config["metrics"] or config["weighted_metrics"] or [])
    return [metric for metric in given if metric is not None]
