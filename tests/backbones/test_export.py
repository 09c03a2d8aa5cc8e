from __future__ import annotations

import json

import pytest
import timm
import torch
from timm.data import resolve_model_data_config

from offshelf.backbones.export import save_backbone
from offshelf.backbones.load import load_backbone
from offshelf.errors import BackboneError, UsageError

PIXELS = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "interpolation": "bicubic", "crop_pct": 0.8}


@pytest.mark.parametrize(
    "name", ["test_resnet", "test_byobnet", "test_convnext", "test_mambaout", "mobilenetv3_small_100"]
)
@pytest.mark.parametrize("num_classes", [0, 5])
def test_timm_alone_loads_the_folder_with_the_same_pixels_and_outputs(seeded, tmp_path, name, num_classes):
    model = seeded(name, num_classes=num_classes)
    size = (3, 96, 128)
    settings = {**PIXELS, "input_size": size}
    folder = save_backbone(model, tmp_path / "out", pretrained_cfg=settings)
    again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    expected = {**resolve_model_data_config(model), **settings}
    found = resolve_model_data_config(again)
    assert {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()} == expected
    x = torch.rand(2, *size)
    assert torch.equal(again(x), model(x))
    bare = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    assert torch.equal(bare(x), model.forward_head(model.forward_features(x), pre_logits=True))


def test_a_vit_of_another_size(seeded, tmp_path):
    model = seeded("test_vit", img_size=64, num_classes=3)
    folder = save_backbone(model, tmp_path / "vit", label_names=["a", "b", "c"])
    again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert resolve_model_data_config(again)["input_size"] == (3, 64, 64)
    assert again.pos_embed.shape == model.pos_embed.shape
    assert again.pretrained_cfg["label_names"] == ["a", "b", "c"]
    x = torch.rand(2, 3, 64, 64)
    assert torch.equal(again(x), model(x))
    assert load_backbone(folder).card.input_size == (64, 64)


def test_a_vit_that_takes_one_size_only(seeded, tmp_path):
    model = seeded("vit_tiny_patch16_224", img_size=64, num_classes=0)
    again = load_backbone(save_backbone(model, tmp_path / "vit"))
    x = torch.rand(2, 3, 64, 64)
    assert again.card.input_size == (64, 64) and torch.equal(again(x), model(x))
    with pytest.raises(UsageError, match=r"built for \(64, 64\) pixels only"):
        save_backbone(model, tmp_path / "other", pretrained_cfg={"input_size": (3, 160, 160)})


def test_a_vit_resized_after_it_was_built(seeded, tmp_path):
    model = seeded("test_vit", num_classes=0)
    model.set_input_size((96, 96))
    again = load_backbone(save_backbone(model, tmp_path / "vit"))
    x = torch.rand(2, 3, 96, 96)
    assert again.card.input_size == (96, 96) and torch.equal(again(x), model(x))


def test_a_loaded_network_goes_out_and_comes_back_as_it_is(tmp_path):
    model = load_backbone("test_resnet.random_3")
    folder = save_backbone(model, tmp_path / "out")
    card = load_backbone(folder).card
    for field in ("weights_hash", "width", "input_size", "mean", "std", "interpolation", "crop_pct", "licence", "note"):
        assert getattr(card, field) == getattr(model.card, field), field
    assert json.loads((folder / "config.json").read_text())["offshelf"]["from"].startswith(
        "test_resnet (random weights"
    )


def test_labels_and_licence_are_written_and_places_are_not(seeded, tmp_path):
    model = seeded("test_resnet", num_classes=2)
    save_backbone(model, tmp_path / "out", label_names=["cat", "dog"], pretrained_cfg={"license": "cc-by-4.0"})
    text = (tmp_path / "out" / "config.json").read_text()
    config = json.loads(text)
    assert config["pretrained_cfg"]["label_names"] == ["cat", "dog"] and config["num_classes"] == 2
    assert not {"url", "hf_hub_id", "file", "state_dict", "source"} & config["pretrained_cfg"].keys()
    assert load_backbone(tmp_path / "out").card.licence == "cc-by-4.0"
    assert str(tmp_path) not in text
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]
    with pytest.raises(UsageError, match="3 names"):
        save_backbone(model, tmp_path / "out", label_names=["a", "b", "c"])


def test_a_network_changed_by_hand_is_refused_before_anything_is_written(seeded, tmp_path):
    model = seeded("test_resnet", num_classes=0)
    model.layer4 = torch.nn.Identity()
    with pytest.raises(BackboneError, match=r"differs from what timm builds.*layer4"):
        save_backbone(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_global_generator_is_left_alone(seeded, tmp_path):
    model = seeded("test_resnet")
    before = torch.get_rng_state()
    save_backbone(model, tmp_path / "out")
    assert torch.equal(before, torch.get_rng_state())


def test_a_folder_is_not_taken_for_whole_while_it_is_written(seeded, tmp_path, monkeypatch):
    from offshelf.backbones import export

    folder = save_backbone(seeded("test_resnet"), tmp_path / "out")

    def full(*arguments):
        raise OSError("the power goes out")

    monkeypatch.setattr(export, "write_through", full)
    with pytest.raises(OSError, match="power"):
        save_backbone(seeded("test_resnet", seed=1), folder)
    with pytest.raises(BackboneError, match=r"config\.json is missing"):
        load_backbone(folder)
