from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from offshelf.backbones.inception_v4 import inception_resnet
from offshelf.backbones.residual_scale import set_residual_scale
from offshelf.errors import BackboneError, UsageError
from offshelf.interpret.residual_scaling import residual_growth, residual_scaling_study
from offshelf.transfer.classification import ClassificationViews, LabelledPictures
from offshelf.transfer.watched_training import watched_training

VIEWS = ClassificationViews(16, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def small(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return inception_resnet("mini", repeats=(2, 1, 1), num_classes=2)


def made(n: int) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(n) % 2
    noise = np.random.default_rng(0).integers(0, 100, (n, 3, 16, 16))
    return (noise + 100 * labels[:, None, None, None]).astype(np.uint8), labels


def test_the_stream_against_the_blocks_called_one_by_one() -> None:
    model, x = small(0).train(), torch.randn(4, 3, 16, 16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    told = residual_growth(model, x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    expected = []
    with torch.no_grad():
        y = model.stem(x)  # type: ignore[operator]
        expected.append(float(y.square().mean().sqrt()))
        for stage in model.stages:  # type: ignore[union-attr]
            for layer in stage:
                y = layer(y)
                if hasattr(layer, "project"):
                    expected.append(float(y.square().mean().sqrt()))
    assert [told["entry"], *told["rms"]] == pytest.approx(expected, rel=1e-5)
    assert told["blocks"] == ["stages.0.0", "stages.0.1", "stages.1.1", "stages.2.1"]
    assert told["growth"] == pytest.approx(expected[-1] / expected[0], rel=1e-5)
    assert told["zero_share"] == pytest.approx(float((y == 0).float().mean()))


def test_growth_grows_with_the_scale_and_0_stands_still() -> None:
    torch.manual_seed(0)
    from claims.inception_v4 import WideStack

    model, x, found = WideStack(64, 6, 2), torch.randn(8, 3, 16, 16), {}
    for scale in (0.0, 0.1, 0.3, 1.0):
        set_residual_scale(model, scale)
        found[scale] = residual_growth(model, x)["growth"]
    assert found[0.0] == pytest.approx(1.0) and found[0.1] < found[0.3] < found[1.0]


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
def test_other_networks_have_a_stream_too(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=2).eval()
    side = model.pretrained_cfg["input_size"][-1]
    told = residual_growth(model, torch.randn(2, 3, side, side))
    assert len(told["rms"]) == len(told["blocks"]) > 1 and min(told["rms"]) > 0 and not model.training


def test_a_network_without_blocks_is_named() -> None:
    with pytest.raises(BackboneError, match="has no residual blocks, so there is no residual stream"):
        residual_growth(inception_resnet("mini-plain", repeats=(1, 1, 1)), torch.zeros(1, 3, 16, 16))


def test_a_study_by_its_parts() -> None:
    pixels, labels = made(24)
    about: dict[str, Any] = {"steps": 3, "batch_size": 8, "every": 2, "seeds": (0,), "test_pixels": pixels[:5]}
    runs = residual_scaling_study(small, (1.0, 0.1), (0.05,), pixels, labels, VIEWS, **about)
    assert [(run["scale"], run["learning_rate"], run["seed"]) for run in runs] == [(1.0, 0.05, 0), (0.1, 0.05, 0)]
    for run in runs:
        assert [one["step"] for one in run["stream"]] == [0, 2, 3]
        assert run["largest_growth"] == max(one["growth"] for one in run["stream"])
        assert run["spike"] >= 1 and run["diverged_at"] is None and not run["died"] and run["predicted"].shape == (5,)
        assert run["above_chance"] == (run["last_loss"] > math.log(2))
    assert runs[0]["growth_at_start"] > runs[1]["growth_at_start"]


def test_a_training_that_breaks_off_is_flagged() -> None:
    pixels, labels = made(24)
    (run,) = residual_scaling_study(
        small, (1.0,), (1e20,), pixels, labels, VIEWS, steps=6, batch_size=8, every=2, seeds=(0,)
    )
    assert run["diverged_at"] is not None and run["above_chance"] and run["last_loss"] is None


def test_nothing_to_study_is_refused() -> None:
    with pytest.raises(UsageError, match="at least one scale"):
        residual_scaling_study(small, (), (0.1,), *made(8), VIEWS)


def test_a_watched_training_against_a_loop_written_out() -> None:
    """Losses and gradient norms of three steps of SGD on the same batches."""
    from offshelf.engine.order import Order
    from offshelf.engine.recipe import Recipe

    pixels, labels = made(24)
    recipe = Recipe(
        optimiser="sgd", learning_rate=0.1, weight_decay=0.0, betas=(0.9, 0.9), batch_size=8, warmup=0.0, final_rate=1.0
    )
    data = LabelledPictures(pixels, labels, VIEWS, 2, seed=5)
    course = watched_training(small(3), data, recipe, 3, seed=5)
    model = small(3).train().to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True)
    order, losses, norms = Order(24, 8, 5), [], []
    for step in range(3):
        rows = [row for _, row in order.keys(step)]
        x = VIEWS.plain(pixels[rows]).contiguous(memory_format=torch.channels_last)
        loss = nn.functional.cross_entropy(model(x), torch.from_numpy(labels[rows]))
        optimiser.zero_grad()
        loss.backward()
        norms.append(math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None)))
        losses.append(float(loss.detach()))
        optimiser.step()
    assert course.losses == pytest.approx(losses, rel=1e-3) and course.gradient_norms == pytest.approx(norms, rel=1e-2)
