"""Callbacks: the events of thaw, the best weights, divergence and history."""

from __future__ import annotations

import math
import time

import keras
import numpy as np

from thaw._keras import learning_rate_of_last_step, moving_averages


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

    def on_precompute(self, done, total):
        """Called while the frozen prefix is computed: batches so far, and in all."""

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
        epoch: the best one, from 0.
        weights: the arrays of the best epoch, in the order of ``model.weights``.

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

    def on_epoch_end(self, epoch, logs=None):
        logs = logs or {}
        if self.monitor not in logs:
            raise ValueError(f"There is no {self.monitor} to choose by; the logs have {', '.join(sorted(logs))}.")
        if np.ndim(logs[self.monitor]):
            raise ValueError(
                f"{self.monitor} is {np.size(logs[self.monitor])} numbers; expected one to choose by. Put a metric of "
                'one number first, such as F1Score(average="macro").'
            )
        value, tie = float(logs[self.monitor]), float(logs.get("val_loss", 0.0))
        if self.value is None or self._rank(value, tie) > self._rank(self.value, self.tie):
            weights = validated_weights(self.whole, getattr(self.model, "optimizer", None))
            if not all(np.isfinite(w).all() for w in weights if w.dtype.kind == "f"):
                # A ReLU makes 0 of NaN, so the loss may look well.
                raise FloatingPointError(
                    f"After epoch {epoch + 1} some weights are not finite, though the loss is; look for NaN or "
                    "infinity in the inputs, or lower the learning rate."
                )
            self.value, self.tie, self.epoch, self.weights = value, tie, epoch, weights

    def _rank(self, value, tie):
        value = value if self.mode == "max" else -value
        return (-math.inf if math.isnan(value) else value, -math.inf if math.isnan(tie) else -tie)

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
            step = int(self.model.optimizer.iterations)
            rate = learning_rate_of_last_step(self.model.optimizer)
            raise FloatingPointError(
                f'The loss became {loss} in phase "{self.phase}", epoch {self.epoch + 1}, batch {batch + 1} '
                f"(step {step} of the phase), at a learning rate of {float(rate):.3g}. fine_tune restores the last "
                "good weights. Try a tenth of the learning rate, a longer warm-up, global_clipnorm=1.0 in the "
                "optimizer, and look for inputs that are not finite."
            )


class RecordHistory(keras.callbacks.Callback):
    """Append one row for each epoch: its number, phase, logs, learning rate and seconds.

    Args:
        phase: name of the phase.
        rows: the list to append to. The learning rate is that of the epoch's last step.
    """

    def __init__(self, phase, rows):
        super().__init__()
        self.phase, self.rows = phase, rows

    def on_epoch_begin(self, epoch, logs=None):
        self.began = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        row = {"epoch": epoch + 1, "phase": self.phase} | {k: _logged(v) for k, v in (logs or {}).items()}
        row["learning_rate"] = float(learning_rate_of_last_step(self.model.optimizer))
        row["seconds"] = round(time.monotonic() - self.began, 3)
        self.rows.append(row)


def _logged(value):
    """A value that a metric or a callback wrote into the logs, as JSON has it."""
    try:
        return np.asarray(value, np.float64).tolist()
    except (TypeError, ValueError):
        return str(value)


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
