"""Texts and the rows of tables as inputs of a run's model: described in its folder, and read again to predict."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from thaw._files import to_json, write_text

INPUT, TOKENIZER = "input.json", "tokenizer.json"


def kind_of_splits(splits):
    """Return what Splits hold: ``"text"``, ``"table"``, ``"array"``, ``"joined"``, and of any others ``"image"``.

    Args:
        splits: :class:`~thaw.data.splits.Splits`.
    """
    from thaw.data.arrays import ArraySplits
    from thaw.data.columns import TableSplits
    from thaw.data.joined_columns import JoinedSplits
    from thaw.data.text import TextSplits

    kinds = {TextSplits: "text", TableSplits: "table", ArraySplits: "array", JoinedSplits: "joined"}
    return next((kind for own, kind in kinds.items() if isinstance(splits, own)), "image")


def input_files(splits):
    """Return the files of a run that say what its model takes; none for images.

    Args:
        splits: :class:`~thaw.data.splits.Splits`.

    Returns:
        A dict from the name of a file to the function that writes it.
    """
    kind = kind_of_splits(splits)
    if kind == "joined":
        described = {"input": "joined", "image": splits.image, "text": splits.text, "image_size": splits.image_size}
        described["length"] = int(splits.train.x["text"].shape[1]) if splits.text else None
        described["columns"] = [dataclasses.asdict(column) for column in splits.columns]
        tokenizer = {TOKENIZER: write_text(splits.tokenizer.to_str())} if splits.text else {}
        return {INPUT: write_text(to_json(described)), **tokenizer}
    if kind == "array":
        return {INPUT: write_text(to_json({"input": "array", "shape": splits.train.x.shape[1:]}))}
    if kind == "text":
        described = {"input": "text", "column": splits.column, "length": int(splits.train.x.shape[1])}
        return {INPUT: write_text(to_json(described)), TOKENIZER: write_text(splits.tokenizer.to_str())}
    if kind == "table":
        columns = [dataclasses.asdict(column) for column in splits.columns]
        return {INPUT: write_text(to_json({"input": "table", "columns": columns}))}
    return {}


def read_input(folder):
    """Return what the model of a run takes.

    Args:
        folder: path of the run folder.

    Returns:
        :class:`TextInput`, :class:`TableInput`, :class:`ArrayInput`, or ``None`` for images.
    """
    from thaw.data.column_kinds import Column

    path = Path(folder) / INPUT
    if not path.exists():
        return None
    described = json.loads(path.read_text(encoding="utf-8"))
    if described["input"] == "text":
        return TextInput(described["column"], described["length"], Path(folder) / TOKENIZER)
    if described["input"] == "array":
        return ArrayInput(tuple(described["shape"]))
    columns = tuple(Column(**column) for column in described["columns"])
    if described["input"] == "joined":
        names = ("image", "text", "image_size", "length")
        tokenizer = Path(folder) / TOKENIZER if described["text"] else None
        return JoinedInput(**{name: described[name] for name in names}, columns=columns, tokenizer=tokenizer)
    return TableInput(columns)


@dataclasses.dataclass(frozen=True)
class TextInput:
    """Texts, as a model takes them.

    Args:
        column: name of the column of texts in a table; ``None`` for a usual name.
        length: pieces of each text.
        tokenizer: path of the file of the tokenizer.
    """

    column: str | None
    length: int
    tokenizer: Path
    kind = noun = "text"

    def read(self, source: Any) -> tuple[list[str], list[str]]:
        """Read the texts of a file, a table in memory, a list of texts, or one text.

        Args:
            source: path of a text file (``.txt``), of a table, a frame, or a list of texts; or a text of several words,
                where there is no such file.

        Returns:
            ``(names, texts)``.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it cannot be read, or has no such column.
        """
        from thaw.data.table_rows import CSV_SUFFIXES, JSON_SUFFIXES, PARQUET_SUFFIXES, read_rows
        from thaw.data.tables import read_text
        from thaw.data.text_files import text_column

        if isinstance(source, (list, tuple)):
            return [f"text {i + 1}" for i in range(len(source))], list(source)
        is_path = isinstance(source, (str, os.PathLike))
        is_named = is_path and Path(source).suffix.lower() in (*CSV_SUFFIXES, *JSON_SUFFIXES, *PARQUET_SUFFIXES)
        if is_path and not is_named and len(str(source).split()) > 1 and not _is_file(source):
            return [str(source)], [str(source)]
        if is_path and Path(source).suffix.lower() == ".txt":
            if not Path(source).is_file():
                raise FileNotFoundError(f"{source} is no file; expected a text or a table of texts.")
            return [str(source)], [read_text(Path(source))[0]]
        rows, _ = read_rows(source)
        name = Path(source).name if is_path else "the table"
        column = self.column or text_column(rows)
        if column not in rows:
            raise ValueError(f"{name} has no column {column or 'text'!r} (it has: {', '.join(map(repr, rows))}).")
        texts = ["" if value is None else str(value) for value in rows[column]]
        return [f"{name}, row {i + 1}" for i in range(len(texts))], texts

    def encode(self, texts: Sequence[str]) -> tuple[Any, dict[int, str]]:
        """Return what the model takes, and why a text is left out, by its number."""
        from thaw.data.text import encode_texts, load_tokenizer

        bad = {i: "is empty" for i, text in enumerate(texts) if not text.strip()}
        return encode_texts(load_tokenizer(self.tokenizer), texts, self.length), bad

    def labelled(self, source, task: str, label):
        """Read labelled texts; return ``(names, texts, columns)``, as :func:`thaw.data.text_files.read_texts`."""
        from thaw.data.text_files import read_texts

        is_folder = isinstance(source, (str, os.PathLike)) and Path(source).is_dir()
        asked = {} if is_folder else {"text": self.column, "label": label}
        columns, _, _ = read_texts(source, task=task, **asked)
        return columns["name"], columns["text"], columns


@dataclasses.dataclass(frozen=True)
class TableInput:
    """Rows of a table, as a model takes them.

    Args:
        columns: tuple of :class:`thaw.data.column_kinds.Column`.
    """

    columns: tuple
    kind, noun = "table", "row"

    def read(self, source: Any) -> tuple[list[str], dict[str, list]]:
        """Read the rows of a table.

        Args:
            source: path of a table, a frame, or a dict of columns.

        Returns:
            ``(names, columns)``.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it cannot be read.
        """
        from thaw.data.table_rows import read_rows

        rows, _ = read_rows(source)
        name = Path(source).name if isinstance(source, (str, os.PathLike)) else "the table"
        return [f"{name}, row {i + 1}" for i in range(len(next(iter(rows.values()))))], rows

    def encode(self, rows: dict[str, list]) -> tuple[Any, dict[int, str]]:
        """Return what the model takes; no row is left out."""
        from thaw.data.column_kinds import encode_columns

        return encode_columns(rows, self.columns), {}

    def labelled(self, source, task: str, label):
        """Read labelled rows; return ``(names, rows, columns)`` with the column "label", and "target" of numbers."""
        from thaw.data.columns import label_cells

        names, rows = self.read(source)
        return names, rows, label_cells(rows, label or "label", task)


@dataclasses.dataclass(frozen=True)
class JoinedInput(TableInput):
    """Rows with a picture, a text and numbers, or two of these, as a model takes them.

    Args:
        columns: as in :class:`TableInput`.
        image: name of the column of images; ``None`` without images.
        text: name of the column of texts; ``None`` without texts.
        image_size: side of the images in pixels.
        length: pieces of each text.
        tokenizer: path of the file of the tokenizer.
    """

    image: str | None
    text: str | None
    image_size: int
    length: int | None
    tokenizer: Path | None
    kind, noun = "joined", "row"

    def read(self, source: Any) -> tuple[list[str], dict[str, list]]:
        """Read the rows of a table, as :meth:`TableInput.read` does; paths of images are found beside a file."""
        from thaw.data.image_paths import find_images

        names, rows = super().read(source)
        if self.image in rows and isinstance(source, (str, os.PathLike)):
            known = [i for i, cell in enumerate(rows[self.image]) if cell is not None]
            found = find_images(Path(source), [str(rows[self.image][i]) for i in known])[0] if known else []
            for i, path in zip(known, found, strict=True):
                rows[self.image][i] = os.path.abspath(path)
        return names, rows

    def encode(self, rows: dict[str, list]) -> tuple[Any, dict[int, str]]:
        """Return what the model takes, and why a row is left out, by its number."""
        from thaw.data.joined_columns import encode_rows
        from thaw.data.text import load_tokenizer

        tokenizer = None if self.tokenizer is None else load_tokenizer(self.tokenizer)
        sizes = {"image_size": self.image_size, "length": self.length, "tokenizer": tokenizer}
        return encode_rows(rows, image=self.image, text=self.text, columns=self.columns, **sizes)


@dataclasses.dataclass(frozen=True)
class ArrayInput:
    """Rows of an array, as a model takes them.

    Args:
        shape: of one row.
    """

    shape: tuple[int, ...]
    kind, noun = "array", "row"

    def read(self, source: Any) -> tuple[list[str], Any]:
        """Read the rows of an array.

        Args:
            source: path of a file of NumPy, with the array ``x``; or an array.

        Returns:
            ``(names, array)``.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it cannot be read, or its rows have another shape.
        """
        import numpy as np

        from thaw.data.arrays import read_array

        is_path = isinstance(source, (str, os.PathLike))
        found = read_array(source) if is_path else {"x": np.asarray(source)}
        if "x" not in found:
            raise ValueError(f"{source} holds {', '.join(found)}; expected an array x.")
        return self._named(source, found["x"]), found["x"]

    def _named(self, source, x):
        if x.shape[1:] != self.shape:
            raise ValueError(f"The rows have shape {x.shape[1:]}; expected {self.shape}, as in the training.")
        name = Path(source).name if isinstance(source, (str, os.PathLike)) else "the array"
        return [f"{name}, row {i + 1}" for i in range(len(x))]

    def encode(self, rows) -> tuple[Any, dict[int, str]]:
        """Return what the model takes; no row is left out."""
        return rows, {}

    def labelled(self, source, task: str, label):
        """Read labelled rows; return ``(names, rows, columns)`` with the column "label", and "target" of numbers."""
        from thaw.data.arrays import read_labelled_arrays

        rows, columns = read_labelled_arrays(source, task)
        return self._named(source, rows), rows, columns


def _is_file(source):
    try:
        return Path(source).is_file()
    except (OSError, ValueError):  # too long for a name, or with a character that no name has
        return False


def take_rows(values, rows: Sequence[int]):
    """Return some rows of a dict of columns, or of a list."""
    if isinstance(values, dict):
        return {name: [column[i] for i in rows] for name, column in values.items()}
    return [values[i] for i in rows]
