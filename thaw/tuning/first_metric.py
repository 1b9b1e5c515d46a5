"""The first metric of a model, by which its epochs are chosen."""

from __future__ import annotations

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
    metric, kind = metrics[0], type(metrics[0]).__name__
    name = metric if isinstance(metric, str) else getattr(metric, "name", None) or metric.__name__.strip("<>")
    known = any(word.replace("_", "").lower() in ACCURACIES for word in (name, kind))
    return name, known and "TopK" not in kind  # which may be called anything


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
