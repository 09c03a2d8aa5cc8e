"""The linear map of a B-cos network: against the map written out, its completeness, and its picture."""

from __future__ import annotations

import math
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from offshelf.backbones.b_cosification import bcosify, refresh_statistics
from offshelf.errors import UsageError
from offshelf.interpret.b_cos_explanation import BCosExplanation, coloured, explain_b_cos


def network(name: str = "resnet18", **settings: Any) -> tuple[Any, torch.Tensor]:
    """A B-cos network whose logits differ between pictures, and pictures."""
    torch.manual_seed(0)
    sizes = {"layers": [1, 1, 1, 1]} if name == "resnet18" else {}
    model: Any = bcosify(timm.create_model(name, num_classes=5, **sizes), **settings)
    side = 160 if "vit" in name else 48
    pictures = torch.rand(3, 3, side, side)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 3)
    refresh_statistics(model, [pictures])
    model.get_classifier().weight.data *= 30
    return model.eval(), pictures


@pytest.mark.parametrize("name", ["resnet18", "test_convnext", "test_vit"])
def test_contributions_and_offset_are_the_logit(name: str) -> None:
    model, pictures = network(name)
    classes = torch.tensor([0, 3, 1])
    found = explain_b_cos(model, pictures, classes)
    expected = model(pictures)
    torch.testing.assert_close(found.logits, expected.detach())
    torch.testing.assert_close(found.logit, expected[torch.arange(3), classes].detach())
    total = found.contributions.sum((1, 2))
    assert total.abs().min() > 1e-3
    torch.testing.assert_close(total + found.offset, found.logit, rtol=0, atol=1e-4)
    assert found.remainder.abs().max() < 1e-3 * total.abs().max()
    if name == "test_vit":  # the position table has a part in the logit, and it is told apart
        assert (found.offset + math.log(4)).abs().min() > 1e-4
    else:
        torch.testing.assert_close(found.offset, torch.full((3,), -math.log(4)))


def test_completeness_holds_on_the_normalised_channels_and_not_on_the_raw_ones() -> None:
    model, pictures = network()
    found = explain_b_cos(model, pictures)
    z = model.encode(pictures)
    torch.testing.assert_close(found.contributions, (z * found.weights).sum(1))
    # by the raw [r, 1 - r], whose gradient is that of z over the deviation
    raw = torch.cat([pictures, 1 - pictures], dim=1)
    of_raw = found.weights / torch.cat([model.pixel_std, model.pixel_std], dim=1)
    missed = (raw * of_raw).sum((1, 2, 3)) + found.offset - found.logit
    assert missed.abs().min() > 100 * found.remainder.abs().max()
    assert torch.equal(found.classes, found.logits.argmax(1))


def test_it_is_the_map_itself_written_out_layer_by_layer() -> None:
    """Against W(x) as a product of matrices, since a plain gradient is complete as well (Euler's identity)."""
    torch.manual_seed(0)
    model: Any = bcosify(timm.create_model("resnet18", num_classes=2, layers=[1, 1, 1, 1])).double()

    class Small(type(model)):  # type: ignore[misc]
        """One convolution, a batch norm, ReLU and the classifier."""

        def forward_encoded(self, z: torch.Tensor) -> torch.Tensor:
            return self.forward_head(self.act1(self.bn1(self.conv1(z))))

    model.__class__ = Small
    model.eval()
    model.conv1.stride = (2, 2)
    model.conv1.weight.data = torch.randn(4, 6, 3, 3, dtype=torch.double)
    model.conv1.kernel_size, model.conv1.out_channels, model.conv1.padding = (3, 3), 4, (1, 1)
    bn, fc = model.bn1, model.fc
    bn.weight.data, bn.running_var = torch.rand(4).double() + 0.5, torch.rand(4).double() + 0.5
    fc.weight.data = torch.randn(2, 4, dtype=torch.double)
    pictures = torch.rand(1, 3, 6, 6, dtype=torch.double)
    z = model.encode(pictures)

    with torch.no_grad():
        windows = F.unfold(z, 3, padding=1, stride=2)[0].T  # (9 places, 54)
        kernels = model.conv1.weight.flatten(1)
        expected = torch.zeros(1, 54, 9, dtype=torch.double)
        for place, window in enumerate(windows):
            out = kernels @ window
            rows = (out.abs() / (window.square().sum() + 1e-6).sqrt())[:, None] * kernels  # (4, 54)
            rows = rows * (bn.weight / (bn.running_var + bn.eps).sqrt())[:, None]
            rows = rows * (rows @ window > 0)[:, None]
            hidden = rows @ window
            score = fc.weight[1] @ hidden
            expected[0, :, place] = (score.abs() / hidden.norm()) * (fc.weight[1] @ rows) / 9
        by_map = F.fold(expected, (6, 6), 3, padding=1, stride=2)
    found = explain_b_cos(model, pictures, torch.tensor([1]))
    torch.testing.assert_close(found.weights, by_map.float(), rtol=1e-4, atol=1e-6)
    z.requires_grad_()
    (plain,) = torch.autograd.grad(model.forward_encoded(z)[0, 1], z)
    assert (plain.float() - by_map.float()).abs().max() > 0.1 * by_map.abs().max()


