"""A model for tables: raw columns go in, what prepares them is inside."""

from __future__ import annotations

from collections import Counter

import numpy as np

from thaw._validation import as_int, as_seed
from thaw.models.ensemble_heads import attach_ensemble_heads

MIN_ROWS_OF_CATEGORY = 2  # of training; rarer ones share the vector of those that training never saw
MAX_EMBEDDING = 16  # numbers in the vector of a category
_DAYS_TO_1970 = 719468  # from 1 March of the year 0, with which the 400 years of the calendar begin
_DAYS_OF_400_YEARS = 146097


def table_model(splits, *, members=16, width=128, depth=2, bins=16, dropout=0.1, seed=0):
    """Build and compile a model from random weights for a table, ready for :func:`thaw.fine_tune`.

    :func:`table_backbone` with a head for each member of the ensemble
    (:func:`thaw.models.ensemble_heads.attach_ensemble_heads`).

    Args:
        splits: what :func:`thaw.data.columns.load_table` returns.
        members: as in :func:`table_backbone`. Default 16.
        width: as in :func:`table_backbone`. Default 128.
        depth: as in :func:`table_backbone`. Default 2.
        bins: as in :func:`table_backbone`. Default 16.
        dropout: as in :func:`table_backbone`. Default 0.1.
        seed: int, seed of the weights. Default 0.

    Returns:
        A plain, compiled ``keras.Model`` from a dict of columns to ``(task.units,)`` predictions.

    Example:
        >>> from thaw.data.columns import load_table
        >>> from thaw.models.table_backbone import table_model
        >>> table = {"a": [i % 7 for i in range(60)], "label": [["no", "yes"][i % 7 > 3] for i in range(60)]}
        >>> table_model(load_table(table), width=8).output_shape
        (None, 2)
    """
    backbone = table_backbone(
        splits.columns,
        splits.train.x,
        members=members,
        width=width,
        depth=depth,
        bins=bins,
        dropout=dropout,
        seed=seed,
    )
    return attach_ensemble_heads(backbone, splits.task, seed=seed)


def table_backbone(columns, x, *, members=16, width=128, depth=2, bins=16, dropout=0.1, seed=0):
    """Build a backbone for tables: a multilayer perceptron whose first layers prepare raw columns.

    - A number goes through a piecewise-linear encoding (Gorishniy et al. 2022): one feature for each interval between
      quantiles of the training rows, which rises from 0 to 1 in it. So the net bends at these quantiles, and nothing
      beyond the smallest and largest number makes a difference.
    - A category has a vector of its own; categories of one training row and those never seen share one.
    - A date is divided into year, month, day of the week, and the days themselves, as numbers.
    - A boolean, and the sign that a value is missing, are features as they are.

    The ensemble is that of TabM (Gorishniy et al. 2025), in its small form: each member scales the prepared features by
    numbers of its own, and all share the layers behind. Everything is a layer or an operation of Keras, so that a saved
    file opens with Keras alone and takes the columns as they are in the table. (``keras.utils.FeatureSpace`` would save
    as well; it knows neither dates nor gaps nor piecewise-linear encodings.)

    Args:
        columns: :class:`thaw.data.column_kinds.Column` of each column, as in ``splits.columns``.
        x: inputs of the training rows, as in ``splits.train.x``: a dict of arrays ``(n, 1)``, from which quantiles and
            categories are read.
        members: int, members of the ensemble; 1 for none. Default 16.
        width: int, units of each hidden layer. Default 128.
        depth: int, hidden layers. Default 2.
        bins: int, intervals of a number, at most; fewer where it takes few values. Default 16.
        dropout: fraction of the units dropped behind each hidden layer at each training step. Default 0.1.
        seed: int, seed of the weights and the dropout. Default 0.

    Returns:
        A plain ``keras.Model`` from a dict of columns, ``(1,)`` each, to ``(members, width)``.

    Raises:
        ValueError: an invalid argument, or the inputs of a column are not there.

    Example:
        >>> import numpy as np
        >>> from thaw.data.column_kinds import Column
        >>> from thaw.models.table_backbone import table_backbone
        >>> x = {"age": np.array([[20.0], [40.0], [60.0]], "float32"), "town": np.array([["Ulm"], ["Bonn"], ["Ulm"]])}
        >>> table_backbone([Column("age", "number"), Column("town", "category")], x, members=4, width=8).output_shape
        (None, 4, 8)
    """
    import keras
    from keras import layers

    members, width, depth = as_int("members", members, 1), as_int("width", width, 1), as_int("depth", depth, 1)
    bins, seed = as_int("bins", bins, 1), as_seed(seed)
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout!r}; expected a fraction from 0 to below 1.")
    if not columns:
        raise ValueError("There are no columns; expected those of load_table, in splits.columns.")
    needed = [name for column in columns for name in column.inputs]
    if missing := [name for name in needed if name not in x]:
        raise ValueError(f"x has no input {missing[0]!r}; expected the inputs of splits.train.x.")
    drawn = np.random.default_rng(seed)

    def draw():
        return int(drawn.integers(2**31))

    inputs, numbers, features, sizes = {}, [], [], []
    for column in columns:
        name, *flag = column.inputs
        values = np.asarray(x[name]).ravel()
        dtype = "string" if column.kind == "category" else "float32"
        inputs[name] = keras.Input((1,), dtype=dtype, name=name)
        if column.kind == "number":
            numbers.append((inputs[name], values))
        elif column.kind == "date":
            more_numbers, cycles = _date_parts(inputs[name], values)
            numbers += more_numbers
            features += cycles
        elif column.kind == "category":
            features.append(_embedded(inputs[name], values, f"table_category{len(features) + 1}", draw()))
        else:
            features.append(inputs[name])
        for own in flag:
            inputs[own] = keras.Input((1,), name=own)
            features.append(inputs[own])
    if numbers:
        encoded, counts = _piecewise_linear(numbers, bins)
        sizes += counts
        features.insert(0, encoded)
    sizes += [int(feature.shape[-1]) for feature in features[bool(numbers) :]]
    h = layers.Concatenate(name="table_features")(features) if len(features) > 1 else features[0]
    scale = layers.EinsumDense("bd,kd->bkd", (members, sum(sizes)), kernel_initializer="ones", name="table_members")
    h = scale(h)
    if members > 1:
        # As in TabM, one number for all features that were made of one column.
        scale.set_weights([np.repeat(drawn.normal(size=(members, len(sizes))), sizes, axis=1)])
    for i in range(depth):
        initializer = keras.initializers.GlorotUniform(seed=draw())
        h = layers.Dense(width, activation="relu", kernel_initializer=initializer, name=f"table_hidden{i + 1}")(h)
        if dropout:
            h = layers.Dropout(dropout, seed=draw(), name=f"table_hidden{i + 1}_dropout")(h)
    return keras.Model(dict(sorted(inputs.items())), h, name="table_backbone")


