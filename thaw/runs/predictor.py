"""Predict with the model of a run, and evaluate it on files; imports neither Keras nor TensorFlow by itself."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from thaw._validation import as_int, check_model
from thaw.data.dataset import Dataset
from thaw.targets import MultiLabel

BATCHES_IN_MEMORY = 64  # of decoded images, whatever the number of files


def predict(model, inputs, labels, *, top=3, batch_size=32, views=1, flips="horizontal", task=None, spread=None):
    """Predict the most probable classes of each input, or its labels, or numbers.

    Args:
        model: ``keras.Model`` that ends in a softmax, in logits, or in a single sigmoid unit.
        inputs: array ``(n, ...)`` as the model takes it, of images pixels 0 to 255; or :class:`thaw.Dataset`.
        labels: list of class names, in the order of the model's outputs.
        top: number of classes to report for each input. Defaults to 3.
        batch_size: inputs in a batch. Defaults to 32.
        views: number of versions of each image whose probabilities are averaged, as in
            :func:`thaw.features.predict_proba`: the image itself, then its flips. Defaults to 1.
        flips: which flips: ``"horizontal"`` (default; 2 versions), ``"vertical"`` (2) or ``"both"`` (4). Take those
            that the model was trained with.
        task: :class:`thaw.targets.MultiLabel` or :class:`thaw.targets.Regression`. Defaults to ``None``: classes.
        spread: of predicted numbers, from :func:`thaw.metrics.residual_spread`. Defaults to ``None``: no interval.

    Returns:
        A list with a dict for each input: ``label`` and ``probability`` of the most probable class, and ``top``, a list
        of ``{"label", "probability"}``, most probable first. Of several labels ``labels``, those whose probability
        reaches their threshold, and ``probabilities``, by label; of numbers ``prediction``, and with a spread ``low``
        and ``high``: a float each, of several targets a dict.

    Raises:
        ValueError: inputs of another shape than the model takes, or with NaN or infinity; another number of labels
            than it has outputs; or more views than there are flips.

    Example:
        >>> import keras, numpy as np
        >>> from thaw import predict
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Softmax()])
        >>> predict(model, np.array([[0.0, np.log(3)]]), ["cat", "dog"], top=1)[0]["label"]
        'dog'
    """
    from thaw.data.conversion import as_dataset
    from thaw.features.predictions import as_targets, batch_probabilities

    check_model(model)
    top = as_int("top", top, 1)
    labels = [str(name) for name in labels]
    if isinstance(inputs, Dataset):
        as_dataset(inputs)  # refuses NaN, for which the weights would be blamed
        batches = inputs.inputs(batch_size)
    else:
        inputs = np.asarray(inputs)
        _check_shape(model, inputs)
        if len(inputs) == 0:
            return []
        as_dataset(inputs)
        batches = (inputs[i : i + batch_size] for i in range(0, len(inputs), batch_size))
    if task is not None and task.activation != "softmax":
        convert = functools.partial(as_targets, task=task)
        p = batch_probabilities(model, batches, examples=len(inputs), views=views, flips=flips, convert=convert)
        return _target_rows(p, task, spread)
    p = batch_probabilities(model, batches, examples=len(inputs), views=views, flips=flips)
    if p.shape[1] != len(labels):
        raise ValueError(f"There are {len(labels)} labels and {p.shape[1]} classes; expected one label for each.")
    predictions = []
    for row in p:
        order = np.argsort(-row, kind="stable")[:top]
        best = [{"label": labels[c], "probability": float(row[c])} for c in order]
        predictions.append({**best[0], "top": best})
    return predictions


def _target_rows(p, task, spread):
    """Return what is predicted for each input, as :func:`predict` does of labels and of numbers."""
    decoded = task.decode(p)
    if isinstance(task, MultiLabel):
        rows = [dict(zip(task.labels, map(float, row))) for row in p]
        return [{"labels": list(labels), "probabilities": row} for labels, row in zip(decoded, rows)]
    found = [{"prediction": prediction} for prediction in decoded]
    if spread is None or None in spread["half_width"]:
        return found
    width = np.array(spread["half_width"])
    ends = zip(task.decode(p - width), task.decode(p + width))
    return [row | {"low": low, "high": high} for row, (low, high) in zip(found, ends)]


def _check_shape(model, inputs):
    expected = tuple(model.input_shape)
    fits = inputs.ndim == len(expected) and all(
        want in (None, have) for want, have in zip(expected[1:], inputs.shape[1:])
    )
    if not fits or inputs.dtype.kind not in "biuf":
        raise ValueError(
            f"The inputs are {inputs.dtype} of shape {inputs.shape}; {model.name} takes numbers of shape "
            f"(n, {', '.join(str(n or 'any') for n in expected[1:])})."
        )


def predict_files(model, files, labels, *, top=3, batch_size=32, views=1, flips="horizontal", task=None, spread=None):
    """Predict the most probable classes of image files, or their labels, or numbers.

    Args:
        model: as for :func:`predict`, for images.
        files: list of paths of images.
        labels: list of class names, in the order of the model's outputs.
        top: number of classes to report for each image. Defaults to 3.
        batch_size: images in a batch. Defaults to 32.
        views: as for :func:`predict`.
        flips: as for :func:`predict`.
        task: as for :func:`predict`.
        spread: as for :func:`predict`.

    Returns:
        A list with a dict for each file, in the order given: ``file`` with what :func:`predict` gives; or
        ``file`` with ``error``, the reason why it cannot be read.

    Raises:
        ValueError: another number of labels than the model has outputs, ``top`` below 1, or more views than there are
            flips.
    """
    from thaw.data.image_decoding import decode

    top, size = as_int("top", top, 1), model.input_shape[1]
    predictions, readable, images = [], [], []

    def predict_pending():
        if images:
            options = {"top": top, "batch_size": batch_size, "views": views, "flips": flips}
            results = predict(model, np.stack(images), labels, **options, task=task, spread=spread)
            for i, result in zip(readable, results):
                predictions[i] |= result
        images.clear()
        readable.clear()

    for file in map(str, files):
        try:
            if Path(file).is_dir():
                raise ValueError(f"is a folder; give the images in it, such as {Path(file) / '*.jpg'}")
            images.append(decode(file, size))
        except (ValueError, OSError) as error:
            predictions.append({"file": file, "error": getattr(error, "strerror", None) or str(error)})
        else:
            readable.append(len(predictions))
            predictions.append({"file": file})
        if len(images) >= BATCHES_IN_MEMORY * batch_size:
            predict_pending()
    predict_pending()
    return predictions


def predict_rows(model, given, source, labels, *, top=3, batch_size=32, task=None, spread=None):
    """Predict the texts, or the rows of a table, of a file or in memory.

    Args:
        model: as for :func:`predict`, for texts or tables.
        given: :class:`thaw.runs.row_inputs.TextInput` or :class:`thaw.runs.row_inputs.TableInput` of the run.
        source: what its ``read`` takes: the path of a table or of a text, a frame, a dict of columns, a list of texts.
        labels: list of class names, in the order of the model's outputs.
        top: as for :func:`predict`.
        batch_size: rows in a batch. Defaults to 32.
        task: as for :func:`predict`.
        spread: as for :func:`predict`.

    Returns:
        A list with a dict for each row, in the order given: ``row``, its name, with what :func:`predict` gives; or
        with ``error``, the reason why it cannot be predicted.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or lacks a column.
    """
    from thaw.runs.row_inputs import take_rows

    names, values = given.read(source)
    predictions = []
    # Decoded images are large, texts and numbers are not.
    block = BATCHES_IN_MEMORY * batch_size if given.kind == "joined" else max(1, len(names))
    for begin in range(0, len(names), block):
        part = range(begin, min(begin + block, len(names)))
        x, bad = given.encode(values if len(part) == len(names) else take_rows(values, part))
        good = [i for i in range(len(part)) if i not in bad]
        rows = [{"row": names[begin + i]} | ({"error": bad[i]} if i in bad else {}) for i in range(len(part))]
        if good:
            dataset = Dataset(x=_rows(model, x, good))
            found = predict(model, dataset, labels, top=top, batch_size=batch_size, task=task, spread=spread)
            for i, prediction in zip(good, found):
                rows[i] |= prediction
        predictions += rows
    return predictions


def evaluate_rows(model, given, source, labels, *, batch_size=32, task=None, spread=None, label=None):
    """Measure a model on labelled texts, or on the labelled rows of a table.

    Args:
        model: as for :func:`predict_rows`.
        given: as for :func:`predict_rows`.
        source: as for :func:`predict_rows`, with labels; or a folder ``class/text.txt``. All of its splits are used.
        labels: list of class names, in the order of the model's outputs.
        batch_size: rows in a batch. Defaults to 32.
        task: as for :func:`predict`.
        spread: as for :func:`predict`.
        label: column with the labels, or several with commas between them. Defaults to ``None``: as in the training.

    Returns:
        The dict of :func:`thaw.evaluate`, and ``rejected``, name to reason of the rows left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a class that the model does not know, a missing column, or no row that can be used.
    """
    from thaw.data.images import label_columns
    from thaw.features.predictions import evaluate
    from thaw.runs.row_inputs import take_rows

    kind = _kind_of(task)
    names, values, columns = given.labelled(source, kind, label_columns(label))
    x, bad = given.encode(values)
    bad = {i: "has no label" for i, name in enumerate(columns["label"]) if name is None} | bad
    good = [i for i in range(len(names)) if i not in bad]
    if not good:
        raise ValueError(f"{source} has no {given.noun} that can be used: each is empty or has no label.")
    if kind == "classification":
        classes = take_rows(columns["label"], good)
        number = _label_numbers(source, set(classes), labels)
        y = np.array([number[name] for name in classes])
    else:
        y = task.encode(take_rows(columns["target"], good))
    dataset = Dataset(x=_rows(model, x, good), y=y)
    measured = None if kind == "classification" else task
    metrics = evaluate(model, dataset, labels=labels, task=measured, spread=spread, batch_size=batch_size)
    return metrics | {"rejected": {names[i]: bad[i] for i in sorted(bad)}}


def _rows(model, x, rows):
    """Return some rows of an array, or of the inputs that a model takes."""
    if not isinstance(x, dict):
        return x[rows]
    names = model.input if isinstance(model.input, dict) else x
    return {name: x[name][rows] for name in names}


def _kind_of(task):
    if task is None or task.activation == "softmax":
        return "classification"
    return "multilabel" if isinstance(task, MultiLabel) else "regression"


def evaluate_files(
    model,
    source,
    labels,
    *,
    batch_size=32,
    progress=None,
    views=1,
    flips="horizontal",
    task=None,
    spread=None,
    label=None,
):
    """Measure a model on labelled image files.

    Args:
        model: as for :func:`predict`, for images.
        source: a folder ``class/image`` or a CSV file ``image,label``; all of its splits are used.
        labels: list of class names, in the order of the model's outputs.
        batch_size: images in a batch. Defaults to 32.
        progress: function of (files done, files in all, text), called while files are read. Defaults to none.
        views: as for :func:`predict`.
        flips: as for :func:`predict`.
        task: as for :func:`predict`.
        spread: as for :func:`predict`.
        label: column of the CSV file, or several with commas between them, as for :func:`thaw.tune`. Defaults to
            ``None``: the column "label".

    Returns:
        The dict of :func:`thaw.evaluate`, and ``rejected``, path to reason of the files left out.

    Raises:
        FileNotFoundError: there is no such folder or file.
        ValueError: a class that the model does not know or that may be either of two labels, or no image that can be
            read.
    """
    from thaw.data.image_checks import check_images
    from thaw.data.image_decoding import cache_decoded, load_decoded
    from thaw.data.images import label_columns, read_labelled
    from thaw.features.predictions import evaluate

    kind = _kind_of(task)
    is_classes = kind == "classification"
    label = None if is_classes and Path(source).is_dir() else label_columns(label)
    columns, *_ = read_labelled(Path(source), kind, label=label)
    files, classes = columns["image"], columns["label"]
    if is_classes:
        number = _label_numbers(source, {name for name in classes if name is not None}, labels)
    size = model.input_shape[1]
    checked = check_images(
        files, classes, read=lambda content, key: cache_decoded(content, key, size), progress=progress
    )
    readable = [i for i in range(len(files)) if i not in checked.bad and classes[i] is not None]
    if not readable:
        raise ValueError(f"{source} has no image that can be read.")
    dataset = Dataset(
        x=np.array([checked.read[i] for i in readable]),
        y=np.array([number[classes[i]] for i in readable])
        if is_classes
        else task.encode([columns["target"][i] for i in readable]),
        load=load_decoded(size),
    )
    task = None if is_classes else task
    options = {"batch_size": batch_size, "views": views, "flips": flips}
    metrics = evaluate(model, dataset, labels=labels, task=task, spread=spread, **options)
    why = "has no number" if kind == "regression" else "has no label"
    why = "lies outside every class folder" if Path(source).is_dir() else why
    outside = {i: why for i, name in enumerate(classes) if name is None}
    return metrics | {"rejected": {files[i]: reason for i, reason in sorted((outside | checked.bad).items())}}


def _label_numbers(source, classes, labels):
    """Map each class to the number of the label that is the same text, or else of the one that looks the same."""
    from thaw.data.class_names import class_name

    exact, alike = {name: i for i, name in enumerate(labels)}, {}
    for i, name in enumerate(labels):
        alike.setdefault(class_name(name), []).append(i)
    numbers = {}
    for name in sorted(classes):
        found = [exact[name]] if name in exact else alike.get(class_name(name), [])
        if not found:
            raise ValueError(
                f"{source} has a class {name!r} that the model does not know; it knows {', '.join(labels)}."
            )
        if len(found) > 1:  # labels of a run from before such names were one class; in ASCII, the difference is seen
            either = " and ".join(ascii(labels[i]) for i in found)
            raise ValueError(
                f"{source} has a class {name!r}, and the model has the labels {either}, which look the same; "
                "evaluate arrays of pixels and class numbers instead."
            )
        numbers[name] = found[0]
    return numbers
