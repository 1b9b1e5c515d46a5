"""Predict probabilities and evaluate them."""

from __future__ import annotations

import functools

import numpy as np

from thaw._validation import as_int, as_seed, check_model
from thaw.data.augmentation import count_flips, flipped
from thaw.data.conversion import as_dataset
from thaw.features.inference import inference_runner
from thaw.metrics.classification import classification_metrics
from thaw.metrics.multilabel import multilabel_metrics
from thaw.metrics.regression import regression_metrics
from thaw.models.heads import output_activation
from thaw.models.inputs import check_inputs
from thaw.models.state import preserve_variables, state_variables
from thaw.targets import MultiLabel
from thaw.tasks import class_numbers

MIN_PROBABILITY = 1e-7  # so that the logarithm is finite


def predict_proba(model, x, *, batch_size=32, views=1, flips="horizontal"):
    """Predict the probability of each class.

    Softmax outputs are taken as they are; a linear last layer puts out logits, which go through a softmax; a single
    unit is the probability, or the logit, of class 1. The model is only called: its weights, its compilation and the
    state of its random layers are bit-identical afterwards.

    Args:
        model: a ``keras.Model`` with one output of shape ``(n, classes)`` or ``(n, 1)``.
        x: inputs, as :func:`thaw.as_dataset` takes them, or a :class:`thaw.Dataset`, read in order and not augmented.
        batch_size: examples in a batch; a stream keeps its own. Default 32.
        views: number of versions of each image whose probabilities are averaged, as Krizhevsky et al. (2012) do: the
            image itself, then its flips in the order of the training. Default 1.
        flips: which flips: ``"horizontal"`` (default; 2 versions), ``"vertical"`` (2) or ``"both"`` (4). Take those
            that the model was trained with.

    Returns:
        Float64 array ``(n, classes)`` whose rows sum to 1, in the order of ``x``.

    Raises:
        ValueError: data without an end, or a model that does not put out one score for each class, or NaN; more views
            than there are flips, or inputs that are no images.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.features import predict_proba
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
        >>> predict_proba(model, np.zeros((1, 2))).tolist()
        [[0.5, 0.5]]
    """
    check_model(model)
    dataset = as_dataset(x, model=model)
    inputs, examples = dataset.inputs(batch_size), _example_count(dataset, batch_size)
    return batch_probabilities(model, inputs, examples=examples, views=views, flips=flips)


def predict_proba_with_labels(model, x, y=None, *, batch_size=32, runtime="auto", views=1, flips="horizontal"):
    """Predict the probability of each class in one pass with the labels, which a stream may yield in any order.

    Args:
        model: as in :func:`predict_proba`.
        x: inputs, or a :class:`thaw.Dataset` or a stream with labels.
        y: labels, one class for each example, or the name of their column. Default ``None``: in ``x``.
        batch_size: examples in a batch; a stream keeps its own. Default 32.
        runtime: ``"auto"`` (default), or ``"tensorflow"`` for the same bits however many examples there are.
        views: as in :func:`predict_proba`.
        flips: as in :func:`predict_proba`.

    Returns:
        ``(y, p)``: class numbers ``(n,)`` and probabilities ``(n, classes)``.

    Raises:
        ValueError: as :func:`predict_proba`, and for labels that are not one class for each example.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.features.predictions import predict_proba_with_labels
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Softmax()])
        >>> y, p = predict_proba_with_labels(model, np.zeros((3, 2)), np.array([0, 1, 1]))
        >>> y.tolist(), p[0].tolist()
        ([0, 1, 1], [0.5, 0.5])
    """
    y, p = predict_with_targets(
        model, x, y, convert=as_probabilities, batch_size=batch_size, runtime=runtime, views=views, flips=flips
    )
    return class_numbers(y, p.shape[1]), p


def predict_with_targets(model, x, y, *, convert, batch_size, runtime="auto", views=1, flips="horizontal"):
    """Predict in one pass with the targets, as they are.

    Args:
        model: as in :func:`predict_proba`.
        x: as in :func:`predict_proba_with_labels`.
        y: as in :func:`predict_proba_with_labels`.
        convert: function from the model and its output to predictions, such as :func:`as_probabilities`.
        batch_size: as in :func:`predict_proba_with_labels`.
        runtime: as in :func:`predict_proba_with_labels`.
        views: as in :func:`predict_proba`.
        flips: as in :func:`predict_proba`.

    Returns:
        ``(y, predictions)``, both with ``n`` rows.

    Raises:
        ValueError: as in :func:`predict_proba_with_labels`.
    """
    check_model(model)
    dataset = as_dataset(x, y, labelled=True, model=model)
    labels = []

    def inputs():
        for batch in dataset.ordered(batch_size) if dataset.random_access else dataset.finite():
            labels.append(np.asarray(batch[1]))
            yield batch[0]

    examples = None if runtime == "tensorflow" else _example_count(dataset, batch_size)
    p = batch_probabilities(model, inputs(), examples=examples, views=views, flips=flips, convert=convert)
    y = np.concatenate(labels)
    if y.shape[:1] != (len(p),):
        raise ValueError(f"There are labels of shape {y.shape} for {len(p)} examples; expected one for each.")
    return y, p


