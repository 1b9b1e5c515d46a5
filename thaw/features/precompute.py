"""Run the frozen prefix of a model once and cache its features."""

from __future__ import annotations

import dataclasses
import secrets
import shutil
import types
import warnings
from collections.abc import Mapping
from typing import Any

from thaw.data.conversion import as_dataset
from thaw.data.dataset import Dataset
from thaw.features.extraction import RUNTIME_NAMES, FeatureExtraction, RowKeys
from thaw.features.inference import INT8
from thaw.features.split import CannotSplit, augments, covers, is_random, submodel
from thaw.features.store import FeatureCache
from thaw.models.state import stateful_layers
from thaw.plan import CACHE_DTYPES

MAX_SHARE_FOR_LATER_PHASES = 0.8  # of the room in the cache


def precompute(
    prefix,
    x,
    y=None,
    *,
    sample_weight=None,
    cache_dir=None,
    batch_size=32,
    views=None,
    cache_dtype="float32",
    runtime="auto",
    progress=None,
):
    """Run a prefix once over the examples and cache its output on disk, from where it is read by memory map.

    Cached features are found again by content: each example, how it is loaded and augmented, and the layers and weights
    of the prefix, the dtype of the cache, the runtime, its version and the batch size. Only what is missing is
    computed. Where this content is unknown (layers or functions of the user's own, files without ``keys``) everything
    is computed again: give ``load`` and ``augment`` an ``identity``, and the dataset ``keys`` made from the content of
    the files.

    Training on the cached features gives the weights that training through the prefix would give, within float32
    rounding. In TensorFlow, with the batch size of the training, they are the same bits where a kernel does not depend
    on the position of an example in its batch: on some CPUs it does, in the last bit. In OpenVINO
    (:func:`thaw.features.inference.inference_runner`) the features are equal within float32 rounding. In int8 they are
    not: of 1,000 decisions of a readout some 50 may differ, and where more than 100 do, float32 is used. What was
    calibrated is kept in the cache for any data that the same prefix will compute; a warning says how it was judged on
    these.

    Args:
        prefix: a ``keras.Model``, as from :func:`thaw.split_model`; run in inference.
        x: inputs, as :func:`thaw.as_dataset` takes them, or a :class:`thaw.Dataset`.
        y: targets. Default ``None``.
        sample_weight: ``(n,)`` weights. Default ``None``.
        cache_dir: the cache folder. Default: ``$THAW_CACHE``, else ``$XDG_CACHE_HOME/thaw``, else ``~/.cache/thaw``.
        batch_size: batch size of the training that follows. Default 32.
        views: number of augmented versions of each example to cache, one for each epoch in turn. Default ``None``: the
            examples without augmentation.
        cache_dtype: ``"float32"`` (default), or ``"float16"`` for half the disk.
        runtime: ``"auto"`` (default), ``"tensorflow"``, ``"openvino"``, or ``"int8"``: OpenVINO with 8-bit integers,
            two to three times as fast, which needs ``keras-thaw[int8]`` once, and targets to be judged by.
        progress: called with ``(done, total)`` after each batch. Default ``None``.

    Returns:
        :class:`thaw.Dataset` with the prefix's output as ``x``.

    Raises:
        OSError: the disk is full, or the cache is too small.
        ValueError: data without random access, a stateful layer, an unknown ``cache_dtype``, or numbers too large for
            half precision; an unknown runtime, or one that cannot compute the prefix.
        ImportError: a runtime that is not installed.

    Example:
        >>> import keras, numpy as np
        >>> from thaw import precompute
        >>> double = keras.Sequential([keras.Input((1,)), keras.layers.Rescaling(2.0)])
        >>> features = precompute(double, np.array([[1.0], [2.0]], "float32"), np.array([0, 1]))
        >>> np.asarray(features.x).tolist()
        [[2.0], [4.0]]
    """
    if cache_dtype not in CACHE_DTYPES:
        raise ValueError(f"cache_dtype is {cache_dtype!r}; expected one of {', '.join(CACHE_DTYPES)}.")
    dataset = as_dataset(x, y, sample_weight)
    if not dataset.random_access:
        raise ValueError(
            f"The data are a {type(x).__name__}, which is read in its own order only; expected arrays or a "
            "thaw.Dataset, whose rows can be found again."
        )
    if stateful := [layer.name for layer in stateful_layers(prefix)]:
        raise ValueError(
            f"{', '.join(stateful)} carries its state from batch to batch, so that its output belongs to no example; "
            "expected a prefix without stateful layers."
        )
    run_id = secrets.token_hex(16)
    rows = RowKeys.of(dataset, views, run_id)
    extraction = FeatureExtraction(FeatureCache(cache_dir), [rows], batch_size, cache_dtype, run_id, runtime=runtime)
    cut = extraction.cut_point(prefix)
    runner = extraction.choose_runtime(prefix, [cut])
    table = extraction.table(cut, runner.identity)
    extraction.fill(runner, [table], progress=progress)
    for note in extraction.notes if runtime == INT8 else ():
        warnings.warn(note, stacklevel=2)
    return rows.cached(table)


