"""Following one training: what is held, what is measured, and that arms share all else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from offshelf.evaluate.filter_arms import Question, arms_of, network
from offshelf.evaluate.filter_results import Judge, _epochs_to, sheet
from offshelf.evaluate.filter_training import (
    FilterRecipe,
    Followed,
    Pictures,
    dead_share,
    follow,
    output_variances,
    predicted,
)
from offshelf.interpret.filter_design import design_filters
from tests.conftest import draw

SETTINGS = {"filters": 8, "widths": (8, 8)}


def pictures(n: int = 36, side: int = 16) -> Pictures:
    def part(first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        table = np.stack([draw(i % 3, first + i, side).transpose(2, 0, 1) for i in range(count)])
        return table, np.arange(count) % 3

    return Pictures(*part(0, n), *part(1000, 12), *part(2000, 15), 3)


def trained(
    rule: str = "dct", epochs: int = 3, hold: str | int = "train", seed: int = 0
) -> tuple[Followed, torch.Tensor]:
    model = network(Question("initialisation"), SETTINGS, 3, seed)
    design = design_filters(model, rule, train=hold, seed=seed)  # type: ignore[arg-type]
    before = model.stem[0].weight.detach().clone()  # type: ignore[index, union-attr]
    recipe = FilterRecipe(epochs=epochs, batch_size=12)
    return follow(model, ["stem.0"], pictures(), recipe, design=design, seed=seed), before


def test_a_training_is_followed() -> None:
    one, before = trained()
    assert len(one.validation) == len(one.losses) == 3 and one.losses[-1] < one.losses[0]
    assert one.first is not None and one.last is not None and one.first.shape == one.last.shape == (15,)
    assert np.array_equal(one.last, predicted(one.model, pictures().test))
    after = one.model.stem[0].weight.detach()  # type: ignore[index, union-attr]
    assert one.travelled["stem.0"] == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-5) and (
        one.travelled["stem.0"] > 0
    )
    assert np.allclose(one.filters["stem.0"][1], after.numpy())
    grades = one.quality["stem.0"][0]
    assert grades["sparsity"] < 1 and 0 < grades["orthogonality"] <= 1
    again, _ = trained()
    assert again.losses == one.losses and np.array_equal(again.last, one.last)


def test_frozen_filters_stay_and_are_let_go() -> None:
    held, before = trained(hold="freeze")
    assert torch.equal(held.model.stem[0].weight, before) and held.travelled["stem.0"] == 0  # type: ignore[index, union-attr]
    whole, _ = trained(hold=3)
    assert whole.travelled["stem.0"] == 0  # let go when all is over
    late, _ = trained(hold=2)
    free, _ = trained()
    assert 0 < late.travelled["stem.0"] < free.travelled["stem.0"]
    assert late.losses[0] != free.losses[0] and held.losses[:2] == late.losses[:2]


def test_arms_of_one_seed_differ_in_their_filters_alone() -> None:
    one, two = (network(Question("initialisation"), SETTINGS, 3, seed=4) for _ in range(2))
    design_filters(two, "gabor")
    names = [n for (n, a), (_, b) in zip(one.state_dict().items(), two.state_dict().items()) if not torch.equal(a, b)]
    assert names == ["stem.0.weight"]
    given = Question("initialisation", backbone="test_resnet.random")
    seeds = [next(network(given, {}, 3, seed).parameters()) for seed in (0, 1)]
    assert not torch.equal(*seeds)


def test_zeros_never_learn() -> None:
    zero, _ = trained("zero")
    assert zero.dead["stem.0"] == (1.0, 1.0) and len(set(zero.last.tolist())) == 1  # type: ignore[union-attr]


def test_dead_filters_and_variances_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.copy_(torch.tensor([0.0, 1.0, -100.0, -100.0]))  # type: ignore[union-attr]
    x = torch.randn(8, 3, 5, 5).clamp(-3, 3)
    assert dead_share(model, "0", x) == 0.5
    found = output_variances(model.requires_grad_(False), x)
    assert found["0"] == pytest.approx(float(model[0](x).var()), rel=1e-5)
    assert found["2"] == pytest.approx(float(model(x).var()), rel=1e-5)
    assert dead_share(model, "2", x) == 0  # no non-linearity after it: its own output counts


def test_scores_by_hand() -> None:
    labels = np.array([0, 0, 0, 1])
    judge = Judge(labels, 2, None, 0)
    assert judge.value(np.array([0, 0, 1, 1])) == pytest.approx((2 / 3 + 1) / 2)
    same = [np.array([0, 0, 1, 1])] * 2
    cell = judge.difference(same, same)
    assert cell["value"] == 0 and cell["low"] is None  # of nothing there is no interval
    assert judge.differing(same, [np.array([0, 0, 0, 1]), np.array([0, 1, 1, 1])]) == 2
    assert _epochs_to(0.5, [0.2, 0.5, 0.4]) == 2 and _epochs_to(0.9, [0.2]) is None


def test_filters_as_a_picture() -> None:
    filters = np.zeros((3, 3, 2, 2))
    filters[0, 0, 0, 0], filters[1, :, 1, 1] = 2.0, -1.0
    page = sheet(filters, columns=2)
    assert page.shape == (5, 5, 4)
    assert page[0, 0].tolist() == [255, 128, 128, 255] and page[1, 4].tolist() == [0, 0, 0, 255]
    assert page[0, 2].tolist() == [0, 0, 0, 0] and page[3, 3, 3] == 0  # between filters, and where there is none
    assert page[3, 0].tolist() == [128, 128, 128, 255]  # a filter of zeros
    deep = np.zeros((1, 5, 3, 3))
    deep[0, 3] = np.eye(3)
    assert sheet(deep)[0, 0].tolist() == [255, 255, 255, 255]


def test_arms() -> None:
    size = arms_of(Question("size", (3, 5)), 32)
    assert [arm.name for arm in size] == ["3 x 3", "5 x 5"] and size[0].field == 38 and size[1].field == 68
    assert size[1].cost.parameters == pytest.approx(size[0].cost.parameters, rel=0.02)
    shape = arms_of(Question("shape", ("square", "cross"), size=3), 32)
    assert shape[1].settings["shape"] == shape[1].settings["stage_shape"] == "cross"
    assert [arm.rule for arm in arms_of(Question("initialisation", ("he", "unchanged")), 32)] == ["he", None]
