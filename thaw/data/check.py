"""Every picture file is looked at before training: a bad one is named, not met in the middle of an epoch."""

from __future__ import annotations

import hashlib
import os
import stat
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

MAX_BYTES = 512 * 2**20
THUMBNAIL = 16
# A picture found in two splits stays where it does most good, or least harm: in the test.
_KEPT_FIRST = {"test": 0, "validation": 1, "train": 2}


@dataclass(frozen=True, eq=False, kw_only=True)
class Checked:
    """What was found, each per file in the order given.

    Args:
        keys: SHA-256 of the file's bytes in hex, "" where it could not be read.
        read: What `read` gave for the file beside its pixels, None for a bad file.
        hashes: Perceptual hashes, shape (n,), uint64.
        thumbnails: Shape (n, 16, 16, 3), uint8.
        bad: Index of a bad file to the reason.
        notes: Sentences to show.
    """

    keys: list[str]
    read: list
    hashes: np.ndarray
    thumbnails: np.ndarray
    bad: dict[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def check_pictures(
    files: Sequence[str],
    labels: Sequence[str],
    splits: Sequence[str | None] | None = None,
    *,
    read: Callable,
    progress: Callable[[int, int, str], None] | None = None,
) -> Checked:
    """Look at every file: can it be read, is it a whole picture, and does it contradict another?

    The same picture (the same bytes, or the same pixels after decoding) in two classes is bad in all its
    copies, since nobody can tell which label is right. In two splits that the user gave, the copy in test is
    kept before the one in validation, and that before the one in train. Copies in one class and split are
    counted in a note.

    Args:
        files: Paths, n of them.
        labels: Class of each file.
        splits: "train", "validation" or "test" for each file, where the user gave a split.
        read: Function from (the file's bytes, their SHA-256 in hex) to (anything, uint8 pixels of shape
            (side, side, 3)); raises ValueError with the reason when the picture is bad. Called in threads.
        progress: Called with (files done, files in all, what is done).

    Returns:
        What was found.

    Raises:
        ValueError: The columns differ in length.
        OSError: From `read`, when its cache cannot be written.

    Example:
        >>> import tempfile
        >>> def read(data, key):
        ...     if not data:
        ...         raise ValueError("is empty (0 bytes)")
        ...     return None, np.full((16, 16, 3), data[0], np.uint8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     files = [os.path.join(folder, name) for name in "ab"]
        ...     for path, data in zip(files, (b"", b"x")):
        ...         _ = open(path, "wb").write(data)
        ...     check_pictures(files, ["cat", "dog"], read=read).bad
        {0: 'is empty (0 bytes)'}
    """
    n = len(files)
    for name, column in (("labels", labels), ("splits", splits)):
        if column is not None and len(column) != n:
            raise ValueError(f"there are {n} files and {len(column)} {name}, expected one for each")
    keys, results = [""] * n, [None] * n
    hashes = np.zeros(n, np.uint64)
    thumbnails = np.zeros((n, THUMBNAIL, THUMBNAIL, 3), np.uint8)
    same, bad = [""] * n, {}
    looks = _in_threads(lambda path: _look(path, read), files)
    for i, (key, reason, found) in enumerate(looks):
        keys[i] = key
        if reason:
            bad[i] = reason
        else:
            results[i], same[i], hashes[i], thumbnails[i] = found
        if progress is not None:
            progress(i + 1, n, "looking at pictures")
    notes = _contradictions(keys, same, labels, splits, bad)
    return Checked(keys=keys, read=results, hashes=hashes, thumbnails=thumbnails, bad=bad, notes=notes)


def _in_threads(look: Callable, files: Sequence[str]):
    """Results in order; in blocks, so that an interrupt waits for no more than one of them."""
    with warnings.catch_warnings(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        # Pillow warns of large pictures and odd metadata; what matters of it is a reason of ours.
        warnings.filterwarnings("ignore", module="PIL")
        for start in range(0, len(files), 256):
            yield from pool.map(look, files[start : start + 256])


def _look(path: str, read: Callable) -> tuple:
    """(content key, reason it is bad or "", (what read gave, key of the pixels, hash, thumbnail))."""
    try:
        state = os.stat(path)
        # Opening a pipe would wait for ever.
        if not stat.S_ISREG(state.st_mode):
            return "", "is not a regular file", None
        if state.st_size > MAX_BYTES:
            return (
                "",
                f"is {state.st_size / 2**20:.0f} MB large, over the limit of {MAX_BYTES >> 20} MB",
                None,
            )
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        return "", "does not exist", None
    except PermissionError:
        return "", "cannot be read: permission denied", None
    except (OSError, ValueError) as error:
        return "", f"cannot be read: {getattr(error, 'strerror', None) or error}", None
    key = hashlib.sha256(data).hexdigest()
    try:
        given, pixels = read(data, key)
    except ValueError as error:
        return key, str(error), None
    return key, "", (given, hashlib.sha256(pixels.tobytes()).hexdigest(), *_eye(pixels))


def _eye(pixels: np.ndarray) -> tuple[np.uint64, np.ndarray]:
    """Perceptual hash and thumbnail."""
    import imagehash
    from PIL import Image

    image = Image.fromarray(pixels)
    bits = imagehash.phash(image).hash.ravel()
    small = image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return np.packbits(bits).view(np.uint64)[0], np.asarray(small)


def _contradictions(keys, same, labels, splits, bad) -> tuple[str, ...]:
    """Add copies in two classes or two splits to `bad`; say how many copies are left."""
    copies = defaultdict(list)
    for i, pixels in enumerate(same):
        # The same bytes give the same pixels, so the pixels decide.
        if i not in bad and labels[i] is not None:  # one outside the class folders is left out by itself
            copies[pixels].append(i)
    left = 0
    for members in copies.values():
        classes = sorted({labels[i] for i in members})
        if len(classes) > 1:
            named = " and ".join(repr(name) for name in classes[:3])
            bad.update(dict.fromkeys(members, f"is the same picture in different classes: {named}"))
            continue
        if splits is not None:
            keep = min((splits[i] for i in members), key=_KEPT_FIRST.__getitem__)
            for i in [i for i in members if splits[i] != keep]:
                bad[i] = f"is in {splits[i]} the same picture as in {keep}, which is kept"
            members = [i for i in members if splits[i] == keep]
        left += len(members) - 1
    if not left:
        return ()
    them = "1 picture is a copy" if left == 1 else f"{left} pictures are copies"
    return (f"{them} of another in the same class and split; this is allowed, and they are kept on one side.",)
