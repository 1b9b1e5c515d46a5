"""Look for columns that tell nothing or too much, and for rows that are there twice."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np

from thaw.data.column_kinds import category_text, is_number

MIN_ROWS = 10  # in fewer, columns may agree by chance
MAX_LEVELS = 100  # of a category; above it there is a sentence
MIN_CORRELATION = 1 - 1e-9  # with the label: a column that is the same number in another unit


def why_useless(name: str, kind: str, values: list) -> str | None:
    """Say why a column cannot help: all of its values are equal, or all of them are different, as in a number of rows.

    Args:
        name: of the column.
        kind: as :func:`thaw.data.column_kinds.find_kind` found it.
        values: plain values of all rows.

    Returns:
        A sentence, or ``None`` where the column is used.

    Example:
        >>> from thaw.data.column_checks import why_useless
        >>> why_useless("year", "number", [2024, 2024, 2024])
        "The column 'year' is 2024 in all rows, and is not used."
        >>> why_useless("customer", "number", list(range(100, 120)))
        "The column 'customer' is another whole number in each row, as an identifier is, and is not used."
    """
    different = set(map(category_text, values))
    if len(different) == 1:
        return f"The column {name!r} is {different.pop()} in all rows, and is not used."
    if len(values) < MIN_ROWS or len(different) < len(values):
        return None
    if kind == "category":
        return f"The column {name!r} is another text in each row, as an identifier is, and is not used."
    if kind == "number" and None not in values:
        numbers = np.array([float(str(value).replace(",", ".")) if is_number(value) else np.nan for value in values])
        with np.errstate(invalid="ignore"):
            whole = bool((numbers == np.floor(numbers)).all())
        rises = whole and bool((np.diff(numbers) > 0).all())
        if whole and (rises or numbers.max() - numbers.min() == len(numbers) - 1):
            return f"The column {name!r} is another whole number in each row, as an identifier is, and is not used."
    return None


def equals_label(name: str, values: list, labels: list, numeric: bool) -> str | None:
    """Say that a column is the label under another name, which nobody has before it is predicted.

    Args:
        name: of the column.
        values: plain values of all rows.
        labels: of the same rows: names of classes, or numbers.
        numeric: whether the labels are numbers to predict; a column in another unit equals them too.

    Returns:
        A sentence, or ``None``.

    Example:
        >>> from thaw.data.column_checks import equals_label
        >>> equals_label("left", ["J", "N"] * 10, ["yes", "no"] * 10, numeric=False)
        "The column 'left' says the label of every row, and is not used; name it in columns= to use it."
    """
    if len(values) < MIN_ROWS:
        return None
    text = f"The column {name!r} says the label of every row, and is not used; name it in columns= to use it."
    if numeric:
        if not all(map(is_number, values)):
            return None
        column, label = np.array(values, np.float64), np.array(labels, np.float64)
        if column.std() == 0 or label.std() == 0:
            return None
        return text if abs(np.corrcoef(column, label)[0, 1]) >= MIN_CORRELATION else None
    texts = list(map(category_text, values))
    pairs = set(zip(texts, labels))
    return text if len(pairs) == len(set(texts)) == len(set(labels)) > 1 else None


def note_levels(name: str, values: list) -> str | None:
    """Say how many categories a column has where they are many.

    Args:
        name: of the column.
        values: plain values of the training rows.

    Returns:
        A sentence, or ``None`` where there are 100 or fewer.

    Example:
        >>> from thaw.data.column_checks import note_levels
        >>> note_levels("town", [f"town {i // 2}" for i in range(240)])
        "The column 'town' has 120 categories, 0 of them in one training row only."
    """
    counts = Counter(map(category_text, values))
    if len(counts) <= MAX_LEVELS:
        return None
    single = sum(count == 1 for count in counts.values())
    return f"The column {name!r} has {len(counts)} categories, {single} of them in one training row only."


def note_repeated(keys: list[str], labels: list, split_of: list[str]) -> list[str]:
    """Say which rows are there twice: in several splits, or with different labels.

    Args:
        keys: one for each row, equal where the values of all columns but the label are.
        labels: of the rows.
        split_of: name of the split of each row.

    Returns:
        Sentences.

    Example:
        >>> from thaw.data.column_checks import note_repeated
        >>> for sentence in note_repeated(["a", "a", "b"], ["x", "y", "x"], ["train", "test", "test"]):
        ...     print(sentence)
        Equal rows are in several splits, as given (1 row, and those like it): the scores may be too optimistic.
        Equal rows have different labels (1 row, and those like it): no model can tell them apart.
    """
    rows = defaultdict(list)
    for i, key in enumerate(keys):
        rows[key].append(i)
    repeated = [indices for indices in rows.values() if len(indices) > 1]
    notes = []
    divided = sum(len({split_of[i] for i in indices}) > 1 for indices in repeated)
    mixed = sum(len({labels[i] for i in indices}) > 1 for indices in repeated)
    if divided:
        notes.append(
            f"Equal rows are in several splits, as given ({_rows(divided)}, and those like it): the scores may be too "
            "optimistic."
        )
    elif repeated:
        count = sum(map(len, repeated)) - len(repeated)
        notes.append(
            f"{_rows(count)} of the table repeat{'s' * (count == 1)} an earlier one; equal rows share a split."
        )
    if mixed:
        notes.append(
            f"Equal rows have different labels ({_rows(mixed)}, and those like it): no model can tell them apart."
        )
    return notes


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"
