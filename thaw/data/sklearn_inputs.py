"""Rows and targets as scikit-learn hands them to ``fit``: checked, and divided into training and validation."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np

from thaw._validation import as_number
from thaw.data.column_kinds import category_text
from thaw.data.columns import TableSplits, load_table
from thaw.data.dataset import Dataset
from thaw.data.splits import Splits, split_by_content
from thaw.data.text import LENGTHS, TextSplits, encode_texts, load_tokenizer
from thaw.targets import Regression
from thaw.tasks import Classification


@dataclasses.dataclass(frozen=True, eq=False)
class FitTargets:
    """Targets of the rows that are learned from.

    Args:
        values: ``(n,)`` numbers of classes, or numbers to predict.
        classes: ``(classes,)`` the labels, sorted; ``None`` for numbers to predict.
        weight: ``(n,)`` sample weights, from :func:`checked_weight`; ``None`` for equal ones.

    Example:
        >>> import numpy as np
        >>> from thaw.data.sklearn_inputs import FitTargets
        >>> FitTargets(np.array([1, 0]), np.array(["cat", "dog"])).task.labels
        ('cat', 'dog')
    """

    values: np.ndarray
    classes: np.ndarray | None = None
    weight: np.ndarray | None = None

    @property
    def task(self):
        """The task: classes by their names, or one number, standardized by all rows."""
        if self.classes is None:
            return Regression().standardized_by(self.values)
        return Classification(map(str, self.classes.tolist()))

    def take(self, rows):
        """Return the targets of some rows."""
        return dataclasses.replace(
            self, values=self.values[rows], weight=None if self.weight is None else self.weight[rows]
        )


def kind_of(x: Any) -> str:
    """Say whether rows are those of a table, texts or images.

    Args:
        x: what is given to ``fit``.

    Returns:
        ``"table"``, ``"text"`` or ``"image"``.

    Raises:
        ValueError: rows of different lengths.

    Example:
        >>> import numpy as np
        >>> from thaw.data.sklearn_inputs import kind_of
        >>> kind_of([[1, 2], [3, 4]]), kind_of(["a text"]), kind_of(np.zeros((2, 8, 8, 3)))
        ('table', 'text', 'image')
    """
    if is_frame(x):
        return "table"
    if isinstance(x, list | tuple) and x and isinstance(x[0], str):
        return "text"  # an array of them would take the room of the longest for each
    try:
        shape = x.shape if hasattr(x, "shape") else np.asarray(x).shape
    except ValueError:
        raise ValueError("X is a list of rows of different lengths; expected one length for all.") from None
    first = next(iter(x), None) if len(shape) == 1 else None
    return "text" if isinstance(first, str) else "image" if len(shape) == 4 else "table"


def is_frame(x: Any) -> bool:
    """Say whether it is a pandas frame."""
    return hasattr(x, "iloc") and hasattr(x, "columns")


def checked_texts(x: Any) -> list[str]:
    """Return texts as a list.

    Args:
        x: a list, a series or an array of texts.

    Raises:
        ValueError: one of them is no text.

    Example:
        >>> from thaw.data.sklearn_inputs import checked_texts
        >>> checked_texts(["good", None])
        Traceback (most recent call last):
        ValueError: Row 1 of X is a NoneType; expected a text in each row.
    """
    texts = list(x)
    if (wrong := next((i for i, text in enumerate(texts) if not isinstance(text, str)), None)) is not None:
        raise ValueError(f"Row {wrong} of X is a {type(texts[wrong]).__name__}; expected a text in each row.")
    return list(map(str, texts))  # of NumPy too


def checked_images(x: Any) -> np.ndarray:
    """Return images as an array.

    Args:
        x: ``(n, height, width, 3)`` pixels.

    Raises:
        ValueError: other channels, or no numbers.

    Example:
        >>> import numpy as np
        >>> from thaw.data.sklearn_inputs import checked_images
        >>> checked_images(np.zeros((2, 8, 8, 1)))
        Traceback (most recent call last):
        ValueError: X is float64 of shape (2, 8, 8, 1); expected pixels (n, height, width, 3).
    """
    images = np.asarray(x)
    if images.shape[3] != 3 or images.dtype.kind not in "uif":
        raise ValueError(f"X is {images.dtype} of shape {images.shape}; expected pixels (n, height, width, 3).")
    return images


def refuse_texts(x: Any) -> None:
    """Refuse an array with texts in it, where numbers are expected.

    Args:
        x: what is given as the rows of a table, and is no frame.

    Raises:
        ValueError: it holds a text.

    Example:
        >>> from thaw.data.sklearn_inputs import refuse_texts
        >>> refuse_texts([["Ulm", 3.0]])
        Traceback (most recent call last):
        ValueError: X is an array that holds 'Ulm'; give a table with categories as a pandas frame.
    """
    array = np.zeros(0) if hasattr(x, "toarray") else np.asarray(x)
    text = next((value for value in array.flat if isinstance(value, str)), None) if array.dtype.kind in "OU" else None
    if text is not None:
        raise ValueError(f"X is an array that holds {str(text)!r}; give a table with categories as a pandas frame.")


def checked_weight(sample_weight: Any, n: int) -> np.ndarray | None:
    """Return sample weights whose mean over the rows above 0 is 1, so that the learning rates mean the same.

    Args:
        sample_weight: ``(n,)`` numbers; ``None`` for equal weights.
        n: number of rows.

    Returns:
        Float64 ``(n,)``, or ``None``.

    Raises:
        ValueError: another shape, negative or infinite weights, or none above 0.

    Example:
        >>> from thaw.data.sklearn_inputs import checked_weight
        >>> checked_weight([2, 0, 6], 3).tolist()
        [0.5, 0.0, 1.5]
    """
    if sample_weight is None:
        return None
    weight = np.asarray(sample_weight, np.float64)
    if weight.shape != (n,) or not np.isfinite(weight).all() or weight.min() < 0 or not weight.any():
        raise ValueError(
            f"sample_weight has shape {weight.shape}; expected {n} finite weights of 0 or more that are not all zero."
        )
    return weight / weight[weight > 0].mean()


def take_rows(rows, indices):
    """Return some rows of a dict of columns, of a list or of an array.

    Args:
        rows: the rows.
        indices: ``(m,)`` their numbers.
    """
    if isinstance(rows, dict):
        return {name: [values[i] for i in indices] for name, values in rows.items()}
    return rows[indices] if isinstance(rows, np.ndarray) else [rows[i] for i in indices]


def choose_validation(rows, targets: FitTargets, fraction: float, seed: int) -> np.ndarray:
    """Choose the validation rows by their content, so that equal rows share a part.

    A class with two different rows or more is in both parts; one with a single row is learned from.

    Args:
        rows: a dict of columns, a list of texts, or an array.
        targets: of the rows.
        fraction: of the rows, about, above 0 and below 1.
        seed: int; another one chooses other rows.

    Returns:
        Bool ``(n,)``.

    Raises:
        ValueError: an invalid fraction.

    Example:
        >>> import numpy as np
        >>> from thaw.data.sklearn_inputs import FitTargets, choose_validation
        >>> chosen = choose_validation(["a", "b", "a", "c"], FitTargets(np.array([1.0, 2.0, 1.0, 3.0])), 0.3, 0)
        >>> bool(chosen[0] == chosen[2]), bool(chosen.any()), bool(chosen.all())
        (True, True, False)
    """
    number = as_number(fraction)
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number < 1:
        raise ValueError(f"validation_fraction={fraction!r}; expected a fraction above 0 and below 1, such as 0.15.")
    if isinstance(rows, dict):
        keys = ["\0".join(map(category_text, row)) for row in zip(*rows.values())]  # 3 and 3.0 are the same
    else:
        keys = [row if isinstance(row, str) else hashlib.sha256(row.tobytes()).hexdigest() for row in rows]
    labels = [""] * len(keys) if targets.classes is None else targets.values.tolist()
    return split_by_content(keys, labels, fractions=(1 - number, number), seed=seed) == 1


def table_splits(rows: dict[str, list], targets: FitTargets, is_validation, columns) -> TableSplits:
    """Make a table of rows and targets ready for training.

    Args:
        rows: values by the name of the column.
        targets: of the rows.
        is_validation: bool ``(n,)``.
        columns: what they hold, as for :func:`thaw.load_table`.

    Returns:
        :class:`thaw.data.columns.TableSplits` without a test.

    Raises:
        ValueError: as :func:`thaw.load_table`.
    """
    label, split = _unused("target", rows), _unused("split", rows)
    numeric, numbers = targets.classes is None, targets.values.tolist()
    splits = load_table(
        # Sorted as texts, these names are in the order of the classes.
        rows
        | {label: numbers if numeric else [f"{number:09d}" for number in numbers]}
        | {split: np.where(is_validation, "validation", "train").tolist()},
        label=label,
        split=split,
        task="regression" if numeric else "classification",
        columns=columns,
        balance="none",
    )
    changes = {} if numeric else {"task": targets.task}
    if targets.weight is not None:
        for name, part in (("train", ~is_validation), ("validation", is_validation)):
            changes[name] = getattr(splits, name).replace(sample_weight=targets.weight[part])
    return dataclasses.replace(splits, **changes)


def _unused(name, taken):
    while name in taken:
        name += "_"
    return name


def array_splits(x: np.ndarray, targets: FitTargets, is_validation, tokenizer=None) -> Splits:
    """Make images, or texts as numbers of word pieces, ready for training.

    Args:
        x: ``(n, ...)`` inputs as the model takes them.
        targets: of the rows.
        is_validation: bool ``(n,)``; where there is no such row, there is no validation.
        tokenizer: that of the texts; default ``None``: they are images.

    Returns:
        :class:`thaw.Splits` without a test; of texts :class:`thaw.data.text.TextSplits`.

    Raises:
        ValueError: all numbers to predict are equal.
    """
    task = targets.take(~is_validation).task
    y = task.encode(targets.values) if targets.classes is None else targets.values

    def part(rows):
        weight = None if targets.weight is None else targets.weight[rows]
        return Dataset(x=x[rows], y=y[rows], sample_weight=weight) if rows.any() else None

    fields = {"train": part(~is_validation), "validation": part(is_validation), "test": None, "task": task}
    return Splits(**fields) if tokenizer is None else TextSplits(**fields, column=None, tokenizer=tokenizer)


def tokenized(texts: list[str], length: int | None, max_length: int):
    """Cut texts into the word pieces of the usual tokenizer.

    Args:
        texts: ``n`` texts.
        length: pieces that the model takes; ``None`` for the smallest usual length in which the longest text fits.
        max_length: the largest length, where ``length`` is ``None``.

    Returns:
        ``(tokenizer, x)``, int32 ``(n, length)``.

    Example:
        >>> from thaw.data.sklearn_inputs import tokenized
        >>> tokenized(["Melting ice"], None, 128)[1].shape
        (1, 32)
    """
    tokenizer = load_tokenizer()
    if length is None:
        longest = max(len(encoding.ids) for encoding in tokenizer.encode_batch(texts))
        length = min(next((n for n in LENGTHS if longest <= n), max_length), max_length)
    return tokenizer, encode_texts(tokenizer, texts, length)
