"""Check numbers and models that a user gives."""

import numbers
import os

MAX_SEED = 2**32 - 1  # the largest that NumPy and Keras take


def as_number(value):
    """Convert a NumPy number to a Python one, which JSON and TOML can hold; return anything else unchanged.

    Args:
        value: any object.

    Example:
        >>> import numpy as np
        >>> from thaw._validation import as_number
        >>> as_number(np.int64(3)), as_number(np.float32(0.5)), as_number("3")
        (3, 0.5, '3')
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return value
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def as_int(name, value, least=0, most=None):
    """Check that a value is a whole number, and return it as a Python int.

    Args:
        name: of the argument, for the message.
        value: int, or a NumPy integer.
        least: smallest valid value. Default 0.
        most: largest valid value; ``None`` (default) for any.

    Raises:
        ValueError: not a whole number, too small or too large.

    Example:
        >>> from thaw._validation import as_int
        >>> as_int("batch_size", 0, 1)
        Traceback (most recent call last):
        ValueError: batch_size=0; expected a whole number from 1.
    """
    plain = as_number(value)
    if not isinstance(plain, int) or isinstance(plain, bool) or not least <= plain <= (most or 2**63 - 1):
        raise ValueError(f"{name}={value!r}; expected a whole number from {least}{f' to {most}' if most else ''}.")
    return plain


def as_seed(seed):
    """Check a seed, and return it as a Python int.

    Args:
        seed: int, or a NumPy integer, 0 to 2**32 - 1.

    Raises:
        ValueError: anything else.

    Example:
        >>> from thaw._validation import as_seed
        >>> as_seed(-1)
        Traceback (most recent call last):
        ValueError: seed=-1; expected a whole number from 0 to 4294967295.
    """
    return as_int("seed", seed, 0, MAX_SEED)


def check_model(model, name="model"):
    """Refuse what is no ``keras.Model``; the path of one is the likely mistake.

    Args:
        model: any object.
        name: of the argument, for the message. Default ``"model"``.

    Raises:
        TypeError: it is no model.

    Example:
        >>> from thaw._validation import check_model
        >>> check_model("net.keras")
        Traceback (most recent call last):
        TypeError: model is a str; expected a keras.Model: load it by keras.saving.load_model, or thaw.backbone.
    """
    import keras

    if isinstance(model, keras.Model):
        return
    hint = ""
    if isinstance(model, (str, os.PathLike)):
        hint = ": load it by keras.saving.load_model, or thaw.backbone"
    elif isinstance(model, keras.Layer):
        hint = ": put the layer into keras.Sequential([keras.Input(shape), layer])"
    elif callable(model):
        hint = ": call the function that builds it"
    raise TypeError(f"{name} is a {type(model).__name__}; expected a keras.Model{hint}.")


def all_finite(batch):
    """Check that no number in a batch is NaN or infinite; integers and texts never are.

    Args:
        batch: an array or a tensor, or a tuple, list or dict of these.

    Returns:
        bool.

    Example:
        >>> from thaw._validation import all_finite
        >>> all_finite({"a": [1.0, 2.0], "b": ["x"]}), all_finite([[1.0], [float("nan")]])
        (True, False)
    """
    import keras
    import numpy as np

    arrays = map(np.asarray, keras.tree.flatten(batch))
    return all(np.isfinite(a).all() for a in arrays if a.dtype.kind == "f")
