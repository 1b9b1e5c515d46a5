"""Preflight: find the mistakes in a model, its data and its plan before the first step."""

import numpy as np

from thaw._keras import changed_since_compile, sublayers
from thaw.checks.findings import Finding
from thaw.checks.model_and_data import check_data
from thaw.data.conversion import as_dataset, as_validation
from thaw.models.ensemble_heads import has_ensemble_heads
from thaw.models.loading import unsaveable_reason
from thaw.models.stages import HEAD, stages_of
from thaw.training.freezing import trainable_stages

# For a pre-trained network trained as a whole, with Adam or the like; lr_scale has the factor for other optimizers.
HIGH_LEARNING_RATE, SAFE_LEARNING_RATE = 1e-3, 1e-4
MIN_BATCHNORM_BATCH = 16  # examples; the statistics of fewer are mostly noise (Wu and He 2018)


def preflight(model, x=None, y=None, plan=None, *, validation_data=None, batch_size=32):
    """Find the classic mistakes of fine-tuning before the first step; nothing is changed or trained.

    Args:
        model: a built ``keras.Model``, compiled or not; any model of your own.
        x: training data as :func:`thaw.fine_tune` takes them, or a :class:`thaw.Dataset`; the first batch is read.
            ``None`` to check the model alone. Default ``None``.
        y: targets; ``None`` where ``x`` brings them. Default ``None``.
        plan: the :class:`thaw.Plan` to run; without one, ``model.fit`` is assumed. Default ``None``.
        validation_data: as :func:`thaw.fine_tune` takes them. Default ``None``.
        batch_size: int, examples in a batch. Default 32.

    Returns:
        A tuple of :class:`thaw.Finding`, errors first.

    Raises:
        ValueError: the model is not built; or there is a plan, and the model is not compiled.

    Example:
        >>> import keras
        >>> from thaw import preflight
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, "softmax")])
        >>> model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> [finding.code for finding in preflight(model)]
        ['logits']
    """
    data = None if x is None else as_dataset(x, y, model=model)
    validation = as_validation(validation_data, model=model)
    stages = stages_of(model)
    if plan is not None and not model.compiled:
        raise ValueError(
            f"{model.name} is not compiled; call model.compile(optimizer, loss, metrics) first. "
            "The learning rate comes from the plan."
        )
    findings = []
    if plan is not None:
        _check_plan(model, stages, plan, batch_size, findings)
        _check_head(stages, plan, findings)
    else:
        _check_fit(model, stages, batch_size, findings)
    if data is not None and validation is None:
        findings.append(
            Finding(
                "no-validation",
                "warning",
                "There is no validation data, so overfitting would go unnoticed.",
                "Hold out some examples, such as 15 %, and pass them as validation_data.",
            )
        )
    findings += check_data(model, data, validation, batch_size)
    if reason := unsaveable_reason(model):
        findings.append(Finding("unsaveable", "warning", *reason))
    return tuple(sorted(findings, key=lambda finding: finding.level))


def _check_plan(model, stages, plan, batch_size, findings):
    scale, is_new = _lr_scale(model), has_ensemble_heads(model)  # tables have no pre-trained features to destroy
    for phase in plan:
        trainable = trainable_stages(stages, phase.train)
        everything = len(trainable) == len(stages) > 1 and phase.variables != "adapters" and not is_new
        lowest = phase.learning_rate * phase.layer_decay ** (len(stages) - 1)
        if everything and lowest >= HIGH_LEARNING_RATE * scale:
            findings.append(_high_rate(f'Phase "{phase.name}" is set', phase.learning_rate, scale))
        if phase.batchnorm == "trained":
            _check_batchnorm([s for s in trainable if s.name != HEAD], f'Phase "{phase.name}"', batch_size, findings)


def _check_head(stages, plan, findings):
    """A new head starts at zero, and no gradient passes through zeros."""
    head = stages[-1]
    kernels = [w for layer in head.layers for w in layer.weights if len(w.shape) > 1]
    if head.name != HEAD or not kernels or any(np.any(w.numpy()) for w in kernels):
        return
    if not any(head in trainable_stages(stages, phase.train) for phase in plan):
        findings.append(
            Finding(
                "frozen-head",
                "error",
                "The new head is all zeros and no phase trains it; the model could not learn anything.",
                'Train it in the first phase: train = "head".',
            )
        )


def _check_fit(model, stages, batch_size, findings):
    trainable = [s for s in stages if any(layer.trainable_variables for layer in s.layers)]
    if model.compiled and len(trainable) == len(stages) > 2:
        rate, scale = float(np.asarray(model.optimizer.learning_rate)), _lr_scale(model)
        if rate >= HIGH_LEARNING_RATE * scale:
            findings.append(_high_rate(f'The model "{model.name}" is compiled', rate, scale))
    # BatchNorm updates its statistics in fit whenever the layer is trainable, whatever training= it is called with.
    _check_batchnorm([s for s in stages if s.name != HEAD], "fit", batch_size, findings)
    if changed_since_compile(model):
        findings.append(
            Finding(
                "stale-trainable",
                "error",
                "trainable was changed after compile, and fit silently uses the values from compile.",
                "Call compile again after every change of trainable.",
            )
        )


def _lr_scale(model):
    from thaw.training.optimizers import lr_scale

    return lr_scale(model.optimizer)


def _high_rate(where, rate, scale):
    return Finding(
        "high-rate",
        "warning",
        f"{where} to train all layers at a learning rate of {rate:g}, which destroys pre-trained features.",
        f"If the weights are pre-trained, use {SAFE_LEARNING_RATE * scale:g} or less, a layer_decay below 1, or train "
        "the head first (--plan probe_then_tune).",
    )


def _check_batchnorm(stages, where, batch_size, findings):
    import keras

    norms = [
        inner
        for stage in stages
        for layer in stage.layers
        for inner in sublayers(layer)
        if isinstance(inner, keras.layers.BatchNormalization)
    ]
    trainable = norms if where != "fit" else [n for n in norms if n.trainable]
    if not trainable:
        return
    findings.append(
        Finding(
            "trainable-batchnorm",
            "warning",
            f"{where} updates the statistics of {len(trainable)} BatchNorm layers, even at a learning rate of zero.",
            'If they were pre-trained, freeze them: batchnorm = "frozen" in the phase, thaw.freeze(model, ...), or '
            "layer.trainable = False on each layer; calling them with training=False does not freeze them in fit.",
        )
    )
    if batch_size < MIN_BATCHNORM_BATCH:
        findings.append(
            Finding(
                "batchnorm-small-batch",
                "warning",
                f"{where} trains BatchNorm on batches of {batch_size}; its statistics will be mostly noise.",
                f'Use batches of at least {MIN_BATCHNORM_BATCH}, or batchnorm = "frozen".',
            )
        )
