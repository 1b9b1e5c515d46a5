"""Shards: the files in which cached features are stored, and arrays that read from several of them."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import zlib
from pathlib import Path

import numpy as np

from thaw.features.disk_budget import SHARD_INDEX

CHECKSUM_BLOCK_BYTES = 1 << 22
ID_BYTES = 16


class ShardedArray:
    """Read rows of several memory maps as one array; only the rows that are asked for are read.

    Several threads may read at once.

    Args:
        maps: arrays or memory maps ``(rows, ...)`` that differ in their first axis only; at least one.
        positions: int64 ``(n,)`` or ``(views, n)``: position of each row, counted through all maps in turn.

    Example:
        >>> from thaw.features.shards import ShardedArray
        >>> array = ShardedArray([np.array([[0.0], [1.0]]), np.array([[2.0]])], np.array([2, 0, 2]))
        >>> array.shape, array[1].tolist(), array[np.array([0, 1])].tolist()
        ((3, 1), [0.0], [[2.0], [0.0]])
    """

    def __init__(self, maps, positions):
        self._maps, self._positions = maps, positions
        self._starts = np.cumsum([0, *(len(rows) for rows in maps)])
        self.dtype = maps[0].dtype
        self.shape = (*positions.shape, *maps[0].shape[1:])

    @property
    def ndim(self):
        """Number of axes."""
        return len(self.shape)

    @property
    def nbytes(self):
        """Bytes that the whole array would take in memory."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, index):
        """Read rows at an int, a slice or an array of ints; with views at ``[view, index]``, as NumPy does."""
        positions = np.asarray(self._positions[index])
        flat, row_shape = positions.reshape(-1), self._maps[0].shape[1:]
        if len(self._maps) == 1:
            return np.take(self._maps[0], flat, axis=0).reshape(*positions.shape, *row_shape)
        rows = np.empty((len(flat), *row_shape), self.dtype)
        map_numbers = np.searchsorted(self._starts, flat, side="right") - 1
        for i in np.unique(map_numbers):
            at = np.flatnonzero(map_numbers == i)
            rows[at] = np.take(self._maps[i], flat[at] - self._starts[i], axis=0)
        return rows.reshape(*positions.shape, *row_shape)

    def __array__(self, dtype=None, copy=None):
        if copy is False:
            raise ValueError("Cached features are on disk; an array of them is always a copy.")
        return np.asarray(self[:], dtype)

    def __repr__(self):
        return f"ShardedArray(shape={self.shape}, dtype={self.dtype.name})"


