"""The side of the pictures that a backbone takes."""


def picture_size(backbone, name=None):
    """Make sure that a backbone takes square pictures in colour, before any is read.

    Args:
        backbone: a ``keras.Model``.
        name: what the user calls it; ``None`` for its own name.

    Returns:
        Their side in pixels.

    Raises:
        ValueError: it takes something else, or pictures of any size.

    Example:
        >>> from thaw import backbone
        >>> from thaw.jobs.picture_size import picture_size
        >>> picture_size(backbone(weights=None, input_shape=(64, 64, 3)))
        64
    """
    name, shape = name or backbone.name, tuple(backbone.inputs[0].shape[1:])
    if shape == (None, None, 3):
        raise ValueError(
            f"{name} takes pictures of any size; say which is meant: --image-size 224, in Python "
            "input_shape=(224, 224, 3)."
        )
    if len(shape) != 3 or shape[0] != shape[1] or shape[2] != 3 or shape[0] is None:
        raise ValueError(
            f"{name} takes inputs of shape {shape}; expected square pictures of one size with 3 channels, such as "
            "(224, 224, 3). Take another model, or build this one for such pictures and save it again."
        )
    return shape[0]
