"""Callbacks: the events of thaw, the user's own over all phases, the best weights, and divergence."""

from __future__ import annotations

import dataclasses
import math
import string
from functools import partialmethod

import keras
import numpy as np

from thaw._keras import learning_rate_of_last_step, moving_averages, sublayers
from thaw.tasks import compiled_metrics, metric_name, monitor_of


class TuneCallback(keras.callbacks.Callback):
    """Base class for callbacks that listen to the events of thaw, besides those of Keras.

    Override the events you need. A method that begins with ``on_`` and is no event is an
    error when the class is made, so that a misspelt one is not ignored.

    Raises:
        TypeError: a subclass has a method ``on_...`` that is no event.

    Example:
        >>> from thaw import TuneCallback
        >>> class Announce(TuneCallback):
        ...     def on_phase_begin(self, phase, stages):
        ...         print(phase.name, [stage.name for stage in stages])
        >>> class Misspelt(TuneCallback):
        ...     def on_phase_start(self, phase, stages):
        ...         pass
        Traceback (most recent call last):
        TypeError: Misspelt.on_phase_start is no event; did you mean on_phase_end or on_phase_begin?
    """

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        events = sorted(name for name in dir(TuneCallback) if name.startswith("on_"))
        for name in vars(cls):
            if name.startswith("on_") and name not in events:
                import difflib

                close = difflib.get_close_matches(name, events, n=2)
                meant = f"did you mean {' or '.join(close)}?" if close else f"expected one of {', '.join(events)}."
                raise TypeError(f"{cls.__name__}.{name} is no event; {meant}")

    def on_preflight(self, findings):
        """Called once before the first phase, with a tuple of :class:`thaw.Finding`."""

    def on_resume(self, phase, epoch):
        """Called where a run resumes: the :class:`thaw.Phase`, and the number of its next epoch, from 0."""

    def on_phase_begin(self, phase, stages):
        """Called before each phase, with the :class:`thaw.Phase` and the stages that it trains."""

    def on_fold_begin(self, number, total):
        """Called before each model of :func:`thaw.tune` with ``folds``: its number from 1, and how many."""

    def on_precompute(self, done, total):
        """Called while the frozen prefix is computed: batches so far, and in all."""

    def on_cross_validate(self, done, total):
        """Called while solved heads are compared: folds so far, and in all."""

    def on_phase_end(self, phase, changes, notes):
        """Called after each phase: a :class:`thaw.training.freezing.WeightChange` for each stage, and sentences."""

    def on_trial(self, number, total, name):
        """Called before each trial of :func:`thaw.advise`: its number from 1, how many at most, and its name."""

    def on_trial_end(self, trial):
        """Called after each trial, with the :class:`thaw.advice.trials.Trial`."""

    def on_advice(self, advice):
        """Called with the :class:`thaw.Advice` that a run follows."""

    def on_no_advice(self, reason):
        """Called with a sentence where a run takes the usual plan without advice."""

    def on_way_begin(self, way, seed, epochs, done, total):
        """Called before each training of :func:`thaw.compare`: way, seed and epochs; how many are done, and in all."""


def callback_list(callbacks):
    """Return a list of the callbacks that a user gives as ``fit`` takes them: a list, one alone, or ``None``."""
    return [] if callbacks is None else keras.tree.flatten(callbacks)


def notify(callbacks, event, *arguments):
    """Call an event of :class:`TuneCallback` on every callback that is one.

    Args:
        callbacks: Keras callbacks.
        event: name of the event, such as ``"on_phase_begin"``.
        *arguments: of the event.
    """
    for callback in callbacks:
        if isinstance(callback, TuneCallback):
            getattr(callback, event)(*arguments)


