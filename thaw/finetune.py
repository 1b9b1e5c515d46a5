"""fine_tune: run a plan, phase by phase."""

import contextlib
import dataclasses
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import keras

from thaw._keras import build_training, compile_settings, inner_optimizer, is_patched
from thaw._validation import as_int, as_seed, check_model
from thaw.checks import preflight, raise_on_errors
from thaw.data.conversion import as_dataset, as_validation, with_known_length
from thaw.features.extraction import check_runtime
from thaw.features.precompute import precompute_phase
from thaw.features.split import CannotSplit
from thaw.models.stages import stages_of
from thaw.models.state import restore_after_error
from thaw.plan import as_plan
from thaw.retention.epoch_soup import average_best_epochs
from thaw.tasks import monitor_of
from thaw.training.callbacks import (
    BestWeights,
    StopWithModel,
    TerminateOnNonFinite,
    UserCallbacks,
    callback_list,
    check_callbacks,
    notify,
)
from thaw.training.checkpoint import (
    CHECKPOINT,
    Checkpoint,
    assign,
    fingerprint_run,
    read_checkpoint,
    unfinished_run_error,
    variables_of,
)
from thaw.training.cut_points import CutPoints, find_cut_points, refuse_updates
from thaw.training.depthwise import with_fast_depthwise
from thaw.training.freezing import freeze, unexpected_changes, weight_change
from thaw.training.history import RecordHistory, history_of
from thaw.training.optimizers import (
    clone_optimizer,
    l2_sp,
    layerwise_lr_decay,
    lr_schedule,
    scale_learning_rate,
    wide_head_factor,
)
from thaw.training.progress import ProgressBar
from thaw.transfer.solved_head import (
    WITHOUT_SMOOTHING,
    CannotSolve,
    solvable_head,
    solve_precomputed,
)

STREAM = (
    "The training data are a stream: they keep their own order, the frozen layers are computed in every epoch, and a "
    "resumed run starts the stream from its beginning."
)


