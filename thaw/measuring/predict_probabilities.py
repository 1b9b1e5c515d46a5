"""Labels and probabilities of every example, in one pass."""

from __future__ import annotations

import numpy as np

from thaw.examples import Examples
from thaw.probabilities import probabilities


def predict_probabilities(model, data, *, batch_size=32):
    """Run a classifier over labelled data.

    Args:
        model: a ``keras.Model`` that ends in a softmax, in logits, or in a single sigmoid unit.
        data: :class:`thaw.Examples` (read in order, not augmented), arrays ``(x, y)``, with a dict or tuple of arrays
            for ``x`` where there are several inputs, or a batched, finite ``tf.data.Dataset`` of ``(x, y)``. Weights
            are not looked at.
        batch_size: examples in a batch; a data set keeps its own.

    Returns:
        ``(y, p)``: class numbers ``(n,)`` and float64 probabilities ``(n, classes)``, in the data's order.

    Raises:
        ValueError: data that cannot be read to an end, or labels that are not one class for each example.

    Example:
        >>> import keras, numpy as np
        >>> from thaw import predict_probabilities
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Softmax()])
        >>> y, p = predict_probabilities(model, (np.zeros((3, 2)), np.array([0, 1, 1])))
        >>> y.tolist(), p[0].tolist()
        ([0, 1, 1], [0.5, 0.5])
    """
    labels = []
    batches, examples = _batches(data, batch_size)

    def inputs():
        for batch in batches:
            if not isinstance(batch, (tuple, list)) or len(batch) < 2:
                raise ValueError("The data have inputs and no labels; expected (x, y).")
            labels.append(np.asarray(batch[1]))
            yield batch[0]

    p = probabilities(model, inputs(), examples=examples)
    return _class_numbers(np.concatenate(labels), p), p


def _batches(data, batch_size):
    """Batches of the data, and how many examples there are: about, for a data set, or ``None`` if it cannot say."""
    data = Examples.of(data)
    if isinstance(data, Examples):
        return data.ordered(batch_size), len(data)
    import tensorflow as tf

    if not isinstance(data, tf.data.Dataset):
        raise ValueError(
            f"The data are a {type(data).__name__}; expected thaw.Examples, arrays (x, y) or a tf.data.Dataset."
        )
    batches = int(data.cardinality())
    if batches == tf.data.INFINITE_CARDINALITY:
        raise ValueError("The data set never ends; measure on one without repeat().")
    return data, batches * batch_size if batches >= 0 else None


def _class_numbers(y, p):
    n, classes = p.shape
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim == 2 and y.shape[1] == classes:
        if not (np.isin(y, (0, 1)).all() and (y.sum(axis=1) == 1).all()):
            raise ValueError("The labels are shares of several classes; expected one class for each example.")
        y = y.argmax(axis=1)
    if y.shape != (n,):
        raise ValueError(
            f"There are labels of shape {y.shape} for {n} examples; expected one class number for each. "
            "A tf.data.Dataset must be batched: data.batch(32)."
        )
    if y.dtype.kind not in "iub" and not (y.dtype.kind == "f" and (y == np.floor(y)).all()):
        raise ValueError(f"The labels are {y.dtype}; expected class numbers 0 to {classes - 1}.")
    return y.astype(np.int64)
