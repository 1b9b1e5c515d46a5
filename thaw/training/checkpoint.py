"""Checkpoint a run so that it resumes bit-identically."""

import hashlib
import json
import re
import zipfile
from pathlib import Path

import keras  # which brings the types of ml_dtypes, so that NumPy knows bfloat16 by its name
import numpy as np

from thaw._files import write_atomically
from thaw._keras import compile_settings, sublayers
from thaw.data.dataset import Dataset
from thaw.models.state import state_variables
from thaw.tasks import compiled_metrics, metric_name

CHECKPOINT = "checkpoint.npz"  # its name in the folder of a run
FORMAT = 3  # of the file; version 0.1 wrote none
# Of a callback only these change during a fit; copying all its attributes would undo what its constructor did.
_CALLBACK_STATE = ("best", "wait", "cooldown_counter", "best_epoch", "stopped_epoch")


class Checkpoint(keras.callbacks.Callback):
    """Save the whole state of a run after every epoch, and restore it when the run is resumed.

    ``keras.callbacks.BackupAndRestore`` loses the state of dropout and of other callbacks, and forgets what was frozen
    in a second phase. This saves the weights, the state of every random generator in the model, the optimizer, the
    counters of the callbacks, the best weights and those of the runners-up, and the history. The file is written
    atomically: a kill at any moment leaves the last complete one. It has to be the last callback in the list.

    Args:
        file: path of an ``.npz`` file, which holds arrays and JSON and nothing that is executed.
        model: the whole ``keras.Model``; the fitted one may be a part of it.
        best: the :class:`~thaw.training.callbacks.BestWeights` of the run.
        callbacks: a list of callbacks whose counters belong to the state, such as ``EarlyStopping``.
        progress: a dict of JSON values, saved as it is at the end of each epoch.
        start: arrays of the weights at the start of the phase, saved with the rest. Default none.
        resume: what :func:`read_checkpoint` returned, to begin the fit with; ``None`` for a fresh fit.

    Example:
        >>> import keras
        >>> from thaw.training.callbacks import BestWeights
        >>> from thaw.training.checkpoint import Checkpoint, read_checkpoint
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> checkpoint = Checkpoint("run.npz", model, BestWeights(model, "loss", "min"), [], {"phase": 0})
        >>> checkpoint.set_model(model)
        >>> checkpoint.on_epoch_end(0, {"loss": 1.0})
        >>> read_checkpoint("run.npz")[0]["phase"]
        0
    """

    def __init__(self, file, model, best, callbacks, progress, start=(), resume=None):
        super().__init__()
        self.file, self.whole, self.best = Path(file), model, best
        self.callbacks, self.progress, self.start = callbacks, progress, start
        self.resume = resume

    def on_train_begin(self, logs=None):
        for left_over in self.file.parent.glob(f".{self.file.stem}.*{self.file.suffix}"):
            left_over.unlink(missing_ok=True)  # of a process that was killed while it wrote
        # The callbacks before this one have just reset their counters.
        if self.resume is not None:
            meta, arrays = self.resume
            self.resume = None
            assign(variables_of(self.whole), arrays["model"])
            assign(self.model.optimizer.variables, arrays["optimizer"])
            for callback, state in zip(self.callbacks, meta["callbacks"]):
                for name, value in state.items():
                    setattr(callback, name, value)

    def on_epoch_end(self, epoch, logs=None):
        best, kept = self.best.state()
        arrays = {
            "model": [v.numpy() for v in variables_of(self.whole)],
            "optimizer": [v.numpy() for v in self.model.optimizer.variables],
            "start": self.start,
        }
        meta = self.progress | {
            **best,
            "epoch": epoch + 1,
            "stopped": bool(self.model.stop_training),
            "callbacks": [_callback_state(callback) for callback in self.callbacks],
        }
        write_checkpoint(self.file, meta, arrays | kept)


def variables_of(model):
    """Return the weights and the states of random generators and of stateful layers, without the metrics, which a
    model gains in use."""
    return [*model.trainable_variables, *model.non_trainable_variables, *state_variables(model)]


def assign(variables, values):
    """Assign a value to each variable.

    Args:
        variables: a list of Keras variables.
        values: a list of arrays.

    Raises:
        ValueError: there are more of one than of the other.
    """
    if len(variables) != len(values):
        raise ValueError(f"The checkpoint holds {len(values)} arrays where the run has {len(variables)}.")
    for variable, value in zip(variables, values):
        variable.assign(value)


def write_checkpoint(file, meta, arrays):
    """Write a checkpoint atomically.

    Args:
        file: path of an ``.npz`` file.
        meta: a dict of JSON values.
        arrays: a dict from names to lists of arrays.

    Raises:
        OSError: the disk is full or cannot be written to; the file that was there before is unharmed.
    """
    flat = {f"{name}/{i}": np.asarray(array) for name, values in arrays.items() for i, array in enumerate(values)}
    # NumPy has no bfloat16 of its own, and cannot read what it writes of it: such arrays are written as bytes.
    types = {key: array.dtype.name for key, array in flat.items() if array.dtype.isbuiltin == 2}
    flat |= {key: flat[key].view(f"V{flat[key].itemsize}") for key in types}
    text = np.frombuffer(json.dumps(meta | {"format": FORMAT, "types": types}).encode(), np.uint8)
    write_atomically(file, lambda path: np.savez(path, meta=text, **flat))


