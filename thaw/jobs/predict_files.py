"""Predict picture files with the model of a run."""

import numpy as np


def predict_files(run, files, *, top=3, batch_size=32):
    """Say what each picture shows.

    Args:
        run: a run folder; its files are checked against their SHA-256 first.
        files: paths of pictures.
        top: how many classes to give for each.
        batch_size: pictures in a batch.

    Returns:
        One dict a file, in the order given: ``file`` with ``label``, ``probability`` and ``top``; or ``file``
        with ``error``, why it could not be read.

    Raises:
        ValueError: the run is damaged, or ``top`` is not a number from 1.

    Example:
        >>> from thaw import predict_files
        >>> predict_files("runs/photos", ["a.jpg"])                         # doctest: +SKIP
    """
    from thaw.data.decode import decode
    from thaw.shipping.predict import predict
    from thaw.shipping.run_folder import load_run

    model, labels, _ = load_run(run)
    size = model.input_shape[1]
    answers, good, pictures = [], [], []
    for file in map(str, files):
        try:
            pictures.append(decode(file, size))
        except (ValueError, OSError) as error:
            answers.append({"file": file, "error": getattr(error, "strerror", None) or str(error)})
        else:
            good.append(len(answers))
            answers.append({"file": file})
        if len(pictures) >= 64 * batch_size:  # a bound on memory, whatever the number of files
            _answer(predict, model, labels, pictures, answers, good, top, batch_size)
            pictures, good = [], []
    if pictures:
        _answer(predict, model, labels, pictures, answers, good, top, batch_size)
    return answers


def _answer(predict, model, labels, pictures, answers, good, top, batch_size):
    found = predict(model, np.stack(pictures), labels, top=top, batch_size=batch_size)
    for i, answer in zip(good, found):
        answers[i] |= answer
