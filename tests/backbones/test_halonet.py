"""HaloNets: published counts of parameters, timm's own H1, any picture size, and every verb's way in and out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from offshelf.backbones import halonet
from offshelf.backbones.architectures import register_architectures
from offshelf.backbones.export import save_backbone
from offshelf.backbones.halo_attention import HaloAttention
from offshelf.backbones.load import load_backbone
from offshelf.backbones.parameter_groups import parameter_groups
from offshelf.errors import BackboneError, UsageError
from offshelf.jobs.common import Common
from tests.conftest import write_folder

register_architectures()
QUIET = Common(quiet=True)


def tiny(**settings: Any) -> nn.Module:
    """The tiny network with weights, running statistics and tables that all matter."""
    torch.manual_seed(0)
    return stirred(timm.create_model("halonet_tiny", **({"num_classes": 3} | settings)))


def stirred(model: nn.Module) -> nn.Module:
    """Norms away from their start, at which residual paths are switched off."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, 0, 0.1)
    return model.eval()


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "expected", "published"),
    [
        ("halonet_h0", 5_500_952, 5.5),
        ("halonet_h1", 8_100_056, 8.1),  # timm's own
        ("halonet_h2", 9_404_312, 9.4),
        ("halonet_h3", 11_841_304, 11.8),
        ("halonet_h4", 19_101_976, 19.1),
        ("halonet_h5", 30_717_272, 30.7),
        ("halonet_h6", 43_456_792, 43.4),  # 43.46: the paper cuts it off
        ("halonet_h7", 67_433_240, 67.4),
    ],
)
def test_published_counts(name: str, expected: int, published: float) -> None:
    model = timm.create_model(name, device="meta")
    assert count(model) == expected
    assert int(expected / 1e5) / 10 == published
    assert any(isinstance(module, HaloAttention) for module in model.modules()) is (name != "halonet_h1")


def test_wide_values_by_formula() -> None:
    """H5 counted by hand: every table, norm and kernel of the sheet's rules."""
    r_v, r_b, w = 2.5, 2, 14 + 4

    def bottleneck(inputs: int, c: int) -> int:
        out, v, d = r_b * c, int(r_v * c), c // 8
        attention = c * c + c * (c + v) + 2 * (2 * w - 1) * d
        projection = inputs * out + 2 * out if inputs != out else 0
        return inputs * c + 2 * c + attention + 2 * v + v * out + 2 * out + projection

    total, inputs = 3 * 64 * 49 + 2 * 64, 64
    for c, depth in ((64, 3), (128, 3), (256, 23), (512, 3)):
        for _ in range(depth):
            total, inputs = total + bottleneck(inputs, c), r_b * c
    total += inputs * 1536 + 2 * 1536 + 1536 * 1000 + 1000
    assert total == 30_717_272


def test_ours_with_the_settings_of_h1_is_timms_h1() -> None:
    torch.manual_seed(0)
    theirs = stirred(timm.create_model("halonet_h1", num_classes=7))
    ours = halonet.network(num_classes=7, compat="timm").eval()
    assert count(halonet.network(device="meta")) == 8_100_056
    ours.load_state_dict(theirs.state_dict())  # strictly: the same names and shapes
    x = torch.randn(1, 3, 256, 256)
    with torch.no_grad():
        out = theirs(x)
        torch.testing.assert_close(ours(x), out)
        assert float(out.std()) > 1e-3
        with pytest.raises(AssertionError):
            theirs(torch.randn(1, 3, 224, 224))
        assert ours(torch.randn(1, 3, 224, 224)).shape == (1, 7)


@torch.no_grad()
@pytest.mark.parametrize("side", [31, 50, 64])
def test_any_picture_size(side: int) -> None:
    model, half = tiny(), lambda n: -(-n // 2)  # noqa: E731
    x = torch.randn(2, 3, side, side)
    maps = model.forward_intermediates(x, intermediates_only=True)
    sides = [half(side), half(half(side)), half(half(half(side)))]
    assert [tuple(m.shape[1:]) for m in maps] == [(c, s, s) for c, s in zip((64, 128, 256), sides)]
    last, both = model.forward_intermediates(x, indices=1)
    torch.testing.assert_close(last, model.forward_features(x))
    torch.testing.assert_close(both[0], maps[2])
    only = timm.create_model("halonet_tiny", features_only=True).eval()
    renamed = {name.replace("stages.", "stages_"): value for name, value in model.state_dict().items()}
    assert only.load_state_dict(renamed, strict=False).missing_keys == []
    for found, expected in zip(only(x), maps, strict=True):
        torch.testing.assert_close(found, expected)
    assert (only.feature_info.channels(), only.feature_info.reduction()) == ([64, 128, 256], [2, 4, 8])


def test_blocks_that_do_not_divide_are_refused_without_padding() -> None:
    with pytest.raises(UsageError, match="13 x 13 positions: blocks of 4 x 4"):
        tiny(pad=False, strides=(1, 1, 2))(torch.randn(1, 3, 26, 26))


def test_stages_are_chosen_one_by_one() -> None:
    model = tiny(stages=("attention", "convolution", "attention"), block=(2, 4, 8), halo=(0, 1, 2), mask=True)
    found = {name: module for name, module in model.named_modules() if isinstance(module, HaloAttention)}
    assert [(name.split(".")[1], m.block_size, m.halo_size, m.mask) for name, m in found.items()] == [
        ("0", 2, 0, True),
        ("2", 8, 2, True),
        ("2", 8, 2, True),
    ]
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 3)
    no_attention = tiny(stages="convolution")
    assert not any(isinstance(module, HaloAttention) for module in no_attention.modules())


