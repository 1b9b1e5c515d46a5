"""Read a table of images, as people and spreadsheets write it, into columns."""

from __future__ import annotations

import codecs
import csv
import datetime
import io
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from thaw.data.class_names import class_name, note_merged
from thaw.data.image_paths import IMAGE_SUFFIXES, find_images, suffix_of
from thaw.data.splits import SPLIT_NAMES

COLUMNS = ("image", "label", "split", "group", "weight", "time")
SUFFIXES = (".csv", ".tsv", ".tab", ".txt")
_SEPARATORS = ",;\t|"
# What else people call our columns, in lower case, without spaces, hyphens and underscores.
_SYNONYMS = {
    "image": "images img imgs picture photo file files filename filepath path imagefile imagefilename imagename "
    "imagepath imgfile imgname imgpath",
    "label": "labels class classes classname category categories target labelname species",
    "split": "set subset partition fold dataset phase",
    "weight": "weights sampleweight",
}
# First bytes of files that are called .csv and are none.
_OTHER_FILES = {
    b"PK\x03\x04": "an Excel or another zipped file",
    b"\xd0\xcf\x11\xe0": "an Excel file",
    b"\x1f\x8b": "compressed with gzip",
    b"PAR1": "a Parquet file",
}
# The longer mark first: that of UTF-32 begins with that of UTF-16.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_csv(
    source: str | os.PathLike, *, group: str | None = None, time: str | None = None, label: str | None = None
) -> tuple[dict[str, list], tuple[str, ...]]:
    """Read a CSV file with the columns image and label, and optionally split, group, weight and a time.

    Upper and lower case of the column names do not matter, and usual other names, such as ``file`` and ``class``, are
    accepted; the columns that are not used are in a note. Commas, semicolons, tabs and bars separate; the text is
    UTF-8, UTF-16, or else Windows-1252. Empty lines and columns are ignored, and comments (``#``) and Excel's ``sep=;``
    above the column names. The cells that a short row lacks are empty. A row that is there twice counts once. Paths are
    found by :func:`thaw.data.image_paths.find_images`.

    Args:
        source: path of the file, which ends in .csv, .tsv, .tab or .txt.
        group: name of the column with groups, such as patients, whose rows must stay in one split; ``None`` (default)
            for the column "group", if there is one.
        time: name of the column with ISO dates or numbers, to split by; ``None`` (default) for none.
        label: name of the column with the classes; ``None`` (default) for the column "label".

    Returns:
        ``(columns, notes)``: lists under "image" (paths), "label" (``None`` for an empty cell), and where given "split"
        ("train", "validation", "test"), "group" (``None`` for an empty cell), "time" (floats, or
        ``datetime.datetime``) and "weight" (floats); and sentences for the user.

    Raises:
        ValueError: the table is invalid; the message names the line. Or none of its images is found.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Path(folder, "a.png").touch()
        ...     path = Path(folder, "table.csv")
        ...     _ = path.write_text("image;label;weight\\na.png;cat;2\\nb.png;dog;0,5\\n")
        ...     columns, notes = read_csv(path)
        >>> columns["label"], columns["weight"]
        (['cat', 'dog'], [2.0, 0.5])
    """
    columns, notes, _ = read_columns(source, group, time, label, _classes)
    return columns, notes


