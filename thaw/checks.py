"""Preflight: find the mistakes in a model, its data and its plan before the first step."""

import dataclasses

import numpy as np

from thaw._keras import changed_since_compile, compile_settings, sublayers
from thaw._validation import all_finite
from thaw.data.conversion import as_dataset, as_validation
from thaw.models.heads import output_activation
from thaw.models.stages import HEAD, calls_of, stages_of
from thaw.training.freezing import trainable_stages


@dataclasses.dataclass(frozen=True)
class Finding:
    """One mistake, or possible mistake, in a model, its data or its plan.

    Args:
        code: a short name that stays the same from version to version.
        level: ``"error"``: the result would be wrong; ``"warning"``: it may be worse than it could be; ``"note"``:
            nothing is wrong, but it is good to know.
        what: one sentence: what is wrong.
        fix: one sentence: what to write instead; empty where there is nothing to do.

    Example:
        >>> from thaw import Finding
        >>> print(Finding("logits", "error", "The loss expects logits.", "Write from_logits=False."))
        The loss expects logits. Write from_logits=False.
    """

    code: str
    level: str
    what: str
    fix: str

    def __str__(self):
        return f"{self.what} {self.fix}".rstrip()


def raise_on_errors(findings):
    """Raise where a finding is an error.

    Args:
        findings: of :func:`check_data` or :func:`thaw.preflight`.

    Raises:
        ValueError: all errors: what is wrong, and what to write instead.
    """
    errors = [str(finding) for finding in findings if finding.level == "error"]
    if errors:
        raise ValueError(" ".join(errors))


def check_data(model, data=None, validation=None, batch_size=32):
    """Check that the inputs have the shape that a model takes, and the labels the form that its loss expects.

    Args:
        model: a built ``keras.Model``, compiled or not.
        data: :class:`thaw.Dataset` or stream; its first batch is read, and the labels of all examples. Default
            ``None``.
        validation: :class:`thaw.Dataset` or stream; nothing is read of a stream. Default ``None``.
        batch_size: int, examples in a batch. Default 32.

    Returns:
        A list of :class:`Finding`.

    Raises:
        ValueError: a stream without a batch.

    Example:
        >>> import keras
        >>> from thaw import as_dataset
        >>> from thaw.checks import check_data
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)], name="net")
        >>> [finding.what for finding in check_data(model, as_dataset(np.zeros((3, 5)), np.zeros(3)))]
        ['The inputs have shape (5,) and net takes (4,).']
    """
    findings = []
    _check_weights(model, findings)
    for part, name in ((data, ""), (validation, "validation ")):
        if part is not None and not findings:
            _check_shapes(model, part, name, batch_size, findings)
    x, y = (None, None) if data is None or findings else _first_batch(data, batch_size)
    labels = {"": data.y if data is not None and data.random_access else y}  # all of them: a wrong one may be rare
    if validation is not None and validation.random_access:
        labels["validation "] = validation.y  # a wrong one stops the first validation
    if model.compiled:
        labels = {name: y for name, y in labels.items() if y is not None and not isinstance(y, (dict, tuple))}
        _check_loss(model, {name: np.asarray(y) for name, y in labels.items()}, findings)
    if x is not None:
        _check_numbers(x, findings)
        _check_pixels(model, x, findings)
    return findings


def _check_weights(model, findings):
    broken = [w.path for w in model.weights if "float" in w.dtype and not np.isfinite(w.numpy()).all()]
    if broken:
        findings.append(
            Finding(
                "weights-not-finite",
                "error",
                f"{len(broken)} weights hold NaN or infinity, the first of them {broken[0]}.",
                "Load an earlier model.",
            )
        )


def _check_shapes(model, data, whose, batch_size, findings):
    """Compare the declared shapes of the model's inputs with those of the data; nothing is read."""
    spec = data.ordered(batch_size).element_spec
    x, y, *_ = spec if isinstance(spec, tuple) and len(spec) > 1 else (spec, None)
    for given, own in _pairs(model, x):
        shape, expected = getattr(given, "shape", None), tuple(own.shape)
        if shape is None or shape.rank is None:
            continue
        shape = tuple(shape)
        if _fits(shape, expected[1:]) and getattr(getattr(y, "shape", None), "rank", None) == 0:
            what, fix = f"The {whose}data set is not batched.", "Write data.batch(32)."
        elif given.dtype.name == "string" and own.dtype != "string":
            what = f"The {whose}inputs are texts and {model.name} takes numbers."
            fix = "Convert them with load= or a layer such as TextVectorization."
        elif not (
            _fits(shape, expected)
            or (expected[-1] == 1 and _fits((*shape, 1), expected))  # as Keras does
            or (shape[-1:] == (1,) and _fits(shape[:-1], expected))
        ):
            what = f"The {whose}inputs have shape {shape[1:]} and {model.name} takes {expected[1:]}."
            fix = "Reshape them, or build the model for their shape."
        else:
            continue
        findings.append(Finding("inputs", "error", what, fix))
        return