def fine_tune(
    model,
    plan,
    x,
    y=None,
    *,
    sample_weight=None,
    class_weight=None,
    validation_data=None,
    batch_size=32,
    callbacks=(),
    monitor=None,
    mode=None,
    seed=0,
    backup_dir=None,
    cache_dir=None,
    runtime="auto",
    verbose="auto",
):
    """Fine-tune a compiled model, phase by phase.

    The model's own loss, metrics and optimizer are used; each phase sets its learning rate. One best epoch is kept over
    all phases, and its weights are restored at the end of each phase and of the run. What is frozen in a phase is
    computed once and cached, where the graph can be split (:func:`thaw.split_model`) and every epoch sees the same
    augmented examples (``Phase(views=...)``) or none are augmented. A phase with a ``solver`` fits the head in one
    epoch, from there. For the same bits from run to run, call :func:`thaw.seed_everything` before the model is built.

    Args:
        model: a built and compiled ``keras.Model``. It is changed in place, and compiled again at the end with a fresh
            copy of its own optimizer.
        plan: a :class:`thaw.Plan`; the name of one, such as ``"probe_then_tune"``, or the path of a ``.toml`` file; or
            a list of :class:`thaw.Phase`.
        x: inputs as ``fit`` takes them, or a :class:`thaw.Dataset`; see :func:`thaw.as_dataset`. A ``tf.data.Dataset``
            or ``PyDataset`` keeps its own order, its frozen part is computed in every epoch, and a resumed run starts
            it from its beginning; one that does not say how long it is is read once to count its batches. A generator,
            which can be read once, and data without an end are refused.
        y: targets, or the name of their column where ``x`` is a table; ``None`` (default) where ``x`` brings them.
        sample_weight: ``(n,)`` weights in the loss. Default ``None``.
        class_weight: dict from class number to weight in the loss. Default ``None``.
        validation_data: ``(x, y)``, ``(x, y, sample_weight)``, a :class:`thaw.Dataset` or a stream. Default ``None``.
        batch_size: int, examples in a batch. Default 32.
        callbacks: Keras callbacks; a :class:`thaw.TuneCallback` also gets the events of thaw. They see one training of
            the whole model, also while only its suffix is fitted; a callback that stops it ends the phase. One that
            sets the learning rate needs phases with ``schedule="constant"`` and ``warmup=0``. Default ``()``.
        monitor: name of the metric that decides which epoch is best; ``None`` for the first compiled metric, or the
            loss where there is no metric, no validation data or several outputs. Default ``None``.
        mode: ``"max"`` or ``"min"``; ``None`` for the direction that the metric declares. Default ``None``.
        seed: int, seeds the order of the examples and their augmentation. Default 0.
        backup_dir: folder in which the run is saved after each epoch, so that the same call resumes it,
            bit-identically, also after ``kill -9``. Default ``None``.
        cache_dir: folder in which the features of frozen layers are cached. Default: ``$THAW_CACHE``, else ``thaw`` in
            ``$XDG_CACHE_HOME`` or ``~/.cache``.
        runtime: what computes the frozen layers: ``"auto"`` (default), ``"tensorflow"``, ``"openvino"`` or ``"int8"``,
            as for :func:`thaw.precompute`; ``history.notes`` say how int8 was judged, or why it is not used.
        verbose: ``"auto"`` or 1 for a progress bar and a line for each epoch on stderr, 2 for the lines alone, 0 for
            silence. Default ``"auto"``.

    Returns:
        A ``keras.callbacks.History`` over all phases. Each epoch also has its ``phase``, ``learning_rate`` and
        ``seconds``. ``history.weight_change`` says how far every stage changed in each phase, ``history.notes`` holds
        sentences about the run.

    Raises:
        ValueError: a mistake that was found before the first step; data without an end; a callback that cannot work
            here (see :func:`thaw.training.callbacks.check_callbacks`); an optimizer that cannot be cloned, or was
            changed on the instance (by :func:`thaw.layerwise_lr_decay`, say); a metric without a direction; or a
            ``backup_dir`` with another run. The model's ``trainable`` flags and compilation are restored.
        FloatingPointError: the loss became NaN or infinite; the last good weights are restored.
        ImportError: a runtime that is not installed.

    Example:
        >>> import keras, numpy as np
        >>> from thaw import Phase, Plan, fine_tune
        >>> x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
        >>> y = (x[:, 0] > 0).astype("int32")
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"),
        ...                           keras.layers.Dense(2, "softmax")])
        >>> model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        >>> plan = Plan([Phase(name="all", epochs=2, learning_rate=1e-2)])
        >>> history = fine_tune(model, plan, x, y, validation_data=(x, y), verbose=0)
        >>> sorted(history.history)[:3]
        ['accuracy', 'learning_rate', 'loss']
    """
    check_model(model)
    plan = as_plan(plan)
    batch_size, seed = as_int("batch_size", batch_size, 1), as_seed(seed)
    check_runtime(runtime)
    if backup_dir is not None and Path(backup_dir).exists() and not Path(backup_dir).is_dir():
        raise ValueError(f"backup_dir={str(backup_dir)!r} is a file; expected a folder to save the run in.")
    if verbose not in ("auto", 0, 1, 2):
        raise ValueError(f'verbose={verbose!r}; expected "auto", 0, 1 or 2.')
    train = as_dataset(x, y, sample_weight, name="training data", labelled=_takes_labels(model), model=model).weighted(
        class_weight
    )
    validation = as_validation(validation_data, labelled=_takes_labels(model), model=model)
    for name, part in (("training", train), ("validation", validation)):
        if getattr(part, "read_once", False):
            raise ValueError(
                f"The {name} data are a generator, which can be read only once; expected arrays, a tf.data.Dataset or "
                "a keras.utils.PyDataset."
            )
    train, validation = with_known_length(train, "training"), with_known_length(validation, "validation")
    if train.random_access:
        batch_size = min(batch_size, len(train))
    findings = preflight(model, train, plan=plan, validation_data=validation, batch_size=batch_size)
    raise_on_errors(findings)
    settings = compile_settings(model)  # what the user gave to compile, as it was given
    _refuse_patched(settings["optimizer"])
    clone_optimizer(settings["optimizer"])  # one that cannot be cloned is refused now
    monitor, mode = monitor_of(model, monitor, mode, validation=validation is not None)
    callbacks = callback_list(callbacks)
    rates = {phase.name: _learning_rate(phase, train.steps(batch_size)) for phase in plan}
    check_callbacks(callbacks, model, rates, validation=validation is not None, monitor=monitor)
    stages = stages_of(model)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_strategy_scope(model))
        if verbose and not any(isinstance(callback, ProgressBar) for callback in callbacks):
            callbacks.append(stack.enter_context(ProgressBar(verbose=2 if verbose == 2 else 1)))
        stack.enter_context(restore_after_error(model))
        if backup_dir is None:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="thaw-")))
        else:
            work = Path(backup_dir)
            work.mkdir(parents=True, exist_ok=True)
        cuts = find_cut_points(model, stages, plan)
        refuse_updates(stages, plan, cuts, train)
        run = _Run(
            model=model,
            stages=stages,
            cuts=cuts,
            initial_weights=[w.numpy() for w in model.weights] if any(phase.l2_sp for phase in plan) else None,
            settings=settings,
            best=BestWeights(model, monitor, mode),
            callbacks=callbacks,
            user_callbacks=UserCallbacks(
                callbacks, model, (work / CHECKPOINT).exists(), 1 if verbose == "auto" else verbose
            ),
            batch_size=batch_size,
            seed=seed,
            work=work,
            resumable=backup_dir is not None,
            cache_dir=cache_dir,
            runtime=runtime,
            log={"phase": 0, "first": 0, "rows": [], "notes": [], "weight_change": {}, "runtime": {}, "solved": []},
        )
        data = train, validation
        decides = (monitor, mode) if runtime == "auto" else (monitor, mode, runtime)
        run.log["fingerprint"] = fingerprint_run(model, plan, data, batch_size, seed, decides)
        saved = _resume(run) if run.resumable else None
        if saved is None:
            run.log["notes"] += [str(finding) for finding in findings]
            if not train.random_access:
                run.log["notes"].append(STREAM)
        notify(callbacks, "on_preflight", findings)
        if saved is not None:
            notify(callbacks, "on_resume", plan[run.log["phase"]], saved[0]["epoch"])
        try:
            for index in range(run.log["phase"], len(plan)):
                run.log["phase"] = index
                _run_phase(run, plan, train, validation, saved)
                saved = None
            run.user_callbacks.finish()
        finally:
            # Nothing of ours stays in the model: a file saved from it names the user's optimizer and no other.
            freeze(model, plan[-1].train, plan[-1].batchnorm, stages)  # what its ``variables`` left out is free again
            fresh = clone_optimizer(settings["optimizer"])
            keras.Model.compile(model, **settings | {"optimizer": fresh})  # a class of the user's may have another
            # Keras warns when it opens a file whose optimizer was never built.
            model.optimizer.build(model.trainable_variables)
            for folder in run.cuts.private:
                shutil.rmtree(folder, ignore_errors=True)
    history = history_of(model, run.log["rows"])
    history.weight_change, history.notes = run.log["weight_change"], run.log["notes"]
    return history