def evaluate(
    model, x, y=None, *, labels=None, task=None, spread=None, batch_size=32, seed=0, views=1, flips="horizontal"
):
    """Evaluate a model on labelled data; the model is bit-identical afterwards.

    Args:
        model: a ``keras.Model`` that ends in a softmax, in logits, or in one sigmoid unit; compiled or not.
        x: inputs, as :func:`thaw.as_dataset` takes them, or a :class:`thaw.Dataset` or a stream with labels.
        y: labels, one class for each example, or the name of their column. Default ``None``: in ``x``.
        labels: names of the classes in the order of their numbers. Default ``None``: ``"0"``, ``"1"`` …
        task: :class:`thaw.targets.MultiLabel` or :class:`thaw.targets.Regression`, whose targets are rows of numbers.
            Default ``None``: one class for each example.
        spread: of predicted numbers, from :func:`thaw.metrics.residual_spread` of other examples. Default ``None``.
        batch_size: examples in a batch; a stream keeps its own. Default 32.
        seed: seed of the bootstrap behind the intervals. Default 0.
        views: number of versions of each image whose probabilities are averaged, as in
            :func:`thaw.features.predict_proba`. Default 1.
        flips: which flips: ``"horizontal"`` (default), ``"vertical"``, ``"both"`` or ``"none"``.

    Returns:
        The result of :func:`thaw.metrics.classification_metrics`, :func:`thaw.metrics.multilabel_metrics` or
        :func:`thaw.metrics.regression_metrics`; with more than one view also ``views``.

    Raises:
        ValueError: data or a model that cannot be evaluated; the message says what was expected.

    Example:
        >>> import keras, numpy as np
        >>> from thaw import evaluate
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Softmax()])
        >>> x = np.array([[2.0, 0.0], [0.0, 2.0], [0.0, 1.0], [1.0, 0.0]])
        >>> evaluate(model, x, np.array([0, 1, 0, 0]))["accuracy"]["value"]
        0.75
    """
    as_seed(seed)
    if task is not None and task.activation != "softmax":
        y, p = predict_targets(model, x, y, task=task, batch_size=batch_size, views=views, flips=flips)
        found = {"views": views} if views > 1 else {}
        return found | metrics_of_targets(y, p, task=task, spread=spread, seed=seed)
    labels = labels if task is None else task.labels
    y, p = predict_proba_with_labels(model, x, y, batch_size=batch_size, views=views, flips=flips)
    return ({"views": views} if views > 1 else {}) | classification_metrics(y, p, labels=labels, seed=seed)


def metrics_of_targets(y, predictions, *, task, spread=None, seed=0):
    """Compute the metrics of several labels, or of numbers.

    Args:
        y: ``(n, task.units)`` targets.
        predictions: of the same shape, as :func:`predict_targets` returns them.
        task: :class:`thaw.targets.MultiLabel` or :class:`thaw.targets.Regression`.
        spread: as in :func:`evaluate`.
        seed: seed of the bootstrap. Default 0.

    Returns:
        The result of :func:`thaw.metrics.multilabel_metrics` or :func:`thaw.metrics.regression_metrics`.
    """
    if isinstance(task, MultiLabel):
        return multilabel_metrics(y, predictions, labels=task.labels, thresholds=task.thresholds, seed=seed)
    options = {"spread": spread, "levels": task.levels, "seed": seed}
    return regression_metrics(y, predictions, targets=task.targets, **options)


def predict_targets(model, x, y=None, *, task, batch_size=32, runtime="auto", views=1, flips="horizontal"):
    """Predict several labels, or numbers, in one pass with the targets.

    Args:
        model: a ``keras.Model`` that ends in a sigmoid unit or a logit for each label, or in a number for each target.
        x: inputs, or a :class:`thaw.Dataset` or a stream with targets.
        y: targets, as the task encodes them. Default ``None``: in ``x``.
        task: :class:`thaw.targets.MultiLabel` or :class:`thaw.targets.Regression`.
        batch_size: examples in a batch; a stream keeps its own. Default 32.
        runtime: as in :func:`predict_proba_with_labels`.
        views: as in :func:`predict_proba`.
        flips: as in :func:`predict_proba`.

    Returns:
        ``(y, predictions)``, both ``(n, task.units)``.

    Raises:
        ValueError: targets that are not those of the task, or a model that puts out something else, or NaN.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.features.predictions import predict_targets
        >>> from thaw.targets import MultiLabel
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, "sigmoid")])
        >>> predict_targets(model, np.zeros((1, 2)), [[1, 0]], task=MultiLabel(["a", "b"]))[1].tolist()
        [[0.5, 0.5]]
    """
    y, p = predict_with_targets(
        model,
        x,
        y,
        convert=functools.partial(as_targets, task=task),
        batch_size=batch_size,
        runtime=runtime,
        views=views,
        flips=flips,
    )
    return task.encode(y), p


