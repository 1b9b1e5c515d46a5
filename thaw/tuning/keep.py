"""What is kept of examples at places in a model: which rows, under what name, and computed in which runtime."""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import math
import os
import tempfile

import numpy as np

from thaw.examples import Examples
from thaw.forward import FEW, forward, work_of
from thaw.stages import stages_of
from thaw.tuning.activation_cache import ActivationCache
from thaw.tuning.prefix_identity import prefix_identity

# Floating-point operations of a batch, 50 ms of them, below which the other runtime is not worth asking for: which one
# is faster would be a matter of chance.
SMALL = 1e9
# Bytes of inputs that are copied into memory at a time.
BLOCK = 256e6


@dataclasses.dataclass(frozen=True)
class Part:
    """Examples, and which versions of them are kept.

    Args:
        examples: the examples.
        views: how many versions, or ``None`` for each as it is.
        ids: ``(versions, n, 2)``: the example's content, and the version of it.
        named: whether these names hold beyond this run. They do not for functions without an ``identity``, which may
            do anything, nor where the content is a name of a file.
    """

    examples: Examples
    views: int | None
    ids: np.ndarray
    named: bool

    @classmethod
    def of(cls, examples, views, nonce):
        """Name every row; ``nonce`` is part of names that hold for this run only."""
        load, augment, keys = examples.load, examples.augment, examples.content_keys
        views = examples.views or (views if augment is not None else None)
        used = [f for f in (load, augment if views else None) if f is not None]
        named = all(getattr(f, "identity", None) for f in used) and (not examples.is_files or examples.keys is not None)
        text = " ".join(f.identity for f in used) if named else f"{nonce} {id(load)} {id(augment)}"
        if examples.views:
            text += " stored"
        if views:
            numbers = [_number(f"{text} {view}") for view in range(views)]
        else:
            numbers = [_number(text) if text else 0]
        ids = np.stack([np.stack([keys, np.full_like(keys, n)], axis=1) for n in numbers])
        return cls(examples, views, ids, named)

    def kept(self, shelf):
        """The examples with what is kept for inputs."""
        rows = shelf.rows(self.ids if self.views else self.ids[0])
        x = rows[0] if len(rows) == 1 else tuple(rows)
        # What is kept behind one place and what is kept behind another are not the same content.
        keys = self.examples.content_keys ^ np.int64(_number(shelf.folder.name))
        return dataclasses.replace(self.examples, x=x, load=None, augment=None, keys=keys, views=self.views)


@dataclasses.dataclass(frozen=True)
class Place:
    """A cut through a model at which something is kept.

    Args:
        tensors: in the flat model.
        identity: of everything in front of it.
        outputs: with the shapes and dtypes that these examples give.
        named: whether the identity holds beyond this run.
        about: for people.
    """

    tensors: tuple
    identity: str
    outputs: tuple
    named: bool
    about: dict

    @classmethod
    def of(cls, prefix, tensors, keep):
        """The place at which ``prefix`` ends."""
        import keras

        outputs = prefix.outputs
        if any(None in t.shape[1:] for t in outputs):  # made for inputs of any size: ask Keras, which computes nothing
            given = [keras.KerasTensor((None, *t.shape[1:]), t.dtype.name) for t in keras.tree.flatten(keep.inputs)]
            given = keras.tree.pack_sequence_as(prefix.input, given)
            outputs = keras.tree.flatten(prefix.compute_output_spec(given))
        identity = named = prefix_identity(prefix)
        if named is None:
            digest = hashlib.sha256(f"{keep.nonce} {[t.name for t in prefix.outputs]}".encode())
            for weight in prefix.weights:
                digest.update(np.ascontiguousarray(weight).tobytes())
            identity = digest.hexdigest()
        last = [layer.name for layer in prefix.layers][-1:]
        about = {"model": prefix.name, "behind": ", ".join(last)}
        with contextlib.suppress(ValueError):  # of a prefix without weights there is none
            about["stages"] = len(stages_of(prefix))
        return cls(tensors, identity, tuple(outputs), named is not None, about)


