"""Say what a file is that lies among images and is none, or none that can be read."""

from __future__ import annotations

import re

from thaw.data.image_metadata import BITS_PER_SAMPLE, PHOTOMETRIC, SUBFILE_TYPE, tiff_tags

_AS_PNG = "which is not supported: save it as PNG or JPEG"
_VIDEO = "is a video: save its frames as images"
_ARCHIVE = "which has to be unpacked first"

# By the first bytes: a name helps more than "not an image". More than one place is tried below.
_FIRST_BYTES = (
    (b"%PDF", "is a PDF document"),
    (b"%!PS", f"is a PostScript drawing (EPS), {_AS_PNG}"),
    (b"\xc5\xd0\xd3\xc6", f"is a PostScript drawing (EPS), {_AS_PNG}"),
    (b"8BPS", f"is a Photoshop file, {_AS_PNG}"),
    (b"gimp xcf", f"is a GIMP file, {_AS_PNG}"),
    (b"\0\0\1\0", f"is an icon (ICO), {_AS_PNG}"),
    (b"\0\0\2\0", f"is a cursor (CUR), {_AS_PNG}"),
    (b"icns", f"is an icon (ICNS), {_AS_PNG}"),
    (b"\xff\x0a", f"is a JPEG XL image, {_AS_PNG}"),
    (b"\0\0\0\x0cJXL ", f"is a JPEG XL image, {_AS_PNG}"),
    (b"\0\0\0\x0cjP  ", f"is a JPEG 2000 image, {_AS_PNG}"),
    (b"\xff\x4f\xff\x51", f"is a JPEG 2000 image, {_AS_PNG}"),
    (b"qoif", f"is a QOI image, {_AS_PNG}"),
    (b"\x76\x2f\x31\x01", f"is an OpenEXR image, {_AS_PNG}"),
    (b"#?RADIANCE", f"is a Radiance HDR image, {_AS_PNG}"),
    (b"DDS ", f"is a DirectDraw texture (DDS), {_AS_PNG}"),
    (b"AT&TFORM", f"is a DjVu document, {_AS_PNG}"),
    (b"\x8aMNG", f"is an MNG animation, {_AS_PNG}"),
    (b"SIMPLE  =", f"is a FITS file of astronomy, {_AS_PNG}"),
    (b"\x93NUMPY", "is a NumPy array (.npy), not an image: save it with Pillow, or give thaw arrays"),
    (b"\x89HDF\r\n\x1a\n", "is an HDF5 file, not an image"),
    (b"FUJIFILMCCD-RAW", "RAW"),
    (b"FOVb", "RAW"),
    (b"\0MRM", "RAW"),
    (b"IIU\0", "RAW"),
    (b"IIRO", "RAW"),
    (b"IIRS", "RAW"),
    (b"MMOR", "RAW"),
    (b"PK\3\4", "is a zip archive"),
    (b"PK\5\6", "is an empty zip archive"),
    (b"\x1f\x8b", f"is compressed with gzip, {_ARCHIVE}"),
    (b"BZh", f"is compressed with bzip2, {_ARCHIVE}"),
    (b"\xfd7zXZ\0", f"is compressed with xz, {_ARCHIVE}"),
    (b"\x28\xb5\x2f\xfd", f"is compressed with zstd, {_ARCHIVE}"),
    (b"7z\xbc\xaf\x27\x1c", f"is a 7z archive, {_ARCHIVE}"),
    (b"Rar!", f"is a RAR archive, {_ARCHIVE}"),
    (b"\x1a\x45\xdf\xa3", _VIDEO),  # WebM, Matroska
    (b"FLV", _VIDEO),
    (b"\x30\x26\xb2\x75", _VIDEO),  # WMV
    (b"\0\0\1\xba", _VIDEO),  # MPEG
    (b"\0\0\1\xb3", _VIDEO),
    (b"OggS", "is an Ogg file of sound or video"),
    (b"ID3", "is a sound file (MP3)"),
    (b"fLaC", "is a sound file (FLAC)"),
    (b"\0\5\x16\7", "is a companion file of macOS (._name), not an image: delete it"),
    (b"\xd0\xcf\x11\xe0", "is an Office document, or a Thumbs.db of Windows"),
    (b"SQLite format 3", "is an SQLite database"),
    (b"PAR1", "is a Parquet table"),
    (b"\x7fELF", "is a program"),
    (b"MZ", "is a program of Windows"),
)
# By the bytes at another place.
_LATER_BYTES = (
    (128, b"DICM", f"is a DICOM file of a medical device, {_AS_PNG}"),
    (257, b"ustar", f"is a tar archive, {_ARCHIVE}"),
    (344, b"n+1\0", f"is a NIfTI volume, {_AS_PNG}"),
    (6, b"HEAPCCDR", "RAW"),
    (8, b"AVI ", _VIDEO),
    (8, b"WAVE", "is a sound file (WAV)"),
    (12, b"CgBI", f"is a PNG in Apple's own form for iPhones, {_AS_PNG}"),
)
_RAW = (
    "is a RAW photograph (DNG, CR2, NEF, ARW and the like), of which only a small preview could be read: develop it, "
    "and save it as JPEG or TIFF"
)
# Of a directory of a TIFF file: sensor data, and what only cameras write.
_SENSOR_COLORS, _CAMERA_COMPRESSIONS = {32803, 34892}, {32767, 32770, 34713, 65000, 65535}
_TIFF_COMPRESSIONS = {*range(1, 9), 32771, 32773, 32946, 34676, 34677, 34925, 50000, 50001}  # those of Pillow
# CR2 of Canon, IIQ of Phase One. In other files the pixels may begin there: IIII may be four grey ones.
_CAMERA_MAGIC = re.compile(rb"II\*\0(\x10\0\0\0CR\x02|....IIII.waR)|MM\0\*....MMMMRaw", re.DOTALL)
_DNG_VERSION, _COMPRESSION, _SUB_DIRECTORIES, _CHANNELS, _NUMBERS = 50706, 259, 330, 277, 339
_PIXEL_FORMAT = {BITS_PER_SAMPLE, PHOTOMETRIC, _COMPRESSION, _CHANNELS, _NUMBERS}


