"""The classic mistakes, found before they cost anything."""

import numpy as np

from thaw.stages import HEAD, stages_of, sublayers
from thaw.tuning.freeze import moving_stages
from thaw.tuning.mistakes import Finding, mistakes

HIGH_RATE = 1e-3  # for a pre-trained network that moves as a whole, with Adam or the like
SMALL_BATCH = 16  # fewer examples make statistics that are mostly noise (Wu and He 2018)


def preflight(model, data=None, plan=None, *, validation=None, batch_size=32):
    """Look for the classic mistakes of fine-tuning. Looks only: nothing is changed or trained.

    Args:
        model: a built ``keras.Model``, compiled or not; a user's own will do.
        data: what it is to be trained on, :class:`thaw.Examples`, ``(x, y)`` arrays or a batched
            ``tf.data.Dataset``; the first batch is looked at. ``None`` to look at the model alone.
        plan: the :class:`thaw.Plan` to run; without one, ``model.fit`` as the model is compiled now.
        validation: validation data, or ``None`` if there is none.
        batch_size: examples in a batch.

    Returns:
        A tuple of :class:`thaw.tuning.mistakes.Finding`, errors first.

    Raises:
        ValueError: the model is not built, or ``tune`` is asked for a model that is not compiled.

    Example:
        >>> import keras
        >>> from thaw import preflight
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, "softmax")])
        >>> model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> [finding.code for finding in preflight(model)]
        ['logits']
    """
    stages = stages_of(model)
    if plan is not None and not model.compiled:
        raise ValueError(
            f"{model.name} is not compiled; call model.compile(optimizer, loss, metrics) first. "
            "The learning rate comes from the plan."
        )
    found = []
    if plan is not None:
        _look_at_plan(stages, plan, batch_size, found)
        _look_at_head(stages, plan, found)
    else:
        _look_at_fit(model, stages, batch_size, found)
    if data is not None and validation is None:
        found.append(
            Finding(
                "no-validation",
                "warning",
                "There is no validation data, so nothing can tell whether the model learns or memorises.",
                "Keep some examples back: 15 % will do.",
            )
        )
    found += mistakes(model, data, validation, batch_size)
    return tuple(sorted(found, key=lambda f: f.level))


def _look_at_plan(stages, plan, batch_size, found):
    for phase in plan:
        moving = moving_stages(stages, phase.train)
        everything = len(moving) == len(stages) > 1
        if everything and phase.learning_rate * phase.stage_decay ** (len(stages) - 1) >= HIGH_RATE:
            found.append(_high_rate(f'Phase "{phase.name}"', phase.learning_rate))
        if phase.batchnorm == "trained":
            _look_at_batchnorm([s for s in moving if s.name != HEAD], f'Phase "{phase.name}"', batch_size, found)


def _look_at_head(stages, plan, found):
    """A new head begins at zero, and nothing below it learns through zeros."""
    head = stages[-1]
    kernels = [w for layer in head.layers for w in layer.weights if len(w.shape) > 1]
    if head.name != HEAD or not kernels or any(np.any(w.numpy()) for w in kernels):
        return
    if not any(head in moving_stages(stages, phase.train) for phase in plan):
        found.append(
            Finding(
                "head-stands-still",
                "error",
                "The head is new, all zeros, and no phase moves it; the model could not learn anything.",
                'Move it in the first phase: train = "head".',
            )
        )


def _look_at_fit(model, stages, batch_size, found):
    moving = [s for s in stages if any(layer.trainable_variables for layer in s.layers)]
    if model.compiled and len(moving) == len(stages) > 2:
        rate = float(np.asarray(model.optimizer.learning_rate))
        if rate >= HIGH_RATE:
            found.append(_high_rate(f'With "{model.name}" as it is compiled', rate))
    # BatchNorm moves in fit whenever the layer is trainable; `training=False` in the call does not hold it.
    _look_at_batchnorm([s for s in stages if s.name != HEAD], "fit", batch_size, found)
    if _stale(model):
        found.append(
            Finding(
                "stale-trainable",
                "error",
                "trainable was changed after the model was compiled; fit may go on as before and says nothing.",
                "Call compile again after every change of trainable.",
            )
        )


def _high_rate(where, rate):
    return Finding(
        "high-rate",
        "warning",
        f"{where} moves every layer at a learning rate of {rate:g}, which washes out what was pre-trained.",
        "Use 1e-4 or less, a stage_decay below 1, or train the head alone first (--plan probe_then_tune).",
    )


def _look_at_batchnorm(stages, where, batch_size, found):
    import keras

    norms = [
        inner
        for stage in stages
        for layer in stage.layers
        for inner in sublayers(layer)
        if isinstance(inner, keras.layers.BatchNormalization)
    ]
    moving = norms if where != "fit" else [n for n in norms if n.trainable]
    if not moving:
        return
    found.append(
        Finding(
            "batchnorm-moves",
            "warning",
            f"{where} moves the statistics of {len(moving)} BatchNorm layers, also where no weight learns.",
            'If they were pre-trained, hold them: batchnorm = "frozen" in the phase, thaw.freeze(model, ...), or '
            "layer.trainable = False on each; training=False in the call does not hold them.",
        )
    )
    if batch_size < SMALL_BATCH:
        found.append(
            Finding(
                "batchnorm-small-batch",
                "warning",
                f"{where} trains BatchNorm on batches of {batch_size}; its statistics will be mostly noise.",
                f'Use batches of at least {SMALL_BATCH}, or batchnorm = "frozen".',
            )
        )


def _stale(model):
    """Was trainable changed since compile? Keras notes what it was, and makes nothing of it."""
    then = getattr(model, "_compiled_trainable_state", {})
    return model.compiled and any(layer.trainable != was for layer, was in then.items())
