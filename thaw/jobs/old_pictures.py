"""Pictures of what a model knew before: read, drawn, and matched to the classes of its old head."""

import hashlib
import os
from pathlib import Path

import numpy as np

MOST = 1000  # pictures: the score is then known within three points, and it is measured again and again


def old_pictures(source, image_size, *, classes=None, outputs=None, progress=None):
    """Read pictures of the old task.

    At most 1000 are taken, drawn by their content: the same pictures whatever the files are called, and others that
    come along move few of them. Where the source has splits of its own, those that the old model was trained on
    are left out.

    Args:
        source: a folder ``class/picture``, a folder of pictures without classes, or a CSV file ``image,label``.
        image_size: side in pixels, as the model takes them.
        classes: name of a class to its number in the old head; ``None`` where no names are known.
        outputs: how many classes the old head has, for when no names are known: with as many class folders, their
            sorted order is taken for the head's.
        progress: called with (done, total, what).

    Returns:
        ``(examples, labelled, notes)``: :class:`thaw.Examples` in the order of the draw; whether their ``y`` are
        classes of the old head; and sentences to show.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError: no picture in it can be used.

    Example:
        >>> from thaw.jobs.old_pictures import old_pictures
        >>> old_pictures("nowhere", 224)
        Traceback (most recent call last):
        FileNotFoundError: nowhere does not exist; expected a folder or a CSV file of old pictures.
    """
    from thaw.data.check import check_pictures
    from thaw.data.decode import decode
    from thaw.data.decoded_cache import decoded, load_decoded
    from thaw.examples import Examples

    files, names = _columns(Path(source))
    number, notes = _matched({name for name in names if name is not None}, classes, outputs)
    if number:
        known = [i for i, name in enumerate(names) if name in number]
        files, names = [files[i] for i in known], [names[i] for i in known]
    drawn = sorted(range(len(files)), key=lambda i: _content(files[i]))[:MOST]
    files, names = [files[i] for i in drawn], [names[i] for i in drawn]
    checked = check_pictures(
        files,
        names if number else [""] * len(files),  # one picture under two names contradicts only where names are used
        read=lambda data, key: decoded(data, key, image_size, decode=decode),
        progress=progress,
    )
    good = [i for i in range(len(files)) if i not in checked.bad]
    if not good:
        first = f": {files[0]} {checked.bad[0]}" if files else ""
        raise ValueError(f"{source} has no picture of the old task that can be used{first}.")
    if checked.bad:
        notes.append(f"{len(checked.bad)} of {len(files)} old pictures could not be used.")
    keys = [int.from_bytes(bytes.fromhex(checked.keys[i][:16]), "little", signed=True) for i in good]
    examples = Examples(
        x=np.array([checked.read[i] for i in good]),
        y=np.array([number[names[i]] if number else -1 for i in good], np.int64),
        load=load_decoded(image_size),
        keys=np.array(keys, np.int64),
    )
    return examples, bool(number), notes


def _columns(source):
    """Paths and names of classes, ``None`` where there is none."""
    from thaw.data.csv_columns import csv_columns
    from thaw.data.folder_columns import PICTURE_ENDINGS, folder_columns

    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist; expected a folder or a CSV file of old pictures.")
    if source.is_dir() and not any(path.is_dir() for path in source.iterdir() if not path.name.startswith(".")):
        files = sorted(str(path) for path in source.iterdir() if path.suffix.lower() in PICTURE_ENDINGS)
        if not files:
            raise ValueError(f"{source} holds no pictures; expected some of the old task.")
        return files, [None] * len(files)
    columns, _ = folder_columns(source) if source.is_dir() else csv_columns(source)
    unseen = [i for i, split in enumerate(columns.get("split", ())) if split != "train"]
    unseen = unseen or range(len(columns["image"]))
    return [columns["image"][i] for i in unseen], [columns["label"][i] for i in unseen]


def _matched(names, classes, outputs):
    """Name to class number of the old head, empty where there is no telling; and what is to be said about it."""
    agreement = "; what counts is whether the old head says the same as before."
    if not names:
        return {}, ["The old pictures have no labels" + agreement]
    if classes is None:
        if len(names) == outputs:
            said = "The old classes are taken in sorted order for those of the old head, which does not name them."
            return {name: i for i, name in enumerate(sorted(names))}, [said]
        return {}, [
            f"The old head has {outputs} classes without names, and there are {len(names)} folders of old pictures"
            + agreement
        ]
    number = {name: classes[key] for name in names for key in [_plain(name)] if key in classes}
    unknown = sorted(names - set(number))
    if not number:
        return {}, [f"The old head knows no class by names such as {unknown[0]!r}" + agreement]
    if unknown:
        return number, [f"Old pictures of {', '.join(unknown[:5])} are left out: the old head has no such class."]
    return number, []


def _plain(name):
    return name.strip().lower().replace(" ", "_")


def _content(path):
    """A digest by which pictures are drawn, from both ends of the file: a large collection is not read whole."""
    try:
        if not os.path.isfile(path):  # opening a pipe would wait for ever
            raise OSError
        with open(path, "rb") as file:
            begin = file.read(4096)
            length = os.fstat(file.fileno()).st_size
            file.seek(max(0, length - 4096))
            return hashlib.sha256(begin + file.read(4096) + str(length).encode()).digest()
    except OSError:
        return hashlib.sha256(str(path).encode()).digest()  # it will be found to be bad
