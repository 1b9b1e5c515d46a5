"""Load images from a folder or a CSV file."""

from __future__ import annotations

import datetime
import hashlib
import numbers
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from thaw._validation import as_seed
from thaw.data.class_names import note_ambiguous_names, similar_names
from thaw.data.dataset import Dataset
from thaw.data.files import printable, read_files
from thaw.data.image_checks import check_images, near_duplicates
from thaw.data.image_decoding import cache_decoded, load_decoded
from thaw.data.splits import (
    BALANCES,
    FRACTIONS,
    SPLITS,
    Balance,
    RejectedFile,
    Splits,
    connected_groups,
    resolve_balance,
    split_by_content,
    split_by_time,
)
from thaw.data.tables import read_csv
from thaw.data.target_columns import TARGET_TASKS, read_targets, target_task
from thaw.tasks import Classification

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
    _check_arguments(data, image_size, splits, max_bad, balance)
    source, seed = Path(data), as_seed(seed)
    columns, target_names, notes = read_labelled(source, task, label=label, group=group, time=time)
    if target_names and balance not in ("auto", "none"):
        raise ValueError(f"balance={balance!r} is for classes, and the task is {task}; leave balance out.")
    notes = list(notes)
    files, classes, given = columns["image"], columns["label"], columns.get("split")
    if given is not None and "train" not in given and not source.is_dir():
        raise ValueError(f"{source}: no row has the split train; expected some to learn from")
    is_several = (
        task == "multilabel"
    )  # copies with other labels contradict one another, those with other numbers do not
    checks = check_images(
        files,
        ["|".join(labels) for labels in columns["target"]] if is_several else classes,
        given,
        read=lambda content, key: cache_decoded(content, key, image_size, cache_dir=cache_dir),
        progress=progress,
    )
    unlabelled = "has no number" if task == "regression" else "has no label"
    unlabelled = "lies outside every class folder" if source.is_dir() else unlabelled
    bad = {i: unlabelled for i, name in enumerate(classes) if name is None} | checks.bad
    if not target_names and (given is None or "validation" not in given):
        _reject_single_images(classes, given, checks.keys, bad, notes)
    _refuse_too_many(files, bad, max_bad)
    good = np.array([i for i in range(len(files)) if i not in bad])
    names = sorted({classes[i] for i in good})
    if not len(good):
        raise ValueError(f"{source} has no usable image. Left out:\n{_reasons(files, bad)}")
    if not target_names and len(names) < 2:
        raise ValueError(_too_few_classes(source, files, names, good, bad))
    notes += checks.notes
    clusters = np.full(len(files), -1)
    clusters[good] = near_duplicates(checks.hashes[good], checks.thumbnails[good])
    try:
        split_of = _assign_splits(columns, checks.keys, clusters, good, splits, seed, notes)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    _check_splits(source, split_of, classes, None if target_names else names, notes)
    _note_near_duplicates(clusters, good, classes, split_of, notes)
    notes += note_ambiguous_names(target_names or (name for name in classes if name is not None))
    groups = columns.get("group")
    belongs = connected_groups(
        [checks.keys[i] for i in good], None if groups is None else [groups[i] for i in good], clusters[good]
    )
    group_of = None if belongs is None else dict(zip(good.tolist(), belongs.tolist(), strict=True))

    targets = columns["target"] if target_names else classes
    if target_names:
        found, more = target_task(task, target_names, [targets[i] for i in good if split_of[i] == "train"])
        notes += more
    else:
        found = Classification(names)
    content_keys = [int.from_bytes(bytes.fromhex(key[:16]), "little", signed=True) for key in checks.keys]
    weights = columns.get("weight")
    datasets, paths, digest = {}, {}, hashlib.sha256()
    for split in SPLITS:
        rows = [i for i in good if split_of[i] == split]
        paths[split] = tuple(files[i] for i in rows)
        for i in rows:
            row = (split, targets[i], checks.keys[i], 1.0 if weights is None else weights[i])
            row += () if groups is None else (groups[i],)
            digest.update((repr(row) + "\n").encode("utf-8", "surrogateescape"))
        datasets[split] = None
        if rows:
            datasets[split] = Dataset(
                x=np.array([checks.read[i] for i in rows]),
                y=found.encode([targets[i] for i in rows]),
                sample_weight=None if weights is None else np.array([weights[i] for i in rows], np.float32),
                load=load_decoded(image_size),
                keys=np.array([content_keys[i] for i in rows], np.int64),
                groups=None if group_of is None else np.array([group_of[i] for i in rows], np.int64),
            )
    balanced = Balance("none") if target_names else resolve_balance(balance, datasets["train"].y, len(names))
    class_weight = balanced.class_weight
    if weights is not None and not datasets["train"].sample_weight.any():
        raise ValueError(f"{source}: every weight in train is 0; expected some above 0")
    if class_weight:
        rare, frequent = max(class_weight, key=class_weight.get), min(class_weight, key=class_weight.get)
        notes.append(
            f"The classes are uneven ({names[frequent]!r} is the most frequent, {names[rare]!r} the rarest): each has "
            f"a balanced weight, from {class_weight[frequent]:.2f} to {class_weight[rare]:.2f}."
        )
    if balanced.class_counts:
        notes.append("The model is adjusted for the frequencies of the classes after the training.")
    return Splits(
        **datasets,
        task=found,
        files=paths,
        rejected=tuple(RejectedFile(printable(files[i]), bad[i]) for i in sorted(bad)),
        class_weight=class_weight,
        class_counts=balanced.class_counts,
        notes=tuple(notes),
        digest=digest.hexdigest(),
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


def _check_arguments(data, image_size, splits, max_bad, balance) -> None:
    if balance not in BALANCES:
        raise ValueError(f"balance={balance!r}; expected one of {', '.join(BALANCES)}.")
    if not isinstance(data, (str, os.PathLike)) or not str(data):
        raise ValueError(f"data={data!r}; expected the path of a folder of images or of a CSV file.")
    if isinstance(image_size, bool) or not isinstance(image_size, int) or not 8 <= image_size <= 4096:
        raise ValueError(f"image_size is {image_size!r}; expected a whole number of pixels from 8 to 4096")
    if len(splits) != 3 or not all(0 <= fraction <= 1 for fraction in splits) or abs(sum(splits) - 1) > 1e-6:
        raise ValueError(f"splits is {splits}; expected the fractions of train, validation and test, which sum to 1")
    if not (splits[0] and splits[1]):
        raise ValueError(f"splits is {splits}; expected fractions above 0 for train and validation")
    if not isinstance(max_bad, numbers.Real) or not 0 <= max_bad <= 1:
        raise ValueError(f"max_bad is {max_bad!r}; expected a fraction from 0 to 1")


def _reject_single_images(classes, given, keys, bad, notes) -> None:
    """Reject the images of a class with one usable image, which cannot be divided."""
    usable = [i for i in range(len(classes)) if i not in bad and (given is None or given[i] == "train")]
    distinct = Counter(name for name, _ in {(classes[i], keys[i]) for i in usable})
    for single in sorted(name for name, count in distinct.items() if count == 1):
        for i, name in enumerate(classes):
            if name == single and i not in bad:
                bad[i] = f"is of the class {name!r}, which has only one usable image; at least two are needed"
        notes.append(f"The class {single!r} is left out: it has only one usable image, and at least two are needed.")


def _refuse_too_many(files, bad, max_bad) -> None:
    if len(bad) > max_bad * len(files):
        raise ValueError(
            f"{len(bad)} of {len(files)} files are bad, more than the accepted {max_bad:.0%}; "
            f"repair or remove them, or raise max_bad (--max-bad):\n{_reasons(files, bad)}"
        )


def _reasons(files, bad) -> str:
    """List the reasons, the most frequent first, each with its first file and the number of others."""
    of_reason: dict[str, list[int]] = {}
    for i in sorted(bad):
        of_reason.setdefault(bad[i], []).append(i)
    rows = sorted(of_reason.values(), key=len, reverse=True)
    lines = [
        f"  {printable(files[first])} {bad[first]}" + (f"; {len(others)} others too" if others else "")
        for first, *others in rows[:5]
    ]
    more = sum(map(len, rows[5:]))
    return "\n".join(lines + [f"  and {more} more"] * bool(more))


def _too_few_classes(source, files, names, good, bad) -> str:
    text = (
        f"{source} has usable images of {len(names)} class{'es' if len(names) != 1 else ''} "
        f"({', '.join(names) or 'none'}); expected two or more"
    )
    if source.is_dir() and names:
        inside = {Path(files[i]).relative_to(source).parts[:-1] for i in good}
        if all(len(folders) > 1 for folders in inside) and len(inside) > 1:
            text += f". If the folders in {source / min(inside)[0]} are the classes, give that folder"
    return text + (f". Left out:\n{_reasons(files, bad)}" if bad else "")


def _assign_splits(columns, keys, clusters, good, fractions, seed, notes) -> dict[int, str]:
    """Return the split of each good image."""
    given, groups, times = columns.get("split"), columns.get("group"), columns.get("time")
    split_of = {}
    rows = good  # those still to be split
    if given is not None:
        split_of = {i: given[i] for i in good}
        _note_split_groups(groups, split_of, notes)
        if "validation" in split_of.values():
            if times is not None:
                raise ValueError("train and validation are given, so there is nothing to split by time; leave one out")
            if "test" not in split_of.values():
                notes.append("There is no test split: the score on validation is optimistic, since it is tuned on.")
            return split_of
        rows = [i for i in good if given[i] == "train"]
        if len(rows) == len(good):
            notes.append("All images are given as train: validation and test are cut from them.")
        if "test" in split_of.values():
            total = fractions[0] + fractions[1]
            fractions = [fractions[0] / total, fractions[1] / total]
            notes.append(f"Validation is cut from train: {fractions[1]:.0%} of it.")
    row_keys, row_clusters = [keys[i] for i in rows], [clusters[i] for i in rows]
    row_groups = None if groups is None else [groups[i] for i in rows]
    if times is None:
        row_classes = [columns["label"][i] for i in rows]
        numbers = split_by_content(row_keys, row_classes, row_groups, row_clusters, fractions, seed)
    else:
        row_times = [times[i] for i in rows]
        numbers = split_by_time(row_times, row_keys, row_groups, row_clusters, fractions)
        ends = [max(time for time, k in zip(row_times, numbers, strict=True) if k == number) for number in (0, 1)]
        text = f"Split by time: train is up to {_format_time(ends[0])}, validation up to {_format_time(ends[1])}"
        notes.append(text + (", test after it." if 2 in numbers else "."))
    return split_of | {i: SPLITS[number] for i, number in zip(rows, numbers, strict=True)}


def _format_time(time) -> str:
    return time.isoformat().removesuffix("T00:00:00") if isinstance(time, datetime.datetime) else f"{time:.12g}"


def _check_splits(source, split_of, classes, names, notes) -> None:
    counts = Counter((split_of[i], classes[i]) for i in split_of)
    sizes = Counter(split_of.values())
    for split in ("validation", "test"):
        for name in names or ():
            if counts[split, name] and not counts["train", name]:
                known = [other for other in names if counts["train", other]]
                alike = next((group for group in similar_names([*known, name]) if name in group), None)
                raise ValueError(
                    f"{source}: the class {name!r} is in {split} ({counts[split, name]}) but not in train; "
                    "expected every class in train"
                    + (f". Train has {next(n for n in alike if n != name)!r}: use the same name" if alike else "")
                )
            if sizes[split] and not counts[split, name]:
                notes.append(f"No image of the class {name!r} is in {split}.")
    if not sizes["validation"]:
        raise ValueError(
            f"{source}: no image is left for validation, since the images of each class are near-duplicates or of one "
            "group; expected at least two different ones in a class"
        )
    parts = ", ".join(f"{sizes[split]} in {split}" for split in SPLITS if sizes[split])
    kinds = "" if names is None else f" of {len(names)} classes"
    notes.append(f"{len(split_of)} images{kinds}: {parts}.")


def _note_split_groups(groups, split_of, notes) -> None:
    """Note the groups that the given splits divide."""
    splits: dict[str, set] = {}
    for i, split in split_of.items():
        if groups is not None and groups[i] is not None:
            splits.setdefault(groups[i], set()).add(split)
    divided = sorted(group for group, parts in splits.items() if len(parts) > 1)
    if divided:
        groups_are = "1 group is" if len(divided) == 1 else f"{len(divided)} groups are"
        notes.append(
            f"{groups_are} in several splits, as given (first: {divided[0]!r}): the scores may be too optimistic."
        )


def _note_near_duplicates(clusters, good, classes, split_of, notes) -> None:
    """Note how many near-duplicates there are, and which contradict one another."""
    members: dict[int, list[int]] = {}
    for i in good:
        members.setdefault(clusters[i], []).append(i)
    near = [indices for indices in members.values() if len(indices) > 1]
    if near:
        count = sum(map(len, near))
        notes.append(f"{count} images are near-duplicates of others, in {_clusters(len(near))}.")
    divided = [indices for indices in near if len({split_of[i] for i in indices}) > 1]
    if divided:
        notes.append(
            f"{_clusters(len(divided))} of near-duplicates {'is' if len(divided) == 1 else 'are'} in several splits, "
            f"as given (first: {split_of[divided[0][0]]} and others): the scores may be too optimistic."
        )
    mixed = [indices for indices in near if len({classes[i] for i in indices}) > 1]
    if mixed:
        notes.append(
            f"{_clusters(len(mixed))} of near-duplicates {'holds' if len(mixed) == 1 else 'hold'} different classes: "
            "check their labels."
        )


def _clusters(count) -> str:
    return "1 cluster" if count == 1 else f"{count} clusters"
