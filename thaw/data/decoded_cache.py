"""Decoding is paid once: each picture's pixels are kept on disk under the name of its content."""

from __future__ import annotations

import errno
import os
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

# Raised when `decode` gives other pixels for the same file, so that old entries are not taken for new ones.
FORMAT_VERSION = 2


def decoded(
    data: bytes,
    key: str,
    image_size: int,
    *,
    decode: Callable[[bytes, int], np.ndarray],
    folder: str | os.PathLike | None = None,
) -> tuple[str, np.ndarray]:
    """Give a picture's pixels from the cache, decoding it only where they are not there yet.

    One picture is one file of raw bytes and their CRC-32, `folder/ab/<key>-<image_size>-<version>.u8`, so
    TensorFlow reads it with `tf.io.read_file` and `tf.io.decode_raw`. A file is written beside its place and
    moved there, so two processes may share a cache; a damaged entry is made again.

    Args:
        data: The picture file's bytes.
        key: SHA-256 of `data`, in hex.
        image_size: Side of the square, in pixels.
        decode: Function from (bytes, image_size) to uint8 pixels of shape (image_size, image_size, 3).
        folder: Where the cache lies. Default: `decoded` in `$THAW_CACHE`, else in `$XDG_CACHE_HOME/thaw`,
            else in `~/.cache/thaw`.

    Returns:
        Path of the entry, and its pixels.

    Raises:
        ValueError: From `decode`: the picture is bad.
        OSError: The cache cannot be written: no permission, or the disk is full.

    Example:
        >>> import hashlib, tempfile
        >>> grey = lambda data, size: np.full((size, size, 3), len(data), np.uint8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     key = hashlib.sha256(b"abc").hexdigest()
        ...     path, pixels = decoded(b"abc", key, 2, decode=grey, folder=folder)
        ...     path[len(folder):].startswith("/ba/ba7816bf"), os.path.getsize(path), int(pixels[0, 0, 0])
        (True, 16, 3)
    """
    # Absolute, so that the entry is found after a change of directory.
    root = Path(folder if folder is not None else _default_folder()).absolute()
    place = root / key[:2] / f"{key}-{image_size}-{FORMAT_VERSION}.u8"
    shape = (image_size, image_size, 3)
    try:
        kept = np.fromfile(place, np.uint8)
        if kept.size == image_size * image_size * 3 + 4 and _sum(kept[:-4]) == kept[-4:].tobytes():
            return str(place), kept[:-4].reshape(shape)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _sentence(error, root) from error
    pixels = np.ascontiguousarray(decode(data, image_size), np.uint8)
    if pixels.shape != shape:
        raise ValueError(f"decode gave pixels of shape {pixels.shape}, expected {shape}")
    try:
        _write(place, pixels)
    except OSError as error:
        raise _sentence(error, root) from error
    return str(place), pixels


def load_decoded(image_size: int):
    """The TensorFlow function from a path in the cache to float32 pixels, 0 to 255.

    Args:
        image_size: Side in pixels, as it was decoded.

    Returns:
        A function from a scalar string tensor to a tensor of shape `(image_size, image_size, 3)`.
    """

    def load(path):
        import tensorflow as tf

        pixels = tf.io.decode_raw(tf.io.read_file(path), tf.uint8)
        return tf.cast(tf.reshape(pixels[:-4], (image_size, image_size, 3)), tf.float32)

    load.identity = f"decoded to {image_size}, version {FORMAT_VERSION}"
    return load


def _default_folder() -> Path:
    if given := os.environ.get("THAW_CACHE"):
        return Path(given) / "decoded"
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given) / "thaw" / "decoded"
    return Path.home() / ".cache" / "thaw" / "decoded"


def _write(place: Path, pixels: np.ndarray) -> None:
    """All of the file or nothing of it, also with another process at the same entry."""
    place.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=place.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(pixels.tobytes() + _sum(pixels))
        os.replace(beside, place)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


def _sum(pixels: np.ndarray) -> bytes:
    return zlib.crc32(np.ascontiguousarray(pixels)).to_bytes(4, "little")


def _sentence(error: OSError, root: Path) -> OSError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        said = f"the disk is full at {root}: free some space, or set THAW_CACHE to a folder on another disk"
    else:
        said = (
            f"the cache of decoded pictures cannot be written at {root} ({error.strerror}): set THAW_CACHE to another "
            "folder"
        )
    return type(error)(error.errno, said)
