"""Read the rows of a table, from a file or a frame, into columns of plain values."""

from __future__ import annotations

import csv
import datetime
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from thaw.data.class_names import class_name
from thaw.data.tables import csv_rows, first_cells, read_text

CSV_SUFFIXES = (".csv", ".tsv", ".tab", ".txt")
JSON_SUFFIXES = (".jsonl", ".ndjson")
PARQUET_SUFFIXES = (".parquet", ".pq")
_SEPARATORS = ",;\t|"
_ROWS_TO_LOOK_AT = 20
# What spreadsheets and programs write where there is no value, in lower case.
_GAPS = {"", "na", "n/a", "nan", "null", "#n/a", "<na>", "nat", "?", "#ref!", "#value!"}


def read_rows(source: Any) -> tuple[dict[str, list], list[str]]:
    """Read a table into columns of plain Python values, ``None`` where there is no value.

    Args:
        source: path of a CSV file (.csv, .tsv, .tab, .txt; commas, semicolons, tabs or bars), of JSON lines (.jsonl,
            .ndjson) or of a Parquet file; a pandas or polars frame, or a PyArrow table; or a dict from column to
            values.

    Returns:
        ``(columns, notes)``: lists of bool, int, float, str, ``datetime.datetime`` or ``None`` by the name of the
        column, all of one length, and sentences for the user. Everything in a CSV file is a str.

    Raises:
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: PyArrow, which reads Parquet, is not installed.
        ValueError: no table of this kind, columns without a name or with the same one, or no rows.

    Example:
        >>> from thaw.data.table_rows import read_rows
        >>> read_rows({"age": [31, float("nan")], "town": [" Ulm", "NA"]})[0]
        {'age': [31, None], 'town': ['Ulm', None]}
    """
    notes: list[str] = []
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        name = str(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path} is no file; expected a table (.csv, .tsv, .jsonl, .parquet).")
        columns, notes = _read_file(path)
    else:
        name, columns = "the table", _columns_of(source)
    names = [class_name(str(column)) for column in columns]
    if twice := sorted({column for column in names if names.count(column) > 1}):
        raise ValueError(f"{name} has the column {twice[0]!r} {names.count(twice[0])} times; expected it once.")
    cleaned = {column: list(map(_plain, values)) for column, values in zip(names, columns.values())}
    if "" in cleaned and any(value is not None for value in cleaned.pop("")):
        notes.append(f"One column of {Path(name).name} has no name and is not used.")
    lengths = {len(values) for values in cleaned.values()}
    if len(lengths) > 1:
        raise ValueError(f"The columns of {name} have {min(lengths)} to {max(lengths)} values; expected as many each.")
    if not cleaned or lengths == {0}:
        raise ValueError(f"{name} has no rows; expected one row for each example, below the names of the columns.")
    return cleaned, notes


def first_rows(path: str | os.PathLike, count: int = 3) -> list[list[str]]:
    """Return the first rows of a table as texts, the names of the columns first; none where they cannot be read.

    Args:
        path: as for :func:`read_rows`.
        count: rows at most. Default 3.

    Example:
        >>> import tempfile
        >>> from thaw.data.table_rows import first_rows
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "towns.csv")
        ...     _ = path.write_text("age;town\\n31;Ulm\\n")
        ...     first_rows(path)
        [['age', 'town'], ['31', 'Ulm']]
    """
    path = Path(path)
    if path.suffix.lower() not in CSV_SUFFIXES:
        columns, _ = read_rows(path)
        return [list(columns), *map(list, zip(*([str(v) for v in values[: count - 1]] for values in columns.values())))]
    lines = [line for line in read_text(path)[0].splitlines() if line.strip()][:_ROWS_TO_LOOK_AT]
    separator = _separator("\n".join(lines)) if lines else ","
    return [list(map(class_name, first_cells(line, separator))) for line in lines[:count]]


def _read_file(path: Path) -> tuple[dict[str, list], list[str]]:
    suffix = path.suffix.lower()
    if suffix in CSV_SUFFIXES:
        return _read_csv(path)
    if suffix in JSON_SUFFIXES:
        return _read_json_lines(path)
    if suffix in PARQUET_SUFFIXES:
        return _read_parquet(path), []
    known = ", ".join((*CSV_SUFFIXES, *JSON_SUFFIXES, *PARQUET_SUFFIXES))
    raise ValueError(f"{path} ends in {suffix or 'nothing'}; expected a table that ends in {known}.")


