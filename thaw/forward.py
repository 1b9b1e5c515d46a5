"""What a model says, batch by batch, in the fastest runtime at hand: TensorFlow, or OpenVINO on a CPU."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import sys
import time

import numpy as np

from thaw.stages import calls_of, operations_of

FEW = 256  # examples, for which no conversion is worth its time
# Floating-point operations, 5 s of them at 20 GFLOP/s, below which importing, converting and comparing OpenVINO does
# not pay. Counted and not timed: the other runtime gives other last bits, and near the edge a choice by time would go
# both ways.
_CONVERSION = 1e11
_ERROR = 1e-4  # largest difference from TensorFlow, relative to the largest number in the output
# OpenVINO is taken unless it is clearly slower, 1.5 times. It is two to three times as fast; asked to be faster on a
# machine that is busy just then, it would be refused today and taken tomorrow, and the bits would differ.
_FASTER = 0.67
_SETTINGS = {
    # Without this a CPU with the instructions for it computes in bfloat16, which has three digits.
    "INFERENCE_PRECISION_HINT": "f32",
    "EXECUTION_MODE_HINT": "ACCURACY",
    "PERFORMANCE_HINT": "LATENCY",  # one batch at a time, with all cores
    "NUM_STREAMS": "1",
    "ENABLE_CPU_PINNING": False,  # two processes would be pinned to the same cores
}
_TELEMETRY = "openvino_telemetry"


def forward(model, batch_size, *, runtime="auto", examples=None):
    """Prepare a model's inference at one fixed batch size.

    What stands still is computed once for every example and takes most of the time of a run. OpenVINO does it
    two to three times as fast as TensorFlow on a CPU. It is taken only where it was measured on the first
    batch not to be clearly slower and to say the same; a number may differ from TensorFlow's by 1e-4 of the largest in
    its output. What OpenVINO would change without a word (NaN, infinity, whole numbers of more than 32 bits,
    places outside of a table) goes to TensorFlow, batch by batch. OpenVINO's reports to its makers are turned
    off for the whole process.

    Args:
        model: a ``keras.Model``, called with ``training=False``. Its weights must stay as they are while the
            result is in use: OpenVINO works on a copy.
        batch_size: rows that are computed at a time; TensorFlow gives the same row other last bits in a batch
            of another size.
        runtime: ``"tensorflow"``, ``"openvino"`` or ``"auto"``, which keeps to TensorFlow on a GPU, in half or
            double precision, for models that change their own variables, and for few examples.
        examples: how many rows will come in all, where that is known.

    Returns:
        :class:`Forward`, to be called with batches.

    Raises:
        ValueError: an unknown runtime, or a batch size below 1.
        ImportError: OpenVINO is asked for and not installed.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.forward import forward
        >>> double = keras.Sequential([keras.Input((2,)), keras.layers.Rescaling(2.0)])
        >>> run = forward(double, batch_size=4, runtime="tensorflow")
        >>> run(np.array([[1.0, 2.0]]))[0].tolist(), run.name
        ([[2.0, 4.0]], 'tensorflow')
    """
    if runtime not in ("auto", "tensorflow", "openvino"):
        raise ValueError(f"runtime={runtime!r}; expected auto, tensorflow or openvino.")
    if isinstance(batch_size, bool) or int(batch_size) != batch_size or batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r}; expected a whole number from 1.")
    if runtime == "openvino" and not _installed():
        raise ImportError('OpenVINO is not installed. Install it: pip install "keras-thaw[cpu]".')
    if runtime == "auto":
        import tensorflow as tf

        few = examples is not None and (examples < FEW or examples * work_of(model) < _CONVERSION)
        if few or not _installed() or tf.config.get_visible_devices("GPU"):
            runtime = "tensorflow"
    return Forward(model, int(batch_size), runtime)


@contextlib.contextmanager
def held(variables):
    """Put variables back at the end, also after an error: layers that are random also in inference, and layers that
    count their calls, change theirs whenever the model is called."""
    state = [(v, v.numpy()) for v in variables]
    try:
        yield
    finally:
        for variable, value in state:
            if not np.array_equal(variable.numpy(), value, equal_nan=variable.dtype != "string"):
                variable.assign(value)


def work_of(model):
    """Floating-point operations that a model needs for one example; infinite where its graph cannot be read."""
    calls = calls_of(model)
    return math.inf if calls is None else sum(map(operations_of, calls))


class Forward:
    """A model's inference at one batch size. Made by :func:`forward`; for one thread at a time.

    Attributes:
        name: ``"tensorflow"`` or ``"openvino"``; in ``"auto"`` it is known after the first batch.
        note: one sentence on why OpenVINO was tried and not taken, or ``""``.
    """

    def __init__(self, model, batch_size, runtime):
        self.batch_size = batch_size
        self.name = "openvino" if runtime == "openvino" else "tensorflow"
        self.note = ""
        self._model, self._runtime = model, runtime
        self._run = self._specs = None

    def __call__(self, x):
        """Compute one batch.

        Args:
            x: inputs as the model takes them, ``(rows, ...)`` each; at most ``batch_size`` rows. A smaller batch
                is filled up with its first row, because another size would give other bits.

        Returns:
            A list of arrays ``(rows, ...)``, one for each output tensor, in the order of ``keras.tree.flatten``.

        Raises:
            ValueError: more rows than ``batch_size``, none, or inputs of another shape than in the first batch; or
                OpenVINO was asked for and cannot run the model, or gives other numbers than TensorFlow.
        """
        import keras
        import tensorflow as tf

        flat = [a if isinstance(a, np.ndarray) else tf.convert_to_tensor(a) for a in keras.tree.flatten(x)]
        rows = _rows(flat, self.batch_size)
        if rows < self.batch_size:
            flat = [_fill(a, self.batch_size - rows) for a in flat]
        specs = [(tuple(a.shape), tf.as_dtype(a.dtype)) for a in flat]
        if self._run is None:
            self._specs = specs
            out = self._begin(x, flat)
        elif specs != self._specs:
            raise ValueError(f"A batch has inputs {_listed(specs)}; the first one had {_listed(self._specs)}.")
        else:
            out = self._run(flat)
        return [a[:rows] for a in out]

    def _begin(self, x, flat):
        """Trace the model, choose the runtime on the first batch, and give that batch's output."""
        import tensorflow as tf

        traced = _trace(self._model, x, self._specs, self._runtime != "tensorflow")
        names = sorted(name for name in traced.structured_outputs if name.startswith("output"))

        def in_tensorflow(flat):
            out = traced(*(tf.convert_to_tensor(a) for a in flat))
            return [out[name].numpy() for name in names]

        out, self._run = self._choose(traced, in_tensorflow, flat)
        return out

    def _choose(self, traced, in_tensorflow, flat):
        """The output of the first batch, and the function for the others."""
        out, auto = in_tensorflow(flat), self._runtime == "auto"
        if self._runtime == "tensorflow":
            return out, in_tensorflow
        why = _unsuited(traced)
        if auto and not why:
            out, seconds = _timed(in_tensorflow, flat)  # the first time was the warm-up
        if not why:
            in_openvino, why = _convert(traced, in_tensorflow, flat, out)
        if not why:
            found, own = _timed(in_openvino, flat)
            if auto and own * _FASTER > seconds:
                # Another process may have been in the way of one of the two: the shortest of three times counts.
                seconds = min(seconds, *(_timed(in_tensorflow, flat)[1] for _ in range(2)))
                own = min(own, *(_timed(in_openvino, flat)[1] for _ in range(2)))
            if not auto or own * _FASTER <= seconds:
                self.name = "openvino"
                return found, in_openvino
            why = f"OpenVINO takes {1000 * own:.3g} ms for a batch and TensorFlow {1000 * seconds:.3g} ms."
        if not auto:
            raise ValueError(f'OpenVINO cannot be used: {why} Use runtime="auto" or "tensorflow".')
        self.note = f"TensorFlow is used: {why}"
        return out, in_tensorflow


