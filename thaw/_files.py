"""Write files atomically, lock and hash them, and convert values to JSON, TOML and CSV."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import errno
import hashlib
import io
import json
import math
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

LOCK = ".lock"
FULL_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def cache_root(cache_dir: str | os.PathLike | None = None) -> Path:
    """Return the folder in which features and decoded images are cached between runs.

    Args:
        cache_dir: the folder asked for. Defaults to ``$THAW_CACHE``, else ``$XDG_CACHE_HOME/thaw``, else
            ``~/.cache/thaw``.

    Returns:
        An absolute ``pathlib.Path``; it need not exist.

    Raises:
        OSError: there is no home folder to put it in, as in a container whose user has no name.

    Example:
        >>> from thaw._files import cache_root
        >>> cache_root("mine").name
        'mine'
    """
    if cache_dir is None:
        own = os.environ.get("THAW_CACHE")
        cache_dir = own or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "thaw")
    try:
        return Path(cache_dir).expanduser().absolute()
    except RuntimeError:  # pathlib's, for a home that cannot be found
        raise OSError(
            f"The folder of the cache is {cache_dir}, and there is no such home folder (HOME is not set, and the user "
            "has no entry in the list of users): set THAW_CACHE to a folder that can be written to."
        ) from None


def write_atomically(path: str | os.PathLike, write: Callable[[Path], object], *, flush: bool = True) -> Path:
    """Write a file so that a full disk or a kill leaves either the old content or the new one.

    The content is written to a temporary file in the same folder, flushed to the disk, and renamed. (Keras saves over
    the old file: a full disk destroys both.)

    Args:
        path: path of the file; its folder is created where it is missing.
        write: function of the path of the temporary file, which has the same extension.
        flush: wait until the content is on the disk, so that it survives a power failure; default ``True``. ``False``
            is much faster for many small files that can be computed again.

    Returns:
        ``path`` as a ``pathlib.Path``.

    Raises:
        OSError: the disk is full or cannot be written to; the old content is intact.

    Example:
        >>> import pathlib, tempfile
        >>> from thaw._files import write_atomically
        >>> path = pathlib.Path(tempfile.mkdtemp(), "note.txt")
        >>> write_atomically(path, lambda temporary: temporary.write_text("saved")).read_text()
        'saved'
    """
    write_all({path: write}, flush=flush)
    return Path(path)


def write_all(writers: dict[str | os.PathLike, Callable[[Path], object]], *, flush: bool = True) -> None:
    """Write several files as :func:`write_atomically` does: all of them, or none.

    Args:
        writers: for each path, the function that writes it. The files are written, and then renamed, in this order.
        flush: wait until the contents are on the disk; default ``True``.

    Raises:
        OSError: the disk is full or cannot be written to; the old contents are intact.
    """
    temporary = {}
    try:
        for path, write in writers.items():
            path = Path(path)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary[path] = path.with_name(_temporary_name(path, len(temporary)))
                write(temporary[path])
                if flush:
                    _flush(temporary[path])
            except Exception as error:
                cause = _disk_error(error)
                if cause is None:
                    raise
                raise explain_disk_error(cause, path) from error
        for path, new in temporary.items():
            try:
                os.replace(new, path)
            except OSError as error:
                raise explain_disk_error(error, path) from error
        for folder in {path.parent for path in temporary} if flush else ():
            _flush(folder)
    finally:
        for new in temporary.values():
            new.unlink(missing_ok=True)


def write_text(text: str) -> Callable[[Path], object]:
    """Return a function that writes a text as UTF-8, for :func:`write_atomically` and :func:`write_all`.

    Args:
        text: the content of the file.

    Returns:
        A function of a path.
    """
    return lambda path: path.write_text(text, encoding="utf-8", newline="\n")


def _temporary_name(path, number):
    # The extension stays: Keras chooses the format by it. Names have at most 255 bytes, and a letter up to four.
    name = f"{path.stem[:40]}.{os.getpid()}.{threading.get_ident()}.{number}"
    return f".{name}{path.suffix if len(path.suffix) <= 8 else ''}"


def _flush(path):
    # Not every system can open a folder for this; its entry then reaches the disk a little later.
    if path.is_dir() and os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _disk_error(error):
    """Find the error of the disk behind an exception: a writer may fail on its own half-written file."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno:
            return error
        if "No space left on device" in str(error):
            return OSError(errno.ENOSPC, "No space left on device")
        error = error.__cause__ or error.__context__
    return None


