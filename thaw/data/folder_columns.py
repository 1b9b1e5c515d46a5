"""A folder of pictures, read into the same columns as a table would have."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
# Also those that cannot be read, such as .heic: they are meant as pictures, and the reason wants saying.
PICTURE_ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".heic", ".heif", ".psd"),
)
_QUIET = {"thumbs.db", "desktop.ini", "__macosx"}


def folder_columns(source: str | os.PathLike) -> tuple[dict[str, list], tuple[str, ...]]:
    """List the pictures of a folder `class/picture`, with or without train, val and test folders above it.

    A folder inside a class belongs to that class. Hidden files and those that operating systems leave behind
    are skipped. Files with the ending of something else (.txt, .json, .svg) are left alone, and counted in a
    note; files without an ending are taken for pictures. Links are followed, each folder once. The first
    level is taken for splits when it has a folder for training and all its folders have names of splits
    (train, val, valid, validation, test); a class may be called "train" beside "car" and "bus".

    Args:
        source: The folder.

    Returns:
        Columns "image" (paths, sorted within the folder), "label" (class, None for a picture outside every
        class) and, with folders for splits, "split" ("train", "validation", "test"); and sentences to show.

    Raises:
        ValueError: The folder has no classes, or its split folders contradict each other.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("cat/1.png", "dog/old/2.png", "dog/.DS_Store"):
        ...         path = Path(folder, name)
        ...         path.parent.mkdir(parents=True, exist_ok=True)
        ...         path.touch()
        ...     columns, notes = folder_columns(folder)
        >>> [Path(path).name for path in columns["image"]], columns["label"]
        (['1.png', '2.png'], ['cat', 'dog'])
    """
    root = Path(source)
    folders, loose = _level(root)
    if not folders and not loose:
        raise ValueError(f"{root} is empty; expected one folder of pictures for each class, such as {root}/cat")
    if not folders:
        raise ValueError(
            f"{root} holds files but no folders; expected one folder for each class: move the pictures of a "
            f"class into {root}/CLASS"
        )
    columns: dict[str, list] = {"image": [], "label": []}
    notes: list[str] = []
    others: Counter[str] = Counter()
    splits = _split_folders(root, folders)
    if splits:
        columns["split"] = []
        for split, folder in splits.items():
            _add_classes(folder, split, columns, notes, others)
    else:
        _add_classes(root, None, columns, notes, others)
    if splits:
        # Pictures beside the split folders have no class either; those inside were added above.
        _add(root, _loose_pictures(loose), None, "train", columns)
    if not any(label is not None for label in columns["label"]):
        raise ValueError(f"the folders of {root} hold no pictures; expected files such as .jpg or .png in them")
    if others:
        endings = ", ".join(_shown(ending) for ending, _ in others.most_common(5))
        count = sum(others.values())
        notes.append(f"Files left alone, since their endings are not those of pictures: {count} ({endings}).")
    return columns, tuple(notes)


def _split_folders(root: Path, folders: list[Path]) -> dict[str, Path]:
    """Split to folder, train first; empty when the folders are classes."""
    named = [folder for folder in folders if folder.name.lower() in SPLIT_WORDS]
    others = [folder.name for folder in folders if folder not in named]
    found: dict[str, Path] = {}
    for folder in named:
        split = SPLIT_WORDS[folder.name.lower()]
        if split in found:
            raise ValueError(
                f"{root} has both {found[split].name} and {folder.name}, which mean the same split "
                f"({split}); expected one of them"
            )
        found[split] = folder
    if others and len(found) < 2 and not (found and _holds_classes(next(iter(found.values())), others)):
        return {}
    if others and found:
        raise ValueError(
            f"{root} has folders of splits ({', '.join(f.name for f in named)}) beside others "
            f"({', '.join(map(_shown, others[:3]))}); expected either only train, validation and test, "
            "or only classes"
        )
    if found and "train" not in found:
        raise ValueError(f"{root} has {named[0].name} but no train folder; expected one to learn from")
    return {split: found[split] for split in ("train", "validation", "test") if split in found}


def _holds_classes(folder: Path, classes: list[str]) -> bool:
    return any(inside.name in classes for inside in _level(folder)[0])


def _add_classes(folder: Path, split: str | None, columns: dict, notes: list, others: Counter) -> None:
    classes, loose = _level(folder)
    for place in classes:
        try:
            place.name.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"the name of the folder {_shown(str(place))} is not UTF-8, and no file of the result could hold it; "
                "rename it"
            ) from None
    if split and not classes:
        raise ValueError(f"{folder} holds no folders; expected one for each class in it, such as {folder}/cat")
    for path in classes:
        files = [file for file in _walk(path) if _looks_like_picture(file, others)]
        if not files:
            notes.append(f"The folder {_shown(str(path))} holds no pictures and is left out.")
        _add(folder, files, path.name, split, columns)
    _add(folder, _loose_pictures(loose), None, split, columns)


def _add(folder: Path, files: list[str], label: str | None, split: str | None, columns: dict) -> None:
    columns["image"] += files
    columns["label"] += [label] * len(files)
    if "split" in columns:
        columns["split"] += [split] * len(files)


def _level(folder: Path) -> tuple[list[Path], list[str]]:
    """Folders and files directly inside, sorted, without the hidden ones."""
    entries = sorted(entry for entry in folder.iterdir() if not _hidden(entry.name))
    return [e for e in entries if e.is_dir()], [str(e) for e in entries if not e.is_dir()]


def _walk(folder: Path) -> list[str]:
    """All files below, sorted; each real folder once, for a link may lead back up."""
    files, seen = [], set()

    def fail(error):
        raise error

    for here, inside, names in os.walk(folder, followlinks=True, onerror=fail):
        real = os.path.realpath(here)
        if real in seen:
            inside.clear()
            continue
        seen.add(real)
        inside[:] = sorted(name for name in inside if not _hidden(name))
        files += [os.path.join(here, name) for name in names if not _hidden(name)]
    return sorted(files)


def _loose_pictures(files: list[str]) -> list[str]:
    """Those with the ending of a picture: a LICENSE beside the classes is nobody's example."""
    return [file for file in files if os.path.splitext(file)[1].lower() in PICTURE_ENDINGS]


def _hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _QUIET


def _looks_like_picture(path: str, others: Counter) -> bool:
    """By its ending; what does not is counted in `others`."""
    ending = os.path.splitext(path)[1].lower()
    if ending and ending not in PICTURE_ENDINGS:
        others[ending] += 1
        return False
    return True


def _shown(name: str) -> str:
    """The name with bytes that are no text written out, so that it can be printed."""
    return name.encode("utf-8", "backslashreplace").decode()
