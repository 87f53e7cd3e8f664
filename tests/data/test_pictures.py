"""Pictures as people see them, from files that Pillow wrote; and files that are none."""

import contextlib
import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from rdbcl_jax.data.pictures import FORMATS, MOST_PIXELS, check_header, decode

CORNERS = np.array([[10, 60, 110], [160, 210, 250]], np.uint8)  # no two alike


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def grey(picture):
    """The decoded pixels of a grey picture."""
    image = decode(picture)
    channels = np.asarray(image)
    assert image.mode == "RGB" and np.ptp(channels, axis=-1).max() == 0
    return channels[..., 0]


@pytest.mark.parametrize(
    "orientation,stored",
    [
        (1, CORNERS),
        (2, CORNERS[:, ::-1]),
        (3, CORNERS[::-1, ::-1]),
        (4, CORNERS[::-1]),
        (5, CORNERS.T),
        (6, np.rot90(CORNERS)),
        (7, CORNERS[::-1, ::-1].T),
        (8, np.rot90(CORNERS, -1)),
        (9, CORNERS),  # no such orientation
    ],
)
def test_exif_orientation_is_applied(orientation, stored):
    image = Image.fromarray(np.ascontiguousarray(stored))
    exif = image.getexif()
    exif[0x0112] = orientation
    for kind in ("PNG", "TIFF"):
        np.testing.assert_array_equal(grey(encoded(image, kind, exif=exif)), CORNERS)


def test_damaged_exif_leaves_the_picture_as_it_is():
    raw = encoded(Image.fromarray(CORNERS), exif=b"Exif\0\0" + b"II*\0" + b"\xff" * 9)
    np.testing.assert_array_equal(grey(raw), CORNERS)


def test_alpha_stands_on_white():
    half = Image.new("RGBA", (1, 1), (255, 0, 0, 128))
    assert decode(encoded(half)).getpixel((0, 0)) == (255, 127, 127)
    hidden = Image.new("RGBA", (1, 1), (0, 0, 0, 0))
    for mode in ("RGBA", "LA"):
        assert decode(encoded(hidden.convert(mode))).getpixel((0, 0)) == (255, 255, 255)
    assert decode(hidden).getpixel((0, 0)) == (255, 255, 255)


def test_a_transparent_colour_stands_on_white():
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 9, 8, 7])
    palette.putpixel((1, 0), 1)
    for kind in ("PNG", "GIF"):
        shown = decode(encoded(palette, kind, transparency=0))
        assert [shown.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (9, 8, 7)]
    rgb = Image.new("RGB", (1, 1), (1, 2, 3))
    assert decode(encoded(rgb, transparency=(1, 2, 3))).getpixel((0, 0)) == (255, 255, 255)


def test_16_bit_grey_keeps_its_range():
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    for kind in ("PNG", "TIFF"):
        assert grey(encoded(Image.fromarray(values), kind)).tolist() == [[0, 1, 128, 255]]


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_32_bit_grey_is_scaled_to_its_own_range(dtype):
    values = np.array([[-100, 0, 100]], dtype)
    assert grey(encoded(Image.fromarray(values), "TIFF")).tolist() == [[0, 128, 255]]
    assert grey(encoded(Image.fromarray(values * 0 + 7), "TIFF")).tolist() == [[0, 0, 0]]


def test_values_that_are_not_finite():
    values = np.array([[0, np.nan]], np.float32)
    with pytest.raises(ValueError, match="not finite"):
        decode(encoded(Image.fromarray(values), "TIFF"))


def test_cmyk_palette_bits_and_frames():
    cyan = encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG", quality=100)
    np.testing.assert_allclose(decode(cyan).getpixel((4, 4)), (0, 255, 255), atol=2)
    palette = Image.new("RGB", (1, 1), (12, 34, 56)).convert("P", palette=Image.Palette.ADAPTIVE)
    assert decode(encoded(palette)).getpixel((0, 0)) == (12, 34, 56)
    assert decode(encoded(Image.new("1", (1, 1), 1))).getpixel((0, 0)) == (255, 255, 255)
    first, second = Image.new("RGB", (2, 2), (255, 0, 0)), Image.new("RGB", (2, 2), (0, 0, 255))
    for kind in ("GIF", "PNG"):
        several = encoded(first, kind, save_all=True, append_images=[second])
        assert decode(several).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("kind", FORMATS)
def test_formats_that_are_read(kind):
    image = Image.new("RGB", (16, 16), (200, 30, 40))
    lossless = {"lossless": True} if kind == "WEBP" else {}
    shown = decode(encoded(image, kind, **lossless)).getpixel((8, 8))
    np.testing.assert_allclose(shown, (200, 30, 40), atol=3)


@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICO", "TGA", "PCX"])
def test_formats_that_are_not(kind):
    with pytest.raises(ValueError, match="as a picture, expected one of JPEG, PNG"):
        check_header(encoded(Image.new("RGB", (16, 16)), kind))


def test_the_number_of_pixels_is_limited_before_decoding():
    def png(width, height):  # a header alone
        header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
        size, check = struct.pack(">I", 13), struct.pack(">I", zlib.crc32(header))
        return b"\x89PNG\r\n\x1a\n" + size + header + check + struct.pack(">I", 0) + b"IDAT"

    check_header(png(MOST_PIXELS, 1))
    with pytest.raises(ValueError, match="0 x 5 pixels, expected at least 1 x 1"):
        check_header(Image.new("RGB", (0, 5)))
    with pytest.raises(ValueError, match=r"100000000 x 1 pixels, .* at most 89,478,485"):
        check_header(png(100_000_000, 1))
    with pytest.raises(ValueError, match=r"more than 89,478,485 pixels"):
        check_header(png(100_000, 100_000))


def test_only_regular_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", type(tmp_path)("/dev/zero"), tmp_path):
        with pytest.raises(ValueError, match="no regular file"):
            check_header(path)
    with pytest.raises(ValueError, match="no such file"):
        check_header(tmp_path / "none.png")
    with pytest.raises(ValueError, match="cannot be read"):
        check_header(tmp_path / "a\0b")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"])
def test_a_body_that_is_cut_off(kind):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    raw = encoded(Image.fromarray(noise), kind)
    cut = raw[: len(raw) * 2 // 3]
    with pytest.raises(ValueError, match=r"body cannot be decoded|cannot be read as a picture"):
        decode(cut)


def test_damaged_bytes_raise_nothing_but_value_errors():
    rng = np.random.default_rng(1)
    noise = Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8))
    for kind in FORMATS:
        raw = np.frombuffer(encoded(noise, kind), np.uint8)
        for _ in range(40):
            damaged = raw.copy()
            at = rng.integers(0, len(raw), 8)
            damaged[at] = rng.integers(0, 256, 8)
            with contextlib.suppress(ValueError):
                assert decode(damaged.tobytes()).mode == "RGB"
