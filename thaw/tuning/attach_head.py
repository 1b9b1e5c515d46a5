"""A new head on a backbone."""

from thaw.stages import graph_of, nodes_of


def attach_head(backbone, classes, *, dropout=0.2, pooling="avg", seed=0):
    """Put a classification head on a backbone: pooling, dropout, and one probability a class.

    The head's weights start at zero (Kolesnikov et al. 2020), so that the first prediction is the same for
    every class and the first gradients do not shake the backbone. The probabilities are float32 also under
    mixed precision: half precision would round the small ones to nothing.

    Args:
        backbone: a functional or sequential ``keras.Model`` whose output is a feature map ``(height, width,
            channels)``, a sequence ``(length, channels)`` or a vector. Its layers are shared, not copied.
        classes: how many; at least 2.
        dropout: share of the features left out at each training step, from 0 to below 1.
        pooling: ``"avg"`` or ``"max"`` over all positions.
        seed: of the dropout.

    Returns:
        A plain ``keras.Model`` from the backbone's input to ``(classes,)`` probabilities.

    Raises:
        ValueError: an argument that cannot be meant, or a backbone that already ends in classes.

    Example:
        >>> from thaw import attach_head, backbone
        >>> attach_head(backbone(weights=None), 3).output_shape
        (None, 3)
    """
    import keras
    from keras import layers

    if not isinstance(classes, int) or classes < 2:
        raise ValueError(f"classes={classes!r}; expected a whole number from 2.")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout!r}; expected a share from 0 to below 1.")
    if pooling not in ("avg", "max"):
        raise ValueError(f'pooling={pooling!r}; expected "avg" or "max".')
    if nodes_of(backbone) is None:
        raise ValueError(
            f"{backbone.name} is no functional or sequential model with an Input, so there is no graph to put a head "
            "on; make one of it: keras.Model(inputs, backbone(inputs))."
        )
    outputs = keras.tree.flatten(backbone.outputs)
    if len(outputs) != 1:
        raise ValueError(
            f"{backbone.name} has {len(outputs)} outputs; expected one. Make a keras.Model with the output you want."
        )
    last = backbone.layers[-1]
    if len(outputs[0].shape) == 2 and getattr(last, "activation", None) is keras.activations.softmax:
        raise ValueError(
            f"{backbone.name} already ends in {outputs[0].shape[-1]} classes; build it without its head "
            "(backbone(..., head=False), or include_top=False in keras.applications)."
        )
    x = outputs[0]
    rank = len(x.shape)
    if rank in (3, 4):
        kind = {
            ("avg", 4): layers.GlobalAveragePooling2D,
            ("max", 4): layers.GlobalMaxPooling2D,
            ("avg", 3): layers.GlobalAveragePooling1D,
            ("max", 3): layers.GlobalMaxPooling1D,
        }[pooling, rank]
        x = kind(name="head_pool")(x)
    elif rank != 2:
        raise ValueError(f"{backbone.name} puts out shape {tuple(x.shape)}; expected a map, a sequence or a vector.")
    if dropout:
        x = layers.Dropout(dropout, seed=seed, name="head_dropout")(x)
    x = layers.Dense(classes, activation="softmax", kernel_initializer="zeros", dtype="float32", name="head_classes")(x)
    return keras.Model(graph_of(backbone).input, x, name=backbone.name)
