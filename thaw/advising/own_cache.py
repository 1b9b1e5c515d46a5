"""A cache for one run of a comparison, and what is left of it where the process was killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time

PREFIX = "compare-"
JUST_MADE = 10.0  # seconds


@contextlib.contextmanager
def own_cache():
    """An empty cache beside the usual one, so that no run profits from another; removed at the end.

    It is locked for as long as the process lives. Those that killed processes left are removed first.

    Yields:
        Its path.

    Raises:
        ValueError: where the caches would lie there is a file.

    Example:
        >>> import os, tempfile
        >>> from thaw.advising.own_cache import own_cache
        >>> with own_cache() as folder:
        ...     os.environ["THAW_CACHE"] == folder
        True
    """
    from thaw.shipping.lock_run import lock_run
    from thaw.tuning.disk_budget import DiskBudget

    usual, before = DiskBudget(budget=0).folder.parent, os.environ.get("THAW_CACHE")
    if usual.exists() and not usual.is_dir():
        raise ValueError(f"{usual} is a file; expected a folder for the cache, which THAW_CACHE names.")
    usual.mkdir(parents=True, exist_ok=True)
    remove_left_caches(usual)
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=usual, ignore_cleanup_errors=True) as folder, lock_run(folder):
        os.environ["THAW_CACHE"] = folder
        try:
            yield folder
        finally:
            if before is None:
                del os.environ["THAW_CACHE"]
            else:
                os.environ["THAW_CACHE"] = before


def own_caches(root):
    """The caches of comparisons, also of killed ones.

    Args:
        root: ``pathlib.Path`` of the folder of all caches.

    Returns:
        A list of ``(path, bytes, in use)``.
    """
    return [(path, _bytes(path), _in_use(path)) for path in sorted(root.glob(f"{PREFIX}*")) if path.is_dir()]


def remove_left_caches(root):
    """Remove the caches of comparisons that are no longer in use.

    Args:
        root: ``pathlib.Path`` of the folder of all caches.

    Returns:
        How many bytes were freed.
    """
    freed = 0
    for path, size, in_use in own_caches(root):
        if not in_use:
            shutil.rmtree(path, ignore_errors=True)
            freed += size
    return freed


def _bytes(folder):
    total = 0
    for here, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # just removed
                total += os.stat(os.path.join(here, name)).st_size
    return total


def _in_use(folder):
    from thaw.shipping.lock_run import LOCK, lock_run

    if not (folder / LOCK).exists():  # just made, by one that is about to lock it?
        try:
            return time.time() - folder.stat().st_mtime < JUST_MADE
        except FileNotFoundError:  # just removed
            return False
    try:
        with lock_run(folder):
            return False
    except OSError:  # a living process has it, or another user
        return True
