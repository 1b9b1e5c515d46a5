"""Train a backbone on images that have been read, and write the run folder."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tomllib
from pathlib import Path

from thaw._files import lock_run, to_json, write_all, write_atomically, write_text
from thaw._keras import compile_settings
from thaw.plan import Plan, is_plan_file
from thaw.runs.config import FILE_OPTIONS, PATH_OPTIONS, config_text
from thaw.runs.folder import CONFIG, UNFINISHED, refuse_finished, write_run
from thaw.runs.resolved_plan import PLAN, RECORD, resolve_plan, scaled_plan

HEAD_CHOICE = "head.json"
OPTIMIZERS = ("adamw", "adam", "nadam", "adamax", "adafactor", "adagrad", "adadelta", "rmsprop", "sgd", "lion")


def check_optimizer(name, clip_norm):
    """Refuse an optimizer that is not known, and an invalid norm, before Keras is imported.

    Args:
        name: name of an optimizer.
        clip_norm: largest global norm of the gradients; 0 for no clipping.

    Raises:
        ValueError: another name, or a number below 0.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer={name!r}; expected one of {', '.join(OPTIMIZERS)}.")
    if not isinstance(clip_norm, (int, float)) or isinstance(clip_norm, bool) or not 0 <= clip_norm < float("inf"):
        raise ValueError(f"clip_norm={clip_norm!r}; expected a number from 0.")


def _build_optimizer(name, clip_norm):
    import keras

    own = {"adamw": {"weight_decay": 1e-4}, "sgd": {"momentum": 0.9}}.get(name, {})
    return keras.optimizers.get({"class_name": name, "config": own | {"global_clipnorm": clip_norm or None}})


