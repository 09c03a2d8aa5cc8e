"""DICOM: what a screen would show, by pixel."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")

from pydicom.dataset import Dataset, FileDataset, FileMetaDataset  # noqa: E402
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid  # noqa: E402

from offshelf.data.images import decode_image  # noqa: E402
from offshelf.errors import ImageError, MissingExtra  # noqa: E402


def dicom(
    values: np.ndarray, photometric: str = "MONOCHROME2", bits: int = 16, preamble: bool = True, **tags: object
) -> bytes:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset("x", {}, file_meta=meta, preamble=b"\0" * 128 if preamble else None)
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    frames = values.ndim == 3 and photometric != "RGB"
    file.Rows, file.Columns = values.shape[1:3] if frames else values.shape[:2]
    if frames:
        file.NumberOfFrames = len(values)
    file.SamplesPerPixel = 3 if photometric == "RGB" else 1
    if photometric == "RGB":
        file.PlanarConfiguration = 0
    file.PhotometricInterpretation = photometric
    file.BitsAllocated = values.dtype.itemsize * 8
    file.BitsStored, file.HighBit = bits, bits - 1
    file.PixelRepresentation = int(values.dtype.kind == "i")
    for name, value in tags.items():
        setattr(file, name, value)
    file.PixelData = values.tobytes()
    buffer = io.BytesIO()
    file.save_as(buffer, enforce_file_format=preamble)
    return buffer.getvalue()


def flat(data: bytes) -> list[int]:
    image = decode_image(data, "x.dcm")
    assert image.shape[0] == 1
    return image.flatten().tolist()


def test_own_range_and_monochrome1() -> None:
    values = np.array([[100, 600], [1100, 2100]], np.uint16)
    assert flat(dicom(values, bits=12)) == [0, 64, 128, 255]
    assert flat(dicom(values, "MONOCHROME1", bits=12)) == [255, 191, 127, 0]


def test_eight_bits_stay() -> None:
    values = np.array([[3, 7], [100, 200]], np.uint8)
    assert flat(dicom(values, bits=8)) == [3, 7, 100, 200]
    assert flat(dicom(values, "MONOCHROME1", bits=8)) == [252, 248, 155, 55]


def test_window_after_rescale() -> None:
    # Hounsfield = stored - 1024; window of centre 40 and width 400 shows -160 (black) to 239 (white).
    values = np.array([[0, 864], [1064, 1263]], np.uint16)
    tags = {"RescaleSlope": 1, "RescaleIntercept": -1024, "WindowCenter": 40, "WindowWidth": 400}
    expected = [0, 0, round(((40 - 39.5) / 399 + 0.5) * 255), 255]
    assert flat(dicom(values, bits=12, **tags)) == expected


def test_sigmoid_window() -> None:
    values = np.array([[0, 500], [1000, 1000]], np.uint16)
    tags = {"WindowCenter": 500, "WindowWidth": 200, "VOILUTFunction": "SIGMOID"}
    assert flat(dicom(values, bits=12, **tags)) == [0, 128, 255, 255]


def test_voi_lut() -> None:
    item = Dataset()
    item.LUTDescriptor = [4, 0, 8]
    item.add_new(0x00283006, "OW", np.array([0, 10, 200, 255], np.uint16).tobytes())
    assert flat(dicom(np.array([[0, 1], [2, 9]], np.uint16), bits=12, VOILUTSequence=[item])) == [0, 10, 200, 255]


def test_padding_is_left_out_of_the_range() -> None:
    values = np.array([[-2000, 0], [50, 100]], np.int16)
    assert flat(dicom(values, PixelPaddingValue=-2000)) == [0, 0, 128, 255]


def test_first_frame_colour_and_no_preamble() -> None:
    frames = np.stack([np.full((2, 2), 10, np.uint8), np.full((2, 2), 99, np.uint8)])
    assert flat(dicom(frames, bits=8)) == [10] * 4
    colour = np.zeros((2, 2, 3), np.uint8)
    colour[0, 0] = [1, 2, 3]
    image = decode_image(dicom(colour, "RGB", bits=8))
    assert image.shape == (3, 2, 2) and image[:, 0, 0].tolist() == [1, 2, 3]


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    good = dicom(np.zeros((8, 8), np.uint16), bits=12)
    with pytest.raises(ImageError, match="x.dcm: "):
        decode_image(good[:-60], "x.dcm")
    with pytest.raises(ImageError, match="x.dcm: "):
        decode_image(good[:200], "x.dcm")
    huge = dicom(np.zeros((8, 8), np.uint16), bits=12).replace(
        b"\x28\x00\x10\x00US\x02\x00\x08\x00", b"\x28\x00\x10\x00US\x02\x00\xff\xff"
    )
    huge = huge.replace(b"\x28\x00\x11\x00US\x02\x00\x08\x00", b"\x28\x00\x11\x00US\x02\x00\xff\xff")
    with pytest.raises(ImageError, match="65,535 x 65,535 pixels are over the limit"):
        decode_image(huge, "x.dcm")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(MissingExtra, match=r"offshelf\[medical\]"):
        decode_image(good, "x.dcm")
