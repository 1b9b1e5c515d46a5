"""Dataset: examples with random access, in an order that is a function of the seed."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable

import numpy as np

from thaw._validation import as_int

ONE_CLASS_EACH = "class_weight needs one class for each example. For other targets use sample_weight."


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Dataset:
    """Hold inputs and targets with random access, so that any epoch's order is a pure function of the seed.

    A ``tf.data.Dataset`` can only be read from its beginning. To resume a run bit-identically, and to cache the
    features of every example, the order must be known without reading: here it is a function of (seed, epoch),
    and the augmentation one of (seed, epoch, example).

    Args:
        x: inputs, ``(n, ...)``: an array or anything with its shape, dtype and indexing, such as a memory map; strings
            ``(n,)``; ``(views, n, ...)`` with ``views``; or a tuple or dict of these for a model with several inputs.
        y: targets: class numbers ``(n,)`` or targets ``(n, ...)``; a tuple or dict of these for several outputs; or
            ``None``, for inputs alone. Default ``None``.
        sample_weight: ``(n,)`` weights in the loss. Default ``None``.
        load: TensorFlow function from one element of ``x``, such as a file name, to one input of fixed shape. Strings
            are file names where there is one, and texts where there is none. Default ``None``.
        augment: TensorFlow function from (one input, seed of shape ``(2,)``) to one input. It must be pure. The first
            number of the seed is drawn for each version of an example, the second counts the versions. A ``load`` or
            ``augment`` with an attribute ``identity``, a string that names everything it depends on, lets another
            run find the cached features. Default ``None``.
        keys: ``(n,)`` int64, one for each example, made from its content; the augmentation follows the key, so that it
            stays with an example when others are added. Default: made from ``x``.
        views: number of versions of each example that ``x`` holds; epoch ``e`` reads version ``e % views``. Default
            ``None``.
        groups: ``(n,)`` numbers or texts; examples of one group belong together, such as the pictures of a patient or
            near-duplicates. Cross-validation keeps a group in one fold; nothing else reads it. Default ``None``: every
            example on its own.

    Raises:
        ValueError: the arrays do not belong together, or ``groups`` has gaps.

    Example:
        >>> import numpy as np
        >>> from thaw import Dataset
        >>> dataset = Dataset(x=np.arange(6.0).reshape(3, 2), y=np.array([0, 1, 0]))
        >>> len(dataset), dataset.steps(2)
        (3, 2)
        >>> [y.numpy().tolist() for x, y in dataset.ordered(2)]
        [[0, 1], [0]]
    """

    x: np.ndarray | tuple | dict
    y: np.ndarray | tuple | dict | None = None
    sample_weight: np.ndarray | None = None
    load: Callable | None = None
    augment: Callable | None = None
    keys: np.ndarray | None = None
    views: int | None = None
    groups: np.ndarray | None = None

    random_access = True

    def __post_init__(self):
        n = len(self)
        if n == 0:
            raise ValueError("There are no examples; expected at least one.")
        for part in leaves(self.x):
            rows = part.shape[1] if self.views else len(part)
            if rows != n:
                raise ValueError(f"There are {rows} inputs and {n} labels; expected one label for each input.")
            if self.views and part.shape[0] != self.views:
                raise ValueError(f"x holds {part.shape[0]} versions, but views={self.views}.")
        for part in leaves(self.y):
            if len(part) != n:
                raise ValueError(f"There are {n} examples and {len(part)} labels of another output; expected as many.")
        for name in ("sample_weight", "keys"):
            value = getattr(self, name)
            if value is not None and len(value) != n:
                raise ValueError(f"There are {n} examples and {len(value)} {name}; expected one for each.")
        if self.groups is not None:
            object.__setattr__(self, "groups", _checked_groups(self.groups, n))

    def replace(self, **changes):
        """Return a copy with other fields; what was checked of the inputs stays checked."""
        copy = dataclasses.replace(self, **changes)
        if "_finite" in vars(self) and not {"x", "sample_weight"} & set(changes):
            vars(copy)["_finite"] = True
        return copy

    @functools.cached_property
    def _finite(self):
        """Refuse NaN and infinity: a ReLU or a cast may turn them into good numbers, and nobody would notice.

        And weights that are negative, which would make the loss of an example larger, or all 0, which train nothing.
        """
        if self.sample_weight is not None and np.asarray(self.sample_weight).dtype.kind not in "iufb":
            raise ValueError(f"The sample weights are {np.asarray(self.sample_weight).dtype}; expected numbers.")
        if self.sample_weight is not None and not np.any(self.sample_weight):
            raise ValueError("All sample weights are 0; expected some above 0.")
        if self.sample_weight is not None and (low := np.min(self.sample_weight)) < 0:
            raise ValueError(f"The lowest sample weight is {low:g}; expected numbers of 0 or more.")
        axis = 1 if self.views else 0
        parts = [("inputs", part, axis) for part in leaves(self.x)]
        for what, rows, axis in (*parts, ("sample weights", self.sample_weight, 0)):
            if not isinstance(rows, np.ndarray) or rows.dtype.kind != "f" or _is_mapped(rows):
                continue
            with np.errstate(over="ignore", invalid="ignore"):
                if np.isfinite(rows.sum(dtype=np.float32 if rows.itemsize < 4 else None)):
                    continue
            others = tuple(i for i in range(rows.ndim) if i != axis)
            wrong = np.flatnonzero(~np.isfinite(rows).all(axis=others))
            if len(wrong):
                raise ValueError(
                    f"{len(wrong)} of {len(self)} {what} hold NaN or infinity, the first of them at {wrong[0]}; "
                    "expected finite numbers. Leave these examples out, or fill the gaps."
                )
        return True

    def __len__(self):
        if self.y is None:
            first = leaves(self.x)[0]
            return first.shape[1] if self.views else len(first)
        return len(leaves(self.y)[0])

    @property
    def is_files(self):
        """Whether the inputs are names of files, and not the content itself."""
        return self.load is not None and any(part.dtype.kind in "UO" for part in leaves(self.x))

    @property
    def row_bytes(self):
        """Bytes of one example's inputs as they are stored; of file names, none to speak of."""
        return sum(int(part.dtype.itemsize * np.prod(part.shape[2 if self.views else 1 :])) for part in leaves(self.x))

    def steps(self, batch_size):
        """Return the number of batches in one epoch; the last one may be smaller."""
        return -(-len(self) // as_int("batch_size", batch_size, 1))

    def take(self, indices):
        """Return the examples at ``indices``, in that order."""
        part = {
            name: None if value is None else _each(lambda rows: rows[indices], value)
            for name in ("y", "sample_weight", "keys", "groups")
            for value in [getattr(self, name)]
        }
        x = _each(lambda rows: rows[:, indices] if self.views else rows[indices], self.x)
        copy = dataclasses.replace(self, x=x, **part)
        if "_finite" in vars(self):
            vars(copy)["_finite"] = True
        return copy

    def weighted(self, class_weight):
        """Return the same examples, each weighted in the loss by its class, times its own weight if it has one.

        Args:
            class_weight: dict from class number to weight, as ``fit`` takes it; a class that is not in it counts 1.
                ``None`` for no change.

        Raises:
            ValueError: the labels are not one class for each example, or ``class_weight`` is no dict of class numbers,
                or names none of the classes in the labels.
        """
        if class_weight is None:
            return self
        from thaw.tasks import checked_class_weight, class_numbers

        weights = checked_class_weight(class_weight)
        if self.y is None or isinstance(self.y, (tuple, dict)):
            what = "There are no labels" if self.y is None else "The model has several outputs"
            raise ValueError(f"{what}; {ONE_CLASS_EACH}")
        numbers = class_numbers(self.y, expected=ONE_CLASS_EACH).tolist()
        if weights and not weights.keys() & set(numbers):
            given, there = (", ".join(map(str, sorted(classes)[:8])) for classes in (weights, set(numbers)))
            raise ValueError(f"class_weight names the classes {given}; expected some of those in the labels: {there}.")
        weight = np.array([weights.get(number, 1.0) for number in numbers], np.float32)
        if self.sample_weight is not None:
            weight = weight * np.asarray(self.sample_weight, np.float32)
        return self.replace(sample_weight=weight)

    def ordered(self, batch_size, view=None, seed=0):
        """Return a finite ``tf.data.Dataset`` of batches in the given order, augmented only where a view is named.

        Args:
            batch_size: examples in a batch.
            view: number of the augmented version (with ``views``: of the stored one). Default ``None``.
            seed: seed of the augmentation. Default 0.
        """
        import tensorflow as tf

        if view is None and batch_size in self._ordered:
            return self._ordered[batch_size]
        order = tf.data.Dataset.from_tensor_slices((np.arange(len(self)), np.full(len(self), view or 0)))
        augmented = view is not None and self.augment is not None
        batches = _without_autotuning(self._batches(order, batch_size, seed, augmented).prefetch(2))
        if view is None:
            self._ordered[batch_size] = batches
        return batches

    def inputs(self, batch_size):
        """Yield batches of inputs alone, in the given order."""
        return self._alone.ordered(batch_size)

    @functools.cached_property
    def _alone(self):
        return self.replace(y=None, sample_weight=None)

    def epochs(self, batch_size, seed, first=0, views=None):
        """Return an endless ``tf.data.Dataset`` of shuffled, augmented batches, epoch after epoch.

        Give it to ``fit`` with ``steps_per_epoch=dataset.steps(batch_size)``.

        Args:
            batch_size: examples in a batch.
            seed: the order of epoch ``e`` is a function of ``(seed, e)`` alone.
            first: number of the first epoch, to resume where a run stopped. Default 0.
            views: cycle through this many augmented versions, the same for every seed, instead of drawing new ones in
                every epoch. Default ``None``.
        """
        import tensorflow as tf

        n = len(self)

        def order(epoch):
            shuffled = tf.random.experimental.stateless_shuffle(
                tf.range(n, dtype=tf.int64), seed=tf.stack([tf.constant(seed, tf.int64), epoch])
            )
            versions = self.views or views
            view = epoch % versions if versions else epoch
            return tf.data.Dataset.from_tensor_slices((shuffled, tf.fill([n], view)))

        epochs = tf.data.Dataset.range(first, np.iinfo(np.int64).max)
        drawn = 0 if views else seed
        # Batches never straddle two epochs.
        return _without_autotuning(
            epochs.flat_map(
                _as_it_is(lambda epoch: self._batches(order(epoch), batch_size, drawn, self.augment is not None))
            ).prefetch(4)
        )

    def _batches(self, order, batch_size, seed, augmented):
        import tensorflow as tf

        batch_size = as_int("batch_size", batch_size, 1)
        parallel = {"num_parallel_calls": os.cpu_count() or 1, "deterministic": True}
        if self.load is None and not augmented:
            return order.batch(batch_size).map(_as_it_is(self._gather), **parallel)
        keys = tf.constant(self.content_keys)

        def one(i, view):
            gathered = self._gather(i, view)
            x, *rest = (gathered,) if self.y is None else gathered
            if self.load is not None:
                x = self.load(x)
            if augmented:
                fold, own = tf.random.experimental.stateless_fold_in, tf.constant(seed, tf.int64)
                drawn = fold(tf.stack([own, view]), keys[i])[0]
                turn = fold(tf.stack([own, tf.constant(-1, tf.int64)]), keys[i])[1] + view
                x = self.augment(x, tf.cast(tf.stack([drawn, turn]) % (2**31 - 1), tf.int32))
            return (x, *rest) if rest else x

        return order.map(one, **parallel).batch(batch_size, **parallel)

    def _gather(self, i, view):
        """Inputs, targets and weights at ``i``, one index or a batch of them."""
        import tensorflow as tf

        def gathered(rows, text):
            if text is not None:
                return tf.gather(text, i)
            # A view is the same for a whole batch: batches never straddle epochs.
            if self.views:
                read = lambda i, view: rows[np.ravel(view)[0], i]  # noqa: E731
            else:
                read = lambda i, view: np.asarray(rows[i])  # noqa: E731
            shape = rows.shape[2:] if self.views else rows.shape[1:]
            batch = tf.numpy_function(read, [i, view], tf.as_dtype(rows.dtype), stateful=False)
            batch.set_shape((*i.shape, *shape))
            return batch

        x = _pack(self.x, map(gathered, leaves(self.x), self._texts))
        if self.y is None:
            return x
        y = _each(lambda targets: tf.gather(targets, i), self._targets)
        return (x, y) if self.sample_weight is None else (x, y, tf.gather(self._weights, i))

    # Tables that the graph reads. Made once, and outside any graph that happens to be traced just then.

    @functools.cached_property
    def _ordered(self):
        """Data sets by batch size: tracing one takes longer than a pass over a few examples."""
        return {}

    @functools.cached_property
    def _texts(self):
        import tensorflow as tf

        with tf.init_scope():
            return [tf.constant(rows.tolist()) if rows.dtype.kind in "UO" else None for rows in leaves(self.x)]

    @functools.cached_property
    def _targets(self):
        import tensorflow as tf

        with tf.init_scope():
            return _each(lambda targets: tf.constant(np.asarray(targets)), self.y)

    @functools.cached_property
    def _weights(self):
        import tensorflow as tf

        with tf.init_scope():
            return tf.constant(np.asarray(self.sample_weight, np.float32))

    @functools.cached_property
    def content_keys(self):
        """``(n,)`` int64: the keys given, or those made from ``x``."""
        if self.keys is not None:
            return np.asarray(self.keys, np.int64)
        keys = []
        for i in range(len(self)):
            rows = (part[:, i] if self.views else part[i] for part in leaves(self.x))
            text = b"".join(map(_content, rows))
            if isinstance(self.x, dict):
                text += repr([(name, np.shape(part)[1:]) for name, part in self.x.items()]).encode()
            digest = hashlib.sha256(text).digest()
            keys.append(int.from_bytes(digest[:8], "little", signed=True))
        return np.array(keys, np.int64)


def _content(row):
    return row.encode() if isinstance(row, str) else np.ascontiguousarray(row).tobytes()


def _checked_groups(groups, n):
    """Groups as an array that can be sorted: numbers or texts without gaps."""
    groups = np.asarray(groups)
    if groups.dtype.kind == "O" and all(isinstance(value, str) for value in groups.flat):
        groups = groups.astype(str)
    if groups.dtype.kind not in "iubfU" or (groups.dtype.kind == "f" and not np.isfinite(groups).all()):
        raise ValueError(f"The groups are {groups.dtype} with gaps or objects; expected numbers or texts without gaps.")
    if groups.ndim != 1:
        raise ValueError(f"groups has shape {groups.shape}; expected ({n},), one for each example.")
    if len(groups) != n:
        raise ValueError(f"There are {len(groups)} groups for {n} examples; expected one for each.")
    return groups


def leaves(x):
    """Return the arrays of a structure of inputs or targets as a list; of ``None``, none."""
    if x is None:
        return []
    return list(x.values()) if isinstance(x, dict) else list(x) if isinstance(x, tuple) else [x]


def _pack(structure, values):
    """The same structure, with other arrays in it."""
    if isinstance(structure, dict):
        return dict(zip(structure, values))
    return tuple(values) if isinstance(structure, tuple) else next(iter(values))


def _each(function, x):
    """The same structure, with the function of every array in it."""
    return _pack(x, map(function, leaves(x)))


def _is_mapped(rows):
    """Does an array lie on the disk? It may be larger than the memory."""
    while isinstance(rows, np.ndarray):
        if isinstance(rows, np.memmap):
            return True
        rows = rows.base
    return False


def _as_it_is(function):
    """Trace a function of ours without AutoGraph, which would read its source again for each data set."""
    import tensorflow as tf

    return tf.autograph.experimental.do_not_convert(function)


def _without_autotuning(dataset):
    """Switch off tf.data's autotuning, whose thread sleeps up to a minute between two looks: whoever drops the data
    set, as ``fit`` does at its end, waits for it to wake."""
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
