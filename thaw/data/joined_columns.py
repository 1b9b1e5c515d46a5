"""load_columns: pictures, texts and numbers in the rows of one table become Splits of several inputs."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from thaw._validation import as_seed
from thaw.data.column_kinds import IGNORED, KINDS, Column, category_text, describe_column, encode_columns, find_kind
from thaw.data.columns import given_splits
from thaw.data.dataset import Dataset
from thaw.data.image_checks import check_images, near_duplicates
from thaw.data.image_decoding import cache_decoded, decode, load_decoded
from thaw.data.image_paths import find_images
from thaw.data.splits import FRACTIONS, SPLITS, Splits, connected_groups, holds_splits
from thaw.data.splitting import check_split_arguments, split_examples
from thaw.data.table_rows import read_rows
from thaw.data.text import LENGTHS, encode_texts, load_tokenizer
from thaw.data.text_checks import MIN_WORDS, check_texts, note_foreign

IMAGE, TEXT, NUMBERS = "image", "text", "numbers"


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class JoinedSplits(Splits):
    """The :class:`thaw.Splits` of rows with several inputs, with what the columns hold.

    Args:
        inputs: dict from "image", "text" and "numbers", as far as they were asked for, to the names of the inputs.
        image: name of the column of images in the table; ``None`` without images.
        text: name of the column of texts in the table; ``None`` without texts.
        columns: :class:`thaw.data.column_kinds.Column` of each column of numbers, categories, dates and booleans.
        image_size: side of the images in pixels.
        length: pieces of each text; ``None`` without texts.
        tokenizer: what made them; ``None`` without texts.
    """

    inputs: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    image: str | None = None
    text: str | None = None
    columns: tuple[Column, ...] = ()
    image_size: int = 224
    length: int | None = None
    tokenizer: Any = None


def load_columns(
    data: Any,
    *,
    image: str | None = None,
    text: str | None = None,
    numbers: str | Sequence[str] | Mapping[str, str] | None = None,
    label: str = "label",
    split: str | None = None,
    group: str | None = None,
    image_size: int = 224,
    max_length: int = 128,
    tokenizer=None,
    seed: int = 0,
    splits: tuple[float, float, float] = FRACTIONS,
    max_bad: float = 0.05,
    balance: str = "auto",
    cache_dir: str | os.PathLike | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> JoinedSplits:
    """Load a table whose rows have a picture, a text and numbers, or two of these, and a class to predict.

    A row whose image is missing or damaged is left out and listed. A row without a text has an empty one. Where a
    number, a boolean or a date is missing, the model is given the median of the training rows, and that it is missing;
    a missing category is one of its own.

    Splits given by the user are used as they are. Without them, rows are split by their content. These share a split:
    equal rows, those of a group, those with near-duplicates of one image, and those with the same text; beside other
    columns a text counts from four words on, for a short one such as "shirt" is that of many things. If only train and
    test are given, validation is cut from train in the proportion of ``splits``.

    Args:
        data: a CSV or TSV file, JSON lines or a Parquet file, a pandas or polars frame, a PyArrow table, or a dict from
            column to values; see :func:`thaw.data.table_rows.read_rows`.
        image: name of the column with paths of image files, looked up from the folder of the table, then from the
            working folder. Default ``None``: no images.
        text: name of the column with texts. Default ``None``: no texts.
        numbers: names of columns with numbers, categories, dates or booleans: a list, a text with commas, or a dict
            from name to ``"number"``, ``"category"``, ``"date"`` or ``"boolean"``; the kind of the others is found from
            their values. Default ``None``: none.
        label: name of the column of classes. Default ``"label"``.
        split: name of a column with train, validation and test. Default ``None``: "split", if there is one and it holds
            nothing else.
        group: name of a column; rows of a group share a split. Default ``None``.
        image_size: side of the square that each image is stretched to, in pixels, 8 to 4096. Default 224.
        max_length: largest length of a text in pieces: 32, 64, 128 (default) or 256.
        tokenizer: as in :func:`thaw.data.text.load_tokenizer`. Default ``None``: that of all-MiniLM-L6-v2.
        seed: int; another seed gives another split. Default 0.
        splits: fractions of train, validation and test. Default 0.7, 0.15 and 0.15.
        max_bad: largest fraction of rows without a usable image or without a label, 0 to 1. Default 0.05.
        balance: what is done about classes of different size, as in :func:`thaw.data.splits.resolve_balance`. Default
            ``"auto"``.
        cache_dir: folder of all caches, as in :func:`thaw.load_images`.
        progress: called with (files done, files in all, description).

    Returns:
        :class:`JoinedSplits`, whose datasets hold a dict of inputs: ``"image"``, which loads float32 pixels, 0 to 255;
        ``"text"``, int32 ``(n, length)`` pieces; and ``(n, 1)`` under the name of each column of numbers, and of each
        sign that one is missing.

    Raises:
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: the package that cuts texts into pieces is not installed.
        ValueError: the table or an argument is invalid, or too many rows are bad.

    Example:
        >>> from thaw.data.joined_columns import load_columns
        >>> table = {"title": ["red shirt", "blue sock"] * 40, "price": list(range(80)),
        ...          "sold": ["yes" if i % 11 > 4 else "no" for i in range(80)]}
        >>> rows = load_columns(table, text="title", numbers="price", label="sold")
        >>> rows.labels, {name: part.shape for name, part in rows.train.take([0, 1]).x.items()}
        (('no', 'yes'), {'text': (2, 32), 'price': (2, 1)})
    """
    check_split_arguments(splits, max_bad, balance)
    _check_arguments(image_size, max_length)
    seed, kinds = as_seed(seed), _asked_kinds(numbers)
    if image is None and text is None and not kinds:
        raise ValueError("No column is named to predict from; expected some of image=, text= and numbers=.")
    table, notes = read_rows(data)
    split = split or next((name for name in table if name.lower() == "split" and holds_splits(table[name])), None)
    _check_names(table, [("image", image), ("text", text), *((NUMBERS, name) for name in kinds)], label, split, group)
    source = Path(data) if isinstance(data, (str, os.PathLike)) else Path("the table")
    labels = _labels(table[label], label)
    kinds = _find_kinds(table, kinds, [i for i, name in enumerate(labels) if name is not None], notes)
    n = len(labels)
    names = [f"{source.name}, row {i + 1}" for i in range(n)]
    content = [[category_text(table[name][i]) for name in kinds] for i in range(n)]
    bad, x, clusters, more = {}, {}, [], []
    if image is not None:
        x[IMAGE], found, bad, of_images = _read_images(source, table[image], image, image_size, cache_dir, progress)
        notes += found
        clusters.append(of_images)
        for row, path in zip(content, x[IMAGE], strict=True):
            row.append(Path(path).name)
    if text is not None:
        tokenizer = load_tokenizer(tokenizer)
        alone = image is None and not kinds
        x[TEXT], keys, of_texts, found = _read_texts(table[text], names, tokenizer, max_length, alone)
        more += found
        clusters.append(lambda rows: of_texts[rows])
        for row, key in zip(content, keys, strict=True):
            row.append(key)
    given: dict[str, list] = {"label": labels}
    if split is not None:
        given["split"] = given_splits(table[split], split)
    if group is not None:
        given["group"] = [None if value is None else category_text(value) for value in table[group]]
    divided = split_examples(
        source,
        given,
        [hashlib.sha256("\0".join(row).encode("utf-8", "surrogatepass")).hexdigest() for row in content],
        bad,
        names=names,
        noun="row",
        cluster=lambda rows: _clusters(rows, clusters),
        inputs=lambda rows: {"x": np.array(rows)},
        unlabelled="has no label",
        fractions=splits,
        seed=seed,
        max_bad=max_bad,
        balance=balance,
        notes=notes,
        more_notes=more,
    )
    rows = {name: getattr(divided, name).x for name in SPLITS if getattr(divided, name) is not None}
    columns = tuple(
        describe_column(name, kind, [table[name][i] for i in rows["train"]]) for name, kind in kinds.items()
    )
    inputs = {name: (name,) for name in x}
    if columns:
        encoded = encode_columns(table, columns)
        inputs[NUMBERS] = tuple(encoded)
        x |= encoded
    load = _image_loader(image_size) if image is not None else None
    datasets = {
        name: select_inputs(getattr(divided, name).replace(x={k: v[part] for k, v in x.items()}, load=load), x)
        for name, part in rows.items()
    }
    fields = {field.name: getattr(divided, field.name) for field in dataclasses.fields(divided)}
    described = {"inputs": inputs, "image": image, "text": text, "columns": columns, "image_size": image_size}
    if text is not None:
        described |= {"length": x[TEXT].shape[1], "tokenizer": tokenizer}
    return JoinedSplits(**fields | datasets | described)


def encode_rows(data: Any, *, image=None, text=None, columns=(), image_size=224, length=None, tokenizer=None):
    """Encode other rows as a model takes them that was trained on :class:`JoinedSplits`, such as rows to predict.

    Args:
        data: as for :func:`load_columns`; it needs no labels.
        image: as in :class:`JoinedSplits`. Default ``None``.
        text: as in :class:`JoinedSplits`. Default ``None``.
        columns: as in :class:`JoinedSplits`. Default: none.
        image_size: as in :class:`JoinedSplits`. Default 224.
        length: pieces of each text, the last dimension of ``splits.train.x["text"]``. Default ``None``.
        tokenizer: as in :class:`JoinedSplits`. Default ``None``.

    Returns:
        ``(x, bad)``: a dict of inputs, images as uint8 pixels; and a dict from the number of a row without a usable
        image, which is black in ``x``, to the reason.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the table is invalid, lacks a column, or none of its images is found.

    Example:
        >>> from thaw.data.joined_columns import encode_rows, load_columns
        >>> table = {"title": ["red shirt", "blue sock"] * 40, "price": list(range(80)), "label": ["a", "b"] * 40}
        >>> rows = load_columns(table, text="title", numbers="price")
        >>> made = {"text": rows.text, "columns": rows.columns, "length": 32, "tokenizer": rows.tokenizer}
        >>> x, bad = encode_rows({"title": ["red sock"], "price": [3]}, **made)
        >>> x["text"][0, :4].tolist(), x["price"].tolist(), bad
        ([101, 2417, 28407, 102], [[3.0]], {})
    """
    table, _ = read_rows(data)
    source = Path(data) if isinstance(data, (str, os.PathLike)) else Path("the table")
    x, bad = {}, {}
    for argument, name in ((IMAGE, image), (TEXT, text)):
        if name is not None and name not in table:
            raise ValueError(f"The table has no column {name!r} for {argument}= (it has: {', '.join(table)}).")
    if image is not None:
        cells = table[image]
        known = [i for i, cell in enumerate(cells) if cell is not None]
        bad = {i: "has no image" for i in range(len(cells)) if cells[i] is None}
        x[IMAGE] = np.zeros((len(cells), image_size, image_size, 3), np.uint8)
        files = find_images(source, [str(cells[i]) for i in known])[0] if known else []
        for i, file in zip(known, files, strict=True):
            try:
                x[IMAGE][i] = decode(file, image_size)
            except (ValueError, OSError) as error:
                reason = getattr(error, "strerror", None) or str(error)
                bad[i] = f"has the image {cells[i]}, which cannot be read: {reason}"
    if text is not None:
        texts = ["" if cell is None else str(cell) for cell in table[text]]
        x[TEXT] = encode_texts(tokenizer, texts, length)
    return x | (encode_columns(table, tuple(columns)) if columns else {}), bad


def select_inputs(dataset: Dataset, names: Sequence[str]) -> Dataset:
    """Return the same examples with some of their inputs, such as those of one column.

    Cached features of one column are found by its content alone, whatever stands in the others.

    Args:
        dataset: :class:`thaw.Dataset` whose ``x`` is a dict, such as those of :func:`load_columns`.
        names: keys of ``x``.

    Returns:
        :class:`thaw.Dataset` whose ``x`` is a dict of these alone.

    Raises:
        ValueError: ``x`` is no dict, has no such input, or is loaded by a function that needs all of them.

    Example:
        >>> from thaw import Dataset
        >>> from thaw.data.joined_columns import select_inputs
        >>> rows = Dataset(x={"age": np.array([[31.0], [40.0]]), "town": np.array([["Ulm"], ["Bonn"]])})
        >>> list(select_inputs(rows, ["age"]).x)
        ['age']
    """
    if not isinstance(dataset.x, dict):
        raise ValueError("The inputs have no names; expected a dict of inputs, as load_columns makes it.")
    if missing := [name for name in names if name not in dataset.x]:
        raise ValueError(f"There is no input {missing[0]!r} (there are: {', '.join(dataset.x)}).")
    x, load = {name: dataset.x[name] for name in names}, dataset.load
    if load is not None and not hasattr(load, "loads"):
        if len(x) < len(dataset.x):
            raise ValueError("The inputs are loaded by a function of all of them; expected the data of load_columns.")
        return dataset
    load = load if load is not None and load.loads in x else None
    return dataset.replace(x=x, load=load, keys=None if load is None else _content_keys(x, load.loads))


def _content_keys(x, loaded):
    """Return an int64 for each row, made of its values; of a decoded image, of the name of its file, a digest."""
    keys = []
    for i in range(len(x[loaded])):
        row = [(name, Path(part[i]).name if name == loaded else part[i].tolist()) for name, part in x.items()]
        digest = hashlib.sha256(repr(row).encode("utf-8", "surrogatepass"))
        keys.append(int.from_bytes(digest.digest()[:8], "little", signed=True))
    return np.array(keys, np.int64)


def _image_loader(image_size):
    """Return the TensorFlow function that loads the image of a row, and leaves its other inputs as they are."""
    pixels = load_decoded(image_size)

    def load(row):
        return row | {IMAGE: pixels(row[IMAGE])}

    load.identity, load.loads = pixels.identity, IMAGE
    return load


def _check_arguments(image_size, max_length) -> None:
    if isinstance(image_size, bool) or not isinstance(image_size, int) or not 8 <= image_size <= 4096:
        raise ValueError(f"image_size is {image_size!r}; expected a whole number of pixels from 8 to 4096")
    if max_length not in LENGTHS:
        raise ValueError(f"max_length={max_length!r}; expected one of {', '.join(map(str, LENGTHS))} pieces.")


def _asked_kinds(numbers) -> dict[str, str | None]:
    """Return the columns of numbers with their kinds, ``None`` where it is to be found."""
    if isinstance(numbers, str):
        numbers = [name.strip() for name in numbers.split(",")]
    if isinstance(numbers, Mapping):
        if wrong := [kind for kind in numbers.values() if kind not in KINDS]:
            raise ValueError(f"numbers has the kind {wrong[0]!r}; expected one of {', '.join(KINDS)}.")
        return dict(numbers)
    names = list(numbers or ())
    if not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"numbers={numbers!r}; expected names of columns.")
    return dict.fromkeys(names)


def _check_names(table, asked, label, split, group) -> None:
    others = [("label", label), ("split", split), ("group", group)]
    for argument, name in [*asked, *others]:
        if name is not None and name not in table:
            raise ValueError(f"The table has no column {name!r} for {argument}= (it has: {', '.join(table)}).")
    counts = Counter(name for _, name in asked if name is not None)
    counts.update({name for _, name in others if name is not None})
    if twice := [name for name, count in counts.items() if count > 1]:
        raise ValueError(f"The column {twice[0]!r} is named for two things; expected one.")


def _labels(values, column) -> list[str | None]:
    labels = [None if value is None else category_text(value) for value in values]
    known = [name for name in labels if name is not None]
    if not known:
        raise ValueError(f"The label {column!r} is empty in all rows; expected names of classes.")
    if (count := len(set(known))) > max(2, len(known) / 2):
        raise ValueError(
            f"The label {column!r} has {count} classes in {len(known)} rows; expected classes with several rows each."
        )
    return labels


def _find_kinds(table, kinds, known, notes) -> dict[str, str]:
    """Return the kind of each column of numbers, from the rows with a label."""
    found = {}
    for name, kind in kinds.items():
        kind, note = (kind, None) if kind else find_kind(name, [table[name][i] for i in known])
        if kind == IGNORED:
            raise ValueError(f"{note} Leave it out of numbers=.")
        notes += [note] * bool(note)
        found[name] = kind
    counts = Counter(name for column in found for name in Column(column, found[column], missing=True).inputs)
    counts.update((IMAGE, TEXT, NUMBERS))
    if twice := [name for name, count in counts.items() if count > 1]:
        raise ValueError(f"Two inputs of the model would be {twice[0]!r}; give this column another name.")
    return found


def _read_images(source, cells, column, image_size, cache_dir, progress):
    """Return the decoded file of each row, sentences, the rows without one, and how to find near-duplicates."""
    known = [i for i, cell in enumerate(cells) if cell is not None]
    if not known:
        raise ValueError(f"The column {column!r} is empty in all rows; expected paths of images.")
    files, notes = find_images(source, [str(cells[i]) for i in known])
    checks = check_images(
        files,
        [""] * len(files),  # one picture may be in rows of different classes, beside other texts
        read=lambda content, key: cache_decoded(content, key, image_size, cache_dir=cache_dir),
        progress=progress,
    )
    bad = {i: "has no image" for i in range(len(cells)) if cells[i] is None}
    bad |= {known[i]: f"has the image {cells[known[i]]}, which {reason}" for i, reason in checks.bad.items()}
    decoded = [""] * len(cells)
    for i, path in zip(known, checks.read, strict=True):
        decoded[i] = path or ""
    position = {row: i for i, row in enumerate(known)}

    def clusters(rows):
        at = [position[row] for row in rows]
        return near_duplicates(checks.hashes[at], checks.thumbnails[at])

    return np.array(decoded), notes, bad, clusters


def _read_texts(cells, names, tokenizer, max_length, alone):
    """Return the pieces of each row, the keys of the texts, their clusters and sentences."""
    texts = ["" if cell is None else str(cell) for cell in cells]
    checks = check_texts(texts, [None] * len(texts), None, names)
    if len(checks.bad) == len(texts):
        raise ValueError("The column of texts is empty in all rows; expected texts.")
    notes = list(checks.notes[bool(checks.bad) :])
    if checks.bad:
        notes.insert(0, f"Rows without a text: {len(checks.bad)}, such as {names[min(checks.bad)]}; it is empty there.")
    encodings = tokenizer.encode_batch(texts)
    sizes = np.array([len(encoding.ids) for encoding in encodings])
    length = min(max_length, next((n for n in LENGTHS if sizes.max() <= n), max_length))
    notes += note_foreign(encodings, getattr(tokenizer.model, "unk_token", None), names)
    if cut := int((sizes > length).sum()):
        notes.append(f"Texts of more than {length} pieces, which are cut off: {cut} of {len(texts)}.")
    own = np.arange(len(texts))
    is_long = np.array([alone or len(text.split()) >= MIN_WORDS for text in texts])
    return encode_texts(tokenizer, texts, length), checks.keys, np.where(is_long, checks.clusters, own), notes


def _clusters(rows, functions) -> np.ndarray:
    """Return a number for each row, equal where images or texts are."""
    found = [function(rows) for function in functions]
    if not found:
        return np.asarray(rows)
    joined = connected_groups([str(number) for number in found[0]], None, found[-1])
    return np.arange(len(rows)) if joined is None else joined