def test_wide_values_train() -> None:
    model = tiny(value_ratio=2.5).train()
    attention = model.stages[2][0].self_attn
    assert (attention.dim_out_v, attention.dim_out_qk) == (320, 128)
    assert model.stages[2][0].conv3_1x1.conv.weight.shape[:2] == (256, 320)
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert dead == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"widths": (8, 16)}, "2 values; expected one for each of 3 stages"),
        ({"block": (4, 4)}, "2 values; expected one, or one for each of 3 stages"),
        ({"stages": "atention"}, "'atention'; expected 'attention' or 'convolution'"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        tiny(**settings)


@torch.no_grad()
def test_saved_and_loaded_with_its_settings(tmp_path: Path) -> None:
    model, x = tiny(block=2, halo=(0, 1, 2), value_ratio=2.0, output_ratio=1.5), torch.randn(2, 3, 50, 50)
    again = load_backbone(save_backbone(model, tmp_path / "saved"), num_classes=None)
    torch.testing.assert_close(again(x), model(x))
    pooled = load_backbone(tmp_path / "saved")
    torch.testing.assert_close(pooled(x), model.forward_head(model.forward_features(x), pre_logits=True))
    assert (pooled.card.width, pooled.head_hidden_size, pooled.card.input_size) == (192, 192, (64, 64))


def test_random_weights_by_name() -> None:
    card = load_backbone("halonet_tiny.random").card
    assert (card.width, card.input_size, card.parameters) == (256, (64, 64), 328_800)
    with pytest.raises(BackboneError, match="no pre-trained weights are published"):
        load_backbone("halonet_h0")


def test_layers_move_at_their_own_rates() -> None:
    model = load_backbone("halonet_tiny.random", num_classes=2).requires_grad_(True)
    groups = parameter_groups(model, model, 1.0, 0.05, layer_decay=0.5)
    rates = {group["layer"]: group["lr"] for group in groups}
    assert rates == {-1: 1.0} | {layer: 0.5 ** (6 - layer) for layer in range(6)}  # stem and five bottlenecks
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


@torch.no_grad()
def test_bfloat16_and_checkpointed_gradients() -> None:
    model, x = tiny(), torch.randn(2, 3, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(x)
    torch.testing.assert_close(rough.float(), model(x), rtol=0.1, atol=0.1)
    with torch.enable_grad():
        model(x).sum().backward()
        plain = model.stem.conv.weight.grad.clone()
        model.zero_grad()
        model.set_grad_checkpointing(True)
        model(x.requires_grad_(True)).sum().backward()
    torch.testing.assert_close(model.stem.conv.weight.grad, plain)


# ---- through the verbs ---------------------------------------------------------------------------


def test_finetuned_at_a_size_that_blocks_do_not_divide(tmp_path: Path) -> None:
    from offshelf.jobs.finetune import finetune
    from offshelf.jobs.fit import fit
    from offshelf.jobs.predict import predict

    data = str(write_folder(tmp_path / "data", per_class=14))
    run = finetune(
        data, backbone="halonet_tiny.random", image_size=26, epochs=5, batch_size=12, learning_rate=1e-2,
        precision="fp32", out=tmp_path / "run", common=QUIET,
    )  # fmt: skip
    losses = [json.loads(line)["loss"] for line in (run.folder / "metrics.jsonl").read_text().splitlines() if line]
    assert losses[-1] < 0.7 * losses[0]
    assert run.results["arms"][0]["metrics"]["balanced_accuracy"]["value"] > 0.6
    assert len(predict(run.folder, [data], common=QUIET).table) == 42
    assert load_backbone(run.folder).card.input_size == (26, 26)
    fitted = fit(
        data, backbones=[str(run.folder)], heads=["logistic"], control="none", out=tmp_path / "fit", common=QUIET
    )
    assert fitted.results["arms"][0]["metrics"]["balanced_accuracy"]["value"] > 0.8


def test_pretrained_by_selfie_and_refused_by_spark(folder: Path, tmp_path: Path) -> None:
    from offshelf.jobs.pretrain import pretrain

    settings: dict[str, Any] = {"backbone": "halonet_tiny.random", "image_size": 64, "batch_size": 8, "probes": 1}
    run = pretrain(str(folder), method="selfie", steps=2, out=tmp_path / "run", common=QUIET, **settings)
    assert all(np.isfinite(one["loss"]) for one in run.results["history"])
    assert load_backbone(tmp_path / "run").card.architecture == "halonet_tiny"
    with pytest.raises(BackboneError, match="no sparse twin for HaloAttention"):
        pretrain(str(folder), method="spark", steps=2, out=tmp_path / "other", common=QUIET, **settings)
