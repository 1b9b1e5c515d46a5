"""Inputs without their labels, from any form of data."""

from __future__ import annotations

import numpy as np

from thaw.examples import Examples


def inputs_of(data, batch_size, digest=None):
    """Read batches of inputs, in the data's order and not augmented; labels and weights are left out.

    Args:
        data: :class:`thaw.Examples`, arrays ``(x, y)``, one array ``x``, or a batched, finite
            ``tf.data.Dataset`` of ``(x, ...)`` or ``x``.
        batch_size: examples in a batch; a data set keeps its own.
        digest: an object of ``hashlib`` that is given the bytes of what a data set yields, because only a data set
            may come in another order the next time.

    Yields:
        Inputs as a model takes them, with the batch axis in front.

    Raises:
        ValueError: another kind of data, or a data set that never ends.

    Example:
        >>> import numpy as np
        >>> from thaw.measuring.inputs_of import inputs_of
        >>> [len(batch) for batch in inputs_of(np.zeros((5, 2)), 2)]
        [2, 2, 1]
    """
    import keras
    import tensorflow as tf

    own_order = isinstance(data, tf.data.Dataset)
    if isinstance(data, (tuple, list)):
        data = np.asarray(data[0])
    if isinstance(data, np.ndarray):
        data = Examples(x=data, y=np.zeros(len(data), np.int64))
    if isinstance(data, Examples):
        data = Examples.of(data).ordered(batch_size)
    if not isinstance(data, tf.data.Dataset):
        raise ValueError(
            f"The data are a {type(data).__name__}; expected thaw.Examples, arrays (x, y), an array x or a "
            "tf.data.Dataset."
        )
    if int(data.cardinality()) == tf.data.INFINITE_CARDINALITY:
        raise ValueError("The data set never ends; measure on one without repeat().")
    for batch in data:
        x = batch[0] if isinstance(batch, (tuple, list)) else batch
        if digest is not None and own_order:
            for part in keras.tree.flatten(x):
                digest.update(np.ascontiguousarray(part).tobytes())
        yield x
