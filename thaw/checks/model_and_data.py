"""Check a model against its data: shapes, labels, loss, metrics and pixels."""

import numpy as np

from thaw._keras import compile_settings
from thaw._validation import all_finite
from thaw.checks.findings import Finding
from thaw.checks.losses_and_metrics import misread_metrics, one_hot_metrics, wrong_labels
from thaw.checks.pixels import pixel_range, scaling_layer
from thaw.models.heads import output_activation
from thaw.models.inputs import fits_shape, match_inputs
from thaw.models.state import stateful_batch_size, stateful_layers
from thaw.tasks import loss_name


def check_data(model, data=None, validation=None, batch_size=32):
    """Check that the inputs have the shape that a model takes, and the labels the form that its loss expects.

    Args:
        model: a built ``keras.Model``, compiled or not.
        data: :class:`thaw.Dataset` or stream; its first batch is read, and the labels of all examples. Default
            ``None``.
        validation: :class:`thaw.Dataset` or stream; nothing is read of a stream. Default ``None``.
        batch_size: int, examples in a batch. Default 32.

    Returns:
        A list of :class:`thaw.Finding`.

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
        if part is not None and not findings:
            _check_states(model, part, name, batch_size, findings)
    x, y, weight = (None, None, None) if data is None or findings else _first_batch(data, batch_size)
    if weight is not None and np.min(weight, initial=0) < 0:
        what = f"The lowest sample weight in the first batch is {np.min(weight):g}."
        findings.append(Finding("negative-weight", "error", what, "Expected numbers of 0 or more."))
    labels = {"": data.y if data is not None and data.random_access else y}  # all of them: a wrong one may be rare
    if validation is not None and validation.random_access:
        labels["validation "] = validation.y  # a wrong one stops the first validation
    if model.compiled:
        labels = {name: y for name, y in labels.items() if y is not None and not isinstance(y, (dict, tuple))}
        _check_loss(model, {name: np.asarray(y) for name, y in labels.items()}, findings)
        _check_metrics(model, findings)
    if data is not None and data.random_access:
        _check_order(model, findings)
    if x is not None:
        _check_numbers(x, findings)
        again = validation is not None and not getattr(validation, "read_once", False)
        other = _first_batch(validation, batch_size)[0] if again else None
        _check_pixels(model, x, other, findings)
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
    try:
        pairs = match_inputs(model, x, f"The {whose}inputs")
    except ValueError as error:
        findings.append(Finding("inputs", "error", str(error), "Give as many as the model has, by the same names."))
        return
    for given, own in pairs:
        shape, expected = getattr(given, "shape", None), tuple(own.shape)
        if shape is None or shape.rank is None:
            continue
        shape = tuple(shape)
        if fits_shape(shape, expected[1:]) and getattr(getattr(y, "shape", None), "rank", None) == 0:
            what, fix = f"The {whose}data set is not batched.", "Write data.batch(32)."
        elif given.dtype.name == "string" and own.dtype != "string":
            what = f"The {whose}inputs are texts and {model.name} takes numbers."
            fix = "Convert them with load= or a layer such as TextVectorization."
        elif not fits_shape(shape, expected):
            what = f"The {whose}inputs have shape {shape[1:]} and {model.name} takes {expected[1:]}."
            fix = "Reshape them, or build the model for their shape."
        else:
            continue
        findings.append(Finding("inputs", "error", what, fix))
        return


def _check_states(model, data, whose, batch_size, findings):
    """A stateful layer has room for batches of one size."""
    import keras

    stateful = stateful_batch_size(model)
    if stateful is None:
        return
    layer, size = stateful
    fix = f"Use batch_size={size} and a multiple of {size} examples, or build the layer with stateful=False."
    if data.random_access:
        last = len(data) % batch_size
        sizes = {min(batch_size, len(data)), last or batch_size}
        given = f"{len(data)} {whose}examples in batches of {batch_size}" + (f" leave {last}" if last else " came")
    else:
        shape = keras.tree.flatten(data.batches.element_spec)[0].shape
        sizes = {shape[0] if shape.rank else None}
        given = f"the {whose}data set may have batches of another size"
        fix = f"Write data.batch({size}, drop_remainder=True), or build the layer with stateful=False."
    if sizes != {size}:
        what = f"The stateful layer {layer.name} takes batches of {size} examples, and {given}."
        findings.append(Finding("stateful-batch", "error", what, fix))


def _check_order(model, findings):
    stateful = stateful_layers(model)
    if stateful:
        findings.append(
            Finding(
                "stateful-order",
                "warning",
                f"The stateful layer {stateful[0].name} passes its state on from batch to batch, and the order is "
                "shuffled.",
                "Pass the batches in their order, as a tf.data.Dataset, or build the layer with stateful=False.",
            )
        )


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
    names = getattr(model, "output_names", None) or []
    if usual and labels and len(names) > 1:
        what = f"The {next(iter(labels))}labels are one array and the model has {len(names)} outputs"
        fix = "Give a tuple of labels, one for each output, or a dict by their names."
        findings.append(Finding("labels", "error", f"{what} ({', '.join(names)}).", fix))
    if len(losses) != 1 or losses[0] is None or not usual:
        return
    name, logits = loss_name(losses[0])
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
        wrong = wrong_labels(losses[0], name, y, outputs[0].shape, f"The {whose}labels")
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


def _check_metrics(model, findings):
    for name, fix in misread_metrics(model):
        what = f"The metric {name} expects probabilities and the model ends in logits, without softmax or sigmoid."
        findings.append(Finding("metric-of-logits", "warning", what, fix))
    for name in one_hot_metrics(model):
        what = f"The metric {name} expects one-hot labels and the loss expects class numbers."
        fix = "Use one-hot labels and categorical_crossentropy, or leave the metric out."
        findings.append(Finding("metric-labels", "error", what, fix))


def _check_pixels(model, x, validation, findings):
    kind, low, high = pixel_range(x)
    scales = scaling_layer(model)
    if kind == "rescaled" and scales:
        findings.append(
            Finding(
                "rescaled-twice",
                "error",
                f"The pixels go from {low:.3g} to {high:.3g}, so they were rescaled, and the model rescales them again "
                f"(layer {scales}).",
                "Give it raw pixels, 0 to 255.",
            )
        )
    if kind == "raw" and scales is None:
        findings.append(
            Finding(
                "never-rescaled",
                "warning",
                f"The pixels go from {low:.3g} to {high:.3g} and no layer of the model scales them.",
                "If it was trained on scaled pixels, put its preprocessing before it (thaw.backbone does).",
            )
        )
    other, lowest, highest = pixel_range(validation)
    if {kind, other} == {"raw", "rescaled"}:
        findings.append(
            Finding(
                "validation-pixels",
                "error",
                f"The pixels of the training data go from {low:.3g} to {high:.3g} and those of the validation data "
                f"from {lowest:.3g} to {highest:.3g}.",
                "Prepare both in the same way.",
            )
        )


def _first_batch(data, batch_size):
    """Inputs, labels and weights of one batch, ``None`` where there are none, or several."""
    batch = next(iter(data.ordered(batch_size)), None)
    if batch is None:
        raise ValueError("The data set is empty; expected at least one batch.")
    parts = (*batch, None, None)[:3] if isinstance(batch, (tuple, list)) and len(batch) > 1 else (batch, None, None)
    return [None if part is None or isinstance(part, (dict, tuple, list)) else np.asarray(part) for part in parts]
