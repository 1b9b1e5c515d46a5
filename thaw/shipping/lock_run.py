"""One run at a time in a run folder."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

LOCK = ".lock"


@contextlib.contextmanager
def lock_run(folder: str | os.PathLike):
    """Hold a run folder for this process; the system lets go of it when the process ends, killed or not.

    Args:
        folder: the run folder; made where it is missing.

    Yields:
        The folder as a ``pathlib.Path``.

    Raises:
        BlockingIOError: another run holds the folder.
        OSError: the folder cannot be made.

    Example:
        >>> import tempfile
        >>> from thaw import lock_run
        >>> with lock_run(tempfile.mkdtemp()) as folder:
        ...     folder.is_dir()
        True
    """
    import filelock

    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; expected a folder for the run. Name another one.")
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / LOCK, is_singleton=False)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise BlockingIOError(
            f"Another run is using {folder}; wait until it has ended, or name another folder."
        ) from None
    try:
        yield folder
    finally:
        lock.release()
