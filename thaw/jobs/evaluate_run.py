"""Measure a finished run on other labelled pictures."""

from pathlib import Path

import numpy as np


def evaluate_run(run, source=None, *, batch_size=32, progress=None):
    """Measure the model of a run folder.

    Args:
        run: a run folder; its files are checked against their SHA-256 first.
        source: a folder ``class/picture`` or a CSV file ``image,label`` whose classes the model knows, taken
            whole, whatever splits it has; ``None`` for what was measured when the run ended.
        batch_size: pictures in a batch.
        progress: called with (done, total, what).

    Returns:
        ``(metrics, quarantine)``: what :func:`thaw.evaluate` returns, and the files that were left out as a dict
        of path and reason.

    Raises:
        ValueError: the run is damaged, or a class is unknown to it.

    Example:
        >>> from thaw import evaluate_run
        >>> metrics, left_out = evaluate_run("runs/photos", "more-photos")  # doctest: +SKIP
    """
    import json

    from thaw.data.check import check_pictures
    from thaw.data.csv_columns import csv_columns
    from thaw.data.decode import decode
    from thaw.data.decoded_cache import decoded, load_decoded
    from thaw.data.folder_columns import folder_columns
    from thaw.examples import Examples
    from thaw.measuring.evaluate import evaluate
    from thaw.shipping.run_folder import load_run, verify_run

    if source is None:
        verify_run(run)
        return json.loads((Path(run) / "metrics.json").read_text(encoding="utf-8")), {}
    model, labels, _ = load_run(run)
    source, size = Path(source), model.input_shape[1]
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist; expected a folder of pictures or a CSV file.")
    columns, _ = folder_columns(source) if source.is_dir() else csv_columns(source)
    files, named = columns["image"], columns["label"]
    unknown = sorted({name for name in named if name is not None} - set(labels))
    if unknown:
        raise ValueError(
            f"{source} has a class {unknown[0]!r} that the model does not know; it knows {', '.join(labels)}."
        )
    read = lambda data, key: decoded(data, key, size, decode=decode)  # noqa: E731
    checked = check_pictures(files, named, None, read=read, progress=progress)
    good = [i for i in range(len(files)) if i not in checked.bad and named[i] is not None]
    if not good:
        raise ValueError(f"{source} has no picture that can be read.")

    number = {name: i for i, name in enumerate(labels)}
    examples = Examples(
        x=np.array([checked.read[i] for i in good]),
        y=np.array([number[named[i]] for i in good]),
        load=load_decoded(size),
    )
    metrics = evaluate(model, examples, labels=labels, batch_size=batch_size)
    outside = {i: "lies outside every class folder" for i, name in enumerate(named) if name is None}
    return metrics, {files[i]: reason for i, reason in sorted((outside | checked.bad).items())}
