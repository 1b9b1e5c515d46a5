"""Which part of a cross-validation each example is in."""

from __future__ import annotations

import numpy as np


def stratified_folds(y, folds=5, seed=0):
    """Deal examples into folds of equal size, each class evenly.

    Args:
        y: ``(n,)`` class numbers; where there are no classes, as many zeros.
        folds: number of folds.
        seed: of the shuffling within each class.

    Returns:
        ``(n,)`` fold numbers, 0 to ``folds - 1``. The sizes of two folds differ by at most 1, and so do their
        counts of any class.

    Raises:
        ValueError: fewer than two folds, or fewer examples than folds.

    Example:
        >>> import numpy as np
        >>> from thaw.measuring.stratified_folds import stratified_folds
        >>> fold = stratified_folds(np.array([0, 0, 0, 1, 1, 1]), folds=3)
        >>> sorted(fold[:3].tolist()), sorted(fold[3:].tolist())
        ([0, 1, 2], [0, 1, 2])
    """
    y = np.asarray(y)
    if folds < 2 or len(y) < folds:
        raise ValueError(
            f"There are {len(y)} examples for {folds} folds; expected 2 folds or more, and as many examples."
        )
    shuffled = np.random.default_rng(seed).permutation(len(y))
    order = shuffled[np.argsort(y[shuffled], kind="stable")]
    fold = np.empty(len(y), np.int64)
    fold[order] = np.arange(len(y)) % folds  # going on from class to class, so that the sizes stay even
    return fold
