"""What the caches hold, and how to empty them."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path


def cache_folder(folder=None):
    """Look at what is kept on disk between runs: decoded pictures, and what standing layers said about them.

    What a comparison has in use is shown too, and what one that was killed has left.

    Args:
        folder: the folder of both caches. Default: ``$THAW_CACHE``, else ``$XDG_CACHE_HOME/thaw``, else
            ``~/.cache/thaw``.

    Returns:
        A list of dicts, the least recently used first: ``what`` (``"activations"``, ``"decoded"`` or
        ``"comparison"``), ``about`` (a dict: from which model, at which size, whether it is ``in_use`` ...), ``told``
        (the same for people), ``pictures``, ``rows`` (all versions of them), ``bytes``, ``last_used`` (UTC, ISO 8601),
        ``path``.

    Example:
        >>> import tempfile
        >>> from thaw.jobs.cache_folder import cache_folder
        >>> cache_folder(tempfile.mkdtemp())
        []
    """
    root = _root(folder)
    return sorted(
        [*_activations(root), *_decoded(root), *_comparisons(root)], key=lambda row: (row["last_used"], row["path"])
    )


def clear_cache(folder=None):
    """Remove what :func:`cache_folder` shows, and nothing else that may lie there.

    What a comparison has in use stays. A run that is going on reads its decoded pictures from there: it will stop.
    Given again, it goes on.

    Args:
        folder: as for :func:`cache_folder`.

    Returns:
        How many bytes were freed.

    Example:
        >>> import tempfile
        >>> from thaw.jobs.cache_folder import clear_cache
        >>> clear_cache(tempfile.mkdtemp())
        0
    """
    from thaw.advising.own_cache import remove_left_caches
    from thaw.tuning.disk_budget import DiskBudget

    root, freed = _root(folder), 0
    disk = DiskBudget(root / "activations", budget=0)
    for shelf in disk.shelves():
        size = sum(length for _, length, path in disk.held() if path.parent == shelf)
        freed += size if disk.remove(shelf) else 0
    for note in disk.folder.glob("*.runtime"):  # which runtime was the fastest for a prefix
        note.unlink(missing_ok=True)
    for file, _, stat in _entries(root):
        file.unlink(missing_ok=True)
        freed += stat.st_size
    freed += remove_left_caches(root)
    for half in (root / "decoded").glob("[0-9a-f][0-9a-f]"):
        try:
            half.rmdir()
        except OSError:
            pass  # something else lies there
    return freed


def _root(folder):
    from thaw.tuning.disk_budget import DiskBudget

    return Path(folder).absolute() if folder is not None else DiskBudget(budget=0).folder.parent


def _activations(root):
    from thaw.tuning.disk_budget import DiskBudget

    disk = DiskBudget(root / "activations", budget=0)
    held = disk.held()
    for shelf in disk.shelves():
        mine = [(used, size, path) for used, size, path in held if path.parent == shelf]
        about, last = {}, max((used for used, _, _ in mine), default=0)
        try:
            last = max(last, (shelf / "about.json").stat().st_mtime_ns)
            about = json.loads((shelf / "about.json").read_text(encoding="utf-8"))["about"]
        except (OSError, ValueError, KeyError, TypeError):
            pass  # made again by the next run
        about = about if isinstance(about, dict) else {}
        yield {
            "what": "activations",
            "about": about,
            "told": _told(about),
            "pictures": _pictures(path for _, _, path in mine),
            "rows": sum(_rows(path) for _, _, path in mine),
            "bytes": sum(size for _, size, _ in mine),
            "last_used": _time(last / 1e9),
            "path": str(shelf),
        }


def _comparisons(root):
    from thaw.advising.own_cache import own_caches

    for path, size, in_use in own_caches(root):
        inside = list(_activations(path))
        try:
            last = max((row["last_used"] for row in inside), default=_time(path.stat().st_mtime))
        except FileNotFoundError:
            continue  # it has just ended
        yield {
            "what": "comparison",
            "about": {"in_use": in_use},
            "told": "in use by a comparison" if in_use else "left by a comparison",
            "pictures": max((row["pictures"] for row in inside), default=0),
            "rows": sum(row["rows"] for row in inside),
            "bytes": size,
            "last_used": last,
            "path": str(path),
        }


def _told(about):
    """Which model it is from, and how far into it, in words."""
    told = str(about.get("model", "a model"))
    if isinstance(about.get("stages"), int):
        told += ", stage 1" if about["stages"] == 1 else f", stages 1 to {about['stages']}"
    if about.get("behind"):
        told += f", to {about['behind']}"
    return told + (", half precision" if about.get("precision") == "float16" else "")


def _pictures(segments):
    """How many examples: each may be there in several versions."""
    import numpy as np

    found = [np.empty(0, np.int64)]
    for segment in segments:
        try:
            found.append(np.load(segment / "ids.npy", allow_pickle=False)[:, 0])
        except (OSError, ValueError, IndexError, EOFError):
            continue  # damaged, which the next run finds, or just removed
    return len(np.unique(np.concatenate(found)))


def _rows(segment):
    try:
        return int(json.loads((segment / "segment.json").read_text(encoding="utf-8"))["rows"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0  # damaged, which the next run finds, or just removed


def _decoded(root):
    sizes = {}
    for _, size, stat in _entries(root):
        if size is not None:
            sizes.setdefault(size, []).append(stat)
    for size, stats in sizes.items():
        yield {
            "what": "decoded",
            "about": {"image_size": size},
            "told": f"pictures of {size} x {size}",
            "pictures": len(stats),
            "rows": len(stats),
            "bytes": sum(stat.st_size for stat in stats),
            "last_used": _time(max(max(stat.st_mtime, stat.st_atime) for stat in stats)),
            "path": str(root / "decoded"),
        }


def _entries(root):
    """Files of the decoded pictures, their side in pixels (``None``: half-written), and their ``stat``."""
    for file in (root / "decoded").glob("[0-9a-f][0-9a-f]/*"):
        named = re.fullmatch(r"[0-9a-f]{64}-(\d+)-\d+\.u8", file.name)
        if not named and file.suffix != ".part":
            continue
        try:
            yield file, int(named[1]) if named else None, file.stat()
        except FileNotFoundError:
            continue


def _time(seconds):
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")
