"""What a finished model says about new inputs, by name."""

from __future__ import annotations

import numpy as np

from thaw.examples import Examples
from thaw.probabilities import probabilities


def predict(model, inputs, labels, *, top=3, batch_size=32):
    """Name the most probable classes of each input.

    Args:
        model: a ``keras.Model`` that ends in a softmax, in logits, or in a single sigmoid unit.
        inputs: an array ``(n, ...)`` as the model takes it, pictures as pixels 0 to 255; or
            :class:`thaw.Examples`.
        labels: names of the classes, in the order of their numbers.
        top: how many classes to name for each input.
        batch_size: inputs in a batch.

    Returns:
        A list with a dict for each input: ``label`` and ``probability`` of the most probable class, and
        ``top``, a list of ``{"label", "probability"}``, most probable first.

    Raises:
        ValueError: inputs of another shape than the model takes, or labels that do not fit it.

    Example:
        >>> import keras, numpy as np
        >>> from thaw import predict
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Softmax()])
        >>> predict(model, np.array([[0.0, np.log(3)]]), ["cat", "dog"], top=1)[0]["label"]
        'dog'
    """
    if isinstance(top, bool) or not isinstance(top, int) or top < 1:
        raise ValueError(f"top={top!r}; expected a whole number from 1.")
    labels = [str(name) for name in labels]
    if isinstance(inputs, Examples):
        batches = (batch[0] for batch in inputs.ordered(batch_size))
    else:
        inputs = np.asarray(inputs)
        _check_shape(model, inputs)
        if len(inputs) == 0:
            return []
        batches = (inputs[i : i + batch_size] for i in range(0, len(inputs), batch_size))
    p = probabilities(model, batches, examples=len(inputs))
    if p.shape[1] != len(labels):
        raise ValueError(f"There are {len(labels)} labels and {p.shape[1]} classes; expected one label for each.")
    found = []
    for row in p:
        order = np.argsort(-row, kind="stable")[:top]
        best = [{"label": labels[c], "probability": float(row[c])} for c in order]
        found.append({**best[0], "top": best})
    return found


def _check_shape(model, inputs):
    expected = tuple(model.input_shape)
    fits = inputs.ndim == len(expected) and all(
        want in (None, have) for want, have in zip(expected[1:], inputs.shape[1:])
    )
    if not fits or inputs.dtype.kind not in "biuf":
        raise ValueError(
            f"The inputs are {inputs.dtype} of shape {inputs.shape}; {model.name} takes numbers of shape "
            f"(n, {', '.join(str(n or 'any') for n in expected[1:])})."
        )
