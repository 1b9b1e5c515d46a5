"""Read labelled texts from a table (CSV, JSON lines, Parquet, a frame) or a folder with a subfolder for each class."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from thaw.data.class_names import class_name, note_merged
from thaw.data.files import (
    FoundFiles,
    list_folder,
    name_as_text,
    printable,
    refuse_hidden_splits,
    split_folders,
    walk_folder,
)
from thaw.data.image_paths import suffix_of
from thaw.data.splits import SPLIT_NAMES, holds_splits
from thaw.data.table_rows import read_rows
from thaw.data.tables import read_text
from thaw.data.target_columns import convert_targets

# What people call the columns, in lower case, in the order in which one is taken.
_NAMES = {
    "text": "text texts sentence sentences review body content comment message question document description tweet "
    "utterance title",
    "label": "label labels class category target stars rating sentiment intent topic",
    "split": "split set subset partition fold",
    "group": "group",
}


def read_texts(
    source: Any,
    *,
    task: str = "classification",
    text: str | None = None,
    label: str | Sequence[str] | None = None,
    split: str | None = None,
    group: str | None = None,
) -> tuple[dict[str, list], tuple[str, ...], tuple[str, ...]]:
    """Read labelled texts.

    Args:
        source: path of a table, or a frame, as :func:`thaw.data.table_rows.read_rows` takes it; or path of a folder
            ``class/text.txt``, with or without train, val and test above the classes.
        task: ``"classification"`` (default), or ``"multilabel"`` or ``"regression"``, which need a table.
        text: name of the column of texts; ``None`` (default) for "text" or another usual name.
        label: name of the column of classes, labels (``sport|chess``) or numbers, or a list of names, as for
            :func:`thaw.load_images`; ``None`` (default) for "label" or another usual name.
        split: name of the column that says train, validation or test; ``None`` (default) for "split" or another usual
            name, if there is one.
        group: name of the column of groups, whose texts stay in one split; ``None`` (default) for "group", if there is
            one.

    Returns:
        ``(columns, names, notes)``: lists under "name" (the file, or the table and the number of the row), "text",
        "label" (``None`` where there is none) and where given "split" and "group"; of another task than classes also
        "target", and the names of the labels or numbers, as :func:`thaw.data.target_columns.read_targets`; and
        sentences for the user.

    Raises:
        FileNotFoundError: nothing is at ``source``.
        ModuleNotFoundError: a Parquet file, and what reads it is not installed.
        ValueError: the content is invalid, a column is missing, or columns are asked of a folder.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "reviews.csv")
        ...     _ = path.write_text("body;stars\\nGood, really;5\\nBad;1\\n")
        ...     columns, names, notes = read_texts(path, label="stars")
        >>> columns["text"], columns["label"], columns["name"][0]
        (['Good, really', 'Bad'], ['5', '1'], 'reviews.csv, row 1')
    """
    first, *others = [label] if label is None or isinstance(label, str) else label
    asked = {"text": text, "label": first, "split": split, "group": group}
    if isinstance(source, (str, os.PathLike)) and Path(source).is_dir():
        if task != "classification":
            raise ValueError(f"{source} is a folder, and task={task!r} needs a table: one row for each text.")
        if given := next((f"{name}={column!r}" for name, column in asked.items() if column is not None), None):
            raise ValueError(f"{source} is a folder and has no column for {given}; leave it out, or give a table.")
        columns, notes = _read_folders(Path(source))
        return columns, (), notes
    rows, notes = read_rows(source)
    name = Path(source).name if isinstance(source, (str, os.PathLike)) else "the table"
    columns, names, more = _columns(rows, asked, others, task, name)
    return columns, names, (*notes, *more)


def text_column(rows: Sequence[str]) -> str | None:
    """Return the column that holds the texts, by its name; ``None`` where none has a usual one.

    Args:
        rows: names of the columns.

    Example:
        >>> text_column(["id", "Review", "stars"]), text_column(["age", "town"])
        ('Review', None)
    """
    alike = {class_name(heading).lower(): heading for heading in rows}
    return next((alike[word] for word in _NAMES["text"].split() if word in alike), None)


def _columns(rows, asked, others, task, table) -> tuple[dict[str, list], tuple[str, ...], list[str]]:
    """Pick the columns that are used from a table, under our own names."""
    taken, notes = {}, []
    for name, column in asked.items():
        wanted = [column] if column is not None else _NAMES[name].split()
        alike = {class_name(heading).lower(): heading for heading in rows if heading not in taken.values()}
        found = [alike[word] for word in (class_name(w).lower() for w in wanted) if word in alike]
        is_named = column is not None or name != "split" or (found and found[0].lower() == "split")
        if found and (is_named or holds_splits(rows[found[0]])):  # under another name it may be anything
            taken[name] = found[0]
        elif column is not None or name in ("text", "label"):
            raise ValueError(
                f"{table} has no column {column or name!r} (it has: {', '.join(map(repr, rows))}); name the one that "
                f"holds the {name}, {name}=COLUMN."
            )
    other = [f"{c!r} for {name}" for name, c in taken.items() if asked[name] is None and c.lower() != name]
    if other:
        notes.append(f"Columns of {table} taken under another name: {', '.join(other)}.")
    if missing := [heading for heading in others if heading not in rows]:
        raise ValueError(f"{table} has no column {missing[0]!r} (it has: {', '.join(map(repr, rows))}).")
    if task == "classification" and others:
        raise ValueError(
            f"label={[taken['label'], *others]!r} names several columns, and a text has one class; give one, or "
            "another task."
        )
    if unused := [heading for heading in rows if heading not in (*taken.values(), *others)]:
        notes.append(f"Columns of {table} that are not used: {', '.join(unused)}.")
    cells = {name: [_as_text(value) for value in rows[column]] for name, column in taken.items()}
    columns = {"name": [f"{table}, row {i + 1}" for i in range(len(cells["text"]))], "text": cells["text"]}
    names: tuple[str, ...] = ()
    if task != "classification":
        targets = {heading: list(map(_as_text, rows[heading])) for heading in (taken["label"], *others)}
        found, names, more = convert_targets(task, table, targets)
        columns |= found
        notes += more
    else:
        columns["label"] = [class_name(cell) or None for cell in cells["label"]]
        if not any(columns["label"]):
            raise ValueError(f"{table}: the column {taken['label']!r} is empty in all rows; expected names of classes.")
        notes += note_merged(cell for cell in cells["label"] if cell.strip())
    if "split" in cells:
        columns["split"] = [_split_of(cell, f"{table}, row {i + 1}") for i, cell in enumerate(cells["split"])]
    if "group" in cells:
        columns["group"] = [class_name(cell) or None for cell in cells["group"]]
    return columns, names, notes


def _split_of(cell, row) -> str:
    if (name := cell.lower()) not in SPLIT_NAMES:
        raise ValueError(f"{row}: split is {cell!r}; expected train, validation or test.")
    return SPLIT_NAMES[name]


def _as_text(value) -> str:
    if isinstance(value, float) and value.is_integer():  # the whole numbers of a column with gaps
        value = int(value)
    return "" if value is None else str(value)


def _read_folders(root):
    folders, loose = list_folder(root)
    if not folders:
        raise ValueError(f"{root} holds no folders; expected one folder of .txt files for each class")
    splits = split_folders(root, folders)
    if not splits:
        refuse_hidden_splits(folders)
    columns = {"name": [], "text": [], "label": []} | ({"split": []} if splits else {})
    found, western, unread = FoundFiles(), [], {}
    for split, folder in (splits or {None: root}).items():
        classes, beside = list_folder(folder)
        found.others.update(map(suffix_of, beside))
        for path in classes:
            name = name_as_text(path)
            found.spellings.append(name)
            for file in walk_folder(path, found):
                if suffix_of(file) != ".txt":
                    found.others[suffix_of(file)] += 1
                    continue
                columns["name"].append(file)
                columns["text"].append(_read_file(file, western, unread))
                columns["label"].append(class_name(name) or None)
                if splits:
                    columns["split"].append(split)
    if splits:
        found.others.update(map(suffix_of, loose))
    if not columns["name"]:
        raise ValueError(f"The folders of {root} hold no .txt files; expected one for each text")
    notes = note_merged(found.spellings) + _note_files(found.others, western, unread)
    return columns, tuple(notes)


def _read_file(path, western, unread) -> str:
    """Return the text of a file; an empty one where it cannot be read, which is said."""
    try:
        text, notes = read_text(Path(path))
    except (OSError, ValueError) as error:
        unread[path] = getattr(error, "strerror", None) or "it is damaged, or is no text"
        return ""
    if notes:
        western.append(path)
    return text


def _note_files(others: Counter, western: list[str], unread: dict[str, str]) -> list[str]:
    notes = []
    if others:
        kinds = ", ".join(suffix or "without a suffix" for suffix, _ in others.most_common(5))
        notes.append(f"Files ignored, because they are not .txt: {others.total()} ({kinds}).")
    if western:
        notes.append(
            f"Files that are not UTF-8, and are read as Windows-1252 (Western European): {len(western)}, such as "
            f"{printable(western[0])}; if their letters look wrong, save them in UTF-8."
        )
    if unread:
        path, reason = next(iter(unread.items()))
        notes.append(f"Files that cannot be read: {len(unread)}, such as {printable(path)} ({reason}).")
    return notes
