"""Read a head that is linear in its features: which vectors enter the last dense layer, and how."""

from __future__ import annotations

import dataclasses
from typing import Any

from thaw._keras import graph_nodes
from thaw.models.activations import output_activation, output_rescaling
from thaw.models.stages import calls_of, is_graph
from thaw.models.taps import MAX_STANDARDIZED, MIN_VARIANCE, activation_of
from thaw.models.weighted_means import averaged_tensors
from thaw.models.wide_heads import wide_head


@dataclasses.dataclass(frozen=True, eq=False)
class LinearHead:
    """The last dense layer of a model, and the features that it is linear in.

    Args:
        dense: the ``keras.layers.Dense``.
        activation: ``"softmax"``, ``"sigmoid"`` or ``"linear"``, that of the dense layer or of a layer behind it.
        inputs: raw features, symbolic tensors ``(batch, width)`` of the flat model, in the order of the rows of the
            kernel: one for each stage under a wide head, else one.
        norms: the ``BatchNormalization`` that standardizes each of the inputs; empty for a narrow head.
        clip: standardized features are clipped at plus and minus this number; ``None`` for a narrow head.
        units: the ``Rescaling`` that puts the numbers of the dense layer back into the units of the targets; ``None``
            where there is none.
    """

    dense: Any
    activation: str
    inputs: tuple[Any, ...]
    norms: tuple[Any, ...] = ()
    clip: float | None = None
    units: Any = None


def linear_head(flat):
    """Find the features that the predictions of a model are linear in, up to the last softmax or sigmoid.

    What comes before is the backbone here, hidden dense layers of a head included. Dropout between the features and
    the dense layer is skipped.

    Args:
        flat: functional ``keras.Model`` without nested models, from :func:`thaw.models.flat.flatten_model`.

    Returns:
        :class:`LinearHead`.

    Raises:
        ValueError: the model is nested, or does not end in a dense layer of vectors.

    Example:
        >>> from thaw import attach_head, backbone
        >>> from thaw.models.linear_heads import linear_head
        >>> head = linear_head(attach_head(backbone(weights=None), 3))
        >>> head.dense.name, head.activation, [tuple(t.shape) for t in head.inputs]
        ('head_classes', 'softmax', [(None, 1280)])
    """
    from keras import layers

    nodes = graph_nodes(flat)
    if nodes is None or any(is_graph(node.operation) for node in nodes):
        raise ValueError(f"{flat.name} is nested or has no graph; expected a flat model: flatten_model(model).")
    if len(flat.outputs) != 1:
        raise ValueError(f"{flat.name} has {len(flat.outputs)} outputs; expected one, behind a dense layer.")
    made_by = {id(t): node for node in nodes for t in node.output_tensors}
    activation = output_activation(flat)
    tensor = flat.outputs[0]
    # output_activation has seen that nothing but an activation, casts and reshaping stand between.
    behind = []
    while not isinstance((node := made_by[id(tensor)]).operation, layers.Dense) and len(node.input_tensors) == 1:
        behind.append(activation_of(node.operation))
        tensor = node.input_tensors[0]
    averaged = averaged_tensors(node, made_by)
    if averaged and activation != "other":
        raise ValueError(
            f"{flat.name} puts out the weighted mean of {len(averaged)} models, so that its head is not linear in any "
            "features; solve or train each of them, and blend them again."
        )
    dense = node.operation
    twice = activation_of(dense) != "linear" and not {None, "linear"}.issuperset(behind)
    if activation == "other" or twice or not isinstance(dense, layers.Dense) or len(tensor.shape) != 2:
        raise ValueError(
            f"{flat.name} does not end in a dense layer of vectors with a softmax, a sigmoid or no activation, so that "
            "its head is not linear in any features; put one on: attach_head(backbone, task)."
        )
    units = output_rescaling(flat) if activation == "rescaled" else None
    activation = {"logits": "linear", "rescaled": "linear"}.get(activation, activation)
    calls = calls_of(flat)
    if sum(call.layer is dense for call in calls) > 1:
        raise ValueError(f"{dense.name} is called more than once, so that {flat.name} is not linear in its features.")
    vector = node.input_tensors[0]
    while isinstance((node := made_by[id(vector)]).operation, layers.Dropout):
        vector = node.input_tensors[0]
    wide = wide_head(calls)
    # One of another make, or with a layer in between, is read as a head of one vector.
    is_ours = wide is not None and wide.vector == id(vector) and wide.clip == MAX_STANDARDIZED
    if not is_ours or any(norm.epsilon > MIN_VARIANCE for norm in wide.norms):
        return LinearHead(dense, activation, (vector,), units=units)
    tensors = {id(t): t for node in nodes for t in node.output_tensors}
    return LinearHead(dense, activation, tuple(tensors[key] for key in wide.features), wide.norms, wide.clip, units)
