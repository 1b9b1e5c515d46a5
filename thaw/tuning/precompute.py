"""Run what stands still once, and keep what it says about every example."""

import functools
import secrets

from thaw.examples import Examples
from thaw.plan import PRECISIONS
from thaw.tuning.activation_cache import ActivationCache
from thaw.tuning.flatten import CannotSplit
from thaw.tuning.keep import Keep, Part, Place
from thaw.tuning.part import covers, part
from thaw.tuning.split import augments, is_random

CALLED = {"tensorflow": "TensorFlow", "openvino": "OpenVINO"}


def precompute(prefix, examples, *, cache=None, batch_size=32, views=None, precision="float32", progress=None):
    """Run ``prefix`` once over the examples and keep its output on disk, where it is read by memory map.

    What is kept is found again by its content: by each example, how it is loaded and augmented, and by the layers
    and weights of the prefix, the precision, the runtime, its version and the batch size. Only what is missing is
    computed. Where this cannot be named for certain (layers or functions of the user's own, files without ``keys``)
    all is computed anew: give ``load`` and ``augment`` an ``identity``, and ``keys`` made from the files' content.

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
        ValueError: no examples with random access, an unknown precision, or numbers too large for half precision.

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
    if not isinstance(examples, Examples):
        raise ValueError(
            f"The examples are a {type(examples).__name__}; expected thaw.Examples, whose rows can be found again: "
            "Examples(x=x, y=y)."
        )
    nonce = secrets.token_hex(16)
    these = Part.of(examples, views, nonce)
    keep = Keep(ActivationCache(cache), [these], batch_size, precision, nonce)
    place = Place.of(prefix, (), keep)
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
    prefix = part(flat, None, cut)
    if random := [layer.name for layer in prefix.layers if augments(layer)]:
        raise CannotSplit(
            f"{', '.join(random)} augments at random inside the model; augmentation in the data (thaw.augment) can be "
            "kept"
        )
    parts = [Part.of(train, phase.versions, cuts.nonce)]
    parts += [] if validation is None else [Part.of(validation, None, cuts.nonce)]
    store = ActivationCache()
    keep = Keep(store, parts, run.batch_size, phase.precision, cuts.nonce, run.log["runtime"], cuts.private)
    later = _nested(flat, cuts.by_phase, plan, index)[1:]
    places = [Place.of(prefix, cut, keep), *(Place.of(part(flat, None, t), t, keep) for t in later)]
    runtime = keep.runtime(prefix, places)
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
            runtime = keep.forward(part(flat, begin, ends), runtime.name)
        tell = functools.partial(run.tell, "on_precompute")
        try:
            keep.fill(runtime, [shelves[i] for i in chosen], kept, tell)
        except OSError as error:  # another process has filled the disk meanwhile
            raise CannotSplit(error.strerror or str(error)) from error
    seen = f"{parts[0].views} fixed versions of each example" if parts[0].views else "each example as it is"
    note = f'Phase "{phase.name}": what stands still was computed once, in {CALLED[runtime.name]}, for {seen}.'
    found = [these.kept(shelves[0]) for these in parts]
    notes = [note, *store.notes]
    if random := [layer.name for layer in prefix.layers if is_random(layer)]:
        notes.append(f'Phase "{phase.name}": {", ".join(random)} stand still too: what they do at random is off.')
    run.log["notes"] += [sentence for sentence in notes if sentence not in run.log["notes"]]
    return part(flat, cut, None), found[0], found[1] if validation is not None else None


def _nested(flat, cuts, plan, index):
    """The cut of a phase, and those of the phases after it that each lie in front of the one before."""
    found = [cuts[index]]
    for phase, cut in zip(plan[index + 1 :], cuts[index + 1 :]):
        # With fewer versions later, more would be kept than is needed.
        fits = phase.versions >= plan[index].versions and phase.precision == plan[index].precision
        if not fits or isinstance(cut, str) or not covers(flat, cut, found[-1]):
            break
        if [id(t) for t in cut] != [id(t) for t in found[-1]]:
            found.append(cut)
    return found


def _earlier(cuts, keep, last, runtime):
    """The nearest place in front of the last one at which everything is kept: its tensors and its shelf.

    In half precision there is none: what was rounded there would not give the same bits here.
    """
    for tensors in cuts.by_stage if keep.precision == "float32" else ():
        if {id(t) for t in tensors} != {id(t) for t in last.tensors} and covers(cuts.flat, tensors, last.tensors):
            place = Place.of(part(cuts.flat, None, tensors), tensors, keep)
            shelf = keep.shelf(place, runtime)
            if not keep.missing_bytes(shelf):
                return tensors, shelf
    return None, None