def explain_disk_error(error: OSError, path: str | os.PathLike, cache: str | None = None) -> OSError:
    """Return an error of the same type and number that says in one sentence what failed, where, and what to do.

    Args:
        error: as the system raised it.
        path: path of the file that was to be written; or of the folder of the cache.
        cache: what a cache cannot do, such as ``"the feature cache cannot be written"``: it lies in the folder that
            THAW_CACHE names. ``None`` (default): ``path`` is a file that :func:`write_all` writes.

    Returns:
        The new error, to be raised.

    Example:
        >>> from thaw._files import explain_disk_error
        >>> error = PermissionError(errno.EACCES, "Permission denied")
        >>> explain_disk_error(error, "/cache", "the cache cannot be used").strerror
        'the cache cannot be used at /cache (Permission denied): set THAW_CACHE to another folder'
    """
    is_full = error.errno in FULL_DISK_ERRORS
    # Not strerror: that of an error which was explained before is a whole sentence.
    reason = os.strerror(error.errno) if error.errno else error
    if cache and is_full:
        message = f"the disk is full at {path}: free some space, or set THAW_CACHE to a folder on another disk"
    elif cache:
        message = f"{cache} at {path} ({reason}): set THAW_CACHE to another folder"
    elif is_full:
        folder = Path(path).parent
        while not os.path.exists(folder):  # Path.exists raises for a name that is too long
            folder = folder.parent
        free = shutil.disk_usage(folder).free / 1e6
        message = (
            f"There is no room on the disk for {path} ({free:.0f} MB free, or the limit for one user or one file is "
            "reached); the file that was there before is unharmed. Free some space and give the same command again."
        )
    else:
        message = (
            f"{path} cannot be written ({reason}); the file that was there before is unharmed. Name another folder, or "
            "change its permissions."
        )
    return type(error)(error.errno, message) if error.errno else type(error)(message)


@contextlib.contextmanager
def lock_run(folder: str | os.PathLike):
    """Lock a run folder for this process; the system releases the lock when the process ends, even if it is killed.

    Args:
        folder: the run folder; created where it is missing.

    Yields:
        The folder as a ``pathlib.Path``.

    Raises:
        BlockingIOError: another process holds the lock.
        OSError: the folder cannot be created, or its disk cannot lock files.

    Example:
        >>> import tempfile
        >>> from thaw._files import lock_run
        >>> with lock_run(tempfile.mkdtemp()) as folder:
        ...     folder.is_dir()
        True
    """
    import filelock

    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; expected a folder for the run. Name another one.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / LOCK, is_singleton=False)
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise BlockingIOError(
            f"Another run is using {folder}; wait until it has ended, or name another folder."
        ) from None
    except NotImplementedError:  # a network drive, perhaps
        raise OSError(f"The disk of {folder} cannot lock files; name a folder on another disk.") from None
    except OSError as error:
        message = f"The folder {folder} cannot be used ({error.strerror or error}); name another one, or change its "
        raise type(error)(message + "permissions.") from error
    try:
        yield folder
    finally:
        lock.release()


def file_sha256(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits.

    Args:
        path: path of the file.

    Returns:
        64 hexadecimal digits.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def to_jsonable(value, *omit):
    """Convert a result to the dicts, lists, strings and numbers that JSON can hold.

    Args:
        value: a dataclass, an array, a list, a dict, a number or a string; each may hold the others. NaN and infinity,
            which JSON does not have, become ``None``.
        omit: names of dataclass fields to leave out.

    Returns:
        The converted value.

    Example:
        >>> from thaw._files import to_jsonable
        >>> import dataclasses
        >>> result = dataclasses.make_dataclass("Result", ["score", "errors"])(float("nan"), [1])
        >>> to_jsonable(result, "errors")
        {'score': None}
    """
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: to_jsonable(getattr(value, name), *omit) for name in names if name not in omit}
    if isinstance(value, dict):
        return {str(name): to_jsonable(item, *omit) for name, item in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [to_jsonable(item, *omit) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_json(value, *, escape=False) -> str:
    """Write a result as indented JSON.

    Args:
        value: as for :func:`to_jsonable`.
        escape: write letters beyond ASCII as escapes, for a stream that does not have them; default ``False``.

    Returns:
        A string that ends in a line break.
    """
    return json.dumps(to_jsonable(value), indent=2, ensure_ascii=escape, allow_nan=False) + "\n"


def to_toml(value) -> str:
    """Write a value as TOML.

    Args:
        value: a string, a number, a boolean, or a list or tuple of these.

    Returns:
        A string on one line.

    Example:
        >>> from thaw._files import to_toml
        >>> to_toml(("stage1", 2, True))
        '["stage1", 2, true]'
    """
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(to_toml, value)) + "]"
    if isinstance(value, str):
        # A JSON string is a TOML basic string, except DEL, which TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)


def to_csv(name: str, columns: dict[str, list]) -> str:
    """Return a table as CSV, one row for each value.

    Args:
        name: of the table, for the error.
        columns: lists of one length.

    Raises:
        ValueError: columns of different lengths.
    """
    lengths = {key: len(column) for key, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"The columns of {name} have different lengths: {lengths}; expected a value in each row.")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values()))
    return text.getvalue()


def read_csv_columns(path: Path, convert: Callable | None = None) -> dict[str, list]:
    """Read a table of :func:`to_csv` as a dict of columns; no file is no column.

    Args:
        path: path of the file.
        convert: function of a cell. Default ``None``: numbers become numbers, and an empty cell ``None``.
    """
    if not path.exists():
        return {}
    with open(path, encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    columns = zip(*rows) if rows else [()] * len(header)
    return {name: [(convert or _number)(cell) for cell in column] for name, column in zip(header, columns)}


def _number(cell):
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            pass
    return cell or None
