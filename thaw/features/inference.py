"""Run inference in the fastest available runtime: TensorFlow, or OpenVINO on a CPU."""

from __future__ import annotations

import functools
import importlib.util
import math
import time

import numpy as np

from thaw._validation import as_int
from thaw.features.openvino_conversion import (
    compile_converted,
    convert_traced,
    short_reason,
    unsupported_reason,
)
from thaw.models.inputs import as_declared
from thaw.models.stages import calls_of, operations_of
from thaw.models.state import stateful_batch_size

MIN_EXAMPLES_TO_CONVERT = 256  # with fewer, no conversion pays
# 5 s of floating-point operations at 20 GFLOP/s; with fewer, importing, converting and comparing OpenVINO does not pay.
# Counted and not timed: the other runtime gives other last bits, and near the limit a choice by time would vary.
MIN_OPERATIONS_TO_CONVERT = 1e11
MAX_RELATIVE_ERROR = 1e-4  # difference from TensorFlow, relative to the largest number in the output
# OpenVINO is used unless it is clearly slower than TensorFlow, 1.5 times. It is two to three times as fast; if it had
# to be faster, a busy machine would refuse it today and use it tomorrow, and the bits would differ.
MIN_SPEEDUP = 0.67
INT8 = "int8"  # the runtime that is never chosen, only asked for


def inference_runner(model, batch_size, *, runtime="auto", examples=None, quantized=None):
    """Prepare the inference of a model at one fixed batch size.

    The frozen layers are computed once for every example, which takes most of the time of a run. OpenVINO computes them
    two to three times as fast as TensorFlow on a CPU. It is used only where, on the first batch, it is not clearly
    slower and gives the same output: a number may differ from TensorFlow's by 1e-4 of the largest. Inputs that OpenVINO
    would silently change (NaN, infinity, integers of more than 32 bits, indices outside of a table) are computed in
    TensorFlow, batch by batch. OpenVINO's usage reports are turned off.

    Args:
        model: a ``keras.Model``, called with ``training=False``. Its weights must not change while the runner is in
            use: OpenVINO works on a copy.
        batch_size: rows that are computed at a time; TensorFlow gives the same row other last bits in a batch of
            another size.
        runtime: ``"tensorflow"``, ``"openvino"``, or ``"auto"`` (default), which uses TensorFlow on a GPU, in half or
            double precision, for models that change their own variables, and for few examples. ``"int8"`` computes
            ``quantized`` and compares nothing.
        examples: expected number of rows in all. Default ``None``: unknown.
        quantized: the same model for this batch size, from :func:`thaw.features.int8.quantize`. Default ``None``.

    Returns:
        :class:`InferenceRunner`, to be called with batches.

    Raises:
        ValueError: an unknown runtime, a batch size below 1, or another than that of a stateful layer; or ``"int8"``
            without a quantized model.
        ImportError: OpenVINO is requested and not installed.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.features.inference import inference_runner
        >>> double = keras.Sequential([keras.Input((2,)), keras.layers.Rescaling(2.0)])
        >>> runner = inference_runner(double, batch_size=4, runtime="tensorflow")
        >>> runner(np.array([[1.0, 2.0]]))[0].tolist(), runner.name
        ([[2.0, 4.0]], 'tensorflow')
    """
    if runtime not in ("auto", "tensorflow", "openvino") and (runtime != INT8 or quantized is None):
        raise ValueError(f"runtime={runtime!r}; expected auto, tensorflow or openvino, or int8 with a quantized model.")
    batch_size = as_int("batch_size", batch_size, 1)
    stateful = stateful_batch_size(model) if hasattr(model, "layers") else None  # it may be a function
    if stateful is not None and batch_size != stateful[1]:
        layer, size = stateful
        raise ValueError(f"The stateful layer {layer.name} takes batches of {size} examples; got {batch_size}.")
    if runtime in ("openvino", INT8) and not _is_installed():
        raise ImportError('OpenVINO is not installed. Install it: pip install "keras-thaw[cpu]".')
    if runtime == "auto":
        import tensorflow as tf

        pays = examples is None or conversion_pays(examples, model_operations(model))
        if not pays or not _is_installed() or tf.config.get_visible_devices("GPU"):
            runtime = "tensorflow"
    return InferenceRunner(model, batch_size, runtime, quantized=quantized)


def conversion_pays(examples, operations):
    """Return whether there is enough to compute that importing, converting and comparing OpenVINO may pay.

    Args:
        examples: number of rows in all.
        operations: floating-point operations for one of them.
    """
    return examples >= MIN_EXAMPLES_TO_CONVERT and examples * operations >= MIN_OPERATIONS_TO_CONVERT


def model_operations(model):
    """Return the floating-point operations of a model for one example; infinite where its graph cannot be read."""
    calls = calls_of(model)
    return math.inf if calls is None else sum(map(operations_of, calls))


