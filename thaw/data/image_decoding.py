"""Decode images, and cache the decoded pixels on disk. Needs neither Keras nor TensorFlow."""

from __future__ import annotations

import contextlib
import io
import math
import os
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from thaw._files import cache_root, explain_disk_error, write_atomically
from thaw.data.file_types import is_heif, raw_photograph, unreadable_reason
from thaw.data.image_metadata import BITS_PER_SAMPLE, ORIENTATION, PHOTOMETRIC, without_metadata

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
MAX_DECODED_BYTES = 512 * 2**20
# While a progressive JPEG is decoded, all its coefficients are in memory, at whatever scale: two bytes for each value.
# So much more is allowed for them: 256 million pixels of three colors.
COEFFICIENT_FACTOR = 3
LARGE_BYTES = 64 * 2**20  # images that need more are decoded one at a time, whatever the number of threads
_one_large_image = threading.Lock()
_BAND_ROWS = 256


def decode(file: str | os.PathLike | bytes, image_size: int, max_bytes: int = MAX_DECODED_BYTES) -> np.ndarray:
    """Decode an image to ``image_size`` x ``image_size`` RGB pixels, upright.

    The image is stretched to the square, not cropped: a crop would silently lose what lies at the border. Resizing uses
    an anti-aliasing bicubic filter. A large JPEG is decoded at a half, a quarter or an eighth of its size when that is
    still at least twice ``image_size``, so that photographs of 200 million pixels are ordinary.

    The orientation that EXIF (or XMP) asks for is applied. Other metadata are not read: a broken or huge profile, text
    or thumbnail harms nothing, and neither a profile nor a gamma value changes a color. Of several pages, frames or
    pictures (TIFF, GIF, APNG, WebP, MPO) the first is decoded; of a TIFF the first that is no preview. Transparent
    parts become white. Grey, one bit and palettes become three channels. CMYK and YCCK are converted without a profile,
    Lab as sRGB. Of extra channels beside red, green and blue only opacity counts.

    Sixteen bits of grey are scaled (65535 becomes 255), as are twelve (4095 becomes 255); of sixteen bits of color the
    upper eight are taken. Integers above 65535, and floats outside 0 to 255, are stretched from their smallest to their
    largest value; floats between 0 and 1 are multiplied by 255.

    HEIC photographs are read where pillow-heif is installed.

    Args:
        file: path of the image, or its bytes.
        image_size: side of the square, in pixels.
        max_bytes: an image that takes more bytes of memory when it is decoded (a JPEG: at its reduced scale) is
            refused before, because a small file can unpack to more than the memory holds. Default 512 MB: 134 million
            pixels of three colors, 512 million of grey.

    Returns:
        uint8 array of shape ``(image_size, image_size, 3)``, 0 to 255.

    Raises:
        ValueError: the file is no complete image of a supported format; the message is the reason, without the path.
        OSError: ``file`` is a path that cannot be read.
        MemoryError: there is less memory than an image within ``max_bytes`` needs.

    Example:
        >>> import io
        >>> from PIL import Image
        >>> file = io.BytesIO()
        >>> Image.new("L", (40, 30), 200).save(file, "PNG")
        >>> pixels = decode(file.getvalue(), 8)
        >>> pixels.shape, pixels.dtype.name, int(pixels.min()), int(pixels.max())
        ((8, 8, 3), 'uint8', 200, 200)
    """
    from PIL import Image

    if not isinstance(file, bytes) and Path(file).exists() and not Path(file).is_file():
        raise ValueError("is not a regular file")  # reading a pipe would never end
    data = file if isinstance(file, bytes) else Path(file).read_bytes()
    if not data:
        raise ValueError("is empty (0 bytes)")
    if reason := raw_photograph(data):
        raise ValueError(reason)
    data, orientation = without_metadata(data)
    try:
        with _open(data) as image:
            needed = _reduce_scale(image, 2 * image_size, max_bytes)
            with _one_large_image if needed > LARGE_BYTES else contextlib.nullcontext():
                image.load()
                if image.format == "AVIF":  # its orientation is no metadata, and Pillow says it as if it were EXIF
                    orientation = image.getexif().get(ORIENTATION, 1)
                black_and_white = _black_and_white(image)
                return _square(_upright(image, orientation), image_size, black_and_white)
    except _Reason as reason:
        raise ValueError(str(reason)) from None
    except MemoryError:
        raise
    except Image.DecompressionBombError:
        # Pillow looks at the size of WebP and GIF by itself.
        raise ValueError(
            f"has so many pixels that they need more memory to decode than the limit of {max_bytes >> 20} MB"
        ) from None
    # Pillow's readers raise nearly everything on damaged files: OSError, SyntaxError, struct.error ...
    except Exception as error:
        if "out of memory" in str(error):
            raise MemoryError(str(error)) from None
        raise ValueError(_why_damaged(error)) from None