def raw_photograph(data: bytes) -> str | None:
    """Return the reason where a TIFF file is a RAW photograph, whose first image is a small preview, else ``None``.

    Args:
        data: content of the file.

    Returns:
        A reason such as "is a RAW photograph ...", or ``None``.

    Example:
        >>> from thaw.data.file_types import raw_photograph
        >>> raw_photograph(b"II*\\0\\x10\\0\\0\\0CR\\2\\0")[:19]
        'is a RAW photograph'
    """
    if data[:4] not in (b"II*\0", b"MM\0*"):
        return None
    wanted = {SUBFILE_TYPE, PHOTOMETRIC, _COMPRESSION, _SUB_DIRECTORIES, _DNG_VERSION}
    first = tiff_tags(data, wanted)
    inner = [tiff_tags(data, wanted, offset) for offset in list(dict.fromkeys(first.get(_SUB_DIRECTORIES, ())))[:16]]
    is_raw = (
        _CAMERA_MAGIC.match(data) is not None
        or _DNG_VERSION in first
        or bool(first.get(SUBFILE_TYPE, (0,))[0] & 1 and inner)
        or any(set(tags.get(PHOTOMETRIC, ())) & _SENSOR_COLORS for tags in (first, *inner))
        or any(set(tags.get(_COMPRESSION, ())) & _CAMERA_COMPRESSIONS for tags in (first, *inner))
    )
    return _RAW if is_raw else None


def is_heif(data: bytes) -> bool:
    """Return whether a file is a HEIC or HEIF photograph, for which Pillow needs a plug-in.

    Args:
        data: content of the file.

    Returns:
        bool.

    Example:
        >>> from thaw.data.file_types import is_heif
        >>> is_heif(b"\\0\\0\\0\\x10ftypheic"), is_heif(b"\\0\\0\\0\\x10ftypisom")
        (True, False)
    """
    brands = data[8 : max(12, min(64, int.from_bytes(data[:4])))]
    # mif1 alone says only that it is one of the two.
    return data[4:8] == b"ftyp" and brands[:3] in (b"hei", b"hev", b"mif") and b"avif" not in brands


def unreadable_reason(data: bytes) -> str:
    """Say what a file is that no supported reader recognizes.

    Args:
        data: content of the file.

    Returns:
        The reason, without the path.

    Example:
        >>> from thaw.data.file_types import unreadable_reason
        >>> unreadable_reason(b"<!DOCTYPE html><html>...")
        'is a web page, saved under the name of an image: download the image itself'
    """
    if not data.strip(b"\0"):
        return f"holds nothing but zeros ({len(data)} bytes): the copy was interrupted, or the disk is damaged"
    if data[4:8] in (b"ftyp", b"moov", b"mdat", b"wide"):
        return _iso_media(data)
    found = [reason for offset, magic, reason in _LATER_BYTES if data[offset : offset + len(magic)] == magic]
    found += [reason for magic, reason in _FIRST_BYTES if data.startswith(magic)]
    if found:
        return _RAW if found[0] == "RAW" else found[0]
    return _read_by_pillow(data) or _text(data) or _UNKNOWN


