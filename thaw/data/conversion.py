"""as_dataset: the one conversion of what a user gives, into a Dataset or, without random access, a Stream."""

from __future__ import annotations

import dataclasses

import numpy as np

from thaw.data.dataset import ONE_CLASS_EACH, Dataset, leaves
from thaw.data.frames import as_inputs, column_of, table_columns, values_of

MAX_BATCHES_TO_COUNT = 10_000
NO_NUMBERS = {"c": "complex numbers", "M": "dates", "m": "durations"}  # by the kind of their NumPy type


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
    """Batches that can only be read from their beginning: a ``tf.data.Dataset``, a ``PyDataset`` or a generator.

    It has the methods of :class:`Dataset` that need no random access. It is never materialised, its features are not
    cached across runs, and a resumed run starts it from its beginning.

    Args:
        batches: a batched ``tf.data.Dataset`` of ``(x, y)``, ``(x, y, sample_weight)`` or ``x``.
    """

    batches: object
    read_once: bool = False  # a generator cannot begin again

    random_access = False
    augment = load = None

    def steps(self, batch_size=None):
        """Return the number of batches in one epoch.

        Raises:
            ValueError: it is not known, or there is no end.
        """
        steps = int(self.batches.cardinality())
        if steps < 1:
            raise ValueError(
                "The length of the training data set is not known, or it has no end; an epoch needs one. "
                "Leave repeat() out, or say it: dataset.apply(tf.data.experimental.assert_cardinality(n))."
            )
        return steps

    def ordered(self, batch_size=None):
        """Return the batches as they come."""
        return self.batches

    def epochs(self, batch_size=None, seed=0, first=0, views=None):
        """Return the batches, again and again."""
        return self.batches.repeat()

    def inputs(self, batch_size=None):
        """Yield batches of inputs alone.

        Raises:
            ValueError: there is no end.
        """
        for batch in self.finite():
            yield batch[0] if isinstance(batch, (tuple, list)) else batch

    def finite(self):
        """Return the batches.

        Raises:
            ValueError: there is no end.
        """
        import tensorflow as tf

        if int(self.batches.cardinality()) == tf.data.INFINITE_CARDINALITY:
            raise ValueError("The data set never ends; measure on one without repeat().")
        return self.batches

    def weighted(self, class_weight):
        """Return the same batches with sample weights by class; ``None`` for no change.

        Raises:
            ValueError: the batches have no labels or those of several outputs, or ``class_weight`` is no dict of class
                numbers. That the labels are one class for each example is checked by TensorFlow when it reads them.
        """
        if class_weight is None:
            return self
        import tensorflow as tf

        from thaw.tasks import checked_class_weight

        weights, spec = checked_class_weight(class_weight), self.batches.element_spec
        if not isinstance(spec, tuple) or len(spec) < 2:
            raise ValueError(f"There are no labels; {ONE_CLASS_EACH}")
        if isinstance(spec[1], (tuple, dict)):
            raise ValueError(f"The model has several outputs; {ONE_CLASS_EACH}")
        if spec[1].dtype == tf.string:
            raise ValueError(f"The labels are texts; {ONE_CLASS_EACH}")
        if not weights:
            return self
        keys = tf.constant(list(weights), tf.int64)
        values = tf.constant(list(weights.values()), tf.float32)
        table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, values), 1.0)

        def add(x, y, *weight):
            factor = table.lookup(_class_of_rows(y))
            return x, y, factor * tf.cast(weight[0], tf.float32) if weight else factor

        return Stream(self.batches.map(add), self.read_once)


def _class_of_rows(y):
    """Class numbers of labels that are numbers, a column of them, or one-hot rows; checked when they are read."""
    import tensorflow as tf

    rows = tf.reshape(tf.cast(y, tf.float64), [tf.shape(y)[0], -1])  # the shape may be unknown until then
    ones = tf.reduce_sum(tf.cast(rows == 1, tf.int32), -1)
    zeros = tf.reduce_sum(tf.cast(rows == 0, tf.int32), -1)
    one_hot = tf.reduce_all((ones == 1) & (zeros == tf.shape(rows)[1] - 1))
    column = tf.shape(rows)[1] == 1
    whole = tf.reduce_all(rows == tf.round(rows))
    checks = [
        tf.debugging.Assert(holds, [f"The labels are {what}; {ONE_CLASS_EACH}"])
        for holds, what in (
            (column | one_hot, "rows of numbers that are not one-hot"),
            (~column | whole, "not whole numbers"),
        )
    ]
    with tf.control_dependencies(checks):
        return tf.where(column, tf.cast(rows[:, 0], tf.int64), tf.argmax(rows, -1))