def read_checkpoint(file):
    """Read a checkpoint.

    Args:
        file: path of the ``.npz`` file.

    Returns:
        ``(meta, arrays)`` as given to :func:`write_checkpoint`.

    Raises:
        ValueError: the file is damaged, or was written by another version of thaw.
    """
    try:
        with open(file, "rb") as opened, np.load(opened, allow_pickle=False) as stored:
            meta = json.loads(stored["meta"].tobytes())
            types, arrays = meta.pop("types", {}), {}
            for key in stored.files:
                name, _, index = key.partition("/")
                if index:
                    array = stored[key]
                    array = array.view(np.dtype(types[key])) if key in types else array
                    arrays.setdefault(name, {})[int(index)] = array
    except (zipfile.BadZipFile, ValueError, TypeError, KeyError, EOFError) as error:  # whose words are NumPy's own
        raise ValueError(f"{file} is damaged; delete it to start the run from its beginning.") from error
    if meta.pop("format", None) != FORMAT:
        raise ValueError(
            f"{file} was written by another version of thaw, and only it can resume the run; finish the run with that "
            f"version, or delete {Path(file).parent} to start from the beginning."
        )
    return meta, {name: [by_index[i] for i in sorted(by_index)] for name, by_index in arrays.items()}


def unfinished_run_error(folder, difference, again="give the same command again to resume it"):
    """Make the error for a folder that holds an unfinished run other than the one that was asked for.

    Args:
        folder: path of the folder.
        difference: what is different about the unfinished run, to be read after "holds an unfinished run".
        again: how it is resumed.

    Returns:
        A ``ValueError``, to be raised.

    Example:
        >>> from thaw.training.checkpoint import unfinished_run_error
        >>> raise unfinished_run_error("run", "with seed = 1, and now it is 2")
        Traceback (most recent call last):
        ValueError: run holds an unfinished run with seed = 1, and now it is 2; give the same command again to resume \
it, name another folder, or delete this one.
    """
    return ValueError(
        f"{folder} holds an unfinished run {difference}; {again}, name another folder, or delete this one."
    )


def _callback_state(callback):
    state = {}
    for name in _CALLBACK_STATE:
        value = getattr(callback, name, None)
        if isinstance(value, (int, float, np.number)) and not isinstance(value, bool):
            state[name] = value if isinstance(value, int) else float(value)
    return state


def fingerprint_run(model, plan, data, batch_size, seed, monitor=()):
    """Hash what the result of a run depends on: weights and layers, compilation, plan, data, batch size and seed.

    Callbacks, and settings of layers such as the rate of a dropout, are not in it.

    Args:
        model: the compiled model, before its first step.
        plan: a :class:`thaw.Plan`.
        data: a tuple of :class:`thaw.Dataset`; streams, which cannot be read twice, and ``None`` are left out.
        batch_size: examples in a batch.
        seed: seed of the order and the augmentation.
        monitor: the metric that decides and its mode; ``()``, the default, where no metric decides.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> import keras
        >>> from thaw import Plan
        >>> from thaw.training.checkpoint import fingerprint_run
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> len(fingerprint_run(model, Plan.named("probe"), (), 32, 0))
        64
    """
    import keras

    digest = hashlib.sha256()
    for part in data:
        if isinstance(part, Dataset):
            digest.update(part.content_keys.tobytes())
            for values in (*keras.tree.flatten(part.y), part.sample_weight):
                if values is not None:
                    digest.update(_bytes(values))
            if part.groups is not None:
                digest.update(b"groups" + _bytes(part.groups))
            # One example as the training sees it: how it is loaded, at what size, and how it is augmented.
            batch = next(iter(part.ordered(1, view=0, seed=seed)))
            for array in keras.tree.flatten(batch if part.y is None else batch[0]):
                digest.update(_bytes(array))
    # The same weights compute something else under another dtype policy.
    layers = [f"{type(layer).__name__} {layer.dtype_policy.name}" for layer in sublayers(model)]
    digest.update(" ".join(layers).encode())
    for variable in model.weights:
        digest.update(variable.numpy().tobytes())
    settings = compile_settings(model)
    losses = map(keras.losses.get, keras.tree.flatten(settings["loss"]))
    for part in (keras.optimizers.get(settings["optimizer"]), *losses):
        config = part.get_config() if hasattr(part, "get_config") else {}
        name = getattr(part, "__name__", type(part).__name__)
        # Of thaw.tasks.smoothed_crossentropy it is not in the config.
        parts = [name, _without_names(config), getattr(part, "label_smoothing", 0.0)]
        digest.update(json.dumps(parts, default=_without_address, sort_keys=True).encode())
    names = [metric_name(metric) for metric in compiled_metrics(model)]  # the first decides which weights are best
    digest.update(str(names).encode())
    digest.update(f"{plan.to_toml()} {batch_size} {seed} {monitor} {keras.__version__}".encode())
    return digest.hexdigest()


def _bytes(values):
    """Return the content of an array as bytes: an array of objects holds addresses, whose content is what counts."""
    if isinstance(values, (bytes, str)):
        return values if isinstance(values, bytes) else values.encode(errors="surrogatepass")
    values = np.asarray(values)
    if not values.dtype.hasobject:
        return values.tobytes()
    if values.ndim == 0:
        return repr(values.item()).encode()
    parts = map(_bytes, values.ravel())
    return b"".join(len(part).to_bytes(8, "little") + part for part in parts)  # with the length, nothing runs together


def _without_names(config):
    """Drop the names that Keras numbers within a process, also of optimizers and losses inside others."""
    if isinstance(config, dict):
        if config.get("class_name") == "__lambda__":  # its code, with path and line number
            return "lambda"
        return {key: _without_names(value) for key, value in config.items() if key != "name"}
    return [_without_names(part) for part in config] if isinstance(config, (list, tuple)) else config


def _without_address(thing):
    """Describe a function or an object without its address, which differs from process to process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", str(thing))