def shortest_seconds(openvino, tensorflow, min_speedup=MIN_SPEEDUP):
    """Time both runtimes; twice more where OpenVINO looks too slow, because another process may have disturbed it.

    Args:
        openvino: function without arguments that measures OpenVINO's seconds for a batch.
        tensorflow: the same for TensorFlow.
        min_speedup: how many times as fast OpenVINO has to be.

    Returns:
        The seconds of both; where they were measured again, the shortest of three.

    Example:
        >>> from thaw.features.inference import shortest_seconds
        >>> shortest_seconds(iter([9, 2, 3]).__next__, iter([1, 1, 1]).__next__)
        (2, 1)
    """
    seconds = openvino(), tensorflow()
    if seconds[0] * min_speedup > seconds[1]:
        seconds = min(seconds[0], openvino(), openvino()), min(seconds[1], tensorflow(), tensorflow())
    return seconds


class InferenceRunner:
    """Run the inference of a model at one batch size; made by :func:`inference_runner`, for one thread at a time.

    Args:
        model: as in :func:`inference_runner`.
        batch_size: as there.
        runtime: as there; ``"auto"`` measures, however few examples there are.
        min_speedup: how many times as fast as TensorFlow OpenVINO has to be with ``"auto"``.
        quantized: as there.

    Attributes:
        name: ``"tensorflow"``, ``"openvino"`` or ``"int8"``; with ``"auto"`` it is known after the first batch.
        note: one sentence on why OpenVINO was tried and not used, or ``""``.
    """

    def __init__(self, model, batch_size, runtime, *, min_speedup=MIN_SPEEDUP, quantized=None):
        self.batch_size = batch_size
        self._min_speedup = min_speedup
        self.name = runtime if runtime in ("openvino", INT8) else "tensorflow"
        self.note = ""
        self._model, self._runtime, self._quantized = model, runtime, quantized
        self._run = self._specs = None

    @property
    def identity(self):
        """What the last bits depend on besides the model: the runtime, and the digest of a quantized network."""
        return f"{INT8} {self._quantized.identity}" if self.name == INT8 else self.name

    def __call__(self, x):
        """Compute one batch.

        Args:
            x: inputs as the model takes them, ``(rows, ...)`` each; at most ``batch_size`` rows. A smaller batch is
                padded with its first row, because another size would give other bits.

        Returns:
            A list of arrays ``(rows, ...)``, one for each output tensor, in the order of ``keras.tree.flatten``.

        Raises:
            ValueError: more rows than ``batch_size``, none, or inputs of another shape than in the first batch; or
                OpenVINO was requested and cannot run the model, or differs from TensorFlow.
        """
        flat, specs, rows = flat_batch(self._model, x, self.batch_size)
        if self._run is None:
            self._specs = specs
            outputs = self._start(x, flat)
        elif specs != self._specs:
            raise ValueError(f"A batch has inputs {_listed(specs)}; the first one had {_listed(self._specs)}.")
        else:
            outputs = self._run(flat)
        return [a[:rows] for a in outputs]

    def _start(self, x, flat):
        """Trace the model, choose the runtime on the first batch, and return that batch's outputs."""
        import keras

        structure = keras.tree.map_structure(lambda _: 0, x)  # the batch itself need not stay in memory
        if self._runtime == INT8:
            in_tensorflow = functools.cache(lambda: self._in_tensorflow(structure)[1])  # traced where it is needed
            self._run = compile_converted(self._quantized, lambda flat: in_tensorflow()(flat))
            return self._run(flat)
        outputs, self._run = self._choose(*self._in_tensorflow(structure), flat)
        return outputs

    def _in_tensorflow(self, structure):
        """Return the traced model, and the function that computes a batch with it."""
        import tensorflow as tf

        traced = trace_model(self._model, structure, self._specs, self._runtime != "tensorflow")
        names = sorted(name for name in traced.structured_outputs if name.startswith("output"))

        def run_tensorflow(flat):
            outputs = traced(*(tf.convert_to_tensor(a) for a in flat))
            return [outputs[name].numpy() for name in names]

        return traced, run_tensorflow

    def _choose(self, traced, run_tensorflow, flat):
        """Return the outputs of the first batch, and the function for the others."""
        outputs, auto = run_tensorflow(flat), self._runtime == "auto"
        if self._runtime == "tensorflow":
            return outputs, run_tensorflow
        reason = unsupported_reason(traced)
        if not reason:
            run_openvino, converted, reason = _convert(traced, run_tensorflow, flat, outputs)
        if not reason and auto:  # both have run once, which was the warm-up
            own, other = shortest_seconds(
                lambda: _seconds(run_openvino, flat), lambda: _seconds(run_tensorflow, flat), self._min_speedup
            )
            if own * self._min_speedup > other:
                reason = f"OpenVINO takes {1000 * own:.3g} ms for a batch and TensorFlow {1000 * other:.3g} ms."
        if not reason:
            self.name = "openvino"
            return converted, run_openvino
        if not auto:
            raise ValueError(f'OpenVINO cannot be used: {reason} Use runtime="auto" or "tensorflow".')
        self.note = f"TensorFlow is used: {reason}"
        return outputs, run_tensorflow


