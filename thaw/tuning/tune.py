"""tune: run a plan."""

import contextlib
import dataclasses
import secrets
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np

from thaw.examples import Examples
from thaw.stages import stages_of
from thaw.tuning.anchored import anchored
from thaw.tuning.arguments import checked_arguments, refuse_changed
from thaw.tuning.best_weights import BestWeights
from thaw.tuning.checkpoint import Checkpoint, assign, read_checkpoint, variables_of
from thaw.tuning.first_metric import first_metric
from thaw.tuning.flatten import CannotSplit, flatten
from thaw.tuning.freeze import freeze
from thaw.tuning.fresh_optimizer import fresh_optimizer
from thaw.tuning.mistakes import refuse
from thaw.tuning.movement import alarms, movement
from thaw.tuning.per_stage import per_stage
from thaw.tuning.precompute import precompute_phase
from thaw.tuning.preflight import preflight
from thaw.tuning.run_identity import run_identity
from thaw.tuning.schedule import schedule
from thaw.tuning.split import find_cut
from thaw.tuning.stop_when_not_finite import StopWhenNotFinite
from thaw.tuning.untouched import put_back_after_error


def tune(model, plan, data, *, batch_size=32, seed=0, callbacks=(), folder=None):
    """Fine-tune a compiled model, phase by phase.

    The model's own loss, metrics and optimizer are used; each phase sets its learning rate. One best is kept
    over all phases, by the first metric on the validation data (by its loss where there is no metric, or there are
    several outputs), and put back at the end of each phase and of the run. For equal bits from run to run, call
    ``keras.utils.set_random_seed`` and ``tf.config.experimental.enable_op_determinism`` before.

    Args:
        model: a built and compiled ``keras.Model``; changed in place, and compiled anew at the end with a fresh
            copy of its own optimizer.
        plan: a :class:`thaw.Plan`.
        data: ``(train, validation)``, each :class:`thaw.Examples`, arrays ``(x, y)`` or ``(x, y, weight)``, or
            a batched ``tf.data.Dataset``; ``validation`` may be ``None``. A data set keeps its own order, what
            stands still is then run in every epoch, and a run that goes on starts it from its beginning.
        batch_size: examples in a batch.
        seed: of the order of the examples and of their augmentation.
        callbacks: Keras callbacks. They see the whole model also while only a part of it is computed. One that
            steers the learning rate needs a phase with ``schedule="constant"`` and ``warmup=0``. Where a callback
            has ``on_preflight(findings)``, ``on_resume(phase, epoch)``, ``on_phase_begin(phase, moving)``,
            ``on_precompute(done, total)`` or ``on_phase_end(phase, moved, notes)``, it is called too.
        folder: where the run is kept after each epoch, so that the same call goes on where it stopped.

    Returns:
        A ``keras.callbacks.History`` over all phases. Each epoch also has its ``phase``, ``learning_rate`` and
        ``seconds``; ``history.moved`` holds how far every stage moved in each phase, ``history.notes`` what
        there is to say.

    Raises:
        ValueError: a mistake that was found before the first step, an optimizer that was changed on the instance
            (by :func:`thaw.anchored` or :func:`thaw.per_stage`) or cannot be made anew, or a folder with another run;
            the model's ``trainable`` flags and compilation are as they were.
        FloatingPointError: the loss became NaN or infinite; the last good weights are back in the model.

    Example:
        >>> import keras, numpy as np
        >>> from thaw import Phase, Plan, tune
        >>> x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
        >>> y = (x[:, 0] > 0).astype("int32")
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"),
        ...                           keras.layers.Dense(2, "softmax")])
        >>> model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        >>> plan = Plan([Phase(name="all", epochs=2, learning_rate=1e-2)])
        >>> history = tune(model, plan, ((x, y), (x, y)))
        >>> sorted(history.history)[:3]
        ['accuracy', 'learning_rate', 'loss']
    """
    train, validation, batch_size, seed = checked_arguments(plan, data, batch_size, seed, folder)
    found = preflight(model, train, plan, batch_size=batch_size, validation=validation)
    refuse(found)
    stages = stages_of(model)
    settings = dict(model._compile_config.config)  # what the user gave to compile, as it was given
    refuse_changed(settings["optimizer"])
    fresh_optimizer(settings["optimizer"])  # what cannot be made anew is refused now
    several = len(getattr(model, "outputs", None) or ()) > 1  # whose metrics have other names in the logs
    metric = None if several else first_metric(model)[0]
    monitor = "loss" if validation is None else f"val_{metric or 'loss'}"
    with contextlib.ExitStack() as stack:
        stack.enter_context(put_back_after_error(model))
        if folder is None:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="thaw-")))
        else:
            work = Path(folder)
            work.mkdir(parents=True, exist_ok=True)
        run = _Run(
            model=model,
            stages=stages,
            cuts=_cuts(model, stages, plan),
            start=[w.numpy() for w in model.weights] if any(phase.anchor for phase in plan) else None,
            settings=settings,
            best=BestWeights(model, monitor),
            callbacks=list(callbacks),
            batch_size=batch_size,
            seed=seed,
            work=work,
            kept=folder is not None,
            log={"phase": 0, "first": 0, "rows": [], "notes": [], "moved": {}, "runtime": {}},
        )
        run.log["identity"] = run_identity(model, plan, (train, validation), batch_size, seed)
        saved = _take_up(run) if run.kept else None
        if saved is None:
            run.log["notes"] += [str(finding) for finding in found]
        run.tell("on_preflight", found)
        if saved is not None:
            run.tell("on_resume", plan[run.log["phase"]], saved[0]["epoch"])
        try:
            for index in range(run.log["phase"], len(plan)):
                run.log["phase"] = index
                _run_phase(run, plan, train, validation, saved)
                saved = None
        finally:
            # Nothing of ours stays in the model: a file saved from it names the user's optimizer and no other.
            fresh = fresh_optimizer(settings["optimizer"])
            keras.Model.compile(model, **settings | {"optimizer": fresh})  # a class of the user's may have another
            for folder in run.cuts.private:
                shutil.rmtree(folder, ignore_errors=True)
    return _history(run)


