"""load_table: a table of numbers, categories, dates and booleans becomes Splits."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from thaw._validation import as_seed
from thaw.data.column_checks import equals_label, note_levels, note_repeated, why_useless
from thaw.data.column_kinds import (
    IGNORED,
    KINDS,
    Column,
    as_date,
    category_text,
    describe_column,
    encode_columns,
    find_kind,
    is_number,
    shown_columns,
)
from thaw.data.splits import FRACTIONS, SPLIT_NAMES, SPLITS, Splits, holds_splits
from thaw.data.splitting import check_split_arguments, split_examples
from thaw.data.table_rows import read_rows

TASKS = ("classification", "regression")
MAX_NUMERIC_CLASSES = 20  # a label of more different numbers is a number to predict


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class TableSplits(Splits):
    """The :class:`thaw.Splits` of a table, with what its columns hold.

    Args:
        columns: :class:`thaw.data.column_kinds.Column` of each column that the model reads.
    """

    columns: tuple[Column, ...] = ()


def load_table(
    data: Any,
    *,
    label: str = "label",
    task: str | None = None,
    columns: dict[str, str] | list[str] | None = None,
    split: str | None = None,
    group: str | None = None,
    time: str | None = None,
    seed: int = 0,
    splits: tuple[float, float, float] = FRACTIONS,
    balance: str = "auto",
) -> TableSplits:
    """Load a table with one row for each example, check it, and split it into train, validation and test.

    What each column holds is found from its values, and can be said: a number (with a decimal comma too), a category, a
    date in ISO format, or a boolean. A date is divided into parts inside the model. Where a number, a boolean or a date
    is missing, the model is given the median of the training rows, and that it is missing; a missing category is one of
    its own. Columns of texts, with one value in all rows, with another in each as an identifier has, and those that say
    the label are not used; each is named in the notes.

    Equal rows share a split. A row without a label is left out.

    Args:
        data: path of a CSV, JSON lines or Parquet file, a pandas or polars frame, a PyArrow table, or a dict from
            column to values; see :func:`thaw.data.table_rows.read_rows`.
        label: name of the column to predict. Default ``"label"``.
        task: ``"classification"`` or ``"regression"``; default ``None``: regression where the labels are more than 20
            different numbers, else classification.
        columns: what columns hold, where it is known better: a dict from name to ``"number"``, ``"category"``,
            ``"date"``, ``"boolean"`` or ``"ignored"``, the others being found; or a list of the columns to use, and no
            others. A column named here is used, whatever it looks like. Default ``None``.
        split: name of a column with train, validation and test, as :func:`thaw.load_images` reads it; default
            ``None``: "split", if there is one and it holds nothing else.
        group: name of a column; rows of a group share a split. Default ``None``.
        time: name of a column of dates or numbers; the latest rows are the test. Default ``None``.
        seed: int, seed of the split; it has no effect with ``time``. Default 0.
        splits: fractions of train, validation and test. Default 0.7, 0.15 and 0.15.
        balance: what is done about classes of different size, as in :func:`thaw.data.splits.resolve_balance`. Default
            ``"auto"``.

    Returns:
        :class:`TableSplits`: a :class:`thaw.Splits` whose datasets hold a dict of inputs, one for each column and each
        sign that one is missing, and whose ``columns`` describe them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the table or an argument is invalid; the message says what was expected.

    Example:
        >>> from thaw.data.columns import load_table
        >>> ages = [20 + i % 50 for i in range(200)]
        >>> table = {"age": ages, "town": ["Ulm", "Bonn"] * 100, "old": ["yes" if a > 45 else "no" for a in ages]}
        >>> splits = load_table(table, label="old")
        >>> [(column.name, column.kind) for column in splits.columns]
        [('age', 'number'), ('town', 'category')]
        >>> splits.labels, sorted(splits.train.x)
        (('no', 'yes'), ['age', 'town'])
    """
    _check_arguments(task, columns)
    check_split_arguments(splits, 1.0, balance)
    seed = as_seed(seed)
    table, notes = read_rows(data)
    split = split or next((name for name in table if name.lower() == "split" and holds_splits(table[name])), None)
    for argument, name in (("label", label), ("split", split), ("group", group), ("time", time)):
        if name is not None and name not in table:
            raise ValueError(
                f"The table has no column {name!r} (it has: {shown_columns(table)}); name the one that holds the "
                f"{argument}, {argument}=COLUMN."
            )
    known = [i for i, value in enumerate(table[label]) if value is not None]
    if not known:
        raise ValueError(f"The label {label!r} is empty in all rows; expected classes or numbers.")
    numeric = _is_numeric([table[label][i] for i in known], label, task)
    labels = _labels(table[label], numeric)
    if not numeric and len(names := {labels[i] for i in known}) > max(2, len(known) / 2):
        raise ValueError(
            f"The label {label!r} has {len(names)} classes in {len(known)} rows; expected a category with several rows "
            "of each, or numbers."
        )
    if numeric and len(set(labels) - {None}) == 1:
        raise ValueError(f"The label {label!r} is {labels[known[0]]:g} in all rows; expected different numbers.")
    taken = {label, split, group, time}
    kinds, found = _find_kinds(table, columns, taken, known, labels, numeric)
    keys = _row_keys(table, kinds)
    given: dict[str, list] = {"label": ["" if numeric and value is not None else value for value in labels]}
    if numeric:
        given["target"] = [(value,) for value in labels]
    if split is not None:
        given["split"] = given_splits(table[split], split)
    if group is not None:
        given["group"] = [None if value is None else category_text(value) for value in table[group]]
    if time is not None:
        given["time"] = _times(table[time], time)
    divided = split_examples(
        Path(str(data) if isinstance(data, (str, os.PathLike)) else "the table"),
        given,
        keys,
        {},
        names=[f"row {i + 1}" for i in range(len(keys))],
        noun="row",
        cluster=lambda rows: rows,  # equal rows have equal keys
        inputs=lambda rows: {"x": np.array(rows)},
        unlabelled="has no label",
        fractions=splits,
        seed=seed,
        max_bad=1.0,
        balance=balance,
        task="regression" if numeric else "classification",
        target_names=[label] if numeric else (),
        notes=notes + found,
    )
    rows = {name: getattr(divided, name).x for name in SPLITS if getattr(divided, name) is not None}
    notes = list(divided.notes)
    split_of = {i: name for name, indices in rows.items() for i in indices.tolist()}
    notes += note_repeated([keys[i] for i in split_of], [labels[i] for i in split_of], list(split_of.values()))
    described = []
    for name, kind in kinds.items():
        values = [table[name][i] for i in rows["train"]]
        described.append(describe_column(name, kind, values))
        if kind == "category" and (note := note_levels(name, values)):
            notes.append(note)
    x = encode_columns(table, tuple(described))
    datasets = {
        name: getattr(divided, name).replace(x={column: values[indices] for column, values in x.items()})
        for name, indices in rows.items()
    }
    fields = {field.name: getattr(divided, field.name) for field in dataclasses.fields(divided)}
    return TableSplits(**fields | datasets | {"notes": tuple(notes), "columns": tuple(described)})


def label_cells(table: dict[str, list], label: str, task: str) -> dict[str, list]:
    """Return the labels of rows that a model is measured on.

    Args:
        table: plain values by the name of the column, as :func:`thaw.data.table_rows.read_rows` gives them.
        label: name of the column.
        task: ``"classification"`` or ``"regression"``.

    Returns:
        A dict with "label", the name of a class, or ``None`` where there is none; of numbers also "target".

    Raises:
        ValueError: there is no such column, or a label is no number.

    Example:
        >>> label_cells({"price": ["7,5", None]}, "price", "regression")
        {'label': ['', None], 'target': [(7.5,), (None,)]}
    """
    if label not in table:
        raise ValueError(f"The table has no column {label!r} for the label (it has: {shown_columns(table)}).")
    numeric = _is_numeric([value for value in table[label] if value is not None], label, task)
    labels = _labels(table[label], numeric)
    if not numeric:
        return {"label": labels}
    return {"label": ["" if value is not None else None for value in labels], "target": [(v,) for v in labels]}


def _labels(values, numeric) -> list:
    return [value if value is None else _number(value) if numeric else category_text(value) for value in values]


def _check_arguments(task, columns) -> None:
    if task not in (None, *TASKS):
        raise ValueError(f'task={task!r}; expected "classification", "regression" or None to find it.')
    if columns is not None and not isinstance(columns, (dict, list, tuple)):
        raise ValueError(f"columns={columns!r}; expected a dict from name to kind, or a list of names.")
    if isinstance(columns, dict) and (wrong := [k for k in columns.values() if k not in (*KINDS, IGNORED)]):
        raise ValueError(f"columns has the kind {wrong[0]!r}; expected one of {', '.join((*KINDS, IGNORED))}.")


def _is_numeric(values, label, task) -> bool:
    """Is the label a number to predict?"""
    numbers = [_number(value) for value in values]
    if task == "regression" and (wrong := [v for v, number in zip(values, numbers) if number is None]):
        raise ValueError(f"The label {label!r} holds {str(wrong[0])!r}; expected a number in every row.")
    if task is not None:
        return task == "regression"
    return None not in numbers and len(set(numbers)) > MAX_NUMERIC_CLASSES


def _number(value) -> float | None:
    """A label as a number, also with a decimal comma; ``None`` for anything else."""
    if is_number(value):
        return float(value)
    if isinstance(value, str) and value.count(",") == 1 and is_number(text := value.replace(",", ".")):
        return float(text)
    return None


def _find_kinds(table, columns, taken, known, labels, numeric) -> tuple[dict[str, str], list[str]]:
    """The kind of each column that is used, from the rows with a label; and sentences."""
    said = dict(columns) if isinstance(columns, dict) else {}
    asked = list(said if isinstance(columns, dict) else columns or ())
    if unknown := [name for name in asked if name not in table or name in taken]:
        left = ", ".join(name for name in table if name not in taken)
        raise ValueError(f"columns names {unknown[0]!r}; expected some of: {left}.")
    only = asked if isinstance(columns, (list, tuple)) else table
    kinds, notes = {}, []
    for name in table:
        if name in taken or name not in only or said.get(name) == IGNORED:
            continue
        values = [table[name][i] for i in known]
        kind, note = (said[name], None) if name in said else find_kind(name, values)
        if kind != IGNORED and name not in asked:
            useless = why_useless(name, kind, values) or equals_label(name, values, [labels[i] for i in known], numeric)
            kind, note = (IGNORED, useless) if useless else (kind, note)
        if note:
            notes.append(note)
        if kind != IGNORED:
            kinds[name] = kind
    if not kinds:
        raise ValueError(" ".join(["The table has no column to predict from.", *notes]))
    inputs = Counter(name for column in kinds for name in Column(column, kinds[column], missing=True).inputs)
    if twice := [name for name, count in inputs.items() if count > 1]:
        raise ValueError(f"Two columns would be the input {twice[0]!r} of the model; give one of them another name.")
    return kinds, notes


def _row_keys(table, kinds) -> list[str]:
    """SHA-256 of the values that are used, for each row."""
    rows = zip(*(table[name] for name in kinds))
    return [hashlib.sha256("\0".join(map(category_text, row)).encode()).hexdigest() for row in rows]


def given_splits(values: list, column: str) -> list[str]:
    """Return "train", "validation" or "test" for each cell of a column.

    Args:
        values: plain values.
        column: its name, for the error.

    Raises:
        ValueError: a cell holds anything else.
    """
    names = [SPLIT_NAMES.get(str(value).lower()) for value in values]
    if None in names:
        value = values[names.index(None)]
        raise ValueError(f"The column {column!r} holds {value!r}; expected train, validation or test in every row.")
    return names


def _times(values, column) -> list:
    """Dates or numbers, all of one kind."""
    for convert in (as_date, _number):
        times = [convert(value) for value in values]
        if None not in times:
            return times
    raise ValueError(f"The column {column!r} is no time; expected a date in every row, or a number in every row.")
