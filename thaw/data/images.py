"""Load images from a folder or a CSV file."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from thaw._validation import as_seed
from thaw.data.files import read_files
from thaw.data.image_checks import check_images, near_duplicates
from thaw.data.image_decoding import cache_decoded, load_decoded
from thaw.data.splits import FRACTIONS, Splits
from thaw.data.splitting import check_split_arguments, refuse_no_train, split_examples
from thaw.data.tables import read_csv
from thaw.data.target_columns import TARGET_TASKS, read_targets

TASKS = ("classification", *TARGET_TASKS)


def load_images(
    data: str | os.PathLike,
    *,
    task: str = "classification",
    label: str | Sequence[str] | None = None,
    group: str | None = None,
    time: str | None = None,
    image_size: int = 224,
    seed: int = 0,
    splits: tuple[float, float, float] = FRACTIONS,
    max_bad: float = 0.05,
    balance: str = "auto",
    cache_dir: str | os.PathLike | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Splits:
    """Load a folder or a CSV file of labelled images as training, validation and test datasets.

    Splits given by the user are used as they are. Without them, images are split by their content, so that adding files
    moves no others; the images of a group, and near-duplicates, share a split. With ``time``, the latest images are the
    test, those before them the validation, and the earliest ones are trained on. If only train and test are given,
    validation is cut from train in the proportion of ``splits``; if only train and validation are given, there is no
    test.

    Bad files are rejected and listed. So is the image of a class that has only one: it cannot be both learned from and
    measured, and the class is left out with a note. What operating systems, network drives and programs leave in
    folders is ignored. Names that look the same are one class; those that differ in form only, such as ``0`` and
    ``0.0``, are noted.

    Args:
        data: a folder ``class/image``, with or without train, val and test folders above the classes; or a CSV file
            with the columns image and label, and optionally split, group and weight. Its paths are looked up from its
            own folder, then from the working folder.
        task: what is predicted: ``"classification"`` (default), one class for each image; ``"multilabel"``, any number
            of labels; or ``"regression"``, numbers. The last two need a CSV file.
        label: name of the column of a CSV file with the classes, the labels (``cat|hat``) or the number; or a list of
            names, of columns of 0 and 1 or of several numbers. Default ``None``: the column "label".
        group: name of the column of a CSV file with groups, such as patients; ``None`` (default) for the column
            "group", if there is one.
        time: name of the column of a CSV file with ISO dates or numbers to split by; ``None`` (default) for none.
        image_size: side of the square that each image is stretched to, in pixels, 8 to 4096; default 224.
        seed: int; another seed gives another split. It has no effect with ``time``.
        splits: fractions of train, validation and test; that of test may be 0.
        max_bad: largest fraction of bad files that is accepted, 0 to 1; default 0.05.
        balance: what is done about classes of different size: ``"none"``, ``"balanced"``, ``"logit-adjustment"`` or
            ``"auto"`` (default), as in :func:`thaw.data.splits.resolve_balance`.
        cache_dir: folder of all caches; decoded images are cached in ``decoded`` in it. Defaults to ``$THAW_CACHE``,
            else ``$XDG_CACHE_HOME/thaw``, else ``~/.cache/thaw``.
        progress: called with (files done, files in all, description).

    Returns:
        :class:`thaw.data.splits.Splits`, whose datasets load float32 pixels, 0 to 255. Where there are groups or
        near-duplicates, their ``groups`` say which images belong together; a number means the same in all of them.

    Raises:
        FileNotFoundError: nothing is at ``data``.
        ValueError: the data are invalid, or too many files are bad.
        OSError: the cache cannot be written.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for i in range(40):
        ...         path = Path(folder, "photos", ("dark", "light")[i % 2], f"{i}.png")
        ...         path.parent.mkdir(parents=True, exist_ok=True)
        ...         Image.new("RGB", (9, 9), (5 * i, 50, 100 * (i % 2))).save(path)
        ...     splits = load_images(Path(folder, "photos"), image_size=8, cache_dir=folder)
        >>> splits.labels, len(splits.rejected)
        (('dark', 'light'), 0)
        >>> len(splits.train) + len(splits.validation) + len(splits.test)
        40
    """
    _check_arguments(data, image_size)
    check_split_arguments(splits, max_bad, balance)
    source, seed = Path(data), as_seed(seed)
    columns, target_names, notes = read_labelled(source, task, label=label, group=group, time=time)
    if target_names and balance not in ("auto", "none"):
        raise ValueError(f"balance={balance!r} is for classes, and the task is {task}; leave balance out.")
    files, given = columns["image"], columns.get("split")
    refuse_no_train(source, given)
    # Copies with other labels contradict one another, those with other numbers do not.
    several = ["|".join(labels) for labels in columns["target"]] if task == "multilabel" else None
    checks = check_images(
        files,
        several or columns["label"],
        given,
        read=lambda content, key: cache_decoded(content, key, image_size, cache_dir=cache_dir),
        progress=progress,
    )
    unlabelled = "has no number" if task == "regression" else "has no label"
    return split_examples(
        source,
        columns,
        checks.keys,
        checks.bad,
        names=files,
        noun="image",
        cluster=lambda rows: near_duplicates(checks.hashes[rows], checks.thumbnails[rows]),
        inputs=lambda rows: {"x": np.array([checks.read[i] for i in rows]), "load": load_decoded(image_size)},
        unlabelled="lies outside every class folder" if source.is_dir() else unlabelled,
        fractions=splits,
        seed=seed,
        max_bad=max_bad,
        balance=balance,
        task=task,
        target_names=target_names,
        notes=notes,
        more_notes=checks.notes,
    )


def read_labelled(
    source: Path,
    task: str,
    *,
    label: str | Sequence[str] | None = None,
    group: str | None = None,
    time: str | None = None,
) -> tuple[dict[str, list], tuple[str, ...], tuple[str, ...]]:
    """Read the files and targets of a folder or a CSV file.

    Args:
        source: as ``data`` of :func:`load_images`.
        task: as for :func:`load_images`.
        label: as for :func:`load_images`.
        group: as for :func:`load_images`.
        time: as for :func:`load_images`.

    Returns:
        ``(columns, names, notes)``: as :func:`thaw.data.target_columns.read_targets`; of classes without names, and as
        :func:`thaw.data.files.read_files`.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: another task, or a folder where a column is asked for.
    """
    if task not in TASKS:
        raise ValueError(f"task={task!r}; expected one of {', '.join(TASKS)}.")
    if label is not None and (not label or not all(isinstance(name, str) and name for name in label)):
        raise ValueError(f"label={label!r}; expected the name of a column, or a list of names.")
    if task == "classification" and label is None:
        columns, notes = read_files(source, group=group, time=time)
        return columns, (), notes
    if source.is_dir():
        asked = f"label={label!r}" if task == "classification" else f"task={task!r}"
        raise ValueError(f"{source} is a folder, and {asked} needs a CSV file: one row for each image.")
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist; expected a CSV file")
    if task != "classification":
        return read_targets(source, task, label=label, group=group, time=time)
    if not isinstance(label, str):
        raise ValueError(
            f"label={label!r} names several columns, and an image has one class; give one, or another task."
        )
    columns, notes = read_csv(source, group=group, time=time, label=label)
    return columns, (), notes


def label_columns(label: str | Sequence[str] | None) -> str | list[str] | None:
    """Return the columns that an option names: several have commas between them.

    Args:
        label: a text, a list of names, or ``None``.

    Example:
        >>> label_columns("price"), label_columns("x, y"), label_columns(["a", "b"])
        ('price', ['x', 'y'], ['a', 'b'])
    """
    if isinstance(label, str) and "," in label:
        return [name.strip() for name in label.split(",")]
    return label if label is None or isinstance(label, str) else list(label)


def _check_arguments(data, image_size) -> None:
    if not isinstance(data, (str, os.PathLike)) or not str(data):
        raise ValueError(f"data={data!r}; expected the path of a folder of images or of a CSV file.")
    if isinstance(image_size, bool) or not isinstance(image_size, int) or not 8 <= image_size <= 4096:
        raise ValueError(f"image_size is {image_size!r}; expected a whole number of pixels from 8 to 4096")
