"""A share of old examples among the new ones."""

from __future__ import annotations

import dataclasses

import numpy as np


def rehearse(new, old, share, *, labels=None, seed=0):
    """Mix old examples into new ones, so that both tasks are practised.

    Rehearsal, or experience replay (Robins 1995). Where classes are added it holds the old ones when penalties and
    distillation fail (van de Ven and Tolias 2019). Which old examples take part is drawn once and is a function of
    the seed: from every old class as many as from the others, as far as it has them. Every epoch then shuffles new
    and old together, in an order that :class:`thaw.Examples` computes from seed and epoch. Where more are wanted
    than there are, all take part equally often, give or take one, and are augmented differently each time. Inputs
    are not copied; a batch reads what it needs.

    Args:
        new: examples of the new task; all take part.
        old: examples of the old task, loaded and augmented in the same way and of the same shape.
        share: of the old examples in the mixture, above 0 and below 1.
        labels: old class number to class number in the mixture, a dict or an array; ``None`` where the numbers mean
            the same already.
        seed: of the draw.

    Returns:
        :class:`thaw.Examples`: the new ones in their order, then the old ones.

    Raises:
        ValueError: a share out of its range, or examples that cannot stand in one batch.

    Example:
        >>> import numpy as np
        >>> from thaw import Examples
        >>> from thaw.data.rehearse import rehearse
        >>> new = Examples(x=np.zeros((6, 2)), y=np.zeros(6, int))
        >>> old = Examples(x=np.ones((10, 2)), y=np.arange(10) % 2)
        >>> mixed = rehearse(new, old, 0.25, labels={0: 1, 1: 2})
        >>> len(mixed), sorted(set(mixed.y.tolist()))
        (8, [0, 1, 2])
    """
    if isinstance(share, bool) or not 0 < share < 1:
        raise ValueError(f"share={share!r}; expected a number above 0 and below 1.")
    if new.views or old.views:
        raise ValueError("Versions of these examples are kept already; mix old and new before keeping anything.")
    if not _same(new.load, old.load):
        raise ValueError("Old and new examples are loaded differently; give both the same `load`.")
    if old.augment is not None and not _same(new.augment, old.augment):
        raise ValueError("Old and new examples are augmented differently; give both the same `augment`.")
    count = max(1, round(share / (1 - share) * len(new)))
    drawn, rounds = _drawn(np.asarray(old.y), count, seed)
    y_new, y_old = np.asarray(new.y), _mapped(np.asarray(old.y), labels)
    if y_new.shape[1:] != y_old.shape[1:]:
        raise ValueError(
            f"A new label has shape {y_new.shape[1:]}, an old one {y_old.shape[1:]}; expected the same. Give both as "
            "class numbers."
        )
    weight = None
    if new.weight is not None or old.weight is not None:
        own = [
            np.ones(len(e), np.float32) if e.weight is None else np.asarray(e.weight, np.float32) for e in (new, old)
        ]
        weight = np.concatenate([own[0], own[1][drawn]])
    keys = None
    if new.augment is not None or new.keys is not None or old.keys is not None:
        # The augmentation follows the key: the same picture again gets another one.
        with np.errstate(over="ignore"):
            keys = np.concatenate([new.content_keys, old.content_keys[drawn] + rounds])
    return dataclasses.replace(
        new, x=_joined(new.x, old.x, drawn), y=np.concatenate([y_new, y_old[drawn]]), weight=weight, keys=keys
    )


def _drawn(y, count, seed):
    """Which take part, and for the how-many-th time; each equally often, give or take one."""
    rng, n = np.random.default_rng(seed), len(y)
    chosen = []
    for _ in range(-(-count // n)):
        order = rng.permutation(n)
        if y.ndim == 1 and y.dtype.kind in "iub":
            # The first of every class, then the second of every class: however short, it holds the classes evenly.
            sorted_by_class = order[np.argsort(y[order], kind="stable")]
            _, first, sizes = np.unique(y[sorted_by_class], return_index=True, return_counts=True)
            turn = np.empty(n, np.int64)
            turn[sorted_by_class] = np.arange(n) - np.repeat(first, sizes)
            order = order[np.argsort(turn[order], kind="stable")]
        chosen.append(order)
    return np.concatenate(chosen)[:count], np.arange(count, dtype=np.int64) // n


def _mapped(y, labels):
    if labels is None:
        return y
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise ValueError(f"The old labels are {y.dtype} of shape {y.shape}; expected class numbers to map.")
    table = labels if isinstance(labels, dict) else dict(enumerate(np.asarray(labels).tolist()))
    missing = sorted(set(y.tolist()) - set(table))
    if missing:
        raise ValueError(f"labels says nothing of the old class {missing[0]}; expected a number for each old class.")
    return np.array([table[c] for c in y.tolist()], y.dtype)


def _same(a, b):
    if a is b:
        return True
    known = getattr(a, "identity", None)
    return known is not None and known == getattr(b, "identity", None)


def _joined(new, old, drawn):
    """The same structure of inputs, each the new rows and behind them those drawn from the old ones."""
    if type(new) is not type(old) and (isinstance(new, (dict, tuple)) or isinstance(old, (dict, tuple))):
        raise ValueError("Old and new examples have different inputs; expected the same number and names.")
    if isinstance(new, dict):
        if set(new) != set(old):
            raise ValueError(f"The new inputs are {', '.join(new)}, the old ones {', '.join(old)}; expected the same.")
        return {name: _joined(new[name], old[name], drawn) for name in new}
    if isinstance(new, tuple):
        if len(new) != len(old):
            raise ValueError(f"There are {len(new)} new inputs and {len(old)} old ones; expected as many.")
        return tuple(_joined(a, b, drawn) for a, b in zip(new, old))
    strings = new.dtype.kind in "UO" and old.dtype.kind in "UO"
    if new.shape[1:] != old.shape[1:] or not (strings or new.dtype == old.dtype):
        raise ValueError(
            f"A new input is {new.dtype} {new.shape[1:]}, an old one {old.dtype} {old.shape[1:]}; expected the same."
        )
    return np.concatenate([new, old[drawn]]) if strings else _Joined(new, old, drawn)


class _Joined:
    """New rows and chosen old ones as if they were one array; memory maps stay on the disk."""

    def __init__(self, new, old, drawn):
        self._new, self._old, self._drawn = new, old, drawn
        self.dtype, self.shape, self.ndim = new.dtype, (len(new) + len(drawn), *new.shape[1:]), new.ndim

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, index):
        """Rows at an int, a slice, or an array of ints or bools, as NumPy reads them."""
        places = np.arange(len(self))[index]
        flat, border = places.reshape(-1), len(self._new)
        read = np.empty((len(flat), *self.shape[1:]), self.dtype)
        late = flat >= border
        read[~late] = self._new[flat[~late]]
        read[late] = self._old[self._drawn[flat[late] - border]]
        return read.reshape(*places.shape, *self.shape[1:])

    def __array__(self, dtype=None, copy=None):
        if copy is False:
            raise ValueError("Joined rows lie in two places; an array of them is always a copy.")
        return np.asarray(self[:], dtype)
