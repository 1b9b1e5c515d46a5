"""Frames and tables as inputs: their columns are found by what the object can do, and no library is imported for it.

A pandas or polars frame, a PyArrow table or a dataset of Hugging Face has names, a length, and a column by its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def table_columns(x: Any, what: str = "The data") -> list[str] | None:
    """Return the names of a table's columns.

    Args:
        x: anything.
        what: how an error calls it. Default ``"The data"``.

    Returns:
        The names in their order; ``None`` where ``x`` is no table, as an array or a dict of arrays.

    Raises:
        ValueError: several tables by name; a table without random access, as a lazy one; or one without columns,
            or with one name twice.

    Example:
        >>> import pandas as pd
        >>> from thaw.data.frames import table_columns
        >>> table_columns(pd.DataFrame({"age": [31], "town": ["Ulm"]})), table_columns([31])
        (['age', 'town'], None)
    """
    kind = type(x)  # on the class: a lazy frame would compute the names for the instance
    if not hasattr(kind, "column_names") and not hasattr(kind, "columns"):
        return None
    if isinstance(x, dict):  # such as a DatasetDict
        names = ", ".join(map(str, x))
        raise ValueError(f"{what} are tables by name ({names}); expected one of them, such as data[{next(iter(x))!r}].")
    if not hasattr(kind, "__len__") or not hasattr(kind, "__getitem__"):
        raise ValueError(
            f"{what} are a {kind.__name__}, which has no random access; expected a table in memory, such as "
            "LazyFrame.collect() returns, or a batched tf.data.Dataset."
        )
    names = [str(name) for name in (x.column_names if hasattr(kind, "column_names") else x.columns)]
    if not names:
        raise ValueError(f"{what} are a table without columns; expected one for each input.")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{what} have the column {twice[0]!r} {names.count(twice[0])} times; expected it once.")
    return names


def column_of(x: Any, name: str) -> Any:
    """Return one column of a table.

    Args:
        x: a table, or a dict of columns.
        name: one of :func:`table_columns`.

    Example:
        >>> import pandas as pd
        >>> from thaw.data.frames import column_of
        >>> column_of(pd.DataFrame({1: [31, 40]}), "1").tolist()
        [31, 40]
    """
    if not isinstance(x, dict) and not hasattr(type(x), "column_names"):  # the names of pandas may be numbers
        name = next(own for own in x.columns if str(own) == name)
    return x[name]


def values_of(x: Any) -> Any:
    """Return the values of a column as NumPy can read them.

    Args:
        x: column of a frame or a table, or anything else, which is returned as it is.

    Example:
        >>> import pandas as pd
        >>> from thaw.data.frames import values_of
        >>> values_of(pd.Series(["Ulm", "Bonn"])).dtype
        dtype('O')
    """
    if type(x).__module__.split(".")[0] == "pandas":
        return x.to_numpy(dtype=None if numpy_dtype(x.dtype).kind != "O" else object)
    if isinstance(x, Sequence) and not isinstance(x, (list, tuple, str, bytes)):
        return x[:]  # all at once: a dataset of Hugging Face reads row by row otherwise
    return x if hasattr(x, "shape") or not hasattr(x, "__array__") else np.asarray(x)


def numpy_dtype(dtype: Any) -> np.dtype:
    """Return the NumPy type of a column of pandas; ``object`` where there is none.

    Args:
        dtype: of a ``pandas.Series``.

    Example:
        >>> import pandas as pd
        >>> from thaw.data.frames import numpy_dtype
        >>> numpy_dtype(pd.Series([1, 2], dtype="Int64").dtype), numpy_dtype(pd.CategoricalDtype())
        (dtype('int64'), dtype('O'))
    """
    return dtype if isinstance(dtype, np.dtype) else getattr(dtype, "numpy_dtype", np.dtype(object))


def as_inputs(arrays: dict[str, np.ndarray], inputs: Sequence[str] | None = None) -> Any:
    """Return columns in the form in which a model takes them.

    Args:
        arrays: ``(n, ...)`` arrays by the name of the column.
        inputs: names of the model's inputs, where it has several or takes a dict. Default ``None``: unknown, or one.

    Returns:
        A dict of the columns where ``inputs`` are named; else one array ``(n, columns)`` where each column is one
        number a row, the array itself where there is one column, and a dict of all columns otherwise.

    Example:
        >>> import numpy as np
        >>> from thaw.data.frames import as_inputs
        >>> numbers = {"a": np.array([1, 2]), "b": np.array([0.5, 1.5])}
        >>> as_inputs(numbers).tolist(), sorted(as_inputs(numbers, ["a", "b"]))
        ([[1.0, 0.5], [2.0, 1.5]], ['a', 'b'])
    """
    if inputs is not None:
        return arrays
    if all(array.ndim == 1 and array.dtype.kind in "biuf" for array in arrays.values()):
        return np.stack(list(arrays.values()), axis=1)
    return next(iter(arrays.values())) if len(arrays) == 1 else arrays