def as_dataset(x, y=None, sample_weight=None, *, name="data", labelled=False, model=None):
    """Convert what a user gives into a :class:`Dataset`, or a :class:`Stream` where there is no random access.

    This is the one place where data are converted and checked; nothing behind it looks again.

    A table is a pandas or polars frame, a PyArrow table or a dataset of Hugging Face. Its columns become one array
    ``(n, columns)`` where all are numbers, the array of the column where there is one (of texts, images or lists), and
    a dict of arrays otherwise. Where the model has several inputs, or takes a dict, the columns with the names of its
    inputs are used. All of a table is read into memory; images that would not fit are given as
    ``table.to_tf_dataset(...)``.

    Args:
        x: arrays, lists, strings, columns of a table or tensors, or a tuple or dict of these; a table; a
            :class:`Dataset`; a batched ``tf.data.Dataset``, such as one of TensorFlow Datasets, a
            ``keras.utils.PyDataset`` or a generator of batches, which stay streams.
        y: targets, one for each input; or the name of the column of ``x`` that holds them, where ``x`` is a table, a
            dict, or a stream of dicts; ``None`` where ``x`` brings them as batches of ``(x, y)``. Default ``None``.
        sample_weight: ``(n,)`` weights in the loss. Default ``None``.
        name: how an error calls the data. Default ``"data"``.
        labelled: whether targets are needed. Default ``False``.
        model: ``keras.Model`` that the data are for, whose inputs may be columns of a table. Default ``None``: unknown.

    Returns:
        A :class:`Dataset` or a :class:`Stream`.

    Raises:
        ValueError: another kind of data, arrays that do not belong together, NaN or infinity in inputs or weights (a
            memory map is not read for that), or weights that are negative or all 0; several tables by name, or a column
            that is not there.

    Example:
        >>> import numpy as np
        >>> from thaw import as_dataset
        >>> len(as_dataset(np.zeros((3, 2)), [0, 1, 0]))
        3
        >>> dataset = as_dataset({"age": [31, 40], "town": ["Ulm", "Bonn"], "old": [0, 1]}, "old")
        >>> sorted(dataset.x), dataset.y.tolist()
        (['age', 'town'], [0, 1])
    """
    import tensorflow as tf

    is_stream = isinstance(x, (Stream, tf.data.Dataset)) or _is_pydataset(x) or hasattr(x, "__next__")
    if isinstance(x, Dataset) or is_stream:
        stream = None
        if is_stream:
            stream = x if isinstance(x, Stream) else Stream(_batches_of(x, name), read_once=hasattr(x, "__next__"))
        named = is_stream and isinstance(y, str) and isinstance(stream.batches.element_spec, dict)
        if (y is not None and not named) or sample_weight is not None:
            raise ValueError(f"The {name} are a {type(x).__name__}, which brings its own labels; leave y out.")
        if is_stream:
            stream = _with_labels(stream, y, f"The {name}") if named else stream
            spec = stream.batches.element_spec
            if labelled and not (isinstance(spec, tuple) and len(spec) > 1):
                names = f', or y="label" for one of {", ".join(map(str, spec))}' if isinstance(spec, dict) else ""
                raise ValueError(f"The {name} have inputs and no labels; expected batches of (x, y){names}.")
            return stream
        dataset = x
    else:
        columns = table_columns(x, f"The {name}")
        if isinstance(x, dict) and isinstance(y, str):
            columns = list(x)
        if columns is not None and isinstance(y, str):
            left = _without(columns, y, f"The {name}")
            y, columns = column_of(x, y), left
        elif labelled and columns is not None and y is None:
            raise ValueError(
                f'The {name} are a table and y is None; expected the labels, or y="label" for one of its columns '
                f"({', '.join(columns)})."
            )
        x = _structure(x, f"The {name}", columns, model)
        y = None if y is None else _targets_of(y, len(leaves(x)[0]))
    try:
        if not isinstance(x, Dataset):
            weight = None if sample_weight is None else _part(sample_weight, "The sample weights")
            dataset = Dataset(x=x, y=y, sample_weight=weight)
        dataset._finite  # noqa: B018 (raises)
    except ValueError as error:
        text = str(error)
        raise ValueError(text if name == "data" else f"In the {name}, {text[0].lower()}{text[1:]}") from None
    if labelled and dataset.y is None:
        raise ValueError(f"The {name} have no labels: y is None; expected one label for each input.")
    return dataset


def _without(columns, label, what):
    """The names of columns but for that of the labels."""
    if label not in columns:
        raise ValueError(f"{what} have no column {label!r} for the labels (they have: {', '.join(map(str, columns))}).")
    if len(columns) == 1:
        raise ValueError(f"{what} have the column {label!r} alone, the labels; expected inputs beside them.")
    return [column for column in columns if column != label]


