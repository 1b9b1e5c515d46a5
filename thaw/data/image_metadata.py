"""Remove the metadata of image files, so that a broken piece of it cannot make an image unreadable.

Nothing but the orientation is used of EXIF, XMP, color profiles, comments and thumbnails. Pillow reads all of them when
it opens a file, and gives up on a profile of two megabytes, a text that unpacks to gigabytes, or a tag that points
nowhere. Neither Pillow nor NumPy is imported here.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Collection

MAX_TEXT_BYTES = 2**20  # of the unpacked text in which some programs write the orientation
MAX_KEYWORD_BYTES = 79  # of a text in a PNG
SUBFILE_TYPE, BITS_PER_SAMPLE, PHOTOMETRIC, ORIENTATION, XMP = 254, 258, 262, 274, 700  # tags of TIFF and EXIF
_PNG, _RAW_EXIF, _XMP = b"\x89PNG\r\n\x1a\n", b"Raw profile type exif", b"XML:com.adobe.xmp"


# The file without metadata (None: damaged), the tags of its EXIF, and its XMP.
Tags = dict[int, tuple[int, ...]]
Stripped = tuple[bytes | None, Tags, bytes]


def without_metadata(data: bytes) -> tuple[bytes, int]:
    """Return an image file that holds only what its pixels need, and the orientation that its metadata asked for.

    JPEG, PNG, WebP, TIFF and AVIF are rewritten; the compressed pixels are copied as they are. Of several pages, frames
    or pictures the first remains. Other files, and those whose structure is damaged, are returned as they are.

    Args:
        data: content of the file.

    Returns:
        The content without metadata, and the EXIF orientation, 1 to 8: 1 where there is none, or an invalid one.

    Example:
        >>> from thaw.data.image_metadata import without_metadata
        >>> tags = bytes.fromhex("49492a0008000000 0100 1201 0300 01000000 06000000 00000000")
        >>> comment = b"\\xff\\xfe\\x00\\x06late"
        >>> tables = b"\\xff\\xdb\\x00\\x02" + b"\\xff\\xc0\\x00\\x02" + b"\\xff\\xda..."
        >>> exif = b"Exif\\0\\0" + tags
        >>> part = b"\\xff\\xe1" + (len(exif) + 2).to_bytes(2) + exif
        >>> without_metadata(b"\\xff\\xd8" + part + comment + tables) == (b"\\xff\\xd8" + tables, 6)
        True
    """
    for is_one, strip in _FORMATS:
        if is_one(data):
            stripped, tags, xmp = strip(data)
            return data if stripped is None else stripped, _orientation(tags, xmp)
    return data, 1


def _exif_tags(exif: bytes) -> Tags:
    return tiff_tags(re.sub(rb"\A(Exif\0\0){1,2}", b"", exif), {ORIENTATION})


def _orientation(tags: Tags, xmp: bytes) -> int:
    value = tags.get(ORIENTATION)
    if value is None and (match := re.search(rb'tiff:Orientation(?:="|>)([0-9])', xmp)):
        value = (int(match[1]),)
    return value[0] if value and len(value) == 1 and 1 <= value[0] <= 8 else 1


def _strip_jpeg(data: bytes) -> Stripped:
    # A wrong length may lead past the tables: then the lengths of metadata are not believed.
    for believe in (True, False):
        parts, exif, xmp = _jpeg_parts(data, believe)
        markers = {part[1] for part in parts}
        # DQT, start of scan, and a frame header, which is one of SOF0 to SOF15.
        if {0xDB, 0xDA} <= markers and markers & (set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}):
            return b"\xff\xd8" + b"".join(parts), _exif_tags(exif), xmp
    return None, {}, b""


def _jpeg_parts(data: bytes, believe: bool) -> tuple[list[bytes], bytes, bytes]:
    """Return the parts that the pixels need, the last one from the first scan to the end; then EXIF and XMP."""
    parts, exif, xmp, at = [], b"", b"", 2
    while (at := data.find(b"\xff", at)) >= 0 and at + 4 <= len(data):
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
        elif marker < 0xC0 or 0xD0 <= marker <= 0xD7:  # no marker of a header: left from metadata of wrong length
            at += 2
        elif marker == 0xD8:  # so is a thumbnail, a whole JPEG of its own
            at = data.find(b"\xff\xd9", at)
            if at < 0:
                break
            at += 2
        elif marker == 0xD9:
            break
        elif marker == 0xDA:
            parts.append(data[at:])
            break
        else:
            length = int.from_bytes(data[at + 2 : at + 4])
            end, body = at + 2 + length, data[at + 4 : at + 2 + length]
            is_metadata = 0xE0 <= marker <= 0xEF or marker == 0xFE
            if is_metadata and (not believe or length < 2 or end > len(data)):
                at += 4
                continue
            # These two say how the colors are coded.
            is_color = (marker == 0xE0 and body[:5] == b"JFIF\0" and len(body) >= 14) or (
                marker == 0xEE and body[:5] == b"Adobe" and len(body) >= 12
            )
            if is_color or not is_metadata:
                parts.append(data[at:end])
            elif marker == 0xE1 and body[:6] == b"Exif\0\0":
                exif = exif or body
            elif marker == 0xE1 and body.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
                xmp = xmp or body
            at = max(end, at + 4)
    return parts, exif, xmp


def _strip_png(data: bytes) -> Stripped:
    parts, exif, texts, at, color = [_PNG], b"", {}, 8, None
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        chunk, body, at = data[at : at + 12 + length], data[at + 8 : at + 8 + length], at + 12 + length
        if kind in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
            parts.append(chunk)
            if kind == b"IHDR":
                color = body[9] if len(body) >= 13 else None
            if kind == b"IEND":
                break
        elif at > len(data) or zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:]):
            continue  # libpng, too, ignores what is not critical and has a wrong checksum
        elif kind == b"tRNS" and ((color == 0 and length >= 2) or (color == 2 and length >= 6) or color == 3):
            parts.append(chunk)
        elif kind == b"eXIf":
            exif = body
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            name = body[: MAX_KEYWORD_BYTES + 1].partition(b"\0")[0]
            if name in (_RAW_EXIF, _XMP) and name not in texts:  # each is unpacked once at most
                texts[name] = _png_text(kind, body[len(name) + 1 :])
    if not exif and _RAW_EXIF in texts:
        try:
            exif = bytes.fromhex("".join(texts[_RAW_EXIF].decode("latin-1").split("\n")[3:]))
        except ValueError:
            exif = b""
    return b"".join(parts), _exif_tags(exif), texts.get(_XMP, b"")


def _png_text(kind: bytes, text: bytes) -> bytes:
    """Return the text of a chunk, given what follows its keyword; no more than ``MAX_TEXT_BYTES``."""
    packed = kind == b"zTXt"
    if packed:
        text = text[1:]  # the method, of which there is one
    elif kind == b"iTXt":
        packed, text = text[:1] == b"\1", text[2:].split(b"\0", 2)[-1]  # after the language and the translated keyword
    if not packed:
        return text[:MAX_TEXT_BYTES]
    try:
        return zlib.decompressobj().decompress(text, MAX_TEXT_BYTES)
    except zlib.error:
        return b""


def _strip_webp(data: bytes) -> Stripped:
    parts, found, at = [], {}, 12
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        chunk = data[at : at + 8 + length + length % 2]
        if kind in (b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF"):
            if len(chunk) < 8 + length:
                return None, {}, b""  # cut short: the decoder says so
            if kind == b"VP8X" and length:
                chunk = chunk[:8] + bytes([chunk[8] & ~0b101100]) + chunk[9:]  # neither profile, nor EXIF, nor XMP
            parts.append(chunk)
        elif kind in (b"EXIF", b"XMP "):
            found.setdefault(kind, chunk[8 : 8 + length])
        at += len(chunk)
    body = b"WEBP" + b"".join(parts)
    return b"RIFF" + struct.pack("<I", len(body)) + body, _exif_tags(found.get(b"EXIF", b"")), found.get(b"XMP ", b"")


def _strip_avif(data: bytes) -> Stripped:
    # Its boxes point at one another by position, so nothing is taken out: the item that is EXIF becomes one of a type
    # that no reader knows. The orientation of AVIF is a property of the image, not of EXIF.
    at = 0
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"meta":
            box = re.sub(rb"(infe.{8})Exif", rb"\1none", data[at : at + length], flags=re.DOTALL)
            return data[:at] + box + data[at + length :], {}, b""
        if length < 8:
            break
        at += length
    return None, {}, b""


# The tags that say where and how the pixels of a TIFF lie. The orientation is not among them: it is applied afterwards.
_PIXEL_TAGS = {
    *(254, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284),  # size, bits, compression, strips, planes
    *(292, 293, 317, 320, 322, 323, 324, 325, 332, 338, 339, 347),  # fax, predictor, palette, tiles, inks, JPEG tables
    *(512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532, 0xBC01),  # old JPEG; YCbCr; JPEG XR
}
_INTEGER_TYPES = {1: "B", 7: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
MAX_PREVIEWS = 16
MAX_TAG_VALUES = 1024
MAX_ENTRIES = 4096  # of a directory, as in libtiff; one of a camera has about a hundred


def _strip_tiff(data: bytes) -> Stripped:
    offset = _first_full_page(data)
    order, is_big, entries, _ = _tiff_entries(data, _PIXEL_TAGS, offset)
    if not order:
        return None, {}, b""
    tags = tiff_tags(data, {ORIENTATION}, offset)
    _, start, size = _tiff_values(data, {XMP}, offset).get(XMP, ("", 0, 0))
    xmp = data[start : start + min(size, MAX_TEXT_BYTES)]
    # The directory is written again, at the end, even if it is empty; what it points at remains where it is. Of a tag
    # that is there several times, the first one counts, as in libtiff.
    first = dict(reversed(entries))
    needed = [data[at : at + (20 if is_big else 12)] for at in sorted(first.values())]
    padding = len(data) % 2
    count, pointer = ("Q", "Q") if is_big else ("H", "I")
    directory = struct.pack(order + count, len(needed)) + b"".join(needed) + struct.pack(order + pointer, 0)
    header = (data[:8] if is_big else data[:4]) + struct.pack(order + pointer, len(data) + padding)
    rest = memoryview(data)[len(header) :]  # not copied twice: a TIFF may be large
    return b"".join((header, rest, bytes(padding), directory)), tags, xmp


def _first_full_page(data: bytes) -> int | None:
    """Return where the directory of the first page lies that is neither a preview of another nor its mask."""
    offset = None
    for _ in range(MAX_PREVIEWS):
        if not tiff_tags(data, {SUBFILE_TYPE}, offset).get(SUBFILE_TYPE, (0,))[0] & 0b101:
            return offset
        offset = _tiff_entries(data, (), offset)[3]
        if not offset:  # there are no more pages: the first one is all there is
            return None
    return None


def tiff_tags(data: bytes, wanted: Collection[int], offset: int | None = None) -> Tags:
    """Read whole numbers in a directory of a TIFF file; EXIF has the same form.

    Args:
        data: content of the file.
        wanted: the tags to read; a file may hold 65,535 others.
        offset: where the directory begins, in bytes; default: the first one.

    Returns:
        Dict from tag to values, without tags of other types or of more than 1024 values; empty where there is no
        directory. Of a tag that is there twice the first counts.

    Example:
        >>> from thaw.data.image_metadata import tiff_tags
        >>> tiff_tags(bytes.fromhex("49492a0008000000 0100 1201 0300 01000000 06000000 00000000"), {274})
        {274: (6,)}
    """
    values = _tiff_values(data, wanted, offset)
    return {tag: struct.unpack_from(layout, data, start) for tag, (layout, start, _) in values.items()}


def _tiff_values(data: bytes, wanted: Collection[int], offset: int | None) -> dict[int, tuple[str, int, int]]:
    """Return the layout of each wanted tag's numbers (as ``struct`` has it), where they begin, and how many bytes."""
    order, is_big, entries, _ = _tiff_entries(data, wanted, offset)
    head, pointer, field = ("HQ", "Q", 12) if is_big else ("HI", "I", 8)
    values = {}
    for tag, at in entries:
        if tag in values:
            continue
        kind, count = struct.unpack_from(order + head, data, at + 2)
        if kind not in _INTEGER_TYPES or not 0 < count <= (MAX_TEXT_BYTES if tag == XMP else MAX_TAG_VALUES):
            continue
        layout = f"{order}{count}{_INTEGER_TYPES[kind]}"
        size, start = struct.calcsize(layout), at + field
        if size > struct.calcsize(order + pointer):
            (start,) = struct.unpack_from(order + pointer, data, start)
        if start + size <= len(data):
            values[tag] = layout, start, size
    return values


