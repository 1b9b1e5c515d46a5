"""Examples: what a model is tuned and measured on, in an order that can be computed anew."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable

import numpy as np

from thaw.number import whole_number


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Examples:
    """Inputs and labels with random access, so that any epoch's order is a pure function of the seed.

    A ``tf.data.Dataset`` can only be read from its beginning. To resume a run to the bit, and to keep
    what the standing part of a model computed for every example, the order must be known without
    reading: it is here a function of (seed, epoch), and the augmentation of (seed, epoch, example).

    Args:
        x: inputs, ``(n, ...)``, an array or anything with its shape, dtype and indexing, such as a memory map;
            or ``(n,)`` strings for ``load``; or ``(views, n, ...)`` with ``views``; or a tuple or dict of
            these for a model with several inputs.
        y: labels, ``(n,)`` class numbers, or ``(n, ...)`` targets.
        weight: ``(n,)`` weights in the loss, or ``None``.
        load: TensorFlow function from one element of ``x`` to one input of fixed shape.
        augment: TensorFlow function from (one input, seed of shape ``(2,)``) to one input. Pure. The seed's first
            number is drawn anew for each version of an example, its second counts the versions up. Where
            ``load`` or ``augment`` has an attribute ``identity``, a string that names all that it depends on,
            what is kept of the examples serves other data of the same kind too.
        keys: ``(n,)`` int64, one per example, made from its content; the augmentation follows the key, so
            that it stays with a picture when others are added.
        views: when given, ``x`` holds this many versions of each example and epoch ``e`` reads version
            ``e % views``.

    Raises:
        ValueError: the arrays do not belong together.

    Example:
        >>> import numpy as np
        >>> from thaw.examples import Examples
        >>> examples = Examples(x=np.arange(6.0).reshape(3, 2), y=np.array([0, 1, 0]))
        >>> len(examples), examples.steps(2)
        (3, 2)
        >>> [y.numpy().tolist() for x, y in examples.ordered(2)]
        [[0, 1], [0]]
    """

    x: np.ndarray | tuple | dict
    y: np.ndarray
    weight: np.ndarray | None = None
    load: Callable | None = None
    augment: Callable | None = None
    keys: np.ndarray | None = None
    views: int | None = None

    def __post_init__(self):
        n = len(self.y)
        if n == 0:
            raise ValueError("There are no examples; expected at least one.")
        for part in _leaves(self.x):
            rows = part.shape[1] if self.views else len(part)
            if rows != n:
                raise ValueError(f"There are {rows} inputs and {n} labels; expected one label for each input.")
            if self.views and part.shape[0] != self.views:
                raise ValueError(f"x holds {part.shape[0]} versions, but views={self.views}.")
        for name in ("weight", "keys"):
            value = getattr(self, name)
            if value is not None and len(value) != n:
                raise ValueError(f"There are {n} examples and {len(value)} {name}; expected one for each.")

    @classmethod
    def of(cls, data):
        """What a user gives: arrays as for ``fit`` become examples; anything but these comes back as it is.

        Args:
            data: ``(x, y)`` or ``(x, y, weight)``, with a dict, a tuple or a list of arrays for ``x`` where the model
                has several inputs; or examples; or a data set.

        Raises:
            ValueError: another number of arrays, arrays that do not belong together, or inputs or weights that hold
                NaN or infinity; a memory map is not read for that.

        Example:
            >>> import numpy as np
            >>> from thaw.examples import Examples
            >>> len(Examples.of((np.zeros((3, 2)), [0, 1, 0])))
            3
        """
        if isinstance(data, (tuple, list)):
            data = cls._of_arrays(data)
        if isinstance(data, cls):
            data._refuse_broken()
        return data

    @classmethod
    def _of_arrays(cls, data):
        if len(data) not in (2, 3):
            raise ValueError(f"The data are {len(data)} arrays; expected (x, y).")
        x, y, *weight = data
        if isinstance(x, list) and x and all(isinstance(rows, np.ndarray) for rows in x):
            x = tuple(x)  # several inputs
        n = {len(rows) for rows in _leaves(x)}
        several = isinstance(y, (list, tuple)) and {len(y)} != n and {np.shape(part)[:1] for part in y} == {(*n,)}
        if isinstance(y, dict) or several:
            kind = "dict" if isinstance(y, dict) else f"{type(y).__name__} of {len(y)} arrays"
            raise ValueError(
                f"The labels are a {kind}; expected one array. For several outputs give a batched data set."
            )
        if np.ndim(y) == 0:
            raise ValueError(f"The labels are {y!r}; expected one for each input.")
        return cls(x=_each(np.asarray, x), y=np.asarray(y), weight=np.asarray(weight[0]) if weight else None)

    def _refuse_broken(self):
        """A ReLU or a cast may make good numbers of NaN, so that nobody would notice."""
        if self.weight is not None and np.asarray(self.weight).dtype.kind not in "iufb":
            raise ValueError(f"The weights are {np.asarray(self.weight).dtype}; expected numbers.")
        axis = 1 if self.views else 0
        for what, rows, axis in (*(("inputs", part, axis) for part in _leaves(self.x)), ("weights", self.weight, 0)):
            if not isinstance(rows, np.ndarray) or rows.dtype.kind != "f" or _is_mapped(rows):
                continue
            with np.errstate(over="ignore", invalid="ignore"):
                if np.isfinite(rows.sum(dtype=np.float32 if rows.itemsize < 4 else None)):
                    continue
            others = tuple(i for i in range(rows.ndim) if i != axis)
            wrong = np.flatnonzero(~np.isfinite(rows).all(axis=others))
            if len(wrong):
                raise ValueError(
                    f"{len(wrong)} of {len(self)} {what} hold NaN or infinity, the first of them that at {wrong[0]}; "
                    "expected finite numbers. Leave these examples out, or fill the gaps."
                )

    def __len__(self):
        return len(self.y)

    @property
    def is_files(self):
        """Whether the inputs are names, of files as a rule, and not the content itself."""
        return any(part.dtype.kind in "UO" for part in _leaves(self.x))

    @property
    def row_bytes(self):
        """Bytes of one example's inputs as they are stored; of names of files, none to speak of."""
        return sum(int(part.dtype.itemsize * np.prod(part.shape[2 if self.views else 1 :])) for part in _leaves(self.x))

    def steps(self, batch_size):
        """Number of batches in one epoch; the last one may be smaller."""
        return -(-len(self) // whole_number("batch_size", batch_size, 1))

    def take(self, indices):
        """The examples at ``indices``, in that order."""
        part = {
            name: None if value is None else value[indices]
            for name in ("y", "weight", "keys")
            for value in [getattr(self, name)]
        }
        x = _each(lambda rows: rows[:, indices] if self.views else rows[indices], self.x)
        return dataclasses.replace(self, x=x, **part)

    def weighted(self, class_weight):
        """The same examples, each counting in the loss by the weight of its class, times its own if it has one.

        Args:
            class_weight: class number to weight, as ``fit`` takes it, or ``None`` for no change.
        """
        if class_weight is None:
            return self
        weight = np.array([class_weight[c] for c in np.asarray(self.y).tolist()], np.float32)
        if self.weight is not None:
            weight = weight * np.asarray(self.weight, np.float32)
        return dataclasses.replace(self, weight=weight)

    def ordered(self, batch_size, view=None, seed=0):
        """A finite ``tf.data.Dataset`` of batches in the given order, not augmented unless a view is named.

        Args:
            batch_size: examples in a batch.
            view: number of the augmented version (with ``views``: of the stored one), or ``None``.
            seed: seed of the augmentation.
        """
        import tensorflow as tf

        order = tf.data.Dataset.range(len(self)).map(lambda i: (i, tf.constant(view or 0, tf.int64)))
        augmented = view is not None and self.augment is not None
        return _steady(self._batches(order, batch_size, seed, augmented).prefetch(2))

    def epochs(self, batch_size, seed, first=0, views=None):
        """An endless ``tf.data.Dataset`` of shuffled, augmented batches, epoch after epoch.

        Give it to ``fit`` with ``steps_per_epoch=examples.steps(batch_size)``.

        Args:
            batch_size: examples in a batch.
            seed: the order of epoch ``e`` is a function of ``(seed, e)`` alone.
            first: number of the first epoch, to go on where a run stopped.
            views: repeat this many augmented versions in turn, the same for every seed, instead of drawing new
                ones for ever.
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
        return _steady(
            epochs.flat_map(
                lambda epoch: self._batches(order(epoch), batch_size, drawn, self.augment is not None)
            ).prefetch(4)
        )

    def _batches(self, order, batch_size, seed, augmented):
        import tensorflow as tf

        batch_size = whole_number("batch_size", batch_size, 1)
        parallel = {"num_parallel_calls": os.cpu_count() or 1, "deterministic": True}
        if self.load is None and not augmented:
            return order.batch(batch_size).map(self._gather, **parallel)
        keys = tf.constant(self.content_keys)

        def one(i, view):
            x, *rest = self._gather(i, view)
            if self.load is not None:
                x = self.load(x)
            if augmented:
                fold, own = tf.random.experimental.stateless_fold_in, tf.constant(seed, tf.int64)
                drawn = fold(tf.stack([own, view]), keys[i])[0]
                turn = fold(tf.stack([own, tf.constant(-1, tf.int64)]), keys[i])[1] + view
                x = self.augment(x, tf.cast(tf.stack([drawn, turn]) % (2**31 - 1), tf.int32))
            return x, *rest

        return order.map(one, **parallel).batch(batch_size, **parallel)

    def _gather(self, i, view):
        """Inputs, labels and weights at ``i``, one index or a batch of them."""
        import tensorflow as tf

        def gathered(rows):
            if rows.dtype.kind in "UO":
                return tf.gather(self._paths, i)
            # A view is the same for a whole batch: batches never straddle epochs.
            if self.views:
                read = lambda i, view: rows[np.ravel(view)[0], i]  # noqa: E731
            else:
                read = lambda i, view: np.asarray(rows[i])  # noqa: E731
            shape = rows.shape[2:] if self.views else rows.shape[1:]
            found = tf.numpy_function(read, [i, view], tf.as_dtype(rows.dtype), stateful=False)
            found.set_shape((*i.shape, *shape))
            return found

        x = _each(gathered, self.x)
        y = tf.gather(self._labels, i)
        return (x, y) if self.weight is None else (x, y, tf.gather(self._weights, i))

    # Tables that the graph reads. Made once, and outside any graph that happens to be traced just then.

    @functools.cached_property
    def _paths(self):
        import tensorflow as tf

        with tf.init_scope():
            return tf.constant(self.x.tolist())

    @functools.cached_property
    def _labels(self):
        import tensorflow as tf

        with tf.init_scope():
            return tf.constant(np.asarray(self.y))

    @functools.cached_property
    def _weights(self):
        import tensorflow as tf

        with tf.init_scope():
            return tf.constant(np.asarray(self.weight, np.float32))

    @functools.cached_property
    def content_keys(self):
        """``(n,)`` int64: the keys given, or those made from ``x``."""
        if self.keys is not None:
            return np.asarray(self.keys, np.int64)
        keys = []
        for i in range(len(self)):
            rows = (part[:, i] if self.views else part[i] for part in _leaves(self.x))
            text = b"".join(map(_content, rows))
            if isinstance(self.x, dict):
                text += repr([(name, np.shape(part)[1:]) for name, part in self.x.items()]).encode()
            digest = hashlib.sha256(text).digest()
            keys.append(int.from_bytes(digest[:8], "little", signed=True))
        return np.array(keys, np.int64)


def _content(row):
    return row.encode() if isinstance(row, str) else np.ascontiguousarray(row).tobytes()


def _leaves(x):
    return list(x.values()) if isinstance(x, dict) else list(x) if isinstance(x, tuple) else [x]


def _is_mapped(rows):
    """Does an array lie on the disk? It may be larger than the memory."""
    while isinstance(rows, np.ndarray):
        if isinstance(rows, np.memmap):
            return True
        rows = rows.base
    return False


def _each(function, x):
    """The same structure, with the function of every array in it."""
    if isinstance(x, dict):
        return {name: function(part) for name, part in x.items()}
    return tuple(map(function, x)) if isinstance(x, tuple) else function(x)


def _steady(dataset):
    """The same data set without tf.data's tuning of itself, whose thread sleeps up to a minute between two looks: who
    drops the data set, as ``fit`` does at its end, waits for it to wake."""
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
