"""Labels as class numbers, in whatever form they come."""

import numpy as np


def class_numbers(y, expected):
    """Labels as one whole number for each example.

    Args:
        y: ``(n,)`` or ``(n, 1)`` whole numbers, or one-hot rows ``(n, classes)``.
        expected: what is to be said where they are something else, the rest of a sentence.

    Returns:
        ``(n,)``, in the type that they had; where they were one-hot rows, the places of the ones.

    Raises:
        ValueError: they are not one class for each example.

    Example:
        >>> from thaw.measuring.class_numbers import class_numbers
        >>> class_numbers([[0, 1], [1, 0]], "expected classes.").tolist()
        [1, 0]
    """
    y = np.asarray(y)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim == 2 and np.isin(y, (0, 1)).all() and (y.sum(axis=1) == 1).all():
        y = y.argmax(axis=1)
    whole = y.dtype.kind in "iub" or (y.dtype.kind == "f" and (y == np.floor(y)).all())
    if y.ndim != 1 or not whole:
        raise ValueError(f"The labels are {y.dtype} of shape {y.shape}; {expected}")
    return y
