"""A table of pictures: one row each, with its label and, where wanted, its split, group and weight."""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path

COLUMNS = ("image", "label", "split", "group", "weight")
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}


def csv_columns(source: str | os.PathLike) -> tuple[dict[str, list], tuple[str, ...]]:
    """Read a CSV file with the columns image and label, and optionally split, group and weight.

    Paths are relative to the file's folder. Names of columns may be in capitals; other columns are left
    alone, and said so.

    Args:
        source: The file: commas, UTF-8 (with or without a byte order mark), a first line with the names.

    Returns:
        Columns "image" (paths), "label", and where given "split" ("train", "validation", "test"), "group"
        (None where empty) and "weight" (floats); and sentences to show.

    Raises:
        ValueError: The table is not as expected; the message names the line.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "table.csv")
        ...     _ = path.write_text("image,label,weight\\na.png,cat,2\\nb.png,dog,0.5\\n")
        ...     columns, notes = csv_columns(path)
        >>> columns["label"], columns["weight"]
        (['cat', 'dog'], [2.0, 0.5])
    """
    source = Path(source)
    if source.suffix.lower() != ".csv":
        raise ValueError(f"{source} is a file; expected a folder of pictures, or a table that ends in .csv")
    try:
        # With newline="" the csv module sees line breaks inside quotes as they are.
        with open(source, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except UnicodeDecodeError:
        raise ValueError(f"{source} is not UTF-8 text; save it as CSV in UTF-8") from None
    except csv.Error as error:
        raise ValueError(f"{source} is not a CSV table: {error}") from None
    names = [cell.strip().lower() for cell in header]
    _check_header(source, header, names)
    if not rows:
        raise ValueError(f"{source} has a header but no rows; expected one row for each picture")
    cells: dict[str, list[str]] = {name: [] for name in names if name in COLUMNS}
    for line, row in rows:
        if len(row) != len(names):
            raise ValueError(f"{source}, line {line}: {len(row)} cells, expected {len(names)} as in the header")
        for name, cell in zip(names, row, strict=True):
            if name in cells:
                cells[name].append(cell.strip())
    lines = [line for line, _ in rows]
    columns: dict[str, list] = {
        "image": _images(source, lines, cells["image"]),
        "label": _each(source, lines, cells["label"], _label),
    }
    if "split" in cells:
        columns["split"] = _each(source, lines, cells["split"], _split)
        if "train" not in columns["split"]:
            raise ValueError(f"{source}: no row has the split train; expected some to learn from")
    if "group" in cells:
        columns["group"] = [group or None for group in cells["group"]]
    if "weight" in cells:
        columns["weight"] = _each(source, lines, cells["weight"], _weight)
    others = [cell for cell, name in zip(header, names, strict=True) if name not in COLUMNS]
    notes = (f"Columns of {source.name} that are not used: {', '.join(others)}.",) if others else ()
    return columns, notes


def _check_header(source: Path, header: list[str], names: list[str]) -> None:
    if not header:
        raise ValueError(f"{source} is empty; expected a table with the columns image and label")
    for name in ("image", "label"):
        if name in names:
            continue
        for sign, word in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
            if len(header) == 1 and sign in header[0]:
                raise ValueError(
                    f"{source} separates its columns with {word}; expected commas: save it as CSV with commas"
                )
        raise ValueError(f"{source} has no column {name!r} (it has: {', '.join(header)}); expected image and label")
    for name in COLUMNS:
        if names.count(name) > 1:
            raise ValueError(f"{source} has the column {name!r} {names.count(name)} times; expected it once")


def _images(source: Path, lines: list[int], cells: list[str]) -> list[str]:
    paths: list[str] = []
    first: dict[str, int] = {}
    for line, cell in zip(lines, cells, strict=True):
        if not cell:
            raise ValueError(f"{source}, line {line}: image is empty; expected the path of a picture")
        path = os.path.normpath(source.parent / cell)
        if path in first:
            raise ValueError(
                f"{source}, line {line}: {cell} is there already, in line {first[path]}; expected one row each"
            )
        first[path] = line
        paths.append(path)
    return paths


def _each(source: Path, lines: list[int], cells: list[str], read) -> list:
    values = []
    for line, cell in zip(lines, cells, strict=True):
        try:
            values.append(read(cell))
        except ValueError as error:
            raise ValueError(f"{source}, line {line}: {error}") from None
    return values


def _label(cell: str) -> str:
    if not cell:
        raise ValueError("label is empty; expected the name of a class")
    return cell


def _split(cell: str) -> str:
    if cell.lower() not in SPLIT_WORDS:
        raise ValueError(f"split is {cell!r}; expected train, validation or test")
    return SPLIT_WORDS[cell.lower()]


def _weight(cell: str) -> float:
    try:
        weight = float(cell)
    except ValueError:
        weight = math.nan
    # False for NaN too. Weights are used as 32-bit floats, of which the largest is 3.4e38.
    if not 0 <= weight < 3e38:
        raise ValueError(f"weight is {cell!r}; expected a number of 0 or more")
    return weight