def batch_probabilities(model, batches, examples=None, *, views=1, flips="horizontal", convert=None):
    """Predict the probability of each class for batches of inputs.

    Args:
        model: as in :func:`predict_proba`.
        batches: iterable of inputs as the model takes them, with the batch axis first. The model runs at the size of
            the first one.
        examples: expected number of inputs, so that many of them are computed in the fastest runtime
            (:func:`thaw.features.inference.inference_runner`). Default ``None``: unknown, computed in TensorFlow.
        views: as in :func:`predict_proba`.
        flips: as in :func:`predict_proba`.
        convert: function from the model and its output to predictions. Default ``None``: :func:`as_probabilities`.

    Returns:
        Float64 array ``(n, classes)`` whose rows sum to 1; or what ``convert`` returns, the mean over views.

    Raises:
        ValueError: no inputs, or a model that does not put out one score for each class, or NaN; or as in
            :func:`predict_proba`.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.features.predictions import batch_probabilities
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
        >>> batch_probabilities(model, [np.zeros((1, 2))]).tolist()
        [[0.5, 0.5]]
    """
    sizes = []
    if as_int("views", views, 1) > 1:
        batches, examples = _versions(batches, views, flips, sizes), examples and views * examples
    with preserve_variables([*model.non_trainable_variables, *state_variables(model)]):
        rows = list(_outputs(model, batches, examples))
    if not rows:
        raise ValueError("There are no inputs; expected at least one batch.")
    p = (convert or as_probabilities)(model, np.concatenate(rows))
    if views == 1:
        return p
    # The versions of a batch come one after another.
    ends = views * np.cumsum(sizes)
    return np.concatenate([part.reshape(views, -1, p.shape[1]).mean(axis=0) for part in np.split(p, ends[:-1])])


def _versions(batches, views, flips, sizes):
    """Yield the versions of each batch, and write down how many images it has."""
    if views > count_flips(flips):
        raise ValueError(
            f"views={views}, and flips={flips!r} makes {count_flips(flips)} different versions of an image; expected "
            "no more views than that."
        )
    for batch in batches:
        if isinstance(batch, (tuple, list, dict)) or len(batch.shape) != 4:
            raise ValueError(f"views={views} is for images, (n, height, width, channels); the inputs are others.")
        images = np.asarray(batch)
        sizes.append(len(images))
        yield from flipped(images, flips, views)


def as_probabilities(model, output):
    """Convert the output of a classifier into the probability of each class.

    Args:
        model: a ``keras.Model``. Where its last layer is unknown, the numbers decide what they are.
        output: its output, float64 ``(n, classes)`` or ``(n, 1)``.

    Returns:
        Float64 array ``(n, classes)``.

    Raises:
        ValueError: it is not one score for each class, or NaN.
    """
    if output.ndim != 2:
        raise ValueError(
            f"{model.name} puts out shape {output.shape[1:]} for one input; expected a score for each class. "
            "Put a head on it: attach_head(model, classes)."
        )
    _refuse_broken(model, output)
    activation, is_single = output_activation(model), output.shape[1] == 1
    if activation in ("other", "rescaled"):
        activation = _guess_activation(output)
    if activation == "sigmoid" and not is_single:
        raise ValueError(
            f"{model.name} ends in {output.shape[1]} sigmoid units, which are independent of one another; "
            "expected one class for each input: a softmax, or a single sigmoid unit."
        )
    if activation == "softmax" and is_single:
        raise ValueError(
            f"{model.name} ends in a softmax over a single unit, which is always 1; give it 2 units, or a sigmoid."
        )
    if activation == "logits":
        logits = np.concatenate([np.zeros_like(output), output], axis=1) if is_single else output
        output = np.exp(logits - logits.max(axis=1, keepdims=True))
    elif is_single:
        output = np.concatenate([1 - output, output], axis=1)
    return output / output.sum(axis=1, keepdims=True)  # half precision does not sum to 1 by itself