@dataclasses.dataclass(frozen=True)
class NoCutPoint:
    """Say why a model has no cut point, in place of the tensors that cross one.

    Args:
        reason: part of a sentence.
    """

    reason: str


@dataclasses.dataclass(frozen=True)
class PrecomputedPhase:
    """Hold what one phase trains on cached features.

    Args:
        suffix: the ``keras.Model`` behind the cut, which shares its variables with the whole model.
        train: :class:`thaw.Dataset` of features.
        validation: :class:`thaw.Dataset` of features, or ``None``.
        notes: tuple of sentences to report.
        runtime: mapping from fingerprint to the chosen runtime, for the phases that follow.
        private_folders: frozenset of paths of tables that no other run can use, to be removed after the run.
    """

    suffix: Any
    train: Dataset
    validation: Dataset | None
    notes: tuple[str, ...]
    runtime: Mapping[str, str]
    private_folders: frozenset


def precompute_phase(
    flat,
    cuts_by_phase,
    cuts_by_stage,
    plan,
    index,
    train,
    validation,
    *,
    batch_size,
    runtime="auto",
    chosen=None,
    cache_dir=None,
    run_id="",
    augmented=False,
    progress=None,
):
    """Cache the features of one phase's frozen prefix.

    One pass also computes the features of later phases that train more layers. It starts from the features at an
    earlier cut point where these are cached.

    Args:
        flat: the model, from :func:`thaw.features.split.flatten_model`; ``None`` where it has no graph.
        cuts_by_phase: for each phase the tensors of ``flat`` that cross its cut, or a :class:`NoCutPoint`.
        cuts_by_stage: tensors at further cut points, from the head down.
        plan: :class:`thaw.Plan`.
        index: number of the phase in the plan.
        train: what :func:`thaw.as_dataset` returns.
        validation: the same, or ``None``.
        batch_size: examples in a batch.
        runtime: as for :func:`precompute`. Default ``"auto"``.
        chosen: mapping from fingerprint to the runtime that an earlier phase has chosen. Default ``None``: none.
        cache_dir: the cache folder. Default: as in :func:`precompute`.
        run_id: string that is part of names that hold for this run only.
        augmented: whether other phases augment the examples. Default ``False``.
        progress: called with ``(done, total)`` after each batch. Default ``None``.

    Returns:
        :class:`PrecomputedPhase`.

    Raises:
        CannotSplit: the whole model has to be computed in every epoch; the message says why.
    """
    phase, cut = plan[index], cuts_by_phase[index]
    prefix = _checked_prefix(flat, cut, phase, train, validation)
    parts = [RowKeys.of(train, phase.versions, run_id)]
    parts += [] if validation is None else [RowKeys.of(validation, None, run_id)]
    cache = FeatureCache(cache_dir)
    extraction = FeatureExtraction(cache, parts, batch_size, phase.cache_dtype, run_id, chosen or {}, runtime=runtime)
    try:
        later = _later_cuts(flat, cuts_by_phase, plan, index, augmented)
        cuts = [extraction.cut_point(prefix, cut)]
        cuts += [extraction.cut_point(submodel(flat, None, tensors), tensors) for tensors in later]
        # In int8 one calibrated network has the tensors of all cut points, or the next phase would need another.
        whole = submodel(flat, None, _ends(cuts)) if runtime == INT8 and later else prefix
        runner = extraction.choose_runtime(whole, cuts)
        if runner.name != INT8 and whole is not prefix:
            runner = extraction.runner(prefix, runner.name)
        tables = [extraction.table(point, runner.identity) for point in cuts]
        _fill_tables(flat, cuts_by_stage, extraction, cuts, tables, runner, progress)
    except BaseException:
        for folder in extraction.private_folders:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    versions = f"{parts[0].views} fixed versions of each example" if parts[0].views else "each example without changes"
    note = (
        f'Phase "{phase.name}": the frozen layers were computed once, in {RUNTIME_NAMES[runner.name]}, for {versions}.'
    )
    notes = [note, *extraction.notes]
    if random := [layer.name for layer in prefix.layers if is_random(layer)]:
        notes.append(f'Phase "{phase.name}": {", ".join(random)} is frozen too, so its randomness is off.')
    cached = [part.cached(tables[0]) for part in parts]
    return PrecomputedPhase(
        suffix=submodel(flat, cut, None),
        train=cached[0],
        validation=None if validation is None else cached[1],
        notes=tuple(notes),
        runtime=types.MappingProxyType(extraction.runtimes),
        private_folders=frozenset(extraction.private_folders),
    )


