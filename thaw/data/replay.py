"""Mix examples of the source task into the training data (replay)."""

from __future__ import annotations

import dataclasses

import numpy as np

from thaw.tasks import class_numbers


def mix_replay(target, source, share, *, labels=None, seed=0):
    """Mix examples of the source task into those of the target task, so that both are trained on.

    Experience replay (Robins 1995). Where classes are added it retains the source task when penalties and distillation
    fail (van de Ven and Tolias 2019). The source examples are drawn once, as a function of the seed: the same number of
    every source class, as far as there are enough. Every epoch then shuffles both together, in an order that
    :class:`thaw.Dataset` computes from seed and epoch. If more are wanted than there are, all are repeated equally
    often, give or take one, and augmented differently each time. Inputs are not copied; a batch reads what it needs.

    Args:
        target: :class:`thaw.Dataset` of the target task; all of it is used.
        source: :class:`thaw.Dataset` of the source task, with inputs of the same shape that are loaded and augmented in
            the same way.
        share: fraction of source examples in the mixture, above 0 and below 1.
        labels: dict or array from the class number in the source task to the class number in the mixture; ``None``
            (default) if they are the same.
        seed: int, seed of the draw; default 0.

    Returns:
        :class:`thaw.Dataset`: the target examples in their order, followed by the source examples.

    Raises:
        ValueError: an invalid share, or examples that do not fit in one batch.

    Example:
        >>> import numpy as np
        >>> from thaw import Dataset
        >>> from thaw.data.replay import mix_replay
        >>> target = Dataset(x=np.zeros((6, 2)), y=np.zeros(6, int))
        >>> source = Dataset(x=np.ones((10, 2)), y=np.arange(10) % 2)
        >>> mixed = mix_replay(target, source, 0.25, labels={0: 1, 1: 2})
        >>> len(mixed), sorted(set(mixed.y.tolist()))
        (8, [0, 1, 2])
    """
    if isinstance(share, bool) or not 0 < share < 1:
        raise ValueError(f"share={share!r}; expected a number above 0 and below 1.")
    if target.views or source.views:
        raise ValueError("These examples are stored as several augmented versions; mix them before they are stored.")
    if any(data.y is None or isinstance(data.y, (tuple, dict)) for data in (target, source)):
        raise ValueError("Source and target examples need the labels of one output; expected y as one array in both.")
    if not _same_function(target.load, source.load):
        raise ValueError("Source and target examples are loaded differently; give both the same `load`.")
    if source.augment is not None and not _same_function(target.augment, source.augment):
        raise ValueError("Source and target examples are augmented differently; give both the same `augment`.")
    count = max(1, round(share / (1 - share) * len(target)))
    indices, repeats = _draw(np.asarray(source.y), count, seed)
    y_target, y_source = np.asarray(target.y), _map_labels(np.asarray(source.y), labels)
    if y_target.shape[1:] != y_source.shape[1:]:
        raise ValueError(
            f"A target label has shape {y_target.shape[1:]}, a source label {y_source.shape[1:]}; expected the same. "
            "Give both as class numbers."
        )
    weight = None
    if target.sample_weight is not None or source.sample_weight is not None:
        weights = [
            np.ones(len(data), np.float32) if data.sample_weight is None else np.asarray(data.sample_weight, np.float32)
            for data in (target, source)
        ]
        weight = np.concatenate([weights[0], weights[1][indices]])
    keys = None
    if target.augment is not None or target.keys is not None or source.keys is not None:
        # The augmentation is seeded by the key: a repeated example is augmented differently.
        with np.errstate(over="ignore"):
            keys = np.concatenate([target.content_keys, source.content_keys[indices] + repeats])
    return dataclasses.replace(
        target,
        x=_concatenate(target.x, source.x, indices),
        y=np.concatenate([y_target, y_source[indices]]),
        sample_weight=weight,
        keys=keys,
        groups=_concatenated_groups(target, source, indices, repeats),
    )


