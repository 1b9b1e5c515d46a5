"""Read a folder with a subfolder for each class, or a table of images, into the same columns."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from thaw.data.class_names import class_name, note_merged
from thaw.data.image_paths import IMAGE_SUFFIXES, suffix_of
from thaw.data.splits import SPLIT_NAMES
from thaw.data.tables import read_csv

# What systems and programs leave behind, in lower case. Whatever begins with a dot is ignored too.
_SYSTEM_FOLDERS = {
    *("@eadir", "@recycle", "@recently-snapshot", "@tmp", "@sharebin", "#recycle", "#snapshot", "lost+found"),  # NAS
    *("$recycle.bin", "system volume information", "found.000", "lost.dir"),  # Windows, Android
    *("__macosx", "network trash folder", "temporary items", "thevolumesettingsfolder"),  # Mac
    *("__pycache__", "_gsdata_"),
}
_SYSTEM_FOLDER_SUFFIXES = (".lrdata", ".lrcat-data", ".photoslibrary", ".cocatalog")  # previews of photo programs
_SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r", "icon\uf00d"}
_LIKE_A_SPLIT = re.compile(
    r"(?:^|[\W_])(?:train|training|test|testing|val|valid|validation|dev|eval)(?:[\W_\d]|$)", re.I
)
_SYSTEM_FILE = re.compile(r"~\$.*|.*[:\uf03a]?zone\.identifier(:\$data)?", re.IGNORECASE | re.DOTALL)
# Pillow opens some of them, and would take the thumbnail inside for the photograph.
_RAW_SUFFIXES = (
    *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dng", ".erf", ".iiq", ".kdc", ".mos", ".mrw", ".nef", ".nrw", ".orf"),
    *(".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"),
)


def read_files(
    source: str | os.PathLike, *, group: str | None = None, time: str | None = None
) -> tuple[dict[str, list], tuple[str, ...]]:
    """Read a CSV file (:func:`read_csv`) or a folder (:func:`read_folders`).

    Args:
        source: path of either.
        group: name of the column with groups; only a CSV file has one.
        time: name of the column with times; only a CSV file has one.

    Returns:
        ``(columns, notes)``: a dict from "image", "label" and, where given, "split", "group", "time" and "weight" to
        lists of the same length; and sentences for the user.

    Raises:
        FileNotFoundError: nothing is at ``source``.
        ValueError: the content is invalid, or groups or times are asked of a folder.

    Example:
        >>> read_files("nowhere")
        Traceback (most recent call last):
        FileNotFoundError: nowhere does not exist; expected a folder of images or a CSV file
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist; expected a folder of images or a CSV file")
    if not source.is_dir():
        return read_csv(source, group=group, time=time)
    for name, column in (("group", group), ("time", time)):
        if column is not None:
            raise ValueError(
                f"{source} is a folder and has no column for {name}={column!r}; list the images in a CSV file with the "
                f"columns image, label and {column}"
            )
    return read_folders(source)


def read_folders(source: str | os.PathLike) -> tuple[dict[str, list], tuple[str, ...]]:
    """List the images of a folder ``class/image``, with or without train, val and test folders above the classes.

    A folder inside a class belongs to that class. Hidden files, and what operating systems, network drives and programs
    leave behind, are ignored; files with the suffix of no image are ignored and counted in a note. Folders whose names
    look the same (:func:`thaw.data.class_names.class_name`) are one class.

    Args:
        source: path of the folder.

    Returns:
        ``(columns, notes)``: lists under "image" (paths), "label" (``None`` for an image outside every class folder)
        and, where the folders give it, "split"; and sentences for the user.

    Raises:
        ValueError: the folder has no classes, or its split folders contradict one another.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("cat/1.png", "dog/old/2.png", "dog/.DS_Store"):
        ...         path = Path(folder, name)
        ...         path.parent.mkdir(parents=True, exist_ok=True)
        ...         path.touch()
        ...     columns, notes = read_folders(folder)
        >>> [Path(path).name for path in columns["image"]], columns["label"]
        (['1.png', '2.png'], ['cat', 'dog'])
    """
    root = Path(source)
    found = FoundFiles()
    folders, loose = list_folder(root, found.ignored, found.unreadable)
    if not folders and not loose:
        raise ValueError(f"{root} is empty; expected one folder of images for each class, such as {root}/cat")
    if not folders:
        raise ValueError(
            f"{root} holds files but no folders; expected one folder for each class: move the images of a "
            f"class into {root}/CLASS"
        )
    splits = split_folders(root, folders)
    if splits:
        found.columns["split"] = []
        for split, folder in splits.items():
            _add_classes(folder, split, found)
        # Images next to the split folders have no class either; those inside them were added above.
        found.add(_only_images(loose), None, "train")
    else:
        refuse_hidden_splits(folders)
        _add_classes(root, None, found)
    if not any(label is not None for label in found.columns["label"]):
        there = f" (there are: {_common(found.others)})" if found.others else ""
        raise ValueError(f"The folders of {root} hold no images; expected files such as .jpg or .png in them{there}")
    return found.columns, tuple(found.notes + note_merged(found.spellings) + _note_ignored(found))


