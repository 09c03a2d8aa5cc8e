"""Encoded bytes in, uint8 tensors out: one picture at a time, upright, without alpha, within one pixel limit.

The header is read first, and it alone decides the way; the name of a file never does. torchvision decodes JPEG and
plain PNG, Pillow the rest (alpha, palettes, animations, TIFF, BMP, JPEG 2000, ...), pydicom DICOM.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from torchvision.io import ImageReadMode
from torchvision.io import decode_image as torchvision_decode

from offshelf.data.depth import composite_on_white, to_eight_bit
from offshelf.data.dicom import decode_dicom, is_dicom
from offshelf.errors import ImageError

PIXEL_LIMIT = 178_956_970  # twice Pillow's warning level: where Pillow itself would refuse; torchvision has no limit
# Formats that Pillow may try, in this order. No EPS, which would run Ghostscript; TGA is last, since it has no mark.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "JPEG2000", "AVIF", "ICO", "PPM", "PCX", "TGA")
ORIENTATION = 0x0112  # EXIF tag
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

Image.init()  # once, here: loading the format plugins later would race between threads


def read_bytes(image: dict[str, Any]) -> bytes:
    """The encoded bytes of one row's ``image``: those in the row, or those of its file.

    Raises
    ------
    ImageError
        The file is absent or cannot be read, or the row has neither bytes nor a path.
    """
    data, path = image.get("bytes"), image.get("path")
    if data is not None:
        return data
    if not path:
        raise ImageError("image", "has neither bytes nor a path; expected one of them in every row")
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise ImageError(path, "no such file; expected a picture here. Check the path or drop the row") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(path, f"cannot be opened ({reason}); expected a readable file") from error


def decode_image(data: bytes, name: str = "image", at_least: int | None = None) -> torch.Tensor:
    """Decode one picture.

    EXIF orientation is applied; alpha and transparent palettes are composited on white; of an animation the first frame
    is taken. 16-bit data are scaled by 65,535, or by 4,095 when no value exceeds that (12-bit data in a 16-bit file).

    Parameters
    ----------
    data : bytes
        The encoded picture.
    name : str
        What to call it in an error.
    at_least : int, optional
        When the short side of a JPEG is at least twice this many pixels, decode at 1/2, 1/4 or 1/8 of its size, the
        smallest that keeps the short side at or above ``at_least``; several times faster for large photographs.

    Returns
    -------
    uint8 Tensor (C, H, W), C = 1 for grey and 3 for RGB.

    Raises
    ------
    ImageError
        Empty, truncated, too large, or not a picture. Safe to call from several threads.
    """
    if not data:
        raise ImageError(name, "the file is empty (0 bytes); expected a picture")
    _silence_libraries()
    if is_dicom(data):
        return decode_dicom(data, name, PIXEL_LIMIT)
    header = _open(data, name)
    check_size(header.size, name, PIXEL_LIMIT)
    try:
        if isinstance(header, JpegImageFile):
            return _decode_jpeg(data, header, at_least)
        if isinstance(header, PngImageFile) and _is_plain_png(data, header):
            return _decode_png(data)
        return _decode_with_pillow(header)
    except Exception as error:  # decoders raise a zoo of types on damaged data; every one becomes one sentence
        raise ImageError(name, _reason(error)) from error


def check_size(size: tuple[int, int], name: str, limit: int) -> None:
    """Refuse a picture of more than ``limit`` pixels before any memory is taken for it; ``size`` = (width, height)."""
    width, height = size
    if width * height > limit:
        raise ImageError(
            name, f"{width:,} x {height:,} pixels are over the limit of {limit:,}; reduce the picture or leave it out"
        )


def _silence_libraries() -> None:
    """Let no warning of the decoders out; entered again when a program has put its own filters in front.

    One filter for good and not ``catch_warnings`` around each picture, which is not safe between threads.
    torchvision.io announces at every call that it will move to torchcodec in some later release.
    """
    for module in (r"PIL\.", r"pydicom\.", r"torchvision\.io"):
        entry = ("ignore", None, Warning, re.compile(module), 0)
        if entry not in warnings.filters:
            warnings.filterwarnings("ignore", module=module)


def _open(data: bytes, name: str) -> ImageFile.ImageFile:
    """Read the header. Not ``Image.open``, whose own limit warns earlier and does not name width and height."""
    for format_name in FORMATS:
        if format_name not in Image.OPEN:
            continue  # this Pillow was built without it
        factory, accept = Image.OPEN[format_name]
        maker = JpegImageFile if format_name == "JPEG" else factory  # the JPEG factory would look for further pictures
        try:
            accepted = accept(data[:16]) if accept else True
            if not accepted or isinstance(accepted, str):
                continue
            return maker(io.BytesIO(data), "")
        except (SyntaxError, IndexError, TypeError, KeyError, struct.error):
            continue  # the mark fits, the header does not: perhaps another format's
        except Exception as error:
            raise ImageError(name, _reason(error)) from error
    raise ImageError(name, _unknown(data))


def _unknown(data: bytes) -> str:
    head = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    formats = "expected JPEG, PNG, WebP, GIF, TIFF, BMP, JPEG 2000, AVIF or DICOM"
    if b"<svg" in head:
        return f"an SVG drawing, not a pixel picture; {formats}. Export it as PNG"
    if head[:1] == b"<":
        return f"a web page or XML text, not a picture; {formats}. Download or export it again"
    if b"ftyphei" in data[:16] or b"ftypmif1" in data[:16]:
        return f"an HEIC picture, which is not supported; {formats}. Export it as JPEG"
    return f"not a picture in a format that can be read, or its header is damaged; {formats}"


def _reason(error: Exception) -> str:
    text = str(error).lower()
    if isinstance(error, MemoryError):
        return "too large for the memory that is free; reduce the picture or leave it out"
    if any(word in text for word in ("truncat", "eof", "end of", "not enough", "incomplete", "buffer")):
        return "the file is truncated: its header is that of a picture, but pixels are missing. Copy or export it again"
    return "the picture is damaged and cannot be decoded. Copy or export it again"


def _decode_jpeg(data: bytes, header: JpegImageFile, at_least: int | None) -> torch.Tensor:
    if at_least is not None and at_least > 0 and min(header.size) >= 2 * at_least:
        header.draft(None, (at_least, at_least))  # None: leave the colour mode as it is
        return _decode_with_pillow(header)
    mode = ImageReadMode.GRAY if header.mode == "L" else ImageReadMode.RGB
    try:
        return torchvision_decode(_tensor(data), mode=mode, apply_exif_orientation=True)
    except RuntimeError:  # a colour space that torchvision does not know, or damage, which raises there as well
        return _decode_with_pillow(header)


def _is_plain_png(data: bytes, header: PngImageFile) -> bool:
    """Whether libpng through torchvision gives what we want: no palette, no 8-bit alpha, upright, one frame."""
    depth, colour_type = data[24], data[25]
    if "exif" in header.info or "Raw profile type exif" in header.info or getattr(header, "is_animated", False):
        return False
    if depth == 16:
        return "transparency" not in header.info
    return depth == 8 and colour_type in (0, 2) and "transparency" not in header.info


def _decode_png(data: bytes) -> torch.Tensor:
    pixels = torchvision_decode(_tensor(_critical_chunks(data)), mode=ImageReadMode.UNCHANGED)
    if pixels.dtype == torch.uint8:
        return pixels
    values = pixels.to(torch.int32).numpy()
    colour, alpha = (values[:-1], values[-1:]) if len(values) in (2, 4) else (values, None)
    eight = to_eight_bit(colour, integer_bits=16)
    if alpha is not None:
        eight = composite_on_white(eight, alpha / 65_535)
    return torch.from_numpy(eight)


def _critical_chunks(data: bytes) -> bytes:
    """The PNG without its extra chunks: libpng prints complaints about colour profiles straight to the terminal."""
    kept, position = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    view = memoryview(data)
    while position + 12 <= len(data):
        end = position + 12 + int.from_bytes(view[position : position + 4], "big")
        if bytes(view[position + 4 : position + 8]) in (b"IHDR", b"IDAT", b"IEND"):
            kept.append(bytes(view[position:end]))
        position = end
    return b"".join(kept)


def _tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _decode_with_pillow(image: Image.Image) -> torch.Tensor:
    frame: Image.Image = image
    frame.load()  # first frame of an animation
    if _orientation(frame) != 1:
        frame = ImageOps.exif_transpose(frame)
    if frame.mode in ("F", "I") or frame.mode.startswith("I;"):
        bits = 16 if frame.mode.startswith("I;16") else None
        return torch.from_numpy(to_eight_bit(np.array(frame), integer_bits=bits)[None])
    has_alpha = frame.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in frame.info
    grey = frame.mode in ("1", "L", "LA", "La")
    if not has_alpha:
        flat = np.array(frame.convert("L" if grey else "RGB"))
        return torch.from_numpy(flat)[None] if grey else torch.from_numpy(flat).permute(2, 0, 1)
    pixels = np.array(frame.convert("RGBA")).transpose(2, 0, 1)
    colour = pixels[:1] if grey else pixels[:3]
    return torch.from_numpy(composite_on_white(colour, pixels[3:] / 255.0))


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 (upright) when there is none or when the EXIF block is broken, as viewers do."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except (OSError, ValueError, SyntaxError, TypeError, KeyError, IndexError, struct.error):
        return 1
    return value if value in range(1, 9) else 1
