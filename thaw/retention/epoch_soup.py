"""Average the weights of the best epochs of one training: a greedy soup."""

from __future__ import annotations

import keras
import numpy as np

from thaw._validation import as_int
from thaw.data.conversion import as_validation
from thaw.retention.merging import average_weights
from thaw.tasks import monitor_of
from thaw.training.callbacks import BestWeights


class GreedySoup(keras.callbacks.Callback):
    """Restore the average of the best epochs of a ``fit``, where it is better than the best one.

    The greedy model soup (Wortsman et al. 2022), of the epochs of one training. From the best epoch on, the next best
    ones are added to the average in turn, and stay in it where the value that decides is better on the validation data;
    a tie goes to the lower loss. Without an improvement these are the weights of the best epoch alone. Where weights
    change that no gradient trains, such as the statistics of BatchNormalization, nothing is averaged: the average of
    statistics is not that of the averaged weights. :func:`thaw.fine_tune` does the same with ``Phase(soup=3)``.

    Args:
        validation_data: what is given to ``fit`` as ``validation_data``: arrays ``(x, y)``, a :class:`thaw.Dataset` or
            a ``tf.data.Dataset``.
        count: number of epochs whose weights are kept, from 2. Default 3.
        monitor: name of the metric that decides; ``None`` for the first one that was compiled. Default ``None``.
        mode: ``"max"`` or ``"min"``; ``None`` for the direction that the metric declares. Default ``None``.
        batch_size: examples in a batch of ``validation_data``. Default 32.

    Attributes:
        notes: after ``fit``, sentences about what was averaged; empty where the best epoch is the best.

    Raises:
        ValueError: no validation data; a metric that is not in the logs, or has no direction.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.retention import GreedySoup
        >>> x, y = np.ones((8, 1), "float32"), np.ones((8, 1), "float32")
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False,
        ...                                                                  kernel_initializer="zeros")])
        >>> model.compile(keras.optimizers.SGD(0.85), "mse")  # each step goes past the target, and less so each time
        >>> soup = GreedySoup((x, y))
        >>> _ = model.fit(x, y, epochs=3, validation_data=(x, y), callbacks=[soup], verbose=0)
        >>> soup.notes
        ['The weights of epochs 3 and 2 were averaged: val_loss 0.0054 instead of 0.1176.']
    """

    def __init__(self, validation_data, count=3, *, monitor=None, mode=None, batch_size=32):
        super().__init__()
        self.validation = as_validation(validation_data)
        if self.validation is None:
            raise ValueError("A soup needs validation data to choose by; expected what fit gets as validation_data.")
        self.count, self.monitor, self.mode = as_int("count", count, 2), monitor, mode
        self.batch_size = as_int("batch_size", batch_size, 1)
        self.notes = []

    def on_train_begin(self, logs=None):
        self.best = BestWeights(self.model, *monitor_of(self.model, self.monitor, self.mode))
        self.best.begin(self.count)
        self.best.set_model(self.model)
        self.start = [variable.numpy() for variable in self.model.weights]

    def on_epoch_end(self, epoch, logs=None):
        self.best.on_epoch_end(epoch, logs)

    def on_train_end(self, logs=None):
        try:
            batches = self.validation.ordered(self.batch_size)
            self.notes = average_best_epochs(self.best, self.model, batches, self.start)
        finally:
            self.best.restore()


def average_best_epochs(best, model, batches, start):
    """Average the weights of the best epochs greedily, where the average is better on validation data.

    Args:
        best: :class:`~thaw.training.callbacks.BestWeights` with ``runners_up``; an average that is better becomes its
            best weights. The weights of its model are others afterwards: call ``best.restore()``.
        model: the compiled ``keras.Model`` that was fitted; it may be a part of the one whose weights are kept.
        batches: validation data, as ``evaluate`` takes them.
        start: arrays of the weights at the start of the training, in the order of the whole model's.

    Returns:
        A list of sentences: what was averaged, or why nothing was; empty where the best epoch is the best.
    """
    if not best.runners_up:
        return []
    changed = _changed_statistics(best.whole, start)
    if changed is not None:
        return [f"The best epochs were not averaged: {changed} changed, which no gradient trains."]
    (first, *others), taken, epochs = best.versions(), [], [best.epoch]
    before = value, tie = best.value, best.tie
    weights = None
    for version, other in zip(others, best.runners_up):
        average_weights(best.whole, [first, *taken, version])
        logs = model.evaluate(batches, verbose=0, return_dict=True)
        logs = {f"val_{name}": result for name, result in logs.items()}
        if best.monitor not in logs:  # a callback wrote it
            return [f"The best epochs were not averaged: only callbacks measure {best.monitor}."]
        new = best.measured(logs)
        if best.rank(*new) > best.rank(value, tie):
            (value, tie), weights = new, [variable.numpy() for variable in best.whole.weights]
            taken.append(version)
            epochs.append(other.epoch)
    if weights is None:
        return []
    best.value, best.tie, best.epoch, best.weights, best.runners_up = value, tie, max(epochs), weights, []
    names = f"{', '.join(str(epoch + 1) for epoch in epochs[:-1])} and {epochs[-1] + 1}"
    what = f"{best.monitor} {value:.4f} instead of {before[0]:.4f}"
    if value == before[0]:
        what = f"{best.monitor} {value:.4f} as before, val_loss {tie:.4f} instead of {before[1]:.4f}"
    return [f"The weights of epochs {names} were averaged: {what}."]


def _changed_statistics(model, start):
    """Return the path of a variable that changed though it is not trained; ``None`` where there is none."""
    trained = {id(variable) for variable in model.trainable_variables}
    for variable, value in zip(model.weights, start):
        if id(variable) not in trained and not np.array_equal(variable.numpy(), value):
            return variable.path
    return None
