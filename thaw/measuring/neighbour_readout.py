"""A readout of features by their nearest neighbours, measured on what it does not hold."""

from __future__ import annotations

import numpy as np

_ROWS = 1024  # whose neighbours are looked for at a time, so that memory stays small


def neighbour_readout(features, y, fold, neighbours=5):
    """Tell the class of each example from its nearest neighbours in the other folds (Cover and Hart 1967).

    Near is by the cosine between features scaled to mean 0 and standard deviation 1 on the other folds. The most
    frequent class wins; between equally frequent ones the one that is nearer.

    Args:
        features: ``(n, d)`` numbers, one row for each example.
        y: ``(n,)`` class numbers from 0.
        fold: ``(n,)`` fold numbers, as :func:`stratified_folds` gives them.
        neighbours: how many are asked; all that there are, where there are fewer.

    Returns:
        ``(n,)`` class numbers.

    Raises:
        ValueError: arrays that do not belong together, or a fold that holds everything.

    Example:
        >>> import numpy as np
        >>> from thaw.measuring.neighbour_readout import neighbour_readout
        >>> x, y = np.array([[-1.0], [-2.0], [1.0], [2.0]]), np.array([0, 0, 1, 1])
        >>> neighbour_readout(x, y, np.array([0, 1, 0, 1]), neighbours=1).tolist()
        [0, 0, 1, 1]
    """
    features, y, fold = np.asarray(features), np.asarray(y), np.asarray(fold)
    if features.ndim != 2 or not len(features) == len(y) == len(fold) or y.ndim != 1 or y.dtype.kind not in "iub":
        raise ValueError(
            f"features has shape {features.shape}, y is {y.dtype} of shape {y.shape} and fold has shape {fold.shape}; "
            "expected (n, d), n class numbers and n fold numbers."
        )
    if neighbours < 1:
        raise ValueError(f"neighbours={neighbours}; expected a whole number from 1.")
    if len(np.unique(fold)) < 2:
        raise ValueError(
            "All examples are in one fold; expected at least two, to look in one for the other's neighbours."
        )
    told = np.empty(len(y), np.int64)
    for f in np.unique(fold):
        out = np.flatnonzero(fold == f)
        x, known = features[fold != f].astype(np.float64), y[fold != f].astype(np.int64)
        mean, scale = x.mean(axis=0), x.std(axis=0)
        varies = scale > 1e-7 * np.abs(mean)
        x = _directions((x[:, varies] - mean[varies]) / scale[varies])
        for rows in np.array_split(out, -(-len(out) // _ROWS)):
            new = _directions((features[rows][:, varies] - mean[varies]) / scale[varies])
            told[rows] = _vote(new @ x.T, known, min(neighbours, len(x)), int(y.max()) + 1)
    return told


def _directions(x):
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(length > 0, length, 1)


def _vote(near, known, k, classes):
    """The class for each row of ``near``, how near each known example is: -1 to 1."""
    found = np.argpartition(-near, k - 1, axis=1)[:, :k]
    rows = np.arange(len(near))[:, None]
    # The sums of nearness are at most k in size; divided by more than 2k they decide between equal counts only.
    votes = np.zeros((len(near), classes))
    np.add.at(votes, (rows, known[found]), 1 + near[rows, found] / (2 * k + 1))
    return votes.argmax(axis=1)