@dataclasses.dataclass(frozen=True)
class Keep:
    """What one pass computes, and how.

    Args:
        store: where it is kept.
        parts: of what examples.
        batch_size: in one batch.
        precision: float32 or float16.
        nonce: what cannot be named for good has this in its name.
        chosen: runtimes chosen before, by identity; added to.
        private: folders of shelves that no other run can use; added to.
    """

    store: ActivationCache
    parts: list
    batch_size: int
    precision: str
    nonce: str
    chosen: dict = dataclasses.field(default_factory=dict)
    private: set = dataclasses.field(default_factory=set)

    def runtime(self, prefix, places):
        """The runtime of the prefix: chosen once by measuring, then the same on this machine for good.

        Another runtime gives other last bits, and a choice by measured time may fall one way today and the other
        way tomorrow. What has no name for good stays in TensorFlow.
        """
        total = sum(these.ids.shape[0] * these.ids.shape[1] for these in self.parts)
        if total < FEW or self.batch_size * work_of(prefix) < SMALL or not all(place.named for place in places):
            return forward(prefix, self.batch_size, runtime="tensorflow")
        name = self.chosen.get(places[0].identity) or self._note(places[0], None)
        run = None
        if name is None:
            # Of how many there are now nothing is said: the choice stands when there will be more.
            run = forward(prefix, self.batch_size)
            run(next(iter(self.parts[0].examples.ordered(self.batch_size)))[0])
            self.store.notes += [run.note] if run.note else []
            name = self._note(places[0], run.name)
        for place in places:
            self.chosen[place.identity] = self._note(place, name) if place is not places[0] else name
        return run if run is not None and run.name == name else self.forward(prefix, name)

    def forward(self, model, name):
        """The forward of a model in a runtime that was chosen for it or for a part of it."""
        try:
            return _Preferred(model, self.batch_size, forward(model, self.batch_size, runtime=name), self.store.notes)
        except ImportError:  # OpenVINO was there then, and is not now
            return forward(model, self.batch_size, runtime="tensorflow")

    def _note(self, place, name):
        """What is noted beside the shelves about a place; ``name`` is noted where there is nothing yet."""
        file = self.store.folder / f"{hashlib.sha256(f'{place.identity} {_machine()}'.encode()).hexdigest()}.runtime"
        if name is not None and not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            handle, beside = tempfile.mkstemp(dir=file.parent, suffix=".part")
            with os.fdopen(handle, "w", encoding="utf-8") as opened:
                opened.write(name)
            with contextlib.suppress(FileExistsError):  # another process was faster: what it chose holds
                os.link(beside, file)
            os.unlink(beside)
        try:
            found = file.read_text(encoding="utf-8")
        except FileNotFoundError:
            return name
        return found if found in ("tensorflow", "openvino") else name

    @functools.cached_property
    def inputs(self):
        """What one batch of inputs looks like."""
        return self.parts[0].examples.ordered(self.batch_size).element_spec[0]

    def shelf(self, place, runtime):
        """Where the activations at a place are kept."""
        import keras

        inputs = [(t.dtype.name, tuple(t.shape[1:])) for t in keras.tree.flatten(self.inputs)]
        named = place.named and all(these.named for these in self.parts)
        key = f"{place.identity} {inputs} {self.precision} {runtime} {self.batch_size} {_machine()}"
        key = hashlib.sha256(f"{key} {'' if named else self.nonce}".encode()).hexdigest()
        tensors = [(tuple(t.shape[1:]), self._dtype(t.dtype)) for t in place.outputs]
        about = place.about | {"runtime": runtime, "precision": self.precision, "tensors": [str(t) for t in tensors]}
        shelf = self.store.shelf(key, about, tensors)
        if not named:
            self.private.add(shelf.folder)
        return shelf

    def missing_bytes(self, shelf):
        """Room that what is not kept yet will take."""
        row = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in shelf.tensors)
        return row * sum(int(shelf.missing(ids).sum()) for these in self.parts for ids in these.ids)

    def fill(self, run, shelves, earlier, progress):
        """Compute what one of the shelves lacks.

        Args:
            run: gives the tensors of all shelves, one shelf after the other.
            shelves: what is to be kept.
            earlier: a shelf to begin from, or ``None`` to begin from the examples.
            progress: called with (done, total), or ``None``.
        """
        work = []
        for these in self.parts:
            for view, ids in enumerate(these.ids):
                lacks = np.stack([shelf.missing(ids) for shelf in shelves])
                rows = np.flatnonzero(lacks.any(axis=0))
                if len(rows):
                    work.append((these, view if these.views else None, ids[rows], lacks[:, rows], rows))
        done, total = 0, sum(-(-len(rows) // self.batch_size) for *_, rows in work)
        ends = np.cumsum([len(shelf.tensors) for shelf in shelves])
        with contextlib.ExitStack() as stack:
            counts = sum((lacks.sum(axis=1) for _, _, _, lacks, _ in work), np.zeros(len(shelves), int))
            writers = [stack.enter_context(s.writer(int(n))) for s, n in zip(shelves, counts)]
            for these, view, ids, lacks, rows in work:
                begin = 0
                for x, *_ in self._batches(these, view, ids, rows, earlier):
                    out = [self._cast(a) for a in run(x)]
                    here = slice(begin, begin + len(out[0]))
                    for writer, wanted, end, shelf in zip(writers, lacks[:, here], ends, shelves):
                        if wanted.any():
                            writer.add(ids[here][wanted], [a[wanted] for a in out[end - len(shelf.tensors) : end]])
                    begin, done = here.stop, done + 1
                    if progress:
                        progress(done, total)

    def _batches(self, these, view, ids, rows, earlier):
        if earlier is not None:
            kept = earlier.rows(ids)
            x = kept[0] if len(kept) == 1 else tuple(kept)
            yield from Examples(x=x, y=np.zeros(len(ids))).ordered(self.batch_size)
            return
        # In blocks: of an array or memory map a part is taken as a copy.
        row = max(1, these.examples.row_bytes)
        block = self.batch_size * max(1, int(BLOCK / row / self.batch_size))
        for begin in range(0, len(rows), block):
            yield from these.examples.take(rows[begin : begin + block]).ordered(self.batch_size, view=view)

    def _dtype(self, dtype):
        if self.precision == "float16" and "float" in dtype:
            return "float16"
        return "float32" if dtype == "bfloat16" else dtype  # NumPy has no bfloat16

    def _cast(self, array):
        with np.errstate(over="ignore"):
            kept = array.astype(self._dtype(array.dtype.name), copy=False)
        if kept.dtype == np.float16 and not np.isfinite(kept).all() and np.isfinite(array.astype("float32")).all():
            raise ValueError(
                f"Activations reach {np.abs(array).max():.3g}, and half precision ends at 65504; "
                'use precision = "float32".'
            )
        return kept


class _Preferred:
    """A forward in the runtime that was chosen; in TensorFlow, and said so, where that cannot do this model."""

    def __init__(self, model, batch_size, run, notes):
        self.name, self._model, self._batch_size, self._run, self._notes = run.name, model, batch_size, run, notes

    def __call__(self, x):
        try:
            return self._run(x)
        except ValueError as error:
            if self._run.name == "tensorflow":
                raise
            self._notes.append(f"TensorFlow is used: {error}")
            self._run = forward(self._model, self._batch_size, runtime="tensorflow")
            return self._run(x)


@functools.cache
def _machine():
    """What the last bits depend on beside the model: versions, and whether there is a GPU."""
    import tensorflow as tf

    versions = [f"tensorflow {tf.__version__}"]
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        versions.append(f"openvino {importlib.metadata.version('openvino')}")
    return " ".join([*versions, "gpu" if tf.config.get_visible_devices("GPU") else "cpu"])


def _number(text):
    """63 bits, and never 0, which is an example as it is."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1 or 1
