"""One picture file to one square of pixels, whatever the camera, scanner or program that wrote it."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
MAX_PIXELS = 50_000_000

# What people put beside their photographs, by its first bytes: a name helps more than "not a picture".
_STRANGERS = (
    (b"%PDF", "is a PDF document"),
    (b"8BPS", "is a Photoshop file, which is not supported: save it as PNG or JPEG"),
    (b"<svg", "is an SVG drawing, which is not supported: save it as PNG"),
    (b"PK\x03\x04", "is a zip archive"),
)
_HEIF = (b"heic", b"heix", b"hevc", b"mif1", b"msf1")


def decode(file: str | os.PathLike | bytes, image_size: int, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read a picture as `image_size` x `image_size` RGB pixels, the right way up.

    The picture is stretched to the square, not cropped: what matters may lie at the border, and a crop would
    lose it without a word. It is made smaller with an anti-aliasing bicubic filter. A large JPEG is decoded
    at a half, a quarter or an eighth of its size when that is still at least twice `image_size`.

    EXIF orientation is applied. Transparent parts become white. Of an animation the first frame is taken.
    Grey becomes three equal channels. Sixteen bits are scaled (65535 becomes 255). Whole numbers above 65535,
    and floats that leave 0 to 255, are stretched from their smallest to their largest value; floats inside 0
    to 1 are multiplied by 255.

    Args:
        file: Path of the picture, or its bytes.
        image_size: Side of the square, in pixels.
        max_pixels: A picture with more pixels (width times height) is refused before it is decoded, because a
            small file can unpack to more than the memory holds.

    Returns:
        Array of shape (image_size, image_size, 3), uint8, 0 to 255.

    Raises:
        ValueError: The file is no whole picture of a supported format; the message is the reason, without the
            path.
        OSError: `file` is a path that cannot be read.

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

    # Before this Pillow knows only some formats, and trips over the names of others.
    Image.init()
    if not isinstance(file, bytes) and Path(file).exists() and not Path(file).is_file():
        raise ValueError("is not a regular file")  # a pipe would be waited for without end
    data = file if isinstance(file, bytes) else Path(file).read_bytes()
    if not data:
        raise ValueError("is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(data), formats=[name for name in FORMATS if name in Image.OPEN]) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise _Reason(_too_many(width * height, max_pixels))
            image.draft(None, (2 * image_size, 2 * image_size))
            image.load()
            return _square(ImageOps.exif_transpose(image), image_size)
    except _Reason as reason:
        raise ValueError(str(reason)) from None
    except Image.DecompressionBombError:
        # Pillow refuses by itself, and does not say the size, from twice its own limit on.
        said = _too_many(2 * Image.MAX_IMAGE_PIXELS, max_pixels)
        raise ValueError(said.replace("has", "has more than", 1)) from None
    except UnidentifiedImageError:
        raise ValueError(_stranger(data)) from None
    # Pillow's readers raise nearly everything on damaged files: OSError, SyntaxError, struct.error ...
    except Exception as error:
        raise ValueError(_damage(error)) from None


class _Reason(Exception):
    """A reason already in words for the user, on its way past the handlers."""


def _square(image, size: int) -> np.ndarray:
    """The loaded picture as (size, size, 3) uint8."""
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        # Resized as floats: Pillow clips sixteen bits to eight when asked to convert, it does not scale them.
        deep = Image.fromarray(np.asarray(image).astype(np.float32))
        grey = _resize(deep, size)
        low, scale = _range_of(image)
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


def _range_of(image) -> tuple[float, float]:
    """What to subtract and to multiply by, so that deep grey values become 0 to 255."""
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


def _too_many(pixels: int, limit: int) -> str:
    return f"has {pixels / 1e6:.0f} million pixels, over the limit of {limit / 1e6:.0f} million"


def _stranger(data: bytes) -> str:
    """A reason for a file that no supported reader recognises."""
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF:
        return "is a HEIC photograph, which is not supported: save it as JPEG"
    head = data[:256].lstrip().lower()
    for magic, reason in _STRANGERS:
        if head.startswith(magic.lower()) or (magic == b"<svg" and magic in head):
            return reason
    return "is not a picture of a supported format (JPEG, PNG, WebP, GIF, BMP, TIFF, PPM)"


def _damage(error: Exception) -> str:
    said = str(error).strip() or type(error).__name__
    if any(word in said.lower() for word in ("truncated", "end of file", "eof", "not enough", "incomplete")):
        return "is cut short: the file ends before the picture does"
    return f"is damaged: {said}"
