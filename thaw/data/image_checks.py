"""Find damaged, contradictory and near-duplicate images."""

from __future__ import annotations

import hashlib
import itertools
import os
import stat
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

MAX_FILE_BYTES = 512 * 2**20
THUMBNAIL_SIDE = 16  # pixels
# An image in two splits stays in the first of these: leaving it out of the test would change what is measured.
_SPLIT_PRIORITY = ("test", "validation", "train")


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageChecks:
    """The result of checking ``n`` files, in the order given.

    Args:
        keys: SHA-256 of each file's bytes in hex, "" for a file that could not be read.
        read: first value that the function ``read`` returned for each file, None for a bad file.
        hashes: perceptual hashes, uint64 of shape ``(n,)``.
        thumbnails: uint8 of shape ``(n, 16, 16, 3)``.
        bad: dict from the index of a bad file to the reason.
        notes: sentences for the user.
    """

    keys: list[str]
    read: list
    hashes: np.ndarray
    thumbnails: np.ndarray
    bad: dict[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def check_images(
    files: Sequence[str],
    labels: Sequence[str],
    splits: Sequence[str | None] | None = None,
    *,
    read: Callable,
    progress: Callable[[int, int, str], None] | None = None,
) -> ImageChecks:
    """Find files that cannot be read, are no complete images, or contradict one another.

    An image (the same bytes, or the same pixels after decoding) in two classes is bad in all its copies, since either
    label may be wrong. Of an image in two splits given by the user, only the copies in test are used, else those in
    validation. Copies in the same class and split are counted in a note.

    Args:
        files: paths of ``n`` files.
        labels: class of each file, ``None`` for a file outside the class folders.
        splits: "train", "validation" or "test" for each file; ``None`` if the user gave no splits.
        read: function from (the file's bytes, their SHA-256 in hex) to (any value, uint8 pixels of shape
            ``(side, side, 3)``); raises ValueError with the reason for a bad image. Called in threads.
        progress: called with (files done, files in all, description).

    Returns:
        :class:`ImageChecks`.

    Raises:
        ValueError: the columns differ in length.
        OSError: from ``read``, when its cache cannot be written.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> def read(data, key):
        ...     if not data:
        ...         raise ValueError("is empty (0 bytes)")
        ...     return None, np.full((16, 16, 3), data[0], np.uint8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     files = [os.path.join(folder, name) for name in "ab"]
        ...     for path, data in zip(files, (b"", b"x")):
        ...         _ = Path(path).write_bytes(data)
        ...     check_images(files, ["cat", "dog"], read=read).bad
        {0: 'is empty (0 bytes)'}
    """
    n = len(files)
    for name, column in (("labels", labels), ("splits", splits)):
        if column is not None and len(column) != n:
            raise ValueError(f"There are {n} files and {len(column)} {name}; expected one for each.")
    keys, results = [""] * n, [None] * n
    hashes = np.zeros(n, np.uint64)
    thumbnails = np.zeros((n, THUMBNAIL_SIDE, THUMBNAIL_SIDE, 3), np.uint8)
    pixel_keys, bad = [""] * n, {}
    checks = _in_threads(lambda path: _check_file(path, read), files)
    for i, (key, reason, result) in enumerate(checks):
        keys[i] = key
        if reason:
            bad[i] = reason
        else:
            results[i], pixel_keys[i], hashes[i], thumbnails[i] = result
        if progress is not None:
            progress(i + 1, n, "checking images")
    notes = _find_contradictions(pixel_keys, labels, splits, bad)
    return ImageChecks(keys=keys, read=results, hashes=hashes, thumbnails=thumbnails, bad=bad, notes=notes)


def _in_threads(check: Callable, files: Sequence[str]):
    """Yield the results in order; in blocks, so that an interrupt waits for one block at most."""
    with warnings.catch_warnings(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        # Pillow warns of large images and odd metadata; what matters is among our own reasons.
        warnings.filterwarnings("ignore", module="PIL")
        for start in range(0, len(files), 256):
            yield from pool.map(check, files[start : start + 256])


def _check_file(path: str, read: Callable) -> tuple:
    """Return (content key, reason it is bad or "", (value from ``read``, key of the pixels, hash, thumbnail))."""
    try:
        state = os.stat(path)
        # Reading a pipe would never end.
        if not stat.S_ISREG(state.st_mode):
            return "", "is not a regular file", None
        if state.st_size > MAX_FILE_BYTES:
            return (
                "",
                f"is {state.st_size / 2**20:.0f} MB large, over the limit of {MAX_FILE_BYTES >> 20} MB",
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
        value, pixels = read(data, key)
    except ValueError as error:
        return key, str(error), None
    return key, "", (value, hashlib.sha256(pixels.tobytes()).hexdigest(), *_hash_and_thumbnail(pixels))


def _hash_and_thumbnail(pixels: np.ndarray) -> tuple[np.uint64, np.ndarray]:
    import imagehash
    from PIL import Image

    image = Image.fromarray(pixels)
    bits = imagehash.phash(image).hash.ravel()
    small = image.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX)
    return np.packbits(bits).view(np.uint64)[0], np.asarray(small)


def _find_contradictions(pixel_keys, labels, splits, bad) -> tuple[str, ...]:
    """Add copies in two classes or two splits to ``bad``; return a note on the copies that remain."""
    copies = defaultdict(list)
    for i, pixels in enumerate(pixel_keys):
        # The same bytes give the same pixels, so the pixels decide.
        if i not in bad and labels[i] is not None:  # a file outside the class folders is left out anyway
            copies[pixels].append(i)
    remaining = 0
    for members in copies.values():
        classes = sorted({labels[i] for i in members})
        if len(classes) > 1:
            named = " and ".join(repr(name) for name in classes[:3])
            bad.update(dict.fromkeys(members, f"is the same image in different classes: {named}"))
            continue
        if splits is not None:
            split = min((splits[i] for i in members), key=_SPLIT_PRIORITY.index)
            for i in [i for i in members if splits[i] != split]:
                bad[i] = f"is in {splits[i]} the same image as in {split}, which is used"
            members = [i for i in members if splits[i] == split]
        remaining += len(members) - 1
    if not remaining:
        return ()
    them = "1 image is a copy" if remaining == 1 else f"{remaining} images are copies"
    return (f"{them} of another in the same class; this is allowed, and copies always share a split.",)


MAX_NEIGHBOURS = 256  # images that each one is compared with, in each band
MIN_DEVIATION = 2.0  # standard deviation, in levels of 255, below which an image is one plain color and its hash noise


def near_duplicates(
    hashes: np.ndarray, thumbnails: np.ndarray, max_bits: int = 4, max_difference: float = 2.0
) -> np.ndarray:
    """Cluster images that look the same.

    Two images are joined when their perceptual hashes differ in few bits *and* their thumbnails differ little: the hash
    alone joins images that are merely similar, such as grey cells of one solar panel. Clusters are the connected
    components. Images of one plain color are joined only when their thumbnails are equal.

    Hashes that differ in at most ``max_bits`` bits agree in one of ``max_bits + 1`` bands of bits. Therefore only
    images that share a band and have about the same mean grey are compared, each with at most 256 neighbours in order
    of mean grey; in larger clusters two are joined through those between them. 100,000 images take a few seconds, half
    a minute if all are alike.

    Args:
        hashes: 64-bit perceptual hashes, uint64 of shape ``(n,)``.
        thumbnails: uint8 of shape ``(n, side, side)`` or ``(n, side, side, 3)``.
        max_bits: largest number of differing bits of the hash, 0 to 15; default 4.
        max_difference: largest mean absolute difference of the thumbnails, in levels of 255; default 2.

    Returns:
        Cluster numbers, int64 of shape ``(n,)``: the index of the first image of the cluster.

    Raises:
        ValueError: the arrays differ in length, or ``max_bits`` is out of range.

    Sources: bands after Broder (2000), "Identifying and filtering near-duplicate documents"; pHash after Zauner (2010),
    "Implementation and benchmarking of perceptual image hash functions".

    Example:
        >>> hashes = np.array([0b1111, 0b1110, 0b1111 << 20], np.uint64)
        >>> near_duplicates(hashes, np.full((3, 4, 4), 100, np.uint8))
        array([0, 0, 2])
    """
    hashes = np.asarray(hashes, np.uint64)
    n = len(hashes)
    flat = np.asarray(thumbnails, np.uint8).reshape(n, -1) if n else np.zeros((0, 1), np.uint8)
    if len(thumbnails) != n:
        raise ValueError(f"There are {n} hashes and {len(thumbnails)} thumbnails; expected one for each.")
    if not 0 <= max_bits <= 15:
        raise ValueError(f"max_bits={max_bits}; expected a whole number from 0 to 15.")
    if not n:
        return np.zeros(0, np.int64)
    mean = flat.mean(axis=1)
    limit = np.where(flat.std(axis=1) < MIN_DEVIATION, 0.0, max_difference)
    edges = np.linspace(0, 64, max_bits + 2).astype(int)
    pairs = [np.zeros((0, 2), np.int64)]
    for low, high in itertools.pairwise(edges):
        width = np.uint64((1 << int(high - low)) - 1) if high - low < 64 else np.uint64(2**64 - 1)
        band = (hashes >> np.uint64(low)) & width
        pairs += _matches(band, mean, hashes, flat, max_bits, limit)
    return _connected_components(n, np.concatenate(pairs))


def _matches(band, mean, hashes, flat, max_bits, limit) -> list[np.ndarray]:
    """Return the pairs of matching images in the same band, walking along the order of mean grey."""
    order = np.lexsort((mean, band))
    band, mean = band[order], mean[order]
    pairs = []
    here = np.arange(len(order))
    for step in range(1, MAX_NEIGHBOURS + 1):
        here = here[here + step < len(order)]
        there = here + step
        # The mean of the thumbnails cannot differ by more than the mean of the differences.
        close = (band[here] == band[there]) & (mean[there] - mean[here] <= limit.max())
        here = here[close]
        if not here.size:
            break
        a, b = order[here], order[here + step]
        alike = np.bitwise_count(hashes[a] ^ hashes[b]) <= max_bits
        a, b = a[alike], b[alike]
        for start in range(0, len(a), 4096):
            i, j = a[start : start + 4096], b[start : start + 4096]
            difference = np.abs(flat[i].astype(np.int16) - flat[j]).mean(axis=1)
            same = difference <= np.minimum(limit[i], limit[j])
            pairs.append(np.stack([i[same], j[same]], axis=1))
    return pairs


def _connected_components(n: int, pairs: np.ndarray) -> np.ndarray:
    """Number the connected components, each by its smallest member."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    _, number = connected_components(graph, directed=False)
    _, first = np.unique(number, return_index=True)
    return first[number].astype(np.int64)
