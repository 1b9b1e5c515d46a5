"""The model that pictures are tuned with."""


def picture_model(backbone, classes, seed=0):
    """Put a head on a backbone and compile it as :func:`thaw.tune_pictures` does.

    Args:
        backbone: without a head.
        classes: how many.
        seed: of the dropout in the head.

    Returns:
        A plain, compiled ``keras.Model``.

    Example:
        >>> from thaw import backbone
        >>> from thaw.jobs.picture_model import picture_model
        >>> picture_model(backbone(weights=None), 3).compiled
        True
    """
    import keras

    from thaw.tuning.attach_head import attach_head

    model = attach_head(backbone, classes, seed=seed)
    model.compile(
        keras.optimizers.AdamW(weight_decay=1e-4, global_clipnorm=1.0),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model