def as_targets(model, output, *, task):
    """Convert the output of a model into the probability of each label, or into numbers.

    Args:
        model: a ``keras.Model``. A linear layer puts out the logits of labels.
        output: its output, float64 ``(n, task.units)``.
        task: as in :func:`predict_targets`.

    Returns:
        Float64 array ``(n, task.units)``.

    Raises:
        ValueError: another shape, no probabilities, or NaN.
    """
    if output.ndim != 2 or output.shape[1] != task.units:
        raise ValueError(
            f"{model.name} puts out shape {output.shape[1:]} for one input; expected {task.units} numbers. Put a head "
            "on it: attach_head(model, task)."
        )
    _refuse_broken(model, output)
    if task.activation == "linear":
        return output
    if output_activation(model) == "logits":
        return 0.5 + 0.5 * np.tanh(output / 2)
    if output.min() < 0 or output.max() > 1 or output_activation(model) == "softmax":
        raise ValueError(f"{model.name} does not end in sigmoid units; expected a probability for each label.")
    return output


def _refuse_broken(model, output):
    broken = int((~np.isfinite(output)).any(axis=1).sum())
    if broken:
        raise ValueError(
            f"{model.name} puts out NaN or infinity for {broken} of {len(output)} inputs; expected numbers. "
            "Its weights may be damaged: load an earlier model."
        )


def log_proba(model, output):
    """Convert the output of a classifier into log probabilities, with plain Keras operations.

    Args:
        model: a ``keras.Model`` that ends in a softmax, in a linear layer (logits), or in a single sigmoid unit.
        output: its output ``(n, classes)`` or ``(n, 1)``, symbolic or not.

    Returns:
        ``(n, classes)``; two classes for a single unit.

    Raises:
        ValueError: another last layer, whose output has no known meaning.

    Example:
        >>> import keras, numpy as np
        >>> from thaw.features.predictions import log_proba
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Softmax()])
        >>> np.exp(log_proba(model, model(np.zeros((1, 2))))).tolist()
        [[0.5, 0.5]]
    """
    from keras import ops

    if isinstance(output, (list, tuple, dict)) or len(output.shape) != 2:
        raise ValueError(f"{model.name} does not put out one score for each class; expected shape (n, classes).")
    activation, is_single = output_activation(model), output.shape[-1] == 1
    if activation == "logits":
        if is_single:
            return ops.concatenate([ops.log_sigmoid(-output), ops.log_sigmoid(output)], axis=-1)
        return ops.log_softmax(output, axis=-1)
    if activation != ("sigmoid" if is_single else "softmax"):
        raise ValueError(
            f"{model.name} ends in another last layer; expected a layer with softmax, a linear Dense layer (logits), "
            "or a single unit with sigmoid."
        )
    if is_single:
        output = ops.concatenate([1 - output, output], axis=-1)
    return ops.log(ops.maximum(ops.cast(output, "float32"), MIN_PROBABILITY))


def _outputs(model, batches, examples):
    """Yield the model's one output as float64."""
    import keras
    import tensorflow as tf

    runner = None
    for batch in batches:
        batch = keras.tree.map_structure(lambda a: a if isinstance(a, np.ndarray) else tf.convert_to_tensor(a), batch)
        rows = max((int(a.shape[0]) for a in keras.tree.flatten(batch) if len(a.shape)), default=1)
        if runner is None and rows:
            check_inputs(model, batch)  # not inside a trace, whose error has many lines
            runtime = "tensorflow" if examples is None else "auto"
            runner = inference_runner(model, rows, runtime=runtime, examples=examples)
        for start in range(0, rows, runner.batch_size if runner else 1):
            piece = slice(start, start + runner.batch_size)
            if rows > runner.batch_size:
                outputs = runner(keras.tree.map_structure(lambda a: a[piece], batch))  # noqa: B023
            else:
                outputs = runner(batch)
            yield np.asarray(single_output(model, outputs), np.float64)


def single_output(model, outputs):
    """Return the only output of a model.

    Args:
        model: a ``keras.Model``, for the message.
        outputs: list of its outputs.

    Raises:
        ValueError: there are several.
    """
    if len(outputs) != 1:
        raise ValueError(
            f"{model.name} has {len(outputs)} outputs; expected one with a score for each class. "
            "Make a keras.Model with that output."
        )
    return outputs[0]


def _guess_activation(output):
    if output.min() < 0 or output.max() > 1:
        return "logits"
    if output.shape[1] == 1:
        return "sigmoid"
    return "softmax" if np.allclose(output.sum(axis=1), 1, atol=1e-2) else "logits"


def _example_count(dataset, batch_size):
    """Return the number of examples, approximately for a stream; ``None`` where it is unknown."""
    if dataset.random_access:
        return len(dataset)
    batches = int(dataset.batches.cardinality())
    return batches * batch_size if batches >= 0 else None
