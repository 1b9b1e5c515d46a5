"""Every kind of file that cameras, scanners and programs write, checked by pixel values."""

import importlib.util
import io
import re
import struct
import threading
import zlib

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin, TiffImagePlugin

from thaw.data import image_decoding
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


def tiff(*tags, pixels=b"", inner=()):
    """Write a little-endian TIFF by hand, of (tag, type, value) of one value each; ``inner`` is a second directory."""

    def directory(tags):
        return struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", t, k, 1, v) for t, k, v in tags) + bytes(4)

    if inner:
        tags = (*tags, (330, 4, 8 + len(pixels) + 6 + 12 * (len(tags) + 1)))
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + directory(tags) + directory(inner)


def grey_tiff(width, height, bits, photometric, pixels):
    tags = ((256, 3, width), (257, 3, height), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 8))
    return tiff(*tags, (277, 3, 1), (278, 3, height), (279, 4, len(pixels)), pixels=pixels)


PREVIEW = ((254, 4, 1), (256, 3, 1), (257, 3, 1), (258, 3, 8), (262, 3, 1), (273, 4, 8), (279, 4, 1))
RAW = "^is a RAW photograph .*develop it, and save it as JPEG or TIFF$"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", r"^is empty \(0 bytes\)$"),
        (bytes(5000), r"^holds nothing but zeros \(5000 bytes\)"),
        (b"hello, this is text", "^is not an image of a supported format, but a text that begins with 'hello, this"),
        ("größe;label\n".encode("latin-1") * 9, "^is not an image .* but a text that begins with 'gr"),
        (b"404 Not Found", "^is not an image of a supported format, but a text that begins with '404 Not Found'$"),
        (b'{"error": "denied"}', "^is not an image of a supported format, but a JSON file that begins with"),
        (b'<?xml version="1.0"?><Error>AccessDenied', "^is not an image of a supported format, but an XML file"),
        (b"\xef\xbb\xbf\n<!DOCTYPE html>\n<html>", "^is a web page, .*: download the image itself$"),
        (b"<!-- made by x --><HTML><body>", "^is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a", "^is a pointer of Git LFS.*git lfs pull$"),
        (b" \n", "^is empty but for spaces$"),
        (bytes(range(128, 256)) * 9, r"^is not an image of a supported format \(JPEG, PNG, .*AVIF\)$"),
        (b"%PDF-1.7 ...", "^is a PDF document$"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "^is a PostScript drawing"),
        (b'<?xml version="1.0"?><svg xmlns="x"/>', "^is an SVG drawing"),
        (b"8BPS\0\1", "^is a Photoshop file"),
        (b"PK\x03\x04....", "^is a zip archive$"),
        (b"\x1f\x8b\x08\0....", "^is compressed with gzip"),
        (b"\x93NUMPY\1\0", "^is a NumPy array"),
        (b"\x89HDF\r\n\x1a\n", "^is an HDF5 file"),
        (b"\0" * 128 + b"DICM", "^is a DICOM file"),
        (b"\0\0\1\0\1\0", "^is an icon"),
        (b"\0\5\x16\7\0\2\0\0Mac OS X", "^is a companion file of macOS"),
        (b"\xff\x0a\xfa\x1f", "^is a JPEG XL image, which is not supported: save it as PNG or JPEG$"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "^is a JPEG XL image"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "^is a JPEG 2000 image"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0", "^is a video: save its frames as images$"),
        (b"\0\0\0\x14ftypqt  ", "^is a video"),
        (b"\0\0\0\x08wide\0\0\0\0mdat", "^is a video"),
        (b"RIFF\x24\0\0\0AVI LIST", "^is a video"),
        (b"\x1a\x45\xdf\xa3\x9f\x42\x86\x81", "^is a video"),
        (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf", "^is (an AVIF image|damaged)"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1", RAW),
        (b"FUJIFILMCCD-RAW 0201", RAW),
        (b"II*\0\x10\0\0\0CR\2\0", RAW),
        (b"II*\0\x08\0\0\0IIII\x04waR" + bytes(40), RAW),  # IIQ
        (b"MM\0*\0\0\0\x08MMMMRawT" + bytes(40), RAW),
        (tiff(*PREVIEW, (50706, 4, 1025), pixels=b"x"), RAW),  # DNG
        (tiff(*PREVIEW, pixels=b"x", inner=((262, 3, 32803),)), RAW),  # NEF: the sensor is behind a preview
        (tiff(*PREVIEW[1:], pixels=b"x", inner=((259, 3, 32767),)), RAW),  # ARW
        (png_header(12000, 12000), "^has 12000 x 12000 pixels, which need 549 MB of memory .* the limit of 512 MB$"),
        (png_header(60000, 60000), "^has 60000 x 60000 pixels, which need 13,733 MB of memory .* limit of 512 MB$"),
        (saved(Image.fromarray(NOISE), "JPEG")[:900], "^is cut short"),
        (saved(Image.fromarray(NOISE), "JPEG")[:300], "^is cut short"),
        (saved(Image.fromarray(NOISE), "PNG")[:900], "^is cut short"),
        (saved(Image.fromarray(NOISE), "PNG")[:20], "^is (cut short|damaged)"),
        (saved(Image.fromarray(NOISE), "WEBP")[:400], "^is (cut short|damaged|a damaged WebP)"),
        (saved(Image.fromarray(NOISE), "BMP")[:900], "^is cut short"),
        (saved(Image.fromarray(NOISE), "TIFF")[:900], "^is (cut short|damaged)"),
        (tiff((305, 4, 1), (306, 4, 1)), "^is damaged: it begins as a TIFF image does, and its header is not complete"),
        (
            saved(Image.fromarray(NOISE), "PNG").replace(b"IDAT", b"IDAX"),
            "^is (damaged|cut short|not an image)",
        ),
    ],
)
def test_bad_files_have_a_reason(data, reason):
    with pytest.raises(ValueError, match=reason):
        decode(data, 16)