def _draw(y, count, seed):
    """Return which source examples are used, and which repetition each is; all equally often, give or take one."""
    rng, n = np.random.default_rng(seed), len(y)
    try:
        y = class_numbers(y)
    except ValueError:
        y = None  # the targets are no classes: nothing to balance
    orders = []
    for _ in range(-(-count // n)):
        order = rng.permutation(n)
        if y is not None:
            # The first of every class, then the second of every class: any beginning of it is balanced.
            by_class = order[np.argsort(y[order], kind="stable")]
            _, first, sizes = np.unique(y[by_class], return_index=True, return_counts=True)
            rank = np.empty(n, np.int64)
            rank[by_class] = np.arange(n) - np.repeat(first, sizes)
            order = order[np.argsort(rank[order], kind="stable")]
        orders.append(order)
    return np.concatenate(orders)[:count], np.arange(count, dtype=np.int64) // n


def _concatenated_groups(target, source, indices, repeats):
    """Return groups that keep those of both apart; a source example that is repeated is one group."""
    if target.groups is None and source.groups is None and not repeats.any():
        return None
    ours, theirs = (
        np.arange(len(data)) if data.groups is None else np.unique(data.groups, return_inverse=True)[1]
        for data in (target, source)
    )
    return np.concatenate([ours, ours.max() + 1 + theirs[indices]])


def _map_labels(y, labels):
    if labels is None:
        return y
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise ValueError(f"The source labels are {y.dtype} of shape {y.shape}; expected class numbers to map.")
    table = labels if isinstance(labels, dict) else dict(enumerate(np.asarray(labels).tolist()))
    missing = sorted(set(y.tolist()) - set(table))
    if missing:
        raise ValueError(f"labels has no entry for source class {missing[0]}; expected one for each source class.")
    return np.array([table[c] for c in y.tolist()], y.dtype)


def _same_function(a, b):
    if a is b:
        return True
    identity = getattr(a, "identity", None)
    return identity is not None and identity == getattr(b, "identity", None)


def _concatenate(target, source, indices):
    """Return the target rows followed by the chosen source rows, in the same structure of inputs."""
    if type(target) is not type(source) and (isinstance(target, (dict, tuple)) or isinstance(source, (dict, tuple))):
        raise ValueError("Source and target examples have different inputs; expected the same number and names.")
    if isinstance(target, dict):
        if set(target) != set(source):
            raise ValueError(
                f"The target inputs are {', '.join(target)}, the source inputs {', '.join(source)}; expected the same."
            )
        return {name: _concatenate(target[name], source[name], indices) for name in target}
    if isinstance(target, tuple):
        if len(target) != len(source):
            raise ValueError(f"There are {len(target)} target and {len(source)} source inputs; expected as many.")
        return tuple(_concatenate(a, b, indices) for a, b in zip(target, source))
    strings = target.dtype.kind in "UO" and source.dtype.kind in "UO"
    if target.shape[1:] != source.shape[1:] or not (strings or target.dtype == source.dtype):
        raise ValueError(
            f"A target input is {target.dtype} {target.shape[1:]}, a source input {source.dtype} {source.shape[1:]}; "
            "expected the same."
        )
    return np.concatenate([target, source[indices]]) if strings else _ConcatenatedRows(target, source, indices)


class _ConcatenatedRows:
    """Target rows and chosen source rows as one array; memory maps stay on the disk."""

    def __init__(self, target, source, indices):
        self._target, self._source, self._indices = target, source, indices
        self.dtype, self.shape, self.ndim = target.dtype, (len(target) + len(indices), *target.shape[1:]), target.ndim

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, index):
        """Return the rows at an int, a slice, or an array of ints or bools, as NumPy does."""
        positions = np.arange(len(self))[index]
        flat, n = positions.reshape(-1), len(self._target)
        rows = np.empty((len(flat), *self.shape[1:]), self.dtype)
        from_source = flat >= n
        rows[~from_source] = self._target[flat[~from_source]]
        rows[from_source] = self._source[self._indices[flat[from_source] - n]]
        return rows.reshape(*positions.shape, *self.shape[1:])

    def __array__(self, dtype=None, copy=None):
        if copy is False:
            raise ValueError("Concatenated rows are in two arrays; an array of them is always a copy.")
        return np.asarray(self[:], dtype)
