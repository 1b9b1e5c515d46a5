"""The classic mistakes, found before they cost anything."""

import dataclasses

import numpy as np

from thaw.examples import Examples
from thaw.stages import HEAD, calls_of, stages_of, sublayers
from thaw.tuning.freeze import moving_stages

HIGH_RATE = 1e-3  # for a pre-trained network that moves as a whole, with Adam or the like
SMALL_BATCH = 16  # fewer examples make statistics that are mostly noise (Wu and He 2018)


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that preflight found.

    Args:
        code: a short name that stays the same.
        level: ``"error"``: the result would be wrong; ``"warning"``: it may be worse than it need be.
        what: what was found.
        fix: what to write instead.
    """

    code: str
    level: str
    what: str
    fix: str

    def __str__(self):
        return f"{self.what} {self.fix}"


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
        A tuple of :class:`Finding`, errors first.

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
    x, y = _first_batch(data, batch_size)
    if isinstance(data, Examples):
        y = data.y  # all of them: a class out of range may be rare
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
    broken = [w.path for w in model.weights if "float" in w.dtype and not np.isfinite(w.numpy()).all()]
    if broken:
        found.append(
            Finding(
                "weights-not-finite",
                "error",
                f"{len(broken)} weights hold NaN or infinity, the first of them {broken[0]}.",
                "Take the model from an earlier file.",
            )
        )
    if model.compiled:
        if isinstance(validation, Examples) and y is not None and validation.y.shape[1:] == np.shape(y)[1:]:
            y = np.concatenate([y, validation.y])  # one out of range stops the first validation
        _look_at_loss(model, y, found)
    if x is not None:
        _look_at_pixels(model, x, found)
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


def _look_at_loss(model, y, found):
    import keras

    weights = model._compile_config.config["loss_weights"]
    if any(isinstance(weight, str) for weight in keras.tree.flatten(weights)):
        found.append(
            Finding(
                "metrics-as-weights",
                "error",
                f"compile was given {weights!r} as loss_weights, its third argument.",
                "Write metrics=[...], by name.",
            )
        )
    loss = model.loss
    if isinstance(loss, (dict, list, tuple)) or loss is None:
        return
    name, logits = _loss(loss)
    activation = _last_activation(model)
    probabilities = activation in ("softmax", "sigmoid")
    if "crossentropy" in name:
        if logits and probabilities:
            found.append(
                Finding(
                    "logits",
                    "error",
                    f"The loss expects logits (from_logits=True) and the model ends in {activation}.",
                    "Write from_logits=False, or leave the activation out.",
                )
            )
        if not logits and activation == "linear":
            found.append(
                Finding(
                    "logits",
                    "error",
                    "The loss expects probabilities and the model ends without softmax or sigmoid.",
                    "Write from_logits=True in the loss, or end the model in softmax.",
                )
            )
    outputs = keras.tree.flatten(getattr(model, "outputs", None) or [])  # a subclassed model names none
    if y is None or len(outputs) != 1:
        return
    units, shape = outputs[0].shape[-1], np.shape(y)
    column = len(shape) < len(outputs[0].shape) or shape[-1] == 1  # one number for each position
    if name == "sparse_categorical_crossentropy" and not column:
        found.append(
            Finding(
                "labels",
                "error",
                f"The labels have shape {shape[1:]} (one-hot) and the loss is sparse.",
                "Use categorical_crossentropy, or labels.argmax(-1).",
            )
        )
    elif name == "categorical_crossentropy" and (column or shape[-1] != units):
        found.append(
            Finding(
                "labels",
                "error",
                f"The labels are class numbers, or not {units} wide, and categorical_crossentropy expects one-hot.",
                "Use sparse_categorical_crossentropy.",
            )
        )
    elif name == "sparse_categorical_crossentropy":
        ignored = getattr(loss, "ignore_class", None)
        counted = np.asarray(y) if ignored is None else np.asarray(y)[np.asarray(y) != ignored]
        low, high = (int(counted.min()), int(counted.max())) if counted.size else (0, 0)
        if low < 0 or high >= units:
            found.append(
                Finding(
                    "labels",
                    "error",
                    f"The labels go from {low} to {high} and the model has {units} classes, 0 to {units - 1}.",
                    "Number the classes from 0, or give the head as many classes as there are.",
                )
            )
    elif name == "binary_crossentropy" and activation == "softmax":
        found.append(
            Finding(
                "labels",
                "error",
                "The loss is binary_crossentropy and the model ends in softmax, whose classes compete.",
                "Use sparse_categorical_crossentropy, or end the model in sigmoid.",
            )
        )
    if units == 1 and activation == "softmax":
        found.append(
            Finding(
                "one-softmax",
                "error",
                "The model ends in softmax over one unit, which is always 1.",
                "Use sigmoid, or two units.",
            )
        )


def _look_at_pixels(model, x, found):
    shape = np.shape(x)
    if len(shape) != 4 or shape[-1] not in (1, 3):
        return
    low, high = float(np.min(x)), float(np.max(x))
    # Whole numbers are raw; and a batch that is black all over says nothing.
    scaled_already = x.dtype.kind == "f" and low < high and (high <= 1.0 + 1e-6 or low < -1e-6)
    scales = _scales(model)
    if scaled_already and scales:
        found.append(
            Finding(
                "rescaled-twice",
                "error",
                f"The pixels go from {low:.3g} to {high:.3g}, so they were rescaled, and the model rescales them again "
                f"(layer {scales}).",
                "Give it raw pixels, 0 to 255.",
            )
        )
    if not scaled_already and high > 10 and scales is None:
        found.append(
            Finding(
                "never-rescaled",
                "warning",
                f"The pixels go from {low:.3g} to {high:.3g} and no layer of the model scales them.",
                "If it was trained on scaled pixels, put its preprocessing in front (thaw.backbone does).",
            )
        )


def _scales(model):
    """Name of the layer in front of the first weights that brings raw pixels to a small range, if there is one."""
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


def _last_activation(model):
    import keras

    calls = calls_of(model)
    layer = calls[-1].layer if calls else model.layers[-1]
    if isinstance(layer, keras.layers.Softmax):
        return "softmax"
    activation = getattr(layer, "activation", None)
    return getattr(activation, "__name__", "unknown")


def _first_batch(data, batch_size):
    if data is None:
        return None, None
    if isinstance(data, Examples):
        data = data.ordered(batch_size)
    if isinstance(data, (tuple, list)):
        return np.asarray(data[0][:batch_size]), np.asarray(data[1])
    x, y, *_ = next(iter(data))
    # A model of several inputs or outputs is given several arrays: too many ways to look at them.
    return (None if isinstance(part, (dict, tuple, list)) else np.asarray(part) for part in (x, y))