@pytest.mark.parametrize("by_libtiff", [False, True])
def test_tiffs_of_one_grey(by_libtiff, monkeypatch):
    """libtiff writes the pixels to where cameras write their names: 73 and 77 are the letters I and M."""
    monkeypatch.setattr(TiffImagePlugin, "WRITE_LIBTIFF", by_libtiff)
    for grey in range(256):
        data = saved(Image.new("L", (8, 8), grey), "TIFF")
        assert (data[8:12] == bytes([grey] * 4)) == by_libtiff
        assert (decode(data, 8) == grey).all()


@pytest.mark.parametrize("begin", [b"CR", b"CR\2", b"IIII", b"MMMM", b"IIIIaw", b"MMMMRaw"])
def test_tiffs_whose_pixels_resemble_the_names_of_cameras(begin):
    pixels = begin + bytes(64 - len(begin))
    expected = np.repeat(np.frombuffer(pixels, np.uint8).reshape(8, 8)[:, :, None], 3, axis=2)
    assert (decode(grey_tiff(8, 8, 8, 1, pixels), 8) == expected).all()


def test_channels_that_are_no_colors():
    """Five channels of a satellite; red, green, blue and two more, of which the first three are the picture."""
    five = Image.fromarray(quarters())
    tags = (256, 3, 4), (257, 3, 4), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 5), (279, 4, 80)
    with pytest.raises(ValueError, match=r"^is a TIFF of 5 channels of 8 bits, which is not supported: expected 1, 3"):
        decode(tiff(*tags, pixels=bytes(80)), 16)
    with pytest.raises(ValueError, match=r"^is a TIFF of 1 channel of 64 floating-point bits"):
        decode(tiff(*tags[:2], (258, 3, 64), *tags[3:6], (277, 3, 1), (339, 3, 3), pixels=bytes(128)), 16)
    with pytest.raises(
        ValueError, match=r"^is a TIFF of 3 channels of 8 bits, and how they are colors \(photometric 9"
    ):
        decode(tiff(*tags[:4], (262, 3, 9), (273, 4, 8), (277, 3, 3), (279, 4, 80), pixels=bytes(80)), 16)
    with pytest.raises(ValueError, match=r"^is a TIFF of compression 34712, which is not supported"):
        decode(tiff(*tags[:3], (259, 3, 34712), *tags[4:6], pixels=bytes(80)), 16)
    rgb = saved(five, "JPEG")
    frame = rgb.index(b"\xff\xc0")
    with pytest.raises(ValueError, match=r"^is a JPEG of 3 channels of 12 bits, which is not supported"):
        decode(rgb[: frame + 4] + b"\x0c" + rgb[frame + 5 :], 16)


