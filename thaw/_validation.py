"""Check numbers that a user gives."""

import numbers


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


def as_int(name, value, least=0):
    """Check that a value is a whole number, and return it as a Python int.

    Args:
        name: of the argument, for the message.
        value: int, or a NumPy integer.
        least: smallest valid value. Default 0.

    Raises:
        ValueError: not a whole number, or too small.

    Example:
        >>> from thaw._validation import as_int
        >>> as_int("batch_size", 0, 1)
        Traceback (most recent call last):
        ValueError: batch_size=0; expected a whole number from 1.
    """
    plain = as_number(value)
    if not isinstance(plain, int) or isinstance(plain, bool) or not least <= plain < 2**63:
        raise ValueError(f"{name}={value!r}; expected a whole number from {least}.")
    return plain


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
