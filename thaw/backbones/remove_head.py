"""Take the head off a model."""

from thaw.stages import nodes_of


def remove_head(model):
    """Cut a model behind its last feature map.

    Walks back from the output over pooling, flattening, dense layers, activations and dropout until a
    tensor of height, width and channels is met. Models without pictures inside lose their last dense layer.

    Args:
        model: a functional or sequential ``keras.Model`` with one input and one output.

    Returns:
        A plain ``keras.Model`` on the same layers; ``model`` itself where its output already is a
        feature map.

    Raises:
        ValueError: several inputs or outputs, a model without a graph, or nothing left in front of the head.

    Example:
        >>> import keras
        >>> from keras import layers
        >>> net = [keras.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(2)]
        >>> remove_head(keras.Sequential(net)).output_shape
        (None, 6, 6, 4)
    """
    import keras

    nodes = nodes_of(model)
    if nodes is None:
        raise ValueError(
            f"{model.name} is written as a class, so that its layers show no order; expected a functional or "
            "sequential model. Build one with keras.Model(inputs, outputs) and save it again."
        )
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ValueError(
            f"{model.name} has {len(model.inputs)} inputs and {len(model.outputs)} outputs; expected one "
            f"of each. "
            "Make a keras.Model of the part you want and save that."
        )
    made_by = {id(t): node for node in nodes for t in node.output_tensors}
    output = model.outputs[0]
    chain = _chain(output, made_by)
    cut = _feature_map(chain, made_by)
    if cut is None:
        dense = [t for t in chain if isinstance(made_by[id(t)].operation, keras.layers.Dense)]
        cut = made_by[id(dense[0])].input_tensors[0] if dense else output
    if cut is output:
        return model
    if made_by[id(cut)].is_input:
        raise ValueError(f"{model.name} is all head: nothing is left in front of its dense layers.")
    return keras.Model(model.inputs[0], cut, name=model.name)


def _chain(tensor, made_by):
    """Tensors from the output back, as long as each comes from one other by an operation that a head
    may hold."""
    from keras import layers

    in_heads = (
        layers.Dense,
        layers.Activation,
        layers.Softmax,
        layers.ReLU,
        layers.Dropout,
        layers.BatchNormalization,
        layers.LayerNormalization,
        layers.Flatten,
        layers.Reshape,
        *_poolings(layers),
    )
    in_map = (*in_heads, layers.Conv2D, layers.ZeroPadding2D)
    chain = [tensor]
    while True:
        node = made_by[id(chain[-1])]
        # A net that ends in 1 x 1 convolutions on what was pooled (MobileNet) has a head that is 4-D too.
        allowed = in_map if len(chain[-1].shape) == 4 else in_heads
        name = type(node.operation).__name__
        if node.is_input or len(node.input_tensors) != 1:
            return chain
        if not isinstance(node.operation, allowed) and name not in (
            "Mean",
            "Max",
            "Squeeze",
            "Reshape",
            "Softmax",
        ):
            return chain
        chain.append(node.input_tensors[0])


def _feature_map(chain, made_by):
    """The last tensor with height and width, seen through a pooling that leaves 1 x 1."""
    from keras import layers

    maps = [t for t in chain if len(t.shape) == 4]
    for tensor in maps:
        if tuple(tensor.shape[1:3]) != (1, 1):
            break
        if isinstance(made_by[id(tensor)].operation, _poolings(layers)[:2]):
            return made_by[id(tensor)].input_tensors[0]
    return maps[0] if maps else None


def _poolings(layers):
    return (
        layers.GlobalAveragePooling2D,
        layers.GlobalMaxPooling2D,
        layers.AveragePooling2D,
        layers.MaxPooling2D,
        layers.GlobalAveragePooling1D,
        layers.GlobalMaxPooling1D,
    )
