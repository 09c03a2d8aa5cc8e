from __future__ import annotations

import math

import pytest
import torch

from offshelf.engine.collapse import collapsed, effective_rank, feature_numbers, normalised_std


def test_effective_rank_by_hand() -> None:
    assert effective_rank(torch.eye(5)) == pytest.approx(5)
    assert effective_rank(torch.ones(7, 3)) == pytest.approx(1)
    # singular values 3 and 1: shares 3/4 and 1/4, entropy 0.562335
    assert effective_rank(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(math.exp(0.562335), rel=1e-5)
    assert effective_rank(7 * torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(math.exp(0.562335), rel=1e-5)
    assert effective_rank(torch.zeros(4, 3)) == 0
    assert math.isnan(effective_rank(torch.tensor([[1.0, math.nan]])))


def test_identical_rows_are_one_direction_also_after_rounding() -> None:
    row = torch.randn(1, 32, generator=torch.Generator().manual_seed(0))
    rows = row.repeat(200, 1) * (1 + 1e-8 * torch.randn(200, 32, generator=torch.Generator().manual_seed(1)))
    assert effective_rank(rows) == pytest.approx(1, abs=1e-3)
    assert normalised_std(rows) == pytest.approx(0, abs=1e-6)
    assert "nearly the same for every picture" in (collapsed(feature_numbers(rows)) or "")


def test_isotropic_gaussians_use_all_directions() -> None:
    rows = torch.randn(4000, 16, generator=torch.Generator().manual_seed(0))
    assert effective_rank(rows) == pytest.approx(16, rel=0.01)
    assert normalised_std(rows) == pytest.approx(1, rel=0.01)
    assert collapsed(feature_numbers(rows)) is None


def test_normalised_std_by_hand() -> None:
    # unit rows (1, 0) and (0, 1) whatever their length: each dimension deviates by 1/2, times the root of 2
    assert normalised_std(torch.tensor([[5.0, 0.0], [0.0, 2.0]])) == pytest.approx(0.5 * math.sqrt(2))


def test_one_direction_is_a_collapse_though_signs_differ() -> None:
    direction = torch.randn(1, 16, generator=torch.Generator().manual_seed(0))
    signs = torch.tensor([1.0, -1.0]).repeat(50)[:, None]
    numbers = feature_numbers(signs * direction)
    assert numbers["feature_rank"] == pytest.approx(1, abs=1e-3)
    assert numbers["feature_std"] is not None and numbers["feature_std"] > 0.5
    assert "one direction" in (collapsed(numbers) or "")


@pytest.mark.parametrize(
    ("rank", "deviation", "said"),
    [
        (1.51, 0.011, None),
        (1.49, 0.5, "effective rank 1.49, below 1.5"),
        (9.0, 0.009, "deviation 0.0090, below 0.01"),
        (None, None, "no longer finite"),
    ],
)
def test_the_rule_at_its_thresholds(rank: float | None, deviation: float | None, said: str | None) -> None:
    answer = collapsed({"feature_rank": rank, "feature_std": deviation})
    assert answer is None if said is None else said in (answer or "")


def test_numbers_that_are_not_finite_are_none() -> None:
    assert feature_numbers(torch.tensor([[1.0, math.inf], [0.0, 1.0]])) == {"feature_rank": None, "feature_std": None}
