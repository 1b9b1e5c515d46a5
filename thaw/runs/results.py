"""What a run is measured by, and the tables that it leaves."""

from __future__ import annotations


def measure(model, splits, *, batch_size, seed):
    """Measure a model on the test images, or on the validation images where there are none.

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


def quarantine(splits):
    """Return the files that were left out, and why, as columns."""
    return {"path": [bad.path for bad in splits.rejected], "reason": [bad.reason for bad in splits.rejected]}
