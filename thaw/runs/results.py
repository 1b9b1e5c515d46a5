"""What a run is measured by, and the tables that it leaves."""

from __future__ import annotations


def measure(model, splits, *, batch_size, seed):
    """Measure a model on the test examples, or on the validation examples where there are none.

    Args:
        model: ``keras.Model``; unchanged.
        splits: :class:`~thaw.data.splits.Splits`.
        batch_size: examples in a batch.
        seed: seed of the bootstrap.

    Returns:
        The dict of :func:`thaw.evaluate`, with ``split``, and ``majority``, the accuracy of always predicting the most
        frequent class.
    """
    from thaw.features.predictions import evaluate

    split = "validation" if splits.test is None else "test"
    examples = getattr(splits, split)
    found = evaluate(model, examples, labels=splits.labels, batch_size=batch_size, seed=seed)
    return compared_with_majority({"split": split} | found, splits.task, examples.y)


def compared_with_majority(metrics, task, y):
    """Add the accuracy of the most frequent class to metrics, and a note where the model is not better.

    Args:
        metrics: dict of :func:`thaw.evaluate`; changed in place.
        task: :class:`thaw.Classification`.
        y: ``(n,)`` class numbers of the examples that were measured.

    Returns:
        The same dict.
    """
    metrics["majority"] = task.baseline(y)
    low = metrics["accuracy"]["low"]
    if low is None or low <= metrics["majority"]:  # a single test image allows no interval
        metrics["notes"].append(
            f"The accuracy is not distinguishable from {metrics['majority']:.3f}, that of always predicting the most "
            "frequent class."
        )
    return metrics


def compared_with_baseline(metrics, task, y):
    """Add the baseline to metrics of several labels, or of numbers, and a note where the model is not better.

    Args:
        metrics: dict of :func:`thaw.evaluate`; changed in place.
        task: :class:`thaw.targets.MultiLabel` or :class:`thaw.targets.Regression`.
        y: targets of the examples that were measured.

    Returns:
        The same dict.
    """
    from thaw.targets import MultiLabel

    if isinstance(task, MultiLabel):
        metrics["baseline"] = task.baseline(y)
        low = metrics["mean_average_precision"]["low"]
        if low is None or low <= metrics["baseline"]:
            metrics["notes"].append(
                f"The mean average precision is not distinguishable from {metrics['baseline']:.3f}, that of one score "
                "for all examples."
            )
    elif (low := metrics["r2"]["low"]) is None or low <= 0:
        metrics["notes"].append("The errors are not distinguishable from those of always predicting the mean.")
    return metrics


def compared_with_trees(model, splits, seed):
    """Compare the model of a table with gradient boosting on the same split.

    Args:
        model: trained ``keras.Model``; unchanged.
        splits: :class:`thaw.data.columns.TableSplits`.
        seed: seed of the bootstrap.

    Returns:
        ``(metrics, notes)``: the difference of the model and the trees with its interval, as in
        :func:`thaw.transfer.boosted_trees.compare_with_trees`, by the name of the metric, and a sentence.
    """
    import dataclasses

    from thaw.transfer.boosted_trees import compare_with_trees, gradient_boosting

    trees = gradient_boosting(splits, seed=seed)
    difference, sentence = compare_with_trees(model, splits, trees, seed=seed)
    metric = "rmse_difference" if splits.task.activation == "linear" else "accuracy_difference"
    return {metric: dataclasses.asdict(difference)}, [sentence]


def measure_targets(model, splits, *, batch_size, seed, spread=None):
    """Measure several labels, or numbers, on the test examples, or on the validation examples where there are none.

    Args:
        model: ``keras.Model``; unchanged.
        splits: :class:`~thaw.data.splits.Splits` of several labels or of numbers.
        batch_size: examples in a batch.
        seed: seed of the bootstrap.
        spread: of predicted numbers, as for :func:`thaw.evaluate`. Default ``None``.

    Returns:
        ``(metrics, columns)``: the dict of :func:`thaw.evaluate`, with ``split``, and ``baseline``, of several labels
        the mean average precision of one score for all examples; and the predictions as columns: ``path``, where there
        are files, and for each label its truth, whether it is predicted and its probability, or for each number its
        truth, the prediction, and the ends of its interval.
    """
    from thaw.features.predictions import metrics_of_targets, predict_targets

    split = "validation" if splits.test is None else "test"
    examples = getattr(splits, split)
    y, p = predict_targets(model, examples, task=splits.task, batch_size=batch_size)
    metrics = {"split": split} | metrics_of_targets(y, p, task=splits.task, spread=spread, seed=seed)
    columns = {} if splits.files is None else {"path": list(splits.files[split])}
    columns |= _predictions_table(splits, y, p, spread)
    return compared_with_baseline(metrics, splits.task, examples.y), columns


def _predictions_table(splits, y, p, spread):
    import numpy as np

    from thaw.targets import MultiLabel

    columns = {}
    if isinstance(splits.task, MultiLabel):
        chosen = p >= np.array(splits.task.thresholds or [0.5] * splits.task.units)
        for c, label in enumerate(splits.labels):
            columns |= {label: y[:, c].astype(int).tolist(), f"predicted {label}": chosen[:, c].astype(int).tolist()}
            columns[f"probability of {label}"] = p[:, c].tolist()
        return columns
    for c, name in enumerate(splits.labels):
        columns |= {name: y[:, c].tolist(), f"predicted {name}": p[:, c].tolist()}
        if spread is not None and (width := spread["half_width"][c]) is not None:
            columns |= {f"low {name}": (p[:, c] - width).tolist(), f"high {name}": (p[:, c] + width).tolist()}
    return columns


def quarantine(splits):
    """Return the files that were left out, and why, as columns."""
    return {"path": [bad.path for bad in splits.rejected], "reason": [bad.reason for bad in splits.rejected]}