def _with_labels(stream, label, what):
    """Batches of ``(x, y)``, of batches that are dicts."""
    left = _without(list(stream.batches.element_spec), label, what)

    def split(row):
        return (row[left[0]] if len(left) == 1 else {name: row[name] for name in left}), row[label]

    return Stream(stream.batches.map(split), stream.read_once)


def as_validation(validation_data, name="validation data", *, labelled=True, model=None):
    """Convert ``validation_data`` as ``fit`` takes it.

    Args:
        validation_data: ``(x, y)`` or ``(x, y, sample_weight)``, such as ``(table, "label")``, a :class:`Dataset`, a
            stream, or ``None``.
        name: how an error calls the data. Default ``"validation data"``.
        labelled: whether a data set or a stream must have targets. Default ``True``.
        model: as for :func:`as_dataset`. Default ``None``.

    Returns:
        What :func:`as_dataset` returns, or ``None``.

    Raises:
        ValueError: another number of arrays, or what :func:`as_dataset` raises.

    Example:
        >>> import numpy as np
        >>> from thaw.data.conversion import as_validation
        >>> len(as_validation((np.zeros((3, 2)), [0, 1, 0])))
        3
    """
    if validation_data is None:
        return None
    if isinstance(validation_data, (tuple, list)):
        if len(validation_data) not in (2, 3):
            raise ValueError(f"The {name} are {len(validation_data)} arrays; expected (x, y) or (x, y, sample_weight).")
        return as_dataset(*validation_data, name=name, labelled=True, model=model)
    return as_dataset(validation_data, name=name, labelled=labelled, model=model)


def _is_pydataset(x):
    import keras

    return isinstance(x, keras.utils.PyDataset)


def with_known_length(data, name):
    """Count the batches of a stream that does not know its length.

    For that all of it is read once, beside the training; after 10,000 batches the count is given up.

    Args:
        data: :class:`Dataset`, :class:`Stream` or ``None``, which are returned as they are where nothing is unknown.
        name: how an error calls the data.

    Returns:
        The same data, or a :class:`Stream` of as many batches in every epoch.

    Raises:
        ValueError: the data have no end, 10,000 batches or more without saying so, or no batch.

    Example:
        >>> import tensorflow as tf
        >>> from thaw.data.conversion import as_dataset, with_known_length
        >>> even = tf.data.Dataset.range(6).filter(lambda n: n % 2 == 0).batch(2)
        >>> int(with_known_length(as_dataset(even), "data").batches.cardinality())
        2
    """
    if data is None or data.random_access:
        return data
    import tensorflow as tf

    length = int(data.batches.cardinality())
    if length == tf.data.INFINITE_CARDINALITY:
        raise ValueError(f"The {name} data never end: leave repeat() out, so that one pass is one epoch.")
    if length == tf.data.UNKNOWN_CARDINALITY:
        length = int(data.batches.take(MAX_BATCHES_TO_COUNT).reduce(np.int64(0), lambda count, _: count + 1))
        if length == MAX_BATCHES_TO_COUNT:
            raise ValueError(
                f"The {name} data do not say how long they are, and gave {length} batches without coming to an end. If "
                "they have one, write data.apply(tf.data.experimental.assert_cardinality(n)) with the number of "
                "batches; if not, data.take(n)."
            )
        # The same number in every epoch: a pass that is shorter is filled up from the next one.
        data = dataclasses.replace(data, batches=data.batches.repeat().take(length)) if length else data
    if length == 0:
        raise ValueError(f"The {name} data are empty; expected at least one batch.")
    return data


def _number_of_batches(x, name):
    """The length of a ``PyDataset``, which says ``None``, or nothing, where it has no end."""
    import keras

    kind = type(x)
    says = hasattr(kind, "__len__") or kind.num_batches is not keras.utils.PyDataset.num_batches
    length = x.num_batches if says else None
    if length is None:
        raise ValueError(f"The {name} never end: give the PyDataset a __len__ or a num_batches.")
    return length


def _batches_of(x, name):
    """A ``tf.data.Dataset`` of the batches of a data set, a ``PyDataset`` or a generator."""
    import itertools

    import keras
    import tensorflow as tf

    if isinstance(x, tf.data.Dataset):
        return x
    if _is_pydataset(x):
        first, length = x[0], _number_of_batches(x, name)

        def read():
            for i in range(length):
                yield _tuples(x[i])
            x.on_epoch_end()
    else:
        first, length = next(x, None), None
        if first is None:
            raise ValueError(f"The {name} are an empty generator; expected at least one batch.")
        chained = itertools.chain([first], x)  # it can be read once

        def read():
            return map(_tuples, chained)

    def spec(array):
        array = np.asarray(array)
        return tf.TensorSpec((None, *array.shape[1:]), tf.as_dtype(array.dtype))

    signature = keras.tree.map_structure(spec, _tuples(first))
    batches = tf.data.Dataset.from_generator(read, output_signature=signature)
    return batches if length is None else batches.apply(tf.data.experimental.assert_cardinality(length))


