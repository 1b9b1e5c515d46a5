"""Write files so that an old good one is lost to nothing but a whole new one."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_atomically(path: str | os.PathLike, writer: Callable[[Path], object]) -> Path:
    """Write one file beside where it belongs, see it onto the disk, and only then put it in place.

    Keras' own saving writes over the old file: a full disk destroys both.

    Args:
        path: where the file belongs; its folder is made where it is missing.
        writer: called with the path of a file beside it, with the same ending, to write to.

    Returns:
        The path.

    Raises:
        OSError: the disk is full or cannot be written to; what was at ``path`` is still there.

    Example:
        >>> import pathlib, tempfile
        >>> from thaw.shipping.write_atomically import write_atomically
        >>> path = pathlib.Path(tempfile.mkdtemp(), "note.txt")
        >>> write_atomically(path, lambda beside: beside.write_text("kept")).read_text()
        'kept'
    """
    write_all({path: writer})
    return Path(path)


def write_all(writers: dict[str | os.PathLike, Callable[[Path], object]]) -> None:
    """Write several files as in :func:`write_atomically`; when one cannot be written, all stay as they were.

    Args:
        writers: what to call for each path, in this order; the files are put in place in this order too.

    Raises:
        OSError: the disk is full or cannot be written to.
    """
    beside = {}
    try:
        for path, writer in writers.items():
            path = Path(path)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                # The ending stays: Keras goes by it.
                beside[path] = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
                writer(beside[path])
                _to_disk(beside[path])
            except Exception as error:
                cause = _disk_error(error)
                if cause is None:
                    raise
                raise _sentence(cause, path) from error
        for path, new in beside.items():
            os.replace(new, path)
        for folder in {path.parent for path in beside}:
            _to_disk(folder)
    finally:
        for new in beside.values():
            new.unlink(missing_ok=True)


def _to_disk(path):
    # A folder cannot be opened for this on every system; its entry then gets there a little later.
    if path.is_dir() and os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _disk_error(error):
    """The disk's own error: what is raised may only be a writer stumbling over its half-written file."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno:
            return error
        if "No space left on device" in str(error):
            return OSError(errno.ENOSPC, "No space left on device")
        error = error.__cause__ or error.__context__
    return None


def _sentence(error, path):
    if error.errno in NO_ROOM:
        folder = path.parent
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free / 1e6
        said = (
            f"There is no room on the disk for {path} ({free:.0f} MB free, or the limit for one user or one "
            "file is reached); what was there before is unharmed. Free some space and give the same command "
            "again."
        )
    else:
        said = (
            f"{path} cannot be written ({error.strerror or error}); what was there before is unharmed. "
            "Name another folder, or change its permissions."
        )
    sentence = type(error)(said)
    sentence.errno = error.errno  # kept apart from the text, which is then shown without a number in front
    return sentence