def _run_phase(run, plan, train, validation, saved):
    model, best, log = run.model, run.best, run.log
    phase = plan[log["phase"]]
    trainable = freeze(model, phase.train, phase.batchnorm, run.stages, phase.variables)
    run.notify("on_phase_begin", phase, trainable)
    later = plan[log["phase"] + 1 :]
    run.user_callbacks.later_epochs = sum(1 if after.solves else after.epochs for after in later)
    augmented = train.random_access and train.augment is not None
    if phase.solves and not phase.views and augmented:  # a solver sees the examples as they are
        train = train.replace(augment=None)
    soup = phase.soup if validation is not None else 1
    if saved is None:
        log["first"], start, over = len(log["rows"]), [v.numpy().copy() for v in model.weights], False
        best.begin(soup)
    else:
        meta, arrays = saved
        start, over = arrays["start"], meta["stopped"] or meta["epoch"] >= log["first"] + _epochs(run, phase)
        assign(variables_of(model), arrays["model"])  # a frozen stage may have been trained in an earlier phase
        best.count = soup
    if not over or best.runners_up:
        # Split the model, compute the frozen prefix once, solve for the head or fit the trainable suffix.
        fitted, head = model, _head_to_solve(run, phase, train)
        try:
            if train.random_access and getattr(validation, "random_access", True):
                cuts = run.cuts.flat, run.cuts.by_phase, run.cuts.by_stage
                options = {"batch_size": run.batch_size, "runtime": run.runtime, "chosen": log["runtime"]}
                options |= {"cache_dir": run.cache_dir, "run_id": run.cuts.run_id, "augmented": augmented}
                options["progress"] = functools.partial(run.notify, "on_precompute")
                cached = precompute_phase(*cuts, plan, log["phase"], train, validation, **options)
                fitted, train, validation = cached.suffix, cached.train, cached.validation
                log["runtime"] = dict(cached.runtime)
                log["notes"] += [note for note in cached.notes if note not in log["notes"]]
                run.cuts.private.update(cached.private_folders)
        except CannotSplit as reason:
            reason = str(reason).rstrip(".")
            note = f'Phase "{phase.name}": all of the model is computed in every epoch: {reason}.'
            log["notes"] += [note] if note not in log["notes"] else []
        try:
            if head is not None:
                _solve(run, phase, head, fitted, train)
            fitted = with_fast_depthwise(fitted, run.cuts.flat if fitted is model else fitted)
            if over:  # and interrupted before the best epochs were averaged
                _compile(run, phase, fitted, train.steps(run.batch_size))
            else:
                _fit(run, phase, fitted, train, validation, start, saved)
            if best.runners_up:
                notes = average_best_epochs(best, fitted, validation.ordered(run.batch_size), start)
                log["notes"] += [f'Phase "{phase.name}": {note}' for note in notes]
        except BaseException:  # Ctrl-C in a notebook too
            assign(model.weights, start if best.weights is None else best.weights)
            raise
    best.restore()
    changes = weight_change(run.stages, _by_stage(run, start))
    log["weight_change"][phase.name] = [dataclasses.asdict(change) for change in changes]
    # Where no epoch of this phase was better than the weights before it, those were restored.
    if best.epoch is not None and best.epoch >= log["first"]:
        names = [stage.name for stage in trainable]
        # A solver sets the constants by which a head standardizes its features, which BatchNorm layers hold.
        batchnorm = "trained" if phase.name in log["solved"] else phase.batchnorm
        notes = [f'Phase "{phase.name}": {alarm}' for alarm in unexpected_changes(changes, names, batchnorm)]
    else:
        notes = [f'Phase "{phase.name}" found nothing better; the weights from before it were restored.']
    log["notes"] += notes
    run.notify("on_phase_end", phase, changes, notes)


