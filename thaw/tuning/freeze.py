"""What moves and what stands still."""

from thaw.stages import HEAD, stages_of, sublayers


def freeze(model, train="head", batchnorm="frozen"):
    """Let the named stages move and hold everything else still, BatchNorm statistics included.

    BatchNorm is held layer by layer: in a functional model ``fit`` overrides ``training=False``, and the
    statistics move although nothing is learned. The model is marked as not compiled, because ``fit`` would
    silently go on with what ``trainable`` was when it was compiled.

    Args:
        model: a built ``keras.Model``; changed in place.
        train: ``"head"``; ``"all"``; a number ``n``, the head and the ``n`` stages below it; or stage names.
        batchnorm: ``"frozen"`` holds every BatchNorm; ``"trained"`` lets those of moving stages move.

    Returns:
        The stages that move, as a tuple.

    Raises:
        ValueError: the model has no such stage.

    Example:
        >>> from thaw import attach_head, backbone, freeze
        >>> model = attach_head(backbone(weights=None), 3)
        >>> [stage.name for stage in freeze(model, 1)]
        ['stage5', 'head']
        >>> model.compiled
        False
    """
    import keras

    stages = stages_of(model)
    moving = moving_stages(stages, train)
    if batchnorm not in ("frozen", "trained"):
        raise ValueError(f'batchnorm={batchnorm!r}; expected "frozen" or "trained".')
    # Recursive: every container and every layer. Setting True where it is True already does nothing at all, not
    # even to the layers inside that are False; so False first.
    model.trainable = False
    model.trainable = True
    for stage in stages:
        for layer in stage.layers:
            if stage not in moving:
                layer.trainable = False
            elif batchnorm == "frozen":
                for inner in sublayers(layer):
                    if isinstance(inner, keras.layers.BatchNormalization):
                        inner.trainable = False
    model.compiled = False
    return moving


def moving_stages(stages, train):
    """The stages that ``train`` names, in order; see :func:`freeze`."""
    names = [stage.name for stage in stages]
    if train == "all":
        return tuple(stages)
    if train == "head":
        train = (HEAD,)
    elif isinstance(train, str):
        train = (train,)
    if isinstance(train, bool) or not (
        (isinstance(train, int) and train >= 0) or (isinstance(train, (tuple, list)) and train)
    ):
        raise ValueError(f'train={train!r}; expected "head", "all", a number from 0, or stage names.')
    if isinstance(train, int):
        if train > len(stages) - 1:
            raise ValueError(
                f"train={train} asks for {train} stages below the head, and the model has {len(stages) - 1}; "
                f'write "all", or a number up to {len(stages) - 1}.'
            )
        return tuple(stages[len(stages) - 1 - train :])
    for name in train:
        if name not in names:
            raise ValueError(f'The model has no stage "{name}"; it has {", ".join(names)}.')
    return tuple(stage for stage in stages if stage.name in train)