def test_kept_biases_and_kept_layers_show_in_the_remainder() -> None:
    model, pictures = network(keep_bias=True)
    for module in model.modules():
        if isinstance(getattr(module, "bias", None), nn.Parameter):
            nn.init.normal_(module.bias)
    assert explain_b_cos(model, pictures).remainder.abs().min() > 1e-3
    model, pictures = network()
    assert explain_b_cos(model, pictures).remainder.abs().max() < 1e-4


def test_a_class_token_that_stays_is_accounted_for() -> None:
    model, pictures = network("test_vit", swap_head=False)
    nn.init.normal_(model.cls_token)
    found = explain_b_cos(model, pictures)
    assert found.remainder.abs().max() < 1e-4
    assert (found.offset + math.log(4)).abs().max() > 1e-3


def test_colours_by_hand() -> None:
    weights = torch.zeros(1, 6, 1, 2)
    weights[0, :, 0, 0] = torch.tensor([4.0, 1.0, -2.0, 4.0, 3.0, 2.0])
    weights[0, :, 0, 1] = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    contributions = torch.tensor([[[1.0, -1.0]]])
    found = coloured(weights, contributions, smooth=1)
    torch.testing.assert_close(found[0, :3, 0, 0], torch.tensor([0.5, 0.25, 0.0]))
    torch.testing.assert_close(found[0, 3, 0], torch.tensor([1.0, 0.0]), rtol=0, atol=1e-6)  # against the class: clear
    wide = coloured(weights.repeat(1, 1, 5, 3), contributions.repeat(1, 5, 3).abs(), smooth=3)
    assert wide.shape == (1, 4, 5, 6)
    assert float(wide.min()) >= 0 and float(wide.max()) == 1
    alone = coloured(torch.zeros(1, 6, 4, 4), torch.zeros(1, 4, 4), smooth=3)
    assert alone.isfinite().all() and not alone.any()


def test_colours_are_drawn_from_the_map_by_the_pixels() -> None:
    """As in the authors' code: normalising belongs to the map, so a channel of small spread weighs more."""
    model, pictures = network()
    found = explain_b_cos(model, pictures, smooth=5)
    mean = torch.cat([model.pixel_mean, 1 - model.pixel_mean], dim=1)
    by_pixel = (found.pixel_weights * (found.pixels - mean)).sum(dim=1)
    torch.testing.assert_close(by_pixel, found.contributions, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(found.pixels, torch.cat([pictures, 1 - pictures], dim=1))
    own = (found.pixel_weights * found.pixels).sum(dim=1)
    torch.testing.assert_close(found.colours, coloured(found.pixel_weights, own, smooth=5))
    assert not torch.allclose(found.colours, coloured(found.weights, found.contributions, smooth=5))


def test_the_network_is_left_as_it_was_and_gradients_off_do_not_matter() -> None:
    model, pictures = network()
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        found = explain_b_cos(model, pictures, smooth=5)
    assert isinstance(found, BCosExplanation) and found.smooth == 5
    assert found.colours.shape == (3, 4, 48, 48)
    assert model.training and model.bn1.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    one = explain_b_cos(model, pictures[1:2], found.classes[1:2])
    torch.testing.assert_close(one.contributions, found.contributions[1:2], rtol=1e-4, atol=1e-7)


def test_what_cannot_be_explained_is_refused() -> None:
    model, pictures = network()
    with pytest.raises(UsageError, match="ResNet is no B-cos network.*--b-cos 2"):
        explain_b_cos(timm.create_model("test_resnet"), pictures)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"values from -.*expected \[0, 1\].*normalises by itself"):
        explain_b_cos(model, pictures - 0.5)
    with pytest.raises(UsageError, match=r"torch.uint8 \(3, 3, 48, 48\); expected float"):
        explain_b_cos(model, (pictures * 255).byte())
    with pytest.raises(UsageError, match="expected a class number from 0 to 4 for each of 3 pictures"):
        explain_b_cos(model, pictures, torch.tensor([0, 1, 5]))
    with pytest.raises(UsageError, match="smooth=4: expected an odd number"):
        explain_b_cos(model, pictures, smooth=4)
