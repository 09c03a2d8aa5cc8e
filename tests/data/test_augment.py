"""Augmentation of batches: an own draw for each picture, and the arithmetic of each operation."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from offshelf.data.augment import (
    affine,
    color_jitter,
    normalised,
    rand_augment,
    random_affine,
    random_boxes,
    random_flip,
    random_grayscale,
    random_resized_crop,
    random_shift,
    resized,
    resized_boxes,
)
from offshelf.data.picture_views import PictureViews
from offshelf.engine.draws import Draws


def pixels(n: int = 16, side: int = 40) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, 3, side, side)).astype(np.uint8))


OPERATIONS = {
    "crop": lambda x, d: random_resized_crop(x, d, 24),
    "flip": random_flip,
    "shift": lambda x, d: random_shift(x, d, 0.2),
    "affine": lambda x, d: random_affine(x.float() / 255, d, 10, 0.1, (0.9, 1.1)),
    "jitter": lambda x, d: color_jitter(x.float() / 255, d),
    "grey": lambda x, d: random_grayscale(x.float() / 255, d, 0.5),
    "rand-augment": rand_augment,
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_batch_equals_its_pictures_one_by_one_and_draws_differ(name: str) -> None:
    same = pixels(1).expand(16, -1, -1, -1).contiguous()
    together = OPERATIONS[name](same, Draws(0, 0, range(16)))
    for row in (0, 7, 15):
        alone = OPERATIONS[name](same[:1], Draws(0, 0, [row]))[0]
        assert torch.allclose(together[row].float(), alone.float(), atol=1e-5)
    assert len({one.numpy().tobytes() for one in together}) > 1, "one draw is shared by all pictures"


def test_rand_augment_leaves_the_global_generators_alone() -> None:
    random.seed(1), np.random.seed(1)
    expected = random.random(), np.random.rand()
    random.seed(1), np.random.seed(1)
    rand_augment(pixels(2), Draws(0, 0, range(2)))
    assert (random.random(), np.random.rand()) == expected


def test_boxes_keep_area_and_ratio_and_stay_inside() -> None:
    boxes = random_boxes(Draws(0, 0, range(4000)), (64, 64), (0.2, 1.0), (3 / 4, 4 / 3))
    top, left, height, width = boxes.T
    assert (top >= 0).all() and (left >= 0).all() and (top + height <= 64).all() and (left + width <= 64).all()
    share = height * width / 64**2
    assert 0.18 < share.min() < 0.25 and share.max() > 0.95 and 0.52 < share.mean() < 0.58  # wide boxes fit less often
    assert (width / height).min() > 0.70 and (width / height).max() < 1.42
    whole = random_boxes(Draws(0, 0, range(50)), (10, 100), (0.9, 1.0), (3 / 4, 4 / 3))  # nothing of that ratio fits
    assert np.array_equal(np.unique(whole, axis=0), [[0, 43, 10, 13]])


def test_a_crop_is_pils_resize_of_the_box() -> None:
    from PIL import Image

    x = pixels(1)
    cut = resized_boxes(x, np.array([[3, 5, 30, 20]]), 16)[0]
    picture = Image.fromarray(x[0, :, 3:33, 5:25].permute(1, 2, 0).numpy()).resize((16, 16), Image.Resampling.BICUBIC)
    apart = (cut * 255 - torch.from_numpy(np.array(picture)).permute(2, 0, 1)).abs()
    assert apart.mean() < 1 and apart.max() <= 4  # of 255: both round the two passes on their own


def test_resized_is_the_identity_at_its_own_size() -> None:
    x = pixels(2, 32)
    assert torch.equal(resized(x, 32), x.float() / 255)
    assert resized(x, 16).shape == (2, 3, 16, 16)


def test_affine_without_amplitude_is_the_identity_and_turns_counter_clockwise() -> None:
    x = torch.rand(2, 3, 20, 20)
    still = np.zeros(2), np.ones(2), np.zeros((2, 2))
    assert affine(x, *still) is x
    assert random_affine(x, Draws(0, 0, range(2))) is x
    turned = affine(x, np.full(2, np.pi / 2), still[1], still[2])
    assert torch.allclose(turned, torch.rot90(x, 1, (2, 3)), atol=1e-4)
    moved = affine(x, still[0], still[1], np.array([[0.25, 0.0], [0.0, 0.5]]))
    assert torch.allclose(moved[0, :, 5:], x[0, :, :15], atol=1e-4) and moved[0, :, :5].abs().max() < 1e-4
    assert torch.allclose(moved[1, :, :, 10:], x[1, :, :, :10], atol=1e-4)


def test_a_turn_and_back_restores_the_interior() -> None:
    smooth = F.interpolate(torch.rand(1, 3, 6, 6), (48, 48), mode="bicubic")
    there = affine(smooth, np.full(1, 0.15), np.ones(1), np.zeros((1, 2)))
    back = affine(there, np.full(1, -0.15), np.ones(1), np.zeros((1, 2)))
    assert (back - smooth)[:, :, 10:-10, 10:-10].abs().mean() < 0.01
    large = affine(smooth, np.zeros(1), np.full(1, 2.0), np.zeros((1, 2)))
    assert torch.allclose(large[:, :, ::2, ::2].mean(), smooth[:, :, 12:36, 12:36].mean(), atol=0.02)


def test_shift_repeats_edges_and_reaches_its_bound() -> None:
    x = torch.arange(10.0).view(1, 1, 1, 10).expand(200, 1, 10, 10).contiguous()
    moved = random_shift(x, Draws(0, 0, range(200)), 0.2)
    assert set(moved[:, 0, 0, 0].tolist()) == {0.0, 1.0, 2.0} and set(moved[:, 0, 0, -1].tolist()) == {7.0, 8.0, 9.0}


def test_flip_and_grey_hit_their_share() -> None:
    x = torch.rand(1, 3, 4, 4).expand(1000, -1, -1, -1)
    flipped = random_flip(x, Draws(0, 0, range(1000)), 0.3)
    assert 0.26 < np.mean([torch.equal(one, x[0].flip(-1)) for one in flipped]) < 0.34
    grey = random_grayscale(x, Draws(1, 0, range(1000)), 0.2)
    assert 0.16 < np.mean([torch.equal(one[0], one[1]) for one in grey]) < 0.24
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    one = random_grayscale(x[:1], Draws(0, 0, [0]), 1.0)[0, 0]
    assert torch.allclose(one, (x[0] * weights).sum(0), atol=1e-6)


def test_jitter_without_strength_is_the_identity_and_stays_in_range() -> None:
    x = torch.rand(50, 3, 8, 8)
    assert torch.allclose(color_jitter(x, Draws(0, 0, range(50)), 0, 0, 0), x, atol=1e-6)
    changed = color_jitter(x, Draws(0, 0, range(50)), 0.8, 0.8, 0.8)
    assert changed.min() >= 0 and changed.max() <= 1 and (changed - x).abs().mean() > 0.05


def test_normalised() -> None:
    x = torch.full((1, 3, 1, 1), 0.5)
    assert torch.allclose(normalised(x, (0.5, 0.25, 0.0), (0.5, 0.25, 0.5)).flatten(), torch.tensor([0.0, 1.0, 1.0]))


def test_a_batch_over_two_epochs_is_drawn_in_both() -> None:
    table = pixels(6, 16).numpy()

    def views(x: torch.Tensor, draws: Draws) -> dict[str, torch.Tensor]:
        return {"x": x, "u": torch.from_numpy(draws.uniform())}

    data = PictureViews(table, views, seed=2, labels=np.arange(6))
    batch = data.__getitems__([(0, 4), (1, 4), (1, 2)])
    assert batch["label"].tolist() == [4, 4, 2] and torch.equal(batch["x"][2], torch.from_numpy(table[2]))
    assert batch["u"].tolist() == [Draws(2, e, [r]).uniform()[0] for e, r in ((0, 4), (1, 4), (1, 2))]
