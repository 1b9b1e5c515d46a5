"""Feature extraction: which rows of which table a frozen prefix has to compute, in which runtime.

Cached features are found again by two keys. The key of a table is made of everything that its rows have in common: the
prefix (layers, weights and wiring), shapes and types of the inputs, the dtype of the cache, the runtime, the batch
size, the versions of the libraries, and whether there is a GPU; in int8 also the digest of the quantized network, whose
ranges an earlier run may have measured on other data. The key of a row in it is the content of the example, and how it
is loaded and augmented, with the number of the version. Where a part has no name that would hold in another
run, a number drawn for this run takes its place, and ``fine_tune`` removes the table at its end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import math
import os

import numpy as np

from thaw.data.dataset import Dataset
from thaw.features.fingerprint import fingerprint_model
from thaw.features.inference import INT8, MIN_EXAMPLES_TO_CONVERT, inference_runner, model_operations
from thaw.features.int8 import (
    CALIBRATION_EXAMPLES,
    JUDGED_EXAMPLES,
    CannotQuantize,
    judge_runner,
    quantize,
    targets_to_judge,
)
from thaw.features.store import JUDGED, QUANTIZED
from thaw.models.stages import stages_of

# Floating-point operations of a batch, about 50 ms; with fewer, which runtime is faster would be a matter of chance.
MIN_BATCH_OPERATIONS_TO_CONVERT = 1e9
MAX_BLOCK_BYTES = 256e6  # of inputs that are copied into memory at a time
RUNTIMES = {"tensorflow": "TensorFlow", "openvino": "OpenVINO"}  # those that may be chosen
RUNTIME_NAMES = RUNTIMES | {INT8: "OpenVINO with 8-bit integers"}


@dataclasses.dataclass(frozen=True)
class RowKeys:
    """Name every row of features that a dataset needs.

    Args:
        dataset: :class:`thaw.Dataset`.
        views: number of augmented versions of each example, or ``None`` without augmentation.
        ids: int64 ``(versions, n, 2)``: the content of the example, and the version of it.
        is_reusable: whether another run can find the rows. It cannot for functions without an ``identity``, which may
            compute anything, nor where the content is the name of a file.
    """

    dataset: Dataset
    views: int | None
    ids: np.ndarray
    is_reusable: bool

    @classmethod
    def of(cls, dataset, views, run_id):
        """Name the rows of a dataset; ``run_id`` is part of names that hold for this run only."""
        load, augment, keys = dataset.load, dataset.augment, dataset.content_keys
        views = dataset.views or (views if augment is not None else None)
        functions = [f for f in (load, augment if views else None) if f is not None]
        is_reusable = all(getattr(f, "identity", None) for f in functions)
        is_reusable = is_reusable and (not dataset.is_files or dataset.keys is not None)
        text = " ".join(f.identity for f in functions) if is_reusable else f"{run_id} {id(load)} {id(augment)}"
        if dataset.views:
            text += " stored"
        if views:
            versions = [_hash_number(f"{text} {view}") for view in range(views)]
        else:
            versions = [_hash_number(text) if text else 0]
        ids = np.stack([np.stack([keys, np.full_like(keys, version)], axis=1) for version in versions])
        return cls(dataset, views, ids, is_reusable)

    def cached(self, table):
        """Return the dataset with cached features in place of its inputs."""
        rows = table.rows(self.ids if self.views else self.ids[0])
        x = rows[0] if len(rows) == 1 else tuple(rows)
        # The features of an example at two cut points are not the same content.
        keys = self.dataset.content_keys ^ np.int64(_hash_number(table.folder.name))
        return self.dataset.replace(x=x, load=None, augment=None, keys=keys, views=self.views)

    def batches(self, batch_size, view, rows, max_block_bytes=MAX_BLOCK_BYTES):
        """Yield batches of inputs of some rows in one version."""
        inputs = self.dataset.replace(y=None, sample_weight=None)
        # In blocks: a part of an array or memory map is a copy.
        row_bytes = max(1, self.dataset.row_bytes)
        block = batch_size * max(1, int(max_block_bytes / row_bytes / batch_size))
        for start in range(0, len(rows), block):
            yield from inputs.take(rows[start : start + block]).ordered(batch_size, view=view)


@dataclasses.dataclass(frozen=True)
class CutPoint:
    """Describe a cut through a model at which features are cached.

    Args:
        tensors: tuple of the tensors of the flat model that cross the cut.
        fingerprint: hexadecimal digest of everything before it.
        outputs: tuple of ``keras.KerasTensor`` with the shapes and dtypes for the examples at hand.
        is_reusable: whether the fingerprint holds beyond this run.
        about: dict with a human-readable description.
    """

    tensors: tuple
    fingerprint: str
    outputs: tuple
    is_reusable: bool
    about: dict

    @classmethod
    def of(cls, prefix, tensors, input_spec, run_id):
        """Describe the end of ``prefix`` for inputs of ``input_spec``."""
        import keras

        outputs = prefix.outputs
        if any(None in t.shape[1:] for t in outputs):  # made for inputs of any size: Keras infers the shapes
            given = [keras.KerasTensor((None, *t.shape[1:]), t.dtype.name) for t in keras.tree.flatten(input_spec)]
            given = keras.tree.pack_sequence_as(prefix.input, given)
            outputs = keras.tree.flatten(prefix.compute_output_spec(given))
        fingerprint = reusable = fingerprint_model(prefix)
        if reusable is None:
            digest = hashlib.sha256(f"{run_id} {[t.name for t in prefix.outputs]}".encode())
            for weight in prefix.weights:
                digest.update(np.ascontiguousarray(weight).tobytes())
            fingerprint = digest.hexdigest()
        about = {"model": prefix.name, "last_layer": ", ".join(layer.name for layer in prefix.layers[-1:])}
        with contextlib.suppress(ValueError):  # a prefix without weights has no stages
            about["stages"] = len(stages_of(prefix))
        return cls(tensors, fingerprint, tuple(outputs), reusable is not None, about)


def check_runtime(runtime):
    """Refuse an unknown runtime.

    Args:
        runtime: as for :func:`thaw.precompute`.

    Raises:
        ValueError: it is unknown.
    """
    if runtime not in ("auto", *RUNTIME_NAMES):
        raise ValueError(f"runtime={runtime!r}; expected one of auto, {', '.join(RUNTIME_NAMES)}.")


class FeatureExtraction:
    """Compute the missing features of some datasets in one pass.

    Args:
        cache: :class:`thaw.features.store.FeatureCache`.
        parts: list of :class:`RowKeys`.
        batch_size: examples in a batch.
        cache_dtype: ``"float32"`` or ``"float16"``.
        run_id: string that is part of names that hold for this run only.
        runtimes: dict from fingerprint to the runtime that was chosen earlier in the run.
        runtime: ``"auto"``, or the runtime that was asked for. Default ``"auto"``.

    Attributes:
        runtimes: the same with the choices of this pass.
        private_folders: set of paths of tables that no other run can use.
        notes: sentences about damage and about the runtime.
    """

    def __init__(self, cache, parts, batch_size, cache_dtype, run_id, runtimes=(), *, runtime="auto"):
        check_runtime(runtime)
        self.cache, self.parts, self.batch_size, self.runtime = cache, parts, batch_size, runtime
        self.cache_dtype, self.run_id = cache_dtype, run_id
        self.runtimes, self.private_folders, self.notes = dict(runtimes), set(), cache.notes
        inputs = parts[0].dataset.replace(y=None, sample_weight=None)
        self.input_spec = inputs.ordered(batch_size).element_spec

    def cut_point(self, prefix, tensors=()):
        """Describe the end of a prefix."""
        return CutPoint.of(prefix, tensors, self.input_spec, self.run_id)

    def choose_runtime(self, prefix, cuts):
        """Return the runner of the prefix in the runtime chosen for its cut points.

        The choice is made once by measuring, and then stands on this machine: another runtime gives other last bits,
        and measured times vary. A prefix without a fingerprint stays in TensorFlow. A runtime that was asked for is
        taken; int8, for a prefix that has the tensors of all cut points, where it can be, and decides as float32 does.
        """
        if self.runtime == INT8 and self.runtimes.get(cuts[0].fingerprint) not in RUNTIMES:
            try:
                runner = self._int8_runner(prefix, cuts)
                self.runtimes |= {cut.fingerprint: runner.identity for cut in cuts}
                return runner
            except CannotQuantize as reason:
                self.notes.append(f"int8 is not used, but float32: {reason}")
        elif self.runtime in RUNTIMES:
            return inference_runner(prefix, self.batch_size, runtime=self.runtime)
        return self._measured_runner(prefix, cuts)

    def _measured_runner(self, prefix, cuts):
        total = sum(part.ids.shape[0] * part.ids.shape[1] for part in self.parts)
        if (
            total < MIN_EXAMPLES_TO_CONVERT
            or self.batch_size * model_operations(prefix) < MIN_BATCH_OPERATIONS_TO_CONVERT
            or not all(cut.is_reusable for cut in cuts)
        ):
            return inference_runner(prefix, self.batch_size, runtime="tensorflow")
        name = self.runtimes.get(cuts[0].fingerprint)
        name = name if name in RUNTIMES else self._recorded_runtime(cuts[0])
        runner = None
        if name is None:
            # Without the number of examples: the choice also holds when there will be more.
            runner = inference_runner(prefix, self.batch_size)
            runner(next(self.parts[0].batches(self.batch_size, None, np.arange(len(self.parts[0].dataset)))))
            self.notes += [runner.note] if runner.note else []
            name = self._recorded_runtime(cuts[0], runner.name)
        self.runtimes[cuts[0].fingerprint] = name
        for cut in cuts[1:]:
            self.runtimes[cut.fingerprint] = self._recorded_runtime(cut, name)
        return runner if runner is not None and runner.name == name else self.runner(prefix, name)

    def runner(self, model, name):
        """Return the runner of a model in a runtime that was chosen for it or for a part of it."""
        try:
            return _FallbackRunner(model, self.batch_size, name, self.notes)
        except ImportError:  # OpenVINO was installed when it was chosen, and is not now
            return inference_runner(model, self.batch_size, runtime="tensorflow")

    def _int8_runner(self, model, cuts):
        """Return the runner of a model in int8, calibrated and judged now or earlier."""
        if not all(cut.is_reusable for cut in cuts):
            raise CannotQuantize("the frozen layers have code of your own, which may change under the same name.")
        identity = self.runtimes.get(cuts[0].fingerprint)
        if identity is not None and not self.missing_bytes(self.table(cuts[0], identity)):
            return _ComputedEarlier(identity)  # in one pass with an earlier phase
        train, *others = self.parts
        judged = others[0] if others else train
        rows = np.random.default_rng(0).permutation(len(train.dataset))
        calibrated = rows[: min(CALIBRATION_EXAMPLES, len(rows) if others else len(rows) // 2)]
        rows = np.random.default_rng(0).permutation(len(judged.dataset)) if others else rows[len(calibrated) :]
        rows = rows[: JUDGED_EXAMPLES[-1]]
        y = targets_to_judge(judged.dataset, rows)
        inputs = str(self._input_key())
        key = f"{fingerprint_model(model)} {inputs} {self.batch_size} {_machine()}"
        network = quantize(
            model,
            lambda: train.batches(self.batch_size, None, np.sort(calibrated)),
            self.batch_size,
            self.cache.folder / f"{_digest(key)}.{QUANTIZED}",
            self.notes,
        )
        runner = inference_runner(model, self.batch_size, runtime=INT8, quantized=network)
        content = judged.ids[0][rows].tobytes() + y.tobytes()
        name = _digest(f"{runner.identity} {len(cuts[0].outputs)} {hashlib.sha256(content).hexdigest()}")
        file = self.cache.folder / f"{name}.{JUDGED}" if judged.is_reusable else None
        exact = lambda: self._measured_runner(model, cuts)  # noqa: E731
        judgement = judge_runner(runner, exact, len(cuts[0].outputs), judged, rows, y, file)
        if not judgement.is_accepted:
            raise CannotQuantize(f"{judgement}.")
        self.notes.append(f"int8 is used: {judgement}. The finished model computes in float32.")
        return runner

    def _recorded_runtime(self, cut, name=None):
        """Return the runtime recorded in the cache for a cut point; ``name`` is recorded where there is none."""
        file = self.cache.folder / f"{_digest(f'{cut.fingerprint} {_machine()}')}.runtime"
        if name is not None and not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            part = self.cache.disk.part()
            part.write_text(name, encoding="utf-8")
            try:
                os.link(part, file)
            except FileExistsError:
                pass  # another process was faster: its choice holds
            except OSError:  # a file system without hard links
                os.replace(part, file)
            part.unlink(missing_ok=True)
        try:
            recorded = file.read_text(encoding="utf-8")
        except FileNotFoundError:
            return name
        return recorded if recorded in RUNTIMES else name

    def _input_key(self):
        import keras

        return [(t.dtype.name, tuple(t.shape[1:])) for t in keras.tree.flatten(self.input_spec)]

    def table(self, cut, runtime):
        """Open the table of the features at a cut point; ``runtime`` is the identity of a runner."""
        inputs = self._input_key()
        is_reusable = cut.is_reusable and all(part.is_reusable for part in self.parts)
        key = f"{cut.fingerprint} {inputs} {self.cache_dtype} {runtime} {self.batch_size} {_machine()}"
        tensors = [(tuple(t.shape[1:]), self._cached_dtype(t.dtype)) for t in cut.outputs]
        about = {"runtime": runtime.split()[0], "cache_dtype": self.cache_dtype, "tensors": [str(t) for t in tensors]}
        table = self.cache.table(_digest(f"{key} {'' if is_reusable else self.run_id}"), cut.about | about, tensors)
        if not is_reusable:
            self.private_folders.add(table.folder)
        return table

    def missing_bytes(self, table):
        """Return the bytes of the features that are not in a table yet."""
        row = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in table.tensors)
        return row * sum(int(table.missing(ids).sum()) for part in self.parts for ids in part.ids)

    def fill(self, runner, tables, source=None, progress=None):
        """Compute the rows that are missing in one of the tables.

        Args:
            runner: returns the tensors of all tables, one table after the other.
            tables: list of tables to be filled.
            source: table of the features to start from; ``None`` to start from the examples.
            progress: called with ``(done, total)`` after each batch, or ``None``.
        """
        work = []
        for part in self.parts:
            for view, ids in enumerate(part.ids):
                missing = np.stack([table.missing(ids) for table in tables])
                rows = np.flatnonzero(missing.any(axis=0))
                if len(rows):
                    work.append((part, view if part.views else None, ids[rows], missing[:, rows], rows))
        done, total = 0, sum(-(-len(rows) // self.batch_size) for *_, rows in work)
        ends = np.cumsum([len(table.tensors) for table in tables])
        with contextlib.ExitStack() as stack:
            counts = sum((missing.sum(axis=1) for _, _, _, missing, _ in work), np.zeros(len(tables), int))
            writers = [stack.enter_context(table.writer(int(n))) for table, n in zip(tables, counts)]
            for part, view, ids, missing, rows in work:
                start = 0
                batches = part.batches(self.batch_size, view, rows) if source is None else self._read(source, ids)
                for x in batches:
                    outputs = [self._cast(a) for a in runner(x)]
                    here = slice(start, start + len(outputs[0]))
                    for writer, wanted, end, table in zip(writers, missing[:, here], ends, tables):
                        if wanted.any():
                            own = outputs[end - len(table.tensors) : end]
                            writer.add(ids[here][wanted], [a[wanted] for a in own])
                    start, done = here.stop, done + 1
                    if progress:
                        progress(done, total)

    def _read(self, table, ids):
        rows = table.rows(ids)
        return Dataset(x=rows[0] if len(rows) == 1 else tuple(rows)).ordered(self.batch_size)

    def _cached_dtype(self, dtype):
        if self.cache_dtype == "float16" and "float" in dtype:
            return "float16"
        return "float32" if dtype == "bfloat16" else dtype  # NumPy has no bfloat16

    def _cast(self, array):
        with np.errstate(over="ignore"):
            cast = array.astype(self._cached_dtype(array.dtype.name), copy=False)
        if cast.dtype == np.float16 and not np.isfinite(cast).all() and np.isfinite(array.astype("float32")).all():
            raise ValueError(
                f"Activations reach {np.abs(array).max():.3g}, and half precision ends at 65504; "
                'use cache_dtype = "float32".'
            )
        return cast


class _ComputedEarlier:
    """Stand in place of a runner whose features are all in the cache."""

    def __init__(self, identity):
        self.name, self.identity = INT8, identity

    def __call__(self, x):
        raise OSError("features of an earlier phase have just been removed from the cache")


class _FallbackRunner:
    """Run a model in the chosen runtime; in TensorFlow, with a note, where that runtime cannot run this model."""

    def __init__(self, model, batch_size, name, notes):
        self.name = self.identity = name
        self._model, self._batch_size, self._notes = model, batch_size, notes
        self._runner = inference_runner(model, batch_size, runtime=name)

    def __call__(self, x):
        try:
            return self._runner(x)
        except ValueError as error:
            if self._runner.name == "tensorflow":
                raise
            self._notes.append(f"TensorFlow is used: {error}")
            self._runner = inference_runner(self._model, self._batch_size, runtime="tensorflow")
            return self._runner(x)


@functools.cache
def _machine():
    """Describe what the last bits depend on besides the model: versions, and whether there is a GPU."""
    import tensorflow as tf

    versions = [f"tensorflow {tf.__version__}"]
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        versions.append(f"openvino {importlib.metadata.version('openvino')}")
    return " ".join([*versions, "gpu" if tf.config.get_visible_devices("GPU") else "cpu"])


def _digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


def _hash_number(text):
    """Return 63 bits, never 0, which stands for an example without load and augmentation."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1 or 1