def _checked_prefix(flat, cut, phase, train, validation):
    """Return the prefix of a phase, or raise ``CannotSplit`` where caching its features makes no sense."""
    if isinstance(cut, NoCutPoint):
        raise CannotSplit(cut.reason)
    if not (train.random_access and (validation is None or validation.random_access)):
        raise CannotSplit("a data set is read in its own order only, so that no features can be cached")
    if not phase.views and train.augment is not None:
        raise CannotSplit("its examples are augmented differently in every epoch (views = 0)")
    prefix = submodel(flat, None, cut)
    if random := [layer.name for layer in prefix.layers if augments(layer)]:
        raise CannotSplit(
            f"{', '.join(random)} augments at random inside the model; augmentation in the data (thaw.augment) can be "
            "cached"
        )
    return prefix


def _later_cuts(flat, cuts_by_phase, plan, index, augmented):
    """Return the cuts of this phase and of those that follow, as long as each is nearer to the input than the last."""
    cuts = [cuts_by_phase[index]]
    for phase, cut in zip(plan[index + 1 :], cuts_by_phase[index + 1 :]):
        # With fewer versions later, more would be cached than is needed; and the examples as they are are no version.
        fits = phase.versions >= plan[index].versions and phase.cache_dtype == plan[index].cache_dtype
        fits = fits and (not augmented or bool(phase.versions) == bool(plan[index].versions))
        if not fits or isinstance(cut, NoCutPoint) or not covers(flat, cut, cuts[-1]):
            break
        if [id(t) for t in cut] != [id(t) for t in cuts[-1]]:
            cuts.append(cut)
    return cuts[1:]


def _ends(cuts):
    return tuple(tensor for cut in cuts for tensor in cut.tensors)


def _fill_tables(flat, cuts_by_stage, extraction, cuts, tables, runner, progress):
    """Compute what is missing in the first table, and in the others as far as there is room."""
    needed = extraction.missing_bytes(tables[0])
    if not needed:
        return
    room = extraction.cache.room()
    if needed > room:
        raise CannotSplit(
            f"{needed / 1e9:.1f} GB of features do not fit into the {max(room, 0) / 1e9:.1f} GB that the cache may take"
        )
    chosen = [0]
    for i in range(1, len(tables)):
        needed += extraction.missing_bytes(tables[i])
        if needed <= MAX_SHARE_FOR_LATER_PHASES * room:
            chosen.append(i)
    start = source = None
    if runner.name != INT8:  # whose runner returns the tensors of all cuts
        start, source = _nearest_cached(flat, cuts_by_stage, extraction, cuts[chosen[-1]], runner.name)
        if start is not None or len(chosen) > 1:
            runner = extraction.runner(submodel(flat, start, _ends([cuts[i] for i in chosen])), runner.name)
    try:
        extraction.fill(runner, [tables[i] for i in chosen], source, progress)
    except OSError as error:  # another process has filled the disk meanwhile
        raise CannotSplit(error.strerror or str(error)) from error


def _nearest_cached(flat, cuts_by_stage, extraction, target, runtime):
    """Return tensors and table of the nearest cut point before ``target`` whose features are all cached.

    In half precision there is none: features that were rounded there would not give the same bits here.
    """
    for tensors in cuts_by_stage if extraction.cache_dtype == "float32" else ():
        if {id(t) for t in tensors} != {id(t) for t in target.tensors} and covers(flat, tensors, target.tensors):
            table = extraction.table(extraction.cut_point(submodel(flat, None, tensors), tensors), runtime)
            if not extraction.missing_bytes(table):
                return tensors, table
    return None, None
