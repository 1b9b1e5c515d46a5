"""The run folder: everything a tuning leaves, in files that say when one of them is damaged."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import platform
import shutil
from pathlib import Path

from thaw import __version__
from thaw.shipping.write_atomically import write_all

MANIFEST = "manifest.json"
UNFINISHED = "unfinished"  # what a run needs to go on after a stop; gone when it has ended
FORMAT = 1


def write_run(folder, model, labels, *, plan, tables, metrics, about=None):
    """Write a run folder, or write it anew: all of it, or, when the disk is full, nothing of it.

    ``model.keras`` opens with nothing but Keras. ``labels.json`` has the names of the classes, which no Keras
    file carries. ``manifest.json`` has the SHA-256 of every file in the folder, also of those that were there
    before, such as logs, but for names that begin with a dot and the folder ``unfinished``.

    Args:
        folder: where to; made where it is missing.
        model: the ``keras.Model``.
        labels: names of the classes, in the order of their numbers.
        plan: text of ``plan.toml``.
        tables: for each name a dict of columns, written to ``<name>.csv``: ``{"history": history.history,
            "quarantine": {"path": [...], "reason": [...]}}``.
        metrics: a dict for ``metrics.json``.
        about: more for the manifest: the seed, a digest of the data. It goes with the model wherever that
            goes, so leave out names of machines, people and places.

    Returns:
        The manifest, a dict.

    Raises:
        ValueError: columns of different lengths, or an absolute path in ``about``.
        OSError: the disk is full or cannot be written to; the run that was there is unharmed.

    Example:
        >>> import keras, tempfile
        >>> from thaw import load_run, write_run
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Softmax()])
        >>> folder = tempfile.mkdtemp()
        >>> manifest = write_run(folder, model, ["cat", "dog"], plan="", tables={}, metrics={})
        >>> sorted(manifest["files"])
        ['labels.json', 'metrics.json', 'model.keras', 'plan.toml']
        >>> load_run(folder)[1]
        ['cat', 'dog']
    """
    folder = Path(folder)
    about = _plain(about or {})
    _refuse_places(about)
    contents = {
        "model.keras": model.save,
        "labels.json": _text(_json([str(name) for name in labels])),
        "plan.toml": _text(plan),
        "metrics.json": _text(_json(metrics)),
        **{f"{name}.csv": _text(_csv(name, columns)) for name, columns in tables.items()},
    }
    files = {name: _entry(path) for name, path in _files(folder) if name not in contents and name != MANIFEST}
    manifest = {}

    def writer(name, write):
        def run(path):
            write(path)
            files[name] = _entry(path)

        return run

    def write_manifest(path):
        manifest.update(
            format=FORMAT,
            versions=_versions(),
            weights_sha256=_weights_sha256(model),
            **about,
            files=dict(sorted(files.items())),
        )
        manifest["sha256"] = _own_sha256(manifest)
        path.write_text(_json(manifest), encoding="utf-8")

    writers = {folder / name: writer(name, write) for name, write in contents.items()}
    write_all(writers | {folder / MANIFEST: write_manifest})
    return manifest


def refuse_finished(folder):
    """Refuse a folder whose run has ended; clear away what it needed to go on, if it was killed before it could.

    Args:
        folder: a run folder, or where one is to be.

    Raises:
        ValueError: there is a finished run, or something else.
        NotADirectoryError: it is a file, or would lie in one.

    Example:
        >>> from thaw.shipping.run_folder import refuse_finished
        >>> refuse_finished("nowhere")
    """
    folder = Path(folder)
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"{there} is a file; expected a folder for the run. Name another one.")
    if (folder / MANIFEST).exists():
        shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
        raise ValueError(
            f"{folder} holds a finished run; give another folder with -o, or delete this one to run again."
        )
    # What a run of ours begins with: without it, these are files of somebody's own.
    begun = any((folder / name).exists() for name in (".lock", UNFINISHED))
    if folder.is_dir() and not begun and any(folder.iterdir()):
        raise ValueError(f"{folder} holds other files; expected a new or empty folder for the run. Name another one.")


def verify_run(folder):
    """Look at every file of a run folder; a single flipped bit is found.

    Args:
        folder: a run folder.

    Returns:
        The manifest, a dict.

    Raises:
        FileNotFoundError: there is no finished run.
        ValueError: a file is damaged or missing; the message names it.

    Example:
        >>> from thaw import verify_run
        >>> verify_run("nowhere")
        Traceback (most recent call last):
        FileNotFoundError: There is no folder nowhere; expected a run folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}; expected a run folder.")
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        whole = manifest["sha256"] == _own_sha256(manifest)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{folder} has no {MANIFEST}: it is not a run folder, or its run has not ended. "
            "Give the command that began it again to finish it."
        ) from None
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise ValueError(f"{folder / MANIFEST} is damaged; take the run folder from a copy, or run it again.")
    if manifest["format"] > FORMAT:
        raise ValueError(f"{folder} was written by a newer thaw ({manifest['versions']['thaw']}); upgrade this one.")
    missing, damaged = [], []
    for name, entry in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            missing.append(name)
        elif _entry(path) != entry:
            damaged.append(name)
    if missing or damaged:
        said = [f"{name} is damaged" for name in damaged] + [f"{name} is missing" for name in missing]
        raise ValueError(f"In {folder}, {', '.join(said)}; take the run folder from a copy, or run it again.")
    return manifest


