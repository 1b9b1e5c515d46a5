"""Weights that let a rare class count as much as a common one."""

from __future__ import annotations

import numpy as np


def balanced_weights(y: np.ndarray, classes: int) -> dict[int, float] | None:
    """Weigh each class by how rare it is, where the classes are uneven enough to matter.

    The weight of class c is n / (k * n_c), with n examples in k classes, n_c of them in c: a weighted epoch
    then sees every class equally, and the mean weight of an example is 1. A class without examples gets
    weight 1 and is not counted in k.

    Args:
        y: Class numbers, shape (n,), 0 to classes - 1.
        classes: How many classes there are.

    Returns:
        Class number to weight, for `model.fit(class_weight=...)`; None where the rarest class has at least a
        third of the examples of the commonest.

    Raises:
        ValueError: `y` is empty, or holds a number outside 0 to classes - 1.

    Source: G. King and L. Zeng, "Logistic Regression in Rare Events Data", Political Analysis 9, 2001.

    Example:
        >>> balanced_weights([0, 0, 0, 0, 0, 0, 0, 1], classes=2)
        {0: 0.5714285714285714, 1: 4.0}
        >>> balanced_weights([0, 0, 0, 1], classes=2) is None
        True
    """
    y = np.asarray(y)
    if y.ndim != 1 or y.size == 0:
        raise ValueError(f"y has shape {y.shape}, expected (n,) with at least one class number")
    if y.min() < 0 or y.max() >= classes:
        raise ValueError(f"y holds class numbers from {y.min()} to {y.max()}, expected 0 to {classes - 1}")
    counts = np.bincount(y, minlength=classes)
    present = counts[counts > 0]
    if 3 * present.min() >= present.max():
        return None
    return {c: float(y.size / (present.size * n)) if n else 1.0 for c, n in enumerate(counts)}