class UserCallbacks(keras.callbacks.Callback):
    """Let the user's callbacks see the phases of a run as one training of the whole model.

    To Keras each phase is a ``fit`` of its own, perhaps of the suffix alone: ``CSVLogger`` would write over the rows of
    the phase before, MLflow's callback would log its parameters twice, and ``ModelCheckpoint`` would save the suffix.
    So the callbacks get the whole model, ``on_train_begin`` before the first epoch of the run and ``on_train_end``
    after its last, and ``params["epochs"]`` counts the epochs of all phases. ``EarlyStopping`` and
    ``ReduceLROnPlateau`` begin again in each phase, whose rate is another. A :class:`TuneCallback`, which knows the
    phases, gets the last epoch of the present one.

    Args:
        callbacks: a list of Keras callbacks.
        model: the whole ``keras.Model``.
        resumed: whether an earlier call began the run; ``CSVLogger`` then appends to its rows. Default ``False``.
        verbose: 0, 1 or 2, for ``params["verbose"]``. Default 0.

    Attributes:
        later_epochs: epochs of the phases after the present one. Default 0.

    Example:
        >>> import keras
        >>> from thaw.training.callbacks import UserCallbacks
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        >>> show = keras.callbacks.LambdaCallback(on_train_begin=lambda logs: print("begin"))
        >>> run = UserCallbacks([show], model)
        >>> run.on_train_begin()
        begin
        >>> run.on_train_begin()  # of the second phase
    """

    def __init__(self, callbacks, model, resumed=False, verbose=0):
        super().__init__()
        self.callbacks, self.whole, self.verbose = callbacks, model, verbose
        self.begun, self.last_logs, self.later_epochs = False, None, 0
        for callback in callbacks:
            if resumed and isinstance(callback, keras.callbacks.CSVLogger):
                callback.append = True

    def set_params(self, params):
        params = params | {"verbose": self.verbose}
        whole = params | {"epochs": params["epochs"] + self.later_epochs}
        for callback in self.callbacks:
            callback.set_params(params if isinstance(callback, TuneCallback) else whole)

    def set_model(self, model):
        if not self.begun:  # once: TensorBoard opens its files here
            for callback in self.callbacks:
                callback.set_model(self.whole)

    def on_train_begin(self, logs=None):
        for callback in self.callbacks:
            if not self.begun or isinstance(callback, _ONE_PHASE):
                callback.on_train_begin(logs)
        self.begun = True

    def on_train_end(self, logs=None):
        self.last_logs = logs
        for callback in self.callbacks:
            if isinstance(callback, _ONE_PHASE):
                callback.on_train_end(logs)

    def finish(self):
        """End the training, after its last phase."""
        for callback in self.callbacks if self.begun else ():
            if not isinstance(callback, _ONE_PHASE):
                callback.on_train_end(self.last_logs)

    def _forward(self, event, *arguments, **named):
        for callback in self.callbacks:
            getattr(callback, event)(*arguments, **named)

    on_epoch_begin = partialmethod(_forward, "on_epoch_begin")
    on_epoch_end = partialmethod(_forward, "on_epoch_end")
    on_train_batch_begin = partialmethod(_forward, "on_train_batch_begin")
    on_train_batch_end = partialmethod(_forward, "on_train_batch_end")
    on_test_begin = partialmethod(_forward, "on_test_begin")
    on_test_end = partialmethod(_forward, "on_test_end")
    on_test_batch_begin = partialmethod(_forward, "on_test_batch_begin")
    on_test_batch_end = partialmethod(_forward, "on_test_batch_end")


_ONE_PHASE = (keras.callbacks.EarlyStopping, keras.callbacks.ReduceLROnPlateau)  # they steer one phase


@dataclasses.dataclass(frozen=True)
class RunnerUp:
    """An epoch that is not the best one.

    Args:
        value: of the monitor.
        tie: the validation loss, which decides between equal values.
        epoch: its number, from 0.
        weights: arrays of the trainable variables, in the order of ``model.weights``; the others are as in the best.
    """

    value: float
    tie: float
    epoch: int
    weights: list


