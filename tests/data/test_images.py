"""Decoding: values of pixels for every kind of picture, one sentence for everything that is none."""

from __future__ import annotations

import io
import resource
import struct
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from offshelf.data.images import PIXEL_LIMIT, decode_image, read_bytes
from offshelf.errors import ImageError

RED, GREEN, BLUE, WHITE = [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]


def encode(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, depth: int, colour_type: int, rows: bytes = b"", packed: bytes = b"") -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", packed or zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def pixel(image: torch.Tensor, row: int = 0, column: int = 0) -> list[int]:
    return image[:, row, column].tolist()


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def quadrants() -> Image.Image:
    """16 x 32 pixels (width 32): red top left, green top right, blue bottom left, white bottom right."""
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :16], pixels[:8, 16:], pixels[8:, :16], pixels[8:, 16:] = RED, GREEN, BLUE, WHITE
    return Image.fromarray(pixels)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "TGA", "GIF", "WEBP", "JPEG2000", "AVIF", "JPEG"])
def test_every_format_gives_the_same_colours(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind in ("JPEG", "AVIF") else {}
    image = decode_image(encode(quadrants(), kind, **options))
    assert image.dtype == torch.uint8 and image.shape == (3, 16, 32)
    for place, colour in [((3, 4), RED), ((3, 27), GREEN), ((12, 4), BLUE), ((12, 27), WHITE)]:
        assert np.abs(np.array(pixel(image, *place)) - colour).max() <= (12 if kind in ("JPEG", "AVIF") else 0)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF"])
def test_grey_stays_one_channel(kind: str) -> None:
    image = decode_image(encode(Image.new("L", (5, 4), 77), kind))
    assert image.shape == (1, 4, 5) and (image == 77).all()


def test_one_bit() -> None:
    picture = Image.new("1", (9, 2))
    picture.putpixel((8, 1), 1)
    image = decode_image(encode(picture, "PNG"))
    assert image.shape == (1, 2, 9) and image[0, 1, 8] == 255 and image.sum() == 255


def test_cmyk_jpeg() -> None:
    image = decode_image(encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95))
    assert image.shape == (3, 16, 16)
    red, green, blue = pixel(image, 8, 8)
    assert red > 245 and green < 10 and blue < 10


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (8, 6), tuple(colour)) for colour in (RED, BLUE)]
    options = {"lossless": True} if kind == "WEBP" else {}
    image = decode_image(encode(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    assert image.shape == (3, 6, 8) and pixel(image) == RED


@pytest.mark.parametrize(
    ("orientation", "top_left"),
    [(1, RED), (2, GREEN), (3, WHITE), (4, BLUE), (5, RED), (6, BLUE), (7, WHITE), (8, GREEN)],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation(kind: str, orientation: int, top_left: list[int]) -> None:
    picture = quadrants().resize((64, 32), Image.Resampling.NEAREST)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    data = encode(picture, kind, exif=exif, **options)
    for at_least in (None, 8):
        image = decode_image(data, at_least=at_least)
        assert np.abs(np.array(pixel(image, 2, 2)) - top_left).max() <= 8
        assert (image.shape[1] > image.shape[2]) == (orientation >= 5)


def test_broken_exif_does_not_stop_the_picture() -> None:
    for kind in ("JPEG", "WEBP", "PNG"):
        data = encode(quadrants(), kind, exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff\x12")
        assert decode_image(data).shape == (3, 16, 32)
        assert decode_image(data, at_least=4).shape[0] == 3


def test_alpha_is_composited_on_white() -> None:
    picture = Image.new("RGBA", (3, 1))
    picture.putdata([(255, 0, 0, 0), (255, 0, 0, 255), (0, 0, 0, 51)])
    for kind in ("PNG", "TIFF"):
        image = decode_image(encode(picture, kind))
        assert [pixel(image, 0, x) for x in range(3)] == [WHITE, RED, [204, 204, 204]]
    grey = Image.new("LA", (2, 1))
    grey.putdata([(0, 0), (100, 255)])
    image = decode_image(encode(grey, "PNG"))
    assert image.shape == (1, 1, 2) and image.flatten().tolist() == [255, 100]


def test_palette_with_transparency() -> None:
    picture = Image.new("P", (3, 1))
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    picture.putdata([0, 1, 2])
    for kind, options in (
        ("PNG", {"transparency": 0}),
        ("GIF", {"transparency": 0}),
        ("PNG", {"transparency": b"\x00"}),
    ):
        image = decode_image(encode(picture, kind, **options))
        assert [pixel(image, 0, x) for x in range(3)] == [WHITE, GREEN, BLUE]
    assert pixel(decode_image(encode(picture, "PNG"))) == RED


def test_transparent_colour_of_a_plain_png() -> None:
    red = decode_image(encode(Image.new("RGB", (2, 2), (255, 0, 0)), "PNG", transparency=(255, 0, 0)))
    assert pixel(red) == WHITE
    grey = decode_image(encode(Image.new("L", (2, 2), 40), "PNG", transparency=40))
    assert grey.shape[0] == 1 and pixel(grey) == [255]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey(kind: str) -> None:
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    assert decode_image(encode(Image.fromarray(values), kind)).flatten().tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_twelve_bits_in_sixteen(kind: str) -> None:
    values = np.array([[0, 2048, 4095]], np.uint16)
    assert decode_image(encode(Image.fromarray(values), kind)).flatten().tolist() == [0, 128, 255]
    values[0, 2] = 4096  # one value more than twelve bits hold: the whole file is read as sixteen
    assert decode_image(encode(Image.fromarray(values), kind)).flatten().tolist() == [0, 8, 16]


def test_sixteen_bit_colour_and_alpha() -> None:
    colour = b"\0" + struct.pack(">6H", 65535, 0, 32896, 257, 257, 257)
    image = decode_image(png(2, 1, 16, 2, colour))
    assert [pixel(image, 0, x) for x in range(2)] == [[255, 0, 128], [1, 1, 1]]
    rgba = b"\0" + struct.pack(">8H", 65535, 0, 0, 0, 65535, 0, 0, 65535)
    image = decode_image(png(2, 1, 16, 6, rgba))
    assert [pixel(image, 0, x) for x in range(2)] == [WHITE, RED]
    grey = b"\0" + struct.pack(">4H", 0, 0, 65535, 65535)
    assert decode_image(png(2, 1, 16, 4, grey)).shape == (1, 1, 2)


def test_float_and_signed_tiff() -> None:
    floats = np.array([[0.0, 0.5, 1.0]], np.float32)
    assert decode_image(encode(Image.fromarray(floats), "TIFF")).flatten().tolist() == [0, 128, 255]
    plain = np.array([[0.0, 100.0, 200.0]], np.float32)
    assert decode_image(encode(Image.fromarray(plain), "TIFF")).flatten().tolist() == [0, 100, 200]
    holes = np.array([[np.nan, 0.5, np.inf, 1.0]], np.float32)
    assert decode_image(encode(Image.fromarray(holes), "TIFF")).flatten().tolist() == [0, 128, 0, 255]
    signed = np.array([[-1000, 0, 1000]], np.int32)
    assert decode_image(encode(Image.fromarray(signed), "TIFF")).flatten().tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    ("size", "at_least", "expected"),
    [
        ((400, 300), 64, (75, 100)),
        ((400, 300), 150, (150, 200)),
        ((400, 300), 151, (300, 400)),
        ((900, 801), 100, (101, 113)),
    ],
)
def test_reduced_decoding_keeps_the_short_side(size: tuple[int, int], at_least: int, expected: tuple[int, int]) -> None:
    ramp = np.linspace(0, 255, size[0]).astype(np.uint8)[None].repeat(size[1], 0)
    for mode in ("RGB", "L"):
        data = encode(Image.fromarray(ramp).convert(mode), "JPEG", quality=95)
        image = decode_image(data, at_least=at_least)
        assert tuple(image.shape) == (3 if mode == "RGB" else 1, *expected)
        assert min(image.shape[1:]) >= at_least
        assert abs(int(image[0, 0, -1]) - 255) < 8 and abs(float(image.float().mean()) - 127.5) < 3


def test_oversized_png_is_refused_at_once() -> None:
    packer = zlib.compressobj(1)  # one bit a pixel: a whole, valid file of 112 MB of rows in half a megabyte
    body = b"".join([packer.compress(b"\0" * 3_751 * 1_000) for _ in range(30)] + [packer.flush()])
    data = png(30_000, 30_000, 1, 0, packed=body)
    assert len(data) < 1_000_000
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with pytest.raises(ImageError, match=r"huge.png: 30,000 x 30,000 pixels are over the limit of 178,956,970"):
        decode_image(data, "huge.png")
    assert time.perf_counter() - started < 0.5
    assert (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000
    )  # kB; the pixels would be 900,000 and more


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "JPEG", "WEBP"])
def test_one_limit_for_every_format(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert PIXEL_LIMIT == 178_956_970
    monkeypatch.setattr("offshelf.data.images.PIXEL_LIMIT", 99)
    with pytest.raises(ImageError, match="10 x 10 pixels are over the limit of 99"):
        decode_image(encode(Image.new("RGB", (10, 10)), kind))
    assert decode_image(encode(Image.new("RGB", (11, 9)), kind)).shape == (3, 9, 11)
    assert Image.MAX_IMAGE_PIXELS == 89_478_485


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_truncated(kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encode(noise, kind)
    for keep in (len(data) // 2, len(data) * 9 // 10, 40):
        for at_least in (None, 16):
            with pytest.raises(ImageError) as caught:
                decode_image(data[:keep], "cut.x", at_least=at_least)
            assert (
                str(caught.value).startswith("cut.x: ")
                and "\n" not in str(caught.value)
                and ".cpp" not in str(caught.value)
            )
            assert caught.value.path == "cut.x"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"hello, this is text and no picture at all, but long enough for a header " * 5, "not a picture"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"></svg>', "SVG"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not a picture"),
        (b"\x89PNG\r\n\x1a\n", "picture"),
        (b"\xff\xd8\xff", "picture"),
        (b"\x00" * 5000, "not a picture"),
    ],
)
def test_not_a_picture(data: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=words) as caught:
        decode_image(data, "a/b.png")
    assert "\n" not in str(caught.value) and str(caught.value).startswith("a/b.png: ")


def test_png_profile_complaint_does_not_reach_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    data = encode(Image.new("RGB", (4, 4), (9, 8, 7)), "PNG", icc_profile=b"garbage" * 20)
    assert pixel(decode_image(data)) == [9, 8, 7]
    assert capfd.readouterr() == ("", "")


def test_threads_agree() -> None:
    pictures = [encode(quadrants(), kind) for kind in ("JPEG", "PNG", "TIFF", "GIF")] * 25
    alone = [decode_image(data) for data in pictures]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(decode_image, pictures))
    assert all(torch.equal(a, b) for a, b in zip(alone, together))


def test_read_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"abc")
    assert read_bytes({"bytes": b"xyz", "path": "nowhere.png"}) == b"xyz"
    assert read_bytes({"bytes": None, "path": str(tmp_path / "a.png")}) == b"abc"
    with pytest.raises(ImageError, match="no such file"):
        read_bytes({"bytes": None, "path": str(tmp_path / "b.png")})
    with pytest.raises(ImageError, match="cannot be opened"):
        read_bytes({"bytes": None, "path": str(tmp_path)})
    with pytest.raises(ImageError, match="neither"):
        read_bytes({"bytes": None, "path": None})
