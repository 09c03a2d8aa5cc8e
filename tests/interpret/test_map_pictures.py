from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image

from offshelf.backbones.b_cosification import bcosify, refresh_statistics
from offshelf.backbones.load import load_backbone
from offshelf.interpret.map_pictures import (
    AGAINST,
    FOR,
    Mapped,
    drawn,
    enlarged,
    fitted,
    mapped,
    on_white,
    png,
    smoothing,
    two_coloured,
    views,
)
from offshelf.interpret.saliency import overlaid


def test_two_colours_by_hand() -> None:
    """Of 200 values the 99.5th percentile of the absolute ones lies between the two largest, 2 and 4 of them."""
    values = np.zeros((10, 20), np.float32)
    values[0, 0], values[0, 1], values[0, 2] = 4.0, -2.0, 1.0
    limit = 2 + 0.005 * 2  # place 0.995 * 199 = 198.005 of the sorted values
    shown = two_coloured(values)
    assert tuple(shown[:, 0, 0]) == FOR and tuple(shown[:, 5, 5]) == (255, 255, 255)
    assert np.allclose(shown[:, 0, 1], [255 + (c - 255) * 2 / limit for c in AGAINST], atol=0.5)
    assert np.allclose(shown[:, 0, 2], [255 + (c - 255) / limit for c in FOR], atol=0.5)
    assert (two_coloured(np.zeros((4, 4), np.float32)) == 255).all()
    lonely = np.zeros((40, 40), np.float32)
    lonely[0, 0] = -1e-3  # fewer than one in two hundred: the percentile is nought
    assert tuple(two_coloured(lonely)[:, 0, 0]) == AGAINST


def test_colours_on_white_by_hand() -> None:
    colours = np.zeros((4, 1, 3), np.float32)
    colours[0], colours[3, 0] = 1.0, [0, 0.5, 1]
    assert on_white(colours)[:, 0].T.tolist() == [[255, 255, 255], [255, 128, 128], [255, 0, 0]]


def test_small_maps_are_enlarged_by_whole_numbers_and_png_keeps_every_pixel() -> None:
    picture = np.arange(3 * 64 * 100, dtype=np.uint32).astype(np.uint8).reshape(3, 64, 100)
    large = enlarged(picture)
    assert large.shape == (3, 256, 400) and (large[:, 4:8, 8:12] == picture[:, 1, 2][:, None, None]).all()
    assert enlarged(large) is not None and enlarged(large).shape == large.shape
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png(large)))), np.moveaxis(large, 0, -1))
    assert fitted(picture, (64, 100)) is picture and fitted(picture, (32, 50)).shape == (3, 32, 50)


def test_the_box_of_the_paper_at_other_sizes() -> None:
    assert [smoothing(side) for side in (32, 64, 112, 224, 448)] == [3, 5, 7, 15, 31]


def test_what_is_drawn_of_each_method() -> None:
    picture = np.full((3, 32, 32), 100, np.uint8)
    heat = torch.zeros(2, 32, 32)
    heat[1, 8:16, 8:16] = 1.0
    shown = drawn("grad-cam", picture, Mapped(heat), 1)
    assert list(shown) == views("grad-cam") == ["grad-cam"]
    assert np.array_equal(shown["grad-cam"], enlarged(overlaid(picture, heat[1].numpy())))
    signed = drawn("input-x-gradient", picture, Mapped(-heat), 1)["input-x-gradient"]
    assert tuple(signed[:, 70, 70]) == AGAINST and tuple(signed[:, 0, 0]) == (255, 255, 255)


def test_contributions_come_with_colours_and_with_what_no_pixel_has() -> None:
    torch.manual_seed(0)
    model = bcosify(load_backbone("test_resnet.random", num_classes=3)).eval()
    x, classes = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([2, 0])
    refresh_statistics(model, [x])
    found = mapped("contributions", model, x, classes)
    assert found.colours is not None and found.colours.shape == (2, 4, 32, 32) and found.offset is not None
    with torch.no_grad():
        logits = model(x).gather(1, classes[:, None])[:, 0]
    torch.testing.assert_close(found.maps.sum(dim=(1, 2)) + found.offset, logits, rtol=1e-4, atol=1e-4)
    shown = drawn("contributions", np.zeros((3, 32, 32), np.uint8), found, 0)
    assert list(shown) == ["contributions", "contributions-signed"]
    assert np.array_equal(shown["contributions-signed"], enlarged(two_coloured(found.maps[0].numpy())))
    assert np.array_equal(shown["contributions"], enlarged(on_white(found.colours[0].numpy())))
    plain = mapped("input-x-gradient", model, x, classes)
    assert plain.colours is None and plain.offset is None
