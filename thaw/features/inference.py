"""Run inference in the fastest available runtime: TensorFlow, or OpenVINO on a CPU."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math
import sys
import time

import numpy as np

from thaw._validation import as_int
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
OPENVINO_SETTINGS = {
    # Without this a CPU with the instructions for it computes in bfloat16, which has three digits.
    "INFERENCE_PRECISION_HINT": "f32",
    "EXECUTION_MODE_HINT": "ACCURACY",
    "PERFORMANCE_HINT": "LATENCY",  # one batch at a time, with all cores
    "NUM_STREAMS": "1",
    "ENABLE_CPU_PINNING": False,  # two processes would be pinned to the same cores
}


def inference_runner(model, batch_size, *, runtime="auto", examples=None):
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
            double precision, for models that change their own variables, and for few examples.
        examples: expected number of rows in all. Default ``None``: unknown.

    Returns:
        :class:`InferenceRunner`, to be called with batches.

    Raises:
        ValueError: an unknown runtime, a batch size below 1, or another than that of a stateful layer.
        ImportError: OpenVINO is requested and not installed.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.features.inference import inference_runner
        >>> double = keras.Sequential([keras.Input((2,)), keras.layers.Rescaling(2.0)])
        >>> runner = inference_runner(double, batch_size=4, runtime="tensorflow")
        >>> runner(np.array([[1.0, 2.0]]))[0].tolist(), runner.name
        ([[2.0, 4.0]], 'tensorflow')
    """
    if runtime not in ("auto", "tensorflow", "openvino"):
        raise ValueError(f"runtime={runtime!r}; expected auto, tensorflow or openvino.")
    batch_size = as_int("batch_size", batch_size, 1)
    stateful = stateful_batch_size(model) if hasattr(model, "layers") else None  # it may be a function
    if stateful is not None and batch_size != stateful[1]:
        layer, size = stateful
        raise ValueError(f"The stateful layer {layer.name} takes batches of {size} examples; got {batch_size}.")
    if runtime == "openvino" and not _is_installed():
        raise ImportError('OpenVINO is not installed. Install it: pip install "keras-thaw[cpu]".')
    if runtime == "auto":
        import tensorflow as tf

        pays = examples is None or conversion_pays(examples, model_operations(model))
        if not pays or not _is_installed() or tf.config.get_visible_devices("GPU"):
            runtime = "tensorflow"
    return InferenceRunner(model, batch_size, runtime)


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

    Attributes:
        name: ``"tensorflow"`` or ``"openvino"``; with ``"auto"`` it is known after the first batch.
        note: one sentence on why OpenVINO was tried and not used, or ``""``.
    """

    def __init__(self, model, batch_size, runtime, *, min_speedup=MIN_SPEEDUP):
        self.batch_size = batch_size
        self._min_speedup = min_speedup
        self.name = "openvino" if runtime == "openvino" else "tensorflow"
        self.note = ""
        self._model, self._runtime = model, runtime
        self._run = self._specs = None

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
        import tensorflow as tf

        flat = as_declared(self._model, x)
        rows = _row_count(flat, self.batch_size)
        if rows < self.batch_size:
            flat = [_pad(a, self.batch_size - rows) for a in flat]
        specs = [(tuple(a.shape), tf.as_dtype(a.dtype)) for a in flat]
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
        import tensorflow as tf

        traced = _trace(self._model, x, self._specs, self._runtime != "tensorflow")
        names = sorted(name for name in traced.structured_outputs if name.startswith("output"))

        def run_tensorflow(flat):
            outputs = traced(*(tf.convert_to_tensor(a) for a in flat))
            return [outputs[name].numpy() for name in names]

        outputs, self._run = self._choose(traced, run_tensorflow, flat)
        return outputs

    def _choose(self, traced, run_tensorflow, flat):
        """Return the outputs of the first batch, and the function for the others."""
        outputs, auto = run_tensorflow(flat), self._runtime == "auto"
        if self._runtime == "tensorflow":
            return outputs, run_tensorflow
        reason = _unsupported(traced)
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


def _trace(model, x, specs, check_indices):
    """Trace the model as one TensorFlow function of flat inputs of fixed shapes, with named outputs.

    With ``check_indices`` there is one more output for each table that is looked up: whether all indices are inside it.
    Outside of it TensorFlow fails, and OpenVINO gives zeros.
    """
    import keras
    import tensorflow as tf

    signature = [tf.TensorSpec(shape, dtype, f"input_{i}") for i, (shape, dtype) in enumerate(specs)]
    structure = keras.tree.map_structure(lambda _: 0, x)  # the batch itself need not stay in memory

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


def _unsupported(traced):
    """Return why OpenVINO could not compute what TensorFlow does, read from the graph; or an empty string."""
    import tensorflow as tf

    graph = traced.graph.as_graph_def()
    inner = [node for function in graph.library.function for node in function.node_def]
    nodes = [*graph.node, *inner]
    if any(node.op.startswith("Assign") for node in nodes):
        return "the model changes its own variables when it is called."
    if any(node.op.startswith("Gather") for node in inner) or any(node.op == "GatherNd" for node in nodes):
        return "it cannot be checked that tables are looked up inside their bounds."
    if any(node.op.startswith(("Random", "StatelessRandom", "Multinomial")) for node in nodes):
        return "the model draws random numbers when it is called."
    types = {value.type for node in nodes for value in node.attr.values()}
    if types & {tf.float16.as_datatype_enum, tf.bfloat16.as_datatype_enum}:
        return "the model computes in half precision."
    if any(tensor.dtype == tf.float64 for tensor in traced.outputs):
        return "the model computes in double precision."
    return ""


def _convert(traced, run_tensorflow, flat, expected):
    """Return a function that does in OpenVINO what ``run_tensorflow`` does, its outputs and ``""``.

    Where there is none, return ``(None, None, reason)``.
    """
    try:
        openvino = _import_openvino()
        compiled = openvino.Core().compile_model(_openvino_model(traced), "CPU", OPENVINO_SETTINGS)
        request = compiled.create_infer_request()
        inputs = {i: port for i in range(len(flat)) for port in compiled.inputs if f"input_{i}" in port.get_names()}
        ports = {name: port for port in compiled.outputs for name in port.get_names()}
        # An input that is an output too keeps the input's name there, and needs no computing.
        passed = {
            name: _input_behind(tensor, traced.inputs[: len(flat)])
            for name, tensor in traced.structured_outputs.items()
            if name.startswith("output")
        }
        inside = [ports[name] for name in traced.structured_outputs if name.startswith("inside")]

        def run(flat):
            if any(_changed_by_openvino(a) for a in flat):
                return run_tensorflow(flat)
            given = {port: np.asarray(flat[i]) for i, port in inputs.items()}
            outputs = request.infer(given, share_inputs=True, share_outputs=True)
            if not all(outputs[port] for port in inside):
                return run_tensorflow(flat)  # which raises the error
            # Copies: the next batch is written over these.
            return [np.array(outputs[ports[name]] if i is None else flat[i]) for name, i in sorted(passed.items())]

        converted = run(flat)
    except Exception as error:  # whatever fails there, TensorFlow can do it, and the reason is reported
        words = " ".join(str(error).split()).split("Summary: -- ")[-1].split(" To facilitate")[0]
        return None, None, f"OpenVINO does not take the model ({type(error).__name__}: {words[:200]})."
    for ours, theirs in zip(expected, converted, strict=True):
        error = _relative_error(theirs, ours)
        if error > MAX_RELATIVE_ERROR:
            return None, None, f"OpenVINO's numbers differ from TensorFlow's by {error:.1g} of the largest."
    return run, converted, ""


@functools.cache
def _import_openvino():
    """Import OpenVINO with its usage reports turned off.

    ``import openvino`` reports itself through the singleton ``openvino_telemetry.Telemetry``, and its conversion tool
    reports every use. The singleton is created here without consent, so that the import sends nothing, and
    :func:`_openvino_model` does without the tool. Where the package of the reports is missing, OpenVINO sends none;
    where it does not work as expected, the error makes TensorFlow the runtime.
    """
    if "openvino" not in sys.modules:
        with contextlib.suppress(ModuleNotFoundError):
            from openvino_telemetry import Telemetry

            # As openvino registers itself: under another name it would initialize the singleton again, with consent.
            # "Dialog" only means that nothing is sent before somebody has agreed; there is none outside its tools.
            settings = {"app_name": "OpenVINO", "app_version": "", "tid": "", "backend": "ga4"}
            reports = Telemetry(**settings, enable_opt_in_dialog=True)
            if reports.backend.app_name != settings["app_name"]:
                reports.init(**settings, enable_opt_in_dialog=True)
            reports.consent = False
    import openvino

    return openvino


def _openvino_model(traced):
    """Convert a traced TensorFlow function with OpenVINO's TensorFlow frontend."""
    from openvino.frontend import FrontEndManager
    from openvino.frontend.tensorflow.utils import create_tf_graph_iterator

    frontend = FrontEndManager().load_by_framework("tf")
    graph = create_tf_graph_iterator(traced, None, None, None, False)  # must outlive the conversion
    loaded = frontend.load(graph)
    return frontend.convert(loaded)


def _input_behind(tensor, inputs):
    """Return the number of the input that a tensor is, or ``None``."""
    while tensor.op.type == "Identity":
        tensor = tensor.op.inputs[0]
    return next((i for i, own in enumerate(inputs) if own is tensor), None)


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


def _changed_by_openvino(a):
    """Return whether an array holds integers of more than 32 bits, NaN or infinity."""
    a = np.asarray(a)
    if a.dtype.kind == "f":
        with np.errstate(all="ignore"):
            return not np.isfinite(a.sum())
    if a.size == 0 or a.dtype not in (np.int64, np.uint64, np.uint32):
        return False
    return a.max() > np.iinfo(np.int32).max or a.min() < np.iinfo(np.int32).min


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