@dataclass
class FoundFiles:
    """What is found while the folders are read.

    Attributes:
        columns: lists under "image", "label" and, where there are splits, "split".
        notes: sentences for the user.
        spellings: names of the class folders, as they are written.
        others: how many files of each suffix are not used.
        ignored: how many files are in folders of systems, by the folder's name.
        unreadable: dict from the path of what cannot be read to the reason.
    """

    columns: dict[str, list] = field(default_factory=lambda: {"image": [], "label": []})
    notes: list[str] = field(default_factory=list)
    spellings: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)
    unreadable: dict[str, str] = field(default_factory=dict)

    def add(self, files: list[str], label: str | None, split: str | None) -> None:
        """Add image files of one class and one split."""
        self.columns["image"] += files
        self.columns["label"] += [label] * len(files)
        if "split" in self.columns:
            self.columns["split"] += [split] * len(files)


def _note_ignored(found: FoundFiles) -> list[str]:
    notes = []
    raw = Counter({suffix: count for suffix, count in found.others.items() if suffix in _RAW_SUFFIXES})
    others = found.others - raw
    if raw:
        notes.append(
            f"Camera raw files ignored: {raw.total()} ({_common(raw)}). Export them as JPEG or PNG to use them."
        )
    if others:
        notes.append(
            f"Files ignored, because their suffixes are not those of images: {others.total()} ({_common(others)})."
        )
    if found.ignored.total():
        notes.append(
            f"Files ignored, because they lie in folders of systems and programs: {found.ignored.total()} "
            f"({_common(found.ignored)})."
        )
    if found.unreadable:
        (path, reason), count = next(iter(found.unreadable.items())), len(found.unreadable)
        notes.append(
            f"Files or links ignored, because they cannot be read: {count}, such as {printable(path)} ({reason})."
        )
    return notes


def _common(counts: Counter[str]) -> str:
    return ", ".join(printable(name) for name, _ in counts.most_common(5))


def split_folders(root: Path, folders: list[Path]) -> dict[str, Path]:
    """Return split to folder, train first; empty if the folders are classes.

    Args:
        root: path of the data.
        folders: the folders in it.

    Raises:
        ValueError: two folders of one split, splits next to classes, or no train.
    """
    named = [folder for folder in folders if _split_name(folder)]
    others = [folder.name for folder in folders if folder not in named]
    by_split: dict[str, Path] = {}
    for folder in named:
        split = _split_name(folder)
        if split in by_split:
            raise ValueError(
                f"{root} has both {by_split[split].name} and {folder.name}, which mean the same split "
                f"({split}); expected one of them"
            )
        by_split[split] = folder
    if others and len(by_split) < 2 and not (by_split and _holds_classes(next(iter(by_split.values())), others)):
        return {}
    if others and by_split:
        raise ValueError(
            f"{root} has folders of splits ({', '.join(f.name for f in named)}) next to others "
            f"({', '.join(map(printable, others[:3]))}); expected either only train, validation and test, "
            "or only classes"
        )
    if by_split and "train" not in by_split:
        raise ValueError(f"{root} has {named[0].name} but no train folder; expected one to learn from")
    return {split: by_split[split] for split in ("train", "validation", "test") if split in by_split}


def _split_name(folder: Path) -> str | None:
    return SPLIT_NAMES.get(class_name(folder.name).lower())


def _holds_classes(folder: Path, classes: list[str]) -> bool:
    return any(inside.name in classes for inside in list_folder(folder)[0])


def refuse_hidden_splits(folders: list[Path]) -> None:
    """Refuse splits that are not recognized as such: what is in them would be mixed, and the test trained on.

    Args:
        folders: those that are taken for classes.

    Raises:
        ValueError: each holds folders of splits, or two hold the same folders.
    """
    below = {folder: list_folder(folder)[0] for folder in folders}
    splits = [{_split_name(path) for path in paths} for paths in below.values()]
    inside = {folder: {path.name for path in paths} for folder, paths in below.items()}
    if all({"train", "test"} <= names or {"train", "validation"} <= names for names in splits):
        first = printable(str(folders[0]))
        raise ValueError(
            f"every class has its own folders of splits, such as {first}/train; expected the splits above the classes: "
            f"{printable(str(folders[0].parent))}/train/{printable(folders[0].name)}"
        )
    for one in [folder for folder in folders if _LIKE_A_SPLIT.search(folder.name)]:
        for other in folders:
            same = inside[one] & inside[other]
            if same and one != other:
                raise ValueError(
                    f"{printable(str(one))} and {printable(other.name)} have the same folder {min(same)!r} in them; if "
                    "they are splits, call them train, val and test; if they are classes, list the images in a CSV file"
                )


