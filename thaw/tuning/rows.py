"""Kept rows as if they were one array, wherever on the disk they lie."""

from __future__ import annotations

import numpy as np


class Rows:
    """Rows out of several memory maps, in any order; what is asked for is read, and nothing else.

    Several threads may read at once.

    Args:
        maps: arrays or memory maps, ``(rows of the map, ...)``, equal but for their first axis; at least one.
        places: int64, ``(n,)`` or ``(views, n)``: where each row stands, counted through all maps in turn.

    Example:
        >>> from thaw.tuning.rows import Rows
        >>> rows = Rows([np.array([[0.0], [1.0]]), np.array([[2.0]])], np.array([2, 0, 2]))
        >>> rows.shape, rows[1].tolist(), rows[np.array([0, 1])].tolist()
        ((3, 1), [0.0], [[2.0], [0.0]])
    """

    def __init__(self, maps, places):
        self._maps, self._places = maps, places
        self._starts = np.cumsum([0, *(len(rows) for rows in maps)])
        self.dtype = maps[0].dtype
        self.shape = (*places.shape, *maps[0].shape[1:])

    @property
    def ndim(self):
        """Number of axes."""
        return len(self.shape)

    @property
    def nbytes(self):
        """What all of it would take in memory."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, index):
        """Rows at an int, a slice, an array of ints; with views at ``[view, index]``: as NumPy reads them."""
        places = np.asarray(self._places[index])
        flat, own = places.reshape(-1), self._maps[0].shape[1:]
        if len(self._maps) == 1:
            return np.take(self._maps[0], flat, axis=0).reshape(*places.shape, *own)
        read = np.empty((len(flat), *own), self.dtype)
        which = np.searchsorted(self._starts, flat, side="right") - 1
        for i in np.unique(which):
            mine = np.flatnonzero(which == i)
            read[mine] = np.take(self._maps[i], flat[mine] - self._starts[i], axis=0)
        return read.reshape(*places.shape, *own)

    def __array__(self, dtype=None, copy=None):
        if copy is False:
            raise ValueError("Kept rows lie on the disk; an array of them is always a copy.")
        return np.asarray(self[:], dtype)

    def __repr__(self):
        return f"Rows(shape={self.shape}, dtype={self.dtype.name})"


def find_rows(stored, wanted):
    """Where some ids stand among others.

    Args:
        stored: int64 ``(m, 2)``; of equal ones the last counts.
        wanted: int64 ``(n, 2)``.

    Returns:
        int64 ``(n,)``: the place in ``stored``, -1 for those that are not there.

    Example:
        >>> from thaw.tuning.rows import find_rows
        >>> find_rows(np.array([[7, 0], [8, 1]]), np.array([[8, 1], [8, 0]])).tolist()
        [1, -1]
    """
    # Sorted together, so that equal ids become neighbours and get the same number.
    both = np.concatenate([stored, wanted])
    order = np.lexsort((both[:, 1], both[:, 0]))
    ranked = both[order]
    first = np.ones(len(both), bool)
    first[1:] = (ranked[1:] != ranked[:-1]).any(axis=1)
    number = np.empty(len(both), np.int64)
    number[order] = np.cumsum(first) - 1
    place = np.full(len(both), -1, np.int64)
    np.maximum.at(place, number[: len(stored)], np.arange(len(stored)))
    return place[number[len(stored) :]]
