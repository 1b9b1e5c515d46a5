"""Find what kind of values the columns of a table hold, and encode them for a model."""

from __future__ import annotations

import dataclasses
import datetime
import math
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

KINDS = ("number", "category", "date", "boolean")
IGNORED = "ignored"
MISSING = " (missing)"  # of the input that says where a column has no value
_BOOLEANS = {"true": 1.0, "false": 0.0, "yes": 1.0, "no": 0.0, "y": 1.0, "n": 0.0, "t": 1.0, "f": 0.0}
_PAIRS = ({"true", "false"}, {"yes", "no"}, {"y", "n"}, {"t", "f"})
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
# 1,500 is one and a half for some, and one and a half thousand for others.
_AMBIGUOUS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")
_EPOCH = datetime.datetime(1970, 1, 1)
_WORDS_OF_TEXT = 4  # on average; a category has fewer
MAX_DIFFERENT = 20  # a column of numbers and other values that holds no more different ones is a category


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table: what it holds, and how its gaps are filled.

    Args:
        name: its name in the table.
        kind: ``"number"``, ``"category"``, ``"date"`` or ``"boolean"``.
        fill: number that stands where there is no value: the median of the training rows. Default 0; of a category
            nothing is filled, a gap is a category of its own.
        missing: whether the training rows have gaps, so that the model is told where. Default ``False``.
        decimal_comma: whether the numbers are written with a decimal comma. Default ``False``.

    Example:
        >>> from thaw.data.column_kinds import Column
        >>> Column("age", "number", fill=38.0, missing=True).inputs
        ('age', 'age (missing)')
    """

    name: str
    kind: str
    fill: float = 0.0
    missing: bool = False
    decimal_comma: bool = False

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the model's inputs for this column; Keras allows no slash in them."""
        name = self.name.replace("/", "_")
        return (name, name + MISSING) if self.missing and self.kind != "category" else (name,)


def find_kind(name: str, values: list) -> tuple[str, str | None]:
    """Find the kind of a column from all of its values.

    Args:
        name: of the column, for the sentence.
        values: plain values as :func:`thaw.data.table_rows.read_rows` gives them.

    Returns:
        ``(kind, sentence)``: one of the four kinds, or ``"ignored"``; and what the user should know, or ``None``.

    Raises:
        ValueError: numbers such as ``1,500``, which may be two things.

    Example:
        >>> from thaw.data.column_kinds import find_kind
        >>> find_kind("price", ["1,5", "12,25", None])
        ('number', "The numbers of 'price' are read with decimal commas: 1,5 is 1.5.")
        >>> find_kind("member", ["yes", "no", "no"]), find_kind("day", ["2024-05-31", "2024-06-01"])
        (('boolean', None), ('date', None))
    """
    known = [value for value in values if value is not None]
    if not known:
        return IGNORED, f"The column {name!r} has no values, and is not used."
    if any(isinstance(value, (list, dict, tuple, set, bytes)) for value in known):
        kind = next(type(v).__name__ for v in known if isinstance(v, (list, dict, tuple, set, bytes)))
        return IGNORED, f"The column {name!r} holds values of type {kind}, and is not used."
    if all(isinstance(value, bool) for value in known):
        return "boolean", None
    if all(isinstance(value, str) for value in known):
        lower = {value.lower() for value in known}
        if any(lower == pair for pair in _PAIRS):
            return "boolean", None
    if all(isinstance(value, datetime.datetime) or as_date(value) is not None for value in known):
        return "date", None
    numbers = [not isinstance(value, bool) and not math.isnan(_number(value)) for value in known]
    if all(numbers):
        return "number", None
    if comma := _decimal_comma(name, known):
        return "number", f"The numbers of {name!r} are read with decimal commas: {comma} is {comma.replace(',', '.')}."
    if (count := len(numbers) - sum(numbers)) < len(numbers):
        return _mixed(name, known, numbers, count)
    words = [len(str(value).split()) for value in known]
    if sum(words) > _WORDS_OF_TEXT * len(words) and len(set(known)) > len(known) / 2:
        return IGNORED, f"The column {name!r} holds texts of {sum(words) / len(words):.0f} words, and is not used."
    return "category", None


