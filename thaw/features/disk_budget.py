"""Hold the feature cache within a disk budget, for several processes at once."""

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

from thaw._files import explain_disk_error

DEFAULT_BUDGET_BYTES = 20e9
MAX_FREE_SHARE = 0.8  # of the free disk may be filled: the run folder needs some too
MAX_LEFTOVER_SECONDS = 3600  # a half-written file that is older was left by a killed process
SHARD_INDEX = "shard.json"  # its modification time is when the shard was last used


class DiskBudget:
    """Hold a folder ``table/shard/files`` within a number of bytes, shared by several processes.

    A table is a folder whose name is hexadecimal, a shard any folder in a table. Nothing is read, created or removed
    before a method is called.

    Args:
        folder: path of the folder.
        budget: bytes. Default: ``$THAW_CACHE_GB`` (a GB is 1e9 bytes), else 20 GB, but no more than half of what the
            folder holds and the free disk together.

    Raises:
        ValueError: ``$THAW_CACHE_GB`` or the budget is not a number from 0.

    Example:
        >>> import tempfile
        >>> from thaw.features.disk_budget import DiskBudget
        >>> disk = DiskBudget(tempfile.mkdtemp(), budget=1000)
        >>> disk.shards(), disk.room(in_use=set()) <= 1000
        ([], True)
    """

    def __init__(self, folder, budget=None):
        self.folder = Path(folder).absolute()
        self.budget = self._default_budget() if budget is None else budget
        if not (isinstance(self.budget, (int, float)) and self.budget >= 0):
            raise ValueError(f"budget={budget!r}; expected a number of bytes from 0.")

    def tables(self):
        """Return the paths of the tables."""
        return tables_in(self.folder)

    def shards(self):
        """Return ``(last used, bytes, path)`` of every shard; the time in nanoseconds since 1970."""
        return [shard for table in self.tables() for shard in shards_in(table)]

    def remove(self, path):
        """Remove a shard or a table: first by renaming, so that no process reads half of it.

        Args:
            path: its path.

        Returns:
            Whether it was this process that removed it.
        """
        trash = self.folder / f"trash-{secrets.token_hex(8)}"
        try:
            os.rename(path, trash)
        except OSError:
            return False
        shutil.rmtree(trash, ignore_errors=True)
        return True

    def free(self):
        """Return the free bytes on the disk of the cache."""
        existing = self.folder
        while not os.path.exists(existing):  # Path.exists raises for a name that is too long
            existing = existing.parent
        return shutil.disk_usage(existing).free

    def room(self, in_use):
        """Return how many bytes may still be written.

        Args:
            in_use: set of paths of the shards that have to stay.
        """
        shards = self.shards()
        own = sum(size for _, size, path in shards if path in in_use)
        others = sum(size for _, size, _ in shards) - own
        return max(0, int(min(self.budget - own, MAX_FREE_SHARE * self.free() + others)))

    def make_room(self, size, in_use):
        """Remove the least recently used shards until there is room.

        Args:
            size: bytes that are needed.
            in_use: set of paths of the shards that have to stay.

        Raises:
            OSError: there is no room next to the shards in use, or the disk is full of other things.
        """
        shards = self.shards()
        own = sum(length for _, length, path in shards if path in in_use)
        if own + size > self.budget:
            raise OSError(
                errno.EDQUOT,
                f"The feature cache may hold {self.budget / 1e9:.3g} GB, and this run alone needs more than "
                f"{(own + size) / 1e9:.3g} GB: set THAW_CACHE_GB to a larger number, or views to a smaller one.",
            )
        total = sum(length for _, length, _ in shards)
        for _, length, path in sorted(shards):
            if total + size <= self.budget and size <= self.free():
                return
            if path not in in_use and self.remove(path):
                total -= length
                _remove_empty(path.parent)
        if size > self.free():
            raise explain_disk_error(OSError(errno.ENOSPC, "full"), self.folder, "the feature cache cannot be written")

    def part(self):
        """Return a path for something half-written; its name says by which process."""
        return self.folder / f"{_machine()}-{os.getpid()}-{secrets.token_hex(4)}.part"

    def remove_leftovers(self):
        """Remove what killed processes left: half-written shards, and what they were about to delete."""
        for path in self.folder.glob("trash-*"):
            shutil.rmtree(path, ignore_errors=True)
        for path in self.folder.glob("*.part"):
            if _is_abandoned(path):
                shutil.rmtree(path, ignore_errors=True)
                if path.is_file():
                    path.unlink(missing_ok=True)

    def _default_budget(self):
        given = os.environ.get("THAW_CACHE_GB")
        if not given:
            return min(DEFAULT_BUDGET_BYTES, (sum(size for _, size, _ in self.shards()) + self.free()) / 2)
        try:
            gigabytes = float(given)
        except ValueError:
            gigabytes = math.nan
        if not 0 <= gigabytes < math.inf:
            raise ValueError(f"THAW_CACHE_GB is {given!r}; expected a number of GB from 0.")
        return gigabytes * 1e9


def tables_in(folder):
    """Return the paths of the tables in a feature cache; none where the folder does not exist."""
    return [path for path in folders_in(folder) if re.fullmatch("[0-9a-f]+", path.name)]


def shards_in(table):
    """Return ``(last used, bytes, path)`` of every shard in a table; the time in nanoseconds since 1970."""
    shards = []
    for path in folders_in(table):
        try:
            index = path / SHARD_INDEX
            used = (index if index.exists() else path).stat().st_mtime_ns
            shards.append((used, sum(file.stat().st_size for file in path.iterdir()), path))
        except OSError:
            continue  # another process is removing it
    return shards


def folders_in(folder):
    """Return the paths of the folders in a folder; none where it does not exist."""
    try:
        return [Path(entry.path) for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _remove_empty(table):
    """Remove a table without shards, never by renaming: another process may be adding a shard to it."""
    if not folders_in(table):
        try:
            (table / "about.json").unlink(missing_ok=True)
            table.rmdir()
        except OSError:
            pass


def _machine():
    return f"{zlib.crc32(platform.node().encode()):08x}"


def _is_abandoned(path):
    try:
        if time.time() - path.stat().st_mtime > MAX_LEFTOVER_SECONDS:
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
