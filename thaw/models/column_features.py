"""Features of raw columns of a table without anything trained: what a linear head can read."""

from __future__ import annotations

from collections import Counter

import numpy as np

from thaw._validation import as_int
from thaw.models.table_backbone import MIN_ROWS_OF_CATEGORY, civil_parts, quantile_edges


def column_features(columns, x, *, bins=8):
    """Build a model that puts raw columns of a table into numbers for a linear head; nothing in it is trained.

    - A number goes through a piecewise-linear encoding (Gorishniy et al. 2022): one feature for each interval between
      quantiles of the training rows, which rises from 0 to 1 in it. A linear head on it bends at these quantiles.
    - A category is one-hot; categories of one training row and those never seen share one place.
    - A date is its number of days, and its month and day of the week, which are one-hot.
    - A boolean, and the sign that a value is missing, are features as they are.

    For a net that is trained see :func:`thaw.models.table_backbone.table_backbone`.

    Args:
        columns: :class:`thaw.data.column_kinds.Column` of each column, as in ``splits.columns``.
        x: inputs of the training rows, as in ``splits.train.x``: a dict of arrays ``(n, 1)``, from which quantiles and
            categories are read.
        bins: int, intervals of a number, at most; fewer where it takes few values. Default 8.

    Returns:
        A plain ``keras.Model`` from a dict of columns, ``(1,)`` each, to ``(width,)``.

    Raises:
        ValueError: there are no columns, or the inputs of one are not there.

    Example:
        >>> import numpy as np
        >>> from thaw.data.column_kinds import Column
        >>> from thaw.models.column_features import column_features
        >>> x = {"age": np.array([[20.0], [40.0], [60.0]], "float32")}
        >>> net = column_features([Column("age", "number")], x)
        >>> net({"age": np.array([[30.0], [99.0]], "float32")}).numpy().tolist()
        [[0.5, 0.0], [1.0, 1.0]]
    """
    import keras
    from keras import layers

    bins = as_int("bins", bins, 1)
    if not columns:
        raise ValueError("There are no columns; expected those of load_columns or load_table, in splits.columns.")
    if missing := [name for column in columns for name in column.inputs if name not in x]:
        raise ValueError(f"x has no input {missing[0]!r}; expected the inputs of splits.train.x.")
    inputs, numbers, features = {}, [], []
    for column in columns:
        name, *flag = column.inputs
        values = np.asarray(x[name]).ravel()
        inputs[name] = keras.Input((1,), dtype="string" if column.kind == "category" else "float32", name=name)
        if column.kind == "number":
            numbers.append((inputs[name], values))
        elif column.kind == "date":
            numbers.append((inputs[name], values))
            features += _cycles(inputs[name])
        elif column.kind == "category":
            features.append(_one_hot(inputs[name], values, f"columns_category{len(features) + 1}"))
        else:
            features.append(inputs[name])
        for own in flag:
            inputs[own] = keras.Input((1,), name=own)
            features.append(inputs[own])
    if numbers:
        features.insert(0, _piecewise_linear(numbers, bins))
    if len(features) > 1:
        h = layers.Concatenate(name="columns_features")(features)
    else:
        h = layers.Activation("linear", name="columns_features")(features[0])
    return keras.Model(dict(sorted(inputs.items())), h, name="columns")


def _piecewise_linear(numbers, bins):
    """Encode all numbers at once."""
    from keras import layers, ops

    edges = [quantile_edges(values, bins) for _, values in numbers]
    tensors = [tensor for tensor, _ in numbers]
    h = layers.Concatenate(name="columns_numbers")(tensors) if len(tensors) > 1 else tensors[0]
    h = ops.repeat(h, [len(own) - 1 for own in edges], axis=-1)
    left, width = np.concatenate([own[:-1] for own in edges]), np.concatenate([np.diff(own) for own in edges])
    # The difference first: of large numbers that lie close together, quotients would differ in nothing but rounding.
    h = layers.Rescaling(1.0, (-left).tolist(), name="columns_differences")(h)
    h = layers.Rescaling((1 / width).tolist(), name="columns_intervals")(h)
    return layers.ReLU(max_value=1.0, name="columns_piecewise_linear")(h)


def _one_hot(tensor, values, name):
    from keras import layers, ops

    counts = Counter(values.tolist())
    known = sorted(category for category, count in counts.items() if count >= MIN_ROWS_OF_CATEGORY)
    lookup = layers.StringLookup(vocabulary=known or sorted(counts)[:1], output_mode="one_hot", name=name)
    return ops.cast(lookup(tensor), "float32")  # it puts out whole numbers, and says floats


def _cycles(tensor):
    """Return the month and the day of the week of a date as one-hot vectors."""
    from keras import layers, ops

    _, month, weekday = civil_parts(ops.cast(ops.floor(tensor), "int32"))
    return [layers.Flatten()(ops.one_hot(part, size)) for part, size in ((month - 1, 12), (weekday, 7))]