def _mixed(name: str, known: list, numbers: list[bool], count: int) -> tuple[str, str]:
    """A column of numbers and other values: numbers with gaps where most are numbers and many are different."""
    other = next(value for value, is_number in zip(known, numbers) if not is_number)
    text = f"The column {name!r} mixes {len(known) - count} numbers and {count} other values, such as {str(other)!r}"
    if count <= len(known) / 2 and len(set(map(str, known))) > MAX_DIFFERENT:
        return "number", f"{text}; these are taken as missing."
    return "category", f"{text}; each is a category."


def _decimal_comma(name: str, known: list) -> str | None:
    """The first number with a decimal comma, where all values are numbers then."""
    texts = [value for value in known if isinstance(value, str) and "," in value]
    if not texts or not all(_DECIMAL_COMMA.fullmatch(text) for text in texts):
        return None
    if any(math.isnan(_number(value)) for value in known if value not in texts):
        return None
    if all(_AMBIGUOUS.fullmatch(text) for text in texts):
        number = texts[0]
        raise ValueError(
            f"The column {name!r} holds {number!r}, which may be {number.replace(',', '.')} or "
            f"{number.replace(',', '')}; write numbers with a decimal point, and without a comma for thousands."
        )
    return next(text for text in texts if not _AMBIGUOUS.fullmatch(text))


def describe_column(name: str, kind: str, values: list) -> Column:
    """Describe a column from its values in the training rows.

    Args:
        name: of the column.
        kind: one of the four kinds.
        values: plain values of the training rows.

    Returns:
        :class:`Column`.

    Example:
        >>> from thaw.data.column_kinds import describe_column
        >>> describe_column("age", "number", ["31", "40", None])
        Column(name='age', kind='number', fill=35.5, missing=True, decimal_comma=False)
    """
    if kind == "category":
        return Column(name, kind, missing=any(value is None for value in values))
    known = [value for value in values if value is not None]
    comma = kind == "number" and any(isinstance(v, str) and _DECIMAL_COMMA.fullmatch(v) for v in known)
    numbers = _numbers(values, Column(name, kind, decimal_comma=comma))
    gaps = np.isnan(numbers)
    fill = float(np.float32(np.median(numbers[~gaps]))) if not gaps.all() else 0.0
    return Column(name, kind, fill, bool(gaps.any()), comma)


def encode_columns(table: dict[str, list], columns: tuple[Column, ...]) -> dict[str, np.ndarray]:
    """Encode rows as the inputs of a model, one or two arrays for each column.

    A number is a float, a boolean 0 or 1, a date the days since 1970-01-01, a category its text, empty where there is
    no value. Where a number, a boolean or a date is missing, it is the column's ``fill``, and a second input is 1.

    Args:
        table: plain values by the name of the column, as :func:`thaw.data.table_rows.read_rows` gives them.
        columns: :class:`Column` of each column that the model reads.

    Returns:
        A dict from the name of an input to ``(n, 1)`` float32, or strings, in the order of the names.

    Raises:
        ValueError: a column is not there, or all values of one are of another kind.

    Example:
        >>> from thaw.data.column_kinds import Column, encode_columns
        >>> columns = (Column("age", "number", fill=38.0, missing=True), Column("town", "category"))
        >>> x = encode_columns({"age": ["31", None], "town": ["Ulm", None]}, columns)
        >>> x["age"].ravel().tolist(), x["age (missing)"].ravel().tolist(), x["town"].ravel().tolist()
        ([31.0, 38.0], [0.0, 1.0], ['Ulm', ''])
    """
    inputs = {}
    for column in columns:
        if column.name not in table:
            raise ValueError(f"The table has no column {column.name!r} (it has: {shown_columns(table)}).")
        values = table[column.name]
        if column.kind == "category":
            inputs[column.inputs[0]] = np.array([category_text(value) for value in values], str)[:, None]
            continue
        numbers = _numbers(values, column)
        gaps = np.isnan(numbers)
        if gaps.all() and any(value is not None for value in values):
            first = next(value for value in values if value is not None)
            raise ValueError(f"The column {column.name!r} holds {first!r}; expected a {column.kind} as in training.")
        inputs[column.inputs[0]] = np.where(gaps, column.fill, numbers).astype(np.float32)[:, None]
        if column.missing:
            inputs[column.inputs[1]] = gaps.astype(np.float32)[:, None]
    return dict(sorted(inputs.items()))