def test_heic_names_its_reader():
    """Where it is not installed; where it is, the file below has no picture in it."""
    reason = r"^is a HEIC photograph: install its reader \(pip install pillow-heif\), or save it as JPEG$"
    if importlib.util.find_spec("pillow_heif"):
        reason = "^is damaged"
    for brand in (b"heic", b"heix", b"mif1"):
        with pytest.raises(ValueError, match=reason):
            decode(b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1heic", 16)


def test_avif_and_its_orientation():
    exif = Image.Exif()
    exif[0x0112] = 6
    big = Image.fromarray(quarters()).resize((64, 64), Image.Resampling.NEAREST)
    for options, expected in (({}, (RED, GREEN, BLUE, WHITE)), ({"exif": exif}, (BLUE, RED, WHITE, GREEN))):
        got = np.array(corners(decode(saved(big, "AVIF", quality=95, **options), 16)), int)
        assert np.abs(got - np.array(expected)).max() < 25


def test_grey_of_twelve_bits_and_white_zero():
    twelve = bytes.fromhex("000 fff 800 400".replace(" ", ""))  # black, white, half, a quarter
    assert decode(grey_tiff(4, 1, 12, 1, twelve), 4)[0, :, 0].tolist() == pytest.approx([0, 255, 128, 64], abs=12)
    plain = decode(grey_tiff(2, 2, 12, 1, bytes.fromhex("fff fff fff fff".replace(" ", ""))), 2)
    assert (plain == 255).all()
    for bits, dtype in ((8, np.uint8), (16, np.uint16)):
        levels = np.array([[0, 64], [200, 255]]).repeat(8, 0).repeat(8, 1) * (257 if bits == 16 else 1)
        data = grey_tiff(16, 16, bits, 0, levels.astype(dtype).tobytes())
        assert [c[0] for c in corners(decode(data, 16))] == [255, 191, 55, 0]


def test_sixteen_bits_of_color_are_their_upper_eight():
    """A PNG by hand, which Pillow cannot write."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    pixels = quarters().astype(">u2") * 256 + 255
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert (decode(data, 16) == quarters()).all()


def test_first_page_of_a_tiff():
    pages = [Image.new("RGB", (16, 16), color) for color in (RED, BLUE)]
    data = saved(pages[0], "TIFF", save_all=True, append_images=pages[1:], compression="tiff_lzw")
    assert corners(decode(data, 16)) == [RED] * 4


def test_preview_before_the_page():
    """Some scanners write a small preview first, and say so."""
    small, large = Image.new("RGB", (4, 4), RED), Image.new("RGB", (16, 16), BLUE)
    pages = [(small, {254: 1}), (large, {254: 0}), (small, {254: 0})]
    file = io.BytesIO()
    with TiffImagePlugin.AppendingTiffWriter(file, new=True) as writer:
        for page, tags in pages:
            page.save(writer, "TIFF", tiffinfo=tags)
            writer.newFrame()
    assert corners(decode(file.getvalue(), 16)) == [BLUE] * 4
    alone = saved(small, "TIFF", tiffinfo={254: 1})
    assert corners(decode(alone, 16)) == [RED] * 4


def test_a_photograph_of_60_megapixels():
    """It takes a 64th of its pixels in memory; a limit of one byte less refuses it."""
    data = saved(Image.new("L", (9504, 6336), 200), "JPEG")
    assert np.abs(decode(data, 64).astype(int) - 200).max() <= 2
    small = 1188 * 792
    # All its coefficients are counted too, two bytes each, of which three times as much may be.
    limit = 2 * 9504 * 6336 // 3
    assert small < limit
    decode(data, 64, limit)
    with pytest.raises(ValueError, match=r"^has 9504 x 6336 pixels, which need 115 MB .* the limit of 115 MB$"):
        decode(data, 64, limit - 1)


def resized_header(data, width, height):
    """A JPEG that says it has another size."""
    frame = re.search(rb"\xff[\xc0\xc2]", data).start()
    return data[: frame + 5] + struct.pack(">HH", height, width) + data[frame + 9 :]


@pytest.mark.parametrize("progressive", [False, True])
def test_jpegs_of_200_megapixels_are_not_refused(progressive):
    data = saved(Image.new("RGB", (16, 16)), "JPEG", progressive=progressive)
    assert decode(resized_header(data, 16384, 12288), 224).shape == (224, 224, 3)  # libjpeg fills up what is missing
    with pytest.raises(ValueError, match=r"^has 65000 x 65000 pixels, which need 24,176 MB"):
        decode(resized_header(data, 65000, 65000), 224)


def test_the_limit_is_one_of_memory():
    """Grey takes a quarter of the memory of colors; what is converted takes more."""
    for mode, bytes_each in (("L", 1), ("RGB", 4), ("P", 5), ("RGBA", 8)):
        data = saved(Image.new(mode, (100, 100)), "PNG")
        decode(data, 16, 10_000 * bytes_each)
        with pytest.raises(ValueError, match=r"^has 100 x 100 pixels, which need"):
            decode(data, 16, 10_000 * bytes_each - 1)


def test_large_images_are_decoded_one_at_a_time():
    """Eight threads would need eight times the memory; small images do not wait."""
    large = saved(Image.new("L", (8200, 8200), 9), "PNG")  # 67 MB
    done = []
    thread = threading.Thread(target=lambda: done.append(decode(large, 8)))
    with image_decoding._one_large_image:
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        assert decode(saved(Image.new("L", (50, 50)), "PNG"), 8).max() == 0
    thread.join()
    assert (done[0] == 9).all()


def test_pillows_own_limit_is_not_changed():
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(ValueError, match="cut short"):
        decode(png_header(10000, 10000), 16)
    assert before == Image.MAX_IMAGE_PIXELS


def test_bands_are_those_of_the_whole():
    """Converted some rows at a time, an image of more rows than one band has the same pixels."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (600, 40, 4), np.uint8))
    whole = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    assert (decode(saved(image, "PNG"), 32) == decode(saved(whole, "PNG"), 32)).all()
    deep = Image.fromarray(rng.integers(0, 65535, (600, 40), np.uint16))
    floats = Image.fromarray(np.asarray(deep).astype(np.float32)).resize(
        (32, 32), Image.Resampling.BICUBIC, reducing_gap=3
    )
    expected = np.clip(np.rint(np.asarray(floats) / 257), 0, 255)
    assert (decode(saved(deep, "PNG"), 32)[..., 0] == expected).all()


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
