"""Read the columns of a table that hold several labels for each image, or numbers to predict."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from thaw.data.class_names import class_name
from thaw.data.tables import cell_number, convert_cells, read_columns
from thaw.targets import MultiLabel, Regression, split_labels

TARGET_TASKS = ("multilabel", "regression")
MAX_LEVELS = 10  # different values of a number that are taken for ordered classes


def read_targets(
    source: str | os.PathLike,
    task: str,
    *,
    label: str | Sequence[str] | None = None,
    group: str | None = None,
    time: str | None = None,
) -> tuple[dict[str, list], tuple[str, ...], tuple[str, ...]]:
    """Read a CSV file whose rows have several labels each, or numbers to predict.

    Args:
        source: as for :func:`thaw.data.tables.read_csv`.
        task: ``"multilabel"``: one column of labels such as ``cat|hat``, where an empty cell is no label, or one column
            of 0 and 1 for each label; or ``"regression"``: one column of numbers, or several.
        label: name of the column, or a list of names. Default ``None``: the column "label".
        group: as for :func:`thaw.data.tables.read_csv`.
        time: as for :func:`thaw.data.tables.read_csv`.

    Returns:
        ``(columns, names, notes)``: as :func:`thaw.data.tables.read_csv`, with a "target" for each row, a tuple of
        labels or of floats, and under "label" ``""``, or ``None`` for a row without a number; the labels, sorted or in
        the order of their columns, or the names of the numbers; and sentences for the user.

    Raises:
        ValueError: as :func:`thaw.data.tables.read_csv`; or a cell is no number, or neither 0 nor 1.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in "ab":
        ...         Path(folder, f"{name}.png").touch()
        ...     path = Path(folder, "table.csv")
        ...     _ = path.write_text("image,price,tags\\na.png,2.5,cat|hat\\nb.png,3,dog\\n")
        ...     numbers, _, _ = read_targets(path, "regression", label="price")
        ...     columns, names, _ = read_targets(path, "multilabel", label="tags")
        >>> numbers["target"], columns["target"], names
        ([(2.5,), (3.0,)], [('cat', 'hat'), ('dog',)], ('cat', 'dog', 'hat'))
    """
    columns, notes, names = read_columns(source, group, time, label, _CONVERT[task])
    return columns, names, notes


def convert_targets(task: str, source: str, targets: dict[str, list[str]]):
    """Convert cells of any table into targets; the errors name the row.

    Args:
        task: as for :func:`read_targets`.
        source: name of the table, for messages.
        targets: dict from the name of a column to its cells.

    Returns:
        ``(columns, names, notes)``: the columns "label" and "target", the names and the notes of :func:`read_targets`.

    Raises:
        ValueError: a cell is no number, or neither 0 nor 1.

    Example:
        >>> convert_targets("regression", "cars.csv", {"price": ["7,5", ""]})[0]
        {'label': ['', None], 'target': [(7.5,), (None,)]}
    """
    rows = range(1, 1 + max(map(len, targets.values())))
    return _CONVERT[task](SimpleNamespace(source=Path(source), lines=rows, unit="row"), targets)


def _several_labels(table, targets):
    if len(targets) == 1:
        [cells] = targets.values()
        found = [tuple(map(class_name, split_labels(cell))) for cell in cells]
        names = tuple(sorted({label for labels in found for label in labels}))
    else:
        names = tuple(targets)
        columns = [
            convert_cells(table, cells, lambda cell, name=name: _yes_or_no(name, cell))
            for name, cells in targets.items()
        ]
        found = [tuple(name for name, yes in zip(names, row, strict=True) if yes) for row in zip(*columns, strict=True)]
    if len(names) < 2:
        raise ValueError(
            f"{table.source} has {len(names)} labels ({', '.join(names) or 'none'}); expected two or more: cells such "
            "as cat|hat, or the names of several columns of 0 and 1"
        )
    without = sum(not labels for labels in found)
    notes = [f"Rows of {table.source.name} without any label: {without}; they count as examples of none."] * bool(
        without
    )
    return {"label": [""] * len(found), "target": found}, names, notes


def _numbers(table, targets):
    columns = [
        convert_cells(table, cells, lambda cell, name=name: _target(name, cell)) for name, cells in targets.items()
    ]
    found = list(zip(*columns, strict=True))
    labels = [None if None in row else "" for row in found]
    if not any(label is not None for label in labels):
        raise ValueError(f"{table.source}: no row has a number under {', '.join(targets)}; expected one in each")
    return {"label": labels, "target": found}, tuple(targets), []


def _yes_or_no(name, cell):
    known = {"1": True, "1.0": True, "true": True, "yes": True, "0": False, "0.0": False, "false": False, "no": False}
    if cell.lower() not in known:
        raise ValueError(f"{name} is {cell!r}; expected 0 or 1")
    return known[cell.lower()]


def _target(name, cell):
    if not cell:
        return None
    if not math.isfinite(number := cell_number(name, cell)):
        raise ValueError(f"{name} is {cell!r}; expected a number, or an empty cell where it is not known")
    return number


_CONVERT = {"multilabel": _several_labels, "regression": _numbers}


def target_task(task, names, y):
    """Make the task of columns that were read.

    Args:
        task: as for :func:`read_targets`.
        names: of the labels or numbers.
        y: targets of the training rows, as :func:`read_targets` gives them: numbers are standardized by these.

    Returns:
        ``(task, notes)``: a :class:`thaw.targets.MultiLabel` or :class:`thaw.targets.Regression`, and sentences. One
        number that takes at most 10 different values has them as levels.

    Raises:
        ValueError: a number that is the same in all rows.

    Example:
        >>> task, notes = target_task("regression", ["stars"], [(1.0,), (5.0,), (2.0,)])
        >>> task.levels, notes
        ((1.0, 2.0, 5.0), ["'stars' takes 3 values: as ordered classes they are measured by the weighted kappa too."])
    """
    if task == "multilabel":
        counts = dict.fromkeys(names, 0)
        for labels in y:
            for label in labels:
                counts[label] += 1
        return MultiLabel(names), [
            f"No training example has the label {n!r}." for n, count in counts.items() if not count
        ]
    found = Regression(names).standardized_by(y)
    values = sorted({row[0] for row in y})
    if len(names) > 1 or len(values) > MAX_LEVELS:
        return found, []
    notes = [
        f"{names[0]!r} takes {len(values)} values: as ordered classes they are measured by the weighted kappa too."
    ]
    return dataclasses.replace(found, levels=tuple(values)), notes
