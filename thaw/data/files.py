"""Read a CSV file, or a folder with a subfolder for each class, into the same columns."""

from __future__ import annotations

import csv
import datetime
import math
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

COLUMNS = ("image", "label", "split", "group", "weight", "time")
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
# Those that cannot be decoded too, such as .heic: they are meant as images, and are rejected with a reason.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".heic", ".heif", ".psd"),
)
_SYSTEM_FILES = {"thumbs.db", "desktop.ini", "__macosx"}


def read_files(
    source: str | os.PathLike, *, group: str | None = None, time: str | None = None
) -> tuple[dict[str, list], tuple[str, ...]]:
    """Read a CSV file (:func:`read_csv`) or a folder (:func:`read_folders`).

    Args:
        source: path of either.
        group: name of the column with groups; only a CSV file has one.
        time: name of the column with times; only a CSV file has one.

    Returns:
        ``(columns, notes)``: a dict from "image", "label" and, where given, "split", "group", "time" and "weight" to
        lists of the same length; and sentences for the user.

    Raises:
        FileNotFoundError: nothing is at ``source``.
        ValueError: the content is invalid, or groups or times are asked of a folder.

    Example:
        >>> read_files("nowhere")
        Traceback (most recent call last):
        FileNotFoundError: nowhere does not exist; expected a folder of images or a CSV file
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist; expected a folder of images or a CSV file")
    if not source.is_dir():
        return read_csv(source, group=group, time=time)
    for name, column in (("group", group), ("time", time)):
        if column is not None:
            raise ValueError(
                f"{source} is a folder and has no column for {name}={column!r}; list the images in a CSV file with the "
                f"columns image, label and {column}"
            )
    return read_folders(source)


def read_csv(
    source: str | os.PathLike, *, group: str | None = None, time: str | None = None
) -> tuple[dict[str, list], tuple[str, ...]]:
    """Read a CSV file with the columns image and label, and optionally split, group, weight and a time.

    Paths are relative to the folder of the file. Upper and lower case of the column names do not matter; the columns
    that are not used are named in a note.

    Args:
        source: path of the file: commas, UTF-8 (with or without a byte order mark), column names in the first line.
        group: name of the column with groups, such as patients, whose rows must stay in one split; ``None`` (default)
            for the column "group", if there is one.
        time: name of the column with ISO dates or numbers, to split by; ``None`` (default) for none.

    Returns:
        ``(columns, notes)``: lists under "image" (paths), "label", and where given "split" ("train", "validation",
        "test"), "group" (``None`` for an empty cell), "time" (floats, or ``datetime.datetime``) and "weight" (floats);
        and sentences for the user.

    Raises:
        ValueError: the table is invalid; the message names the line.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "table.csv")
        ...     _ = path.write_text("image,label,weight\\na.png,cat,2\\nb.png,dog,0.5\\n")
        ...     columns, notes = read_csv(path)
        >>> columns["label"], columns["weight"]
        (['cat', 'dog'], [2.0, 0.5])
    """
    source = Path(source)
    if source.suffix.lower() != ".csv":
        raise ValueError(f"{source} is a file; expected a folder of images, or a table that ends in .csv")
    try:
        # With newline="" the csv module keeps line breaks inside quotes.
        with open(source, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [cell.strip() for cell in next(reader, [])]
            rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except UnicodeDecodeError:
        raise ValueError(f"{source} is not UTF-8 text; save it as CSV in UTF-8") from None
    except csv.Error as error:
        raise ValueError(f"{source} is not a CSV table: {error}") from None
    positions = _column_positions(source, header, {"group": group, "time": time})
    if not rows:
        raise ValueError(f"{source} has a header but no rows; expected one row for each image")
    for line, row in rows:
        if len(row) != len(header):
            raise ValueError(f"{source}, line {line}: {len(row)} cells, expected {len(header)} as in the header")
    lines = [line for line, _ in rows]
    cells = {name: [row[position].strip() for _, row in rows] for name, position in positions.items()}
    columns: dict[str, list] = {
        "image": _image_paths(source, lines, cells["image"]),
        "label": _convert(source, lines, cells["label"], _label),
    }
    if "split" in cells:
        columns["split"] = _convert(source, lines, cells["split"], _split)
        if "train" not in columns["split"]:
            raise ValueError(f"{source}: no row has the split train; expected some to learn from")
    if "group" in cells:
        columns["group"] = [value or None for value in cells["group"]]
    if "time" in cells:
        columns["time"] = _times(source, lines, cells["time"], header[positions["time"]])
    if "weight" in cells:
        columns["weight"] = _convert(source, lines, cells["weight"], _weight)
    unused = [name for position, name in enumerate(header) if position not in positions.values()]
    notes = (f"Columns of {source.name} that are not used: {', '.join(unused)}.",) if unused else ()
    return columns, notes


def _column_positions(source: Path, header: list[str], asked: dict[str, str | None]) -> dict[str, int]:
    """Return the position of each column that is used, by our own name for it."""
    if not header:
        raise ValueError(f"{source} is empty; expected a table with the columns image and label")
    names = [name.lower() for name in header]
    for name in ("image", "label"):
        if name in names:
            continue
        for separator, word in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
            if len(header) == 1 and separator in header[0]:
                raise ValueError(
                    f"{source} separates its columns with {word}; expected commas: save it as CSV with commas"
                )
        raise ValueError(f"{source} has no column {name!r} (it has: {', '.join(header)}); expected image and label")
    wanted = {name: name for name in COLUMNS if name in names and name != "time"}
    for name, column in asked.items():
        if column is None:
            continue
        if column.lower() not in names:
            raise ValueError(f"{source} has no column {column!r} for {name}= (it has: {', '.join(header)})")
        wanted[name] = column.lower()
    for column in wanted.values():
        if names.count(column) > 1:
            raise ValueError(f"{source} has the column {column!r} {names.count(column)} times; expected it once")
    return {name: names.index(column) for name, column in wanted.items()}


def _image_paths(source: Path, lines: list[int], cells: list[str]) -> list[str]:
    paths: list[str] = []
    first: dict[str, int] = {}
    for line, cell in zip(lines, cells, strict=True):
        if not cell:
            raise ValueError(f"{source}, line {line}: image is empty; expected the path of an image")
        path = os.path.normpath(source.parent / cell)
        if path in first:
            raise ValueError(
                f"{source}, line {line}: {cell} is there already, in line {first[path]}; expected one row each"
            )
        first[path] = line
        paths.append(path)
    return paths


def _convert(source: Path, lines: list[int], cells: list[str], function: Callable) -> list:
    values = []
    for line, cell in zip(lines, cells, strict=True):
        try:
            values.append(function(cell))
        except ValueError as error:
            raise ValueError(f"{source}, line {line}: {error}") from None
    return values


def _label(cell: str) -> str:
    if not cell:
        raise ValueError("label is empty; expected the name of a class")
    return cell


def _split(cell: str) -> str:
    if cell.lower() not in SPLIT_NAMES:
        raise ValueError(f"split is {cell!r}; expected train, validation or test")
    return SPLIT_NAMES[cell.lower()]


def _weight(cell: str) -> float:
    weight = _number(cell)
    # False for NaN too. Weights are used as 32-bit floats, of which the largest is 3.4e38.
    if not 0 <= weight < 3e38:
        raise ValueError(f"weight is {cell!r}; expected a number of 0 or more")
    return weight


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan


def _times(source: Path, lines: list[int], cells: list[str], name: str) -> list:
    """Return the times as floats if all are numbers, else as dates."""
    numbers = [_number(cell) for cell in cells]
    if all(map(math.isfinite, numbers)):
        return numbers
    dates = []
    for line, cell in zip(lines, cells, strict=True):
        try:
            dates.append(datetime.datetime.fromisoformat(cell))
        except ValueError:
            raise ValueError(
                f"{source}, line {line}: {name} is {cell!r}; expected an ISO date such as 2024-05-31 in every row, or "
                "a number in every row"
            ) from None
    if len({date.tzinfo is None for date in dates}) > 1:
        raise ValueError(f"{source}: some dates of {name} have a time zone and some have none; expected one kind")
    return dates


def read_folders(source: str | os.PathLike) -> tuple[dict[str, list], tuple[str, ...]]:
    """List the images of a folder ``class/image``, with or without train, val and test folders above the classes.

    A folder inside a class belongs to that class. Hidden files and those that operating systems leave behind are
    skipped. Files with the suffix of another kind (.txt, .json, .svg) are ignored and counted in a note; files without
    a suffix are taken for images. Links are followed, each folder once. The first level is taken for splits if it has a
    folder for training and all its folders have names of splits (train, val, valid, validation, test); a class may be
    called "train" next to "car" and "bus".

    Args:
        source: path of the folder.

    Returns:
        ``(columns, notes)``: lists under "image" (paths, sorted within each folder), "label" (class, ``None`` for an
        image outside every class) and, with split folders, "split" ("train", "validation", "test"); and sentences for
        the user.

    Raises:
        ValueError: the folder has no classes, or its split folders contradict one another.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("cat/1.png", "dog/old/2.png", "dog/.DS_Store"):
        ...         path = Path(folder, name)
        ...         path.parent.mkdir(parents=True, exist_ok=True)
        ...         path.touch()
        ...     columns, notes = read_folders(folder)
        >>> [Path(path).name for path in columns["image"]], columns["label"]
        (['1.png', '2.png'], ['cat', 'dog'])
    """
    root = Path(source)
    folders, loose = _level(root)
    if not folders and not loose:
        raise ValueError(f"{root} is empty; expected one folder of images for each class, such as {root}/cat")
    if not folders:
        raise ValueError(
            f"{root} holds files but no folders; expected one folder for each class: move the images of a "
            f"class into {root}/CLASS"
        )
    columns: dict[str, list] = {"image": [], "label": []}
    notes: list[str] = []
    others: Counter[str] = Counter()
    splits = _split_folders(root, folders)
    if splits:
        columns["split"] = []
        for split, folder in splits.items():
            _add_classes(folder, split, columns, notes, others)
        # Images next to the split folders have no class either; those inside them were added above.
        _add(_only_images(loose), None, "train", columns)
    else:
        _add_classes(root, None, columns, notes, others)
    if not any(label is not None for label in columns["label"]):
        raise ValueError(f"The folders of {root} hold no images; expected files such as .jpg or .png in them")
    if others:
        suffixes = ", ".join(printable(suffix) for suffix, _ in others.most_common(5))
        notes.append(f"Files ignored, because their suffixes are not those of images: {others.total()} ({suffixes}).")
    return columns, tuple(notes)


def _split_folders(root: Path, folders: list[Path]) -> dict[str, Path]:
    """Return split to folder, train first; empty if the folders are classes."""
    named = [folder for folder in folders if folder.name.lower() in SPLIT_NAMES]
    others = [folder.name for folder in folders if folder not in named]
    by_split: dict[str, Path] = {}
    for folder in named:
        split = SPLIT_NAMES[folder.name.lower()]
        if split in by_split:
            raise ValueError(
                f"{root} has both {by_split[split].name} and {folder.name}, which mean the same split "
                f"({split}); expected one of them"
            )
        by_split[split] = folder
    if others and len(by_split) < 2 and not (by_split and _holds_classes(next(iter(by_split.values())), others)):
        return {}
    if others and by_split:
        raise ValueError(
            f"{root} has folders of splits ({', '.join(f.name for f in named)}) next to others "
            f"({', '.join(map(printable, others[:3]))}); expected either only train, validation and test, "
            "or only classes"
        )
    if by_split and "train" not in by_split:
        raise ValueError(f"{root} has {named[0].name} but no train folder; expected one to learn from")
    return {split: by_split[split] for split in ("train", "validation", "test") if split in by_split}


def _holds_classes(folder: Path, classes: list[str]) -> bool:
    return any(inside.name in classes for inside in _level(folder)[0])


def _add_classes(folder: Path, split: str | None, columns: dict, notes: list, others: Counter) -> None:
    classes, loose = _level(folder)
    for path in classes:
        try:
            path.name.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"the name of the folder {printable(str(path))} is not UTF-8 and cannot be written to the run's files; "
                "rename it"
            ) from None
    if split and not classes:
        raise ValueError(f"{folder} holds no folders; expected one for each class in it, such as {folder}/cat")
    for path in classes:
        files = [file for file in _walk(path) if _is_image(file, others)]
        if not files:
            notes.append(f"The folder {printable(str(path))} holds no images and is left out.")
        _add(files, path.name, split, columns)
    _add(_only_images(loose), None, split, columns)


def _add(files: list[str], label: str | None, split: str | None, columns: dict) -> None:
    columns["image"] += files
    columns["label"] += [label] * len(files)
    if "split" in columns:
        columns["split"] += [split] * len(files)


def _level(folder: Path) -> tuple[list[Path], list[str]]:
    """Folders and files directly inside, sorted, without the hidden ones."""
    entries = sorted(entry for entry in folder.iterdir() if not _hidden(entry.name))
    return [e for e in entries if e.is_dir()], [str(e) for e in entries if not e.is_dir()]


def _walk(folder: Path) -> list[str]:
    """All files below, sorted; each real folder once, since a link may lead back up."""
    files, seen = [], set()

    def fail(error):
        raise error

    for path, folders, names in os.walk(folder, followlinks=True, onerror=fail):
        real = os.path.realpath(path)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not _hidden(name))
        files += [os.path.join(path, name) for name in names if not _hidden(name)]
    return sorted(files)


def _only_images(files: list[str]) -> list[str]:
    """Those with the suffix of an image: a LICENSE next to the classes is no example."""
    return [file for file in files if _suffix(file) in IMAGE_SUFFIXES]


def _is_image(path: str, others: Counter) -> bool:
    """Go by the suffix; count in ``others`` what is none."""
    suffix = _suffix(path)
    if suffix and suffix not in IMAGE_SUFFIXES:
        others[suffix] += 1
        return False
    return True


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM_FILES


def printable(name: str) -> str:
    """Return a file name with the bytes that are no text escaped, so that it can be printed.

    Args:
        name: as the operating system gives it.
    """
    return name.encode("utf-8", "backslashreplace").decode()
