"""Networks that become B-cos networks: the function that is kept, what goes, and timm's interface afterwards."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from offshelf.backbones.architectures import register_architectures
from offshelf.backbones.b_cos_layers import BCosConv2d, BCosLinear, UncentredBatchNorm2d
from offshelf.backbones.b_cosification import BCosNetwork, bcosify, refresh_statistics
from offshelf.backbones.export import save_backbone
from offshelf.backbones.load import load_backbone
from offshelf.backbones.parameter_groups import parameter_groups
from offshelf.backbones.readout import read
from offshelf.errors import BackboneError, UsageError

# name -> side in pixels, and whether the original head is affine after a mean, so that reading places first is the same
NETWORKS = {
    "test_resnet": (32, True),
    "densenet": (32, True),
    "test_convnext": (32, False),
    "test_vit": (160, False),
    "test_byobnet": (32, True),
    "clip": (32, False),
}


def original(name: str, classes: int = 7, seed: int = 0) -> Any:
    """A network whose norms and biases are all in use."""
    torch.manual_seed(seed)
    if name == "clip":  # CLIP's ResNet, one block a stage
        from timm.models import byobnet

        blocks = tuple(byobnet.ByoBlockCfg(type="bottle", d=1, c=c, s=s, br=0.25) for c, s in ((64, 1), (128, 2)))
        config = byobnet.ByoModelCfg(
            blocks=blocks,
            stem_chs=(16, 16, 32),
            stem_type="",
            stem_pool="avg2",
            downsample="avg",
            aa_layer="avg",
            head_type="attn_abs",
        )
        model: Any = byobnet.ByobNet(config, num_classes=classes, img_size=32)
        model.pretrained_cfg = dict(timm.get_pretrained_cfg("resnet50_clip").to_dict(), input_size=(3, 32, 32))
    elif name == "densenet":
        model = timm.create_model("densenet121", num_classes=classes, growth_rate=8, block_config=(2, 2))
    else:
        model = timm.create_model(name, num_classes=classes)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


def normalised(model: Any, pictures: torch.Tensor) -> torch.Tensor:
    """As the original network takes them."""
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    return (pictures - mean) / std


@pytest.mark.parametrize("name", NETWORKS)
def test_with_b_1_and_all_else_kept_it_is_the_original_function(name: str) -> None:
    side, affine_head = NETWORKS[name]
    model, pictures = original(name), torch.rand(2, 3, side, side)
    kept = {"keep_bias": True, "swap_pool": False, "logit_offset": False, "keep_position": True}
    twin = bcosify(model, 1, swap_head=affine_head, **kept)
    expected = model(normalised(model, pictures))
    assert expected.std() > 0.01
    assert float((twin(pictures) - expected).abs().max()) < 1e-4
    assert twin.kept == ()
    assert not isinstance(model, BCosNetwork)
    assert float((bcosify(model)(pictures) - expected).abs().max()) > 1e-2  # B = 2 is another function


@pytest.mark.parametrize("name", NETWORKS)
def test_no_bias_survives_and_the_count_of_parameters_is_known(name: str) -> None:
    model = original(name)
    twin = bcosify(model)
    assert not [key for key, _ in twin.named_parameters() if key.rpartition(".")[2] == "bias"]
    biases = sum(p.numel() for key, p in model.named_parameters() if key.endswith("bias"))
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d)).weight.numel()
    tokens = {"test_vit": 2 * model.num_features, "clip": 0}  # class token and its row of the position table
    gone = tokens.get(name, 0) + (model.head.pos_embed.numel() if name == "clip" else 0)
    count = [sum(p.numel() for p in network.parameters()) for network in (model, twin)]
    assert count[1] == count[0] - biases + first - gone


@pytest.mark.parametrize("name", ["test_resnet", "densenet"])
def test_its_state_is_the_originals_without_biases_and_with_a_wider_first_layer(name: str) -> None:
    model = original(name)
    twin = bcosify(model)
    state = {key: value for key, value in model.state_dict().items() if key.rpartition(".")[2] != "bias"}
    assert set(state) == set(twin.state_dict())
    differs = [key for key, value in twin.state_dict().items() if value.shape != state[key].shape]
    assert len(differs) == 1
    first = state[differs[0]]
    torch.testing.assert_close(twin.state_dict()[differs[0]], torch.cat([first, -first], 1) / 2)
    state[differs[0]] = torch.cat([first, -first], 1) / 2
    assert twin.load_state_dict(state).missing_keys == []


def test_the_wider_first_layer_gives_the_same_numbers_at_the_border_too() -> None:
    model = original("test_resnet")
    twin: Any = bcosify(model, 1)
    pictures = torch.rand(2, 3, 9, 9)
    z = twin.encode(pictures)
    torch.testing.assert_close(z[:, 3:], -z[:, :3])
    torch.testing.assert_close(z[:, :3], normalised(model, pictures))
    assert float((twin.conv1[0](z) - model.conv1[0](z[:, :3])).abs().max()) < 2e-6


def test_pooling_and_head_are_swapped_as_told() -> None:
    pools = [type(m) for m in bcosify(original("test_resnet")).modules() if isinstance(m, nn.MaxPool2d)]
    assert pools == []
    assert any(isinstance(m, nn.MaxPool2d) for m in bcosify(original("test_resnet"), swap_pool=False).modules())
    twin: Any = bcosify(original("test_resnet"))
    features = torch.randn(2, 96, 3, 3)
    slow = [[twin.fc(features[i, :, r, c][None])[0] for r in range(3) for c in range(3)] for i in range(2)]
    expected = torch.stack([torch.stack(row).mean(0) for row in slow]) - math.log(6)
    torch.testing.assert_close(twin.forward_head(features), expected)
    torch.testing.assert_close(twin.forward_head(features, pre_logits=True), features.mean((2, 3)))
    pooled: Any = bcosify(original("test_resnet"), swap_head=False)
    torch.testing.assert_close(pooled.forward_head(features), pooled.fc(features.mean((2, 3))) - math.log(6))


def test_the_class_token_goes_and_the_position_table_stays() -> None:
    model = original("test_vit")
    twin: Any = bcosify(model)
    assert twin.cls_token is None and twin.num_prefix_tokens == 0
    torch.testing.assert_close(twin.pos_embed, model.pos_embed[:, 1:])
    tokens = torch.randn(2, 5, model.num_features)
    expected = torch.stack([twin.head(twin.fc_norm(tokens[:, i])) for i in range(5)]).mean(0) - math.log(6)
    torch.testing.assert_close(twin.forward_head(tokens), expected)
    assert bcosify(model, keep_position=False).pos_embed is None
    assert bcosify(model, swap_head=False).cls_token is not None
    assert type(twin.blocks[0].attn.qkv).__name__ == "DetachableLinear"
    assert twin.blocks[0].attn.qkv.still == 2 * model.num_features
    assert isinstance(twin.blocks[0].attn.proj, BCosLinear)


@pytest.mark.parametrize("name", NETWORKS)
def test_explaining_changes_no_value_and_puts_everything_back(name: str) -> None:
    side = NETWORKS[name][0]
    twin = bcosify(original(name))
    pictures = torch.rand(2, 3, side, side)
    refresh_statistics(twin, [pictures])
    expected = twin.eval()(pictures)
    twin.train()
    modes = [module.training for module in twin.modules()]
    with pytest.raises(ZeroDivisionError), twin.explaining() as inside:
        assert not any(module.training for module in inside.modules())
        torch.testing.assert_close(inside(pictures), expected, rtol=1e-5, atol=1e-6)
        raise ZeroDivisionError
    assert [module.training for module in twin.modules()] == modes
    assert not any(getattr(module, "detach", False) is True for module in twin.modules())


def test_unknown_layers_are_named_with_path_and_type_or_kept() -> None:
    model = timm.create_model("resnet18", num_classes=3, block_args={"attn_layer": "eca"}, layers=[1, 1, 1, 1])
    with pytest.raises(BackboneError, match=r"4 layers.*layer1.0.se \(timm.layers.eca.EcaModule\).*layer4.0.se.*keep"):
        bcosify(model)
    twin: Any = bcosify(model, unknown="keep")
    assert twin.kept == tuple(f"layer{i}.0.se" for i in range(1, 5))
    assert type(twin.layer1[0].se).__name__ == "EcaModule"
    assert twin(torch.rand(1, 3, 32, 32)).shape == (1, 3)
    grn = timm.create_model("convnextv2_atto", num_classes=3)
    with pytest.raises(BackboneError, match=r"stages.0.blocks.0.mlp \(timm.layers.mlp.GlobalResponseNormMlp\)"):
        bcosify(grn)
    odd = timm.create_model("resnet18", num_classes=3, layers=[1, 1, 1, 1])
    odd.layer2[0].conv1.padding_mode = "reflect"
    with pytest.raises(BackboneError, match=r"1 layers.*layer2.0.conv1 \(Conv2d\)"):
        bcosify(odd)


def test_what_it_does_not_take_is_refused() -> None:
    with pytest.raises(BackboneError, match="MlpMixer: .*knows the networks ResNet, DenseNet"):
        bcosify(timm.create_model("mixer_s32_224", num_classes=2))
    model = original("test_resnet")
    with pytest.raises(BackboneError, match="a B-cos network already"):
        bcosify(bcosify(model))
    with pytest.raises(UsageError, match=r"b=0.5: expected 1"):
        bcosify(model, 0.5)
    with pytest.raises(UsageError, match="unknown='drop': expected 'raise' or 'keep'"):
        bcosify(model, unknown="drop")  # type: ignore[arg-type]
    with pytest.raises(BackboneError, match="pools by 'max'.*swap_head=False"):
        bcosify(timm.create_model("test_resnet", global_pool="max"))
    with pytest.raises(BackboneError, match="its first convolution conv1.0 reads 1 channels"):
        bcosify(timm.create_model("test_resnet", in_chans=1))
    with pytest.raises(UsageError, match="global_pool='max': the classifier reads every place"):
        bcosify(model).reset_classifier(3, "max")
    with pytest.raises(UsageError, match="refresh_statistics: no batch was given"):
        refresh_statistics(bcosify(model), [])


def test_fresh_statistics_are_plain_means_and_nothing_else_moves() -> None:
    twin: Any = bcosify(original("test_resnet"))
    weights = copy.deepcopy({key: value for key, value in twin.named_parameters()})
    batches = [torch.rand(4, 3, 32, 32) for _ in range(3)]
    twin.train()
    refresh_statistics(twin, iter(batches))
    first = twin.bn1
    assert isinstance(first, UncentredBatchNorm2d) and first.momentum == 0.1
    with torch.no_grad():
        # the stem's convolutions are fed by norms in training mode, so that one pass is enough
        twin.bn1, seen = nn.Identity(), []
        twin.bn1.register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
        for module in twin.modules():
            module.training = isinstance(module, UncentredBatchNorm2d)
        for batch in batches:
            twin(batch)
    expected = torch.stack([output.var((0, 2, 3)) for output in seen]).mean(0)
    torch.testing.assert_close(first.running_var, expected)
    assert all(torch.equal(value, weights[key]) for key, value in twin.named_parameters() if key in weights)


def test_fresh_statistics_bring_a_vanished_signal_back() -> None:
    torch.manual_seed(0)
    twin: Any = bcosify(timm.create_model("resnet18", num_classes=5)).eval()
    pictures = torch.rand(8, 3, 32, 32)
    with torch.no_grad():
        stale = float((twin(pictures) - twin.offset).abs().max())
        refresh_statistics(twin, [pictures])
        fresh = float((twin(pictures) - twin.offset).abs().max())
    assert stale < 1e-5
    assert fresh > 1000 * stale


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit"])
def test_it_speaks_timms_interface(name: str) -> None:
    side = NETWORKS[name][0]
    model = original(name)
    twin: Any = bcosify(model)
    refresh_statistics(twin, [torch.rand(2, 3, side, side)])
    pictures = torch.rand(2, 3, side, side)
    features = twin.forward_features(pictures)
    assert features.shape[1:] == (model.forward_features(pictures)[:, 1:] if name == "test_vit" else features).shape[1:]
    torch.testing.assert_close(twin.forward_head(features), twin(pictures))
    last, maps = twin.forward_intermediates(pictures, indices=2, output_fmt="NCHW")
    assert len(maps) == 2 and all(found.ndim == 4 for found in maps)
    torch.testing.assert_close(last, features)
    assert read(twin, pictures).shape == (2, twin.head_hidden_size)
    torch.testing.assert_close(twin(pictures), twin.forward_encoded(twin.encode(pictures)))
    assert twin.offset == -math.log(6)
    twin.reset_classifier(4)
    head = twin.get_classifier()
    assert isinstance(head, BCosLinear) and head.bias is None and head.b == 2.0
    assert twin(pictures).shape == (2, 4) and twin.offset == -math.log(3)
    twin.reset_classifier(0)
    torch.testing.assert_close(twin(pictures), read(twin, pictures))  # no offset without classes
    assert twin.offset == 0
    groups = parameter_groups(twin.requires_grad_(True), twin, 1.0, 0.1, layer_decay=0.5)
    assert len({group["lr"] for group in groups}) > 3
    if name == "test_resnet":
        twin.set_grad_checkpointing(True)
        twin.train()(pictures).sum().backward()
        assert isinstance(twin.conv1[0], BCosConv2d) and twin.conv1[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["test_resnet.offshelf_finetune_cifar10", "test_vit.random"])
def test_a_folder_of_it_loads_again_with_the_same_outputs(name: str, tmp_path: Path) -> None:
    twin: Any = bcosify(load_backbone(name, num_classes=5), 1.5, swap_pool=False)
    assert twin.card.architecture == "b_cos" and twin.card.mean == (0.0, 0.0, 0.0)
    pictures = torch.rand(2, 3, *twin.card.input_size)
    save_backbone(twin, tmp_path)
    again: Any = load_backbone(tmp_path, num_classes=None)
    assert torch.equal(again(pictures), twin(pictures))
    assert (again.b, again.num_classes) == (1.5, 5)
    assert again.card.std == (1.0, 1.0, 1.0)
    assert again.card.weights_hash == twin.card.weights_hash
    assert load_backbone(tmp_path).num_classes == 0
    maps = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, features_only=True)
    assert all(found.ndim == 4 for found in maps(pictures))


def test_timm_builds_one_by_name() -> None:
    register_architectures()
    model = timm.create_model("b_cos", base="test_resnet", b=1.5, num_classes=3, logit_offset=False)
    assert isinstance(model, BCosNetwork) and (model.b, model.offset) == (1.5, 0.0)
    card: Any = load_backbone("b_cos.random").card
    assert (card.architecture, card.mean, card.width) == ("b_cos", (0.0, 0.0, 0.0), 512)


def test_half_precision_and_training_reach_every_parameter() -> None:
    twin = bcosify(original("test_vit")).requires_grad_(True).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = twin(torch.rand(2, 3, 160, 160)).float().square().mean()
    loss.backward()
    assert loss.isfinite()
    assert not [key for key, p in twin.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