def _trace(model, x, specs, checked):
    """The model as one TensorFlow function of flat inputs of fixed shapes.

    Its outputs are named. With ``checked`` there is one more for each table that is looked up: whether all places
    asked for are inside it. Outside of it TensorFlow stops, and OpenVINO gives zeros.
    """
    import keras
    import tensorflow as tf

    signature = [tf.TensorSpec(shape, dtype, f"input_{i}") for i, (shape, dtype) in enumerate(specs)]
    like = keras.tree.map_structure(lambda _: 0, x)  # the batch itself need not stay in memory

    def call(*flat):
        out = keras.tree.flatten(model(keras.tree.pack_sequence_as(like, list(flat)), training=False))
        named = {f"output_{i:04d}": tf.identity(tensor) for i, tensor in enumerate(out)}
        operations = flat[0].graph.get_operations() if checked else []
        for i, operation in enumerate([o for o in operations if o.type == "GatherV2"]):
            table, places, axis = operation.inputs
            if tf.get_static_value(places) is None:
                rows = tf.shape(table, places.dtype)[axis]
                named[f"inside_{i:04d}"] = tf.reduce_all((places >= 0) & (places < rows))
        return named

    # No jit, which on a CPU is slow for convolutions.
    return tf.function(call, input_signature=signature, jit_compile=False).get_concrete_function()


def _unsuited(traced):
    """Why OpenVINO could not do what TensorFlow does here, read from the graph; or an empty string."""
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