def load_run(folder):
    """Open a run folder after looking at all of it.

    Args:
        folder: a run folder.

    Returns:
        ``(model, labels, manifest)``: the ``keras.Model``, not compiled; the names of the classes, a list;
        the manifest, a dict.

    Raises:
        FileNotFoundError: there is no finished run.
        ValueError: a file is damaged or missing, or the model holds code of its own, which is not run.

    Example:
        >>> import keras, tempfile
        >>> from thaw import load_run, write_run
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Softmax()])
        >>> folder = tempfile.mkdtemp()
        >>> manifest = write_run(folder, model, ["cat", "dog"], plan="", tables={}, metrics={})
        >>> again, labels, _ = load_run(folder)
        >>> again.output_shape, labels
        ((None, 2), ['cat', 'dog'])
    """
    manifest = verify_run(folder)
    import keras

    model = keras.models.load_model(Path(folder) / "model.keras", safe_mode=True, compile=False)
    labels = json.loads((Path(folder) / "labels.json").read_text(encoding="utf-8"))
    return model, labels, manifest


def _files(folder):
    """Name and path of every file below the folder, but for hidden ones: locks and work in progress."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        hidden = name.parts[0] == UNFINISHED or any(part.startswith(".") for part in name.parts)
        if path.is_file() and not hidden:
            yield name.as_posix(), path


def _entry(path):
    with open(path, "rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _own_sha256(manifest):
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _weights_sha256(model):
    """Of the numbers alone: the file around them also has the time at which it was written."""
    digest = hashlib.sha256()
    for weight in model.weights:
        value = weight.numpy()
        digest.update(f"{value.dtype} {value.shape} ".encode() + value.tobytes())
    return digest.hexdigest()


def _versions():
    import keras
    import numpy
    import tensorflow

    found = {module.__name__: module.__version__ for module in (keras, numpy, tensorflow)}
    return {"python": platform.python_version(), "thaw": __version__} | found


def _refuse_places(value):
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        for item in value:
            _refuse_places(item)
    elif isinstance(value, str) and os.path.isabs(value):
        raise ValueError(f"The manifest would carry {value}, a place on this machine; leave it out of about.")


def _text(text):
    return lambda path: path.write_text(text, encoding="utf-8", newline="\n")


def _json(value):
    return json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value):
    """Dicts, lists, strings and numbers only; JSON has no word for NaN, so it becomes null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _csv(name, columns):
    import io

    lengths = {key: len(column) for key, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"The columns of {name} have different lengths: {lengths}; expected a value in each row.")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values()))
    return text.getvalue()
