"""Numbers as Python has them, also where NumPy made them, and whether all of a batch are numbers."""

import numbers


def plain_number(value):
    """A number of NumPy's as one of Python's, which JSON and TOML can hold; anything else as it is.

    Args:
        value: anything.

    Example:
        >>> import numpy as np
        >>> from thaw.number import plain_number
        >>> plain_number(np.int64(3)), plain_number(np.float32(0.5)), plain_number("3")
        (3, 0.5, '3')
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return value
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def whole_number(name, value, least=0):
    """A whole number as Python has it.

    Args:
        name: what it is called, for the message.
        value: what was given.
        least: the smallest that can be meant.

    Raises:
        ValueError: it is something else.

    Example:
        >>> from thaw.number import whole_number
        >>> whole_number("batch_size", 0, 1)
        Traceback (most recent call last):
        ValueError: batch_size=0; expected a whole number from 1.
    """
    plain = plain_number(value)
    if not isinstance(plain, int) or isinstance(plain, bool) or not least <= plain < 2**63:
        raise ValueError(f"{name}={value!r}; expected a whole number from {least}.")
    return plain


def all_finite(batch):
    """Is no number in a batch NaN or infinity? Whole numbers and texts never are.

    Args:
        batch: an array or a tensor, or a tuple, list or dict of these.

    Example:
        >>> from thaw.number import all_finite
        >>> all_finite({"a": [1.0, 2.0], "b": ["x"]}), all_finite([[1.0], [float("nan")]])
        (True, False)
    """
    import keras
    import numpy as np

    arrays = map(np.asarray, keras.tree.flatten(batch))
    return all(np.isfinite(a).all() for a in arrays if a.dtype.kind == "f")
