"""Train a backbone on data that have been read, and write the run folder."""

from __future__ import annotations

import dataclasses
import shutil
import time
from pathlib import Path

from thaw._files import lock_run, to_json, write_atomically, write_text
from thaw._keras import compile_settings
from thaw.plan import Plan, is_plan_file
from thaw.runs.config import write_config
from thaw.runs.folder import UNFINISHED, refuse_finished, write_run
from thaw.runs.frozen_model import adjust_for_classes, choose_features, solve_frozen
from thaw.runs.plans import continued_plan, is_solved_alone, may_blend, plan_for_numbers
from thaw.runs.resolved_plan import RECORD, default_plan, resolve_plan, scaled_plan
from thaw.runs.results import compared_with_trees, measure, measure_targets, quarantine
from thaw.runs.row_inputs import input_files, kind_of_splits
from thaw.runs.task_file import decide_by_held_out, hold_out
from thaw.runs.time_limit import advice_minutes, plan_in_time

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


def check_task(task, options):
    """Refuse options that are for classes, where labels or numbers are predicted.

    Args:
        task: ``"multilabel"``, ``"regression"``, or ``"classification"`` or ``None`` for classes.
        options: dict of the arguments of :func:`thaw.tune`.

    Raises:
        ValueError: another task, or an option that does not suit it.

    Example:
        >>> from thaw.runs.tuning import check_task
        >>> check_task("regression", {"folds": 5})
        Traceback (most recent call last):
        ValueError: folds is for classes, and the task is regression; leave it out.
    """
    from thaw.data.images import TASKS

    if task not in (None, *TASKS):
        raise ValueError(f"task={task!r}; expected one of {', '.join(TASKS)}.")
    if task in (None, "classification"):
        return
    given = [name for name in ("folds", "max_forgetting", "label_smoothing") if options.get(name)]
    given += ["max_forgetting"] * (getattr(options.get("model"), "max_forgetting", None) is not None)
    given += ["balance"] * (options.get("balance", "auto") not in ("auto", "none"))
    if given:
        raise ValueError(f"{given[0]} is for classes, and the task is {task}; leave it out.")


def _build_optimizer(name, clip_norm):
    import keras

    own = {"adamw": {"weight_decay": 1e-4}, "sgd": {"momentum": 0.9}}.get(name, {})
    return keras.optimizers.get({"class_name": name, "config": own | {"global_clipnorm": clip_norm or None}})