def _open(data: bytes):
    """Open an image with the reader that recognizes it.

    Pillow's own ``Image.open`` also refuses more pixels than a number that is one for the whole process, whatever the
    scale.
    """
    from PIL import Image

    Image.init()  # Pillow registers its readers late
    for name in FORMATS:
        reader, accepts = Image.OPEN.get(name, (None, None))
        if reader is not None and accepts(data[:16]) is True:
            try:
                return reader(io.BytesIO(data), "")
            # Those of Image.open, after which another reader is tried; KeyError is a compression of TIFF.
            except (SyntaxError, IndexError, TypeError, KeyError, struct.error):
                pass
    if is_heif(data):
        try:
            from pillow_heif import HeifImageFile
        except ImportError:
            pass
        else:
            return HeifImageFile(io.BytesIO(data))
    raise _Reason(unreadable_reason(data))


def _reduce_scale(image, side: int, max_bytes: int) -> int:
    """Choose the scale of a JPEG, at least ``side`` pixels; return the bytes that an image takes, or refuse it."""
    width, height = image.size
    if image.format == "JPEG":
        coefficients = 2 * width * height * len(image.getbands())
        _refuse_too_large(image, coefficients, COEFFICIENT_FACTOR * max_bytes)
        image.draft(None, (side, side))
    stored = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2}.get(image.mode, 4)
    # All but grey and RGB are converted, to pixels of four bytes.
    needed = image.width * image.height * (stored if image.mode in ("L", "RGB") else stored + 4)
    _refuse_too_large(image, needed, max_bytes)
    return max(needed, coefficients) if image.info.get("progressive") else needed


def _refuse_too_large(image, needed: int, limit: int) -> None:
    if needed > limit:
        raise _Reason(
            f"has {image.width} x {image.height} pixels, which need {needed / 2**20:,.0f} MB of memory to decode, over "
            f"the limit of {limit / 2**20:,.0f} MB"
        )


def _upright(image, orientation: int):
    """Apply an EXIF orientation, 1 to 8."""
    from PIL.Image import Transpose as T

    methods = (T.FLIP_LEFT_RIGHT, T.ROTATE_180, T.FLIP_TOP_BOTTOM, T.TRANSPOSE, T.ROTATE_270, T.TRANSVERSE, T.ROTATE_90)
    return image if orientation == 1 else image.transpose(methods[orientation - 2])


class _Reason(Exception):
    """A message for the user that passes the handlers of Pillow's own errors."""


def _square(image, size: int, black_and_white: tuple[float, float] | None) -> np.ndarray:
    """Return a loaded image as (size, size, 3) uint8."""
    from PIL import Image

    if black_and_white is not None:
        black, white = black_and_white
        # Resized as floats: Pillow's convert clips sixteen bits to eight and does not scale them.
        floats = _by_bands(image, "F", lambda band: Image.fromarray(np.asarray(band).astype(np.float32)))
        grey = np.asarray(_resize(floats, size))
        levels = np.clip(np.rint((grey - black) * (255.0 / (white - black))), 0, 255).astype(np.uint8)
        return np.repeat(levels[:, :, None], 3, axis=2)
    if image.has_transparency_data or image.mode in ("LA", "La", "PA", "RGBa"):
        image = _by_bands(image, "RGB", _on_white)
    elif image.mode not in ("L", "RGB"):
        image = _by_bands(image, "RGB", lambda band: band.convert("RGB"))
    return np.array(_resize(image, size).convert("RGB"))


def _by_bands(image, mode: str, convert: Callable):
    """Convert an image some rows at a time, so that no copy of all of it is needed between the two."""
    from PIL import Image

    converted = Image.new(mode, image.size)
    for top in range(0, image.height, _BAND_ROWS):
        bottom = min(top + _BAND_ROWS, image.height)
        converted.paste(convert(image.crop((0, top, image.width, bottom))), (0, top))
    return converted


def _on_white(band):
    from PIL import Image

    band = band.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", band.size, "white"), band).convert("RGB")


def _resize(image, size: int):
    from PIL import Image

    return image.resize((size, size), Image.Resampling.BICUBIC, reducing_gap=3.0)


def _black_and_white(image) -> tuple[float, float] | None:
    """Return which values of deep grey become 0 and 255; ``None`` for an image of eight bits."""
    if image.mode.startswith("I;16"):
        tags = getattr(image, "tag_v2", {})  # of a TIFF
        white = 4095.0 if tags.get(BITS_PER_SAMPLE) == (12,) else 65535.0
        # Pillow turns grey whose 0 is white around where it has eight bits, and forgets it where it has sixteen.
        return (white, 0.0) if tags.get(PHOTOMETRIC, 1) == 0 else (0.0, white)
    if image.mode not in ("I", "F"):
        return None
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise _Reason("holds values that are not finite numbers (NaN or infinity)")
    if image.mode == "I" and low >= 0 and high <= 65535:
        return 0.0, 65535.0
    if image.mode == "F" and low >= 0 and high <= 1:
        return 0.0, 1.0
    if image.mode == "F" and low >= 0 and high <= 255:
        return 0.0, 255.0
    return low, high if high > low else math.inf