def _pairs(model, x):
    """Pairs of a declared input of the data and one of the model, where it is known which belongs to which."""
    import keras

    inputs = getattr(model, "inputs", None) or []  # a subclassed model names none
    if isinstance(x, dict):
        return [(x[t.name], t) for t in inputs] if {t.name for t in inputs} <= set(x) else []
    given = keras.tree.flatten(x)
    return list(zip(given, inputs)) if len(given) == len(inputs) else []


def _fits(shape, expected):
    return len(shape) == len(expected) and all(None in (a, b) or a == b for a, b in zip(shape, expected))


def _check_numbers(x, findings):
    if not all_finite(x):
        findings.append(
            Finding(
                "inputs-not-finite",
                "error",
                "The first batch holds NaN or infinity.",
                "Leave such examples out, or fill the gaps.",
            )
        )


def _check_loss(model, labels, findings):
    import keras

    weights = compile_settings(model)["loss_weights"]
    if any(isinstance(weight, str) for weight in keras.tree.flatten(weights)):
        findings.append(
            Finding(
                "metrics-as-weights",
                "error",
                f"compile was given {weights!r} as loss_weights, its third argument.",
                "Write metrics=[...], by name.",
            )
        )
    losses = keras.tree.flatten(model.loss)
    # A step of the user's own may give the loss something else than the output and these labels.
    usual = type(model).train_step is keras.Model.train_step and type(model).compute_loss is keras.Model.compute_loss
    if len(losses) != 1 or losses[0] is None or not usual:
        return
    name, logits = _loss(losses[0])
    activation = output_activation(model)
    probabilities = activation in ("softmax", "sigmoid")
    if "crossentropy" in name:
        if logits and probabilities:
            findings.append(
                Finding(
                    "logits",
                    "error",
                    f"The loss expects logits (from_logits=True) and the model ends in {activation}.",
                    "Write from_logits=False, or leave the activation out.",
                )
            )
        if not logits and activation == "logits":
            findings.append(
                Finding(
                    "logits",
                    "error",
                    "The loss expects probabilities and the model ends without softmax or sigmoid.",
                    "Write from_logits=True in the loss, or end the model in softmax.",
                )
            )
    outputs = keras.tree.flatten(getattr(model, "outputs", None) or [])  # a subclassed model names none
    if not labels or len(outputs) != 1:
        return
    for whose, y in labels.items():
        wrong = _wrong_labels(losses[0], name, y, outputs[0].shape, f"The {whose}labels")
        if wrong:
            findings.append(Finding("labels", "error", *wrong))
            break
    if name == "binary_crossentropy" and activation == "softmax":
        findings.append(
            Finding(
                "labels",
                "error",
                "The loss is binary_crossentropy and the model ends in softmax, which allows one class only.",
                "Use sparse_categorical_crossentropy, or end the model in sigmoid.",
            )
        )
    if outputs[0].shape[-1] == 1 and activation == "softmax":
        findings.append(
            Finding(
                "one-softmax",
                "error",
                "The model ends in softmax over one unit, which is always 1.",
                "Use sigmoid, or two units.",
            )
        )


