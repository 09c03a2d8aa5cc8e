"""Parameter groups: nothing lost, decay where it belongs, and layer rates that reach the optimiser."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from offshelf.backbones.parameter_groups import parameter_groups


class Holder(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.token = nn.Parameter(torch.zeros(1, 1, 4))
        self.decoder = nn.Linear(4, 4)


def rates(groups: list[dict], module: nn.Module) -> dict[str, tuple[float, float]]:
    by_id = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    return {name: by_id[id(p)] for name, p in module.named_parameters() if id(p) in by_id}


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet", "densenet121"])
def test_every_trained_parameter_is_in_one_group(name: str) -> None:
    module = Holder(timm.create_model(name, num_classes=5))
    module.decoder.weight.requires_grad_(False)
    groups = parameter_groups(module, module.backbone, 1.0, 0.1, layer_decay=0.7)
    listed = [id(p) for group in groups for p in group["params"]]
    assert len(listed) == len(set(listed))
    assert set(listed) == {id(p) for p in module.parameters() if p.requires_grad}
    assert min(group["lr"] for group in groups) > 1e-4  # deep networks are grouped by stage


def test_layer_scales_of_twelve_blocks() -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32)
    found = rates(parameter_groups(model, model, 1.0, 0.05, layer_decay=0.55), model)
    assert found["patch_embed.proj.weight"] == pytest.approx((0.55**13, 0.05))
    assert found["pos_embed"] == pytest.approx((0.55**13, 0.0)) and found["cls_token"][1] == 0.0
    assert found["blocks.0.attn.qkv.weight"] == pytest.approx((0.55**12, 0.05))
    assert found["blocks.11.mlp.fc1.weight"] == pytest.approx((0.55, 0.05))
    assert found["head.weight"] == (1.0, 0.05) and found["head.bias"] == (1.0, 0.0)
    assert found["blocks.3.norm1.weight"][1] == 0.0


def test_without_layer_decay_all_move_alike_but_the_trunks_scale() -> None:
    model = timm.create_model("test_resnet", num_classes=3)
    found = rates(parameter_groups(model, model, 0.5, 0.05, trunk_scale=0.1), model)
    assert {rate for name, (rate, _) in found.items() if not name.startswith("fc.")} == {0.05}
    assert found["fc.weight"] == (0.5, 0.05)


def test_own_names_can_be_exempt_and_the_trunk_is_marked() -> None:
    module = Holder(timm.create_model("test_resnet", num_classes=0))
    groups = parameter_groups(module, module.backbone, 1.0, 0.1, exempt={"token"})
    found = rates(groups, module)
    assert found["token"] == (1.0, 0.0) and found["decoder.weight"] == (1.0, 0.1)
    trunk = {id(p) for group in groups if group["trunk"] for p in group["params"]}
    assert trunk == {id(p) for p in module.backbone.parameters()}


def test_the_optimiser_takes_the_scaled_rates() -> None:
    model = timm.create_model("test_vit", num_classes=3, img_size=64)
    groups = parameter_groups(model, model, 1e-3, 0.05, layer_decay=0.5)
    optimiser = torch.optim.AdamW(groups)
    assert len({round(group["lr"], 9) for group in optimiser.param_groups}) > 4