def find_ids(stored, wanted):
    """Find the positions of some ids among others.

    Args:
        stored: int64 ``(m, 2)``; of equal ids the last counts.
        wanted: int64 ``(n, 2)``.

    Returns:
        int64 ``(n,)``: positions in ``stored``; -1 for ids that are not in it.

    Example:
        >>> from thaw.features.shards import find_ids
        >>> find_ids(np.array([[7, 0], [8, 1]]), np.array([[8, 1], [8, 0]])).tolist()
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
    position = np.full(len(both), -1, np.int64)
    np.maximum.at(position, number[: len(stored)], np.arange(len(stored)))
    return position[number[len(stored) :]]


class Shard:
    """Open a folder of feature rows with their ids; it never changes once it is complete.

    The folder holds ``ids.npy``, one ``.npy`` for each tensor (``0.npy``, ``1.npy`` ...), and ``shard.json`` with the
    number of rows, and the length and CRC-32 of every file.

    Args:
        folder: path of the folder.
        tensors: ``[(shape of a row, dtype)]`` that the shard is expected to hold.

    Raises:
        ValueError: a file is damaged.
        OSError: a file is missing or cannot be read.

    Example:
        >>> import pathlib, tempfile
        >>> from thaw.features.shards import Shard, write_shard
        >>> path = pathlib.Path(tempfile.mkdtemp(), "one")
        >>> write_shard(path, np.array([[7, 0], [9, 0]]), [np.array([[1.5], [2.5]], "float32")])
        >>> shard = Shard(path, [((1,), "float32")])
        >>> shard.open()
        >>> shard.ids[:, 0].tolist(), shard.maps[0].tolist()
        ([7, 9], [[1.5], [2.5]])
    """

    def __init__(self, folder, tensors):
        self.folder = Path(folder)
        self.maps = None
        self._tensors = tensors
        self._names = [f"{i}.npy" for i in range(len(tensors))]
        index = json.loads((self.folder / SHARD_INDEX).read_text(encoding="utf-8"))
        try:
            self._files = {name: (int(size), int(crc)) for name, (size, crc) in index["files"].items()}
            rows = int(index["rows"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{SHARD_INDEX} is damaged") from error
        if set(self._files) != {"ids.npy", *self._names}:
            raise ValueError(f"{SHARD_INDEX} names other files")
        self._check("ids.npy")
        self.ids = np.load(self.folder / "ids.npy", allow_pickle=False)
        if self.ids.shape != (rows, 2) or self.ids.dtype != np.int64:
            raise ValueError("ids.npy is damaged")

    def open(self, check=True):
        """Compare the files with their CRC-32, block by block, and map them into memory.

        Args:
            check: ``False`` for a shard that this process has written or checked already.

        Raises:
            ValueError: a file is damaged.
            OSError: a file is missing or cannot be read.
        """
        if self.maps is not None:
            return
        maps = []
        for name, (shape, dtype) in zip(self._names, self._tensors):
            if check:
                self._check(name)
            rows = np.load(self.folder / name, mmap_mode="r", allow_pickle=False)
            if rows.shape != (len(self.ids), *shape) or rows.dtype != np.dtype(dtype):
                raise ValueError(f"{name} is damaged")
            maps.append(rows.view(np.ndarray))  # np.memmap makes every slice slower
        self.maps = maps

    def _check(self, name):
        path = self.folder / name
        expected_size, expected_crc = self._files[name]
        if path.stat().st_size != expected_size:
            raise ValueError(f"{name} has another length")
        crc = 0
        with open(path, "rb") as file:
            while block := file.read(CHECKSUM_BLOCK_BYTES):
                crc = zlib.crc32(block, crc)
        if crc != expected_crc:
            raise ValueError(f"{name} has another checksum")


def write_shard(folder, ids, arrays):
    """Write a shard; after an error nothing of it is left.

    Args:
        folder: path; must not exist yet.
        ids: int64 ``(n, 2)``.
        arrays: one C-contiguous array ``(n, ...)`` for each tensor.

    Raises:
        OSError: the disk is full or cannot be written to.
    """
    folder = Path(folder)
    folder.mkdir(parents=True)
    try:
        files = {"ids.npy": _write_array(folder / "ids.npy", np.asarray(ids, np.int64))}
        for i, array in enumerate(arrays):
            files[f"{i}.npy"] = _write_array(folder / f"{i}.npy", array)
        index = json.dumps({"rows": len(ids), "files": files})
        (folder / SHARD_INDEX).write_text(index, encoding="utf-8")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _write_array(path, array):
    """Write an ``.npy``; return its length in bytes and the CRC-32 of the content in memory."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    header, data = header.getvalue(), array.reshape(-1).view(np.uint8)
    size = len(header) + data.nbytes
    with open(path, "xb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)  # fails on a full disk before the work, not in the middle
        file.write(header)
        file.write(data)
    return size, zlib.crc32(data, zlib.crc32(header))


class ShardWriter:
    """Collect rows batch by batch and pass them on shard by shard, as a context manager.

    At the end the rest is passed on; after an exception it is dropped.

    Args:
        save: function of ``(ids, arrays)`` that saves a shard.
        tensors: ``[(shape of a row, dtype)]``.
        total_rows: expected number of rows, which bounds the memory; there may be more.
        shard_bytes: maximum size of a shard in bytes.

    Example:
        >>> from thaw.features.shards import ShardWriter
        >>> saved = []
        >>> save = lambda ids, arrays: saved.append(arrays[0].tolist())
        >>> with ShardWriter(save, [((), "float32")], 3, shard_bytes=40) as writer:
        ...     writer.add(np.array([[1, 0], [2, 0], [3, 0]]), [np.array([0.5, 1.5, 2.5], "float32")])
        >>> saved
        [[0.5, 1.5], [2.5]]
    """

    def __init__(self, save, tensors, total_rows, shard_bytes):
        self._save, self._tensors, self._expected_rows = save, tensors, total_rows
        self._max_rows = max(1, int(shard_bytes // row_bytes(tensors)))
        self._filled, self._ids, self._arrays = 0, None, None

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self._flush()
        self._ids = self._arrays = None

    def add(self, ids, arrays):
        """Add rows.

        Args:
            ids: int64 ``(n, 2)``.
            arrays: one array ``(n, ...)`` for each tensor.

        Raises:
            ValueError: the arrays have another shape or dtype than the tensors.
            OSError: from ``save``: the disk is full.
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
        start = 0
        while start < len(ids):
            if self._ids is None:
                capacity = min(self._max_rows, max(self._expected_rows, len(ids) - start))
                self._ids = np.empty((capacity, 2), np.int64)
                self._arrays = [np.empty((capacity, *shape), dtype) for shape, dtype in self._tensors]
            count = min(len(ids) - start, len(self._ids) - self._filled)
            source, target = slice(start, start + count), slice(self._filled, self._filled + count)
            self._ids[target] = ids[source]
            for buffer, array in zip(self._arrays, arrays):
                buffer[target] = array[source]
            start, self._filled, self._expected_rows = start + count, self._filled + count, self._expected_rows - count
            if self._filled == len(self._ids):
                self._flush()

    def _flush(self):
        if self._filled:
            self._save(self._ids[: self._filled], [array[: self._filled] for array in self._arrays])
        self._filled, self._ids, self._arrays = 0, None, None


def row_bytes(tensors):
    """Return the bytes that one row with its id takes on disk, for ``[(shape of a row, dtype)]``."""
    return ID_BYTES + sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in tensors)