def read_columns(source, group, time, label, convert):
    """Read a CSV file whose targets are converted by a function.

    Args:
        source: as for :func:`read_csv`.
        group: as for :func:`read_csv`.
        time: as for :func:`read_csv`.
        label: name of the column of targets, or a list of names; ``None`` for the column "label".
        convert: function from the table and a dict of cells, by the name of their column, to further columns, the names
            of the targets, and notes.

    Returns:
        ``(columns, notes, names)``.

    Raises:
        ValueError: as for :func:`read_csv`.
    """
    source = Path(source)
    if source.suffix.lower() not in SUFFIXES:
        raise ValueError(
            f"{source} is a file; expected a folder of images, or a table that ends in .csv, .tsv, .tab or .txt"
        )
    text, notes = read_text(source)
    table, more = _read_table(source, text)
    first, *others = [label] if label is None or isinstance(label, str) else label
    positions = _column_positions(table, {"group": group, "time": time, "label": first})
    for name in others:
        positions[f"label {name}"] = _position_of(table, "label", name)
    if not table.rows:
        raise ValueError(f"{source} has a header but no rows; expected one row for each image")
    notes += more + _note_columns(table, positions)
    cells = {name: [row[position] for row in table.rows] for name, position in positions.items()}
    empty = [line for line, cell in zip(table.lines, cells["image"], strict=True) if not cell.strip()]
    if empty:
        rows = f"; {len(empty)} rows have none" if len(empty) > 1 else ""
        raise ValueError(f"{source}, line {empty[0]}: image is empty; expected the path of an image{rows}")
    targets = {table.header[positions[name]]: cells[name] for name in cells if name.split()[0] == "label"}
    found, names, more = convert(table, targets)
    columns: dict[str, list] = {"image": cells["image"], **found}
    if "split" in cells:
        columns["split"] = convert_cells(table, cells["split"], _split)
    if "group" in cells:
        columns["group"] = [class_name(cell) or None for cell in cells["group"]]
    if "time" in cells:
        columns["time"] = _times(table, cells["time"], table.header[positions["time"]])
    if "weight" in cells:
        columns["weight"] = convert_cells(table, cells["weight"], _weight)
    notes += more
    columns["image"], more = find_images(source, cells["image"])
    notes += more + _drop_repeated(table, columns, cells["image"])
    return columns, tuple(notes), names


def _classes(table, targets):
    [cells] = targets.values()
    labels = [class_name(cell) or None for cell in cells]
    if not any(labels):
        raise ValueError(
            f"{table.source}, line {table.lines[0]}: label is empty, as in all rows; expected names of classes"
        )
    return {"label": labels}, (), note_merged(cell for cell in cells if cell.strip())


def read_text(source: Path) -> tuple[str, list[str]]:
    """Read a file as text: UTF-8, UTF-16, UTF-32 or Windows-1252.

    Args:
        source: path of the file.

    Returns:
        ``(text, notes)``; a note where it was no Unicode.

    Raises:
        ValueError: it is a file of another kind, or no text.
    """
    data = source.read_bytes()
    for begin, kind in _OTHER_FILES.items():
        if data.startswith(begin):
            raise ValueError(f"{source} is {kind}; save it as a CSV file of text")
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if data.startswith(mark)), None)
    if encoding is None and data.count(0) > len(data) / 4:  # ASCII in UTF-16: every second byte
        encoding = "utf-16-le" if data[1::2].count(0) > data[::2].count(0) else "utf-16-be"
    notes = []
    try:
        text = data.decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        line = _line_breaks(data[: error.start].decode("latin-1")) + 1
        if encoding is not None or _is_mostly_utf8(data):
            name = (encoding or "UTF-8").upper()
            raise ValueError(f"{source}, line {line}: not all of it is {name}; save it as CSV in UTF-8") from None
        try:
            text = data.decode("cp1252")
        except UnicodeDecodeError:
            raise ValueError(f"{source}, line {line}: it is not UTF-8 text; save it as CSV in UTF-8") from None
        notes.append(
            f"{source.name} is not UTF-8, and is read as Windows-1252 (Western European); if its names look wrong, "
            "save it as CSV in UTF-8."
        )
    text = text.lstrip("\ufeff").rstrip("\x1a\0")  # what DOS, and a disk that was full, leave at the end
    if "\0" in text:
        line = _line_breaks(text[: text.index("\0")]) + 1
        raise ValueError(f"{source}, line {line}: there is a NUL character; the file is damaged, or is no text")
    return text, notes