def flat_batch(model, x, batch_size):
    """Return the inputs of a batch as a model takes them, with as many rows as it is computed with.

    Args:
        model: ``keras.Model``.
        x: inputs, ``(rows, ...)`` each.
        batch_size: rows of the result; a smaller batch is padded with its first row.

    Returns:
        A list of arrays ``(batch_size, ...)``, their ``(shape, dtype of TensorFlow)``, and the number of rows given.

    Raises:
        ValueError: more rows than ``batch_size``, or none.
    """
    import tensorflow as tf

    flat = as_declared(model, x)
    rows = _row_count(flat, batch_size)
    if rows < batch_size:
        flat = [_pad(a, batch_size - rows) for a in flat]
    return flat, [(tuple(a.shape), tf.as_dtype(a.dtype)) for a in flat], rows


def trace_model(model, structure, specs, check_indices):
    """Trace a model as one TensorFlow function of flat inputs of fixed shapes, with named outputs.

    Args:
        model: ``keras.Model``.
        structure: the inputs' structure, with anything in place of the arrays.
        specs: ``(shape, dtype)`` of each flat input.
        check_indices: whether there is one more output for each table that is looked up: whether all indices are inside
            it. Outside of it TensorFlow fails, and OpenVINO gives zeros.

    Returns:
        A concrete ``tf.function``.
    """
    import keras
    import tensorflow as tf

    signature = [tf.TensorSpec(shape, dtype, f"input_{i}") for i, (shape, dtype) in enumerate(specs)]

    def call(*flat):
        outputs = keras.tree.flatten(model(keras.tree.pack_sequence_as(structure, list(flat)), training=False))
        named = {f"output_{i:04d}": tf.identity(tensor) for i, tensor in enumerate(outputs)}
        operations = flat[0].graph.get_operations() if check_indices else []
        for i, operation in enumerate([o for o in operations if o.type == "GatherV2"]):
            table, indices, axis = operation.inputs
            if tf.get_static_value(indices) is None:
                rows = tf.shape(table, indices.dtype)[axis]
                named[f"inside_{i:04d}"] = tf.reduce_all((indices >= 0) & (indices < rows))
        return named

    # No jit, which on a CPU is slow for convolutions.
    return tf.function(call, input_signature=signature, jit_compile=False).get_concrete_function()


def _convert(traced, run_tensorflow, flat, expected):
    """Return a function that does in OpenVINO what ``run_tensorflow`` does, its outputs and ``""``.

    Where there is none, return ``(None, None, reason)``.
    """
    try:
        run = compile_converted(convert_traced(traced, len(flat)), run_tensorflow)
        converted = run(flat)
    except Exception as error:  # whatever fails there, TensorFlow can do it, and the reason is reported
        return None, None, f"OpenVINO does not take the model ({short_reason(error)})."
    for ours, theirs in zip(expected, converted, strict=True):
        error = _relative_error(theirs, ours)
        if error > MAX_RELATIVE_ERROR:
            return None, None, f"OpenVINO's numbers differ from TensorFlow's by {error:.1g} of the largest."
    return run, converted, ""


def _is_installed():
    return importlib.util.find_spec("openvino") is not None


def _relative_error(output, expected):
    """Return the largest difference relative to the largest number; infinite where the two cannot be compared."""
    if output.shape != expected.shape or output.dtype != expected.dtype:
        return np.inf
    if expected.dtype.kind != "f":
        return 0.0 if np.array_equal(output, expected) else np.inf
    finite = np.isfinite(expected)
    if not np.array_equal(output[~finite], expected[~finite], equal_nan=True):
        return np.inf
    output, expected = output[finite].astype(np.float64), expected[finite].astype(np.float64)
    difference = np.abs(output - expected).max(initial=0.0)
    return difference / np.abs(expected).max(initial=0.0) if difference else 0.0


def _seconds(run, flat):
    start = time.perf_counter()
    run(flat)
    return time.perf_counter() - start


def _row_count(flat, batch_size):
    rows = {a.shape[0] if len(a.shape) else None for a in flat}
    if len(rows) != 1 or None in rows:
        listed = _listed([(tuple(a.shape), a.dtype) for a in flat])
        raise ValueError(f"A batch has inputs {listed}; expected as many rows in each.")
    rows = rows.pop()
    if not 1 <= rows <= batch_size:
        raise ValueError(f"A batch has {rows} rows; expected 1 to {batch_size}.")
    return rows


def _pad(a, rows):
    a = np.asarray(a)
    return np.concatenate([a, np.repeat(a[:1], rows, axis=0)])


def _listed(specs):
    return ", ".join(f"{getattr(dtype, 'name', dtype)} {shape}" for shape, dtype in specs) or "nothing"
