"""Broken and huge metadata: the pixels are those of the same image without it."""

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from thaw.data.image_decoding import decode
from thaw.data.image_metadata import tiff_tags, without_metadata

PIXELS = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)


def saved(form, image=None, **options):
    file = io.BytesIO()
    (image or Image.fromarray(PIXELS)).save(file, form, **options)
    return file.getvalue()


def chunk(kind, body, crc=None):
    return (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) if crc is None else crc)
    )


def in_png(png, *chunks):
    """Put chunks behind the header."""
    return png[:33] + b"".join(chunks) + png[33:]


def segment(marker, body, length=None):
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2 if length is None else length) + body


def in_jpeg(jpeg, *segments):
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def in_webp(webp, *chunks, cut=0):
    """Put chunks at the end of an extended WebP."""
    body = webp[12:] + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body[: len(body) - cut]


def exif_of(*entries):
    """Little-endian EXIF of (tag, type, count, value) entries."""
    return (
        b"Exif\0\0II*\0\x08\0\0\0"
        + struct.pack("<H", len(entries))
        + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    )


PNG, JPEG, WEBP = saved("PNG"), saved("JPEG", quality=95), saved("WEBP", lossless=True, exif=exif_of((271, 3, 1, 1)))
BOMB = zlib.compress(bytes(100_000_000), 9)
MEGABYTE = zlib.compress(bytes(10**6))
GARBAGE = bytes(range(256)) * 8
THUMBNAIL = saved("JPEG", Image.new("RGB", (16, 16), "red"))
BROKEN = {
    "profile of 2 MB": (PNG, saved("PNG", icc_profile=bytes(2_000_000))),
    "profile of 100 MB": (PNG, in_png(PNG, chunk(b"iCCP", b"name\0\0" + BOMB))),
    "profile of an unknown method": (PNG, in_png(PNG, chunk(b"iCCP", b"name\0\7x"))),
    "profile without an end": (PNG, in_png(PNG, chunk(b"iCCP", b"name"))),
    "zTXt bomb": (PNG, in_png(PNG, chunk(b"zTXt", b"Comment\0\0" + BOMB))),
    "zTXt of an unknown method": (PNG, in_png(PNG, chunk(b"zTXt", b"Comment\0\7x"))),
    "iTXt bomb": (PNG, in_png(PNG, chunk(b"iTXt", b"Comment\0\1\0\0\0" + BOMB))),
    "XMP bomb": (PNG, in_png(PNG, chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + BOMB))),
    "70 texts of a megabyte": (PNG, in_png(PNG, *[chunk(b"zTXt", b"%d\0\0" % i + MEGABYTE) for i in range(70)])),
    "text behind the pixels": (PNG, PNG[:-12] + chunk(b"zTXt", b"Comment\0\7x") + PNG[-12:]),
    "wrong checksum": (PNG, in_png(PNG, chunk(b"tEXt", b"a\0b", crc=1))),
    "transparency with a wrong checksum": (PNG, in_png(PNG, chunk(b"tRNS", bytes(6), crc=1))),
    "short numbers": (PNG, in_png(PNG, *[chunk(kind, b"") for kind in (b"pHYs", b"gAMA", b"cHRM", b"sRGB")])),
    "short transparency": (PNG, in_png(PNG, chunk(b"tRNS", b"\0"))),
    "animation of no frames": (PNG, in_png(PNG, chunk(b"acTL", bytes(8)), chunk(b"fcTL", bytes(3)))),
    "EXIF of garbage in PNG": (PNG, in_png(PNG, chunk(b"eXIf", GARBAGE))),
    "raw profile of garbage": (PNG, in_png(PNG, chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 9\nxyz"))),
    "bytes behind a PNG": (PNG, PNG + GARBAGE),
    "EXIF of garbage": (JPEG, in_jpeg(JPEG, segment(0xE1, b"Exif\0\0" + GARBAGE))),
    "EXIF that points nowhere": (JPEG, in_jpeg(JPEG, segment(0xE1, exif_of((34665, 4, 1, 2**31), (282, 5, 9, 2**30))))),
    "EXIF with a density of 1/0": (JPEG, in_jpeg(JPEG, segment(0xE1, exif_of((282, 5, 1, 28)) + bytes(8)))),
    "EXIF of nothing": (JPEG, in_jpeg(JPEG, segment(0xE1, b"Exif\0\0"))),
    "orientation 0": (JPEG, in_jpeg(JPEG, segment(0xE1, exif_of((274, 3, 1, 0))))),
    "orientation 9": (JPEG, in_jpeg(JPEG, segment(0xE1, exif_of((274, 3, 1, 9))))),
    "orientation as a text": (JPEG, in_jpeg(JPEG, segment(0xE1, exif_of((274, 2, 2, 54))))),
    "two orientations": (JPEG, in_jpeg(JPEG, segment(0xE1, exif_of((274, 3, 2, 6))))),
    "cut orientation": (JPEG, in_jpeg(JPEG, segment(0xE1, exif_of((274, 3, 1, 6))[:-9]))),
    "JFIF of one byte": (JPEG, JPEG[:2] + segment(0xE0, b"JFIF\0\1") + JPEG[20:]),
    "Adobe of two bytes": (JPEG, in_jpeg(JPEG, segment(0xEE, b"Adobe\0\0"))),
    "Photoshop of garbage": (JPEG, in_jpeg(JPEG, segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\2a"))),
    "half an ICC profile": (JPEG, in_jpeg(JPEG, *[segment(0xE2, b"ICC_PROFILE\0" + part) for part in (b"\7\3", b"")])),
    "several pictures of garbage": (JPEG, in_jpeg(JPEG, segment(0xE2, b"MPF\0" + GARBAGE))),
    "several pictures without a list": (JPEG, in_jpeg(JPEG, segment(0xE2, b"MPF\0II*\0\x08\0\0\0\0\0"))),
    "segment longer than the file": (JPEG, in_jpeg(JPEG, segment(0xE1, b"Exif\0\0abc", 65535))),
    "segment of no length": (JPEG, in_jpeg(JPEG, segment(0xE5, b"abc", 0))),
    "segment shorter than its text": (JPEG, in_jpeg(JPEG, segment(0xFE, b"a comment", 4))),
    "segment that covers the tables": (JPEG, in_jpeg(JPEG, segment(0xE5, b"abc", 300))),
    "thumbnail behind a wrong length": (JPEG, in_jpeg(JPEG, segment(0xE1, b"Exif\0\0" + THUMBNAIL, 8))),
    "padding between segments": (JPEG, in_jpeg(JPEG, b"\xff\xff\xff", segment(0xFE, b"abc"))),
    "bytes behind a JPEG": (JPEG, JPEG + GARBAGE + THUMBNAIL),
    "EXIF of garbage in WebP": (WEBP, in_webp(WEBP, b"EXIF" + struct.pack("<I", 2048) + GARBAGE)),
    "EXIF of a WebP cut short": (WEBP, in_webp(WEBP, b"EXIF" + struct.pack("<I", 2048) + GARBAGE, cut=99)),
    "bytes behind a WebP": (WEBP, WEBP + GARBAGE),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_metadata(name):
    whole, broken = BROKEN[name]
    assert broken != whole
    assert (decode(broken, 32) == decode(whole, 32)).all()


def test_orientation_beside_a_broken_profile():
    png = in_png(saved("PNG", icc_profile=bytes(2_000_000)), chunk(b"eXIf", exif_of((274, 3, 1, 6))[6:]))
    jpeg = in_jpeg(JPEG, segment(0xE1, exif_of((274, 3, 1, 6), (282, 5, 9, 2**30))), segment(0xED, b"Photoshop 3.0\0"))
    webp = in_webp(WEBP, b"EXIF" + struct.pack("<I", 26) + exif_of((274, 3, 1, 6))[6:])
    webp = webp.replace(b"EXIF", b"JUNK", 1)
    for whole, turned in ((PNG, png), (JPEG, jpeg), (WEBP, webp)):
        upright = Image.open(io.BytesIO(whole)).convert("RGB").transpose(Image.Transpose.ROTATE_270)
        assert (decode(turned, 32) == decode(saved("PNG", upright), 32)).all()


def test_orientation_in_other_places():
    """ImageMagick writes EXIF into a PNG as hexadecimal text, Lightroom writes XMP."""
    exif = exif_of((274, 3, 1, 3)).hex()
    raw = b"Raw profile type exif\0\0" + zlib.compress(f"\nexif\n{len(exif) // 2:8}\n{exif}\n".encode())
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="3"/></x:xmpmeta>'
    expected = decode(saved("PNG", Image.fromarray(PIXELS[::-1, ::-1])), 32)
    assert (decode(in_png(PNG, chunk(b"zTXt", raw)), 32) == expected).all()
    assert (decode(in_png(PNG, chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)), 32) == expected).all()
    assert (decode(saved("TIFF", tiffinfo={700: xmp}), 32) == expected).all()
    jpeg = in_jpeg(JPEG, segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp))
    assert (decode(jpeg, 32) == decode(saved("PNG", Image.open(io.BytesIO(JPEG)).rotate(180)), 32)).all()


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}, {"compression": "jpeg"}, {"big_tiff": True}])
def test_metadata_of_a_tiff(options):
    plain = saved("TIFF", **options)
    tags = {34675: bytes(10**6), 700: b"<xmp", 305: "x" * 5000, 274: 8}
    full = saved("TIFF", tiffinfo=tags, **options)
    upright = saved("PNG", Image.open(io.BytesIO(plain)).transpose(Image.Transpose.ROTATE_90))
    assert (decode(full, 32) == decode(upright, 32)).all()
    # Each tag that is no pixel's points behind the end of the file, or has another type.
    size = 20 if options.get("big_tiff") else 12
    for tag in (34675, 700, 305, 274):
        start = full.index(struct.pack("<H", tag), int.from_bytes(full[8:16] if size == 20 else full[4:8], "little"))
        broken = full[: start + 2] + b"\x02\x00" + b"\xfe" * (size - 4) + full[start + size :]
        pixels = decode(broken, 32)
        assert (pixels == decode(plain if tag == 274 else upright, 32)).all()