_UNKNOWN = "is not an image of a supported format (JPEG, PNG, WebP, GIF, BMP, TIFF, PPM, AVIF)"


def _iso_media(data: bytes) -> str:
    """Tell apart what begins as MPEG-4 does."""
    if is_heif(data):
        return "is a HEIC photograph: install its reader (pip install pillow-heif), or save it as JPEG"
    if data[8:12] in (b"avif", b"avis", b"mif1", b"msf1"):
        return (
            "is an AVIF image, which is damaged, or this Pillow was built without AVIF: pip install --upgrade pillow, "
            "or save it as JPEG"
        )
    return _RAW if data[8:12] == b"crx " else _VIDEO


def _read_by_pillow(data: bytes) -> str | None:
    """Name what is wrong with a file whose format is a supported one."""
    if data[:2] in (b"II", b"MM") and (tags := tiff_tags(data, _PIXEL_FORMAT)):
        compression = tags.get(_COMPRESSION, (1,))[0]
        if compression not in _TIFF_COMPRESSIONS:
            return f"is a TIFF of compression {compression}, which is not supported: save it without, or as PNG"
        bits = tags.get(BITS_PER_SAMPLE, (1,))
        channels = tags.get(_CHANNELS, (len(bits),))[0]
        kind = {2: "signed ", 3: "floating-point "}.get(tags.get(_NUMBERS, (1,))[0], "")
        what = f"is a TIFF of {channels} channel{'s' * (channels != 1)} of {bits[0]} {kind}bits"
        if channels > 4 or bits[0] > 32 or (kind and channels > 1):
            return f"{what}, which is not supported: expected 1, 3 or 4 channels of 8 or 16 bits"
        return f"{what}, and how they are colors (photometric {tags.get(PHOTOMETRIC, (0,))[0]}) is not supported"
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "is a damaged WebP image, or this Pillow was built without WebP"
    begins = [(b"\x89PNG\r\n\x1a\n", "PNG"), (b"GIF8", "GIF"), (b"BM", "BMP")]
    begins += [(magic, "TIFF") for magic in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")]
    for magic, name in begins:
        if data.startswith(magic):
            return f"is damaged: it begins as a {name} image does, and its header is not complete or not valid"
    return None


def _jpeg(data: bytes) -> str:
    frame = re.search(rb"\xff([\xc0-\xc3\xc5-\xc7\xc9-\xcb\xcd-\xcf])..(.)....(.)", data, re.DOTALL)
    if frame is None:
        return "is cut short: the file ends before the image does"
    bits, channels = frame[2][0], frame[3][0]
    if bits != 8 or channels not in (1, 3, 4):
        return (
            f"is a JPEG of {channels} channels of {bits} bits, which is not supported: expected 1, 3 or 4 channels of "
            "8 bits"
        )
    return "is damaged: its header is not complete or not valid"


def _text(data: bytes) -> str | None:
    """Name a text, such as the page that a server sent in place of an image."""
    start = data[:4096].removeprefix(b"\xef\xbb\xbf")
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        text = start.decode("utf-16", "replace")
    else:
        text = start.decode("utf-8", "ignore" if len(data) > 4096 else "replace")
        if text.count("\ufffd") > len(text) // 4 or any(c < " " and not c.isspace() for c in text):
            return None  # not even a text in an older encoding
    text = " ".join(text.split())
    low = text.lower()
    if not text:
        return "is empty but for spaces"
    if low.startswith("version https://git-lfs"):
        return "is a pointer of Git LFS, not the image itself: fetch it with git lfs pull"
    if "<svg" in low[:1024]:
        return "is an SVG drawing, which is not supported: save it as PNG"
    if re.match(r"(<!--.*?--> ?)?<(!doctype html|html|head|body)", low):
        return "is a web page, saved under the name of an image: download the image itself"
    what = "an XML file" if low.startswith("<?xml") else "a JSON file" if low[0] in "{[" else "a text"
    shown = "".join(c if c.isprintable() else "?" for c in text[:40])
    return f"is not an image of a supported format, but {what} that begins with {shown!r}"
