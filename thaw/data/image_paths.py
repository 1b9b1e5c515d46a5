"""Find the images that a table names, on whatever machine and in whatever folder it was written."""

from __future__ import annotations

import contextlib
import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

# Those that cannot be decoded too, such as .heic: they are meant as images, and are rejected with a reason.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".heic", ".heif", ".psd"),
)


def suffix_of(path: str) -> str:
    """Return the suffix of a file name in lower case, such as ".jpg"; "" if there is none.

    Args:
        path: of a file.

    Returns:
        The suffix with its dot.

    Example:
        >>> suffix_of("cats/1.JPG"), suffix_of("README")
        ('.jpg', '')
    """
    return os.path.splitext(path)[1].lower()


def find_images(source: Path, cells: Sequence[str]) -> tuple[list[str], list[str]]:
    """Find the files that the cells of a table name.

    A path is looked up as it is written. If nothing is there: with ``/`` for backslashes, without quotes, ``file://``
    and ``%20``; then in another Unicode form, with other capitals, or without a suffix, if one file alone fits; last
    without its first folders, which may be those of another machine. First folders are left out only where no path that
    shares them is found with more of them, and where no two paths would then lead to one file.

    Relative paths are looked up from the folder of the table; from the working folder only if none of them is found
    there, so that an old copy in the working folder never fills a gap.

    Args:
        source: path of the table.
        cells: paths as the table has them.

    Returns:
        ``(paths, notes)``: the path of each image, where it should be if it is missing; and sentences for the user.

    Raises:
        ValueError: none of them is found.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Path(folder, "cats").mkdir()
        ...     Path(folder, "cats", "1.png").touch()
        ...     paths, notes = find_images(Path(folder, "table.csv"), ["C:\\\\Bob\\\\cats\\\\1.PNG"])
        ...     os.path.relpath(paths[0], folder)
        'cats/1.png'
    """
    bases = [str(source.parent)]
    with contextlib.suppress(FileNotFoundError):  # a working folder that was removed
        if os.path.abspath(source.parent) != os.getcwd():
            bases.append(os.getcwd())
    base, found = _find_all(cells, bases)
    missing = [cell for cell, path in zip(cells, found, strict=True) if path is None]
    if len(missing) == len(cells):
        raise ValueError(_nothing_found(source, bases, missing))
    notes = []
    written = [os.path.normpath(os.path.join(bases[0], cell)) for cell in cells]
    elsewhere = [i for i, path in enumerate(found) if path is not None and path != written[i]]
    if elsewhere:
        first = elsewhere[0]
        notes.append(
            f"{len(elsewhere)} of {len(cells)} paths of {source.name} do not exist as they are written, and were found "
            f"elsewhere, such as {cells[first]!r} at {found[first]}."
        )
    paths = [
        os.path.normpath(os.path.join(base, cell)) if path is None else path
        for cell, path in zip(cells, found, strict=True)
    ]
    return paths, notes


def _nothing_found(source: Path, bases: list[str], missing: list[str]) -> str:
    text = f"{len(missing)} of {len(missing)} images of {source.name} are not found, such as {missing[0]!r}; "
    if re.match(r"(https?|ftp|s3|gs)://", missing[0]):
        return text + "expected paths of files: download the images, and write down where they are"
    text += f"paths are looked up from the folder of the table, {os.path.abspath(bases[0])}"
    text += f", and from the working folder, {bases[1]}" if bases[1:] else ""
    for base in filter(lambda folder: os.access(folder, os.R_OK), bases):
        for folder in sorted(entry.path for entry in os.scandir(base) if entry.is_dir()):
            there = _Listing().find(folder, _parts(_readings(missing[0])[-1]))
            if there is not None:
                return text + f". There is {there}: write its folder into the table, or move the table there"
    return text


def _readings(cell: str) -> list[str]:
    """What a path may mean: without quotes and ``file://``, with slashes; and the same with %20 decoded."""
    text = cell.strip("\ufeff \t\r\n\"'")
    text = re.sub(r"^file:(//(localhost)?)?(?=/)", "", text, flags=re.IGNORECASE).replace("\\", "/")
    if text.startswith("~/"):
        text = os.path.expanduser(text)
    data = text.encode("utf-8", "surrogateescape")
    decoded = re.sub(rb"%([0-9A-Fa-f]{2})", lambda code: bytes.fromhex(code[1].decode()), data)
    return list(dict.fromkeys((text, decoded.decode("utf-8", "surrogateescape"))))