class BestWeights(keras.callbacks.Callback):
    """Keep the best weights seen in all fits that this callback takes part in.

    ``EarlyStopping(restore_best_weights=True)`` starts again with every ``fit``, so that a bad second phase wins over a
    good first one. A tie goes to the lower ``val_loss``. Where the optimizer keeps a moving average of the weights, the
    average is saved, which is also what validation measures. Call :meth:`restore` after the last fit.

    Args:
        model: the ``keras.Model`` whose weights are kept; it may be larger than the one that is fitted.
        monitor: name in the logs, for instance ``"val_accuracy"``.
        mode: ``"max"`` or ``"min"``: which direction of it is better; see :func:`thaw.tasks.monitor_of`.

    Attributes:
        value: of the monitor at the best epoch; ``None`` before the first.
        epoch: the best one, from 0; of an average, the last one in it.
        weights: the arrays of the best epoch, in the order of ``model.weights``.
        runners_up: the next best epochs since :meth:`begin`, as :class:`RunnerUp`, the best first.

    Raises:
        ValueError: the logs have no such value, or it is several numbers.
        FloatingPointError: some weights are not finite.

    Example:
        >>> import keras
        >>> from thaw.training.callbacks import BestWeights
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        >>> best = BestWeights(model, "val_loss", "min")
        >>> best.on_epoch_end(0, {"val_loss": 0.5})
        >>> best.value, best.epoch
        (0.5, 0)
    """

    def __init__(self, model, monitor, mode):
        super().__init__()
        self.whole, self.monitor, self.mode = model, monitor, mode
        self.value = self.tie = self.epoch = self.weights = None
        self.begin()

    def begin(self, count=1):
        """Keep this many epochs from here on, the best one so far among them.

        Args:
            count: number of epochs. What is trainable must stay the same while more than one is kept. Default 1.
        """
        self.count, self.runners_up = count, []

    def on_epoch_end(self, epoch, logs=None):
        value, tie = self.measured(logs or {})
        is_best = self.value is None or self.rank(value, tie) > self.rank(self.value, self.tie)
        full = len(self.runners_up) >= self.count - 1
        worse = full and all(self.rank(value, tie) <= self.rank(kept.value, kept.tie) for kept in self.runners_up)
        if worse and not is_best:
            return
        weights = validated_weights(self.whole, getattr(self.model, "optimizer", None))
        if not all(np.isfinite(w).all() for w in weights if w.dtype.kind == "f"):
            # A ReLU makes 0 of NaN, so the loss may look well.
            raise FloatingPointError(
                f"After epoch {epoch + 1} some weights are not finite, though the loss is; look for NaN or "
                "infinity in the inputs, or lower the learning rate."
            )
        if is_best:
            if self.value is not None:
                self._keep(RunnerUp(self.value, self.tie, self.epoch, self._trained(self.weights)), first=True)
            self.value, self.tie, self.epoch, self.weights = value, tie, epoch, weights
        else:
            self._keep(RunnerUp(value, tie, epoch, self._trained(weights)))

    def measured(self, logs):
        """Return the value to choose by and the one that decides between equal ones.

        Args:
            logs: dict of the values of an epoch.
        """
        if self.monitor not in logs:
            raise ValueError(f"There is no {self.monitor} to choose by; the logs have {', '.join(sorted(logs))}.")
        if np.ndim(logs[self.monitor]):
            raise ValueError(
                f"{self.monitor} is {np.size(logs[self.monitor])} numbers; expected one to choose by. Put a metric of "
                'one number first, such as F1Score(average="macro").'
            )
        return float(logs[self.monitor]), float(logs.get("val_loss", 0.0))

    def rank(self, value, tie):
        """Return a pair that is larger where the value, or in a tie the validation loss, is better."""
        value = value if self.mode == "max" else -value
        return (-math.inf if math.isnan(value) else value, -math.inf if math.isnan(tie) else -tie)

    def _keep(self, runner_up, first=False):
        others = [runner_up, *self.runners_up] if first else [*self.runners_up, runner_up]
        others.sort(key=lambda other: self.rank(other.value, other.tie), reverse=True)  # of equal ones the first
        self.runners_up = others[: self.count - 1]

    def _trained(self, weights):
        trained = {id(variable) for variable in self.whole.trainable_variables}
        return [value for variable, value in zip(self.whole.weights, weights) if id(variable) in trained]

    def versions(self):
        """Return the weights of the best epoch and of the runners-up, each in the order of ``model.weights``."""
        trained, versions = {id(variable) for variable in self.whole.trainable_variables}, [self.weights]
        for other in self.runners_up:
            own = iter(other.weights)
            pairs = zip(self.whole.weights, self.weights)
            versions.append([next(own) if id(variable) in trained else value for variable, value in pairs])
        return versions

    def state(self):
        """Return ``(meta, arrays)``: values for JSON, and a dict from names to lists of arrays; see :meth:`load`."""
        meta = {"best": [self.value, self.tie, self.epoch]}
        meta["runners_up"] = [[other.value, other.tie, other.epoch] for other in self.runners_up]
        arrays = {f"runner-up {i}": other.weights for i, other in enumerate(self.runners_up)}
        return meta, {"best": self.weights or []} | arrays

    def load(self, meta, arrays):
        """Go on from what :meth:`state` returned."""
        self.value, self.tie, self.epoch = meta["best"]
        self.weights = arrays.get("best")
        self.runners_up = [RunnerUp(*own, arrays[f"runner-up {i}"]) for i, own in enumerate(meta["runners_up"])]

    def restore(self):
        """Restore the best weights."""
        if self.weights is not None:
            for variable, value in zip(self.whole.weights, self.weights):
                variable.assign(value)


