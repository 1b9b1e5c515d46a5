"""Convert a traced model for OpenVINO, and compile what was converted."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

OPENVINO_SETTINGS = {
    # Without this a CPU with the instructions for it computes in bfloat16, which has three digits.
    "INFERENCE_PRECISION_HINT": "f32",
    "EXECUTION_MODE_HINT": "ACCURACY",
    "PERFORMANCE_HINT": "LATENCY",  # one batch at a time, with all cores
    "NUM_STREAMS": "1",
    "ENABLE_CPU_PINNING": False,  # two processes would be pinned to the same cores
}


@dataclasses.dataclass(frozen=True, eq=False)
class ConvertedModel:
    """Hold a model as OpenVINO computes it.

    Args:
        model: ``openvino.Model``; its inputs are named ``input_0`` and so on, its outputs ``output_0000`` and so on.
        passed: mapping from the name of each output to the number of the input that it is, or ``None``.
        inside: names of further outputs, which say whether the indices of a table are all inside it.
        identity: what else the last bits depend on, such as the digest of a quantized network. Default ``""``.
    """

    model: Any
    passed: Mapping[str, int | None]
    inside: tuple[str, ...]
    identity: str = ""


def unsupported_reason(traced):
    """Return why OpenVINO could not compute what TensorFlow does, read from the graph; or an empty string.

    Args:
        traced: from :func:`trace_model`.
    """
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


def convert_traced(traced, inputs):
    """Convert a traced model for OpenVINO.

    Args:
        traced: from :func:`trace_model`.
        inputs: number of its inputs.

    Returns:
        :class:`ConvertedModel`.
    """
    import_openvino()
    # An input that is an output too keeps the input's name there, and needs no computing.
    passed = {
        name: _input_behind(tensor, traced.inputs[:inputs])
        for name, tensor in traced.structured_outputs.items()
        if name.startswith("output")
    }
    inside = tuple(name for name in traced.structured_outputs if name.startswith("inside"))
    return ConvertedModel(_openvino_model(traced), passed, inside)


def compile_converted(converted, run_tensorflow):
    """Return a function that computes a batch in OpenVINO.

    Args:
        converted: :class:`ConvertedModel`.
        run_tensorflow: the function for batches that OpenVINO would change.

    Returns:
        A function of a list of arrays, which returns a list of arrays.
    """
    compiled = import_openvino().Core().compile_model(converted.model, "CPU", OPENVINO_SETTINGS)
    request = compiled.create_infer_request()
    # The number is that in the name, whatever the order of the ports.
    inputs = {int(name.split("_")[1]): port for port in compiled.inputs for name in _own_names(port, "input_")}
    ports = {name: port for port in compiled.outputs for name in port.get_names()}
    inside = [ports[name] for name in converted.inside]

    def run(flat):
        if any(_changed_by_openvino(a) for a in flat):
            return run_tensorflow(flat)
        given = {port: np.asarray(flat[i]) for i, port in inputs.items()}
        outputs = request.infer(given, share_inputs=True, share_outputs=True)
        if not all(outputs[port] for port in inside):
            return run_tensorflow(flat)  # which raises the error
        # Copies: the next batch is written over these.
        passed = sorted(converted.passed.items())
        return [np.array(outputs[ports[name]] if i is None else flat[i]) for name, i in passed]

    return run


def _own_names(port, prefix):
    return [name for name in port.get_names() if name.startswith(prefix) and name[len(prefix) :].isdigit()]


def short_reason(error):
    """Return the type and the first words of an error of OpenVINO, which may fill pages."""
    words = " ".join(str(error).split()).split("Summary: -- ")[-1].split(" To facilitate")[0]
    return f"{type(error).__name__}: {words[:200]}"


@functools.cache
def import_openvino():
    """Import OpenVINO with its usage reports turned off.

    ``import openvino`` reports itself through the singleton ``openvino_telemetry.Telemetry``, and its conversion tool
    reports every use. The singleton is created here without consent, so that the import sends nothing, and
    :func:`_openvino_model` does without the tool. Where the package of the reports is missing, OpenVINO sends none;
    where it does not work as expected, the error makes TensorFlow the runtime.

    Returns:
        The module.
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


def _changed_by_openvino(a):
    """Return whether an array holds integers of more than 32 bits, NaN or infinity."""
    a = np.asarray(a)
    if a.dtype.kind == "f":
        with np.errstate(all="ignore"):
            return not np.isfinite(a.sum())
    if a.size == 0 or a.dtype not in (np.int64, np.uint64, np.uint32):
        return False
    return a.max() > np.iinfo(np.int32).max or a.min() < np.iinfo(np.int32).min