@dataclasses.dataclass(frozen=True)
class _Run:
    """What stays the same from phase to phase, and the log, which grows and is saved after every epoch."""

    model: Any
    stages: tuple
    cuts: Any
    start: list | None  # where the weights were before the run, if a phase pulls them back there
    settings: dict
    best: BestWeights
    callbacks: list
    batch_size: int
    seed: int
    work: Path
    kept: bool  # is the folder there to go on from?
    log: dict

    def tell(self, event, *arguments):
        for callback in self.callbacks:
            if hasattr(callback, event):
                getattr(callback, event)(*arguments)


def _take_up(run):
    """What an earlier call left in the folder, or ``None``."""
    file = run.work / "checkpoint.npz"
    if not file.exists():
        return None
    meta, arrays = read_checkpoint(file)
    if meta["identity"] != run.log["identity"]:
        raise ValueError(
            f"{run.work} holds an unfinished run of another plan, model, data or seed; "
            "give the same command again to go on with it, name another folder, or delete this one."
        )
    run.log.update({key: meta[key] for key in run.log})
    run.best.value, run.best.tie, run.best.epoch = meta["best"]
    run.best.weights = arrays.get("best")
    return meta, arrays


@dataclasses.dataclass(frozen=True)
class _Cuts:
    """Where the model is cut: the tensors of its flat form that cross, or the reason why it cannot be cut."""

    flat: Any
    by_phase: list
    by_stage: list  # from the head down, wherever there is a cut
    nonce: str = dataclasses.field(default_factory=lambda: secrets.token_hex(16))
    private: set = dataclasses.field(default_factory=set)  # folders of what only this run can use


