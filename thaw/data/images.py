"""A folder or a table of pictures to examples ready for training, each file looked at on the way."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from thaw.data.check import check_pictures
from thaw.data.class_weight import balanced_weights
from thaw.data.csv_columns import csv_columns
from thaw.data.decode import decode
from thaw.data.decoded_cache import decoded, load_decoded
from thaw.data.folder_columns import folder_columns
from thaw.data.near_identical import near_identical
from thaw.data.pictures import Bad, Pictures
from thaw.data.split import split_by_content
from thaw.examples import Examples

SPLITS = ("train", "validation", "test")


def images(
    source: str | os.PathLike,
    *,
    image_size: int = 224,
    seed: int = 0,
    splits: tuple[float, float, float] = (0.7, 0.15, 0.15),
    max_bad: float = 0.05,
    cache: str | os.PathLike | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Pictures:
    """Make training, validation and test examples of a folder or a CSV file of pictures.

    A split that the user gives is kept. Without one, pictures are split by their content, so that adding
    files moves no others, with groups and near-identical pictures on one side. Where only train and test are
    given, validation is cut from train in the proportion of `splits`; where only train and validation are
    given, there is no test.

    Bad files go on the quarantine list. So does the picture of a class that has only one: it cannot be both
    learned from and checked, and the class is left out, which a note says.

    Args:
        source: A folder `class/picture`, with or without train, val and test folders above it; or a CSV file
            with the columns image and label, and optionally split, group and weight.
        image_size: Side of the square that each picture is stretched to, in pixels, 8 to 4096.
        seed: Another number gives another split.
        splits: Shares of train, validation and test; that of test may be 0.
        max_bad: Largest share of bad files that is put up with, 0 to 1.
        cache: Folder for what is kept between runs. Default: `$THAW_CACHE`, else `~/.cache/thaw`.
        progress: Called with (files done, files in all, what is done).

    Returns:
        The examples, the quarantine list, and notes to show. The examples load as float32 pixels, 0 to 255.

    Raises:
        FileNotFoundError: There is no such source.
        ValueError: The source is not as expected, or too many files are bad.
        OSError: The cache cannot be written.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for i in range(40):
        ...         path = Path(folder, "photos", ("dark", "light")[i % 2], f"{i}.png")
        ...         path.parent.mkdir(parents=True, exist_ok=True)
        ...         Image.new("RGB", (9, 9), (5 * i, 50, 100 * (i % 2))).save(path)
        ...     pictures = images(Path(folder, "photos"), image_size=8, cache=folder)
        >>> pictures.labels, len(pictures.quarantine)
        (('dark', 'light'), 0)
        >>> len(pictures.train) + len(pictures.validation) + len(pictures.test)
        40
    """
    source = Path(source)
    _check_arguments(source, image_size, splits, max_bad)
    columns, notes = folder_columns(source) if source.is_dir() else csv_columns(source)
    notes = list(notes)
    files, labels, given = columns["image"], columns["label"], columns.get("split")
    reader = _reader(image_size, None if cache is None else Path(cache, "decoded"))
    checked = check_pictures(files, labels, given, read=reader, progress=progress)
    bad = {i: "lies outside every class folder" for i, label in enumerate(labels) if label is None} | checked.bad
    if given is None or "validation" not in given:
        _quarantine_single(labels, given, checked.keys, bad, notes)
    _refuse(files, bad, max_bad)
    good = np.array([i for i in range(len(files)) if i not in bad])
    names = sorted({labels[i] for i in good})
    if len(names) < 2:
        first = "".join(f"\n  {_shown(files[i])} {bad[i]}" for i in sorted(bad)[:5])
        raise ValueError(
            f"{source} has usable pictures of {len(names)} class{'es' if len(names) != 1 else ''} "
            f"({', '.join(names) or 'none'}); expected two or more{first and '. Left out:' + first}"
        )
    notes += checked.notes
    clusters = np.full(len(files), -1)
    clusters[good] = near_identical(checked.hashes[good], checked.thumbnails[good])
    part = _parts(columns, checked.keys, clusters, good, splits, seed, notes)
    _check_parts(source, part, labels, names, notes)
    _say_near(clusters, good, labels, part, notes)
    _say_alike(names, notes)

    number = {name: c for c, name in enumerate(names)}
    keys = [int.from_bytes(bytes.fromhex(key[:16]), "little", signed=True) for key in checked.keys]
    weights = columns.get("weight")
    examples, paths, digest = {}, {}, hashlib.sha256()
    for name in SPLITS:
        here = [i for i in good if part[i] == name]
        paths[name] = tuple(files[i] for i in here)
        for i in here:
            row = (name, labels[i], checked.keys[i], 1.0 if weights is None else weights[i])
            digest.update((repr(row) + "\n").encode("utf-8", "surrogateescape"))
        examples[name] = None
        if here:
            examples[name] = Examples(
                x=np.array([checked.read[i] for i in here]),
                y=np.array([number[labels[i]] for i in here], np.int64),
                weight=None if weights is None else np.array([weights[i] for i in here], np.float32),
                load=load_decoded(image_size),
                keys=np.array([keys[i] for i in here], np.int64),
            )
    class_weight = balanced_weights(examples["train"].y, len(names))
    if weights is not None and not examples["train"].weight.any():
        raise ValueError(f"{source}: every weight in train is 0; expected some above 0")
    if class_weight:
        rare, common = max(class_weight, key=class_weight.get), min(class_weight, key=class_weight.get)
        notes.append(
            f"The classes are uneven ({names[common]!r} is the commonest, {names[rare]!r} the rarest): each "
            f"counts by a balanced weight, from {class_weight[common]:.2f} to {class_weight[rare]:.2f}."
        )
    quarantine = tuple(Bad(_shown(files[i]), bad[i]) for i in sorted(bad))
    return Pictures(
        **examples,
        labels=tuple(names),
        files=paths,
        quarantine=quarantine,
        class_weight=class_weight,
        notes=tuple(notes),
        digest=digest.hexdigest(),
    )


def _check_arguments(source: Path, image_size, splits, max_bad) -> None:
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist; expected a folder of pictures or a CSV file")
    if isinstance(image_size, bool) or not isinstance(image_size, int) or not 8 <= image_size <= 4096:
        raise ValueError(f"image_size is {image_size!r}; expected a whole number of pixels from 8 to 4096")
    if len(splits) != 3 or not all(0 <= share <= 1 for share in splits) or abs(sum(splits) - 1) > 1e-6:
        raise ValueError(f"splits is {splits}; expected the shares of train, validation and test, which sum to 1")
    if not (splits[0] and splits[1]):
        raise ValueError(f"splits is {splits}; expected shares above 0 for train and validation")
    if not 0 <= max_bad <= 1:
        raise ValueError(f"max_bad is {max_bad}; expected a share from 0 to 1")


def _reader(image_size: int, folder: Path | None) -> Callable:
    def read(data: bytes, key: str):
        return decoded(data, key, image_size, decode=decode, folder=folder)

    return read


def _quarantine_single(labels, given, keys, bad, notes) -> None:
    """A class of one usable picture cannot be divided."""
    inside = [i for i in range(len(labels)) if i not in bad and (given is None or given[i] == "train")]
    distinct = Counter(label for label, _ in {(labels[i], keys[i]) for i in inside})
    for name in sorted(name for name, count in distinct.items() if count == 1):
        for i, label in enumerate(labels):
            if label == name and i not in bad:
                bad[i] = f"is of the class {name!r}, which has only one usable picture; two are the least"
        notes.append(f"The class {name!r} is left out: it has only one usable picture, and two are the least.")


def _refuse(files, bad, max_bad) -> None:
    if len(bad) > max_bad * len(files):
        first = "\n".join(f"  {_shown(files[i])} {bad[i]}" for i in sorted(bad)[:5])
        more = f"\n  and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise ValueError(
            f"{len(bad)} of {len(files)} files are bad, more than the {max_bad:.0%} that are put up with; "
            f"mend or remove them, or raise max_bad (--max-bad):\n{first}{more}"
        )


def _parts(columns, keys, clusters, good, splits, seed, notes) -> dict[int, str]:
    """Name of the split of each good picture."""
    given, groups = columns.get("split"), columns.get("group")
    if given is not None and any(given[i] == "validation" for i in good):
        if not any(given[i] == "test" for i in good):
            notes.append("There is no test split: the score on validation is optimistic, since it is tuned on.")
        return {i: given[i] for i in good}
    shares = list(splits)
    part = {}
    inside = good
    if given is not None:
        part = {i: given[i] for i in good}
        inside = [i for i in good if given[i] == "train"]
        if "test" in part.values():
            total = splits[0] + splits[1]
            shares = [splits[0] / total, splits[1] / total]
            notes.append(f"Validation is cut from train: {shares[1]:.0%} of it.")
    chosen = split_by_content(
        [keys[i] for i in inside],
        [columns["label"][i] for i in inside],
        None if groups is None else [groups[i] for i in inside],
        [clusters[i] for i in inside],
        shares,
        seed,
    )
    return part | {i: SPLITS[c] for i, c in zip(inside, chosen, strict=True)}


def _check_parts(source, part, labels, names, notes) -> None:
    counts = Counter((part[i], labels[i]) for i in part)
    sizes = Counter(part.values())
    for split in ("validation", "test"):
        for name in names:
            if counts[split, name] and not counts["train", name]:
                raise ValueError(
                    f"{source}: the class {name!r} is in {split} ({counts[split, name]}) but not in train; "
                    "expected every class in train"
                )
            if sizes[split] and not counts[split, name]:
                notes.append(f"No picture of the class {name!r} is in {split}.")
    if not sizes["validation"]:
        raise ValueError(
            f"{source}: no picture is left for validation, since the pictures of each class are "
            "near-identical or of one group; expected at least two different ones in a class"
        )
    said = ", ".join(f"{sizes[split]} in {split}" for split in SPLITS if sizes[split])
    notes.append(f"{len(part)} pictures of {len(names)} classes: {said}.")


def _say_near(clusters, good, labels, part, notes) -> None:
    """Count near-identical pictures, and those that contradict each other."""
    members: dict[int, list[int]] = {}
    for i in good:
        members.setdefault(clusters[i], []).append(i)
    near = [indices for indices in members.values() if len(indices) > 1]
    if near:
        count = sum(map(len, near))
        notes.append(f"{count} pictures are near-identical to others, in {_clusters(len(near))}.")
    torn = [indices for indices in near if len({part[i] for i in indices}) > 1]
    if torn:
        are = "is" if len(torn) == 1 else "are"
        notes.append(
            f"{_clusters(len(torn))} of near-identical pictures {are} in several splits, as given (first: "
            f"{part[torn[0][0]]} and others): the scores may flatter."
        )
    mixed = [indices for indices in near if len({labels[i] for i in indices}) > 1]
    if mixed:
        hold = "holds" if len(mixed) == 1 else "hold"
        notes.append(
            f"{_clusters(len(mixed))} of near-identical pictures {hold} different classes: look at their labels."
        )


def _say_alike(names, notes) -> None:
    """Count as one what differs in capitals and spaces, to ask whether it is."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault("".join(name.casefold().split()), []).append(name)
    for same in alike.values():
        if len(same) > 1:
            told = " and ".join(repr(name) for name in same)
            notes.append(f"The classes {told} differ in capitals or spaces only: if they are one, give it one name.")


def _clusters(count):
    return "1 cluster" if count == 1 else f"{count} clusters"


def _shown(path: str) -> str:
    return path.encode("utf-8", "backslashreplace").decode()
