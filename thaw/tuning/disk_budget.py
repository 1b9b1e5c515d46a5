"""The disk below the cache of activations: what lies there, how much it may be, and what goes first."""

from __future__ import annotations

import errno
import math
import os
import platform
import re
import secrets
import shutil
import time
import zlib
from pathlib import Path

DEFAULT_BUDGET = 20e9
# Share of the free disk that may be filled: the run folder needs some too.
FREE_SHARE = 0.8
STALE_SECONDS = 3600


class DiskBudget:
    """A folder ``shelf/segment/files`` that is held within a number of bytes, by several processes at once.

    A shelf is a folder with hex digits for a name, a segment any folder in it with a ``segment.json``, whose time
    of change is when it was last used. What killed processes left half-written is removed when one is made.

    Args:
        folder: where. Default: ``activations`` in ``$THAW_CACHE``, else in ``$XDG_CACHE_HOME/thaw``, else in
            ``~/.cache/thaw``.
        budget: in bytes. Default: ``$THAW_CACHE_GB`` (a GB is 1e9 bytes), else 20 GB, but no more than half of
            what the folder holds and the free disk together.

    Raises:
        ValueError: ``$THAW_CACHE_GB`` or the budget is not a number from 0.

    Example:
        >>> import tempfile
        >>> from thaw.tuning.disk_budget import DiskBudget
        >>> disk = DiskBudget(tempfile.mkdtemp(), budget=1000)
        >>> disk.held(), disk.room(keep=set()) <= 1000
        ([], True)
    """

    def __init__(self, folder=None, budget=None):
        self.folder = Path(folder if folder is not None else _default_folder()).absolute()
        self._remove_leftovers()
        self.budget = self._default_budget() if budget is None else budget
        if not (isinstance(self.budget, (int, float)) and self.budget >= 0):
            raise ValueError(f"budget={budget!r}; expected a number of bytes from 0.")

    def held(self):
        """What is on the shelves.

        Returns:
            A list of ``(last used, bytes, path)``, one for each segment; the time in nanoseconds since 1970.
        """
        found = []
        for shelf in self.shelves():
            for place in folders(shelf):
                try:
                    used = (place / "segment.json").stat().st_mtime_ns
                    found.append((used, sum(file.stat().st_size for file in place.iterdir()), place))
                except OSError:
                    # Another process is removing it, or it is damaged and found so when it is wanted.
                    continue
        return found

    def shelves(self):
        """Paths of the shelves."""
        return [path for path in folders(self.folder) if re.fullmatch("[0-9a-f]+", path.name)]

    def remove(self, place):
        """Remove a segment or a shelf: first by renaming, so that nobody meets half of it.

        Args:
            place: its path.

        Returns:
            Whether it was this process that removed it.
        """
        trash = self.folder / f"trash-{secrets.token_hex(8)}"
        try:
            os.rename(place, trash)
        except OSError:
            return False
        shutil.rmtree(trash, ignore_errors=True)
        return True

    def free(self):
        """Bytes free on the disk below the cache."""
        there = self.folder
        while not there.exists():
            there = there.parent
        return shutil.disk_usage(there).free

    def room(self, keep):
        """Bytes that may still be written.

        Args:
            keep: paths of the segments that have to stay.
        """
        held = self.held()
        own = sum(length for _, length, path in held if path in keep)
        others = sum(length for _, length, _ in held) - own
        return max(0, int(min(self.budget - own, FREE_SHARE * self.free() + others)))

    def make_room(self, size, keep):
        """Remove what was not used for longest until there is room.

        Args:
            size: in bytes.
            keep: paths of the segments that have to stay.

        Raises:
            OSError: there is no room for it beside what has to stay.
        """
        held = self.held()
        own = sum(length for _, length, path in held if path in keep)
        if own + size > self.budget:
            raise OSError(
                errno.EDQUOT,
                f"The cache of activations may hold {self.budget / 1e9:.3g} GB, and this run alone wants more than "
                f"{(own + size) / 1e9:.3g} GB: set THAW_CACHE_GB to a larger number, or views to a smaller one.",
            )
        total = sum(length for _, length, _ in held)
        for _, length, path in sorted(held):
            if total + size <= self.budget and size <= self.free():
                return
            if path not in keep:
                self.remove(path)
                total -= length
                self._remove_empty(path.parent)

    def part(self):
        """A path for something half-written; the name tells by whom, so that it can go when that one is gone."""
        return self.folder / f"{_machine()}-{os.getpid()}-{secrets.token_hex(4)}.part"

    def _remove_empty(self, shelf):
        """Never by renaming: another process may be putting something into it."""
        if not folders(shelf):
            try:
                (shelf / "about.json").unlink(missing_ok=True)
                shelf.rmdir()
            except OSError:
                pass

    def _default_budget(self):
        given = os.environ.get("THAW_CACHE_GB")
        if not given:
            return min(DEFAULT_BUDGET, (sum(length for _, length, _ in self.held()) + self.free()) / 2)
        try:
            gigabytes = float(given)
        except ValueError:
            gigabytes = math.nan
        if not 0 <= gigabytes < math.inf:
            raise ValueError(f"THAW_CACHE_GB is {given!r}; expected a number of GB from 0.")
        return gigabytes * 1e9

    def _remove_leftovers(self):
        """What killed processes left: half-written segments, and what they were about to delete."""
        for path in self.folder.glob("trash-*"):
            shutil.rmtree(path, ignore_errors=True)
        for path in self.folder.glob("*.part"):
            if _abandoned(path):
                shutil.rmtree(path, ignore_errors=True)
                if path.is_file():
                    path.unlink(missing_ok=True)


def folders(folder):
    """Paths of the folders in a folder; none where it is not there."""
    try:
        return [Path(entry.path) for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _machine():
    return f"{zlib.crc32(platform.node().encode()):08x}"


def _abandoned(path):
    try:
        if time.time() - path.stat().st_mtime > STALE_SECONDS:
            return True
    except OSError:
        return False
    machine, pid, *_ = (*path.name.split("-"), "", "")
    if machine != _machine() or not pid.isdigit() or os.name != "posix":
        return False
    try:
        os.kill(int(pid), 0)  # signal 0 only asks
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _default_folder():
    if given := os.environ.get("THAW_CACHE"):
        return Path(given) / "activations"
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given) / "thaw" / "activations"
    return Path.home() / ".cache" / "thaw" / "activations"