def _head_to_solve(run, phase, train):
    """Return the head that a phase solves for; ``None`` where it is trained by gradient descent, with a note why."""
    if not phase.solves or phase.name in run.log["solved"]:
        return None
    try:
        if run.cuts.flat is None:
            raise CannotSolve(run.cuts.by_phase[0].reason)
        if not train.random_access:
            raise CannotSolve("The training data are a stream.")
        head = solvable_head(run.cuts.flat, run.settings["loss"], phase.solver, train.y, run.model)
        if any(getattr(loss, "label_smoothing", 0) for loss in keras.tree.flatten(run.settings["loss"])):
            run.log["notes"].append(f'Phase "{phase.name}": {WITHOUT_SMOOTHING}')
        return head
    except CannotSolve as reason:
        note = f'Phase "{phase.name}": the head is trained by gradient descent: {str(reason).rstrip(".")}.'
        run.log["notes"] += [note] if note not in run.log["notes"] else []
        return None


def _solve(run, phase, head, fitted, train):
    """Solve for the head of a phase, from the cached features where there are some."""
    begin = None if fitted is run.model else run.cuts.by_phase[run.log["phase"]]
    options = {"batch_size": run.batch_size, "cache_dir": run.cache_dir, "views": phase.versions or None}
    readout = solve_precomputed(run.cuts.flat, head, begin, train, solver=phase.solver, seed=run.seed, **options)
    run.log["solved"].append(phase.name)
    run.best.begin()  # the one epoch is averaged with no other
    run.log["notes"] += [f'Phase "{phase.name}": {sentence}' for sentence in readout.notes]


