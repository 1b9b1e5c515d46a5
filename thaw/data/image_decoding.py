"""Decode images, and cache the decoded pixels on disk. Needs neither Keras nor TensorFlow."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from thaw._files import FULL_DISK_ERRORS, cache_root, write_atomically

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
MAX_PIXELS = 50_000_000

# Other files that are often found among photographs, by their first bytes: a name helps more than "not an image".
_OTHER_FORMATS = (
    (b"%PDF", "is a PDF document"),
    (b"8BPS", "is a Photoshop file, which is not supported: save it as PNG or JPEG"),
    (b"<svg", "is an SVG drawing, which is not supported: save it as PNG"),
    (b"PK\x03\x04", "is a zip archive"),
)
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"mif1", b"msf1")


def decode(file: str | os.PathLike | bytes, image_size: int, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode an image to ``image_size`` x ``image_size`` RGB pixels, upright.

    The image is stretched to the square, not cropped: a crop would silently lose what lies at the border. Resizing uses
    an anti-aliasing bicubic filter. A large JPEG is decoded at a half, a quarter or an eighth of its size when that is
    still at least twice ``image_size``.

    EXIF orientation is applied. Transparent parts become white. Of an animation the first frame is decoded. Grey
    becomes three equal channels. Sixteen bits are scaled (65535 becomes 255). Integers above 65535, and floats outside
    0 to 255, are stretched from their smallest to their largest value; floats between 0 and 1 are multiplied by 255.

    Args:
        file: path of the image, or its bytes.
        image_size: side of the square, in pixels.
        max_pixels: an image with more pixels (width times height) is refused before it is decoded, because a small file
            can unpack to more than the memory holds; default 50 million.

    Returns:
        uint8 array of shape ``(image_size, image_size, 3)``, 0 to 255.

    Raises:
        ValueError: the file is no complete image of a supported format; the message is the reason, without the path.
        OSError: ``file`` is a path that cannot be read.

    Example:
        >>> import io
        >>> from PIL import Image
        >>> file = io.BytesIO()
        >>> Image.new("L", (40, 30), 200).save(file, "PNG")
        >>> pixels = decode(file.getvalue(), 8)
        >>> pixels.shape, pixels.dtype.name, int(pixels.min()), int(pixels.max())
        ((8, 8, 3), 'uint8', 200, 200)
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    # Pillow registers its readers late, and refuses names in ``formats`` that are not registered.
    Image.init()
    if not isinstance(file, bytes) and Path(file).exists() and not Path(file).is_file():
        raise ValueError("is not a regular file")  # reading a pipe would never end
    data = file if isinstance(file, bytes) else Path(file).read_bytes()
    if not data:
        raise ValueError("is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(data), formats=[name for name in FORMATS if name in Image.OPEN]) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise _Reason(_too_many_pixels(width * height, max_pixels))
            image.draft(None, (2 * image_size, 2 * image_size))
            image.load()
            return _square(ImageOps.exif_transpose(image), image_size)
    except _Reason as reason:
        raise ValueError(str(reason)) from None
    except Image.DecompressionBombError:
        # From twice its own limit on Pillow refuses by itself, without the size.
        reason = _too_many_pixels(2 * Image.MAX_IMAGE_PIXELS, max_pixels)
        raise ValueError(reason.replace("has", "has more than", 1)) from None
    except UnidentifiedImageError:
        raise ValueError(_why_unidentified(data)) from None
    # Pillow's readers raise nearly everything on damaged files: OSError, SyntaxError, struct.error ...
    except Exception as error:
        raise ValueError(_why_damaged(error)) from None


class _Reason(Exception):
    """A message for the user that passes the handlers of Pillow's own errors."""


def _square(image, size: int) -> np.ndarray:
    """Return a loaded image as (size, size, 3) uint8."""
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        # Resized as floats: Pillow's convert clips sixteen bits to eight and does not scale them.
        deep = Image.fromarray(np.asarray(image).astype(np.float32))
        grey = _resize(deep, size)
        low, scale = _offset_and_scale(image)
        levels = np.clip(np.rint((np.asarray(grey) - low) * scale), 0, 255).astype(np.uint8)
        return np.repeat(levels[:, :, None], 3, axis=2)
    if image.has_transparency_data or image.mode in ("LA", "La", "PA", "RGBa"):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("RGB")
    elif image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    return np.array(_resize(image, size).convert("RGB"))


def _resize(image, size: int):
    from PIL import Image

    return image.resize((size, size), Image.Resampling.BICUBIC, reducing_gap=3.0)


def _offset_and_scale(image) -> tuple[float, float]:
    """Return the number to subtract and the factor that bring deep grey values to 0 to 255."""
    if image.mode.startswith("I;16"):
        return 0.0, 255.0 / 65535.0
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise _Reason("holds values that are not finite numbers (NaN or infinity)")
    if image.mode == "I" and low >= 0 and high <= 65535:
        return 0.0, 255.0 / 65535.0
    if image.mode == "F" and low >= 0 and high <= 1:
        return 0.0, 255.0
    if image.mode == "F" and low >= 0 and high <= 255:
        return 0.0, 1.0
    return low, 255.0 / (high - low) if high > low else 0.0


def _too_many_pixels(pixels: int, limit: int) -> str:
    return f"has {pixels / 1e6:.0f} million pixels, over the limit of {limit / 1e6:.0f} million"


def _why_unidentified(data: bytes) -> str:
    """Explain a file that no supported reader recognizes."""
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS:
        return "is a HEIC photograph, which is not supported: save it as JPEG"
    head = data[:256].lstrip().lower()
    for magic, reason in _OTHER_FORMATS:
        if head.startswith(magic.lower()) or (magic == b"<svg" and magic in head):
            return reason
    return "is not an image of a supported format (JPEG, PNG, WebP, GIF, BMP, TIFF, PPM)"


def _why_damaged(error: Exception) -> str:
    message = str(error).strip() or type(error).__name__
    if any(word in message.lower() for word in ("truncated", "end of file", "eof", "not enough", "incomplete")):
        return "is cut short: the file ends before the image does"
    return f"is damaged: {message}"


# Increased when ``decode`` gives other pixels for the same file, so that cached pixels of an older version are not
# used.
FORMAT_VERSION = 2
CHECKSUM_BYTES = 4


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
        raise _explained(error, folder) from error
    pixels = np.ascontiguousarray(decode(data, image_size), np.uint8)
    if pixels.shape != shape:
        raise ValueError(f"decode returned pixels of shape {pixels.shape}, expected {shape}")
    try:
        # Not flushed: thousands of small files, and a lost one is decoded again.
        write_atomically(path, lambda file: file.write_bytes(pixels.tobytes() + _checksum(pixels)), flush=False)
    except OSError as error:
        raise _explained(error, folder) from error
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


def _explained(error: OSError, folder: Path) -> OSError:
    if error.errno in FULL_DISK_ERRORS:
        message = f"the disk is full at {folder}: free some space, or set THAW_CACHE to a folder on another disk"
    else:
        message = (
            f"the cache of decoded images cannot be written at {folder} ({os.strerror(error.errno)}): set THAW_CACHE "
            "to another folder"
        )
    return type(error)(error.errno, message)
