from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from offshelf.backbones.b_cosification import bcosify, refresh_statistics
from offshelf.backbones.load import load_backbone
from offshelf.errors import BackboneError, UsageError
from offshelf.interpret.attention_rollout import attention_rollout
from offshelf.interpret.explanations import EXPLANATIONS, check_methods, explain, input_x_gradient, serving
from offshelf.interpret.saliency import class_activation


def network(name: str, **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    model = load_backbone(name, num_classes=3, **settings)
    nn.init.normal_(model.get_classifier().weight)  # type: ignore[operator]
    return model


def pictures(n: int, side: int) -> torch.Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(1))


class Attends(nn.Module):
    """Attention with weights that are given."""

    def __init__(self, weights: list[list[float]]) -> None:
        super().__init__()
        self.weights, self.fused_attn, self.attn_drop = torch.tensor(weights), True, nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert not self.fused_attn
        return x + self.attn_drop(self.weights.expand(len(x), 2, -1, -1)).mean(dim=1) @ x


class Two(nn.Module):
    """Two layers over a class token and two patches."""

    num_prefix_tokens, global_pool = 1, "token"

    def __init__(self, *weights: list[list[float]]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Attends(one) for one in weights])

    def forward_intermediates(self, x, indices, output_fmt):  # type: ignore[no-untyped-def]
        tokens = torch.ones(len(x), 3, 4)
        for layer in self.layers:
            tokens = layer(tokens)
        return tokens, [tokens[:, 1:].transpose(1, 2).reshape(len(x), 4, 1, 2)]


def test_two_layers_rolled_out_by_hand() -> None:
    """First layer: the class token looks at patch 1, patch 1 at patch 2, patch 2 at itself. A1 = [[.5, .5, 0],
    [0, .5, .5], [0, 0, 1]]. Second layer: the class token looks at patch 2, patch 1 at itself, patch 2 at patch 1. A2 =
    [[.5, 0, .5], [0, 1, 0], [0, .5, .5]]. Row 0 of A2 A1 = .5 (.5, .5, 0) + .5 (0, 0, 1) = (.25, .25, .5)."""
    first, second = [[0.0, 1, 0], [0, 0, 1], [0, 0, 1]], [[0.0, 0, 1], [0, 1, 0], [0, 1, 0]]
    model = Two(first, second).eval()
    rolled = attention_rollout(model, torch.zeros(2, 3, 2, 4))
    torch.testing.assert_close(rolled, torch.tensor([[[0.25, 0.5]]]).expand(2, 1, 2))
    other_order = attention_rollout(Two(second, first).eval(), torch.zeros(1, 3, 2, 4))
    torch.testing.assert_close(other_order, torch.tensor([[[0.5, 0.25]]]))
    assert all(layer.fused_attn and not layer.attn_drop._forward_pre_hooks for layer in model.layers)
    model.global_pool = "avg"  # the mean of rows 1 and 2 of A2 A1: (0, .5, .5) and (0, .25, .75)
    torch.testing.assert_close(attention_rollout(model, torch.zeros(1, 3, 2, 4)), torch.tensor([[[0.375, 0.625]]]))


@pytest.mark.parametrize(("name", "side"), [("test_vit.random", 160), ("test_vit2.random", 64)])
def test_a_slow_loop_over_queries_and_keys_agrees(name: str, side: int) -> None:
    model: Any = network(name)
    x = pictures(2, side)
    caught: list[torch.Tensor] = []
    hooks = [block.attn.qkv.register_forward_hook(lambda m, i, out: caught.append(out)) for block in model.blocks]
    with torch.no_grad():
        model.forward_features(x)
    for hook in hooks:
        hook.remove()
    attention = model.blocks[0].attn
    rolled = []
    for row in range(2):
        product = np.eye(caught[0].shape[1])
        for qkv in caught:
            q, k, _ = qkv[row].double().view(-1, 3, attention.num_heads, attention.head_dim).permute(1, 2, 0, 3)
            weights = (q @ k.transpose(1, 2) * attention.head_dim**-0.5).softmax(dim=-1).mean(dim=0).numpy()
            mixed = weights + np.eye(len(weights))
            product = (mixed / mixed.sum(axis=1, keepdims=True)) @ product
        rolled.append(product[0] if model.global_pool == "token" else product[1:].mean(axis=0))
    found = attention_rollout(model, x)
    np.testing.assert_allclose(found.flatten(1).numpy(), np.array(rolled)[:, 1:], rtol=1e-4, atol=1e-6)
    assert 0 < float(found.sum()) < 2


def test_networks_whose_attention_cannot_be_rolled_out_are_refused() -> None:
    with pytest.raises(BackboneError, match="no layers of attention"):
        attention_rollout(network("test_resnet.random"), pictures(1, 64))
    with pytest.raises(BackboneError, match="neither a class token nor the mean"):
        attention_rollout(network("test_vit3.random"), pictures(1, 160))
    import timm

    windows = timm.create_model("swin_tiny_patch4_window7_224", img_size=64, window_size=4, depths=(1, 1, 1, 1))
    for layer in (one for one in windows.modules() if hasattr(one, "fused_attn")):
        layer.fused_attn = True
    with pytest.raises(BackboneError, match="not all of its layers attend over all tokens"):
        attention_rollout(windows.eval(), pictures(1, 64))
    assert all(layer.fused_attn for layer in windows.modules() if hasattr(layer, "fused_attn"))


