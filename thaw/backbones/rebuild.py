"""The same net again, with something in front of it or a layer more."""


def rebuild(model, before=None, *, after=None, input_shape=None):
    """Copy a net with its weights, and put layers in, so that all of it stays one flat graph.

    Calling ``model(scaled)`` would hide the net inside one layer.

    Args:
        model: a functional or sequential ``keras.Model`` with one input.
        before: function from the symbolic input to what the net shall get instead.
        after: layers to put in, from the name of a layer to the one that follows it.
        input_shape: of the copy, without the batch; ``None`` for the net's own.

    Returns:
        A plain ``keras.Model``.

    Example:
        >>> import keras
        >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
        >>> [type(layer).__name__ for layer in rebuild(net, keras.layers.Rescaling(2.0)).layers]
        ['InputLayer', 'Rescaling', 'Dense']
    """
    import keras

    after = after or {}
    net = keras.Model(model.inputs[0], model.outputs[0], name=model.name)  # a Sequential too becomes functional
    pixels = keras.Input(input_shape or net.inputs[0].shape[1:], name="pixels", dtype=net.inputs[0].dtype)
    scaled = pixels if before is None else before(pixels)

    def call(layer, *args, **kwargs):
        args, kwargs = keras.tree.map_structure(lambda x: scaled if x is pixels else x, (args, kwargs))
        x = layer(*args, **kwargs)
        return after[layer.name](x) if layer.name in after else x

    copy = keras.models.clone_model(net, input_tensors=pixels, call_function=call)
    copy.set_weights(net.get_weights())
    for layer in copy._flatten_layers():
        if isinstance(layer, keras.layers.Normalization) and layer.weights:
            layer.finalize_state()  # it keeps a second copy of its weights to compute with
    return copy