def _read_csv(path: Path) -> tuple[dict[str, list], list[str]]:
    text, notes = read_text(path)
    if not text.strip():
        raise ValueError(f"{path} is empty; expected a table with the names of its columns in the first line.")
    reader = csv_rows(text, _separator(text))
    header, rows = None, []
    try:
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            if header is None:
                header = row
            elif len(row) > len(header) and any(cell.strip() for cell in row[len(header) :]):
                raise ValueError(
                    f"{path}, line {reader.line_num}: {len(row)} cells, expected {len(header)} as in the header; put a "
                    "cell that holds the separator in quotes."
                )
            else:
                rows.append((row + [""] * len(header))[: len(header)])
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}; write a quote inside quotes twice.") from None
    return _of_rows(path, header, rows), notes


def _of_rows(path: Path, header: list[str], rows: list[list]) -> dict[str, list]:
    """Columns by name; a name that is there twice is refused before one hides the other."""
    names = [class_name(cell) for cell in header]
    if twice := sorted({name for name in names if name and names.count(name) > 1}):
        raise ValueError(f"{path} has the column {twice[0]!r} {names.count(twice[0])} times; expected it once.")
    values = list(zip(*rows)) if rows else [()] * len(names)
    return {name: list(column) for name, column in zip(names, values)}


def _separator(text: str) -> str:
    """The separator that divides the first rows into the same number of cells, the largest there is."""
    lines = [line for line in text.splitlines()[:_ROWS_TO_LOOK_AT] if line.strip()]

    def evenness(separator):
        counts = [len(first_cells(line, separator)) for line in lines]
        return (len(set(counts)) == 1 and counts[0] > 1, counts[0])

    return max(_SEPARATORS, key=evenness)


def _read_json_lines(path: Path) -> tuple[dict[str, list], list[str]]:
    text, notes = read_text(path)
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: no JSON ({error}); expected one object in each line.") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: a {type(row).__name__}; expected one object in each line.")
        rows.append(row)
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: [row.get(name) for row in rows] for name in names}, notes


def _read_parquet(path: Path) -> dict[str, list]:
    try:
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'PyArrow, which reads {path.name}, is not installed. Install it: pip install "keras-thaw[parquet]".'
        ) from error
    return parquet.read_table(path).to_pydict()


def _columns_of(source: Any) -> dict[str, list]:
    """The columns of a frame as lists."""
    library = type(source).__module__.split(".")[0]
    if isinstance(source, dict):
        columns = source
    elif library == "pandas" and hasattr(source, "columns"):
        columns = {}
        for position, column in enumerate(source.columns):
            if str(column) in columns:
                raise ValueError(f"The table has the column {str(column)!r} twice; expected it once.")
            columns[str(column)] = source.iloc[:, position].tolist()
    elif library == "polars" and hasattr(source, "to_dict"):
        columns = source.to_dict(as_series=False)
    elif library == "pyarrow" and hasattr(source, "to_pydict"):
        columns = source.to_pydict()
    elif hasattr(type(source), "column_names") and hasattr(source, "to_dict"):  # of Hugging Face
        columns = source.to_dict()
    else:
        raise ValueError(
            f"The table is a {type(source).__name__}; expected the path of a CSV, JSON lines or Parquet file, a pandas "
            "or polars frame, a PyArrow table, or a dict from column to values."
        )
    if scalar := next((c for c, v in columns.items() if isinstance(v, str) or not isinstance(v, Iterable)), None):
        raise ValueError(f"The column {scalar!r} is a {type(columns[scalar]).__name__}; expected a list of values.")
    return {str(name): list(values) for name, values in columns.items()}


def _plain(value: Any) -> Any:
    """A plain Python value; ``None`` for a gap."""
    if isinstance(value, str):
        value = class_name(value)
        return None if value.lower() in _GAPS else value
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, datetime.datetime):  # NaT of pandas is one that equals nothing
        return value if value == value else None
    if isinstance(value, datetime.date):
        return datetime.datetime(value.year, value.month, value.day)
    if hasattr(value, "item"):  # a NumPy scalar
        return _plain(value.item())
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    if type(value).__name__ == "Decimal":
        return _plain(float(value))
    return value
