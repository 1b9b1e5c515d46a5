"""Rows of activations gathered until there are enough of them for a segment."""

from __future__ import annotations

import math

import numpy as np


class SegmentWriter:
    """A context manager that takes rows a batch at a time and hands them on a segment at a time.

    At its end the rest is handed on; after an exception the rest is dropped.

    Args:
        keep: function of (ids, arrays) that puts a segment away.
        tensors: ``[(shape of a row, dtype)]``.
        total_rows: how many will come, so that no more memory is taken than they need; there may be more.
        segment_bytes: how large a segment may become.

    Example:
        >>> from thaw.tuning.segment_writer import SegmentWriter
        >>> kept = []
        >>> keep = lambda ids, arrays: kept.append(arrays[0].tolist())
        >>> with SegmentWriter(keep, [((), "float32")], 3, segment_bytes=40) as writer:
        ...     writer.add(np.array([[1, 0], [2, 0], [3, 0]]), [np.array([0.5, 1.5, 2.5], "float32")])
        >>> kept
        [[0.5, 1.5], [2.5]]
    """

    def __init__(self, keep, tensors, total_rows, segment_bytes):
        self._keep, self._tensors, self._left = keep, tensors, total_rows
        self._most = max(1, int(segment_bytes // row_bytes(tensors)))
        self._filled, self._ids, self._arrays = 0, None, None

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self._hand_on()
        self._ids = self._arrays = None

    def add(self, ids, arrays):
        """Add some rows.

        Args:
            ids: int64 ``(n, 2)``.
            arrays: one array for each tensor, ``(n, ...)``.

        Raises:
            ValueError: the arrays are not as the tensors were announced.
            OSError: from ``keep``: the disk is full.
        """
        ids, arrays = np.asarray(ids), [np.asarray(array) for array in arrays]
        expected = [(len(ids), *shape) for shape, _ in self._tensors]
        if ids.dtype.kind != "i" or ids.shape != (len(ids), 2) or [a.shape for a in arrays] != expected:
            raise ValueError(
                f"ids of shape {ids.shape} came with arrays of shape {[array.shape for array in arrays]}; expected two "
                f"whole numbers an id, and arrays of shape {expected}."
            )
        for array, (_, dtype) in zip(arrays, self._tensors):
            if not np.can_cast(array.dtype, dtype, "safe"):
                raise ValueError(f"An array of {array.dtype} came; expected {dtype}.")
        begin = 0
        while begin < len(ids):
            if self._ids is None:
                room = min(self._most, max(self._left, len(ids) - begin))
                self._ids = np.empty((room, 2), np.int64)
                self._arrays = [np.empty((room, *shape), dtype) for shape, dtype in self._tensors]
            count = min(len(ids) - begin, len(self._ids) - self._filled)
            here, there = slice(begin, begin + count), slice(self._filled, self._filled + count)
            self._ids[there] = ids[here]
            for kept, array in zip(self._arrays, arrays):
                kept[there] = array[here]
            begin, self._filled, self._left = begin + count, self._filled + count, self._left - count
            if self._filled == len(self._ids):
                self._hand_on()

    def _hand_on(self):
        if self._filled:
            self._keep(self._ids[: self._filled], [array[: self._filled] for array in self._arrays])
        self._filled, self._ids, self._arrays = 0, None, None


def row_bytes(tensors):
    """Bytes that one row takes on the disk with its id, for ``[(shape of a row, dtype)]``."""
    return 16 + sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in tensors)