def validated_weights(model, optimizer):
    """Return copies of the weights as validation sees them: the moving average where the optimizer keeps one."""
    average = {id(variable): average for variable, average in moving_averages(optimizer)}
    return [average.get(id(v), v).numpy().copy() for v in model.weights]


class TerminateOnNonFinite(keras.callbacks.Callback):
    """Raise at the first batch whose loss is NaN or infinite, and say where it was.

    The weights stay as they are: :func:`thaw.fine_tune`, which uses it, restores the last good ones.

    Args:
        phase: name of the phase, for the message.

    Raises:
        FloatingPointError: from ``fit``; names epoch, batch, step and learning rate, and what to try.

    Example:
        >>> from thaw.training.callbacks import TerminateOnNonFinite
        >>> TerminateOnNonFinite("head").on_train_batch_end(0, {"loss": 0.7})
    """

    def __init__(self, phase):
        super().__init__()
        self.phase, self.epoch = phase, 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_epoch_end(self, epoch, logs=None):
        # The last batch of an epoch can break the weights with a loss that was still finite.
        value = (logs or {}).get("val_loss", 0.0)
        if not math.isfinite(value):
            raise FloatingPointError(
                f'The validation loss became {value} in phase "{self.phase}", epoch {epoch + 1}. fine_tune restores '
                "the last good weights. Try a tenth of the learning rate, a longer warm-up, or "
                "global_clipnorm=1.0 in the optimizer."
            )

    def on_train_batch_end(self, batch, logs=None):
        loss = float((logs or {}).get("loss", 0.0))
        if not math.isfinite(loss):
            step = int(self.model.optimizer.iterations.numpy())
            rate = learning_rate_of_last_step(self.model.optimizer)
            raise FloatingPointError(
                f'The loss became {loss} in phase "{self.phase}", epoch {self.epoch + 1}, batch {batch + 1} '
                f"(step {step} of the phase), at a learning rate of {float(rate):.3g}. fine_tune restores the last "
                "good weights. Try a tenth of the learning rate, a longer warm-up, global_clipnorm=1.0 in the "
                "optimizer, and look for inputs that are not finite."
            )


class StopWithModel(keras.callbacks.Callback):
    """Stop the suffix that is fitted where a callback stops the whole model.

    Args:
        model: the whole ``keras.Model``, which the user's callbacks see.
    """

    def __init__(self, model):
        super().__init__()
        self.whole = model

    def on_train_begin(self, logs=None):
        self.whole.stop_training = False

    def on_train_batch_end(self, batch, logs=None):
        self.model.stop_training = self.model.stop_training or self.whole.stop_training

    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = self.model.stop_training or self.whole.stop_training


