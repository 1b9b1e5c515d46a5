"""List, clear and isolate the cache folder."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import shutil
import tempfile
import time
from pathlib import Path

from thaw._files import LOCK, cache_root, explain_disk_error, lock_run
from thaw.features.disk_budget import SHARD_INDEX, DiskBudget, shards_in, tables_in
from thaw.features.store import ACTIVATIONS, JUDGED, QUANTIZED

DECODED = "decoded"  # folder of the decoded images in the cache folder
ISOLATED = "compare-"  # prefix of the isolated caches in the cache folder
MAX_UNLOCKED_SECONDS = 10.0  # between the creation of an isolated cache and its lock


@contextlib.contextmanager
def isolated_cache(cache_dir=None):
    """Create an empty cache folder, so that no run profits from another; it is removed at the end.

    It lies in the usual cache folder and is locked for as long as the process lives. Those of killed processes are
    removed first. Several threads may each have their own.

    Args:
        cache_dir: the usual cache folder. Default: as for :func:`list_cache`.

    Yields:
        Its path, to be passed on as ``cache_dir``.

    Raises:
        ValueError: the cache folder is a file.
        OSError: the cache folder cannot be written to.

    Example:
        >>> import os
        >>> from thaw.features.cache_folder import isolated_cache
        >>> with isolated_cache() as cache_dir:
        ...     os.path.isdir(cache_dir)
        True
        >>> os.path.exists(cache_dir)
        False
    """
    root = cache_root(cache_dir)
    if root.exists() and not root.is_dir():
        raise ValueError(f"{root} is a file; expected a folder for the cache, which THAW_CACHE names.")
    with _explain_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        remove_abandoned_caches(root)
        temporary = tempfile.TemporaryDirectory(prefix=ISOLATED, dir=root, ignore_cleanup_errors=True)
    with temporary as folder, lock_run(folder):
        yield folder


def isolated_caches(root):
    """List the isolated caches, including those of killed processes.

    Args:
        root: path of the cache folder.

    Returns:
        A list of ``(path, bytes, in use)``.
    """
    return [
        (path, _folder_bytes(path), _is_in_use(path)) for path in sorted(root.glob(f"{ISOLATED}*")) if path.is_dir()
    ]


def remove_abandoned_caches(root):
    """Remove the isolated caches that are no longer in use.

    Args:
        root: path of the cache folder.

    Returns:
        Number of bytes that were freed.
    """
    freed = 0
    for path, size, in_use in isolated_caches(root):
        if not in_use:
            shutil.rmtree(path, ignore_errors=True)
            freed += size
    return freed


def _folder_bytes(folder):
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # just removed
                total += os.stat(os.path.join(parent, name)).st_size
    return total


def _is_in_use(folder):
    if not (folder / LOCK).exists():  # just created, by a process that is about to lock it?
        try:
            return time.time() - folder.stat().st_mtime < MAX_UNLOCKED_SECONDS
        except FileNotFoundError:  # just removed
            return False
    try:
        with lock_run(folder):
            return False
    except OSError:  # a living process holds it, or another user
        return True


def list_cache(cache_dir=None):
    """List what is cached on disk between runs: decoded images, and features of frozen layers.

    The isolated caches of comparisons are listed too, also those of killed ones.

    Args:
        cache_dir: the cache folder. Default: ``$THAW_CACHE``, else ``$XDG_CACHE_HOME/thaw``, else ``~/.cache/thaw``.

    Returns:
        A list of dicts, the least recently used first: ``what`` (``"activations"``, ``"decoded"``, ``"quantized"`` or
        ``"comparison"``), ``about`` (dict: the model, the image size, whether it is ``in_use`` ...), ``description``
        (human-readable), ``examples``, ``rows`` (all versions of them), ``bytes``, ``last_used`` (UTC, ISO 8601),
        ``path``.

    Example:
        >>> import tempfile
        >>> from thaw.features.cache_folder import list_cache
        >>> list_cache(tempfile.mkdtemp())
        []
    """
    root = cache_root(cache_dir)
    with _explain_errors(root):
        rows = [*_list_features(root), *_list_decoded(root), *_list_quantized(root), *_list_isolated(root)]
    return sorted(rows, key=lambda row: (row["last_used"], row["path"]))


def clear_cache(cache_dir=None):
    """Remove everything that :func:`list_cache` lists, and nothing else.

    What a comparison has in use stays. A run in progress reads its decoded images from there and will stop; started
    again, it goes on.

    Args:
        cache_dir: the cache folder. Default: as for :func:`list_cache`.

    Returns:
        Number of bytes that were freed.

    Example:
        >>> import tempfile
        >>> from thaw.features.cache_folder import clear_cache
        >>> clear_cache(tempfile.mkdtemp())
        0
    """
    root = cache_root(cache_dir)
    with _explain_errors(root):
        return _clear(root)


def _clear(root):
    freed = 0
    disk = DiskBudget(root / ACTIVATIONS, budget=0)
    disk.remove_leftovers()
    for table in disk.tables():
        size = sum(length for _, length, _ in shards_in(table))
        freed += size if disk.remove(table) else 0
    for kind in ("runtime", JUDGED):  # which runtime was the fastest for a prefix, and how int8 was judged
        for note in disk.folder.glob(f"*.{kind}"):
            note.unlink(missing_ok=True)
    for network in disk.folder.glob(f"*.{QUANTIZED}"):
        freed += network.stat().st_size
        network.unlink(missing_ok=True)
    for file, _, stat in _decoded_files(root):
        file.unlink(missing_ok=True)
        freed += stat.st_size
    for folder in (root / DECODED).glob("[0-9a-f][0-9a-f]"):
        with contextlib.suppress(OSError):  # something else lies there
            folder.rmdir()
    return freed + remove_abandoned_caches(root)


@contextlib.contextmanager
def _explain_errors(root):
    try:
        yield
    except OSError as error:
        raise explain_disk_error(error, root, "the cache cannot be used") from error


def _list_features(root):
    for table in tables_in(root / ACTIVATIONS):
        shards = shards_in(table)
        about, last_used = {}, max((used for used, _, _ in shards), default=0)
        try:
            last_used = max(last_used, (table / "about.json").stat().st_mtime_ns)
            about = json.loads((table / "about.json").read_text(encoding="utf-8"))["about"]
        except (OSError, ValueError, KeyError, TypeError):
            pass  # damaged; the next run writes it again
        about = about if isinstance(about, dict) else {}
        yield {
            "what": "activations",
            "about": about,
            "description": _describe(about),
            "examples": _count_examples(path for _, _, path in shards),
            "rows": sum(_count_rows(path) for _, _, path in shards),
            "bytes": sum(size for _, size, _ in shards),
            "last_used": _iso_time(last_used / 1e9),
            "path": str(table),
        }


def _list_decoded(root):
    by_size = {}
    for _, image_size, stat in _decoded_files(root):
        if image_size is not None:
            by_size.setdefault(image_size, []).append(stat)
    for image_size, stats in by_size.items():
        yield {
            "what": "decoded",
            "about": {"image_size": image_size},
            "description": f"images of {image_size} x {image_size}",
            "examples": len(stats),
            "rows": len(stats),
            "bytes": sum(stat.st_size for stat in stats),
            "last_used": _iso_time(max(max(stat.st_mtime, stat.st_atime) for stat in stats)),
            "path": str(root / DECODED),
        }


def _list_quantized(root):
    for network in (root / ACTIVATIONS).glob(f"*.{QUANTIZED}"):
        with contextlib.suppress(FileNotFoundError):  # just removed
            stat = network.stat()
            yield {
                "what": "quantized",
                "about": {},
                "description": "frozen layers in int8",
                "examples": 0,
                "rows": 0,
                "bytes": stat.st_size,
                "last_used": _iso_time(max(stat.st_mtime, stat.st_atime)),
                "path": str(network),
            }


def _list_isolated(root):
    for path, size, in_use in isolated_caches(root):
        inside = list(_list_features(path))
        try:
            last_used = max((row["last_used"] for row in inside), default=_iso_time(path.stat().st_mtime))
        except FileNotFoundError:
            continue  # the comparison has just ended
        yield {
            "what": "comparison",
            "about": {"in_use": in_use},
            "description": "in use by a comparison" if in_use else "left by a comparison",
            "examples": max((row["examples"] for row in inside), default=0),
            "rows": sum(row["rows"] for row in inside),
            "bytes": size,
            "last_used": last_used,
            "path": str(path),
        }


def _describe(about):
    """Describe a table: which model, and up to which layer."""
    text = str(about.get("model", "a model"))
    if isinstance(about.get("stages"), int):
        text += ", stage 1" if about["stages"] == 1 else f", stages 1 to {about['stages']}"
    if about.get("last_layer"):
        text += f", to {about['last_layer']}"
    return text + (", half precision" if about.get("cache_dtype") == "float16" else "")


def _count_examples(shards):
    """Count the examples, each of which may be cached in several versions."""
    import numpy as np

    contents = [np.empty(0, np.int64)]
    for shard in shards:
        with contextlib.suppress(OSError, ValueError, IndexError, EOFError):  # damaged, or just removed
            contents.append(np.load(shard / "ids.npy", allow_pickle=False)[:, 0])
    return len(np.unique(np.concatenate(contents)))


def _count_rows(shard):
    try:
        return int(json.loads((shard / SHARD_INDEX).read_text(encoding="utf-8"))["rows"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0  # damaged, or just removed


def _decoded_files(root: Path):
    """Yield the files of decoded images, their side in pixels (``None``: half-written), and their ``stat``."""
    for file in (root / DECODED).glob("[0-9a-f][0-9a-f]/*"):
        name = re.fullmatch(r"[0-9a-f]{64}-(\d+)-\d+\.u8", file.name)
        if not name and file.suffix != ".part" and not file.name.startswith("."):
            continue
        with contextlib.suppress(FileNotFoundError):
            yield file, int(name[1]) if name else None, file.stat()


def _iso_time(seconds):
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")
