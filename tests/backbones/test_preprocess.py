from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from offshelf.backbones.load import load_backbone
from offshelf.backbones.preprocess import to_input
from offshelf.errors import UsageError


@pytest.fixture(scope="module")
def card():
    return load_backbone("test_resnet.random").card


def picture(height, width, grey, seed=0):
    """A PNG with edges and texture, and its pixels (C, h, w)."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    waves = np.stack([np.sin(rows / (5 + i)) * np.cos(columns / (9 - i)) for i in range(3)], -1)
    values = (127 + 80 * waves + 40 * (columns[..., None] > width / 2) + rng.normal(0, 12, (height, width, 3))).clip(
        0, 255
    )
    array = values.astype(np.uint8)[..., 0] if grey else values.astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(array).save(file, format="PNG")
    file.seek(0)
    image = Image.open(file)
    pixels = torch.from_numpy(np.array(image))
    return image, pixels[None] if grey else pixels.permute(2, 0, 1)


@pytest.mark.parametrize("grey", [True, False])
@pytest.mark.parametrize("size", [(300, 420), (421, 250), (120, 90), (160, 160)])
@pytest.mark.parametrize("settings", [("bilinear", 0.95), ("bicubic", 0.875), ("bicubic", 1.0)])
def test_crop_agrees_with_timms_evaluation_transform(card, grey, size, settings):
    interpolation, crop_pct = settings
    card = dataclasses.replace(card, interpolation=interpolation, crop_pct=crop_pct)
    image, pixels = picture(*size, grey)
    transform = create_transform(
        (3, *card.input_size), interpolation=interpolation, mean=card.mean, std=card.std, crop_pct=crop_pct
    )
    theirs, ours = transform(image.convert("RGB")), to_input(pixels, card, "crop")
    assert ours.shape == theirs.shape == (3, 160, 160) and ours.dtype == torch.float32
    level = (ours - theirs).abs() * torch.tensor(card.std).view(3, 1, 1)
    assert level.mean() < 0.1 / 255  # the bar is one level; a shift by one pixel costs more than ten
    assert level.max() < 3 / 255


def test_a_crop_larger_than_the_picture_is_filled_with_black(card):
    card = dataclasses.replace(card, crop_pct=1.15)
    image, pixels = picture(300, 300, False)
    transform = create_transform((3, 160, 160), interpolation="bilinear", mean=card.mean, std=card.std, crop_pct=1.15)
    theirs, ours = transform(image), to_input(pixels, card, "crop")
    assert (ours - theirs).abs().mean() * 0.5 < 0.1 / 255
    assert torch.all(ours[:, 0] == -1)  # (0 - 0.5) / 0.5


@pytest.mark.parametrize("grey", [True, False])
def test_a_shape_that_is_not_square_agrees_with_timm(card, grey):
    card = dataclasses.replace(card, input_size=(128, 192), crop_pct=0.9)
    image, pixels = picture(300, 420, grey)
    transform = create_transform((3, 128, 192), interpolation="bilinear", mean=card.mean, std=card.std, crop_pct=0.9)
    ours = to_input(pixels, card, "crop")
    assert ours.shape == (3, 128, 192)
    assert (ours - transform(image.convert("RGB"))).abs().mean() * 0.5 < 0.1 / 255


@pytest.mark.parametrize("grey", [True, False])
def test_squash_keeps_the_whole_picture(card, grey):
    image, pixels = picture(200, 500, grey)
    resized = np.array(image.convert("RGB").resize((160, 160), Image.Resampling.BILINEAR))
    ours = to_input(pixels, card)
    theirs = torch.from_numpy(resized).permute(2, 0, 1) / 255
    assert ((ours * 0.5 + 0.5) - theirs).abs().mean() < 0.1 / 255
    corner = torch.zeros(1, 200, 500, dtype=torch.uint8)
    corner[:, :, :100] = 255
    assert torch.all(to_input(corner, card)[:, 80, :28] == 1) and torch.all(to_input(corner, card, "crop")[:, 80] == -1)


def test_grey_is_the_same_in_all_three_channels_before_normalisation(card):
    card = dataclasses.replace(card, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    _, pixels = picture(200, 300, True)
    values = to_input(pixels, card) * torch.tensor(card.std).view(3, 1, 1) + torch.tensor(card.mean).view(3, 1, 1)
    assert torch.allclose(values[0], values[1], atol=1e-6) and torch.allclose(values[0], values[2], atol=1e-6)
    white = to_input(torch.full((1, 10, 10), 255, dtype=torch.uint8), card)
    assert torch.allclose(white[:, 0, 0], torch.tensor([0.9 / 0.4, 0.8 / 0.5, 0.7 / 0.6]))


@pytest.mark.parametrize(
    "wrong", [torch.zeros(3, 8, 8), torch.zeros(2, 8, 8, dtype=torch.uint8), torch.zeros(8, 8, dtype=torch.uint8)]
)
def test_other_tensors_are_refused(card, wrong):
    with pytest.raises(UsageError, match="expected uint8"):
        to_input(wrong, card)


def test_other_resizes_are_refused(card):
    with pytest.raises(UsageError, match="expected 'squash' or 'crop'"):
        to_input(torch.zeros(1, 8, 8, dtype=torch.uint8), card, "pad")
