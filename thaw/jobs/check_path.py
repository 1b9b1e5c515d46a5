"""Look at a model, a run or a data set before it costs anything."""

from pathlib import Path


def check_path(path, *, image_size=224, progress=None):
    """Look for mistakes in a model file, a run folder, or pictures.

    Args:
        path: a ``.keras`` or ``.h5`` file; a run folder; a folder ``class/picture``; or a CSV file.
        image_size: side in pixels at which pictures are decoded.
        progress: called with (done, total, what).

    Returns:
        ``(kind, findings)``: ``"model"``, ``"run"`` or ``"data"``, and a list of dicts with ``level`` (``"error"``,
        ``"warning"`` or ``"note"``), ``what`` and ``fix``.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        ValueError: the file cannot be read at all.

    Example:
        >>> from thaw import check_path
        >>> kind, findings = check_path("photos")                           # doctest: +SKIP
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; expected a model file, a run folder or pictures.")
    if path.suffix.lower() in (".keras", ".h5", ".hdf5"):
        return "model", _model(path)
    if (path / "manifest.json").exists():
        from thaw.shipping.run_folder import verify_run

        verify_run(path)
        return "run", _model(path / "model.keras")
    from thaw.data.images import images

    pictures = images(path, image_size=image_size, max_bad=1.0, progress=progress)
    findings = [
        {"level": "warning", "what": f"{bad.path} {bad.reason}.", "fix": "It will be left out."}
        for bad in pictures.quarantine
    ]
    findings += [{"level": "note", "what": note, "fix": ""} for note in pictures.notes]
    return "data", findings


def _model(path):
    import keras

    from thaw.backbones.model_file import model_file
    from thaw.tuning.preflight import preflight

    model, more = model_file(path), []  # which refuses code, and says what is damaged
    try:
        # Compiled, as the user compiled it: that is half of what there is to look at.
        model = keras.saving.load_model(path, safe_mode=True, compile=True)
    except Exception as error:  # a loss or a metric of somebody's raises almost anything
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        more.append(
            {
                "level": "warning",
                "what": f"It cannot be compiled as it was saved ({first}), so its loss and rate were not looked at.",
                "fix": "Register its loss and metrics with keras.saving.register_keras_serializable.",
            }
        )
    return more + [{"level": f.level, "what": f.what, "fix": f.fix} for f in preflight(model)]