def tune_images(
    splits,
    folder,
    *,
    backbone,
    plan="auto",
    features="auto",
    advice=None,
    batch_size=32,
    seed=0,
    optimizer=("adamw", 1.0),
    patience=None,
    monitor=None,
    mode=None,
    callbacks=(),
    options=None,
):
    """Fine-tune an open backbone on images that have been read, and write the run folder: the core of ``tune``.

    Args:
        splits: :class:`~thaw.data.splits.Splits`.
        folder: as for :func:`thaw.tune`.
        backbone: ``keras.Model``, or a :class:`~thaw.retention.source_tasks.SourceTask`.
        plan: a :class:`thaw.Plan`, or ``"auto"``.
        features: as for :func:`thaw.tune`.
        advice: dict of keyword arguments of :func:`thaw.advise`. Defaults to none.
        batch_size: as for :func:`thaw.tune`.
        seed: as for :func:`thaw.tune`.
        optimizer: pair of ``optimizer`` and ``clip_norm``, as for :func:`thaw.tune`.
        patience: as for :func:`thaw.tune`.
        monitor: as for :func:`thaw.tune`.
        mode: as for :func:`thaw.tune`.
        callbacks: as for :func:`thaw.tune`.
        options: dict of the arguments of :func:`thaw.tune`, for ``config.toml``. Defaults to none.

    Returns:
        ``(model, metrics, history)``: the ``keras.Model``, not compiled; the dict of ``metrics.json``; and the
        ``keras.callbacks.History``. ``metrics["weight_change"]`` is the relative distance of each stage from its
        initial weights, ``metrics["weight_change_by_phase"]`` that of each phase. ``metrics["retention"]``, where it
        can be measured, has the score on the source task ``before`` and ``after`` and the fraction ``forgotten``, and
        with a budget whether the run is ``inside`` it.

    Raises:
        ValueError: as for :func:`thaw.tune`.
        FloatingPointError: as for :func:`thaw.tune`.
    """
    import keras

    from thaw.advice.trials import randomize_weights
    from thaw.features.predictions import evaluate
    from thaw.finetune import fine_tune
    from thaw.models.backbone import input_size
    from thaw.models.heads import attach_head
    from thaw.models.loading import unsaveable_reason
    from thaw.models.stages import stages_of
    from thaw.retention.monitor import ForgettingMonitor
    from thaw.retention.source_tasks import SourceTask
    from thaw.tasks import monitor_of
    from thaw.training.freezing import snapshot_weights, weight_change
    from thaw.training.optimizers import lr_scale

    if splits.validation is None:
        raise ValueError("There are no validation images, by which the best epoch is chosen; hold some out.")
    folder, source, task = Path(folder), SourceTask.of(backbone), splits.task
    train = splits.train.weighted(splits.class_weight)
    input_size(source.backbone)
    if reason := unsaveable_reason(source.backbone):
        raise ValueError(" ".join(reason))  # now, not when the trained model is written
    refuse_finished(folder)
    with lock_run(folder):
        refuse_finished(folder)
        config = _write_config(folder, options or {}, plan)
        work = folder / UNFINISHED
        sizes = {"batch_size": batch_size, "seed": seed}
        choice = _choose_features(features, plan, source.backbone, splits, work, callbacks, **sizes)
        model = attach_head(source.backbone, task, features=choice.features, seed=seed)
        model.compile(**compile_settings(model) | {"optimizer": _build_optimizer(*optimizer)})
        is_measured = source.examples is not None or source.max_forgetting is not None
        _check_monitor(model, monitor, mode, ["retention"] if is_measured else [], callbacks)
        decides = monitor_of(model, monitor, mode)
        forgetting = ForgettingMonitor(source, model, splits, work, monitor=decides[0], mode=decides[1], **sizes)
        settings = advice_settings(advice or {}, source.max_forgetting, **sizes)
        resolved = resolve_plan(plan, model, train, splits.validation, work, settings=settings, callbacks=callbacks)
        plan = resolved.plan
        predefined = options and isinstance(options["plan"], str) and options["plan"] != "auto"
        if predefined and not is_plan_file(options["plan"]):
            plan = scaled_plan(plan, lr_scale(model.optimizer), options["learning_rate"])
        if patience is not None:
            plan = plan.with_patience(patience)
        stages = stages_of(model)
        initial = snapshot_weights(stages)
        if resolved.scratch:  # after the source task was measured
            randomize_weights(model, train, seed)
        board = keras.callbacks.TensorBoard(folder / "tensorboard", write_graph=False)
        try:
            history = fine_tune(
                model,
                plan,
                train,
                validation_data=splits.validation,
                batch_size=batch_size,
                seed=seed,
                monitor=monitor,
                mode=mode,
                callbacks=[*forgetting.callbacks, *callbacks, board],
                backup_dir=work,
                verbose=0,
            )
        except FloatingPointError as error:
            model.compiled = False
            saved = write_atomically(folder / "last-good.keras", model.save)
            raise FloatingPointError(f"{error} The last good weights are in {saved}.") from error
        retention = forgetting.settle()
        split = "validation" if splits.test is None else "test"
        measured = getattr(splits, split)
        metrics = {"split": split} | evaluate(model, measured, labels=task.labels, batch_size=batch_size, seed=seed)
        metrics["weight_change"] = [dataclasses.asdict(stage) for stage in weight_change(stages, initial)]
        metrics["weight_change_by_phase"] = history.weight_change
        if retention is not None:
            metrics["retention"] = retention
        metrics["majority"] = task.baseline(measured.y)
        low = metrics["accuracy"]["low"]
        if low is None or low <= metrics["majority"]:  # a single test image allows no interval
            metrics["notes"].append(
                f"The accuracy is not distinguishable from {metrics['majority']:.3f}, that of always predicting the "
                "most frequent class."
            )
        metrics["notes"] = [
            *splits.notes,
            *choice.notes,
            *resolved.notes,
            *history.notes,
            *forgetting.notes,
            *metrics["notes"],
        ]
        if resolved.advice is not None:
            write_atomically(folder / RECORD, write_text(to_json(resolved.advice)))
        model.compiled = False  # a new optimizer in the file would make Keras warn when it is opened
        write_run(
            folder,
            model,
            task.labels,
            plan=plan.to_toml(),
            tables={
                "history": {"epoch": [epoch + 1 for epoch in history.epoch], **history.history},
                "quarantine": {
                    "path": [bad.path for bad in splits.rejected],
                    "reason": [bad.reason for bad in splits.rejected],
                },
            },
            metrics=metrics,
            about={"seed": seed, "data_sha256": splits.digest},
            config=config,
        )
        shutil.rmtree(work, ignore_errors=True)
    return model, metrics, history