def _epochs(run, phase):
    """Number of epochs of a phase: a solved one measures once."""
    return 1 if phase.name in run.log["solved"] else phase.epochs


def _fit(run, phase, fitted, train, validation, start, saved):
    import tensorflow as tf

    model, first = run.model, run.log["first"]
    steps = train.steps(run.batch_size)
    optimizer = _compile(run, phase, fitted, steps)
    own = [run.best, RecordHistory(phase.name, run.log["rows"])]
    if getattr(inner_optimizer(optimizer), "use_ema", False) and validation is not None:
        own.insert(0, keras.callbacks.SwapEMAWeights())
    saved_callbacks = list(run.callbacks)
    if phase.patience:
        stopper = keras.callbacks.EarlyStopping(run.best.monitor, patience=phase.patience, mode=run.best.mode)
        saved_callbacks.append(stopper)
        own.insert(0, stopper)
    if fitted is not model:
        own.append(StopWithModel(model))
    epoch = first if saved is None else saved[0]["epoch"]
    if run.resumable:
        own.append(Checkpoint(run.work / CHECKPOINT, model, run.best, saved_callbacks, run.log, start, resume=saved))
    callbacks = keras.callbacks.CallbackList(
        [TerminateOnNonFinite(phase.name), run.user_callbacks, *own],
        add_history=True,
        model=fitted,
        epochs=first + _epochs(run, phase),
        steps=steps,
    )
    train = train.epochs(run.batch_size, run.seed, first=epoch, views=phase.versions or None)
    if validation is not None:
        validation = validation.ordered(run.batch_size)
    known = all(getattr(getattr(spec, "shape", None), "rank", None) for spec in keras.tree.flatten(train.element_spec))
    # An eager step may compute with anything; a step of the user's own may give the metrics other values.
    usual = type(fitted).train_step is keras.Model.train_step and not fitted.run_eagerly
    if known and usual and not tf.config.functions_run_eagerly():
        build_training(fitted, train.element_spec)
    fitted.fit(
        train,
        steps_per_epoch=steps,
        validation_data=validation,
        initial_epoch=epoch,
        epochs=first + _epochs(run, phase),
        callbacks=callbacks,
        shuffle=False,  # the data are in their order already
        verbose=0,
    )


