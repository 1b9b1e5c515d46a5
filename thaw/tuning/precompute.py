"""Run what stands still once, and keep what it says about every example."""

import dataclasses
import functools
import os
import shutil
from pathlib import Path

import numpy as np

from thaw.examples import Examples


def precompute(prefix, examples, file, *, batch_size=32, views=None, progress=None):
    """Run ``prefix`` once over the examples and keep its output in a file that is read by memory map.

    In TensorFlow on a CPU the output of one picture has the same bits wherever it stands in a batch of the
    same size; run the prefix at the batch size of the training, and training on what was kept gives what
    training through the prefix would have given.

    Args:
        prefix: from :func:`thaw.split`; run with ``training=False``.
        examples: what goes in.
        file: where the output is kept; written beside and renamed, an ``.npy``.
        batch_size: of the training that follows.
        views: keep this many augmented versions of each example, one for each epoch in turn; ``None`` for
            the example as it is.
        progress: called with (done, total) after each batch.

    Returns:
        :class:`thaw.Examples` with the prefix's output for ``x``.

    Raises:
        OSError: the disk is full.
        ValueError: the file is there already, and is another run's.

    Example:
        >>> import keras, numpy as np
        >>> from thaw import Examples, precompute
        >>> double = keras.Sequential([keras.Input((1,)), keras.layers.Rescaling(2.0)])
        >>> examples = Examples(x=np.array([[1.0], [2.0]], "float32"), y=np.array([0, 1]))
        >>> np.asarray(precompute(double, examples, "doubled.npy").x).tolist()
        [[2.0], [4.0]]
    """
    import tensorflow as tf

    file = Path(file)
    n, steps = len(examples), examples.steps(batch_size)
    shape = (n, *prefix.output_shape[1:])
    if not file.exists():
        run = tf.function(lambda x: prefix(x, training=False), reduce_retracing=True)
        beside = file.with_name(file.name + ".partial")
        out = prefix.outputs[0].dtype
        dtype = np.dtype("float32" if out == "bfloat16" else out)  # NumPy has no bfloat16
        kept = np.lib.format.open_memmap(beside, "w+", dtype, (views, *shape) if views else shape)
        _reserve(beside)
        for view in range(views or 1):
            rows = kept[view] if views else kept
            batches = examples.ordered(batch_size, view=view if views else None)
            for step, (x, *_) in enumerate(batches):
                begin = step * batch_size
                rows[begin : begin + batch_size] = _full(run, x, batch_size)
                if progress:
                    progress(view * steps + step + 1, (views or 1) * steps)
        kept.flush()
        del kept
        os.replace(beside, file)
    x = np.load(file, mmap_mode="r")
    expected = (views, *shape) if views else shape
    if x.shape != expected:
        raise ValueError(f"{file} holds an array of shape {x.shape} from another run; expected {expected}; delete it.")
    return dataclasses.replace(examples, x=x, load=None, augment=None, keys=None, views=views)


def precompute_phase(parts, phase, train, validation, run):
    """The data of one phase behind what stands still, or ``None`` where that cannot be kept.

    Args:
        parts: from :func:`thaw.split`.
        phase: the phase; its ``views`` say how many versions of each training example to keep.
        train: what to train on.
        validation: what to validate on, or ``None``.
        run: where to work, at what batch size, with what seed, and whom to tell.
    """
    prefix, _ = parts
    if not isinstance(train, Examples) or not isinstance(validation, Examples | None):
        return None  # a data set is read in its own order only
    views = phase.views if train.augment is not None else None
    work = [(train, "train", views)] + ([] if validation is None else [(validation, "validation", None)])
    # Named by what they are made from: a run that was killed may have left its own in the folder.
    begin = f"features-{run.log['identity'][:16]}-{run.log['phase']}"
    files = [run.work / f"{begin}-{name}.npy" for _, name, _ in work]
    item = 4 * int(np.prod(prefix.output_shape[1:]))
    need = sum(item * len(part) * (v or 1) for (part, _, v), file in zip(work, files) if not file.exists())
    free = shutil.disk_usage(run.work).free
    if need > 0.8 * free:
        note = f'Phase "{phase.name}": {need / 1e9:.1f} GB of activations do not fit on the disk.'
        run.log["notes"] += [note] if note not in run.log["notes"] else []
        return None
    total = sum(part.steps(run.batch_size) * (views or 1) for part, _, views in work)
    kept, before = [], 0
    for (part, _, views), file in zip(work, files):
        tell = functools.partial(_tell, run, before, total)
        kept.append(precompute(prefix, part, file, batch_size=run.batch_size, views=views, progress=tell))
        before += part.steps(run.batch_size) * (views or 1)
    return kept[0], kept[1] if validation is not None else None


def _reserve(file):
    """Take the room on the disk now: a memory map that finds the disk full later kills the process."""
    with open(file, "r+b") as opened:
        try:
            os.posix_fallocate(opened.fileno(), 0, os.path.getsize(file))
        except OSError as error:
            file.unlink()
            raise OSError(error.errno, f"{file} does not fit on the disk ({error.strerror}). Make room.") from error


def _tell(run, before, total, done, _):
    run.tell("on_precompute", before + done, total)


def _full(run, x, batch_size):
    """Run a batch that is short at its full size: another size would give other bits."""
    import tensorflow as tf

    short = batch_size - int(x.shape[0])
    if short == 0:
        return run(x).numpy()
    padded = tf.concat([x, tf.repeat(x[:1], short, axis=0)], axis=0)
    return run(padded).numpy()[: x.shape[0]]
