from __future__ import annotations

import pytest
import torch
from torch import nn

from offshelf.errors import UsageError
from offshelf.evaluate.multi_crop import multi_crop_probabilities, multi_crops


class Brightness(nn.Module):
    """Two logits: the mean of a crop, and 0."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(dim=(1, 2, 3))
        return torch.stack([mean, torch.zeros_like(mean)], dim=1)


@pytest.mark.parametrize("crops", [10, 12, 144])
def test_identical_crops_average_to_a_single_one(crops: int) -> None:
    picture = torch.full((3, 40, 52), 0.7)
    found = multi_crop_probabilities(Brightness(), [picture], 28, crops)  # type: ignore[arg-type]
    single = Brightness()(torch.full((1, 3, 28, 28), 0.7)).softmax(dim=1)
    assert multi_crops(picture, 28, crops).shape == (crops, 3, 28, 28)  # type: ignore[arg-type]
    assert torch.allclose(found, single, atol=1e-6)


def test_probabilities_are_averaged_and_not_logits() -> None:
    picture = torch.zeros(1, 8, 8)
    picture[:, :7, :7] = 4.0  # 8 is the side of the square for crops of 7: corners differ
    crops = multi_crops(picture, 7)
    each = Brightness()(crops).softmax(dim=1)
    model = Brightness().train()
    assert torch.allclose(multi_crop_probabilities(model, [picture], 7)[0], each.mean(dim=0))
    assert not torch.allclose(each.mean(dim=0), Brightness()(crops).mean(dim=0).softmax(dim=0), atol=1e-3)
    assert model.training


def test_ten_crops_by_hand() -> None:
    picture = torch.arange(64.0).view(1, 8, 8)
    crops = multi_crops(picture, 7)[:, 0]
    assert [float(crop[0, 0]) for crop in crops[:5]] == [0, 1, 8, 9, 0]  # corners, and the centre rounded down
    assert torch.equal(crops[5:], crops[:5].flip(-1))


def test_the_twelve_add_the_whole_square_shrunk() -> None:
    picture = torch.rand(3, 16, 24)
    crops = multi_crops(picture, 14, 12)
    assert torch.equal(crops[[0, 1, 2, 3, 4]], multi_crops(picture, 14)[:5])
    whole = torch.nn.functional.interpolate(picture[None, :, :, 4:20], (14, 14), mode="bicubic", antialias=True)[0]
    assert torch.equal(crops[5], whole) and torch.equal(crops[11], whole.flip(-1))


def test_the_144_see_both_ends_of_a_long_picture_at_four_scales() -> None:
    picture = torch.zeros(1, 48, 16)
    picture[:, :16], picture[:, 32:] = 1.0, 2.0
    means = multi_crops(picture, 14, 144).mean(dim=(1, 2, 3)).view(4, 3, 12)  # scale, square, crop
    assert torch.allclose(means[:, 0], torch.tensor(1.0), atol=0.08)
    assert torch.allclose(means[:, 1], torch.tensor(0.0), atol=0.2)
    assert torch.allclose(means[:, 2], torch.tensor(2.0), atol=0.16)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match="expected 10, 12 or 144"):
        multi_crops(torch.zeros(3, 8, 8), 7, 11)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"expected \(C, H, W\)"):
        multi_crops(torch.zeros(8, 8), 7)
    with pytest.raises(UsageError, match="no pictures"):
        multi_crop_probabilities(Brightness(), [], 7)
