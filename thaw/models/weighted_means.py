"""Recognize a blend in a graph: the weighted mean of the probabilities of several models."""

from __future__ import annotations

MAX_SHARE_ERROR = 1e-6  # of the sum of the shares, which is 1


def averaged_tensors(node, made_by):
    """Return the tensors whose weighted mean a node of a graph computes.

    A weighted mean is an ``Add`` of ``Rescaling`` layers without offset, whose scales are positive and sum to 1, as in
    :func:`thaw.models.blend_models`. Names do not count.

    Args:
        node: a node, from :func:`thaw._keras.graph_nodes`.
        made_by: dict from the id of each symbolic tensor of the graph to the node that makes it.

    Returns:
        A tuple of symbolic tensors in the order of the sum; empty where the node computes anything else.

    Example:
        >>> import keras
        >>> from thaw._keras import graph_nodes
        >>> from thaw.models.weighted_means import averaged_tensors
        >>> entry = keras.Input((4,))
        >>> x, y = keras.layers.Softmax()(entry), keras.layers.Dense(4, "softmax")(entry)
        >>> mean = keras.layers.Add()([keras.layers.Rescaling(0.25)(x), keras.layers.Rescaling(0.75)(y)])
        >>> nodes = graph_nodes(keras.Model(entry, mean))
        >>> made_by = {id(t): node for node in nodes for t in node.output_tensors}
        >>> averaged_tensors(made_by[id(mean)], made_by) == (x, y)
        True
    """
    makers = [made_by.get(id(tensor)) for tensor in node.input_tensors]
    if None in makers or not _averages(node.operation, [maker.operation for maker in makers]):
        return ()
    return tuple(maker.input_tensors[0] for maker in makers)


def averaged_keys(calls):
    """Return the ids of the tensors whose weighted mean the last of the calls of a model computes.

    Args:
        calls: from :func:`thaw.models.stages.calls_of`.

    Returns:
        A tuple of int, as :func:`averaged_tensors`.
    """
    if not calls:
        return ()
    made_by = {key: call for call in calls for key in call.outputs}
    makers = [made_by.get(key) for key in calls[-1].inputs]
    if None in makers or not _averages(calls[-1].layer, [maker.layer for maker in makers]):
        return ()
    return tuple(maker.inputs[0] for maker in makers)


def _averages(operation, makers):
    """Say whether an operation is the sum of what ``makers`` make, and these multiply by shares."""
    import numpy as np
    from keras import layers

    if type(operation) is not layers.Add or any(type(maker) is not layers.Rescaling for maker in makers):
        return False
    scales = [maker.scale for maker in makers]
    if any(np.ndim(scale) or scale <= 0 for scale in scales) or any(np.any(maker.offset) for maker in makers):
        return False
    return abs(sum(scales) - 1) <= MAX_SHARE_ERROR