def test_tags_of_both_byte_orders():
    assert tiff_tags(b"MM\0*\0\0\0\x08\0\1" + struct.pack(">HHIHH", 274, 3, 1, 5, 0), {274}) == {274: (5,)}
    assert tiff_tags(exif_of((274, 3, 1, 5))[6:], {274, 256}) == {274: (5,)}
    assert tiff_tags(exif_of((274, 3, 1, 5))[6:], {256}) == {}
    assert tiff_tags(b"II*\0\xff\xff\xff\xff" + bytes(99), {274}) == {}
    assert tiff_tags(b"II", {274}) == {}


def directory(entries, following=0):
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return struct.pack("<H", len(entries)) + body + struct.pack("<I", following)


def many_tags(kind):
    """A TIFF of one megabyte whose directories are 65,535 entries long, and point at the same bytes."""
    values = range(65_535)
    if kind == "different tags":
        entries = [(tag, 16, 1024, 0) for tag in values]
    elif kind == "one XMP again and again":
        entries = [(700, 1, 2**20, 0) for _ in values]
    elif kind == "short XMP again and again":
        entries = [(700, 1, 2**20, 2**21) for _ in values]
    else:  # the second page is the first one again, and both are previews with many others inside
        entries = [(254, 4, 1, 1), (330, 4, 1024, 2**20), *[(330, 16, 1024, 0) for _ in values[2:]]]
    whole = b"II*\0\x08\0\0\0" + directory(entries, 8)
    whole += bytes(2**20 - len(whole))
    return whole + struct.pack("<1024I", *[8] * 1024)