def _tiff_entries(
    data: bytes, wanted: Collection[int], offset: int | None
) -> tuple[str, bool, list[tuple[int, int]], int]:
    """Return the byte order ("": no TIFF), whether it is a BigTIFF, (tag, position) of each entry, and the next page.

    The entries are those of the wanted tags; the next page is the position of its directory, 0 where there is none.
    """
    order = {b"II": "<", b"MM": ">"}.get(data[:2], "")
    # 42, or 43 for a BigTIFF; some programs write it in the wrong order.
    is_big = data[2:4] in (b"+\0", b"\0+")
    if not order or not (is_big or data[2:4] in (b"*\0", b"\0*")) or len(data) < 16:
        return "", False, [], 0
    first, count, size = ("Q", "Q", 20) if is_big else ("I", "H", 12)
    at = struct.unpack_from(order + first, data, 8 if is_big else 4)[0] if offset is None else offset
    width = struct.calcsize(order + count)
    if at + width > len(data):
        return order, is_big, [], 0
    (number,) = struct.unpack_from(order + count, data, at)
    end = at + width + size * number
    starts = range(at + width, min(end, len(data) - size + 1), size)[:MAX_ENTRIES]
    following = struct.unpack_from(order + first, data, end)[0] if end + struct.calcsize(first) <= len(data) else 0
    tags = ((struct.unpack_from(order + "H", data, i)[0], i) for i in starts)
    return order, is_big, [(tag, i) for tag, i in tags if tag in wanted], following


_FORMATS = (
    (lambda data: data.startswith(b"\xff\xd8\xff"), _strip_jpeg),
    (lambda data: data.startswith(_PNG), _strip_png),
    (lambda data: data[:4] == b"RIFF" and data[8:12] == b"WEBP", _strip_webp),
    (lambda data: data[:2] in (b"II", b"MM"), _strip_tiff),
    (lambda data: data[4:12] in (b"ftypavif", b"ftypavis", b"ftypmif1", b"ftypmsf1"), _strip_avif),
)
