"""Write, verify and open run folders."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import shutil
import tomllib
from pathlib import Path

from thaw import __version__
from thaw._files import LOCK, file_sha256, read_csv_columns, to_csv, to_json, to_jsonable, write_all, write_text
from thaw.plan import Plan
from thaw.runs.row_inputs import read_input
from thaw.runs.task_file import TASK, task_from_dict, task_to_dict

MANIFEST, CONFIG = "manifest.json", "config.toml"
UNFINISHED = "unfinished"  # holds the checkpoint of a run; deleted when the run has ended
FOLDS = "folds"  # holds the runs of the folds, where there are some
FORMAT = 1
# Keys of metrics.json that version 0.1 wrote under another name.
RENAMED_METRICS = {"moved": "weight_change", "moved_in_phases": "weight_change_by_phase"}


def write_run(
    folder, model, labels, *, plan, tables, metrics, about=None, config=None, task=None, spread=None, files=None
):
    """Write a run folder, or replace its files: all of them, or none when the disk is full.

    ``model.keras`` opens with nothing but Keras. ``labels.json`` has the names of the classes, which a Keras file does
    not hold. ``manifest.json`` has the SHA-256 of every file in the folder, including those that were there before,
    such as logs, except files whose name begins with a dot and the folder ``unfinished``.

    Args:
        folder: path of the run folder; created where it is missing.
        model: ``keras.Model``.
        labels: list of class names, in the order of the model's outputs.
        plan: text of ``plan.toml``.
        tables: dict of tables, each a dict of equally long columns, written to ``<name>.csv``.
        metrics: dict, written to ``metrics.json``.
        about: dict of further entries of the manifest, such as the seed. The manifest goes with the model wherever
            that goes: leave out names of machines, people and folders. Defaults to none.
        config: text of ``config.toml``. Defaults to ``None``, no such file.
        task: :class:`thaw.targets.MultiLabel` or :class:`thaw.targets.Regression`, written to ``task.json``. Defaults
            to ``None``: one class for each input.
        spread: of predicted numbers, from :func:`thaw.metrics.residual_spread`. Defaults to ``None``.
        files: dict of further files, from their name to the function that writes them. Defaults to none.

    Returns:
        The manifest, a dict.

    Raises:
        ValueError: columns of different lengths, an absolute path in ``about``, or a model whose file would not open
            again, such as one with a ``Lambda`` layer.
        OSError: the disk is full or cannot be written to; the files that were there before are intact.

    Example:
        >>> import keras, tempfile
        >>> from thaw import open_run
        >>> from thaw.runs import write_run
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Softmax()])
        >>> folder = tempfile.mkdtemp()
        >>> manifest = write_run(folder, model, ["cat", "dog"], plan="", tables={}, metrics={})
        >>> sorted(manifest["files"])
        ['labels.json', 'metrics.json', 'model.keras', 'plan.toml']
        >>> open_run(folder).labels
        ('cat', 'dog')
    """
    from thaw.models.loading import unsaveable_reason

    folder = Path(folder)
    about = to_jsonable(about or {})
    _refuse_absolute_paths(about)
    if reason := unsaveable_reason(model):
        raise ValueError(" ".join(reason))
    contents = {
        "model.keras": model.save,
        "labels.json": write_text(to_json([str(name) for name in labels])),
        "plan.toml": write_text(plan),
        "metrics.json": write_text(to_json(metrics)),
        **{f"{name}.csv": write_text(to_csv(name, columns)) for name, columns in tables.items()},
    }
    if config is not None:
        contents[CONFIG] = write_text(config)
    if task is not None:
        contents[TASK] = write_text(to_json(task_to_dict(task, spread)))
    contents |= files or {}
    files = {name: _entry(path) for name, path in _files(folder) if name not in contents and name != MANIFEST}
    manifest = {}

    def recorded(name, write):
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
        manifest["sha256"] = _manifest_sha256(manifest)
        path.write_text(to_json(manifest), encoding="utf-8")

    writers = {folder / name: recorded(name, write) for name, write in contents.items()}
    write_all(writers | {folder / MANIFEST: write_manifest})
    return manifest


def refuse_finished(folder):
    """Raise where a folder cannot take a run: it holds a finished one, one of version 0.1, or other files.

    Args:
        folder: path of the run folder; it need not exist.

    Raises:
        ValueError: there is a finished run, an unfinished one of version 0.1, or something else.
        NotADirectoryError: the path, or one of its parents, is a file.

    Example:
        >>> from thaw.runs.folder import refuse_finished
        >>> refuse_finished("nowhere")
    """
    folder = Path(folder)
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise NotADirectoryError(f"{existing} is a file; expected a folder for the run. Name another one.")
    if (folder / MANIFEST).exists():
        shutil.rmtree(folder / UNFINISHED, ignore_errors=True)  # where the run was killed just before deleting it
        raise ValueError(
            f"{folder} holds a finished run; give another folder with -o, or delete this one to run again."
        )
    if (folder / UNFINISHED).exists() and not (folder / CONFIG).exists():
        raise ValueError(
            f"{folder} holds a run that thaw 0.1 began and this version cannot resume: finish it with thaw 0.1, give "
            "another folder with -o, or delete this one to start again."
        )
    begun = any((folder / name).exists() for name in (LOCK, UNFINISHED))
    if folder.is_dir() and not begun and any(folder.iterdir()):
        raise ValueError(f"{folder} holds other files; expected a new or empty folder for the run. Name another one.")


def verify_run(folder):
    """Compare every file of a run folder with its SHA-256 in the manifest.

    Args:
        folder: path of the run folder.

    Returns:
        The manifest, a dict.

    Raises:
        FileNotFoundError: there is no finished run.
        ValueError: no path, or that of a file in a run; or a file is damaged or missing: the message names it.

    Example:
        >>> from thaw.runs import verify_run
        >>> verify_run("nowhere")
        Traceback (most recent call last):
        FileNotFoundError: There is no folder nowhere; expected a run folder.
    """
    if not isinstance(folder, (str, os.PathLike)):
        raise ValueError(f"folder={folder!r}; expected the path of a run folder.")
    folder = Path(folder)
    if folder.is_file() and (folder.parent / MANIFEST).exists():
        raise ValueError(f"{folder} is a file of a run; give its folder, {folder.parent}.")
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}; expected a run folder.")
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        intact = manifest["sha256"] == _manifest_sha256(manifest)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{folder} has no {MANIFEST}: it is not a run folder, or its run has not ended. "
            "Give the command that began it again to finish it."
        ) from None
    except (ValueError, KeyError, TypeError):
        intact = False
    if not intact:
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
        wrong = [f"{name} is damaged" for name in damaged] + [f"{name} is missing" for name in missing]
        raise ValueError(f"In {folder}, {', '.join(wrong)}; take the run folder from a copy, or run it again.")
    return manifest


def open_run(folder):
    """Open the folder of a finished run.

    Every file is compared with its SHA-256 first. Runs of version 0.1 open too.

    Args:
        folder: path of the run folder.

    Returns:
        A :class:`Run`.

    Raises:
        FileNotFoundError: there is no finished run.
        ValueError: a file is damaged or missing; the message names it.

    Example:
        >>> from thaw import open_run
        >>> run = open_run("runs/photos")                                   # doctest: +SKIP
        >>> run.predict(["a.jpg"])[0]["label"]                              # doctest: +SKIP
    """
    return Run(folder, verify_run(folder))


class Run:
    """A finished run: its model, its metrics and how it was trained. :func:`thaw.tune` and :func:`open_run` give one.

    Attributes:
        folder: path of the run folder.
        manifest: dict: versions, seed, and the SHA-256 of every file.
        model: plain ``keras.Model``, not compiled; loaded on first use. Classes of your own that it has must be
            registered by then (``keras.saving.register_keras_serializable``).
        labels: tuple of the names of the classes, labels or numbers, in the order of the model's outputs.
        task: :class:`thaw.Classification` of these labels, or :class:`thaw.targets.MultiLabel`, or
            :class:`thaw.targets.Regression`.
        input: what the model takes: ``None`` for images, else :class:`thaw.runs.row_inputs.TextInput` or
            :class:`thaw.runs.row_inputs.TableInput`.
        plan: :class:`thaw.Plan` of the training.
        metrics: dict, as :func:`thaw.evaluate` returns it, of the test images (of the validation images where there
            are none; see ``metrics["split"]``).
        history: dict of columns, one row an epoch, such as ``"phase"``, ``"loss"``, ``"val_accuracy"``.
        notes: list of sentences about the data, the advice, the training and the evaluation.
        rejected: dict of the files that were left out, path to reason.
        config: dict of the options of :func:`thaw.tune`; empty for runs of version 0.1.

    Example:
        >>> from thaw import open_run
        >>> run = open_run("runs/photos")                                   # doctest: +SKIP
        >>> run.metrics["accuracy"]["value"], run.plan.epochs               # doctest: +SKIP
        (0.96, 17)
    """

    def __init__(self, folder, manifest):
        self.folder, self.manifest = Path(folder), manifest

    @functools.cached_property
    def model(self):
        from thaw.models.loading import load_model_file

        return load_model_file(self.folder / "model.keras")

    @functools.cached_property
    def labels(self):
        return tuple(self._json("labels.json"))

    @functools.cached_property
    def task(self):
        return self._task_and_spread[0]

    @functools.cached_property
    def _task_and_spread(self):
        return task_from_dict(self._json(TASK) if (self.folder / TASK).exists() else None, self.labels)

    @functools.cached_property
    def input(self):
        return read_input(self.folder)

    @functools.cached_property
    def plan(self):
        return Plan.load(self.folder / "plan.toml")

    @functools.cached_property
    def metrics(self):
        return {RENAMED_METRICS.get(key, key): value for key, value in self._json("metrics.json").items()}

    @functools.cached_property
    def history(self):
        return read_csv_columns(self.folder / "history.csv")

    @property
    def notes(self):
        return self.metrics.get("notes", [])

    @functools.cached_property
    def rejected(self):
        columns = read_csv_columns(self.folder / "quarantine.csv", convert=str)
        return dict(zip(columns.get("path", ()), columns.get("reason", ())))

    @functools.cached_property
    def config(self):
        path = self.folder / CONFIG
        return tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def predict(self, inputs, *, top=3, batch_size=32, views=1):
        """Predict classes, labels or numbers.

        Args:
            inputs: list of image files, or an array ``(n, height, width, 3)`` of pixels 0 to 255. Of a run on texts a
                list of texts, of one on a table a dict of columns or a frame; of both the path of a table.
            top: number of classes to report for each input. Defaults to 3.
            batch_size: inputs in a batch. Defaults to 32.
            views: largest number of versions of each image whose probabilities are averaged (Krizhevsky et al. 2012):
                the image itself, then its flips, of those that the run was trained with: 2 for ``"horizontal"``, 4
                for ``"both"``. Defaults to 1.

        Returns:
            A list with a dict for each input: ``label`` and ``probability`` of the most probable class and ``top``, a
            list of these for the ``top`` most probable ones. For files also ``file``; where it cannot be read only
            ``file`` and ``error``; for texts and rows ``row``. Where more than one view is asked for also ``views``,
            how many there were.

        Raises:
            ValueError: inputs of another shape, or ``top`` or ``views`` below 1.
        """
        from thaw.runs.predictor import predict, predict_files, predict_rows

        options = {"top": top, "batch_size": batch_size, **self._flipped(views)}
        options |= dict(zip(("task", "spread"), self._task_and_spread))
        if self.input is not None:
            return predict_rows(self.model, self.input, inputs, self.labels, **options)
        if isinstance(inputs, (str, os.PathLike)):
            inputs = [inputs]
        if isinstance(inputs, (list, tuple)) and all(isinstance(item, (str, os.PathLike)) for item in inputs):
            predictions = predict_files(self.model, inputs, self.labels, **options)
        else:
            predictions = predict(self.model, inputs, self.labels, **options)
        used = {"views": options["views"]} if views > 1 else {}
        return [row if "error" in row else row | used for row in predictions]

    def evaluate(self, data=None, y=None, *, batch_size=32, progress=None, views=1):
        """Measure the model on labelled images.

        Args:
            data: a folder ``class/image`` or a CSV file ``image,label``, all of whose splits are used; or a
                :class:`thaw.Dataset`, or an array of pixels with ``y``; for texts and tables a labelled table or frame.
                Defaults to ``None``: return the metrics that were measured at the end of the run.
            y: ``(n,)`` class numbers of an array.
            batch_size: images in a batch. Defaults to 32.
            progress: function of (files done, files in all, text), called while files are read. Defaults to none.
            views: as for :meth:`predict`.

        Returns:
            The dict of :func:`thaw.evaluate`. For files also ``rejected``, path to reason of the files left out. Where
            more than one view is asked for also ``views``, how many there were. Where the run was trained on images of
            the same folder or CSV file, the ``notes`` say so.

        Raises:
            FileNotFoundError: there is no such folder or file.
            ValueError: a class that the model does not know, no image that can be read, ``views`` below 1, or views of
                the test images of the run.
        """
        options = {"batch_size": batch_size, **self._flipped(views)}
        options |= dict(zip(("task", "spread"), self._task_and_spread))
        used = {"views": options["views"]} if views > 1 else {}
        if data is None:
            if views > 1:
                raise ValueError(
                    f"views={views}, and the metrics at the end of the run are of one view; give the images to measure."
                )
            return self.metrics
        is_read = self.input is not None and y is None and not hasattr(data, "ordered")  # as predict reads it
        if isinstance(data, (str, os.PathLike)) or is_read:
            from thaw.runs.predictor import evaluate_files, evaluate_rows

            options["label"] = self.config.get("label")
            if self.input is not None:
                metrics = evaluate_rows(self.model, self.input, data, self.labels, **options)
            else:
                metrics = evaluate_files(self.model, data, self.labels, progress=progress, **options)
            own = self.config.get("data")
            is_path = isinstance(data, (str, os.PathLike))
            if own is not None and is_path and (self.folder / own).resolve() == Path(data).resolve():
                metrics["notes"].append(
                    f"The run was trained on examples of {data}, and those it has seen make these metrics too good; "
                    "for the metrics of held-out ones, evaluate the run without naming any."
                )
            return used | metrics
        from thaw.data.conversion import as_dataset
        from thaw.features.predictions import evaluate

        return used | evaluate(self.model, as_dataset(data, y), **options)

    def verify(self):
        """Compare every file with its SHA-256 again.

        Returns:
            The manifest, a dict.

        Raises:
            ValueError: a file is damaged or missing; the message names it.
        """
        return verify_run(self.folder)

    def _flipped(self, views):
        """Return the views and flips to predict with: those that the run was trained with, at most ``views``.

        Only images have some.
        """
        from thaw._validation import as_int
        from thaw.data.augmentation import count_flips

        if self.input is not None:
            if views != 1:
                raise ValueError(f"views={views} is for images, and the run is on {self.input.noun}s; leave it out.")
            return {}
        flips = self.config.get("flips", "none")
        return {"views": min(as_int("views", views, 1), count_flips(flips)), "flips": flips}

    def _json(self, name):
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    def __repr__(self):
        return f"Run({str(self.folder)!r})"

    def __str__(self):
        labels = ", ".join(self.labels[:8]) + (", ..." if len(self.labels) > 8 else "")
        kind = {"softmax": "classes", "sigmoid": "labels", "linear": "numbers"}[self.task.activation]
        lines = [f"Run {self.folder}, {len(self.labels)} {kind}: {labels}"]
        decides = next((n for n in ("accuracy", "mean_average_precision", "rmse", "r2") if n in self.metrics), None)
        if decides:
            value, low, high = (self.metrics[decides].get(key) for key in ("value", "low", "high"))
            interval = "" if low is None else f" (95 % interval {low:.3f} to {high:.3f})"
            name = "RMSE" if decides == "rmse" else "R²" if decides == "r2" else decides.replace("_", " ")
            shown = "unknown" if value is None else f"{value:.3f}{interval}"
            lines.append(f"{name} on {self.metrics.get('split', 'test')}: {shown}")
        epochs = len(self.history.get("epoch", ()))
        lines.append(f"plan: {', '.join(phase.name for phase in self.plan)}; {epochs} epochs")
        return "\n".join(lines)


def _files(folder):
    """Yield name and path of every file below a folder, except hidden ones, such as locks, and the checkpoint."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        hidden = name.parts[0] == UNFINISHED or any(part.startswith(".") for part in name.parts)
        if path.is_file() and not hidden:
            yield name.as_posix(), path


def _entry(path):
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def _manifest_sha256(manifest):
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _weights_sha256(model):
    """Hash the values alone: the Keras file around them also holds the time at which it was written."""
    digest = hashlib.sha256()
    for weight in model.weights:
        value = weight.numpy()
        digest.update(f"{value.dtype} {value.shape} ".encode() + value.tobytes())
    return digest.hexdigest()


def _versions():
    import keras
    import numpy
    import tensorflow

    versions = {module.__name__: module.__version__ for module in (keras, numpy, tensorflow)}
    return {"python": platform.python_version(), "thaw": __version__} | versions


def _refuse_absolute_paths(value):
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        for item in value:
            _refuse_absolute_paths(item)
    elif isinstance(value, str) and os.path.isabs(value):
        raise ValueError(f"The manifest would contain {value}, a path on this machine; leave it out of about.")