def _choose_features(features, plan, backbone, splits, work, callbacks, *, batch_size, seed):
    """Return the features that the head reads: those asked for, or the best where the plan solves for the head alone.

    Where later phases train the backbone, which brings out of the last layer what earlier ones hold, it is the last. A
    choice is recorded, so that a run resumes with it.
    """
    import functools

    from thaw.training.callbacks import notify
    from thaw.transfer.head_choice import HeadChoice, choose_head

    if features != "auto":
        return HeadChoice(features)
    solves = isinstance(plan, Plan) and len(plan) == 1 and plan[0].solver != "gradient"
    if not solves:
        return HeadChoice("last")
    record, asked = work / HEAD_CHOICE, {"data": splits.digest, "plan": plan.to_toml(), "seed": seed}
    if record.exists():
        saved = json.loads(record.read_text(encoding="utf-8"))
        if saved["asked"] == asked:
            return HeadChoice(saved["features"], notes=tuple(saved["notes"]))
    progress = functools.partial(notify, callbacks, "on_precompute")
    solver, views = plan[0].solver, plan[0].versions or None
    train = splits.train.weighted(splits.class_weight)
    train = train if views else train.replace(augment=None)
    options = {"views": views, "batch_size": batch_size, "seed": seed, "progress": progress}
    choice = choose_head(backbone, splits.task, train, solver=solver, **options)
    work.mkdir(parents=True, exist_ok=True)
    text = to_json({"asked": asked, "features": choice.features, "notes": choice.notes})
    write_atomically(record, write_text(text))
    return choice


def advice_settings(given, max_forgetting, *, batch_size, seed):
    """Complete the keyword arguments of :func:`thaw.advise` for a run.

    Args:
        given: dict of keyword arguments that were asked for; those that are ``None`` are left out.
        max_forgetting: the forgetting budget of the run, or ``None``. With one, random weights are not tried, because
            everything would be forgotten.
        batch_size: examples in a batch.
        seed: seed of the run.

    Returns:
        A dict.

    Example:
        >>> from thaw.runs.train_images import advice_settings
        >>> advice_settings({"minutes": 3}, 0.02, batch_size=32, seed=0)
        {'minutes': 3, 'batch_size': 32, 'seed': 0, 'scratch': False}
    """
    asked = {name: value for name, value in given.items() if value is not None}
    defaults = {"minutes": None, "batch_size": batch_size, "seed": seed}
    return defaults | asked | {"scratch": max_forgetting is None}


def _check_monitor(model, monitor, mode, more, callbacks):
    """Refuse a metric that does not exist, or has no direction, before the search for a plan."""
    from thaw.tasks import compiled_metrics, metric_name, monitor_of
    from thaw.training.progress import ProgressBar

    known = ["loss", *map(metric_name, compiled_metrics(model)), *more]
    own = any(not isinstance(callback, ProgressBar) for callback in callbacks)  # which may write others to the logs
    if monitor is not None and monitor.removeprefix("val_") not in known and not own:
        raise ValueError(f"There is no metric {monitor!r}; expected one of {', '.join(known)}.")
    monitor_of(model, monitor, mode)


def _write_config(folder, options, plan):
    """Write ``config.toml`` when a run begins; compare it when the run is resumed."""
    from thaw.training.checkpoint import CHECKPOINT, unfinished_run_error

    options = dict(options)
    asked, writers = options.get("plan", plan), {}
    if isinstance(plan, Plan) and (isinstance(asked, Plan) or is_plan_file(asked)):
        options["plan"] = str(folder / PLAN)
        writers = {folder / PLAN: write_text(plan.to_toml())}
    text = config_text(options, folder)
    path, work = folder / CONFIG, folder / UNFINISHED
    begun = (work / CHECKPOINT).exists() or (work / RECORD).exists()
    if not begun or not path.exists():
        write_all(writers | {path: write_text(text)})
        return text
    before, now = (_comparable(tomllib.loads(part)) for part in (path.read_text(encoding="utf-8"), text))
    for name in {**before, **now}:
        if before.get(name) != now.get(name):
            difference = f"with {name} = {before.get(name)!r}, and now it is {now.get(name)!r}"
            raise unfinished_run_error(folder, difference)
    return text


def _comparable(options):
    """Models, data and plans are compared by their content when the checkpoint is read."""
    return {name: value for name, value in options.items() if name not in (*PATH_OPTIONS, *FILE_OPTIONS)}