def _add_classes(folder: Path, split: str | None, found: FoundFiles) -> None:
    # Those of the root are counted.
    classes, loose = list_folder(folder, found.ignored if split else None, found.unreadable)
    names = [name_as_text(path) for path in classes]
    for path, name in zip(classes, names, strict=True):
        if not class_name(name):
            raise ValueError(f"the name of the folder {str(path)!a} has no visible letter; rename it")
    if split and not classes:
        raise ValueError(f"{folder} holds no folders; expected one for each class in it, such as {folder}/cat")
    for path, name in zip(classes, names, strict=True):
        files = [file for file in walk_folder(path, found) if _is_image(file, found.others)]
        if not files:
            found.notes.append(f"The folder {printable(str(path))} holds no images and is left out.")
        else:
            found.spellings.append(name)
        found.add(files, class_name(name), split)
    found.add(_only_images(loose), None, split)


def name_as_text(folder: Path) -> str:
    """Return the name of a folder as text, also where the locale does not know its letters, as ``LC_ALL=C``.

    Args:
        folder: its path.

    Raises:
        ValueError: the name is not UTF-8.
    """
    try:
        return folder.name.encode("utf-8", "surrogateescape").decode()
    except UnicodeError:
        raise ValueError(
            f"the name of the folder {printable(str(folder))} is not UTF-8 and cannot be written to the run's files; "
            "rename it"
        ) from None


def list_folder(
    folder: Path, ignored: Counter[str] | None = None, unreadable: dict[str, str] | None = None
) -> tuple[list[Path], list[str]]:
    """List what is directly inside a folder, sorted, without hidden files and what systems and programs leave behind.

    Args:
        folder: path.
        ignored: counts the files in each folder of a system that is left out; ``None`` (default) to count none.
        unreadable: receives the path and the reason of each entry that is left out because the system cannot say what
            it is, such as a link to itself; ``None`` (default) to note none.

    Returns:
        ``(folders, files)``: paths.

    Raises:
        OSError: the folder itself cannot be read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Path(folder, "cat").mkdir()
        ...     for name in ("1.png", "Thumbs.db", ".DS_Store"):
        ...         Path(folder, name).touch()
        ...     folders, files = list_folder(Path(folder))
        >>> [path.name for path in folders], [Path(path).name for path in files]
        (['cat'], ['1.png'])
    """
    folders, files = [], []
    with os.scandir(folder) as listed:
        entries = sorted(listed, key=lambda entry: entry.name)
    for entry in entries:
        name = entry.name.lower()
        if name.startswith("."):
            continue
        try:
            is_folder = entry.is_dir()
        except OSError as error:
            if unreadable is not None:
                unreadable[entry.path] = error.strerror
            continue
        if not is_folder:
            if name not in _SYSTEM_FILES and not _SYSTEM_FILE.fullmatch(name):
                files.append(entry.path)
        elif name not in _SYSTEM_FOLDERS and not name.endswith(_SYSTEM_FOLDER_SUFFIXES):
            folders.append(Path(entry.path))
        elif ignored is not None:
            ignored[entry.name] += sum(len(inside) for _, _, inside in os.walk(entry))
    return folders, files


def walk_folder(folder: Path, found: FoundFiles) -> list[str]:
    """Return all files below a folder, sorted; each real folder is read once, since a link may lead back up.

    Args:
        folder: its path.
        found: gets what is ignored, and what cannot be read.
    """
    files, seen, pending = [], set(), [folder]
    while pending:
        path = pending.pop()
        try:
            state = path.stat()
        except OSError as error:  # a folder of a network drive, perhaps
            found.unreadable[str(path)] = error.strerror
            continue
        if (state.st_dev, state.st_ino) in seen:
            continue
        seen.add((state.st_dev, state.st_ino))
        folders, inside = list_folder(path, found.ignored, found.unreadable)
        pending += reversed(folders)
        files += inside
    return sorted(files)


def _only_images(files: list[str]) -> list[str]:
    """Those with the suffix of an image: a LICENSE next to the classes is no example."""
    return [file for file in files if suffix_of(file) in IMAGE_SUFFIXES]


def _is_image(path: str, others: Counter[str]) -> bool:
    """Go by the suffix; count in ``others`` what is none."""
    suffix = suffix_of(path)
    if suffix and suffix not in IMAGE_SUFFIXES:
        others[suffix] += 1
        return False
    return True


def printable(name: str) -> str:
    """Return a file name with the bytes that are no text escaped, so that it can be printed.

    Args:
        name: as the operating system gives it.

    Returns:
        Text that can be encoded as UTF-8.

    Example:
        >>> printable(os.fsdecode(b"caf\\xe9.png"))
        'caf\\\\udce9.png'
    """
    return name.encode("utf-8", "backslashreplace").decode()