def _wrong_labels(loss, name, y, output, they):
    """Return what is wrong with labels for a loss and what to write instead, or ``None``."""
    import keras

    if y.dtype.kind in "USO":
        if y.dtype.kind == "O" and not isinstance(y.flat[0], (str, bytes)):
            return None
        return f"{they} are texts, such as {y.flat[0]!s}.", "Number the classes from 0."
    if not hasattr(keras.losses, name) and not hasattr(keras.losses, type(loss).__name__):
        return None  # the user's own, which may expect anything
    broken = int((~np.isfinite(y)).sum()) if y.dtype.kind == "f" else 0
    if broken:
        return f"{they} hold NaN or infinity, {broken} of {y.size}.", "Leave these examples out."
    units, shape = output[-1], y.shape
    column = len(shape) < len(output) or shape[-1] == 1  # one number for each position
    if name == "sparse_categorical_crossentropy":
        if not column:
            fix = "Use categorical_crossentropy, or labels.argmax(-1)."
            return f"{they} have shape {shape[1:]} (one-hot) and the loss is sparse.", fix
        if y.dtype.kind == "f" and (y != np.floor(y)).any():
            return f"{they} are not whole numbers and the loss is sparse.", "Number the classes from 0."
        ignored = getattr(loss, "ignore_class", None)
        counted = y if ignored is None else y[y != ignored]
        low, high = (int(counted.min()), int(counted.max())) if counted.size else (0, 0)
        if low < 0 or high >= units:
            return (
                f"{they} go from {low} to {high} and the model has {units} classes, 0 to {units - 1}.",
                "Number the classes from 0, or give the head as many classes as there are.",
            )
    elif name == "categorical_crossentropy" and (column or shape[-1] != units):
        what = f"{they} are class numbers, or not {units} wide, and categorical_crossentropy expects one-hot."
        return what, "Use sparse_categorical_crossentropy."
    elif name == "binary_crossentropy":
        if (1 if column else shape[-1]) != units:
            what = f"{they} have shape {shape[1:]} and the model has {units} outputs for binary_crossentropy."
            return what, "Give as many labels of 0 or 1 as there are outputs."
        if y.min() < 0 or y.max() > 1:
            what = f"{they} go from {y.min():g} to {y.max():g} and binary_crossentropy expects 0 to 1."
            return what, "For more classes use a softmax and sparse_categorical_crossentropy."
    return None


def _check_pixels(model, x, findings):
    shape = np.shape(x)
    if len(shape) != 4 or shape[-1] not in (1, 3):
        return
    low, high = float(np.min(x)), float(np.max(x))
    # Whole numbers are raw; and a batch that is black all over says nothing.
    scaled_already = x.dtype.kind == "f" and low < high and (high <= 1.0 + 1e-6 or low < -1e-6)
    scales = _scales(model)
    if scaled_already and scales:
        findings.append(
            Finding(
                "rescaled-twice",
                "error",
                f"The pixels go from {low:.3g} to {high:.3g}, so they were rescaled, and the model rescales them again "
                f"(layer {scales}).",
                "Give it raw pixels, 0 to 255.",
            )
        )
    if not scaled_already and high > 10 and scales is None:
        findings.append(
            Finding(
                "never-rescaled",
                "warning",
                f"The pixels go from {low:.3g} to {high:.3g} and no layer of the model scales them.",
                "If it was trained on scaled pixels, put its preprocessing before it (thaw.backbone does).",
            )
        )


def _scales(model):
    """Return the name of the layer before the first weights that scales raw pixels, or ``None``."""
    import keras

    for call in calls_of(model) or ():
        layer = call.layer
        if isinstance(layer, keras.layers.Rescaling):
            if np.max(np.abs(layer.scale)) < 0.1 or np.max(np.abs(layer.offset)) > 4:
                return layer.name
        elif isinstance(layer, keras.layers.Normalization):
            # One that was made from scaled pixels has a small mean and a small variance.
            if layer.mean is not None and max(np.max(np.abs(layer.mean)), np.max(layer.variance)) > 4:
                return layer.name
        elif getattr(layer, "weights", ()):
            return None
    return None


def _loss(loss):
    """Name of a loss in snake case, and whether it expects logits."""
    import keras

    loss = keras.losses.get(loss) if isinstance(loss, str) else loss
    name = getattr(loss, "__name__", None) or type(loss).__name__
    snake = "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")
    config = loss.get_config() if isinstance(loss, keras.losses.Loss) else {}
    return snake, bool(config.get("from_logits", False))


def _first_batch(data, batch_size):
    """Inputs and labels of one batch, ``None`` where there are several inputs or outputs."""
    batch = next(iter(data.ordered(batch_size)), None)
    if batch is None:
        raise ValueError("The data set is empty; expected at least one batch.")
    x, y, *_ = batch if isinstance(batch, (tuple, list)) and len(batch) > 1 else (batch, None)
    return (None if part is None or isinstance(part, (dict, tuple, list)) else np.asarray(part) for part in (x, y))


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
    data = None if x is None else as_dataset(x, y)
    validation = as_validation(validation_data)
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
    return tuple(sorted(findings, key=lambda finding: finding.level))


def _check_plan(model, stages, plan, batch_size, findings):
    scale = _lr_scale(model)
    for phase in plan:
        trainable = trainable_stages(stages, phase.train)
        everything = len(trainable) == len(stages) > 1
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
