"""Damage to pictures: its strength in numbers, against a second writing, and that it is the same every time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from offshelf.data.corruptions import CORRUPTIONS, corrupt, parse_corruption
from offshelf.errors import UsageError
from tests.conftest import draw


@pytest.fixture
def picture() -> torch.Tensor:
    return torch.from_numpy(draw(2, 0, side=64)).permute(2, 0, 1).contiguous()


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_every_kind_damages_more_at_a_higher_severity_and_keeps_the_shape(kind: str, picture: torch.Tensor) -> None:
    damage = []
    for severity in (1, 3, 5):
        found = corrupt(picture, f"{kind}/{severity}", b"a")
        assert found.shape == picture.shape
        assert found.dtype == torch.uint8
        damage.append(float((found.float() - picture.float()).abs().mean()))
    assert 0 < damage[0] < damage[1] < damage[2]


def test_noise_has_the_published_deviation_and_hangs_on_the_picture_alone() -> None:
    grey = torch.full((3, 128, 128), 128, dtype=torch.uint8)
    found = corrupt(grey, "gaussian-noise/1", b"one")
    assert float(found.float().std()) == pytest.approx(0.08 * 255, rel=0.02)
    assert float(found.float().mean()) == pytest.approx(128, abs=0.5)
    assert torch.equal(found, corrupt(grey, "gaussian-noise/1", b"one"))
    assert not torch.equal(found, corrupt(grey, "gaussian-noise/1", b"two"))
    assert not torch.equal(found, corrupt(grey, "gaussian-noise/2", b"one"))


def test_contrast_by_hand() -> None:
    picture = torch.tensor([[[0, 100, 200]]], dtype=torch.uint8)  # mean 100, 0.2 of the distance is left
    assert corrupt(picture, "contrast/3").tolist() == [[[80, 100, 120]]]


def test_blur_is_scipys_at_a_width_that_goes_with_the_side(picture: torch.Tensor) -> None:
    found = corrupt(picture, "gaussian-blur/3").float().numpy()
    sigma = 3.0 * 64 / 224
    expected = np.stack([gaussian_filter(channel, sigma, mode="nearest") for channel in picture.float().numpy()])
    assert np.abs(found - expected).max() <= 1.0  # one level of rounding


def test_grey_pictures_stay_grey() -> None:
    grey = torch.from_numpy(draw(0, 1)[..., 0]).unsqueeze(0).contiguous()
    for kind in CORRUPTIONS:
        assert corrupt(grey, f"{kind}/3").shape == grey.shape


@pytest.mark.parametrize(
    ("text", "said"), [("gausian-noise/3", "gaussian-noise"), ("jpeg", "1 to 5"), ("jpeg/6", "1 to 5")]
)
def test_a_wrong_name_says_what_is_right(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_corruption(text)
