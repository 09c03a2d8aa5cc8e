"""DICOM through pydicom (extra ``medical``): windowing, inverted greys and depth, to the eight bits of a screen."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch

from offshelf.data.depth import stretch
from offshelf.errors import ImageError, MissingExtra

# Files without the 128-byte preamble start with a group 2 or group 8 element, little endian.
BARE_STARTS = (b"\x02\x00\x00\x00", b"\x02\x00\x10\x00", b"\x08\x00\x00\x00", b"\x08\x00\x05\x00", b"\x08\x00\x08\x00")


def is_dicom(data: bytes) -> bool:
    """Whether the bytes start as a DICOM file does, with or without its preamble."""
    return data[128:132] == b"DICM" or data[:4] in BARE_STARTS


def decode_dicom(data: bytes, name: str, pixel_limit: int) -> torch.Tensor:
    """The first frame of a DICOM file.

    Steps: modality LUT (rescale slope and intercept), then VOI LUT or window, scaled to 0..255; without either the
    picture's own range, padding value left aside (8-bit data stay as they are); MONOCHROME1 is inverted so that large
    values are bright; colour is converted to RGB.

    Returns
    -------
    uint8 Tensor (1, H, W) for grey, (3, H, W) for colour.

    Raises
    ------
    ImageError
        No pixels, damaged, too large, or a compression that the installed decoders do not know.
    MissingExtra
        pydicom is not installed.
    """
    try:
        import pydicom
    except ImportError:
        raise MissingExtra(f"Reading the DICOM file {name}", "medical") from None
    try:
        header = pydicom.dcmread(io.BytesIO(data), force=True)
        height, width = int(header.get("Rows", 0)), int(header.get("Columns", 0))
    except Exception as error:  # pydicom raises many types on damaged files
        raise ImageError(name, "the DICOM header is damaged. Export the picture again") from error
    if not height or not width or "PixelData" not in header:
        raise ImageError(
            name, "a DICOM file without pixels (a report or a directory); expected a picture. Leave it out"
        )
    if height * width > pixel_limit:
        raise ImageError(
            name, f"{width:,} x {height:,} pixels are over the limit of {pixel_limit:,}; reduce it or leave it out"
        )
    try:
        return torch.from_numpy(np.ascontiguousarray(_pixels(header)))
    except Exception as error:
        syntax = getattr(getattr(header, "file_meta", None), "TransferSyntaxUID", None)
        kind = getattr(syntax, "name", None) or "unknown"
        raise ImageError(
            name, f"its pixels cannot be decoded (transfer syntax: {kind}). Export it uncompressed, or as PNG"
        ) from error


def _pixels(header: Any) -> np.ndarray:
    from pydicom.pixels import apply_color_lut, apply_modality_lut, pixel_array

    if not getattr(header, "file_meta", None) or "TransferSyntaxUID" not in header.file_meta:
        from pydicom.dataset import FileMetaDataset
        from pydicom.uid import ImplicitVRLittleEndian

        header.file_meta = getattr(header, "file_meta", None) or FileMetaDataset()
        header.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian  # what the standard assumes when none is named
    raw = pixel_array(header, index=0)  # colour comes out as RGB
    if header.PhotometricInterpretation == "PALETTE COLOR":
        coloured = apply_color_lut(raw, header)
        return stretch(coloured, 0, float(np.iinfo(coloured.dtype).max)).transpose(2, 0, 1)
    if raw.ndim == 3:
        top = 255.0 if int(header.BitsStored) <= 8 else 2.0 ** int(header.BitsStored) - 1
        return stretch(raw, 0, top).transpose(2, 0, 1)
    grey = _windowed(apply_modality_lut(raw, header), raw, header)
    return (255 - grey if header.PhotometricInterpretation == "MONOCHROME1" else grey)[None]


def _windowed(values: np.ndarray, raw: np.ndarray, header: Any) -> np.ndarray:
    """Grey values after the modality LUT, mapped to 0..255 as the file asks for it."""
    from pydicom.pixels import apply_voi, apply_windowing

    if header.get("WindowCenter") is not None and header.get("WindowWidth") is not None:
        with np.errstate(over="ignore"):  # the sigmoid at the far ends, where it is exactly 0 or 1
            bottom, top = apply_windowing(np.array([-1e9, 1e9]), header)
        return stretch(apply_windowing(values, header), float(min(bottom, top)), float(max(bottom, top)))
    if header.get("VOILUTSequence"):
        depth = int(header.VOILUTSequence[0].LUTDescriptor[2])
        return stretch(apply_voi(values.astype(np.int64), header), 0, 2.0**depth - 1)
    if values.dtype == np.uint8:
        return values
    padding = header.get("PixelPaddingValue")
    seen = values[raw != padding] if padding is not None and bool((raw != padding).any()) else values
    return stretch(values, float(seen.min()), float(seen.max()))
