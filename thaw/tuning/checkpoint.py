"""Everything a run needs to go on to the bit, in one file."""

import json
import os
import zipfile
from pathlib import Path

import keras
import numpy as np

# Of a callback only these move during a fit; copying all its attributes would undo what its constructor did.
_CALLBACK_STATE = ("best", "wait", "cooldown_counter", "best_epoch", "stopped_epoch")


class Checkpoint(keras.callbacks.Callback):
    """Write the whole state of a run after every epoch, and put it back when the run goes on.

    ``keras.callbacks.BackupAndRestore`` loses the state of dropout and of other callbacks, and forgets
    what was frozen in a second phase. This keeps the weights, the state of every random generator in the
    model, the optimizer, the callbacks' counters, the best weights, and the history. The file is written
    beside and renamed: a kill at any moment leaves the last whole one.

    Args:
        file: where; an ``.npz`` that holds arrays and JSON and nothing that is run.
        model: the whole model.
        best: the :class:`~thaw.tuning.best_weights.BestWeights` of the run.
        others: callbacks whose counters belong to the state.
        progress: dictionary of plain values, saved as it is at the end of each epoch.
        start: weights at the start of the phase, saved along.

    Example:
        >>> import keras
        >>> from thaw.tuning.best_weights import BestWeights
        >>> from thaw.tuning.checkpoint import Checkpoint, read_checkpoint
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> checkpoint = Checkpoint("run.npz", model, BestWeights(model, "loss"), [], {"phase": 0})
        >>> checkpoint.set_model(model)
        >>> checkpoint.on_epoch_end(0, {"loss": 1.0})
        >>> read_checkpoint("run.npz")[0]["phase"]
        0
    """

    def __init__(self, file, model, best, others, progress, start=()):
        super().__init__()
        self.file, self.whole, self.best = Path(file), model, best
        self.others, self.progress, self.start = others, progress, start
        self.restored = None  # what read_checkpoint returned, while a run is being taken up again

    def on_train_begin(self, logs=None):
        # Last of the callbacks: the others have just set their counters back to nothing.
        if self.restored is not None:
            meta, arrays = self.restored
            self.restored = None
            assign(variables_of(self.whole), arrays["model"])
            assign(self.model.optimizer.variables, arrays["optimizer"])
            for callback, state in zip(self.others, meta["callbacks"]):
                for name, value in state.items():
                    setattr(callback, name, value)

    def on_epoch_end(self, epoch, logs=None):
        arrays = {
            "model": [v.numpy() for v in variables_of(self.whole)],
            "optimizer": [v.numpy() for v in self.model.optimizer.variables],
            "best": self.best.weights or [],
            "start": self.start,
        }
        meta = self.progress | {
            "epoch": epoch + 1,
            "stopped": bool(self.model.stop_training),
            "best": [self.best.value, self.best.tie, self.best.epoch],
            "callbacks": [_state(callback) for callback in self.others],
        }
        write_checkpoint(self.file, meta, arrays)


def variables_of(model):
    """Weights and the states of random generators, without metrics, which grow while a model is used."""
    return [*model.trainable_variables, *model.non_trainable_variables]


def assign(variables, values):
    """Give each variable its value.

    Raises:
        ValueError: they do not belong together.
    """
    if len(variables) != len(values):
        raise ValueError(f"The checkpoint holds {len(values)} arrays where the run has {len(variables)}.")
    for variable, value in zip(variables, values):
        variable.assign(value)


def write_checkpoint(file, meta, arrays):
    """Write ``meta`` (JSON) and ``arrays`` (lists of arrays by name) beside and rename."""
    file = Path(file)
    beside = file.with_name(file.name + ".partial")
    flat = {f"{name}/{i}": a for name, list_ in arrays.items() for i, a in enumerate(list_)}
    text = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    try:
        with open(beside, "wb") as out:
            np.savez(out, meta=text, **flat)
            out.flush()
            os.fsync(out.fileno())
        os.replace(beside, file)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise OSError(
            error.errno,
            f"{file} could not be written ({error.strerror}); the checkpoint of the epoch before is intact. "
            "Make room and give the same command again",
        ) from error


def read_checkpoint(file):
    """Return ``(meta, arrays)`` as given to :func:`write_checkpoint`.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        with np.load(file, allow_pickle=False) as stored:
            meta = json.loads(stored["meta"].tobytes())
            arrays = {}
            for key in stored.files:
                name, _, index = key.partition("/")
                if index:
                    arrays.setdefault(name, {})[int(index)] = stored[key]
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError) as error:
        raise ValueError(f"{file} is damaged ({error}); delete it to start the run from its beginning.") from error
    return meta, {name: [by[i] for i in sorted(by)] for name, by in arrays.items()}


def _state(callback):
    state = {}
    for name in _CALLBACK_STATE:
        value = getattr(callback, name, None)
        if isinstance(value, (int, float, np.number)) and not isinstance(value, bool):
            state[name] = value if isinstance(value, int) else float(value)
    return state
