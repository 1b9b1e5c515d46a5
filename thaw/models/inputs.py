"""What a model takes: the names, shapes and types of its inputs."""

from __future__ import annotations

import numpy as np


def check_inputs(model, x):
    """Refuse inputs of another shape or name than a model takes, on which a layer would fail obscurely or not at all.

    Args:
        model: a ``keras.Model``; of a subclassed one or a function no inputs are known, and nothing is refused.
        x: one batch, as the model takes it.

    Raises:
        ValueError: another shape, other names, or another number of inputs.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.models.inputs import check_inputs
        >>> net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)], name="net")
        >>> check_inputs(net, np.zeros((8, 3)))
        Traceback (most recent call last):
        ValueError: net is given inputs of shape (3,); expected (4,). Resize the examples, or build the model for it.
    """
    for given, own in match_inputs(model, x):
        shape, expected = tuple(given.shape[1:]), tuple(own.shape[1:])
        if not fits_shape(shape, expected):
            raise ValueError(
                f"{model.name} is given inputs of shape {shape}; expected {expected}. Resize the examples, or build "
                "the model for it."
            )


def match_inputs(model, x, subject="The inputs"):
    """Pair the inputs that are given with those that a model declares.

    Args:
        model: a ``keras.Model``, or a function.
        x: one batch, or its ``tf.TensorSpec``, as the model takes it.
        subject: how an error calls the inputs. Default ``"The inputs"``.

    Returns:
        A list of ``(given, declared)``; empty where the model declares none, as a subclassed one does.

    Raises:
        ValueError: other names, or another number of inputs.
    """
    import keras

    inputs, structure = getattr(model, "inputs", None) or [], getattr(model, "input", None)
    if not inputs:
        return []
    if isinstance(x, dict):
        names = [tensor.name for tensor in inputs]
        if isinstance(structure, dict):
            keys = {id(tensor): key for key, tensor in structure.items()}
            names = [keys.get(id(tensor)) for tensor in inputs]
            if None in names:
                return []  # a dict of lists, say
        if missing := [name for name in names if name not in x]:
            raise ValueError(
                f"{subject} are named {', '.join(map(str, x))}; {model.name} takes {', '.join(names)}: {missing[0]} is "
                "missing."
            )
        x = [x[name] for name in names]
    given = keras.tree.flatten(x)
    if len(given) != len(inputs):
        raise ValueError(f"{subject} are {len(given)} arrays; {model.name} takes {len(inputs)}.")
    return list(zip(given, inputs))


def fits_shape(shape, expected):
    """Say whether a model takes a shape; ``None`` is any size, and a last axis of 1 may be missing or too much.

    Example:
        >>> from thaw.models.inputs import fits_shape
        >>> fits_shape((None, 8), (4, 8)), fits_shape((4,), (4, 1)), fits_shape((3,), (4,))
        (True, True, False)
    """
    if len(shape) == len(expected) - 1 and expected[-1] == 1:
        shape = (*shape, 1)  # as Keras does
    elif len(shape) == len(expected) + 1 and shape[-1] == 1:
        shape = shape[:-1]
    return len(shape) == len(expected) and all(None in (a, b) or a == b for a, b in zip(shape, expected))


def as_declared(model, x):
    """Cast numbers to the types that a model's inputs declare, to which Keras casts them anyway.

    Data of two types, such as whole numbers to train on and floats to validate on, are then the same to a runtime.

    Args:
        model: a ``keras.Model``; of a subclassed one or a function no types are known, and nothing is cast.
        x: one batch of inputs, as the model takes it: an array, or a list or dict of arrays.

    Returns:
        A list of arrays and tensors, in the order of ``keras.tree.flatten``; texts, and what has the type already, as
        they are.

    Raises:
        ValueError: other names, or another number of inputs.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.models.inputs import as_declared
        >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
        >>> as_declared(net, np.array([[1, 2]]))[0].dtype.name
        'float32'
    """
    import keras
    import tensorflow as tf

    flat = [a if isinstance(a, np.ndarray) else tf.convert_to_tensor(a) for a in keras.tree.flatten(x)]
    # A dict is flattened by its keys, and a model has its inputs in an order of its own.
    for i, own in match_inputs(model, keras.tree.pack_sequence_as(x, list(range(len(flat))))):
        a = flat[i]
        numeric = a.dtype.kind in "biuf" if isinstance(a, np.ndarray) else a.dtype != tf.string
        if numeric and own.dtype != "string" and tf.as_dtype(a.dtype).name != own.dtype:
            flat[i] = tf.cast(a, own.dtype)
    return flat