def _convert(traced, in_tensorflow, flat, expected):
    """``(run, "")``, a function that does in OpenVINO what ``in_tensorflow`` does; or ``(None, why not)``."""
    try:
        openvino = _import_openvino()
        converted = openvino.convert_model(traced, share_weights=False)
        compiled = openvino.Core().compile_model(converted, "CPU", _SETTINGS)
        request = compiled.create_infer_request()
        inputs = {i: port for i in range(len(flat)) for port in compiled.inputs if f"input_{i}" in port.get_names()}
        ports = {name: port for port in compiled.outputs for name in port.get_names()}
        # An input that is put out again as it is keeps the input's name there, and needs no computing.
        passed = {
            name: _input_behind(tensor, traced.inputs[: len(flat)])
            for name, tensor in traced.structured_outputs.items()
            if name.startswith("output")
        }
        inside = [ports[name] for name in traced.structured_outputs if name.startswith("inside")]

        def run(flat):
            if any(_unusual(a) for a in flat):
                return in_tensorflow(flat)
            given = {port: np.asarray(flat[i]) for i, port in inputs.items()}
            out = request.infer(given, share_inputs=True, share_outputs=True)
            if not all(out[port] for port in inside):
                return in_tensorflow(flat)  # which says what is wrong
            # Copies: the next batch is written over these.
            return [np.array(out[ports[name]] if i is None else flat[i]) for name, i in sorted(passed.items())]

        found = run(flat)
    except Exception as error:  # whatever goes wrong in there: TensorFlow can do it, and the reason is told
        words = " ".join(str(error).split()).split("Summary: -- ")[-1].split(" To facilitate")[0]
        return None, f"OpenVINO does not take the model ({type(error).__name__}: {words[:200]})."
    for theirs, ours in zip(found, expected, strict=True):
        off = _difference(theirs, ours)
        if off > _ERROR:
            return None, f"OpenVINO's numbers differ from TensorFlow's by {off:.1g} of the largest."
    return run, ""


def _input_behind(tensor, inputs):
    """Number of the input that a tensor is, or ``None``."""
    while tensor.op.type == "Identity":
        tensor = tensor.op.inputs[0]
    return next((i for i, own in enumerate(inputs) if own is tensor), None)


def _import_openvino():
    """OpenVINO, which reports each import and each conversion to its makers, with that turned off.

    It does without its package for this where that is not installed; here it is made to believe so.
    """
    sys.modules[_TELEMETRY] = None  # from now on importing it is an ImportError
    handlers = list(logging.root.handlers)
    import openvino
    from openvino.tools.ovc import telemetry_stub

    logging.root.handlers[:] = handlers  # it removes one
    for name, module in list(sys.modules.items()):
        # Somebody else may have imported it before, with the reports.
        if name.startswith("openvino.") and hasattr(module, "tm"):
            module.tm = telemetry_stub
    return openvino


def _installed():
    return importlib.util.find_spec("openvino") is not None


def _difference(found, expected):
    """Largest difference relative to the largest number; infinite where the two cannot be compared."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return np.inf
    if expected.dtype.kind != "f":
        return 0.0 if np.array_equal(found, expected) else np.inf
    finite = np.isfinite(expected)
    if not np.array_equal(found[~finite], expected[~finite], equal_nan=True):
        return np.inf
    found, expected = found[finite].astype(np.float64), expected[finite].astype(np.float64)
    off = np.abs(found - expected).max(initial=0.0)
    return off / np.abs(expected).max(initial=0.0) if off else 0.0


def _unusual(a):
    """Does an array hold what OpenVINO would change: whole numbers of more than 32 bits, NaN or infinity?"""
    a = np.asarray(a)
    if a.dtype.kind == "f":
        with np.errstate(all="ignore"):
            return not np.isfinite(a.sum())
    if a.size == 0 or a.dtype not in (np.int64, np.uint64, np.uint32):
        return False
    return a.max() > np.iinfo(np.int32).max or a.min() < np.iinfo(np.int32).min


def _timed(run, flat):
    begin = time.perf_counter()
    out = run(flat)
    return out, time.perf_counter() - begin


def _rows(flat, batch_size):
    rows = {a.shape[0] if len(a.shape) else None for a in flat}
    if len(rows) != 1 or None in rows:
        listed = _listed([(tuple(a.shape), a.dtype) for a in flat])
        raise ValueError(f"A batch has inputs {listed}; expected as many rows in each.")
    rows = rows.pop()
    if not 1 <= rows <= batch_size:
        raise ValueError(f"A batch has {rows} rows; expected 1 to {batch_size}.")
    return rows


def _fill(a, more):
    a = np.asarray(a)
    return np.concatenate([a, np.repeat(a[:1], more, axis=0)])


def _listed(specs):
    return ", ".join(f"{getattr(dtype, 'name', dtype)} {shape}" for shape, dtype in specs) or "nothing"