def _is_mostly_utf8(data: bytes) -> bool:
    """Do more letters beyond ASCII have the bytes of UTF-8 than not? Then the others are damaged, or were added."""
    letters = re.compile(b"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
    rest, count = letters.subn(b"", data)
    return count > len(re.findall(b"[\x80-\xff]", rest))


@dataclass(frozen=True, eq=False)
class _Table:
    source: Path
    header: list[str]
    lines: list[int]  # number of the last line of each row
    rows: list[list[str]]  # as long as the header
    unit: str = "line"


def _read_table(source: Path, text: str) -> tuple[_Table, list[str]]:
    """Return the header, and all rows in its length; and notes."""
    begin, separator = _find_header(text)
    text, skipped = text[begin:], _line_breaks(text[:begin])
    if not text.strip():
        raise ValueError(f"{source} is empty; expected a table with the columns image and label")
    reader = csv_rows(text, separator)
    rows, lines = [], []
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append(row)
                lines.append(skipped + reader.line_num)
    except csv.Error as error:
        line = lines[-1] + 1 if lines else skipped + 1
        raise ValueError(
            f"{source} is not a CSV table: {error}, in the row that begins in line {line}; write a quote inside quotes "
            "twice, close each one, and put nothing but a separator behind a closing quote"
        ) from None
    if len(rows[0]) == 1 and (inside := _separator(rows[0][0])):  # each line is in quotes as a whole
        rows = [first_cells(row[0], inside) if len(row) == 1 else row for row in rows]
    header = [_heading(cell) for cell in rows[0]]
    below = [i for i, row in enumerate(rows) if list(map(_heading, row)) != header]  # some tables are several in one
    notes = []
    if again := len(rows) - len(below) - 1:
        notes.append(f"Lines of {source.name} that repeat the column names are ignored: {again}.")
    rows, lines = [rows[i] for i in below], [lines[i] for i in below]
    # R writes no name above the numbers of the rows.
    if rows and all(len(row) == len(header) + 1 and row[0].strip().isdigit() and row[-1].strip() for row in rows):
        rows = [row[1:] for row in rows]
        notes.append(f"The first column of {source.name}, which numbers the rows, has no name and is not used.")
    for line, row in zip(lines, rows, strict=True):
        if any(cell.strip() for cell in row[len(header) :]):
            raise ValueError(
                f"{source}, line {line}: {len(row)} cells, expected {len(header)} as in the header; put a cell that "
                f"holds {separator!r} in quotes"
            )
        row[:] = (row + [""] * len(header))[: len(header)]
    return _Table(source, header, lines, rows), notes


def _find_header(text: str) -> tuple[int, str]:
    """Return where the column names begin, below empty lines, comments and Excel's ``sep=;``; and the separator."""
    begin, said = 0, None
    for line in re.finditer(r"([^\r\n]*)(?:\r\n|\r|\n|\Z)", text):
        if separator := re.match(r'\s*"?sep=(.)', line[1], re.IGNORECASE):
            said = separator[1]
        elif line[1].strip(' \t,;|"') and (not line[1].lstrip().startswith("#") or _separator(line[1])):
            break
        begin = line.end()
    # Where no separator gives the columns we need, the error shows what the likeliest gives.
    return begin, said or _separator(text[begin:]) or max(_SEPARATORS, key=lambda s: len(first_cells(text[begin:], s)))


def _line_breaks(text: str) -> int:
    return len(re.findall(r"\r\n|\r|\n", text))


def _separator(text: str) -> str | None:
    """The separator under which the first row names the columns image and label."""
    for separator in _SEPARATORS:
        header = [_heading(cell) for cell in first_cells(text, separator)]
        if positions_of("image", header) and positions_of("label", header):
            return separator
    return None


def _heading(cell: str) -> str:
    return class_name(cell).lstrip("# ")


def csv_rows(text: str, separator: str) -> Iterator[list[str]]:
    """Return a reader of the rows of a table, each a list of cells.

    Args:
        text: content of the table; one that begins with ``'`` has it for its quotes.
        separator: of the cells.
    """
    quote = "'" if text.lstrip().startswith("'") else '"'
    # With newline="" the csv module keeps line breaks inside quotes.
    return csv.reader(
        io.StringIO(text, newline=""), delimiter=separator, quotechar=quote, skipinitialspace=True, strict=True
    )


def first_cells(text: str, separator: str) -> list[str]:
    """Return the cells of the first row; none where they cannot be separated so.

    Args:
        text: content of a table.
        separator: of the cells.
    """
    try:
        return next(csv_rows(text, separator), [])
    except csv.Error:
        return []


def positions_of(column: str, header: list[str]) -> list[int]:
    """Return the positions of the cells with a name; if there are none, of those that mean the same."""
    names = [name.lower() for name in header]
    same = [i for i, name in enumerate(names) if name == column.lower()]
    synonyms = _SYNONYMS.get(column, "").split()
    return same or [i for i, name in enumerate(names) if re.sub(r"[\s_-]", "", name) in synonyms]


def _column_positions(table: _Table, asked: dict[str, str | None]) -> dict[str, int]:
    """Return the position of each column that is used, by our own name for it."""
    source, header = table.source, table.header
    positions = {}
    for name in COLUMNS:
        column = asked.get(name)
        if column is None and name == "time":
            continue
        found = positions_of(class_name(column or name), header)
        if len(found) > 1:
            _refuse_several(table, name, found)
        if found:
            positions[name] = found[0]
        elif column is not None:
            raise ValueError(_no_column(table, name, column))
        elif name in ("image", "label"):
            text = f"{source} has no column {name!r} {_has(header)}; expected image and label"
            if len(header) == 1:
                text += ", separated by commas, semicolons, tabs or bars"
            if any(suffix_of(cell) in IMAGE_SUFFIXES for cell in header):
                text += ": the first line is a row of the table, write the names of its columns above it"
            raise ValueError(text)
    split = positions.get("split")
    # Under another name it is taken for the split only if that is what it holds.
    if split is not None and header[split].lower() != "split":
        values = [class_name(row[split]).lower() for row in table.rows]
        if not all(value in SPLIT_NAMES for value in values) or "train" not in map(SPLIT_NAMES.get, values):
            del positions["split"]
    return positions


def _position_of(table: _Table, kind: str, column: str) -> int:
    """Return the position of a column that was asked for."""
    found = positions_of(class_name(column), table.header)
    if not found:
        raise ValueError(_no_column(table, kind, column))
    if len(found) > 1:
        _refuse_several(table, kind, found)
    return found[0]


def _no_column(table: _Table, kind: str, column: str) -> str:
    return f"{table.source} has no column {column!r} for {kind}= {_has(table.header)}"


def _has(header: list[str]) -> str:
    return f"(it has: {', '.join(name or 'one without a name' for name in header)})"


def _refuse_several(table: _Table, kind: str, found: list[int]) -> None:
    names = sorted({table.header[i] for i in found})
    if len(names) == 1:
        raise ValueError(f"{table.source} has the column {names[0]!r} {len(found)} times; expected it once")
    raise ValueError(
        f"{table.source} has several columns that may hold the {kind}: {', '.join(names)}; give one of them the name "
        f"{kind}"
    )


def _note_columns(table: _Table, positions: dict[str, int]) -> list[str]:
    """Note the columns that go by another name, and those that are not used."""
    notes, header, name_of_file = [], table.header, table.source.name
    other = [
        f"{header[i]!r} for {name}" for name, i in positions.items() if name in _SYNONYMS and header[i].lower() != name
    ]
    if other:
        notes.append(f"Columns of {name_of_file} taken under another name: {', '.join(other)}.")
    unused = []
    for i, name in enumerate(header):
        if i not in positions.values() and (name or any(row[i].strip() for row in table.rows)):
            unused.append(name or f"number {i + 1}, which has no name")
    if unused:
        notes.append(f"Columns of {name_of_file} that are not used: {', '.join(unused)}.")
    return notes


def _drop_repeated(table: _Table, columns: dict[str, list], cells: list[str]) -> list[str]:
    """Remove the rows that are there twice; refuse those that contradict one another."""
    first: dict[str, int] = {}
    repeated = []
    for i, path in enumerate(columns["image"]):
        if first.setdefault(path, i) == i:
            continue
        differing = [name for name, values in columns.items() if values[i] != values[first[path]]]
        if differing:
            raise ValueError(
                f"{table.source}, line {table.lines[i]}: {cells[i]} is there already, in line "
                f"{table.lines[first[path]]}, with another {differing[0]}; expected one row each"
            )
        repeated.append(i)
    if not repeated:
        return []
    once = sorted(first.values())
    for name, values in columns.items():
        columns[name] = [values[i] for i in once]
    return [
        f"Rows of {table.source.name} that repeat an earlier one are used once: {len(repeated)}, the first in line "
        f"{table.lines[repeated[0]]}."
    ]


def convert_cells(table, cells: list[str], function: Callable) -> list:
    """Convert the cells of a column; an error says in which line.

    Args:
        table: as the function of :func:`read_columns` is given it.
        cells: texts, one for each row.
        function: from a text without what nobody sees to a value; raises ``ValueError``.
    """
    values = []
    for line, cell in zip(table.lines, cells, strict=True):
        try:
            values.append(function(class_name(cell)))
        except ValueError as error:
            raise ValueError(f"{table.source}, {table.unit} {line}: {error}") from None
    return values


def _split(cell: str) -> str:
    if cell.lower() not in SPLIT_NAMES:
        raise ValueError(f"split is {cell!r}; expected train, validation or test")
    return SPLIT_NAMES[cell.lower()]


# 1,500 is one and a half for some, and one and a half thousand for others.
_AMBIGUOUS = r"[+-]?[1-9]\d{0,2},\d{3}"


def cell_number(name: str, cell: str) -> float:
    """Return the number in a cell, also with a decimal comma; NaN for anything else.

    Args:
        name: of the column, for the error.
        cell: a text.

    Raises:
        ValueError: the number may be read in two ways, such as 1,500.

    Example:
        >>> cell_number("price", "1,5"), cell_number("price", "-")
        (1.5, nan)
    """
    if re.fullmatch(_AMBIGUOUS, cell):
        raise ValueError(f"{name} is {cell!r}; write {float(cell.replace(',', '.'))} or {int(cell.replace(',', ''))}")
    return _number(cell)


def _weight(cell: str) -> float:
    weight = cell_number("weight", cell)
    # False for NaN too. Weights are used as 32-bit floats, of which the largest is 3.4e38.
    if not 0 <= weight < 3e38:
        raise ValueError(f"weight is {cell!r}; expected a number of 0 or more")
    return weight


def _number(cell: str) -> float:
    """Return a number, also with a decimal comma; NaN for anything else."""
    if re.fullmatch(r"[+-]?\d+,\d+", cell) and not re.fullmatch(_AMBIGUOUS, cell):
        cell = cell.replace(",", ".")
    try:
        return float(cell)
    except ValueError:
        return math.nan


def _times(table: _Table, cells: list[str], name: str) -> list:
    """Return the times as floats if all are numbers, else as dates."""
    cells = list(map(class_name, cells))
    numbers = [_number(cell) for cell in cells]
    if all(map(math.isfinite, numbers)):
        return numbers
    dates = []
    for line, cell in zip(table.lines, cells, strict=True):
        try:
            dates.append(datetime.datetime.fromisoformat(cell))
        except ValueError:
            raise ValueError(
                f"{table.source}, line {line}: {name} is {cell!r}; expected an ISO date such as 2024-05-31 in every "
                "row, or a number in every row"
            ) from None
    if len({date.tzinfo is None for date in dates}) > 1:
        raise ValueError(f"{table.source}: some dates of {name} have a time zone and some have none; expected one kind")
    return dates