def _why_damaged(error: Exception) -> str:
    message = str(error).strip() or type(error).__name__
    if any(word in message.lower() for word in ("truncated", "end of file", "eof", "not enough", "incomplete")):
        return "is cut short: the file ends before the image does"
    return f"is damaged: {message}"


# Increased when ``decode`` gives other pixels for the same file, so that cached pixels of an older version are not
# used.
FORMAT_VERSION = 3
CHECKSUM_BYTES = 4
CANNOT_WRITE = "the cache of decoded images cannot be written"


def cache_decoded(
    data: bytes,
    key: str,
    image_size: int,
    *,
    decode: Callable[[bytes, int], np.ndarray] = decode,
    cache_dir: str | os.PathLike | None = None,
) -> tuple[str, np.ndarray]:
    """Return the pixels of an image from the cache, and decode it only if they are not there.

    Each image is one file of raw bytes and their CRC-32, ``decoded/ab/<key>-<image_size>-<version>.u8``, which
    TensorFlow reads with ``tf.io.read_file`` and ``tf.io.decode_raw``. Files are written atomically, so that processes
    may share a cache; a damaged one is written again.

    Args:
        data: content of the image file.
        key: SHA-256 of ``data``, in hex.
        image_size: side of the square, in pixels.
        decode: function from (bytes, image_size) to uint8 pixels of shape ``(image_size, image_size, 3)``.
        cache_dir: folder of all caches; this one is ``decoded`` in it. Defaults to ``$THAW_CACHE``, else
            ``$XDG_CACHE_HOME/thaw``, else ``~/.cache/thaw``.

    Returns:
        Absolute path of the cached file, and the pixels.

    Raises:
        ValueError: from ``decode``: the image is bad.
        OSError: the cache cannot be written: no permission, or the disk is full.

    Example:
        >>> import hashlib, tempfile
        >>> grey = lambda data, size: np.full((size, size, 3), len(data), np.uint8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     key = hashlib.sha256(b"abc").hexdigest()
        ...     path, pixels = cache_decoded(b"abc", key, 2, decode=grey, cache_dir=folder)
        ...     path[len(folder):].startswith("/decoded/ba/ba7816bf"), os.path.getsize(path), int(pixels[0, 0, 0])
        (True, 16, 3)
    """
    folder = cache_root(cache_dir) / "decoded"
    path = folder / key[:2] / f"{key}-{image_size}-{FORMAT_VERSION}.u8"
    shape = (image_size, image_size, 3)
    try:
        content = np.fromfile(path, np.uint8)
        pixels, checksum = content[:-CHECKSUM_BYTES], content[-CHECKSUM_BYTES:]
        if pixels.size == image_size * image_size * 3 and _checksum(pixels) == checksum.tobytes():
            return str(path), pixels.reshape(shape)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise explain_disk_error(error, folder, CANNOT_WRITE) from error
    pixels = np.ascontiguousarray(decode(data, image_size), np.uint8)
    if pixels.shape != shape:
        raise ValueError(f"decode returned pixels of shape {pixels.shape}, expected {shape}")
    try:
        # Not flushed: thousands of small files, and a lost one is decoded again.
        write_atomically(path, lambda file: file.write_bytes(pixels.tobytes() + _checksum(pixels)), flush=False)
    except OSError as error:
        raise explain_disk_error(error, folder, CANNOT_WRITE) from error
    return str(path), pixels


def load_decoded(image_size: int) -> Callable:
    """Return the TensorFlow function that reads a file of :func:`cache_decoded` as float32 pixels, 0 to 255.

    Args:
        image_size: side in pixels, the one the image was decoded to.

    Returns:
        Function from a scalar string tensor, the path, to a tensor of shape ``(image_size, image_size, 3)``.
    """

    def load(path):
        import tensorflow as tf

        pixels = tf.io.decode_raw(tf.io.read_file(path), tf.uint8)
        return tf.cast(tf.reshape(pixels[:-CHECKSUM_BYTES], (image_size, image_size, 3)), tf.float32)

    load.identity = f"decoded to {image_size}, version {FORMAT_VERSION}"
    return load


def _checksum(pixels: np.ndarray) -> bytes:
    return zlib.crc32(np.ascontiguousarray(pixels)).to_bytes(CHECKSUM_BYTES, "little")