def _cuts(model, stages, plan):
    try:
        flat = flatten(model)
    except CannotSplit as reason:
        return _Cuts(None, [str(reason)] * len(plan), [])

    def cut(train, batchnorm="frozen"):
        freeze(model, train, batchnorm)
        try:
            return find_cut(flat)
        except CannotSplit as reason:
            return str(reason)

    by_phase = [cut(phase.train, phase.batchnorm) for phase in plan]
    by_stage = [cut(n) for n in range(len(stages) - 1)]
    return _Cuts(flat, by_phase, [tensors for tensors in by_stage if not isinstance(tensors, str)])


def _run_phase(run, plan, train, validation, saved):
    model, best, log = run.model, run.best, run.log
    phase = plan[log["phase"]]
    moving = freeze(model, phase.train, phase.batchnorm)
    run.tell("on_phase_begin", phase, moving)
    if saved is None:
        log["first"], start, over = len(log["rows"]), [v.numpy().copy() for v in model.weights], False
    else:
        meta, arrays = saved
        start, over = arrays["start"], meta["stopped"] or meta["epoch"] >= log["first"] + phase.epochs
        assign(variables_of(model), arrays["model"])  # what stands still may have moved in an earlier phase
    if not over:
        # The loop of the design: cut, run what stands still once, compile what moves, fit it.
        try:
            fitted, train, validation = precompute_phase(run.cuts, plan, (train, validation), run)
        except CannotSplit as reason:
            fitted, note = model, f'Phase "{phase.name}": all of the model is computed in every epoch: {reason}.'
            log["notes"] += [note] if note not in log["notes"] else []
        try:
            _fit(run, phase, fitted, train, validation, start, saved)
        except FloatingPointError:
            assign(model.weights, start if best.weights is None else best.weights)
            raise
    best.restore()
    moved = movement(run.stages, _by_stage(run, start))
    log["moved"][phase.name] = [dataclasses.asdict(m) for m in moved]
    # Where no epoch of this phase was better than what was there before it, its start was put back.
    if best.epoch is not None and best.epoch >= log["first"]:
        names = [stage.name for stage in moving]
        notes = [f'Phase "{phase.name}": {alarm}' for alarm in alarms(moved, names, phase.batchnorm)]
    else:
        notes = [f'Phase "{phase.name}" found nothing better; the weights from before it were put back.']
    log["notes"] += notes
    run.tell("on_phase_end", phase, moved, notes)


def _fit(run, phase, fitted, train, validation, start, saved):
    model, first = run.model, run.log["first"]
    steps = _steps(train, run.batch_size)
    optimizer = _compile(run, phase, fitted, steps)
    own = [run.best, _Rows(phase.name, run.log["rows"])]
    if getattr(getattr(optimizer, "inner_optimizer", optimizer), "use_ema", False) and validation is not None:
        own.insert(0, keras.callbacks.SwapEMAWeights())
    counters = list(run.callbacks)
    if phase.patience:
        mode = "max" if run.best.higher_is_better else "min"
        stopper = keras.callbacks.EarlyStopping(run.best.monitor, patience=phase.patience, mode=mode)
        counters.append(stopper)
        own.insert(0, stopper)
    if fitted is not model:
        own.append(_PassOnStop(model))
    epoch = first if saved is None else saved[0]["epoch"]
    if run.kept:
        own.append(Checkpoint(run.work / "checkpoint.npz", model, run.best, counters, run.log, start))
        own[-1].restored = saved
    callbacks = keras.callbacks.CallbackList(
        [StopWhenNotFinite(phase.name), *run.callbacks, *own],
        add_history=True,
        model=fitted,
        epochs=first + phase.epochs,
        steps=steps,
    )
    for callback in run.callbacks:
        callback.set_model(model)  # the user's see the whole model, whatever part of it is being fitted
    if isinstance(train, Examples):
        train = train.epochs(run.batch_size, run.seed, first=epoch, views=phase.versions or None)
    else:
        train = train.repeat()
    if isinstance(validation, Examples):
        validation = validation.ordered(run.batch_size)
    known = all(getattr(getattr(spec, "shape", None), "rank", None) for spec in keras.tree.flatten(train.element_spec))
    # What runs eagerly may compute with anything, and is never traced; an own step may give the metrics something else.
    usual = type(fitted).train_step is keras.Model.train_step and not fitted.run_eagerly
    if known and usual and not _functions_run_eagerly():
        # Builds the metrics too. Variables that are made in the first step would have it traced twice.
        fitted._symbolic_build(data_batch=train.element_spec)
    fitted.fit(
        train,
        steps_per_epoch=steps,
        validation_data=validation,
        initial_epoch=epoch,
        epochs=first + phase.epochs,
        callbacks=callbacks,
        shuffle=False,  # the data are in their order already
        verbose=0,
    )