MANY = ("different tags", "one XMP again and again", "short XMP again and again", "directories inside")


@pytest.mark.parametrize("kind", MANY)
def test_many_tags_take_little(kind, monkeypatch):
    data, values, unpack = many_tags(kind), [], struct.unpack_from

    def count(*arguments):
        got = unpack(*arguments)
        values.append(len(got))
        return got

    monkeypatch.setattr(struct, "unpack_from", count)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"^is "):
            decode(data, 8)
        assert len(without_metadata(data)[0]) < len(data) + 1000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 * 2**20
    assert sum(values) < 500_000


@pytest.mark.parametrize("packed", [b"zTXt", b"iTXt"])
def test_texts_of_a_similar_name_are_not_unpacked(packed):
    """No keyword but the two that hold an orientation, and of each the first."""
    begin = b"\0\0" if packed == b"zTXt" else b"\0\1\0\0\0"
    names = [b"%s %d" % (name, i) for i in range(50) for name in (b"Raw profile type exif", b"XML:com.adobe.xmp")]
    names += [b"Raw profile type exif", b"XML:com.adobe.xmp"] * 50
    png = in_png(PNG, *[chunk(packed, name + begin + BOMB[:20_000]) for name in names])
    tracemalloc.start()
    try:
        assert without_metadata(png) == (PNG, 1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < len(png) + 8 * 2**20


def test_orientation_of_a_page_that_is_called_a_preview():
    preview = saved("TIFF", tiffinfo={254: 1, 274: 6})
    assert without_metadata(preview)[1] == 6
    upright = Image.fromarray(PIXELS).transpose(Image.Transpose.ROTATE_270)
    assert (decode(preview, 32) == decode(saved("PNG", upright), 32)).all()


WHOLE = [PNG, JPEG, WEBP, saved("TIFF"), saved("AVIF")]


@given(st.data())
def test_any_file_is_returned(data):
    """Whatever is wrong, nothing is raised, and what is not metadata remains."""
    whole = data.draw(st.sampled_from(WHOLE))
    broken = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for place in data.draw(st.lists(st.integers(0, 200), max_size=8)):
        if place < len(broken):
            broken[place] = data.draw(st.integers(0, 255))
    rest, orientation = without_metadata(bytes(broken))
    assert isinstance(rest, bytes)
    assert 1 <= orientation <= 8
    try:
        pixels = decode(bytes(broken), 8)
    except ValueError as error:
        reason = str(error)
    else:
        reason = "is read"
        assert pixels.shape == (8, 8, 3)
    assert reason.startswith(("is ", "has ", "holds "))