def _piecewise_linear(numbers, bins):
    """Encode all numbers at once; and how many features each one has."""
    from keras import layers, ops

    edges = [quantile_edges(values, bins) for _, values in numbers]
    counts = [len(own) - 1 for own in edges]
    tensors = [tensor for tensor, _ in numbers]
    h = layers.Concatenate(name="table_numbers")(tensors) if len(tensors) > 1 else tensors[0]
    left = np.concatenate([own[:-1] for own in edges])
    width = np.concatenate([np.diff(own) for own in edges])
    # Constants of the config, which neither training nor a checkpoint changes.
    scaled = layers.Normalization(mean=left.tolist(), variance=(width**2).tolist(), name="table_intervals")
    return layers.ReLU(max_value=1.0, name="table_piecewise_linear")(scaled(ops.repeat(h, counts, axis=-1))), counts


def quantile_edges(values, bins):
    """Return the ends of the intervals of a number: quantiles of the training rows, without repetitions.

    Args:
        values: ``(n,)`` numbers.
        bins: int, intervals at most.

    Returns:
        Float64 array, ascending, of at least two numbers.

    Example:
        >>> from thaw.models.table_backbone import quantile_edges
        >>> quantile_edges([1, 2, 2, 3, 9], 2).tolist(), quantile_edges([5, 5], 4).tolist()
        ([1.0, 2.0, 9.0], [5.0, 10.0])
    """
    values = np.asarray(values, np.float32).astype(np.float64)
    different = np.unique(values)
    edges = different if len(different) <= bins + 1 else np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)))
    # Intervals that 32-bit numbers hardly tell apart would divide by nothing.
    wide = np.diff(edges) > 1e-6 * max(1e-30, np.abs(edges).max())
    edges = edges[np.concatenate([[True], wide])]
    return edges if len(edges) > 1 else np.array([edges[0], edges[0] + max(1.0, abs(edges[0]))])


def _embedded(tensor, values, name, seed):
    """The vector of a category."""
    import keras
    from keras import layers

    counts = Counter(values.tolist())
    known = sorted(category for category, count in counts.items() if count >= MIN_ROWS_OF_CATEGORY)
    size = len(known) + 1
    number = layers.StringLookup(vocabulary=known or sorted(counts)[:1], name=f"{name}_number")(tensor)
    embedding = layers.Embedding(
        max(2, size),
        min(size, MAX_EMBEDDING),
        embeddings_initializer=keras.initializers.RandomNormal(stddev=size**-0.5 if size < 4 else 0.5, seed=seed),
        name=f"{name}_vector",
    )
    return layers.Flatten(name=f"{name}_features")(embedding(number))


def _date_parts(tensor, values):
    """Numbers of a date, each with its values in training, and its month and day of the week as one-hot vectors."""
    from keras import layers, ops

    days = ops.cast(ops.floor(tensor), "int32")
    year, month, weekday = civil_parts(days)
    train_year = civil_parts(np.floor(values).astype(np.int32))[0]
    cycles = [layers.Flatten()(ops.one_hot(part, size)) for part, size in ((month - 1, 12), (weekday, 7))]
    numbers = [(tensor, values), (ops.cast(year, "float32"), np.asarray(train_year))]
    hours = values - np.floor(values)
    if hours.any():
        numbers.append((tensor - ops.floor(tensor), hours))
    return numbers, cycles


def civil_parts(days):
    """Compute year, month and day of the week of days since 1970-01-01, in whole numbers alone (Hinnant 2013).

    Args:
        days: int32 array or Keras tensor.

    Returns:
        ``(year, month, weekday)``: month from 1, weekday from 0 for Monday.

    Example:
        >>> import numpy as np
        >>> from thaw.models.table_backbone import civil_parts
        >>> [int(part) for part in civil_parts(np.array(19874))]  # Friday, 31 May 2024
        [2024, 5, 4]
    """
    from_march = days + _DAYS_TO_1970
    era = from_march // _DAYS_OF_400_YEARS
    day = from_march - era * _DAYS_OF_400_YEARS
    # Leap days come every 4 years, but not every 100, but every 400.
    year = (day - day // 1460 + day // 36524 - day // 146096) // 365
    day_of_year = day - (365 * year + year // 4 - year // 100)
    month_from_march = (5 * day_of_year + 2) // 153
    after_december = month_from_march // 10  # 1 in January and February, which belong to the year that began in March
    weekday = (days + 3) - (days + 3) // 7 * 7
    return year + era * 400 + after_december, month_from_march + 3 - 12 * after_december, weekday