def tune_splits(
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
    soup=None,
    monitor=None,
    mode=None,
    minutes=None,
    began=None,
    callbacks=(),
    options=None,
    write_options=True,
    resolved=None,
    model=None,
):
    """Fine-tune an open backbone on data that have been read, and write the run folder: the core of ``tune``.

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
        soup: as for :func:`thaw.tune`.
        monitor: as for :func:`thaw.tune`.
        mode: as for :func:`thaw.tune`.
        minutes: as for :func:`thaw.tune`.
        began: time on the monotonic clock at which the run began, in seconds; ``None`` for now.
        callbacks: as for :func:`thaw.tune`.
        options: dict of the arguments of :func:`thaw.tune`. Defaults to none.
        write_options: whether they are written to ``config.toml``. Defaults to ``True``.
        resolved: :class:`thaw.runs.resolved_plan.ResolvedPlan` of another run, which is followed as it is. Defaults to
            ``None``.
        model: ``keras.Model`` with a head that goes on, by a plan without solvers. Defaults to ``None``: a new head is
            put on the backbone.

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
    from thaw.finetune import fine_tune
    from thaw.models.backbone import input_size
    from thaw.models.loading import unsaveable_reason
    from thaw.models.stages import HEAD, stages_of
    from thaw.retention.monitor import ForgettingMonitor
    from thaw.retention.source_tasks import SourceTask
    from thaw.tasks import monitor_of
    from thaw.training.freezing import snapshot_weights, trainable_stages, weight_change

    if splits.validation is None:
        raise ValueError("There are no validation examples, by which the best epoch is chosen; hold some out.")
    folder, source, task = Path(folder), SourceTask.of(backbone), splits.task
    kind = kind_of_splits(splits)
    is_classes, is_table, held_out, told = task.activation == "softmax", kind == "table", None, []
    if kind == "image":
        input_size(source.backbone)  # raises for a backbone that takes no images
    if is_table and is_classes and monitor is None:
        monitor = "loss"  # whose best epoch is the better one where a net is trained from random weights
    continues = model is not None
    if continues:
        features = "last"
    if task.activation == "linear":
        plan = plan_for_numbers(plan)
        splits, held_out, told = hold_out(splits, seed)
    if features == "auto" and not is_classes and not is_solved_alone(plan):
        features = "last"  # no solved head stays beside a tuned model of labels or of numbers
    began = time.monotonic() if began is None else began
    train = splits.train.weighted(splits.class_weight)
    if reason := unsaveable_reason(source.backbone):
        raise ValueError(" ".join(reason))  # now, not when the trained model is written
    refuse_finished(folder)
    with lock_run(folder):
        refuse_finished(folder)
        config = write_config(folder, options or {}, plan) if write_options else None
        work = folder / UNFINISHED
        sizes = {"batch_size": batch_size, "seed": seed}
        read = "last" if features == "auto" else features
        built = {"seed": seed, "is_ensemble": is_table}
        if continues:
            own = {} if is_table else {"loss": task.loss}  # with its label smoothing
            model.compile(**compile_settings(model) | own | {"optimizer": _build_optimizer(*optimizer)})
        else:
            model = build_model(source.backbone, task, optimizer, features=read, **built)
        is_measured = source.examples is not None or source.max_forgetting is not None
        _check_monitor(model, monitor, mode, ["retention"] if is_measured else [], callbacks)
        decides = monitor_of(model, monitor, mode)
        for phase in plan if isinstance(plan, Plan) else ():
            trainable_stages(stages_of(model), phase.train)  # raises for a stage that does not exist
        asked = asked_of(model, plan, splits, **sizes)
        choice = choose_features(features, plan, source.backbone, splits, work, callbacks, asked=asked, **sizes)
        frozen = None
        if choice.features != read and is_solved_alone(plan):
            read = choice.features
            model = build_model(source.backbone, task, optimizer, features=read, **built)
        elif features == "auto" and may_blend(plan) and not is_measured and decides[0] in ("accuracy", "val_accuracy"):
            # Later phases bring out of the last layer what earlier ones hold: a wide head stays on frozen features.
            frozen = solve_frozen(source.backbone, splits, choice.features, work, callbacks, asked=asked, **sizes)
        forgetting = ForgettingMonitor(source, model, splits, work, monitor=decides[0], mode=decides[1], **sizes)
        if resolved is None:
            settings = {"advice": advice, "minutes": minutes, "began": began, "patience": patience, "soup": soup}
            settings |= {"task": task, "continues": continues}
            data = train, splits.validation
            resolved = _resolve(plan, model, data, source, work, callbacks, options, asked=asked, **settings, **sizes)
        plan = resolved.plan
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
        changes = weight_change(stages, initial)
        is_calibrated = is_classes and not is_table and not is_solved_alone(plan)
        notes = calibrated(model, splits.validation, **sizes) if is_calibrated else []
        if frozen is None:
            adjust_for_classes(model, splits)
        else:
            tuned = model
            model, more = frozen.blend_with(tuned, splits, batch_size=batch_size, is_tuned=not is_solved_alone(plan))
            notes += more
            if model is frozen.model:
                none = {"weights": 0.0, "statistics": 0.0}  # its backbone is the one from before the training
                changes = [c if c.stage == HEAD else dataclasses.replace(c, **none) for c in changes]
                retention = None
            elif model is not tuned:
                notes.append("The changes of the weights, and what is forgotten, are those of the tuned model in it.")
        spread, tables = None, {}
        if not is_classes:
            task, spread, more = decide_by_held_out(model, task, splits, held_out, batch_size=batch_size)
            splits = dataclasses.replace(splits, task=task)
            notes += more
            metrics, tables["predictions"] = measure_targets(model, splits, **sizes, spread=spread)
        else:
            metrics = measure(model, splits, **sizes)
        if is_table:
            metrics["gradient_boosting"], more = compared_with_trees(model, splits, seed)
            notes += more
        metrics["weight_change"] = [dataclasses.asdict(stage) for stage in changes]
        metrics["weight_change_by_phase"] = history.weight_change
        if retention is not None:
            metrics["retention"] = retention
        metrics["notes"] = [
            *splits.notes,
            *told,
            *choice.notes,
            *resolved.notes,
            *history.notes,
            *notes,
            *(() if is_table else forgetting.notes),  # what starts from random weights has nothing to forget
            *metrics["notes"],
        ]
        if resolved.advice is not None:
            write_atomically(folder / RECORD, write_text(to_json(resolved.advice)))
        model.compiled = False  # a new optimizer in the file would make Keras warn when it is opened
        write_run(
            folder,
            model,
            splits.labels,
            task=None if is_classes else task,
            spread=spread,
            plan=plan.to_toml(),
            tables={
                "history": {"epoch": [epoch + 1 for epoch in history.epoch], **history.history},
                "quarantine": quarantine(splits),
                **tables,
            },
            metrics=metrics,
            about={"seed": seed, "data_sha256": splits.digest},
            config=config,
            files=input_files(splits),
        )
        shutil.rmtree(work, ignore_errors=True)
    return model, metrics, history


def build_model(backbone, task, optimizer, *, features="last", seed=0, is_ensemble=False):
    """Put a head on a backbone and compile the model as ``tune`` trains it.

    Args:
        backbone: ``keras.Model`` without a head.
        task: a task such as :class:`thaw.Classification`.
        optimizer: pair of ``optimizer`` and ``clip_norm``, as for :func:`thaw.tune`.
        features: as for :func:`thaw.attach_head`.
        seed: as for :func:`thaw.attach_head`.
        is_ensemble: whether the backbone is that of a table, whose members have a head each. Default ``False``.

    Returns:
        A compiled ``keras.Model``.
    """
    from thaw.models.ensemble_heads import attach_ensemble_heads
    from thaw.models.heads import attach_head

    if is_ensemble:
        model = attach_ensemble_heads(backbone, task, seed=seed)
    else:
        model = attach_head(backbone, task, features=features, seed=seed)
    model.compile(**compile_settings(model) | {"optimizer": _build_optimizer(*optimizer)})
    return model


def asked_of(model, plan, splits, *, batch_size, seed):
    """Return what the records of an unfinished run belong to: plan, model, data, batch size and seed.

    Args:
        model: compiled ``keras.Model`` before its first step.
        plan: a :class:`thaw.Plan`, or ``"auto"``.
        splits: :class:`~thaw.data.splits.Splits`.
        batch_size: examples in a batch.
        seed: seed of the run.

    Returns:
        A dict for JSON.
    """
    from thaw.training.checkpoint import fingerprint_run

    data = splits.train.weighted(splits.class_weight), splits.validation
    steps = plan if isinstance(plan, Plan) else Plan.named("probe")
    counts = None if splits.class_counts is None else list(splits.class_counts)
    return {
        "plan": plan.to_toml() if isinstance(plan, Plan) else plan,
        "fingerprint": fingerprint_run(model, steps, data, batch_size, seed),
        "class_counts": counts,
    }


def _resolve(
    plan,
    model,
    data,
    source,
    work,
    callbacks,
    options,
    *,
    asked,
    task,
    continues,
    advice,
    minutes,
    began,
    patience,
    soup,
    **sizes,
):
    """Return the plan that is trained: advised, scaled for the optimizer, and shortened to end in time."""
    from thaw.training.callbacks import notify
    from thaw.training.optimizers import lr_scale

    advice, notes = dict(advice or {}), []
    if minutes is not None:
        advice["minutes"] = advice_minutes(minutes)
    settings = advice_settings(advice, source.max_forgetting, **sizes)
    if plan == "auto" and continues:
        plan = continued_plan(default_plan(model, settings), "image")
    elif plan == "auto" and task.activation != "softmax":
        plan = default_plan(model, settings)
        plan = plan_for_numbers(plan) if task.activation == "linear" else plan
        notes.append("Advice compares plans for classes only: the plan is probe_then_tune.")
        notify(callbacks, "on_no_advice", notes[0])
    elif plan == "auto" and minutes is not None and advice["minutes"] is None:
        plan = default_plan(model, settings)
        notes.append(f"There is no time for advice in {minutes:g} minutes: the plan is probe_then_tune.")
        notify(callbacks, "on_no_advice", notes[0])
    resolved = resolve_plan(plan, model, *data, work, settings=settings, callbacks=callbacks)
    plan = resolved.plan
    is_name = options and isinstance(options["plan"], str) and options["plan"] != "auto"
    if is_name and not is_plan_file(options["plan"]):
        plan = scaled_plan(plan, lr_scale(model.optimizer), options["learning_rate"])
    if patience is not None:
        plan = plan.with_patience(patience)
    if soup is not None:
        plan = plan.with_soup(soup)
        if soup > 1 and not any(phase.soup and not phase.solves for phase in plan):
            notes.append("No epochs are averaged: no phase trains by gradients with frozen BatchNorm statistics.")
    if minutes is not None:
        seconds = 60 * minutes - (time.monotonic() - began)
        record = {"work": work, "asked": asked | {"minutes": minutes}}
        plan, in_time = plan_in_time(plan, model, data, seconds, batch_size=sizes["batch_size"], **record)
        notes += in_time
    return dataclasses.replace(resolved, plan=plan, notes=(*resolved.notes, *notes))


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
        >>> from thaw.runs.tuning import advice_settings
        >>> advice_settings({"minutes": 3}, 0.02, batch_size=32, seed=0)
        {'minutes': 3, 'batch_size': 32, 'seed': 0, 'scratch': False}
    """
    asked = {name: value for name, value in given.items() if value is not None}
    defaults = {"minutes": None, "batch_size": batch_size, "seed": seed}
    return defaults | asked | {"scratch": max_forgetting is None}


def calibrated(model, validation, *, batch_size, seed):
    """Calibrate a tuned model by the validation images; return sentences."""
    from thaw.transfer.calibration import CannotCalibrate, calibrate

    try:
        calibration = calibrate(model, validation, batch_size=batch_size, seed=seed)
    except CannotCalibrate as reason:
        return [f"The probabilities are not calibrated: {reason}"]
    return [str(calibration)] if calibration.temperature != 1 else []


def _check_monitor(model, monitor, mode, more, callbacks):
    """Refuse a metric that does not exist, or has no direction, before the search for a plan."""
    from thaw.tasks import compiled_metrics, metric_name, monitor_of
    from thaw.training.progress import ProgressBar

    known = ["loss", *map(metric_name, compiled_metrics(model)), *more]
    own = any(not isinstance(callback, ProgressBar) for callback in callbacks)  # which may write others to the logs
    if monitor is not None and monitor.removeprefix("val_") not in known and not own:
        raise ValueError(f"There is no metric {monitor!r}; expected one of {', '.join(known)}.")
    monitor_of(model, monitor, mode)
