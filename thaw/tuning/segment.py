"""One piece of what is kept: rows of activations in files that are written whole, checked, and read by memory map."""

from __future__ import annotations

import io
import json
import os
import shutil
import zlib
from pathlib import Path

import numpy as np

BLOCK = 1 << 22


class Segment:
    """Rows of activations with their ids, in a folder that nobody changes once it is in its place.

    The folder holds ``ids.npy``, one ``.npy`` for each tensor (``0.npy``, ``1.npy`` ...), and ``segment.json``
    with the number of rows, and the length and CRC-32 of every file.

    Args:
        folder: the folder.
        tensors: ``[(shape of a row, dtype)]``, what the segment is expected to hold.

    Raises:
        ValueError: what is there is not what was written.
        OSError: a file is not there, or cannot be read.

    Example:
        >>> import pathlib, tempfile
        >>> from thaw.tuning.segment import Segment, write_segment
        >>> place = pathlib.Path(tempfile.mkdtemp(), "one")
        >>> write_segment(place, np.array([[7, 0], [9, 0]]), [np.array([[1.5], [2.5]], "float32")])
        >>> segment = Segment(place, [((1,), "float32")])
        >>> segment.open()
        >>> segment.ids[:, 0].tolist(), segment.maps[0].tolist()
        ([7, 9], [[1.5], [2.5]])
    """

    def __init__(self, folder, tensors):
        self.folder = Path(folder)
        self.maps = None
        self._tensors = tensors
        self._names = [f"{i}.npy" for i in range(len(tensors))]
        about = json.loads((self.folder / "segment.json").read_text(encoding="utf-8"))
        try:
            self._files = {name: (int(size), int(crc)) for name, (size, crc) in about["files"].items()}
            rows = int(about["rows"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError("segment.json is not as it was written") from error
        if set(self._files) != {"ids.npy", *self._names}:
            raise ValueError("segment.json names other files")
        self._check("ids.npy")
        self.ids = np.load(self.folder / "ids.npy", allow_pickle=False)
        if self.ids.shape != (rows, 2) or self.ids.dtype != np.int64:
            raise ValueError("ids.npy is not as it was written")

    def open(self, check=True):
        """Compare the files with their CRC-32, block by block, and map them into memory.

        Args:
            check: ``False`` for a segment that this process has written or checked already.

        Raises:
            ValueError: a file is damaged.
            OSError: a file is not there, or cannot be read.
        """
        if self.maps is not None:
            return
        maps = []
        for name, (shape, dtype) in zip(self._names, self._tensors):
            if check:
                self._check(name)
            rows = np.load(self.folder / name, mmap_mode="r", allow_pickle=False)
            if rows.shape != (len(self.ids), *shape) or rows.dtype != np.dtype(dtype):
                raise ValueError(f"{name} is not as it was written")
            maps.append(rows.view(np.ndarray))  # the map's own class makes every slice slower
        self.maps = maps

    def _check(self, name):
        path = self.folder / name
        size, crc = self._files[name]
        if path.stat().st_size != size:
            raise ValueError(f"{name} has another length")
        found = 0
        with open(path, "rb") as file:
            while block := file.read(BLOCK):
                found = zlib.crc32(block, found)
        if found != crc:
            raise ValueError(f"{name} has another checksum")


def write_segment(folder, ids, arrays):
    """Write a segment; when that fails, nothing of it is left.

    Args:
        folder: where; must not exist yet.
        ids: ``(n, 2)`` int64.
        arrays: one C-contiguous array for each tensor, ``(n, ...)``.

    Raises:
        OSError: the disk is full, or cannot be written to.
    """
    folder = Path(folder)
    folder.mkdir(parents=True)
    try:
        files = {"ids.npy": _write(folder / "ids.npy", np.asarray(ids, np.int64))}
        for i, array in enumerate(arrays):
            files[f"{i}.npy"] = _write(folder / f"{i}.npy", array)
        about = json.dumps({"rows": len(ids), "files": files})
        (folder / "segment.json").write_text(about, encoding="utf-8")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _write(path, array):
    """Write an ``.npy``; gives its length in bytes and the CRC-32 of what was meant to be written."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    header, data = header.getvalue(), array.reshape(-1).view(np.uint8)
    size = len(header) + data.nbytes
    with open(path, "xb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk says so before the work, not amid it
        file.write(header)
        file.write(data)
    return size, zlib.crc32(data, zlib.crc32(header))
