"""Read the activation behind the output of a model from its graph."""

from thaw._keras import functional_graph, graph_nodes
from thaw.models.taps import activation_of
from thaw.models.weighted_means import averaged_tensors

# Operations that change no value, only the dtype or the name; and those that change only the shape.
_NEUTRAL = ("Cast", "Identity", "StopGradient")
_RESHAPING = ("Reshape", "Flatten", "Squeeze", "ExpandDims")


def output_activation(model):
    """Return the activation behind the output of a model, read from its graph.

    Looks through nested models, ``Activation("linear")``, ``Identity``, casts to another dtype, and reshaping that
    leaves the last axis as it is. A softmax may be a layer, the ``activation`` of a layer, or ``keras.ops.softmax``.
    The weighted mean of several probabilities (:func:`thaw.models.blend_models`) is what all of them are. A
    ``Rescaling`` behind a linear layer puts standardized numbers back into their units.

    Args:
        model: ``keras.Model``.

    Returns:
        ``"softmax"`` or ``"sigmoid"``; ``"logits"`` for a layer with weights and a linear activation, and
        ``"rescaled"`` where a ``Rescaling`` follows; ``"other"`` for anything else: several outputs, another last
        layer, a subclassed model, whose layers have no known order.

    Example:
        >>> import keras
        >>> from thaw.models.activations import output_activation
        >>> net = [keras.Input((4,)), keras.layers.Dense(2), keras.layers.Softmax()]
        >>> output_activation(keras.Sequential(net)), output_activation(keras.Sequential(net[:2]))
        ('softmax', 'logits')
    """
    if len(getattr(model, "outputs", None) or ()) > 1:
        return "other"
    return _activation_on(_from_output(model))


def output_rescaling(model):
    """Return the layer that puts the standardized output of a model back into the units of its targets.

    Args:
        model: ``keras.Model`` whose :func:`output_activation` is ``"rescaled"``.

    Returns:
        The ``keras.layers.Rescaling``.

    Example:
        >>> import keras
        >>> from thaw.models.activations import output_rescaling
        >>> net = [keras.Input((4,)), keras.layers.Dense(2), keras.layers.Rescaling(100.0)]
        >>> output_rescaling(keras.Sequential(net)).scale
        100.0
    """
    from keras import layers

    return next(operation for operation, *_ in _from_output(model) if type(operation) is layers.Rescaling)


def _activation_on(way):
    """Return the activation that is found first on a way back from an output."""
    from keras import layers

    for operation, shape, before, averaged in way:
        if averaged:
            kinds = set(map(_activation_on, averaged))
            return kinds.pop() if kinds in ({"softmax"}, {"sigmoid"}) else "other"
        if type(operation) is layers.Rescaling and len(shape) == 2:
            return "rescaled" if _activation_on(way) == "logits" else "other"
        while isinstance(operation, (layers.TimeDistributed, layers.SpectralNormalization)):
            operation = operation.layer
        kind = type(operation).__name__
        if kind in ("Softmax", "Sigmoid"):  # layers and keras.ops
            last = (-1, 1) if len(shape) == 2 else (-1, len(shape) - 1)
            return "other" if getattr(operation, "axis", -1) not in last else kind.lower()
        activation = activation_of(operation)
        if activation in ("softmax", "sigmoid"):
            return activation
        if activation == "linear" and not isinstance(operation, layers.Activation):
            return "logits"
        reshapes = kind in _RESHAPING and before is not None and before[-1] == shape[-1]
        if activation != "linear" and kind not in _NEUTRAL and not reshapes:
            return "other"
    return "other"


def _from_output(model, index=0):
    """Yield what computes the output, back to the input, nested models opened, while there is one way.

    Each is ``(operation, shape of its output, shape of its input, ways)``; shapes of a subclassed model are ``None``.
    ``ways`` are those back from each of the tensors of a weighted mean; else empty.
    """
    import keras

    nodes = graph_nodes(model)
    if nodes is None:
        yield model, None, None, ()
        return
    made_by = {id(t): node for node in nodes for t in node.output_tensors}
    yield from _from_tensor(keras.tree.flatten(functional_graph(model).outputs)[index], made_by)


def _from_tensor(tensor, made_by):
    import keras

    while not (node := made_by[id(tensor)]).is_input:
        if isinstance(node.operation, keras.Model):
            yield from _from_output(node.operation, [id(t) for t in node.output_tensors].index(id(tensor)))
        else:
            averaged = [_from_tensor(t, made_by) for t in averaged_tensors(node, made_by)]
            yield node.operation, tensor.shape, node.input_tensors[0].shape if node.input_tensors else None, averaged
        if len(node.input_tensors) != 1:
            return
        tensor = node.input_tensors[0]
