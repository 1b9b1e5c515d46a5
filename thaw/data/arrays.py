"""Load arrays, such as time series, from a file of NumPy or from memory."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from thaw._validation import as_seed
from thaw.data.splits import FRACTIONS, SPLIT_NAMES, Splits
from thaw.data.splitting import check_split_arguments, split_examples
from thaw.data.target_columns import TARGET_TASKS

ARRAY_SUFFIXES = (".npz", ".npy")
MAX_NUMERIC_CLASSES = 20  # targets of more different whole numbers are numbers to predict


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class ArraySplits(Splits):
    """The :class:`thaw.Splits` of arrays."""


def load_arrays(
    data: Any,
    *,
    task: str | None = None,
    seed: int = 0,
    splits: tuple[float, float, float] = FRACTIONS,
    balance: str = "auto",
) -> ArraySplits:
    """Load arrays with one row for each example, check them, and split them into train, validation and test.

    Equal rows share a split. Nothing is unpickled: arrays of objects are refused.

    Args:
        data: path of an ``.npz`` file with the arrays ``x`` and ``y``, and optionally ``split``; or a pair ``(x, y)``.
            ``x`` is ``(n, ...)``, such as ``(n, steps, channels)`` for time series; ``y`` is ``(n,)`` classes (whole
            numbers or texts) or numbers, or ``(n, k)``: a matrix of 0 and 1 for several labels, or several numbers.
        task: ``"classification"``, ``"multilabel"`` or ``"regression"``; default ``None``: several labels for a matrix
            of 0 and 1, regression for fractions and for more than 20 different numbers, else classification.
        seed: int, seed of the split. Default 0.
        splits: fractions of train, validation and test. Default 0.7, 0.15 and 0.15.
        balance: as in :func:`thaw.data.splits.resolve_balance`. Default ``"auto"``.

    Returns:
        :class:`ArraySplits`, whose datasets hold rows of ``x`` as they are.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file or an argument is invalid; the message says what was expected.

    Example:
        >>> import numpy as np
        >>> from thaw.data.arrays import load_arrays
        >>> x = np.random.default_rng(0).normal(size=(60, 24, 3)).astype("float32")
        >>> load_arrays((x, ["walk", "run"] * 30)).labels
        ('run', 'walk')
    """
    if task not in (None, "classification", *TARGET_TASKS):
        raise ValueError(f"task={task!r}; expected one of classification, {', '.join(TARGET_TASKS)}.")
    check_split_arguments(splits, 1.0, balance)
    name, x, y, split = _read(data)
    if x.ndim < 2 or x.dtype.kind not in "fiub":
        raise ValueError(f"{name}: x is {x.dtype} of shape {x.shape}; expected numbers of shape (n, ...).")
    if y.ndim not in (1, 2) or len(x) != len(y):
        raise ValueError(f"{name}: x has shape {x.shape} and y {y.shape}; expected a row of both for each example.")
    if split is not None and split.shape != (len(x),):
        raise ValueError(f"{name}: split has shape {split.shape}; expected one word for each of {len(x)} rows.")
    if x.dtype.kind == "f" and len(wrong := np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(axis=1))):
        raise ValueError(
            f"{name}: {len(wrong)} of {len(x)} rows hold NaN or infinity, the first of them row {wrong[0] + 1}; "
            "expected finite numbers. Leave these rows out, or fill the gaps."
        )
    task = task or _find_task(y)
    columns, targets = _targets(name, y, task)
    if split is not None:
        columns["split"] = [_split(name, str(word)) for word in split]
    keys = [hashlib.sha256(np.ascontiguousarray(row).tobytes()).hexdigest() for row in x]
    divided = split_examples(
        Path(name),
        columns,
        keys,
        {},
        names=[f"row {i + 1}" for i in range(len(x))],
        noun="row",
        cluster=lambda rows: rows,  # equal rows have equal keys
        inputs=lambda rows: {"x": x[rows]},
        unlabelled="has no label",
        fractions=splits,
        seed=as_seed(seed),
        max_bad=1.0,
        balance=balance,
        task=task,
        target_names=targets,
    )
    return ArraySplits(**{field.name: getattr(divided, field.name) for field in dataclasses.fields(divided)})


def read_array(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read the arrays of a file of NumPy; nothing is unpickled.

    Args:
        path: an ``.npz`` file, or an ``.npy`` file, whose array is called ``x``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds objects.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file; expected arrays of NumPy (.npz, .npy).")
    try:
        found = np.load(path, allow_pickle=False)
        return {"x": found} if isinstance(found, np.ndarray) else {name: found[name] for name in found.files}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} cannot be read ({str(error).splitlines()[0]}); expected arrays of numbers or texts, saved with "
            "numpy.savez(path, x=x, y=y)."
        ) from None


def read_labelled_arrays(data: Any, task: str) -> tuple[np.ndarray, dict[str, list]]:
    """Read arrays that a model is measured on.

    Args:
        data: as for :func:`load_arrays`.
        task: as for :func:`load_arrays`.

    Returns:
        ``(x, columns)``: ``(n, ...)``, and a dict with "label", the name of a class; of another task also "target".
    """
    name, x, y, _ = _read(data)
    return x, _targets(name, y, task)[0]


def _read(data):
    if isinstance(data, tuple):
        if len(data) != 2:
            raise ValueError(f"data is a tuple of {len(data)}; expected a pair of arrays (x, y).")
        return "data", np.asarray(data[0]), np.asarray(data[1]), None
    found = read_array(data)
    if not {"x", "y"} <= set(found):
        raise ValueError(
            f"{data} holds {', '.join(found)}; expected the arrays x and y, saved with numpy.savez(path, x=x, y=y)."
        )
    return str(data), found["x"], found["y"], found.get("split")


def _find_task(y):
    if y.ndim == 2 and y.shape[1] > 1:
        return "multilabel" if y.dtype.kind in "iufb" and np.isin(y, (0, 1)).all() else "regression"
    if y.dtype.kind == "f":
        return "classification" if np.isin(y, (0, 1)).all() else "regression"
    return "regression" if y.dtype.kind in "iu" and len(np.unique(y)) > MAX_NUMERIC_CLASSES else "classification"


def _targets(name, y, task):
    """Return the columns "label" and "target", and the names of the targets; of classes none."""
    if y.dtype.kind not in ("fiub" if task != "classification" else "fiubUS"):
        raise ValueError(f"{name}: y is {y.dtype}; expected {'numbers' if task != 'classification' else 'classes'}.")
    if task == "classification":
        if y.ndim == 2 and y.shape[1] != 1:
            raise ValueError(f"{name}: y has shape {y.shape}; expected (n,) classes.")
        y = y.ravel()
        whole = y.dtype.kind == "f" and np.array_equal(y, np.round(y))
        return {"label": [str(int(value)) if whole else str(value) for value in y.tolist()]}, ()
    rows = y.reshape(len(y), -1)
    if task == "multilabel":
        if not np.isin(rows, (0, 1)).all() or rows.shape[1] < 2:
            raise ValueError(f"{name}: y has shape {y.shape}; expected a matrix of 0 and 1 with two or more columns.")
        names = tuple(f"label {i + 1}" for i in range(rows.shape[1]))
        found = [tuple(label for label, yes in zip(names, row) if yes) for row in rows]
        return {"label": [""] * len(rows), "target": found}, names
    if not np.isfinite(rows).all():
        raise ValueError(f"{name}: y holds NaN or infinity; expected finite numbers.")
    names = ("y",) if rows.shape[1] == 1 else tuple(f"y{i + 1}" for i in range(rows.shape[1]))
    return {"label": [""] * len(rows), "target": [tuple(map(float, row)) for row in rows]}, names


def _split(name, word):
    if word.lower() not in SPLIT_NAMES:
        raise ValueError(f"{name}: split is {word!r}; expected train, validation or test.")
    return SPLIT_NAMES[word.lower()]
