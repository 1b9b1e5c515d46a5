"""Every kind of file that cameras, scanners and programs write, checked by pixel values."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from thaw.data.image_decoding import decode

# Four quarters: red, green; blue, white. Sixteen pixels a side, so each quarter survives any filter inside.
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def quarters():
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8, :8], pixels[:8, 8:], pixels[8:, :8], pixels[8:, 8:] = RED, GREEN, BLUE, WHITE
    return pixels


def saved(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def corners(pixels):
    edge = len(pixels) - 2
    return [tuple(int(v) for v in pixels[r, c]) for r, c in ((1, 1), (1, edge), (edge, 1), (edge, edge))]


@pytest.mark.parametrize(
    ("orientation", "expected"),
    {
        1: (RED, GREEN, BLUE, WHITE),
        2: (GREEN, RED, WHITE, BLUE),
        3: (WHITE, BLUE, GREEN, RED),
        4: (BLUE, WHITE, RED, GREEN),
        5: (RED, BLUE, GREEN, WHITE),
        6: (BLUE, RED, WHITE, GREEN),
        7: (WHITE, GREEN, BLUE, RED),
        8: (GREEN, WHITE, RED, BLUE),
    }.items(),
)
def test_exif_orientation_is_applied(orientation, expected):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(Image.fromarray(quarters()), "PNG", exif=exif)
    assert corners(decode(data, 16)) == list(expected)


def test_exif_orientation_of_a_jpeg_read_at_reduced_scale():
    exif = Image.Exif()
    exif[0x0112] = 6
    big = Image.fromarray(quarters()).resize((1024, 512), Image.Resampling.NEAREST)
    got = np.array(corners(decode(saved(big, "JPEG", exif=exif, quality=95), 16)))
    assert np.abs(got - np.array([BLUE, RED, WHITE, GREEN])).max() < 12


@pytest.mark.parametrize(
    ("form", "options"), [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("PPM", {}), ("WEBP", {"lossless": True})]
)
def test_lossless_formats_give_their_pixels(form, options):
    assert (decode(saved(Image.fromarray(quarters()), form, **options), 16) == quarters()).all()


def test_lossy_webp_and_jpeg_are_near():
    for form in ("WEBP", "JPEG"):
        # Filtered colours bleed at the edges of the quarters; the corners are far from these.
        got = np.array(corners(decode(saved(Image.fromarray(quarters()), form, quality=95), 16)), int)
        assert np.abs(got - np.array([RED, GREEN, BLUE, WHITE])).max() < 25


def test_a_picture_is_stretched_not_cropped():
    wide = Image.fromarray(quarters()).resize((64, 16), Image.Resampling.NEAREST)
    assert corners(decode(saved(wide, "PNG"), 16)) == [RED, GREEN, BLUE, WHITE]


def test_making_smaller_is_anti_aliased():
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    small = decode(saved(Image.fromarray(board), "PNG"), 8)
    assert np.abs(small.astype(int) - 127.5).max() <= 2


def test_sixteen_bits_are_scaled_not_clipped():
    levels = np.array([[0, 257 * 64], [257 * 200, 65535]], np.uint16).repeat(8, 0).repeat(8, 1)
    image = Image.fromarray(levels)
    assert image.mode == "I;16"
    for form in ("PNG", "TIFF"):
        got = decode(saved(image, form), 16)
        assert [c[0] for c in corners(got)] == [0, 64, 200, 255]
        assert (got[..., 0] == got[..., 2]).all()


def test_whole_numbers_and_floats():
    def grey(values, dtype):
        image = Image.fromarray(np.asarray(values, dtype).repeat(8, 0).repeat(8, 1))
        return [c[0] for c in corners(decode(saved(image, "TIFF"), 16))]

    assert grey([[0, 257 * 10], [257 * 20, 65535]], np.int32) == [0, 10, 20, 255]
    assert grey([[-100, 0], [100, 155]], np.int32) == [0, 100, 200, 255]
    assert grey([[0, 0.2], [0.4, 1]], np.float32) == [0, 51, 102, 255]
    assert grey([[0, 20], [40, 255]], np.float32) == [0, 20, 40, 255]
    assert grey([[1000, 1051], [1102, 1255]], np.float32) == [0, 51, 102, 255]
    assert grey([[7, 7], [7, 7]], np.float32) == [7] * 4


def test_floats_that_are_no_numbers_are_refused():
    bad = saved(Image.fromarray(np.array([[np.nan, 1], [0, 1]], np.float32)), "TIFF")
    with pytest.raises(ValueError, match=r"^holds values that are not finite numbers"):
        decode(bad, 8)


def test_cmyk():
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert corners(decode(saved(image, "TIFF"), 16)) == [RED] * 4
    got = np.array(corners(decode(saved(image, "JPEG", quality=95), 16)))
    assert np.abs(got - RED).max() < 6


def test_transparency_becomes_white():
    pixels = np.dstack([quarters(), np.full((16, 16), 255, np.uint8)])
    pixels[:8, :8, 3] = 0
    pixels[8:, :8, 3] = 51
    # A fifth of blue on white: 255 - 51 = 204.
    expected = [WHITE, GREEN, (204, 204, 255), WHITE]
    for form, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})):
        assert corners(decode(saved(Image.fromarray(pixels), form, **options), 16)) == expected


def test_grey_with_alpha():
    image = Image.new("LA", (16, 16), (100, 255))
    image.paste((100, 0), (0, 0, 8, 8))
    assert corners(decode(saved(image, "PNG"), 16)) == [WHITE] + [(100, 100, 100)] * 3


def test_palette_with_and_without_transparency():
    image = Image.new("P", (16, 16), 1)
    image.putpalette([0, 0, 0, 10, 20, 30, 200, 100, 50])
    image.paste(2, (0, 0, 8, 8))
    assert corners(decode(saved(image, "PNG"), 16)) == [(200, 100, 50)] + [(10, 20, 30)] * 3
    assert corners(decode(saved(image, "PNG", transparency=2), 16)) == [WHITE] + [(10, 20, 30)] * 3
    assert corners(decode(saved(image, "GIF", transparency=2), 16)) == [WHITE] + [(10, 20, 30)] * 3


def test_grey_with_one_transparent_level_and_one_bit():
    image = Image.new("L", (16, 16), 80)
    image.paste(40, (0, 0, 8, 8))
    assert corners(decode(saved(image, "PNG", transparency=40), 16)) == [WHITE] + [(80,) * 3] * 3
    assert corners(decode(saved(Image.new("1", (16, 16), 1), "PNG"), 16)) == [WHITE] * 4


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, BLUE)]
    for form, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {})):
        data = saved(frames[0], form, save_all=True, append_images=frames[1:], **options)
        assert corners(decode(data, 16)) == [RED] * 4


def test_a_camera_file_of_two_pictures_is_read_as_its_first():
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, BLUE)]
    data = saved(frames[0], "MPO", save_all=True, append_images=frames[1:], quality=95)
    assert Image.open(io.BytesIO(data)).format == "MPO"
    assert np.abs(np.array(corners(decode(data, 16))) - RED).max() < 6


def test_a_large_jpeg_is_decoded_at_reduced_scale(monkeypatch):
    sizes = []
    draft = JpegImagePlugin.JpegImageFile.draft

    def watched(self, mode, size):
        draft(self, mode, size)
        sizes.append((size, self.size))

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "draft", watched)
    picture = Image.fromarray(quarters()).resize((1600, 1600), Image.Resampling.NEAREST)
    decode(saved(picture, "JPEG"), 64)
    assert sizes == [((128, 128), (200, 200))]


def test_path_and_bytes_give_the_same(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(quarters()).save(path)
    assert (decode(path, 8) == decode(path.read_bytes(), 8)).all()


def png_header(width, height):
    """A picture that claims to be large, in a few bytes."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


