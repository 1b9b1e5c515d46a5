"""What stands still has said about every example, on disk: a second run, another plan, a resumed run find it."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import time

import numpy as np

from thaw.tuning.disk_budget import DiskBudget, folders
from thaw.tuning.rows import Rows, find_rows
from thaw.tuning.segment import Segment, write_segment
from thaw.tuning.segment_writer import SegmentWriter, row_bytes

FORMAT_VERSION = 1
# What a kill in the middle may cost, and what the writer holds in memory.
SEGMENT_BYTES = 128e6
# Headers of the files, and ``segment.json``.
FILES_BYTES = 4096


class ActivationCache:
    """Activations on disk within a budget of bytes, for several processes at once.

    What is kept lies on shelves, one for each prefix (and precision); on a shelf in segments of about 128 MB.
    A segment is written beside its place and renamed; a kill loses at most the one being filled. When there is
    no room, the segments that were not used for longest go first, whatever shelf they are on; who has them
    open keeps reading. Damage is found by CRC-32 when a process opens a segment, and the rows count as missing.

    Args:
        folder: where. Default: ``activations`` in ``$THAW_CACHE``, else in ``$XDG_CACHE_HOME/thaw``, else in
            ``~/.cache/thaw``.
        budget: in bytes. Default: ``$THAW_CACHE_GB`` (a GB is 1e9 bytes), else 20 GB, but no more than half of
            what the cache holds and the free disk together.

    Raises:
        ValueError: ``$THAW_CACHE_GB`` or the budget is not a number from 0.

    Example:
        >>> import tempfile
        >>> from thaw.tuning.activation_cache import ActivationCache
        >>> shelf = ActivationCache(tempfile.mkdtemp()).shelf("5eed", {"model": "small"}, [((2,), "float32")])
        >>> ids = np.array([[11, 0], [12, 0]])
        >>> with shelf.writer(2) as writer:
        ...     writer.add(ids, [np.array([[1, 2], [3, 4]], "float32")])
        >>> shelf.missing(np.array([[12, 0], [13, 0]])).tolist()
        [False, True]
        >>> shelf.rows(ids)[0][np.array([1, 0])].tolist()
        [[3.0, 4.0], [1.0, 2.0]]
    """

    def __init__(self, folder=None, budget=None):
        self.disk = DiskBudget(folder, budget)
        self.notes = []
        self.checked = set()  # segments whose CRC-32 this process knows to be right
        self.shelves = []

    @property
    def folder(self):
        """Where it lies."""
        return self.disk.folder

    @property
    def budget(self):
        """How many bytes it may hold."""
        return self.disk.budget

    def shelf(self, key, about, tensors):
        """The shelf of one prefix, made where it is not there yet.

        Args:
            key: hex digits, made from all that decides about the values.
            about: what is kept, for people: goes to ``about.json``.
            tensors: ``[(shape of a row, dtype)]``.

        Returns:
            A :class:`Shelf`.

        Raises:
            ValueError: the key is not hex, a shape or dtype cannot be kept, or the shelf holds other tensors.
            OSError: the folder cannot be written to.
        """
        if not re.fullmatch("[0-9a-f]{1,128}", key):
            raise ValueError(f"key={key!r}; expected up to 128 hex digits in lower case.")
        self.shelves.append(Shelf(self, key, about, [_tensor(shape, dtype) for shape, dtype in tensors]))
        return self.shelves[-1]

    def room(self):
        """Bytes that may still be written without removing what any shelf of this object has in use."""
        return self.disk.room({path for shelf in self.shelves for path in shelf.in_use()})


class Shelf:
    """Rows of activations, one for each id; from :meth:`ActivationCache.shelf`.

    An id is two int64: the example's content, and which version of it (0: as it is). Rows that a shelf has
    once found (by :meth:`missing`, :meth:`rows` or its own writer) stay readable through it, also when another
    process removes them meanwhile.
    """

    def __init__(self, cache, key, about, tensors):
        self.folder, self.tensors = cache.folder / key, tensors
        self.written = False
        self._cache, self._disk, self._segments, self._refused = cache, cache.disk, {}, set()
        self._about = {"format": FORMAT_VERSION, "about": about, "tensors": [[list(s), d] for s, d in tensors]}
        self._row_bytes = row_bytes(tensors)
        there = _about(self.folder)
        if there and there.get("format") != FORMAT_VERSION:
            self._disk.remove(self.folder)
        elif there and there.get("tensors") != self._about["tensors"]:
            raise ValueError(
                f"{self.folder} holds tensors {there.get('tensors')}, not {self._about['tensors']}; expected a key of "
                "its own for each kind of activations."
            )
        try:
            self._make()
        except OSError as error:
            raise _sentence(error, cache.folder) from error

    @property
    def notes(self):
        """Sentences about damage that was found, of the whole cache."""
        return self._cache.notes

    def room(self):
        """Bytes that may still be written without removing what this shelf has in use."""
        return self._disk.room(self.in_use())

    def in_use(self):
        """Paths of the segments in which something was found, or that were written."""
        return {segment.folder for segment in self._segments.values() if segment.maps is not None}

    def missing(self, ids):
        """Which ids have no row here.

        Args:
            ids: int64 ``(..., 2)``.

        Returns:
            bool ``(...)``.
        """
        return self._find(ids)[0] < 0

    def rows(self, ids):
        """The rows of some ids, to read by index.

        Args:
            ids: int64 ``(n, 2)``, or ``(views, n, 2)``.

        Returns:
            One :class:`thaw.tuning.rows.Rows` for each tensor, ``(n, ...)`` or ``(views, n, ...)``.

        Raises:
            ValueError: some ids have no row.
        """
        places, segments = self._find(ids)
        if (absent := int((places < 0).sum())) or not segments:
            raise ValueError(
                f"{absent} of {places.size} rows are not on {self.folder}; add those that missing() names."
            )
        return [Rows([segment.maps[i] for segment in segments], places) for i in range(len(self.tensors))]

    def writer(self, total_rows):
        """Add rows, within ``with``: those added are kept at its end, and every 128 MB before.

        Args:
            total_rows: how many will be added, to say beforehand that there is no room.

        Returns:
            A context manager with ``add(ids, arrays)``: ids ``(n, 2)``, one array ``(n, ...)`` for each tensor.

        Raises:
            OSError: there is no room for so many; also from ``add``, when the disk is full meanwhile.
        """
        need, room = total_rows * self._row_bytes, self.room()
        if need > room:
            raise OSError(
                errno.EDQUOT,
                f"{need / 1e9:.3g} GB of activations do not fit into the {room / 1e9:.3g} GB that are left for them at "
                f"{self._disk.folder}: make room on the disk, set THAW_CACHE_GB to a larger number, or views to a "
                "smaller one.",
            )
        self.written = True
        return SegmentWriter(self._commit, self.tensors, total_rows, SEGMENT_BYTES)

    def _find(self, ids):
        """Where the ids stand among the rows of the segments used, -1 for nowhere; and those segments, open."""
        ids = _pairs(ids)
        while True:
            segments = self._look()
            starts = np.cumsum([0, *(len(segment.ids) for segment in segments)])
            stored = np.concatenate([np.empty((0, 2), np.int64), *(segment.ids for segment in segments)])
            places = find_rows(stored, ids.reshape(-1, 2)).reshape(ids.shape[:-1])
            used = np.unique(np.searchsorted(starts, places[places >= 0], side="right") - 1)
            if all(self._open(segments[i]) for i in used):
                break  # otherwise one of them is damaged or gone: look again without it
        shift = np.zeros(len(segments) + 1, np.int64)
        lengths = np.diff(starts)[used]
        shift[used] = np.cumsum(lengths) - lengths - starts[used]
        found = places >= 0
        places[found] += shift[np.searchsorted(starts, places[found], side="right") - 1]
        self._touch([segments[i].folder for i in used])
        return places, [segments[i] for i in used]

    def _look(self):
        """The segments here now, and those that are open already, also if they were removed meanwhile."""
        there = {path.name: path for path in folders(self.folder)}
        for name in [name for name, segment in self._segments.items() if segment.maps is None and name not in there]:
            del self._segments[name]
        for name, path in there.items():
            if name not in self._segments and name not in self._refused:
                try:
                    self._segments[name] = Segment(path, self.tensors)
                except (OSError, ValueError, EOFError) as error:
                    self._refuse(path, error)
        return [self._segments[name] for name in sorted(self._segments)]

    def _open(self, segment):
        try:
            segment.open(check=segment.folder not in self._cache.checked)
        except (OSError, ValueError, EOFError) as error:
            self._refuse(segment.folder, error)
            return False
        self._cache.checked.add(segment.folder)
        return True

    def _refuse(self, path, error):
        """Set a damaged segment aside, and say so; one that another process removed is just not there."""
        if isinstance(error, OSError) and error.errno not in (errno.ENOENT, errno.EIO, errno.EACCES):
            raise error  # too many open files, no memory: nothing that speaks against what is kept
        self._refused.add(path.name)
        self._segments.pop(path.name, None)
        if not path.exists():
            return
        reason = getattr(error, "strerror", None) or str(error)
        self.notes.append(f"Kept activations were damaged and are computed anew ({path}: {reason}).")
        self._disk.remove(path)

    def _make(self):
        """The folder and its ``about.json``; another process may do the same at the same time."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / "about.json"
        if _about(self.folder) is None:
            beside = self._disk.part()
            beside.write_text(json.dumps(self._about, indent=2, default=str), encoding="utf-8")
            os.replace(beside, file)
        self._touch([])

    def _touch(self, places):
        now = time.time_ns()
        for file in [self.folder / "about.json", *(place / "segment.json" for place in places)]:
            try:
                os.utime(file, ns=(now, now))
            except OSError:
                pass  # removed meanwhile, or a cache that may only be read: the order of eviction is worth no error

    def _commit(self, ids, arrays):
        """Put a whole segment into its place."""
        part = self._disk.part()
        place = self.folder / f"{time.time_ns():020d}-{secrets.token_hex(4)}"
        # Two shelves that are written side by side must not remove one another's.
        stay = {path for shelf in {*self._cache.shelves, self} if shelf.written for path in shelf.in_use()}
        self._disk.make_room(ids.nbytes + sum(array.nbytes for array in arrays) + FILES_BYTES, stay)
        try:
            write_segment(part, ids, arrays)
            segment = Segment(part, self.tensors)
            segment.open(check=False)  # before others can see it, and remove it
            for attempt in range(8):
                try:
                    self._make()
                    os.rename(part, place)
                    break
                except FileNotFoundError:  # the shelf was removed under us: it is made again
                    if attempt == 7:
                        raise
        except BaseException as error:
            shutil.rmtree(part, ignore_errors=True)
            if isinstance(error, OSError):
                raise _sentence(error, self._disk.folder) from error
            raise
        segment.folder = place
        self._segments[place.name] = segment
        self._cache.checked.add(place)
        self._touch([place])


def _tensor(shape, dtype):
    kind = np.dtype(dtype)
    if kind.kind not in "biuf" or any(not isinstance(n, (int, np.integer)) or n < 1 for n in shape):
        raise ValueError(
            f"A tensor of shape {shape} and {dtype} cannot be kept; expected whole numbers and a dtype of NumPy."
        )
    return tuple(int(n) for n in shape), kind.name


def _pairs(ids):
    ids = np.asarray(ids)
    if ids.ndim < 2 or ids.shape[-1] != 2 or ids.dtype.kind != "i":
        raise ValueError(f"ids of shape {ids.shape} and {ids.dtype}; expected int64 (..., 2): content and version.")
    return ids.astype(np.int64, copy=False)


def _about(folder):
    """What stands in a shelf's ``about.json``; ``None`` where there is none, or none that can be read."""
    try:
        there = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return there if isinstance(there, dict) else None


def _sentence(error, folder):
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        said = f"the disk is full at {folder}: free some space, or set THAW_CACHE to a folder on another disk"
    else:
        said = f"the cache of activations cannot be written at {folder} ({error.strerror}): set THAW_CACHE"
    return type(error)(error.errno, said)