def _compile(run, phase, fitted, steps):
    """Compile what is fitted, and the whole model with the same optimizer, for the user's callbacks."""
    rate = schedule(phase.schedule, phase.learning_rate, phase.epochs * steps, phase.warmup)
    optimizer = per_stage(fresh_optimizer(run.settings["optimizer"], rate), run.stages, phase.stage_decay)
    if phase.anchor:
        anchored(optimizer, run.model, phase.anchor, start=run.start, free=run.stages[-1].layers)
    settings = run.settings | {"optimizer": optimizer}
    if not _has_gpu():
        settings["jit_compile"] = False  # XLA on a CPU makes convolution nets several times slower
    keras.Model.compile(fitted, **settings)
    optimizer = fitted.optimizer  # Keras may have put a LossScaleOptimizer around it
    optimizer.build(fitted.trainable_variables)
    if fitted is not run.model:
        keras.Model.compile(run.model, **settings | {"optimizer": optimizer})
    return optimizer


class _Rows(keras.callbacks.Callback):
    """One row of history an epoch."""

    def __init__(self, phase, rows):
        super().__init__()
        self.phase, self.rows = phase, rows

    def on_epoch_begin(self, epoch, logs=None):
        self.began = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        row = {"epoch": epoch + 1, "phase": self.phase} | {k: _plain(v) for k, v in (logs or {}).items()}
        row["learning_rate"] = float(self.model.optimizer.learning_rate)
        row["seconds"] = round(time.monotonic() - self.began, 3)
        self.rows.append(row)


def _plain(value):
    """What a metric or a callback of the user's put into the logs, as JSON has it."""
    try:
        return np.asarray(value, np.float64).tolist()
    except (TypeError, ValueError):
        return str(value)


class _PassOnStop(keras.callbacks.Callback):
    """A user's callback stops the whole model; what is being fitted is its suffix."""

    def __init__(self, whole):
        super().__init__()
        self.whole = whole

    def on_train_begin(self, logs=None):
        self.whole.stop_training = False

    def on_train_batch_end(self, batch, logs=None):
        self.model.stop_training = self.model.stop_training or self.whole.stop_training

    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = self.model.stop_training or self.whole.stop_training


def _history(run):
    history = keras.callbacks.History()
    history.set_model(run.model)
    rows = run.log["rows"]
    names = dict.fromkeys(name for row in rows for name in row)
    history.epoch = [row["epoch"] - 1 for row in rows]
    history.history = {name: [row.get(name) for row in rows] for name in names if name != "epoch"}
    history.moved, history.notes = run.log["moved"], run.log["notes"]
    return history


def _by_stage(run, weights):
    """The same weights in the order of the stages, as :func:`movement` takes them."""
    by_variable = {id(v): value for v, value in zip(run.model.weights, weights)}
    return [[[by_variable[id(w)] for w in layer.weights] for layer in stage.layers] for stage in run.stages]


def _steps(train, batch_size):
    if isinstance(train, Examples):
        return train.steps(batch_size)
    steps = int(train.cardinality())
    if steps < 1:
        raise ValueError(
            "The length of the training data set is not known, or it has no end; an epoch needs one. "
            "Leave repeat() out, or say it: dataset.apply(tf.data.experimental.assert_cardinality(n))."
        )
    return steps


def _functions_run_eagerly():
    import tensorflow as tf

    return tf.config.functions_run_eagerly()


def _has_gpu():
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))