def _compile(run, phase, fitted, steps):
    """Compile the model that is fitted, and the whole one with the same optimizer, for the user's callbacks."""
    if phase.name in run.log["solved"]:  # an epoch that measures, and changes nothing
        optimizer = clone_optimizer(run.settings["optimizer"], 0.0)
        scale_learning_rate(optimizer, run.model.layers, 0.0)
    else:
        optimizer = clone_optimizer(run.settings["optimizer"], _learning_rate(phase, steps))
        factor = wide_head_factor(optimizer, run.model, phase.learning_rate)
        layerwise_lr_decay(optimizer, run.stages, phase.layer_decay, head=factor)
    if phase.l2_sp:
        l2_sp(optimizer, run.model, phase.l2_sp, start=run.initial_weights, free=run.stages[-1].layers)
    settings = run.settings | {"optimizer": optimizer}
    if not _has_gpu():
        settings["jit_compile"] = False  # XLA makes convolutions several times slower on a CPU
    settings["steps_per_execution"] = _steps_per_execution(settings.get("steps_per_execution", 1), steps)
    keras.Model.compile(fitted, **settings)
    optimizer = fitted.optimizer  # Keras may have put a LossScaleOptimizer around it
    # In the order of the whole model, in which Keras reads the state of the optimizer from a saved file.
    optimizer.build(run.model.trainable_variables)
    if fitted is not run.model:
        keras.Model.compile(run.model, **settings | {"optimizer": optimizer})
    return optimizer


def _learning_rate(phase, steps):
    return lr_schedule(phase.schedule, phase.learning_rate, phase.epochs * steps, phase.warmup)


def _steps_per_execution(given, steps):
    """The largest number up to the given one that divides an epoch.

    Training batches are one endless stream; Keras would read the last steps of an epoch from the next one.
    """
    if given == "auto":
        return 1
    return next(number for number in range(min(given, steps), 0, -1) if steps % number == 0)


@dataclasses.dataclass(frozen=True)
class _Run:
    """Hold the settings of all phases, and the log, which grows and is saved after every epoch."""

    model: Any
    stages: tuple
    cuts: CutPoints
    initial_weights: list | None  # from before the run, where a phase has L2-SP
    settings: dict
    best: BestWeights
    callbacks: list
    user_callbacks: UserCallbacks  # the same, as those of one training
    batch_size: int
    seed: int
    work: Path
    resumable: bool  # is the folder the user's, to resume from?
    cache_dir: Any
    runtime: str
    log: dict

    def notify(self, event, *arguments):
        notify(self.callbacks, event, *arguments)


def _resume(run):
    """Read what an earlier call saved in the folder; ``None`` where there is nothing."""
    file = run.work / CHECKPOINT
    if not file.exists():
        return None
    meta, arrays = read_checkpoint(file)
    if meta["fingerprint"] != run.log["fingerprint"]:
        raise unfinished_run_error(run.work, "of another plan, model, data or seed")
    run.log.update({key: meta[key] for key in run.log})
    run.best.load(meta, arrays)
    return meta, arrays


def _takes_labels(model):
    """Does the usual training step compute a loss from labels? A step of the user's own may need none."""
    return type(model).train_step is keras.Model.train_step and type(model).compute_loss is keras.Model.compute_loss


def _refuse_patched(optimizer):
    """Each phase clones the optimizer; what was changed on the instance would be lost silently."""
    if is_patched(optimizer):
        raise ValueError(
            f"The {type(inner_optimizer(optimizer)).__name__} optimizer was changed on the instance, as l2_sp and "
            "layerwise_lr_decay do, and fine_tune clones it for each phase, without that change: compile with a plain "
            "optimizer and write Phase(l2_sp=...) or Phase(layer_decay=...), or train with model.fit."
        )


def _by_stage(run, weights):
    """The same weights in the order of the stages, as :func:`thaw.training.freezing.weight_change` takes them."""
    by_variable = {id(v): value for v, value in zip(run.model.weights, weights)}
    return [[[by_variable[id(w)] for w in layer.weights] for layer in stage.layers] for stage in run.stages]


def _strategy_scope(model):
    """The scope of the strategy that the model was made under: optimizers and submodels belong into it too."""
    import tensorflow as tf

    strategy = getattr(model, "distribute_strategy", None)
    outside = strategy is None or strategy is tf.distribute.get_strategy()
    return contextlib.nullcontext() if outside else strategy.scope()


def _has_gpu():
    import tensorflow as tf

    return bool(tf.config.get_visible_devices("GPU"))  # a GPU that was hidden computes nothing
