"""A learning rate for pictures and a backbone."""

STEPS, REPEATS = 100, 3


def find_rate(backbone, pictures, *, train=None, batch_size=32, seed=0, progress=None):
    """Run the range test of :func:`thaw.find_learning_rate` where training would begin.

    What stands still is computed once. Where more than the head moves, the head is trained first, alone, for a few
    epochs, as in the plans: at a head of zeros nothing below it would learn. The pictures are not augmented.

    Args:
        backbone: from :func:`thaw.backbone`, without a head, for pictures of the same size.
        pictures: from :func:`thaw.images`.
        train: what is to move: ``"head"``, ``"all"``, or a number of stages below the head; ``None`` for two, or for
            one where there are no more.
        batch_size: pictures in a batch.
        seed: of the order of the pictures.
        progress: called with (done, total, what).

    Returns:
        :class:`~thaw.tuning.find_learning_rate.RangeTest`.

    Raises:
        ValueError: the model has no such stages.

    Example:
        >>> from thaw import backbone, images
        >>> from thaw.jobs.find_rate import find_rate
        >>> print(find_rate(backbone(), images("photos"), train=2))         # doctest: +SKIP
    """
    from thaw.jobs.counted import counted
    from thaw.jobs.picture_model import picture_model
    from thaw.plan import Phase, Plan
    from thaw.stages import stages_of
    from thaw.tuning.find_learning_rate import find_learning_rate
    from thaw.tuning.flatten import CannotSplit
    from thaw.tuning.freeze import freeze
    from thaw.tuning.precompute import precompute
    from thaw.tuning.split import split
    from thaw.tuning.tune import tune

    told = progress or (lambda done, total, what: None)
    model = picture_model(backbone, len(pictures.labels), seed)
    settings = dict(model._compile_config.config)
    data = pictures.train.weighted(pictures.class_weight)
    batch_size = min(batch_size, len(data))
    train = min(2, len(stages_of(model)) - 1) if train is None else train
    freeze(model, train)  # a stage that is not there is found before anything is computed
    if train != "head":
        model.compile(**settings)
        alone = Plan([Phase(name="head", epochs=3, train="head", learning_rate=1e-3, views=1)])
        shown = _once(told)
        tune(model, alone, (data, pictures.validation), batch_size=batch_size, seed=seed, callbacks=[shown])
        freeze(model, train)
    try:
        prefix, tested = split(model)
    except CannotSplit:
        tested = model
    else:
        data = precompute(prefix, data, batch_size=batch_size, progress=_once(told).on_precompute)
    tested.compile(**settings)
    data = counted(data, told, "rates from low to high", STEPS * REPEATS)
    return find_learning_rate(tested, data, batch_size=batch_size, steps=STEPS, repeats=REPEATS, seed=seed)


def _once(told):
    """A callback that tells how far the pass over what stands still has come."""
    import keras

    shown = keras.callbacks.Callback()
    shown.on_precompute = lambda done, total: told(done, total, "what stands still, once")
    return shown
