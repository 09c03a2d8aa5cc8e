from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from offshelf.backbones import embedded
from offshelf.backbones.choose import POPULAR, TINY_DESIGNS, default_backbones
from offshelf.backbones.embedded import CARD_KEYS, EMBEDDED, WEIGHTS, embed, embedded_card
from offshelf.backbones.export import save_backbone
from offshelf.backbones.load import load_backbone
from offshelf.errors import BackboneError, UsageError

NAME = "test_byobnet.offshelf_finetune_something"
CARD = {
    "data": "some pictures",
    "command": "make them",
    "accuracy": "accuracy 0.7",
    "licence": "cc0-1.0",
    "date": "2026-01-01",
}


PIXELS = {"mean": (0.1, 0.2, 0.3), "input_size": (3, 64, 64)}


@pytest.fixture
def shipped(seeded, tmp_path, monkeypatch):
    """A place for embedded weights with one in it, and the network it was made of."""
    model = seeded("test_byobnet", num_classes=10)
    folder = save_backbone(model, tmp_path / "trained", pretrained_cfg=PIXELS)
    embed(folder, NAME, CARD, target=tmp_path / "weights")
    monkeypatch.setattr(embedded, "WEIGHTS", tmp_path / "weights")
    monkeypatch.setattr(embedded, "EMBEDDED", (NAME,))
    return model


# what comes with the package


def test_the_written_list_is_what_lies_in_the_folder():
    folder = {path.name for path in WEIGHTS.iterdir() if path.is_dir()} if WEIGHTS.is_dir() else set()
    assert set(EMBEDDED) == folder and len(EMBEDDED) == len(folder)


def test_a_bare_machine_has_eight_learnt_designs_in_less_than_8_mb(hub_cache):
    names, reason = default_backbones(reproductive=True)
    assert sorted(names) == sorted(EMBEDDED)
    assert len({name.partition(".")[0] for name in EMBEDDED}) == 8
    assert "8 of them are the small ones of the package" in reason and "resnet50.a1_in1k" in reason
    learnt = {name.split("offshelf_")[1].partition("_")[0] for name in EMBEDDED}
    assert learnt == {"finetune", "spark"}  # with labels and without
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()) < 8e6


@pytest.mark.parametrize("name", EMBEDDED)
def test_everything_embedded_loads_and_says_where_it_comes_from(name):
    card = load_backbone(name).card
    assert (card.name, card.weights) == (name, "embedded")
    assert all(embedded_card(name)[key] for key in CARD_KEYS)
    assert card.licence != "unknown"


def test_embedded_weights_are_small_and_nearly_the_same(shipped):
    model = load_backbone(NAME)
    assert (model.card.weights, model.card.licence, model.card.label) == ("embedded", "cc0-1.0", NAME)
    assert model.card.note == "learnt from some pictures; accuracy 0.7 (2026-01-01)"
    assert model.card.mean == (0.1, 0.2, 0.3) and model.card.input_size == (64, 64)
    assert next(model.parameters()).dtype == torch.float32
    x = torch.rand(8, 3, 64, 64)
    ours, exact = model(x), shipped.forward_head(shipped.forward_features(x), pre_logits=True)
    assert (ours - exact).abs().max() < 5e-3 * exact.abs().max()
    assert load_backbone(NAME, num_classes=None).num_classes == 10
    stored = load_file(embedded.WEIGHTS / NAME / "model.safetensors")
    assert all(value.dtype == torch.float16 for value in stored.values() if value.ndim > 1)
    variances = [value.dtype for name, value in stored.items() if name.endswith("running_var")]
    assert len(variances) == 14 and set(variances) == {torch.float32}
    size = (embedded.WEIGHTS / NAME / "model.safetensors").stat().st_size
    assert size < 2.4 * model.card.parameters


def test_embedded_weights_are_offered_where_others_cannot_be_had(shipped):
    with pytest.raises(BackboneError, match=rf"here are {NAME} \(with the package\)"):
        load_backbone("resnet50")
    with pytest.raises(BackboneError, match="did you mean 'offshelf_finetune_something'"):
        load_backbone(NAME + "s")
    with pytest.raises(BackboneError, match="no such embedded weights; did you mean"):
        embedded_card(NAME + "s")


def test_embedding_asks_for_a_name_and_a_full_card(seeded, tmp_path):
    folder = save_backbone(seeded("test_byobnet"), tmp_path / "trained")
    with pytest.raises(UsageError, match="test_byobnet.offshelf_<method>_<data>"):
        embed(folder, "test_resnet.offshelf_finetune_x", CARD, target=tmp_path)
    with pytest.raises(UsageError, match="licence missing"):
        embed(folder, NAME, {**CARD, "licence": ""}, target=tmp_path)
    big = seeded("test_byobnet", seed=1)
    big.stem.conv.weight[0] = 1e5
    with pytest.raises(BackboneError, match="do not fit into half precision"):
        embed(save_backbone(big, tmp_path / "big"), NAME, CARD, target=tmp_path)


# defaults


def test_what_is_on_the_machine_is_preferred_and_named(hub_cache, shipped):
    assert default_backbones()[0] == [NAME]
    hub_cache("timm/resnet18.a1_in1k", model__safetensors={"x": torch.zeros(1)})
    hub_cache("timm/resnet50.a1_in1k", model__safetensors={"x": torch.zeros(1)})
    names, reason = default_backbones()
    assert names == ["resnet50.a1_in1k"]
    assert "pre-trained weights are on this machine" in reason and "also there: resnet18.a1_in1k" in reason


def test_nothing_pre_trained_is_said(monkeypatch):
    monkeypatch.setattr(embedded, "EMBEDDED", ())
    names, reason = default_backbones()
    assert names == ["test_byobnet.random"] and "has random weights" in reason and "resnet50.a1_in1k" in reason


@pytest.mark.parametrize("how", ["nothing", "embedded", "cached"])
def test_eight_different_designs(hub_cache, shipped, monkeypatch, how):
    if how == "nothing":
        monkeypatch.setattr(embedded, "EMBEDDED", ())
    if how == "cached":
        for name in ("vit_small_patch14_dinov2.lvd142m", "resnet50.a1_in1k"):
            hub_cache(f"timm/{name}", model__safetensors={"x": torch.zeros(1)})
    names, reason = default_backbones(reproductive=True)
    assert len(names) == len({name.partition(".")[0] for name in names}) == 8
    assert not any("vit" in name for name in names)
    expected = {"nothing": [], "embedded": [NAME], "cached": ["resnet50.a1_in1k", NAME]}[how]
    assert [name for name in names if not name.endswith(".random")] == expected
    assert all(name in reason for name in names) and "resnet50.a1_in1k" in reason
    assert "with random weights" in reason


def test_eight_cached_ones_need_nothing_random(hub_cache, shipped):
    convolutional = [name for name in POPULAR if "vit" not in name]
    for name in convolutional[:9]:
        hub_cache(f"timm/{name}", model__safetensors={"x": torch.zeros(1)})
    names, reason = default_backbones(reproductive=True)
    assert names == convolutional[:8] and "random" not in reason


def test_the_tiny_designs_tell_pictures_apart():
    x = torch.nn.functional.interpolate(torch.randn(6, 3, 5, 5, generator=torch.Generator().manual_seed(0)), size=96)
    for design in TINY_DESIGNS:
        features = load_backbone(f"{design}.random")(x)
        spread = (features - features.mean(0)).norm(dim=1).mean() / features.norm(dim=1).mean()
        assert spread > 1e-3, (design, float(spread))
