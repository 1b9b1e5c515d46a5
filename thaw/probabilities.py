"""What a classifier says, as probabilities, whatever its last layer puts out."""

from __future__ import annotations

import numpy as np

from thaw.forward import forward, held


def probabilities(model, batches, examples=None):
    """Run a classifier over batches of inputs and give one probability for each class.

    A softmax is taken as it is; a linear last layer puts out logits, which go through the softmax; a single
    unit is the probability, or the logit, of class 1. The model is only called: its weights, its compilation
    and the state of its random layers are the same afterwards.

    Args:
        model: a ``keras.Model`` with one output of shape ``(n, classes)`` or ``(n, 1)``.
        batches: iterable of inputs as the model takes them, each with the batch axis in front. The first one's
            size is that at which the model runs.
        examples: about how many inputs will come, so that many of them go through the fastest runtime
            (:func:`thaw.forward.forward`); ``None`` where it is not known: TensorFlow computes them.

    Returns:
        Float64 array ``(n, classes)`` whose rows sum to 1.

    Raises:
        ValueError: the model does not put out one score for each class, or not a number.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.probabilities import probabilities
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
        >>> probabilities(model, [np.zeros((1, 2))]).tolist()
        [[0.5, 0.5]]
    """
    with held(model.non_trainable_variables):
        rows = list(_scores(model, batches, examples))
    if not rows:
        raise ValueError("There are no inputs; expected at least one batch.")
    return as_probabilities(model, np.concatenate(rows))


def _scores(model, batches, examples):
    """The model's one output, float64, in pieces."""
    import keras
    import tensorflow as tf

    run = None
    for batch in batches:
        batch = keras.tree.map_structure(lambda a: a if isinstance(a, np.ndarray) else tf.convert_to_tensor(a), batch)
        rows = max((int(a.shape[0]) for a in keras.tree.flatten(batch) if len(a.shape)), default=1)
        if run is None and rows:
            runtime = "tensorflow" if examples is None else "auto"
            run = forward(model, rows, runtime=runtime, examples=examples)
        for begin in range(0, rows, run.batch_size if run else 1):
            piece = slice(begin, begin + run.batch_size)
            out = run(batch if rows <= run.batch_size else keras.tree.map_structure(lambda a: a[piece], batch))  # noqa: B023
            if len(out) != 1:
                raise ValueError(
                    f"{model.name} has {len(out)} outputs; expected one with a score for each class. "
                    "Make a keras.Model with that output."
                )
            yield np.asarray(out[0], np.float64)


def as_probabilities(model, out):
    """What a model put out, float64 ``(n, classes)`` or ``(n, 1)``, as one probability for each class."""
    if out.ndim != 2:
        raise ValueError(
            f"{model.name} puts out shape {out.shape[1:]} for one input; expected a score for each class. "
            "Put a head on it: attach_head(model, classes)."
        )
    wrong = int((~np.isfinite(out)).any(axis=1).sum())
    if wrong:
        raise ValueError(
            f"{model.name} puts out NaN or infinity for {wrong} of {len(out)} inputs; expected numbers. "
            "Its weights may be damaged: load an earlier model."
        )
    kind, single = _kind(model, out), out.shape[1] == 1
    if kind == "sigmoid" and not single:
        raise ValueError(
            f"{model.name} ends in {out.shape[1]} sigmoid units, which are independent of one another; "
            "expected one class for each input: a softmax, or a single sigmoid unit."
        )
    if kind == "softmax" and single:
        raise ValueError(
            f"{model.name} ends in a softmax over a single unit, which is always 1; give it 2 units, or a sigmoid."
        )
    if kind == "logits":
        out = np.concatenate([np.zeros_like(out), out], axis=1) if single else out
        out = np.exp(out - out.max(axis=1, keepdims=True))
    elif single:
        out = np.concatenate([1 - out, out], axis=1)
    return out / out.sum(axis=1, keepdims=True)  # half precision does not sum to 1 by itself


def _kind(model, out):
    """``softmax``, ``sigmoid`` or ``logits``: by the last layer, or else by the numbers."""
    import keras

    last = model
    while isinstance(last, keras.Model):
        # Not a functional model's layers: it may end in an operation such as keras.ops.softmax. The layers of a
        # subclassed model stand in the order in which they were made, which says nothing.
        inside = last.layers if isinstance(last, keras.Sequential) else getattr(last, "operations", None)
        last = inside[-1] if inside else None
    if isinstance(last, keras.layers.Softmax):
        return "softmax"
    activation = getattr(last, "activation", None)
    if activation in (keras.activations.softmax, keras.activations.sigmoid):
        return activation.__name__
    if activation is keras.activations.linear:
        return "logits"
    if out.min() < 0 or out.max() > 1:
        return "logits"
    if out.shape[1] == 1:
        return "sigmoid"
    return "softmax" if np.allclose(out.sum(axis=1), 1, atol=1e-2) else "logits"
