"""Fine-tune in folds: each labelled image is predicted by a model that has not seen it, and the models become one."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from pathlib import Path

import numpy as np

from thaw._files import lock_run, to_json, write_atomically, write_text
from thaw._validation import as_int
from thaw.data.dataset import Dataset, leaves
from thaw.metrics.classification import classification_metrics
from thaw.runs.config import write_config
from thaw.runs.folder import FOLDS, MANIFEST, UNFINISHED, open_run, refuse_finished, write_run
from thaw.runs.resolved_plan import RECORD as ADVICE
from thaw.runs.resolved_plan import ResolvedPlan
from thaw.runs.results import compared_with_majority, measure, quarantine
from thaw.runs.row_inputs import input_files
from thaw.runs.tuning import asked_of, build_model, tune_splits
from thaw.training.checkpoint import unfinished_run_error

RECORD, TABLE = "asked.json", "out_of_fold"


def tune_folds(
    splits,
    folder,
    *,
    folds,
    backbone,
    plan,
    optimizer,
    seed,
    batch_size,
    minutes=None,
    began=None,
    callbacks=(),
    options=None,
    **settings,
):
    """Fine-tune a model for each fold, on the others, and blend the models with equal shares.

    The predictions out of fold are written to ``out_of_fold.csv``. What is measured on the test images is the blend;
    where there are none, the predictions out of fold are measured, those of single models.

    Args:
        splits: :class:`~thaw.data.splits.Splits`; training and validation examples are divided again.
        folder: path of the run folder. The runs of the folds are in its folder ``folds``.
        folds: number of folds, at least 2.
        backbone: ``keras.Model`` without a head; unchanged.
        plan: as for :func:`thaw.runs.tuning.tune_splits`. The plan that the first fold resolves is that of all.
        optimizer: as for :func:`thaw.runs.tuning.tune_splits`.
        seed: seed of the folds and of the runs.
        batch_size: examples in a batch.
        minutes: minutes in which all folds are to end; ``None`` for no limit.
        began: time on the monotonic clock at which they began, in seconds; ``None`` for now.
        callbacks: as for :func:`thaw.tune`.
        options: dict of the arguments of :func:`thaw.tune`, for ``config.toml``. Default: none.
        settings: further arguments of :func:`thaw.runs.tuning.tune_splits`.

    Returns:
        ``(model, metrics, history)``, as :func:`thaw.runs.tuning.tune_splits`; the history is a dict of columns
        over all folds.
    """
    from thaw.features.predictions import predict_proba
    from thaw.models.blends import blend_models, copy_model
    from thaw.retention.source_tasks import SourceTask
    from thaw.training.callbacks import notify

    folder, labels = Path(folder), splits.labels
    parts, fold = fold_splits(splits, folds, seed)
    sizes = {"batch_size": batch_size, "seed": seed}
    refuse_finished(folder)
    with lock_run(folder):
        refuse_finished(folder)
        config = write_config(folder, options or {}, plan)
        _check_record(folder, asked_of(build_model(backbone, splits.task, optimizer), plan, splits, **sizes))
        if minutes is not None:  # the plan of the first fold is that of all
            now = time.monotonic()
            spent = 0.0 if began is None else now - began
            settings |= {"minutes": minutes / folds, "began": now - spent / folds}
        runs, p, resolved = [], np.empty((len(fold), len(labels))), None
        for number, part in enumerate(parts):
            notify(callbacks, "on_fold_begin", number + 1, folds)
            place = folder / FOLDS / str(number + 1)
            if not (place / MANIFEST).exists():
                source = SourceTask(backbone=copy_model(backbone))
                own = {
                    "backbone": source,
                    "optimizer": optimizer,
                    "callbacks": callbacks,
                    "resolved": resolved,
                    **sizes,
                }
                asked = {"options": None} if options is None else {"options": options, "write_options": False}
                tune_splits(part, place, plan=plan, **own, **asked, **settings)
            shutil.rmtree(place / UNFINISHED, ignore_errors=True)  # of a run that was killed at its very end
            runs.append(open_run(place))
            p[fold == number] = predict_proba(runs[-1].model, part.validation, batch_size=batch_size)
            resolved = _resolved(runs[0])
        model = blend_models([run.model for run in runs], name=runs[0].model.name)
        y = _joined(splits.train, splits.validation).y
        out_of_fold = classification_metrics(y, p, labels=labels, seed=seed)
        if splits.test is None:
            metrics = compared_with_majority({"split": "out of fold"} | out_of_fold, splits.task, y)
        else:
            metrics = measure(model, splits, **sizes)
        metrics["out_of_fold"] = {name: out_of_fold[name] for name in ("accuracy", "log_loss")}
        mean = f"The model is the mean of {folds}, one for each fold."
        metrics["notes"] = [*splits.notes, mean, *_notes(runs), *metrics["notes"]]
        history = _history(runs)
        write_run(
            folder,
            model,
            labels,
            plan=resolved.plan.to_toml(),
            tables={"history": history, TABLE: _table(splits, fold, y, p), "quarantine": quarantine(splits)},
            metrics=metrics,
            about={"seed": seed, "data_sha256": splits.digest, "folds": folds},
            config=config,
            files=input_files(splits),
        )
    return model, metrics, history


def _check_record(folder, asked):
    """Record what is asked for; refuse folds that were begun with other data, another model or another plan."""
    record = folder / FOLDS / RECORD
    if record.exists():
        if json.loads(record.read_text(encoding="utf-8")) != asked:
            raise unfinished_run_error(folder, "of another plan, model, data or seed")
        return
    write_atomically(record, write_text(to_json(asked)))


def _resolved(run):
    """Return the plan of a finished fold, as others follow it."""
    advice = run.folder / ADVICE
    scratch = advice.exists() and json.loads(advice.read_text(encoding="utf-8"))["scratch"]
    return ResolvedPlan(run.plan, scratch)


def _notes(runs):
    """Return the notes of all folds; what all of them say is said once."""
    notes = [list(run.notes) for run in runs]
    common = [note for note in notes[0] if all(note in others for others in notes)]
    own = [f"Fold {i + 1}: {note}" for i, of_run in enumerate(notes) for note in of_run if note not in common]
    return [*common, *own]


def _history(runs):
    """Put the histories of the folds one below the other."""
    columns = dict.fromkeys(name for run in runs for name in run.history)
    rows = [len(run.history["epoch"]) for run in runs]
    table = {"fold": [i + 1 for i, n in enumerate(rows) for _ in range(n)]}
    return table | {
        name: [value for run, n in zip(runs, rows) for value in run.history.get(name, [None] * n)] for name in columns
    }


def _table(splits, fold, y, p):
    """Return the predictions out of fold as columns."""
    names = _files(splits) or [str(i) for i in range(len(fold))]
    predicted = p.argmax(axis=1)
    columns = {
        "path": list(names),
        "fold": (fold + 1).tolist(),
        "label": [splits.labels[c] for c in y],
        "predicted": [splits.labels[c] for c in predicted],
    }
    return columns | {f"probability of {label}": p[:, c].tolist() for c, label in enumerate(splits.labels)}


def fold_splits(splits, folds, seed=0):
    """Divide the training and validation examples into folds, each of which is held out once.

    The folds are stratified by class, and examples of one group stay together.

    Args:
        splits: :class:`~thaw.data.splits.Splits`.
        folds: number of folds, at least 2.
        seed: seed of the shuffling. Default 0.

    Returns:
        ``(parts, fold)``: a list of :class:`~thaw.data.splits.Splits` without a test, whose validation examples are a
        fold; and ``(n,)`` the fold of each example, those of ``splits.train`` first.

    Raises:
        ValueError: fewer than 2 folds, or a class with fewer examples or groups than folds.

    Example:
        >>> import numpy as np
        >>> from thaw import Classification, Dataset
        >>> from thaw.data.splits import Splits
        >>> from thaw.runs.folds import fold_splits
        >>> part = Dataset(x=np.zeros((4, 1)), y=np.array([0, 0, 1, 1]))
        >>> splits = Splits(train=part, validation=part, test=None, task=Classification(["cat", "dog"]))
        >>> parts, fold = fold_splits(splits, 2)
        >>> [len(p.validation) for p in parts], np.bincount(fold).tolist()
        ([4, 4], [4, 4])
    """
    folds = as_int("folds", folds, 2)
    both = _joined(splits.train, splits.validation)
    fold = _fold_numbers(both, splits.labels, folds, seed)
    files = _files(splits)
    parts = []
    for number in range(folds):
        rows = {"train": np.flatnonzero(fold != number), "validation": np.flatnonzero(fold == number)}
        datasets = {name: both.take(indices) for name, indices in rows.items()}
        datasets["train"] = datasets["train"].replace(augment=splits.train.augment)
        names = None if files is None else {name: tuple(files[i] for i in indices) for name, indices in rows.items()}
        digest = f"{splits.digest} fold {number + 1} of {folds}"
        changes = {"files": names, "rejected": (), "notes": (), "digest": digest}
        parts.append(dataclasses.replace(splits, **datasets, test=None, **changes))
    return parts, fold


def _files(splits):
    """Return the files of the training and validation examples; ``None`` where they are not known."""
    return None if splits.files is None else (*splits.files["train"], *splits.files.get("validation", ()))


def _fold_numbers(dataset, labels, folds, seed):
    from thaw.transfer.readouts import stratified_folds

    y, groups = np.asarray(dataset.y), dataset.groups
    own = np.arange(len(y)) if groups is None else np.unique(groups, return_inverse=True)[1]
    counts = np.bincount(np.unique(np.stack([y, own]), axis=1)[0], minlength=len(labels))
    if counts.min() < folds:
        few = labels[int(counts.argmin())]
        of = "" if groups is None else " that are no near-duplicates and of different groups"
        raise ValueError(
            f"The class {few!r} has {counts.min()} examples{of} for {folds} folds; expected one for each fold at least."
        )
    return stratified_folds(y, folds, seed, None if groups is None else own)


def _joined(first, second):
    """Return the examples of two datasets in one, without augmentation; the second may be ``None``."""
    if second is None:
        return first.replace(augment=None)

    missing = {
        "sample_weight": lambda n, begin: np.ones(n, np.float32),
        "groups": lambda n, begin: np.array([f"example {begin + i}" for i in range(n)]),
    }

    def both(name):
        parts = [getattr(part, name) for part in (first, second)]
        if all(part is None for part in parts) or (name not in missing and any(part is None for part in parts)):
            return None
        sizes = (len(first), 0), (len(second), len(first))
        return np.concatenate([missing[name](*size) if part is None else part for part, size in zip(parts, sizes)])

    (x,), (more,) = leaves(first.x), leaves(second.x)
    fields = {name: both(name) for name in ("y", "sample_weight", "keys", "groups")}
    return Dataset(x=np.concatenate([x, more]), load=first.load, **fields)
