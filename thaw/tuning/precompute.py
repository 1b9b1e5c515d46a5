"""Run what stands still once, and keep what it says about every example."""

import contextlib
import dataclasses
import functools
import hashlib
import math
import os
import tempfile

import numpy as np

from thaw.examples import Examples
from thaw.forward import FEW, forward, operations_in
from thaw.plan import PRECISIONS
from thaw.tuning.activation_cache import ActivationCache
from thaw.tuning.flatten import CannotSplit
from thaw.tuning.part import covers, part
from thaw.tuning.prefix_identity import prefix_identity

# Floating-point operations of a batch, 50 ms of them, below which the other runtime is not worth asking for: which one
# is faster would be a matter of chance.
SMALL = 1e9
CALLED = {"tensorflow": "TensorFlow", "openvino": "OpenVINO"}


def precompute(prefix, examples, *, cache=None, batch_size=32, views=None, precision="float32", progress=None):
    """Run ``prefix`` once over the examples and keep its output on disk, where it is read by memory map.

    What is kept is found again by its content: by each example, how it is loaded and augmented, and by the layers
    and weights of the prefix, the precision, the runtime and the batch size. Only what is missing is computed.

    In TensorFlow on a CPU the output of one picture has the same bits wherever it stands in a batch of the
    same size; run the prefix at the batch size of the training, and training on what was kept gives what
    training through the prefix would have given. In OpenVINO (see :func:`thaw.forward`) it is the same within
    float32 rounding.

    Args:
        prefix: from :func:`thaw.split`; run as in inference.
        examples: what goes in.
        cache: folder of what is kept. Default: ``activations`` in ``$THAW_CACHE``, else in ``~/.cache/thaw``.
        batch_size: of the training that follows.
        views: keep this many augmented versions of each example, one for each epoch in turn; ``None`` for
            the example as it is.
        precision: ``"float32"``, or ``"float16"`` for half the disk.
        progress: called with (done, total) after each batch.

    Returns:
        :class:`thaw.Examples` with the prefix's output for ``x``.

    Raises:
        OSError: the disk is full, or the cache is too small.
        ValueError: an unknown precision, or numbers too large for half precision.

    Example:
        >>> import keras, numpy as np
        >>> from thaw import Examples, precompute
        >>> double = keras.Sequential([keras.Input((1,)), keras.layers.Rescaling(2.0)])
        >>> examples = Examples(x=np.array([[1.0], [2.0]], "float32"), y=np.array([0, 1]))
        >>> np.asarray(precompute(double, examples).x).tolist()
        [[2.0], [4.0]]
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; expected one of {', '.join(PRECISIONS)}.")
    these = _Part.of(examples, views)
    keep = _Keep(ActivationCache(cache), [these], batch_size, precision)
    place = _Place.of(prefix, (), keep.inputs)
    run = keep.runtime(prefix, [place])
    shelf = keep.shelf(place, run.name)
    keep.fill(run, [shelf], None, progress)
    return these.kept(shelf)


def precompute_phase(cuts, plan, data, run):
    """What one phase trains, and its data behind what stands still.

    One pass computes what the phase needs and what later phases that move more will need. Where an earlier place
    in the model is kept already, the computation begins there.

    Args:
        cuts: where the model is cut, in each phase and at each stage.
        plan: the :class:`thaw.Plan`.
        data: ``(train, validation)``.
        run: which phase it is, at what batch size, and whom to tell.

    Returns:
        ``(suffix, train, validation)``.

    Raises:
        CannotSplit: the whole model is to be computed in every epoch; says why.
    """
    index, (train, validation) = run.log["phase"], data
    phase, cut, flat = plan[index], cuts.by_phase[index], cuts.flat
    if isinstance(cut, str):
        raise CannotSplit(cut)
    if not isinstance(train, Examples) or not isinstance(validation, Examples | None):
        raise CannotSplit("a data set is read in its own order only, and nothing can be kept of it")
    if not phase.views and train.augment is not None:
        raise CannotSplit("its examples are augmented anew in every epoch (views = 0)")
    parts = [_Part.of(train, phase.views)] + ([] if validation is None else [_Part.of(validation, None)])
    store = ActivationCache()
    keep = _Keep(store, parts, run.batch_size, phase.precision)
    places = [_Place.of(part(flat, None, t), t, keep.inputs) for t in _nested(flat, cuts.by_phase, plan, index)]
    runtime = keep.runtime(part(flat, None, cut), places)
    shelves = [keep.shelf(place, runtime.name) for place in places]
    need = keep.missing_bytes(shelves[0])
    if need:
        room = store.room()
        if need > room:
            raise CannotSplit(
                f"{need / 1e9:.1f} GB of activations do not fit into the {max(room, 0) / 1e9:.1f} GB that the cache "
                "may take"
            )
        chosen = [0]  # what later phases need comes along where there is room
        for i in range(1, len(shelves)):
            need += keep.missing_bytes(shelves[i])
            if need <= 0.8 * room:
                chosen.append(i)
        begin, kept = _earlier(cuts, keep, places[chosen[-1]], runtime.name)
        ends = tuple(tensor for i in chosen for tensor in places[i].tensors)
        if begin is not None or len(chosen) > 1:
            runtime = forward(part(flat, begin, ends), run.batch_size, runtime=runtime.name)
        tell = functools.partial(run.tell, "on_precompute")
        try:
            keep.fill(runtime, [shelves[i] for i in chosen], kept, tell)
        except OSError as error:  # another process has filled the disk meanwhile
            raise CannotSplit(error.strerror or str(error)) from error
    seen = f"{parts[0].views} fixed versions of each example" if parts[0].views else "each example as it is"
    note = f'Phase "{phase.name}": what stands still was computed once, in {CALLED[runtime.name]}, for {seen}.'
    found = [these.kept(shelves[0]) for these in parts]
    run.log["notes"] += [s for s in (note, *store.notes) if s not in run.log["notes"]]
    return part(flat, cut, None), found[0], found[1] if validation is not None else None


@dataclasses.dataclass(frozen=True)
class _Place:
    """A cut through a model at which something is kept."""

    tensors: tuple  # in the flat model
    identity: str  # of everything in front of it
    outputs: tuple  # with the shapes and dtypes that these examples give

    @classmethod
    def of(cls, prefix, tensors, inputs):
        import keras

        outputs = prefix.outputs
        if any(None in t.shape[1:] for t in outputs):  # made for inputs of any size: ask Keras, which computes nothing
            given = [keras.KerasTensor((None, *t.shape[1:]), t.dtype.name) for t in keras.tree.flatten(inputs)]
            given = keras.tree.pack_sequence_as(prefix.input, given)
            outputs = keras.tree.flatten(prefix.compute_output_spec(given))
        return cls(tensors, prefix_identity(prefix), tuple(outputs))


@dataclasses.dataclass(frozen=True)
class _Part:
    """Examples, and which versions of them are kept."""

    examples: Examples
    views: int | None
    ids: np.ndarray  # (versions, n, 2): the example's content, and the version of it

    @classmethod
    def of(cls, examples, views):
        views = views if examples.augment is not None else None
        keys, load = examples.content_keys, _named(examples, "load")
        numbers = [_number(load)] if load else [0]
        if views:
            augment = _named(examples, "augment")
            numbers = [_number(f"{load} {augment} {view}") for view in range(views)]
        return cls(examples, views, np.stack([np.stack([keys, np.full_like(keys, n)], axis=1) for n in numbers]))

    def kept(self, shelf):
        rows = shelf.rows(self.ids if self.views else self.ids[0])
        x = rows[0] if len(rows) == 1 else tuple(rows)
        own = {"load": None, "augment": None, "keys": self.examples.content_keys, "views": self.views}
        return dataclasses.replace(self.examples, x=x, **own)


@dataclasses.dataclass(frozen=True)
class _Keep:
    """What one pass computes, and how."""

    store: ActivationCache
    parts: list
    batch_size: int
    precision: str

    def runtime(self, prefix, places):
        """The runtime of the prefix: chosen once by measuring, then the same on this machine for good.

        Another runtime gives other last bits, and a choice by measured time may fall one way today and the other
        way tomorrow.
        """
        total = sum(these.ids.shape[0] * these.ids.shape[1] for these in self.parts)
        note = self.store.folder / f"{places[0].identity}.runtime"
        if total < FEW or self.batch_size * operations_in(prefix) < SMALL:
            return forward(prefix, self.batch_size, runtime="tensorflow")
        if note.exists():
            with contextlib.suppress(ImportError, ValueError):  # OpenVINO was there then, and is not now
                return forward(prefix, self.batch_size, runtime=note.read_text(encoding="utf-8"))
        # Of how many there are now nothing is said: the choice stands when there will be more.
        run = forward(prefix, self.batch_size)
        run(next(iter(self.parts[0].examples.ordered(self.batch_size)))[0])
        for place in places:
            _write(self.store.folder / f"{place.identity}.runtime", run.name)
        self.store.notes += [run.note] if run.note else []
        return run

    @functools.cached_property
    def inputs(self):
        """What one batch of inputs looks like."""
        return self.parts[0].examples.ordered(self.batch_size).element_spec[0]

    def shelf(self, place, runtime):
        """Where the activations at a place are kept."""
        import keras

        inputs = [(t.dtype.name, tuple(t.shape[1:])) for t in keras.tree.flatten(self.inputs)]
        key = f"{place.identity} {inputs} {self.precision} {runtime} {self.batch_size}"
        tensors = [(tuple(t.shape[1:]), self._dtype(t.dtype)) for t in place.outputs]
        about = {"runtime": runtime, "precision": self.precision, "tensors": [str(t) for t in tensors]}
        return self.store.shelf(hashlib.sha256(key.encode()).hexdigest(), about, tensors)

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
        if earlier is None:
            return these.examples.take(rows).ordered(self.batch_size, view=view)
        kept = earlier.rows(ids)
        x = kept[0] if len(kept) == 1 else tuple(kept)
        return Examples(x=x, y=np.zeros(len(ids))).ordered(self.batch_size)

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


def _nested(flat, cuts, plan, index):
    """The cut of a phase, and those of the phases after it that each lie in front of the one before."""
    found = [cuts[index]]
    for phase, cut in zip(plan[index + 1 :], cuts[index + 1 :]):
        # With fewer versions later, more would be kept than is needed.
        fits = phase.views >= plan[index].views and phase.precision == plan[index].precision
        if not fits or isinstance(cut, str) or not covers(flat, cut, found[-1]):
            break
        if [id(t) for t in cut] != [id(t) for t in found[-1]]:
            found.append(cut)
    return found


def _earlier(cuts, keep, last, runtime):
    """The nearest place in front of the last one at which everything is kept: its tensors and its shelf."""
    for tensors in cuts.by_stage:
        if {id(t) for t in tensors} != {id(t) for t in last.tensors} and covers(cuts.flat, tensors, last.tensors):
            place = _Place.of(part(cuts.flat, None, tensors), tensors, keep.inputs)
            shelf = keep.shelf(place, runtime)
            if not keep.missing_bytes(shelf):
                return tensors, shelf
    return None, None


def _named(examples, what):
    """A name for how examples are loaded or augmented: the function's own, or one from what it does to a few."""
    function = getattr(examples, what)
    if function is None:
        return ""
    if identity := getattr(function, "identity", None):
        return str(identity)
    import keras

    few = examples.take(np.argsort(examples.content_keys, kind="stable")[:4])
    digest = hashlib.sha256()
    for view in (None,) if what == "load" else range(3):
        for x, *_ in few.ordered(4, view=view):
            for array in keras.tree.flatten(x):
                digest.update(np.asarray(array).tobytes())
    return digest.hexdigest()


def _number(text):
    """63 bits, and never 0, which is an example as it is."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1 or 1


def _write(file, text):
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=file.parent, suffix=".part")
    with os.fdopen(handle, "w", encoding="utf-8") as opened:
        opened.write(text)
    os.replace(beside, file)
