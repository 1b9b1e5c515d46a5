"""Cross-validated readouts of frozen features: ridge regression and nearest neighbors."""

from __future__ import annotations

import numpy as np

from thaw.features.ridge import ridge_predict, standardized


def stratified_folds(y, folds=5, seed=0, groups=None):
    """Assign examples to folds of equal size, each class evenly.

    Other than ``sklearn.model_selection.StratifiedKFold`` it takes classes with fewer examples than folds.

    Args:
        y: ``(n,)`` class numbers; zeros where there are no classes.
        folds: number of folds, at least 2. Default 5.
        seed: seed of the shuffling within each class. Default 0.
        groups: ``(n,)`` group numbers; a group stays in one fold. Default ``None``: every example on its own.

    Returns:
        ``(n,)`` fold numbers, 0 to ``folds - 1``. Without groups, the sizes of two folds differ by at most 1, and so do
        their counts of any class.

    Raises:
        ValueError: fewer than two folds, or fewer examples than folds.

    Example:
        >>> import numpy as np
        >>> from thaw.transfer.readouts import stratified_folds
        >>> fold = stratified_folds(np.array([0, 0, 0, 1, 1, 1]), folds=3)
        >>> sorted(fold[:3].tolist()), sorted(fold[3:].tolist())
        ([0, 1, 2], [0, 1, 2])
    """
    y = np.asarray(y)
    if folds < 2 or len(y) < folds:
        raise ValueError(
            f"There are {len(y)} examples for {folds} folds; expected 2 folds or more, and as many examples."
        )
    if groups is not None:
        from sklearn.model_selection import StratifiedGroupKFold

        fold = np.empty(len(y), np.int64)
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        for number, (_, held_out) in enumerate(splitter.split(y, y, groups)):
            fold[held_out] = number
        return fold
    shuffled = np.random.default_rng(seed).permutation(len(y))
    order = shuffled[np.argsort(y[shuffled], kind="stable")]
    fold = np.empty(len(y), np.int64)
    fold[order] = np.arange(len(y)) % folds  # counting on from class to class, so that the sizes stay even
    return fold


def ridge_readout(features, targets, fold):
    """Predict each example by a ridge regression fitted to the other folds (Hoerl and Kennard 1970).

    Features are scaled to mean 0 and standard deviation 1 on the fitted folds. The penalty has the smallest
    leave-one-out error (Allen 1974) on them; the predicted fold has no part in it.

    Args:
        features: ``(n, d)`` numbers.
        targets: ``(n, t)`` numbers to predict; for classes, one-hot rows.
        fold: ``(n,)`` fold numbers, as from :func:`stratified_folds`.

    Returns:
        Float64 ``(n, t)`` predictions; for classes, the largest in a row is the predicted one.

    Raises:
        ValueError: arrays of different length, or a single fold.

    Example:
        >>> import numpy as np
        >>> from thaw.transfer.readouts import ridge_readout
        >>> x = np.arange(6.0)[:, None]
        >>> ridge_readout(x, 2 * x, np.array([0, 1, 0, 1, 0, 1])).round(2)[:, 0].tolist()
        [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    """
    features, targets, fold = np.asarray(features), np.asarray(targets, np.float64), np.asarray(fold)
    if features.ndim != 2 or targets.ndim != 2 or not len(features) == len(targets) == len(fold):
        raise ValueError(
            f"features has shape {features.shape}, targets {targets.shape} and fold {fold.shape}; expected (n, d), "
            "(n, t) and (n,)."
        )
    numbers = _several_folds(fold)
    predicted = np.empty_like(targets)
    for number in numbers:
        held_out = fold == number
        predicted[held_out] = ridge_predict(features[~held_out], targets[~held_out], features[held_out])
    return predicted


def knn_readout(features, y, fold, n_neighbors=5):
    """Predict the class of each example from its nearest neighbors in the other folds (Cover and Hart 1967).

    The distance is the cosine distance between features scaled to mean 0 and standard deviation 1 on the other folds.
    The most frequent class wins; of equally frequent ones, the nearer.

    Args:
        features: ``(n, d)`` numbers.
        y: ``(n,)`` class numbers from 0.
        fold: ``(n,)`` fold numbers, as from :func:`stratified_folds`.
        n_neighbors: number of neighbors; all where there are fewer. Default 5.

    Returns:
        ``(n,)`` class numbers.

    Raises:
        ValueError: arrays of different length, or a single fold.

    Example:
        >>> import numpy as np
        >>> from thaw.transfer.readouts import knn_readout
        >>> x, y = np.array([[-1.0], [-2.0], [1.0], [2.0]]), np.array([0, 0, 1, 1])
        >>> knn_readout(x, y, np.array([0, 1, 0, 1]), n_neighbors=1).tolist()
        [0, 0, 1, 1]
    """
    from sklearn.neighbors import KNeighborsClassifier

    features, y, fold = np.asarray(features), np.asarray(y), np.asarray(fold)
    if features.ndim != 2 or not len(features) == len(y) == len(fold) or y.ndim != 1 or y.dtype.kind not in "iub":
        raise ValueError(
            f"features has shape {features.shape}, y is {y.dtype} of shape {y.shape} and fold has shape {fold.shape}; "
            "expected (n, d), n class numbers and n fold numbers."
        )
    if n_neighbors < 1:
        raise ValueError(f"n_neighbors={n_neighbors}; expected a whole number from 1.")
    predicted = np.empty(len(y), np.int64)
    for number in _several_folds(fold):
        held_out = fold == number
        x, new_x = standardized(features[~held_out], features[held_out])
        if not x.shape[1]:  # all features are constant: every neighbor is as near as any other
            x, new_x = np.ones((len(x), 1)), np.ones((len(new_x), 1))
        k = min(n_neighbors, len(x))
        # Nearness, -1 to 1, sums to at most k: divided by more than 2k it decides between equal counts only.
        weights = lambda distances, k=k: 1 + (1 - distances) / (2 * k + 1)  # noqa: E731
        classifier = KNeighborsClassifier(k, metric="cosine", weights=weights).fit(x, y[~held_out])
        # Not predict, which goes through the classes one by one where the neighbors are weighted.
        predicted[held_out] = classifier.classes_[classifier.predict_proba(new_x).argmax(axis=1)]
    return predicted


def _several_folds(fold):
    numbers = np.unique(fold)
    if len(numbers) < 2:
        raise ValueError(
            "All examples are in one fold; expected at least two, because each is predicted from the others."
        )
    return numbers
