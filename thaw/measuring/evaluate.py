"""How good a model is, and how sure one can be of it."""

from __future__ import annotations

from thaw.measuring.predict_probabilities import predict_probabilities
from thaw.measuring.scores import scores


def evaluate(model, data, *, labels=None, batch_size=32, seed=0):
    """Measure a classifier on labelled data; the model is the same afterwards, to the bit.

    Args:
        model: a ``keras.Model`` that ends in a softmax, in logits, or in one sigmoid unit; compiled or not.
        data: :class:`thaw.Examples`, arrays ``(x, y)``, or a batched, finite ``tf.data.Dataset`` of
            ``(x, y)``.
        labels: names of the classes, in the order of their numbers; ``None`` for ``"0"``, ``"1"`` …
        batch_size: examples in a batch.
        seed: of the resampling behind the intervals.

    Returns:
        The dict of :func:`thaw.scores`.

    Raises:
        ValueError: data or a model that cannot be measured; the message says what was expected.

    Example:
        >>> import keras, numpy as np
        >>> from thaw import evaluate
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Softmax()])
        >>> x = np.array([[2.0, 0.0], [0.0, 2.0], [0.0, 1.0], [1.0, 0.0]])
        >>> evaluate(model, (x, np.array([0, 1, 0, 0])))["accuracy"]["value"]
        0.75
    """
    y, p = predict_probabilities(model, data, batch_size=batch_size)
    return scores(y, p, labels=labels, seed=seed)