def _find_all(cells: Sequence[str], bases: list[str]) -> tuple[str, list[str | None]]:
    """Return the folder from which the relative paths are looked up, and the path of each image that is found.

    It is the first one from which any is found: with all its folders or, where none is, without its first ones.
    """
    listing = _Listing()
    for base in bases:
        written = [_find_as_written(cell, base) for cell in cells]
        whole = [path or _find_other_form(cell, base, listing) for cell, path in zip(cells, written, strict=True)]
        if any(path is not None and not _is_absolute(cell) for cell, path in zip(cells, whole, strict=True)):
            bases = [base]
            break
    for base in bases:
        found = _find_shortened(cells, base, whole, listing)
        if found != whole:
            break
    else:
        base = bases[0]
    owners: dict[str | None, set] = {}
    for path, cell in zip(found, cells, strict=True):
        owners.setdefault(path, set()).add(tuple(map(_composed, _parts(_readings(cell)[-1]))))
    # No two paths lead to one file, unless they are written so.
    sure = [path if path in (None, as_is) or len(owners[path]) == 1 else None for path, as_is in zip(found, written)]
    return base, sure


def _is_absolute(cell: str) -> bool:
    return any(map(os.path.isabs, (cell, *_readings(cell))))


def _find_as_written(cell: str, base: str) -> str | None:
    for text in (cell, cell.strip(), *_readings(cell)):
        path = os.path.normpath(os.path.join(base, text))
        if os.path.exists(path):
            return path
    return None


def _find_other_form(cell: str, base: str, listing: _Listing) -> str | None:
    readings = filter(None, map(_parts, _readings(cell)))
    return next((path for parts in readings if (path := listing.find(base, parts))), None)


def _find_shortened(cells: Sequence[str], base: str, whole: list[str | None], listing: _Listing) -> list[str | None]:
    """Fill the gaps of ``whole`` with the files of paths without their first folders, where that leaves no doubt."""
    found = list(whole)
    gaps = [i for i, path in enumerate(found) if path is None]
    if not gaps:
        return found
    parts = [_parts(_readings(cell)[-1]) for cell in cells]
    dropped: dict[int, int] = {i: 0 for i, path in enumerate(found) if path is not None}  # row to number of parts
    for i in gaps:
        readings = [_parts(text) for text in _readings(cells[i])]
        tries = ((count, reading[count:]) for count in range(1, len(parts[i])) for reading in readings)
        for count, rest in tries:
            match = listing.find(base, rest) if rest else None
            if match is not None:
                found[i], dropped[i] = match, count
                break
    # A path without its first folders is another path. It is accepted where nothing speaks against it: no path of the
    # same root is found as it is, and none that begins alike is found with more of its folders.
    whole = {_root(parts[i]) for i, count in dropped.items() if not count}
    starts = {tuple(parts[i][:count]) for i, count in dropped.items() if count}
    for i in gaps:
        count = dropped.get(i, 0)
        if count and (_root(parts[i]) in whole or any(tuple(parts[i][:n]) in starts for n in range(1, count))):
            found[i] = None
    return found


def _parts(text: str) -> list[str]:
    """The folders and the name in a path; that of an absolute one begins with "/"."""
    parts = [part for part in text.split("/") if part not in ("", ".")]
    return ["/", *parts] if text.startswith("/") else parts


def _root(parts: list[str]) -> tuple:
    """What paths of the same origin have in common: "/home", "C:", or nothing for relative ones."""
    if parts[:1] == ["/"]:
        return tuple(parts[:2])
    return tuple(parts[:1]) if parts and parts[0].endswith(":") else ()


class _Listing:
    """The names in folders, each of which is read once."""

    def __init__(self):
        self._names: dict[str, dict[str, list[str]]] = {}

    def find(self, folder: str, parts: list[str]) -> str | None:
        """Return the one path below a folder that differs from ``parts`` in form only."""
        for i, part in enumerate(parts):
            if part == "..":
                folder = os.path.join(folder, part)
                continue
            names = self._read(folder)
            matches = names.get(_casefolded(part), [])
            if len(matches) > 1:
                matches = [name for name in matches if _composed(name) == _composed(part)]
            if not matches and i == len(parts) - 1 and suffix_of(part) not in IMAGE_SUFFIXES:
                matches = names.get(_casefolded(part) + "/", [])
            if len(matches) != 1:
                return None
            folder = os.path.join(folder, matches[0])
        return os.path.normpath(folder)

    def _read(self, folder: str) -> dict[str, list[str]]:
        """Casefolded name, or that of the name of an image without its suffix and with a "/", to names."""
        if folder not in self._names:
            names: dict[str, list[str]] = {}
            try:
                listed = sorted(os.listdir(folder))
            except OSError:
                listed = []  # there is no such folder, or none that may be read
            for name in listed:
                names.setdefault(_casefolded(name), []).append(name)
                if suffix_of(name) in IMAGE_SUFFIXES:
                    names.setdefault(_casefolded(os.path.splitext(name)[0]) + "/", []).append(name)
            self._names[folder] = names
        return self._names[folder]


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _casefolded(name: str) -> str:
    return _composed(name).casefold()
