from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from offshelf.backbones import route as route_module
from offshelf.backbones.card import weights_hash
from offshelf.backbones.fold import fold_batch_norms
from offshelf.backbones.load import load_backbone
from offshelf.backbones.route import FastNetwork, agreement, cpu_signature, has_bf16, prepare
from offshelf.errors import UsageError


def pictures(n, size=96, seed=0):
    """Smooth pictures that differ from each other, normalised."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(n, 3, 6, 6, generator=generator) * 1.5
    return nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")


def norms(model):
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.fixture
def with_bf16(monkeypatch):
    """bfloat16 is computed right on every processor, only slowly on most."""
    monkeypatch.setattr(route_module, "has_bf16", lambda device=None: True)


# folding


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("test_resnet", 1.0),
        ("test_byobnet", 1.0),
        ("test_efficientnet", 1.0),
        ("mobilenetv3_small_100", 1.0),
        ("regnety_002", 1.0),
        ("densenet121", 59 / 121),  # the others follow a concatenation
        ("vgg11_bn", 1.0),
        ("repvgg_a0", None),  # branches without a convolution keep theirs
        ("tf_efficientnet_b0", 1.0),  # convolutions that pad for themselves
    ],
)
def test_folding_is_exact(seeded, name, share):
    model = seeded(name, num_classes=0)
    x = pictures(2, 224 if name.startswith("vgg") else 96)
    before = model(x)
    folded = copy.deepcopy(model)
    count = fold_batch_norms(folded, x[:1])
    assert norms(folded) == norms(model) - count
    assert count == round(share * norms(model)) if share is not None else 0 < count < norms(model)
    assert (folded(x) - before).abs().max() <= 1e-4 * before.abs().max()


class Tiny(nn.Module):
    """A network whose shape each test chooses."""

    num_classes = 0

    def __init__(self, forward, **modules):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self._rule = forward
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.fill_(0.3)
                module.running_var.fill_(2.0)
        self.eval().requires_grad_(False)

    def forward_features(self, x):
        return self._rule(self, x)

    def forward_head(self, x, pre_logits=False):
        return x.mean((2, 3))


def conv(channels=4):
    return nn.Conv2d(3, channels, 3, bias=False)


def test_a_hand_worked_pair():
    model = Tiny(lambda m, x: m.bn(m.conv(x)), conv=nn.Conv2d(3, 1, 1), bn=nn.BatchNorm2d(1, eps=0.0))
    model.conv.weight.fill_(1.0)
    model.conv.bias.fill_(0.5)
    model.bn.running_var.fill_(4.0)
    model.bn.weight.fill_(3.0)
    model.bn.bias.fill_(0.25)
    assert fold_batch_norms(model, torch.ones(1, 3, 2, 2)) == 1
    assert torch.allclose(model.conv.weight, torch.tensor(1.5))  # 3 / sqrt(4)
    assert torch.allclose(model.conv.bias, torch.tensor(1.5 * (0.5 - 0.3) + 0.25))


def test_pairs_that_must_stay():
    x = torch.rand(1, 3, 8, 8)
    norm = lambda: nn.BatchNorm2d(4)  # noqa: E731
    cases = {
        "the convolution's output is read again": Tiny(
            lambda m, x: (lambda y: m.bn(y) + y)(m.conv(x)), conv=conv(), bn=norm()
        ),
        "an activation in place stands between": Tiny(
            lambda m, x: m.bn(m.act(m.conv(x))), conv=conv(), bn=norm(), act=nn.ReLU(inplace=True)
        ),
        "the convolution runs twice": Tiny(lambda m, x: m.bn(m.conv(x)) + m.conv(x), conv=conv(), bn=norm()),
        "the norm runs twice": Tiny(
            lambda m, x: m.bn(m.conv(x)) + m.bn(m.other(x)), conv=conv(), other=conv(), bn=norm()
        ),
        "the norm comes first": Tiny(lambda m, x: m.conv(m.bn(x)), conv=conv(), bn=nn.BatchNorm2d(3)),
    }
    for why, model in cases.items():
        before = model.forward_head(model.forward_features(x))
        assert fold_batch_norms(model, x) == 0, why
        assert torch.equal(model.forward_head(model.forward_features(x)), before), why


def test_everything_is_put_back_when_the_output_differs(monkeypatch, seeded):
    from offshelf.backbones import fold

    model = seeded("test_resnet", num_classes=0)
    first, count, x = weights_hash(model), norms(model), pictures(2)
    before = model(x)
    monkeypatch.setattr(fold, "EXACT", -1.0)
    assert fold_batch_norms(model, x) == 0
    assert norms(model) == count and weights_hash(model) == first and torch.equal(model(x), before)


# the network stays as it was


@pytest.mark.parametrize("exact", [True, False])
def test_the_given_network_is_left_as_it_was(seeded, with_bf16, exact):
    model = seeded("test_byobnet", num_classes=0)
    first = weights_hash(model)
    statistics = [module.running_mean.clone() for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    fast = FastNetwork(model, exact=exact)
    out = fast.features(pictures(8))
    fast.features(pictures(3))
    assert not out.requires_grad and out.dtype == torch.float32 and out.shape == (8, 256)
    assert weights_hash(model) == first
    after = [module.running_mean for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(torch.equal(one, other) for one, other in zip(statistics, after))
    assert not any(module.training for module in model.modules())


def test_a_network_in_training_mode_is_refused():
    with pytest.raises(UsageError, match="training mode"):
        FastNetwork(load_backbone("test_resnet.random").train())


# the routes


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_mambaout"])
def test_a_picture_alone_and_among_others_gives_the_same(seeded, name):
    fast = FastNetwork(seeded(name, num_classes=0), exact=True)
    x = pictures(32, 160)
    together = fast.features(x)
    alone = torch.cat([fast.features(x[i : i + 1]) for i in range(4)])
    assert (together[:4] - alone).abs().max() <= 1e-5 * max(1.0, float(together.abs().max()))
    assert (fast.route, fast.cosine_median, fast.cosine_min) == ("fp32", None, None)


def test_exact_features_are_the_networks_own(seeded):
    model = seeded("test_resnet")
    fast = FastNetwork(model, exact=True)
    x = pictures(4)
    pooled, logits = fast.features(x), fast.features(x, readout="logits")
    assert (pooled.shape, logits.shape) == ((4, 96), (4, 1000))
    assert torch.allclose(logits, model(x), rtol=1e-4, atol=1e-4)
    assert torch.allclose(pooled, model.forward_head(model.forward_features(x), pre_logits=True), rtol=1e-4, atol=1e-4)


def test_logits_need_a_classifier():
    fast = FastNetwork(load_backbone("test_resnet.random"), exact=True)
    with pytest.raises(UsageError, match="without a classifier"):
        fast.features(pictures(1), readout="logits")
    with pytest.raises(UsageError, match="expected 'pooled' or 'logits'"):
        fast.features(pictures(1), readout="tokens")


def test_bf16_is_kept_where_it_agrees(seeded, with_bf16):
    model = load_backbone("test_convnext.random")
    fast = FastNetwork(model)
    assert fast.route is None
    x = pictures(8, 160)
    features = fast.features(x)
    assert fast.route == "bf16" and fast.cosine_median >= 0.995 and fast.cosine_min >= 0.98
    assert "agrees with" in fast.note and "centred" in fast.note
    cosines, how = agreement(model(x), features)
    assert how == "centred" and float(cosines.median()) == pytest.approx(fast.cosine_median, abs=1e-6)
    again = FastNetwork.with_route(model, "bf16")
    assert again.route == "bf16" and torch.equal(again.features(x), features)


class Chaotic(Tiny):
    """Amplifies the last bits: the sine of a large number."""

    def __init__(self):
        super().__init__(lambda m, x: torch.sin(1000 * m.conv(x)), conv=nn.Conv2d(3, 16, 1))


def test_the_guard_refuses_bf16_where_it_departs(with_bf16):
    torch.manual_seed(0)
    model = Chaotic()
    model.pretrained_cfg = {"input_size": (3, 96, 96)}
    fast = FastNetwork(model)
    x = pictures(8)
    features = fast.features(x)
    assert fast.route == "fp32" and fast.cosine_median < 0.9
    assert "departs from" in fast.note
    assert torch.allclose(features, model.forward_head(model.forward_features(x)), atol=1e-4)


def test_the_thresholds_decide(seeded, with_bf16, monkeypatch):
    monkeypatch.setattr(route_module, "WORST_AT_LEAST", 1.1)
    fast = FastNetwork(load_backbone("test_convnext.random"))
    assert fast.decide(pictures(8, 160)) == "fp32"
    assert fast.cosine_median >= 0.995  # agreed, and was refused for the worst picture only


def test_the_first_batch_decides_and_no_other(with_bf16):
    fast = FastNetwork(load_backbone("test_convnext.random"))
    fast.decide(pictures(8, 160))
    decided = (fast.route, fast.cosine_median)
    fast.decide(pictures(8, 160, seed=1))
    fast.features(pictures(8, 160, seed=2))
    assert (fast.route, fast.cosine_median) == decided


def test_few_pictures_are_compared_plainly_and_it_is_said(with_bf16):
    fast = FastNetwork(load_backbone("test_convnext.random"))
    fast.decide(pictures(7, 160))
    assert "plain (fewer than 8 pictures) cosine" in fast.note


def test_centring_sees_what_the_plain_cosine_flatters():
    exact = torch.full((8, 4), 100.0) + torch.eye(8, 4)
    fast = torch.full((8, 4), 100.0) + torch.eye(8, 4).flip(1)
    assert torch.nn.functional.cosine_similarity(exact, fast).min() > 0.9999
    cosines, how = agreement(exact, fast)
    assert how == "centred" and cosines.median() < 0.5


def test_identical_pictures_say_nothing_and_keep_single_precision(with_bf16):
    fast = FastNetwork(load_backbone("test_convnext.random"))
    assert fast.decide(pictures(1, 160).expand(8, -1, -1, -1)) == "fp32"


def test_without_bf16_arithmetic_single_precision_is_taken_at_once(monkeypatch):
    monkeypatch.setattr(route_module, "has_bf16", lambda device=None: False)
    fast = FastNetwork(load_backbone("test_resnet.random"))
    assert fast.route == "fp32" and "no bfloat16" in fast.note and fast.folded == 15


def test_stored_routes_are_taken_as_they_are(monkeypatch):
    monkeypatch.setattr(route_module, "has_bf16", lambda device=None: False)
    model = load_backbone("test_resnet.random")
    assert FastNetwork.with_route(model, "bf16").route == "bf16"
    assert FastNetwork.with_route(model, "fp32").route == "fp32"
    with pytest.raises(UsageError, match="expected 'bf16' or 'fp32'"):
        FastNetwork.with_route(model, "fp16")


def test_prepared_networks_have_the_precision_and_layout_of_their_route():
    model = load_backbone("test_resnet.random")
    for route, kind in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        prepared, folded = prepare(model, route)
        weight = prepared.layer2[0].conv1.weight
        assert folded == 15 and weight.dtype == kind and weight.is_contiguous(memory_format=torch.channels_last)
        assert not any(value.dtype == torch.float16 for value in prepared.state_dict().values())


def test_the_signature_names_instructions_and_torch():
    assert f"torch-{torch.__version__}" in cpu_signature()
    assert ("bf16" in cpu_signature()) == has_bf16()
