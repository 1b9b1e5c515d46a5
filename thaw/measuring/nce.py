"""NCE: how much of the new labels is left open when the old ones are known."""

from __future__ import annotations

import numpy as np


def nce(source, y):
    """The negative conditional entropy of new labels given old ones (Tran et al. 2019): higher is better.

    0 where each old class has one new label; minus the entropy of the new labels where the old ones say nothing about
    them. With many old classes and few examples it is too high, because each old class then has few labels to show.

    Args:
        source: ``(n,)`` old class numbers of the same examples: their labels, or what the old head predicts.
        y: ``(n,)`` new class numbers.

    Returns:
        The score, a float in nats.

    Raises:
        ValueError: arrays that do not belong together.

    Example:
        >>> import numpy as np
        >>> from thaw.measuring.nce import nce
        >>> round(nce(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 0])), 6)
        -0.346574
    """
    source, y = np.asarray(source), np.asarray(y)
    if source.ndim != 1 or len(source) == 0 or source.shape != y.shape:
        raise ValueError(f"source has shape {source.shape} and y {y.shape}; expected two class numbers each example.")
    if source.dtype.kind not in "iub" or y.dtype.kind not in "iub":
        raise ValueError(f"source is {source.dtype} and y is {y.dtype}; expected class numbers.")
    pairs, counts = np.unique(np.stack([source, y], axis=1), axis=0, return_counts=True)
    _, old, old_counts = np.unique(source, return_inverse=True, return_counts=True)
    of_old = dict(zip(source.tolist(), old_counts[old].tolist()))
    totals = np.array([of_old[z] for z in pairs[:, 0].tolist()])
    return float((counts / len(y) * np.log(counts / totals)).sum()) + 0.0
