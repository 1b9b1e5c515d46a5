"""Record the epochs of a run, and return them as Keras does."""

from __future__ import annotations

import time

import keras
import numpy as np

from thaw._keras import learning_rate_of_last_step


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


def history_of(model, rows):
    """Return recorded epochs as ``fit`` returns them.

    Args:
        model: the ``keras.Model`` that was trained.
        rows: of :class:`RecordHistory`.

    Returns:
        A ``keras.callbacks.History``; a value that an epoch does not have is ``None``.

    Example:
        >>> from thaw.training.history import history_of
        >>> history_of(None, [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.4}]).history
        {'loss': [0.5, 0.4]}
    """
    history = keras.callbacks.History()
    history.set_model(model)
    names = dict.fromkeys(name for row in rows for name in row)
    history.epoch = [row["epoch"] - 1 for row in rows]
    history.history = {name: [row.get(name) for row in rows] for name in names if name != "epoch"}
    return history