NOISE = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", r"^is empty \(0 bytes\)$"),
        (b"hello, this is text", "^is not an image of a supported format"),
        (b"%PDF-1.7 ...", "^is a PDF document$"),
        (b'<?xml version="1.0"?><svg xmlns="x"/>', "^is an SVG drawing"),
        (b"8BPS\0\1", "^is a Photoshop file"),
        (b"PK\x03\x04....", "^is a zip archive$"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "^is a HEIC photograph, which is not supported: save it as JPEG$"),
        (png_header(9000, 8000), "^has 72 million pixels, over the limit of 50 million$"),
        (png_header(60000, 60000), "^has more than .* million pixels, over the limit of 50 million$"),
        (saved(Image.fromarray(NOISE), "JPEG")[:900], "^is cut short"),
        (saved(Image.fromarray(NOISE), "PNG")[:900], "^is cut short"),
        (saved(Image.fromarray(NOISE), "WEBP")[:400], "^is (cut short|damaged|not a picture)"),
        (saved(Image.fromarray(NOISE), "BMP")[:900], "^is cut short"),
        (saved(Image.fromarray(NOISE), "TIFF")[:900], "^is (cut short|damaged|not a picture)"),
        (
            saved(Image.fromarray(NOISE), "PNG").replace(b"IDAT", b"IDAX"),
            "^is (damaged|cut short|not an image)",
        ),
    ],
)
def test_bad_files_have_a_reason(data, reason):
    with pytest.raises(ValueError, match=reason):
        decode(data, 16)


def test_a_flipped_bit_in_a_png_is_found():
    data = bytearray(saved(Image.fromarray(NOISE), "PNG"))
    data[len(data) // 2] ^= 1
    with pytest.raises(ValueError, match=r"^is damaged"):
        decode(bytes(data), 16)


def test_lab_colours():
    white = decode(saved(Image.new("LAB", (16, 16), (255, 128, 128)), "TIFF"), 16)
    assert white.min() >= 253


def test_a_missing_path_is_no_bad_picture(tmp_path):
    with pytest.raises(FileNotFoundError):
        decode(tmp_path / "none.png", 8)