def shown_columns(names: Iterable[str], most: int = 20) -> str:
    """Return names of columns for a message, the first of them where there are many.

    Args:
        names: of the columns.
        most: names at most. Default 20.

    Example:
        >>> from thaw.data.column_kinds import shown_columns
        >>> shown_columns(["age", "town"]), shown_columns("abcd", most=2)
        ('age, town', 'a, b and 2 more')
    """
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def category_text(value: Any) -> str:
    """Return a value as the name of a category: whole numbers without a point, a gap as an empty text.

    Args:
        value: a plain value.

    Example:
        >>> from thaw.data.column_kinds import category_text
        >>> category_text(3.0), category_text("3"), category_text("03"), category_text(None)
        ('3', '3', '03', '')
    """
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value.isoformat() if isinstance(value, datetime.datetime) else str(value)


def is_number(value: Any) -> bool:
    """Say whether a plain value is a number, or a text that is one.

    Args:
        value: a plain value.

    Example:
        >>> from thaw.data.column_kinds import is_number
        >>> is_number("1e3"), is_number(2), is_number("two"), is_number(True)
        (True, True, False, False)
    """
    return not isinstance(value, bool) and not math.isnan(_number(value))


def _numbers(values: list, column: Column) -> np.ndarray:
    """Values of a number, boolean or date as float64; NaN where there is none."""
    if column.kind == "date":
        return np.array([_days(value) for value in values])
    if column.kind == "boolean":
        return np.array([_boolean(value) for value in values])
    if column.decimal_comma:
        values = [value.replace(",", ".") if isinstance(value, str) else value for value in values]
    return np.array([_number(value) for value in values])


def _number(value: Any) -> float:
    """A finite number; NaN for anything else."""
    if not isinstance(value, (int, float, str)) or (isinstance(value, str) and "_" in value):
        return math.nan
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return math.nan
    return number if abs(number) < 3e38 else math.nan  # 32-bit floats go to 3.4e38


def _boolean(value: Any) -> float:
    if isinstance(value, str):
        return _BOOLEANS.get(value.lower(), _number(value))
    return math.nan if value is None or isinstance(value, datetime.datetime) else float(value)


def as_date(value: Any) -> datetime.datetime | None:
    """Return a date, or a text in ISO format with hyphens, as a date in universal time; ``None`` for anything else.

    Args:
        value: a plain value.

    Example:
        >>> from thaw.data.column_kinds import as_date
        >>> as_date("2024-05-31").day, as_date("2024-05").day, as_date("20240531"), as_date(2024)
        (31, 1, None, None)
    """
    if isinstance(value, str) and re.match(r"\d{4}-\d\d", value):
        try:
            value = datetime.datetime.fromisoformat(value if len(value) > 7 else f"{value}-01")
        except ValueError:
            return None
    if not isinstance(value, datetime.datetime):
        return None
    return value if value.tzinfo is None else value.astimezone(datetime.UTC).replace(tzinfo=None)


def _days(value: Any) -> float:
    """Days since 1970-01-01 in universal time."""
    date = as_date(value)
    return math.nan if date is None else (date - _EPOCH) / datetime.timedelta(days=1)