def test_input_x_gradient_of_a_linear_network_is_its_contributions() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16, 4))
    x, classes = pictures(3, 4), torch.tensor([3, 0, 2])
    found = input_x_gradient(model, x, classes)
    weight = model[1].weight[classes].view(3, 3, 4, 4)
    torch.testing.assert_close(found, (weight * x).sum(dim=1).detach())
    torch.testing.assert_close(
        found.sum(dim=(1, 2)) + model[1].bias[classes], model(x).gather(1, classes[:, None])[:, 0]
    )
    assert not x.requires_grad and model[1].weight.grad is None


def test_input_x_gradient_by_finite_differences() -> None:
    model = network("test_resnet.random").double()
    x, classes = pictures(1, 32).double(), torch.tensor([1])
    found = input_x_gradient(model, x, classes)
    for row, column in ((3, 7), (20, 11)):
        step = torch.zeros_like(x)
        step[:, :, row, column] = x[:, :, row, column]
        with torch.no_grad():
            slope = (model(x + 1e-6 * step) - model(x - 1e-6 * step))[0, 1] / 2e-6
        assert float(found[0, row, column]) == pytest.approx(float(slope), rel=1e-3, abs=1e-6)


def test_explain_brings_every_map_to_the_size_of_the_picture_and_leaves_the_network() -> None:
    model = network("test_resnet.random").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x, classes = pictures(3, 64), torch.tensor([0, 1, 2])
    found = explain(model, x, classes)
    assert list(found) == ["grad-cam", "input-x-gradient"]
    assert model.training and all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    coarse = class_activation(model, x, classes)
    torch.testing.assert_close(
        found["grad-cam"], F.interpolate(coarse[:, None], (64, 64), mode="bilinear", align_corners=False)[:, 0]
    )
    assert (found["grad-cam"] >= 0).all() and (found["input-x-gradient"] < 0).any()
    assert all(maps.shape == (3, 64, 64) and maps.dtype == torch.float32 for maps in found.values())
    assert list(explain(model, x, classes, ["input-x-gradient"])) == ["input-x-gradient"]


def test_parts_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, classes = network("test_vit2.random"), pictures(3, 64), torch.tensor([0, 1, 2])
    whole = explain(model, x, classes)
    assert list(whole) == ["grad-cam", "attention-rollout", "input-x-gradient"]
    monkeypatch.setattr("offshelf.interpret.explanations.PIXELS_AT_ONCE", 64 * 64)
    for name, maps in explain(model, x, classes).items():
        torch.testing.assert_close(maps, whole[name], rtol=1e-4, atol=1e-5)


def test_which_methods_serve_and_why_the_others_do_not() -> None:
    names, refused = serving(network("test_vit.random"), pictures(1, 160))
    assert names == ["attention-rollout", "input-x-gradient"]
    assert "does not rest on its last map" in refused["grad-cam"]
    assert "exact in B-cos networks only" in refused["contributions"]
    assert set(names) | set(refused) == set(EXPLANATIONS)
    with pytest.raises(BackboneError, match="no layers of attention"):
        explain(network("test_resnet.random"), pictures(1, 64), torch.tensor([0]), ["attention-rollout"])


def test_contributions_are_a_b_cos_networks_own_and_sum_to_its_logit() -> None:
    model = bcosify(network("test_resnet.random")).eval()
    x, classes = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2])
    refresh_statistics(model, [x])
    found = explain(model, x, classes)
    assert list(found) == ["contributions", "grad-cam", "input-x-gradient"]
    with torch.no_grad():
        logits = model(x).gather(1, classes[:, None])[:, 0]
    torch.testing.assert_close(found["contributions"].sum(dim=(1, 2)) - np.log(2), logits, rtol=1e-4, atol=1e-4)
    # The plain gradient is another map; times the six channels it sums to the logit too (Euler), to the stabiliser.
    assert not torch.allclose(found["input-x-gradient"], found["contributions"], rtol=0.1, atol=1e-4)
    torch.testing.assert_close(
        found["input-x-gradient"].sum(dim=(1, 2)), found["contributions"].sum(dim=(1, 2)), rtol=0.05, atol=0.02
    )


def test_a_last_map_of_one_place_points_nowhere() -> None:
    model = network("test_resnet.random")
    names, refused = serving(model, pictures(1, 32))
    assert names == ["input-x-gradient"] and "at 32 x 32 pixels its last map is a single place" in refused["grad-cam"]


def test_wrong_names_are_answered_with_near_ones() -> None:
    assert check_methods(["grad-cam", "grad-cam"]) == check_methods("grad-cam") == ["grad-cam"]
    with pytest.raises(UsageError, match=r"'gradcam' is not known; did you mean 'grad-cam'\? expected any of"):
        check_methods(["gradcam"])
    with pytest.raises(UsageError, match="'xyz' is not known; expected any of"):
        check_methods(["xyz"])
