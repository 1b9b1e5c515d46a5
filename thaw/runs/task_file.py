"""Write what a model predicts into the folder of a run, and read it back; and decide it by held-out examples."""

from __future__ import annotations

import dataclasses

TASK = "task.json"
MIN_HELD_OUT = 15  # validation examples that an interval is worth, and as many again to choose the best epoch by


def task_to_dict(task, spread=None):
    """Return a task for JSON.

    Args:
        task: :class:`thaw.targets.MultiLabel` or :class:`thaw.targets.Regression`.
        spread: of the predictions of a regression, from :func:`thaw.metrics.residual_spread`. Default ``None``.

    Example:
        >>> from thaw.runs.task_file import task_from_dict, task_to_dict
        >>> from thaw.targets import MultiLabel
        >>> task_from_dict(task_to_dict(MultiLabel(["a", "b"], thresholds=0.4)), ["a", "b"])[0].thresholds
        (0.4, 0.4)
    """
    from thaw.targets import MultiLabel

    kind = "multilabel" if isinstance(task, MultiLabel) else "regression"
    return {"task": kind, **dataclasses.asdict(task)} | ({} if spread is None else {"interval": spread})


def task_from_dict(saved, labels):
    """Return the task and the spread that :func:`task_to_dict` was given.

    Args:
        saved: the dict; ``None`` for the classes of a run without one.
        labels: names of the model's outputs.

    Returns:
        ``(task, spread)``.
    """
    from thaw.targets import MultiLabel, Regression
    from thaw.tasks import Classification

    if saved is None:
        return Classification(labels), None
    kind = {"multilabel": MultiLabel, "regression": Regression}[saved["task"]]
    fields = {field.name: saved[field.name] for field in dataclasses.fields(kind)}
    return kind(**fields), saved.get("interval")


def hold_out(splits, seed):
    """Take half of the validation examples away, which choose nothing, to measure how far predictions are off.

    Args:
        splits: :class:`~thaw.data.splits.Splits` of a regression.
        seed: seed of the halves; groups stay together.

    Returns:
        ``(splits, held_out, notes)``: the splits with the other half as validation, and a :class:`thaw.Dataset`;
        ``None`` where there are too few validation examples.
    """
    import numpy as np

    n = len(splits.validation)
    groups = np.arange(n) if splits.validation.groups is None else splits.validation.groups
    numbers = np.unique(groups, return_inverse=True)[1]
    order = np.random.default_rng(seed).permutation(numbers.max() + 1)
    is_held_out = (order < len(order) // 2)[numbers]
    count = int(is_held_out.sum())
    if min(count, n - count) < MIN_HELD_OUT:
        return splits, None, [f"There are {n} validation examples, too few to hold half of them out for an interval."]
    chosen, held_out = (splits.validation.take(np.flatnonzero(rows)) for rows in (~is_held_out, is_held_out))
    files = splits.files
    if files is not None:
        kept = tuple(file for file, out in zip(files["validation"], is_held_out, strict=True) if not out)
        files = files | {"validation": kept}
    note = f"{count} of {n} validation examples choose nothing: the interval of a prediction is measured on them."
    return dataclasses.replace(splits, validation=chosen, files=files), held_out, [note]


def decide_by_held_out(model, task, splits, held_out, *, batch_size):
    """Choose the thresholds of labels on the validation images, or measure the spread of numbers on those held out.

    Args:
        model: trained ``keras.Model``; unchanged.
        task: :class:`thaw.targets.MultiLabel` or :class:`thaw.targets.Regression`.
        splits: :class:`~thaw.data.splits.Splits`. Without a test the validation examples are reported, and decide
            nothing.
        held_out: :class:`thaw.Dataset` of :func:`hold_out`, or ``None``.
        batch_size: examples in a batch.

    Returns:
        ``(task, spread, notes)``.
    """
    from thaw.features.predictions import predict_targets
    from thaw.metrics import best_thresholds, residual_spread
    from thaw.targets import Regression

    options = {"task": task, "batch_size": batch_size, "runtime": "tensorflow"}
    if isinstance(task, Regression):
        return task, None if held_out is None else residual_spread(*predict_targets(model, held_out, **options)), []
    if splits.test is None:
        return task, None, ["There is no test split: the validation examples are reported, and every threshold is 0.5."]
    thresholds = best_thresholds(*predict_targets(model, splits.validation, **options))
    return dataclasses.replace(task, thresholds=thresholds), None, []