def check_callbacks(callbacks, model, rates, *, validation, monitor=None):
    """Refuse callbacks that could not do their work in a run of several phases, before the first epoch.

    One that monitors a metric in its own ``mode="auto"`` gets the direction of the metric from here: Keras looks it up
    in the model after the first epoch, and finds nothing there while only the suffix is fitted.

    Args:
        callbacks: a list of Keras callbacks.
        model: the compiled ``keras.Model``.
        rates: dict from the name of each phase to its learning rate, as :func:`thaw.training.lr_schedule` makes it.
        validation: whether there are validation data.
        monitor: name of the value by which ``fine_tune`` chooses the best epoch, to be looked up too. Default ``None``.

    Raises:
        ValueError: no callback; one that ``fine_tune`` replaces or that sets the rate which a schedule sets too; a
            value to monitor, or to name a file by, that no epoch logs; or a metric without a direction.

    Example:
        >>> import keras
        >>> from thaw.training.callbacks import check_callbacks
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> check_callbacks([keras.callbacks.EarlyStopping("val_acc")], model, {"all": 0.1}, validation=True)
        Traceback (most recent call last):
        ValueError: EarlyStopping monitors val_acc, which no epoch logs; expected one of loss, val_loss.
    """
    of_keras = keras.callbacks
    names = _logged_names(callbacks, model, validation)
    if monitor is not None:
        _check_names(names, {monitor}, "fine_tune monitors")
    for callback in callbacks:
        kind = type(callback).__name__
        if not isinstance(callback, of_keras.Callback):
            shown = f"the class {callback.__name__}" if isinstance(callback, type) else f"a {kind}"
            raise ValueError(f"callbacks holds {shown}; expected objects of keras.callbacks.Callback.")
        if isinstance(callback, of_keras.BackupAndRestore):
            raise ValueError(
                "BackupAndRestore saves neither what is frozen in a phase nor the order of the examples; leave it out "
                "and write fine_tune(..., backup_dir=...), which resumes bit-identically."
            )
        if kind == "GreedySoup":
            raise ValueError("GreedySoup is for plain fit; here the plan has it: Phase(soup=3).")
        if isinstance(callback, of_keras.SwapEMAWeights):
            raise ValueError(
                "SwapEMAWeights swaps what fine_tune has swapped already; leave it out. With use_ema=True in the "
                "optimizer the moving average is validated, and the best one is restored."
            )
        if isinstance(callback, (of_keras.ReduceLROnPlateau, of_keras.LearningRateScheduler)):
            phase = next((name for name, rate in rates.items() if callable(rate)), None)
            if phase is not None:
                raise ValueError(
                    f'{kind} sets the learning rate, and so does the schedule of phase "{phase}"; write '
                    'schedule="constant" and warmup=0 in each Phase, or leave the callback out.'
                )
        is_saver = isinstance(callback, of_keras.ModelCheckpoint)
        if hasattr(callback, "monitor_op") and (not is_saver or callback.save_best_only):
            _check_names(names, {callback.monitor}, f"{kind} monitors")
        if hasattr(callback, "monitor_op") and callback.mode == "auto":
            callback.mode = monitor_of(model, callback.monitor, validation=validation)[1]
        if is_saver:
            fields = {field for _, field, _, _ in string.Formatter().parse(callback.filepath) if field}
            if callback.save_freq == "epoch":
                _check_names(names, fields - {"epoch"}, f'{kind} names its files "{callback.filepath}", by')
            else:  # in the middle of an epoch nothing is validated
                during = names and [name for name in names if not name.startswith("val_")]
                _check_names(during, fields - {"epoch", "batch"}, f'{kind} names its files "{callback.filepath}", by')


def _check_names(logged, wanted, what):
    """Refuse names that are not among those that are logged; ``None`` where these are not known."""
    missing = sorted(wanted - set(logged)) if logged is not None else ()
    if missing:
        raise ValueError(f"{what} {missing[0]}, which no epoch logs; expected one of {', '.join(logged)}.")


def _may_add_logs(callback):
    """Can it add a value for others to monitor? Only the logs that ``on_epoch_end`` gets are passed on."""
    if "on_epoch_end" in getattr(callback, "__dict__", ()):  # of a LambdaCallback
        return True
    kind = type(callback)
    of_ours = kind.__module__.startswith(("keras.", "thaw.training"))
    return not of_ours and getattr(kind, "on_epoch_end", None) is not keras.callbacks.Callback.on_epoch_end


def _logged_names(callbacks, model, validation):
    """Names in the logs of an epoch; ``None`` where code of the user's own, or several outputs, may add others."""
    own = any(map(_may_add_logs, callbacks))
    usual = type(model).train_step is keras.Model.train_step and type(model).test_step is keras.Model.test_step
    if own or not usual or len(getattr(model, "outputs", None) or ()) != 1:
        return None
    inside = [metric for layer in sublayers(model, include_self=False) for metric in getattr(layer, "metrics", ())]
    names = ["loss", *(metric_name(metric) for metric in [*compiled_metrics(model), *inside])]
    if len(set(names)) < len(names):  # Keras renames one of them
        return None
    names += [f"val_{name}" for name in names] if validation else []
    steers = (keras.callbacks.ReduceLROnPlateau, keras.callbacks.LearningRateScheduler)
    return names + (["learning_rate"] if any(isinstance(callback, steers) for callback in callbacks) else [])
