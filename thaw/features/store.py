"""The feature cache on disk: one table of feature rows for each cut point of a model."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import time

import numpy as np

from thaw._files import cache_root, explain_disk_error, write_atomically, write_text
from thaw.features.disk_budget import SHARD_INDEX, DiskBudget, folders_in
from thaw.features.shards import Shard, ShardedArray, ShardWriter, find_ids, row_bytes, write_shard

FORMAT_VERSION = 2
SHARD_BYTES = 128e6
SHARD_OVERHEAD_BYTES = 4096  # headers of the files, and shard.json
MAX_COMMIT_ATTEMPTS = 8
CANNOT_WRITE = "the feature cache cannot be written"
ACTIVATIONS = "activations"  # folder of the feature cache in the cache folder
QUANTIZED, JUDGED = "quantized", "judged"  # extensions of files in it: a network in int8, and how it was judged


class FeatureCache:
    """Cache features on disk within a budget of bytes, shared by several processes.

    The cache has one table for each cut point of a model and each dtype. The rows of a table lie in shards, folders of
    about 128 MB. A shard is written under another name and renamed when it is complete, so that a killed process loses
    at most the shard that it was filling. When there is no room, the least recently used shards of all tables are
    removed; a process that has such a shard open can still read it. A shard is compared with its CRC-32 when it is
    opened; where it is damaged, its rows count as missing.

    Args:
        cache_dir: the folder of all caches (:func:`thaw._files.cache_root`); this one is ``activations`` in it.
        budget: bytes. Default: ``$THAW_CACHE_GB`` (a GB is 1e9 bytes), else 20 GB, but no more than half of what the
            cache holds and the free disk together.
        shard_bytes: size of a shard: lost at most when a process is killed, and held in memory by a writer. Default
            128 MB.

    Attributes:
        folder: its path.
        budget: bytes that it may hold.
        tables: every table that was opened through this object.
        notes: sentences about damage that was found.

    Raises:
        ValueError: ``$THAW_CACHE_GB`` or the budget is not a number from 0.
        OSError: the folder cannot be read, or there is no home folder for it.

    Example:
        >>> import tempfile
        >>> from thaw.features.store import FeatureCache
        >>> table = FeatureCache(tempfile.mkdtemp()).table("5eed", {"model": "small"}, [((2,), "float32")])
        >>> ids = np.array([[11, 0], [12, 0]])
        >>> with table.writer(2) as writer:
        ...     writer.add(ids, [np.array([[1, 2], [3, 4]], "float32")])
        >>> table.missing(np.array([[12, 0], [13, 0]])).tolist()
        [False, True]
        >>> table.rows(ids)[0][np.array([1, 0])].tolist()
        [[3.0, 4.0], [1.0, 2.0]]
    """

    def __init__(self, cache_dir=None, budget=None, *, shard_bytes=SHARD_BYTES):
        folder = cache_root(cache_dir) / ACTIVATIONS
        try:
            self.disk = DiskBudget(folder, budget)
            self.disk.remove_leftovers()
        except OSError as error:
            raise explain_disk_error(error, folder, CANNOT_WRITE) from error
        self.folder, self.budget, self.shard_bytes = self.disk.folder, self.disk.budget, shard_bytes
        self.notes, self.tables = [], []
        self.verified = set()  # shards whose CRC-32 this process has compared

    def table(self, key, about, tensors):
        """Open the table of one prefix; it is created if it does not exist.

        Args:
            key: hexadecimal digits, made from everything that the values depend on.
            about: dict with a human-readable description; saved in ``about.json``.
            tensors: ``[(shape of a row, dtype)]``.

        Returns:
            A :class:`FeatureTable`.

        Raises:
            ValueError: the key is not hexadecimal, a shape or dtype cannot be cached, or the table holds other tensors.
            OSError: the folder cannot be written to.
        """
        if not re.fullmatch("[0-9a-f]{1,128}", key):
            raise ValueError(f"key={key!r}; expected up to 128 hex digits in lower case.")
        self.tables.append(FeatureTable(self, key, about, [_checked_tensor(shape, dtype) for shape, dtype in tensors]))
        return self.tables[-1]

    def room(self):
        """Return how many bytes may still be written without removing shards that a table of this object uses."""
        return self.disk.room({path for table in self.tables for path in table.in_use()})


class FeatureTable:
    """Store one row of features for each id; opened by :meth:`FeatureCache.table`.

    An id is two int64: the content of the example, and its augmented version (0: not augmented). Rows that this object
    has read or written stay readable through it, even if another process removes them meanwhile.

    Attributes:
        folder: its path.
        tensors: ``[(shape of a row, dtype)]``.
        cache: the :class:`FeatureCache`, with its notes about damage.
    """

    def __init__(self, cache, key, about, tensors):
        self.folder, self.tensors = cache.folder / key, tensors
        self.is_written = False
        self.cache, self._disk, self._shards, self._damaged = cache, cache.disk, {}, set()
        self._about = {"format": FORMAT_VERSION, "about": about, "tensors": [[list(s), d] for s, d in tensors]}
        self._row_bytes = row_bytes(tensors)
        existing = _read_about(self.folder)
        if existing and existing.get("format") != FORMAT_VERSION:
            self._disk.remove(self.folder)
        elif existing and existing.get("tensors") != self._about["tensors"]:
            raise ValueError(
                f"{self.folder} holds tensors {existing.get('tensors')}, not {self._about['tensors']}; expected a key "
                "of its own for each kind of features."
            )
        try:
            self._create_folder()
        except OSError as error:
            raise explain_disk_error(error, cache.folder, CANNOT_WRITE) from error

    def room(self):
        """Return how many bytes may still be written without removing shards that this table uses."""
        return self._disk.room(self.in_use())

    def in_use(self):
        """Return the paths of the shards that were read or written."""
        return {shard.folder for shard in self._shards.values() if shard.maps is not None}

    def missing(self, ids):
        """Return which ids have no row.

        Args:
            ids: int64 ``(..., 2)``.

        Returns:
            bool ``(...)``.
        """
        return self._find(ids)[0] < 0

    def rows(self, ids):
        """Return the rows of some ids, which are read when they are indexed.

        Args:
            ids: int64 ``(n, 2)``, or ``(views, n, 2)``.

        Returns:
            One :class:`thaw.features.shards.ShardedArray` for each tensor, ``(n, ...)`` or ``(views, n, ...)``.

        Raises:
            ValueError: some ids have no row.
        """
        positions, shards = self._find(ids)
        if (absent := int((positions < 0).sum())) or not shards:
            raise ValueError(
                f"{absent} of {positions.size} rows are not in {self.folder}; add those that missing() returns."
            )
        return [ShardedArray([shard.maps[i] for shard in shards], positions) for i in range(len(self.tensors))]

    def writer(self, total_rows):
        """Return a context manager to add rows; they are saved shard by shard and at its end.

        Args:
            total_rows: number of rows to be added, to fail early where there is no room.

        Returns:
            A context manager with ``add(ids, arrays)``: ids ``(n, 2)``, one array ``(n, ...)`` for each tensor.

        Raises:
            OSError: there is no room for so many rows; also from ``add``, when the disk becomes full.
        """
        needed, room = total_rows * self._row_bytes, self.room()
        if needed > room:
            raise OSError(
                errno.EDQUOT,
                f"{needed / 1e9:.3g} GB of features do not fit into the {room / 1e9:.3g} GB that are left for them at "
                f"{self._disk.folder}: free some space, set THAW_CACHE_GB to a larger number, or views to a "
                "smaller one.",
            )
        self.is_written = True
        return ShardWriter(self._commit, self.tensors, total_rows, self.cache.shard_bytes)

    def _find(self, ids):
        """Return the positions of ids among the rows of the shards that hold them (-1: in none), and these shards."""
        ids = _checked_ids(ids)
        while True:
            shards = self._refresh()
            starts = np.cumsum([0, *(len(shard.ids) for shard in shards)])
            stored = np.concatenate([np.empty((0, 2), np.int64), *(shard.ids for shard in shards)])
            positions = find_ids(stored, ids.reshape(-1, 2)).reshape(ids.shape[:-1])
            used = np.unique(np.searchsorted(starts, positions[positions >= 0], side="right") - 1)
            if all(self._open(shards[i]) for i in used):
                break  # otherwise one of them is damaged or removed: look again without it
        # From positions among all shards to positions among those used.
        shift = np.zeros(len(shards) + 1, np.int64)
        lengths = np.diff(starts)[used]
        shift[used] = np.cumsum(lengths) - lengths - starts[used]
        is_there = positions >= 0
        positions[is_there] += shift[np.searchsorted(starts, positions[is_there], side="right") - 1]
        self._touch([shards[i].folder for i in used])
        return positions, [shards[i] for i in used]

    def _refresh(self):
        """Return the shards on disk, and those that are open already, even if they were removed meanwhile."""
        on_disk = {path.name: path for path in folders_in(self.folder)}
        self._shards = {
            name: shard for name, shard in self._shards.items() if shard.maps is not None or name in on_disk
        }
        for name, path in on_disk.items():
            if name not in self._shards and name not in self._damaged:
                try:
                    self._shards[name] = Shard(path, self.tensors)
                except (OSError, ValueError, EOFError) as error:
                    self._discard(path, error)
        return [self._shards[name] for name in sorted(self._shards)]

    def _open(self, shard):
        try:
            shard.open(check=shard.folder not in self.cache.verified)
        except (OSError, ValueError, EOFError) as error:
            self._discard(shard.folder, error)
            return False
        self.cache.verified.add(shard.folder)
        return True

    def _discard(self, path, error):
        """Remove a damaged shard and note it; one that another process removed is just missing."""
        if isinstance(error, OSError) and error.errno not in (errno.ENOENT, errno.EIO, errno.EACCES):
            raise error  # too many open files, no memory: no evidence of damage
        self._damaged.add(path.name)
        self._shards.pop(path.name, None)
        if not path.exists():
            return
        reason = getattr(error, "strerror", None) or str(error)
        self.cache.notes.append(f"Cached features were damaged and are computed again ({path}: {reason}).")
        self._disk.remove(path)

    def _create_folder(self):
        """Create the folder and its ``about.json``; another process may do the same at the same time."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if _read_about(self.folder) is None:
            text = json.dumps(self._about, indent=2, default=str)
            write_atomically(self.folder / "about.json", write_text(text), flush=False)
        self._touch([])

    def _touch(self, shard_folders):
        now = time.time_ns()
        for file in [self.folder / "about.json", *(folder / SHARD_INDEX for folder in shard_folders)]:
            try:
                os.utime(file, ns=(now, now))
            except OSError:
                pass  # removed meanwhile, or a read-only cache: the order of eviction is worth no error

    def _commit(self, ids, arrays):
        """Write a shard and rename it into the table."""
        part = self._disk.part()
        path = self.folder / f"{time.time_ns():020d}-{secrets.token_hex(4)}"
        # Two tables that are written side by side must not remove one another's shards.
        in_use = {path for table in {*self.cache.tables, self} if table.is_written for path in table.in_use()}
        self._disk.make_room(ids.nbytes + sum(array.nbytes for array in arrays) + SHARD_OVERHEAD_BYTES, in_use)
        try:
            write_shard(part, ids, arrays)
            shard = Shard(part, self.tensors)
            shard.open(check=False)  # before other processes can see it, and remove it
            for attempt in range(MAX_COMMIT_ATTEMPTS):
                try:
                    self._create_folder()
                    os.rename(part, path)
                    break
                except FileNotFoundError:  # another process removed the table: create it again
                    if attempt == MAX_COMMIT_ATTEMPTS - 1:
                        raise
        except BaseException as error:
            shutil.rmtree(part, ignore_errors=True)
            if isinstance(error, OSError):
                raise explain_disk_error(error, self._disk.folder, CANNOT_WRITE) from error
            raise
        shard.folder = path
        self._shards[path.name] = shard
        self.cache.verified.add(path)
        self._touch([path])


def _checked_tensor(shape, dtype):
    kind = np.dtype(dtype)
    if kind.kind not in "biuf" or any(not isinstance(n, (int, np.integer)) or n < 1 for n in shape):
        raise ValueError(
            f"A tensor of shape {shape} and {dtype} cannot be cached; expected whole numbers and a dtype of NumPy."
        )
    return tuple(int(n) for n in shape), kind.name


def _checked_ids(ids):
    ids = np.asarray(ids)
    if ids.ndim < 2 or ids.shape[-1] != 2 or ids.dtype.kind != "i":
        raise ValueError(f"ids of shape {ids.shape} and {ids.dtype}; expected int64 (..., 2): content and version.")
    return ids.astype(np.int64, copy=False)


def _read_about(folder):
    """Read a table's ``about.json``; ``None`` where it is missing or damaged."""
    try:
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return about if isinstance(about, dict) else None