def _tuples(batch):
    """A batch as tf.data has it: tuples, where Keras admits lists."""
    return tuple(batch) if isinstance(batch, list) else batch


def _structure(x, what, columns, model):
    """Inputs as one array, or a tuple or dict of arrays."""
    if columns is not None:
        inputs = _named_inputs(model)
        if inputs is not None and set(inputs) <= set(columns):
            columns = inputs
        arrays = {name: _column(column_of(x, name), name, what) for name in columns}
        return arrays if isinstance(x, dict) else as_inputs(arrays, inputs)
    if isinstance(x, dict):
        if not x:
            raise ValueError(f"{what} are an empty dict; expected an array for each input.")
        return {name: _part(part, what) for name, part in x.items()}
    if isinstance(x, tuple) or (isinstance(x, list) and x and all(len(getattr(part, "shape", ())) for part in x)):
        return tuple(_part(part, what) for part in x)
    return _array(x, what)


def _named_inputs(model):
    """The names of a model's inputs, where it has several or takes a dict; else ``None``."""
    structure, tensors = getattr(model, "input", None), getattr(model, "inputs", None) or []
    if isinstance(structure, dict):
        return list(structure)
    return [tensor.name for tensor in tensors] if len(tensors) > 1 else None


def _column(column, name, what):
    return _part(column, f"The values of {name!r} in {what[0].lower()}{what[1:]}")


def _part(x, what):
    """One array of a structure, of a table too."""
    columns = table_columns(x, what)
    if columns is None:
        return _array(x, what)
    arrays = {name: _column(column_of(x, name), name, what) for name in columns}
    if len(arrays) == 1:
        return next(iter(arrays.values()))
    if isinstance(joined := as_inputs(arrays), dict):
        raise ValueError(f"{what} hold a table of {', '.join(arrays)}, not all numbers; expected an array each.")
    return joined


def _array(x, what):
    """One array with an axis of examples."""
    x = values_of(x)
    if hasattr(x, "toarray"):
        raise ValueError(f"{what} are a sparse matrix; expected a dense array, such as x.toarray().")
    if not hasattr(x, "shape") and not isinstance(x, (list, tuple)):
        raise ValueError(
            f"{what} are a {type(x).__name__}; expected thaw.Dataset, arrays x and y, or a batched tf.data.Dataset."
        )
    if hasattr(x, "shape") and not isinstance(x, np.ndarray) and hasattr(x, "__getitem__") and _is_lazy(x):
        return x
    try:
        array = np.asarray(x)
        if array.dtype.kind == "O" and all(isinstance(row, (list, np.ndarray)) for row in array.flat):
            array = np.array(array.tolist())  # a column of lists
    except ValueError:
        raise ValueError(f"{what} are rows of different lengths; expected one shape for all examples.") from None
    if array.dtype.kind == "O":
        if not all(isinstance(value, (str, bytes)) for value in array.flat):
            kinds = sorted({type(value).__name__ for value in array.flat if not isinstance(value, str)})
            raise ValueError(f"{what} hold objects ({', '.join(kinds[:3])}); expected numbers or texts, without gaps.")
        array = array.astype(str)
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8")
    if array.dtype.kind in NO_NUMBERS:
        raise ValueError(f"{what} are {NO_NUMBERS[array.dtype.kind]} ({array.dtype}); expected real numbers or texts.")
    if array.ndim == 0:
        raise ValueError(f"{what} are {x!r}; expected an array with one row for each example.")
    return array


def _is_lazy(x):
    """Does indexing read an array from somewhere else, such as a file, so that it should not be copied?"""
    return type(x).__module__.split(".")[0] in ("h5py", "zarr", "thaw")


def _targets_of(y, n):
    """Targets as one array, or a tuple or dict of arrays for several outputs."""
    if isinstance(y, dict):
        return {name: _part(part, "The labels") for name, part in y.items()}
    if table_columns(y, "The labels") is not None:
        return _part(y, "The labels")
    y = values_of(y)
    several = isinstance(y, (list, tuple)) and len(y) != n and {np.shape(part)[:1] for part in y} == {(n,)}
    if several:
        return tuple(_array(part, "The labels") for part in y)
    if np.ndim(y) == 0 or isinstance(y, str):
        raise ValueError(f"The labels are {y!r}; expected one for each input.")
    return _array(y, "The labels")
