"""What makes a model and its data no pair: found before anything is computed on them."""

import dataclasses

import numpy as np

from thaw.examples import Examples
from thaw.number import all_finite
from thaw.stages import calls_of


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


def refuse(findings):
    """Stop where there is an error among them.

    Args:
        findings: of :func:`mistakes` or :func:`thaw.preflight`.

    Raises:
        ValueError: what was found and what to write instead, of all errors.
    """
    errors = [str(finding) for finding in findings if finding.level == "error"]
    if errors:
        raise ValueError(" ".join(errors))


def mistakes(model, data=None, validation=None, batch_size=32):
    """Look whether the data are of the shape that a model takes, and its labels those that its loss expects.

    Args:
        model: a built ``keras.Model``, compiled or not.
        data: as in :func:`thaw.preflight`; the first batch is looked at, and the labels of all examples.
        validation: likewise; nothing is read of a data set.
        batch_size: examples in a batch.

    Returns:
        A list of :class:`Finding`.

    Raises:
        ValueError: a data set without a batch, or what is no data.

    Example:
        >>> import keras
        >>> from thaw.tuning.mistakes import mistakes
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)], name="net")
        >>> [finding.what for finding in mistakes(model, (np.zeros((3, 5)), np.zeros(3)))]
        ['The inputs have shape (5,) and net takes (4,).']
    """
    data, validation = Examples.of(data), Examples.of(validation)
    found = []
    _look_at_weights(model, found)
    for part, name in ((data, ""), (validation, "validation ")):
        if part is not None and not isinstance(part, Examples) and not hasattr(part, "element_spec"):
            raise ValueError(
                f"The {name}data are a {type(part).__name__}; expected thaw.Examples, arrays (x, y), or a batched "
                "tf.data.Dataset."
            )
        if part is not None and not found:
            _look_at_shape(model, part, name, batch_size, found)
    x, y = (None, None) if data is None or found else _first_batch(data, batch_size)
    labels = {"": data.y if isinstance(data, Examples) else y}  # all of them: a class out of range may be rare
    if isinstance(validation, Examples):
        labels["validation "] = validation.y  # one out of range stops the first validation
    if model.compiled:
        _look_at_loss(model, {name: np.asarray(y) for name, y in labels.items() if y is not None}, found)
    if x is not None:
        _look_at_numbers(x, found)
        _look_at_pixels(model, x, found)
    return found


def _look_at_weights(model, found):
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


def _look_at_shape(model, data, whose, batch_size, found):
    """What each input is declared to be, beside what the data declare; nothing is read."""
    spec = _batches(data, batch_size).element_spec
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
            fix = "Give what load= or a layer such as TextVectorization makes of them."
        elif not (
            _fits(shape, expected)
            or (expected[-1] == 1 and _fits((*shape, 1), expected))  # as Keras does
            or (shape[-1:] == (1,) and _fits(shape[:-1], expected))
        ):
            what = f"The {whose}inputs have shape {shape[1:]} and {model.name} takes {expected[1:]}."
            fix = "Give them in that shape, or make the model for theirs."
        else:
            continue
        found.append(Finding("inputs", "error", what, fix))
        return


def _pairs(model, x):
    """What the data give and what the model takes, input by input, where it is known which is which."""
    import keras

    inputs = getattr(model, "inputs", None) or []  # a subclassed model names none
    if isinstance(x, dict):
        return [(x[t.name], t) for t in inputs] if {t.name for t in inputs} <= set(x) else []
    given = keras.tree.flatten(x)
    return list(zip(given, inputs)) if len(given) == len(inputs) else []


def _fits(shape, expected):
    return len(shape) == len(expected) and all(None in (a, b) or a == b for a, b in zip(shape, expected))


def _look_at_numbers(x, found):
    if not all_finite(x):
        found.append(
            Finding(
                "inputs-not-finite",
                "error",
                "The first batch holds NaN or infinity.",
                "Leave such examples out, or fill the gaps.",
            )
        )


def _look_at_loss(model, labels, found):
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
    losses = keras.tree.flatten(model.loss)
    # A step of the user's own may give the loss something else than the output and these labels.
    usual = type(model).train_step is keras.Model.train_step and type(model).compute_loss is keras.Model.compute_loss
    if len(losses) != 1 or losses[0] is None or not usual:
        return
    name, logits = _loss(losses[0])
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
    if not labels or len(outputs) != 1:
        return
    for whose, y in labels.items():
        wrong = _wrong_labels(losses[0], name, y, outputs[0].shape, f"The {whose}labels")
        if wrong:
            found.append(Finding("labels", "error", *wrong))
            break
    if name == "binary_crossentropy" and activation == "softmax":
        found.append(
            Finding(
                "labels",
                "error",
                "The loss is binary_crossentropy and the model ends in softmax, whose classes compete.",
                "Use sparse_categorical_crossentropy, or end the model in sigmoid.",
            )
        )
    if outputs[0].shape[-1] == 1 and activation == "softmax":
        found.append(
            Finding(
                "one-softmax",
                "error",
                "The model ends in softmax over one unit, which is always 1.",
                "Use sigmoid, or two units.",
            )
        )


def _wrong_labels(loss, name, y, output, they):
    """What is wrong with labels for a loss, and what to write instead; ``None`` where nothing is."""
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
            return f"{they} are no whole numbers and the loss is sparse.", "Number the classes from 0."
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
            what = f"{they} have shape {shape[1:]} and the model puts out {units} numbers for binary_crossentropy."
            return what, "Give as many labels of 0 or 1 as there are outputs."
        if y.min() < 0 or y.max() > 1:
            what = f"{they} go from {y.min():g} to {y.max():g} and binary_crossentropy expects 0 to 1."
            return what, "For more classes use a softmax and sparse_categorical_crossentropy."
    return None


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


def _batches(data, batch_size):
    # By the class: examples that count how far they have been read have not been read yet.
    return Examples.ordered(data, batch_size) if isinstance(data, Examples) else data


def _first_batch(data, batch_size):
    """Inputs and labels of one batch."""
    batch = next(iter(_batches(data, batch_size)), None)
    if batch is None:
        raise ValueError("The data set is empty; expected at least one batch.")
    x, y, *_ = batch if isinstance(batch, (tuple, list)) and len(batch) > 1 else (batch, None)
    # A model of several inputs or outputs is given several arrays: too many ways to look at them.
    return (None if part is None or isinstance(part, (dict, tuple, list)) else np.asarray(part) for part in (x, y))
