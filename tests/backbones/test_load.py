from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from offshelf.backbones import hub
from offshelf.backbones.card import BackboneCard, weights_hash
from offshelf.backbones.export import save_backbone
from offshelf.backbones.load import load_backbone
from offshelf.backbones.names import resolve
from offshelf.errors import BackboneError


def tensors(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


# random weights


def test_equal_seeds_are_equal_and_others_differ():
    zero, again, seven = (load_backbone(f"test_resnet.random{suffix}") for suffix in ("", "_0", "_7"))
    assert zero.card.weights_hash == again.card.weights_hash
    assert zero.card.weights_hash != seven.card.weights_hash
    x = torch.rand(2, 3, 160, 160)
    assert torch.equal(zero(x), again(x))
    assert not torch.allclose(zero(x), seven(x), atol=1e-3)


def test_the_global_generator_is_left_alone(hub_cache, seeded):
    hub_cache("timm/test_resnet.r160_in1k", model__safetensors=tensors(seeded("test_resnet")))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    load_backbone("test_byobnet.random_7")
    load_backbone("test_resnet")
    assert torch.equal(before, torch.get_rng_state())


def test_the_trunk_does_not_depend_on_the_classifier():
    bare, full = load_backbone("test_resnet.random"), load_backbone("test_resnet.random", num_classes=None)
    assert full.num_classes == 1000
    trunk = {name: value for name, value in full.state_dict().items() if not name.startswith("fc.")}
    assert trunk.keys() == bare.state_dict().keys()
    assert all(torch.equal(value, bare.state_dict()[name]) for name, value in trunk.items())
    assert bare.card.weights_hash != full.card.weights_hash


def test_random_weights_are_called_random():
    card = load_backbone("test_resnet.random_7").card
    assert card.label == "test_resnet (random weights, seed 7)"
    assert card.weights == "random" and "no data" in card.note
    assert BackboneCard.from_dict(json.loads(json.dumps(card.to_dict()))) == card


# cards


@pytest.mark.parametrize(
    ("name", "width", "size"),
    [
        ("mobilenetv3_small_100", 1024, 224),
        ("test_vit", 64, 160),
        ("test_mambaout", 256, 160),
        ("test_resnet", 96, 160),
    ],
)
def test_the_width_is_the_measured_one(name, width, size):
    model = load_backbone(f"{name}.random")
    assert model.card.width == width
    assert model.card.input_size == (size, size)
    assert model(torch.rand(2, 3, size, size)).shape == (2, width)


def test_vgg_is_4096_wide():
    assert load_backbone("vgg11.random").card.width == 4096


def test_loaded_networks_are_frozen_and_in_evaluation_mode():
    model = load_backbone("test_byobnet.random", num_classes=5)
    assert model.num_classes == 5 and model(torch.rand(1, 3, 160, 160)).shape == (1, 5)
    assert model.card.width == 256
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_hash_sees_names_shapes_types_and_numbers_but_not_layout(seeded):
    model = seeded("test_resnet", num_classes=0)
    first = weights_hash(model)
    assert len(first) == 64
    assert weights_hash(model.to(memory_format=torch.channels_last)) == first
    with torch.no_grad():
        model.conv1[0].weight[0, 0, 0, 0] += 1e-6
    assert weights_hash(model) != first

    class One(torch.nn.Module):
        def __init__(self, values):
            super().__init__()
            self.register_buffer("values", values)

    hashes = {
        weights_hash(One(torch.zeros(shape, dtype=kind)))
        for shape in (4, (2, 2))
        for kind in (torch.float, torch.int32)
    }
    assert len(hashes) == 4


# the hub


def test_weights_come_from_the_local_hub_cache(hub_cache, seeded):
    native = seeded("test_resnet")
    hub_cache("timm/test_resnet.r160_in1k", model__safetensors=tensors(native))
    model = load_backbone("test_resnet")
    assert model.card.name == "test_resnet.r160_in1k" == model.card.label
    assert (model.card.weights, model.card.licence) == ("hub", "apache-2.0")
    assert model.card.note == "timm/test_resnet.r160_in1k at revision abc"
    assert (model.card.mean, model.card.interpolation, model.card.crop_pct) == ((0.5, 0.5, 0.5), "bilinear", 0.95)
    x = torch.rand(2, 3, 160, 160)
    assert torch.allclose(model(x), native.forward_head(native.forward_features(x), pre_logits=True))
    kept = load_backbone("test_resnet.r160_in1k", num_classes=None)
    assert torch.allclose(kept(x), native(x))
    assert model.pretrained_cfg["file"] is None
    assert hub.cached_names() == ["test_resnet.r160_in1k"]


def test_the_cache_is_where_the_environment_says_now(hub_cache, seeded, monkeypatch, tmp_path):
    hub_cache("timm/test_resnet.r160_in1k", model__safetensors=tensors(seeded("test_resnet")))
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HF_HOME", str(tmp_path))  # its folder `hub` is the cache
    assert load_backbone("test_resnet").card.weights == "hub"
    monkeypatch.setenv("HF_HOME", str(tmp_path / "elsewhere"))
    with pytest.raises(BackboneError, match="not on this machine"):
        load_backbone("test_resnet")


def test_a_repository_of_the_hub_is_read_as_a_folder(hub_cache, seeded, tmp_path):
    folder = save_backbone(
        seeded("test_vit", num_classes=3), tmp_path / "out", pretrained_cfg={"mean": (0.1, 0.2, 0.3)}
    )
    files = {path.name.replace(".", "__"): path.read_bytes() for path in folder.iterdir()}
    hub_cache("someone/my-vit", **files)
    model = load_backbone("hf-hub:someone/my-vit")
    assert (model.card.mean, model.card.weights, model.card.architecture) == ((0.1, 0.2, 0.3), "hub", "test_vit")
    assert model.card.weights_hash == load_backbone(folder).card.weights_hash
    assert hub.cached_names() == ["hf-hub:someone/my-vit"]


@pytest.mark.parametrize("why", ["no answer", "offline"])
def test_what_cannot_be_had_is_said_in_one_sentence_and_at_once(hub_cache, seeded, monkeypatch, why):
    hub_cache("timm/test_vit.r160_in1k", model__safetensors=tensors(seeded("test_vit")))
    if why == "offline":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    load_backbone("test_resnet.random")  # pays for the imports
    start = time.perf_counter()
    with pytest.raises(BackboneError) as caught:
        load_backbone("resnet50")
    assert time.perf_counter() - start < 2
    message = str(caught.value)
    assert message.startswith("resnet50.a1_in1k: its weights are not on this machine and ")
    assert ("HF_HUB_OFFLINE is set" if why == "offline" else "127.0.0.1 cannot be reached") in message
    assert "test_vit.r160_in1k (in the hub cache)" in message and "resnet50.random (random weights)" in message
    assert "\n" not in message


def test_a_cached_pickle_is_refused_with_the_reason(hub_cache):
    hub_cache("timm/test_resnet.r160_in1k", pytorch_model__bin=b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(BackboneError, match=r"only as pytorch_model.bin, a pickle, which can run code"):
        load_backbone("test_resnet")


def test_weights_published_as_a_pickle_only_are_refused():
    with pytest.raises(BackboneError, match=r"legacy_xception.tf_in1k.*xception-43020ad28.pth, a pickle"):
        load_backbone("legacy_xception")


def test_a_cached_file_that_lacks_tensors_is_refused(hub_cache, seeded):
    some = tensors(seeded("test_resnet"))
    some.pop("conv1.0.weight")
    hub_cache("timm/test_resnet.r160_in1k", model__safetensors=some)
    with pytest.raises(BackboneError, match=r"test_resnet.r160_in1k.*conv1\.0\.weight"):
        load_backbone("test_resnet")


def test_families_that_timm_loads_loosely_are_not_left_random(seeded, tmp_path):
    folder = save_backbone(seeded("dla46_c", num_classes=0), tmp_path / "dla")
    some = load_file(folder / "model.safetensors")
    assert load_backbone(folder).card.width == 256
    some.pop("level2.tree1.conv1.weight")
    save_file(some, folder / "model.safetensors")
    with pytest.raises(BackboneError, match=r"lack 1 of the network's tensors \(level2\.tree1\.conv1\.weight\)"):
        load_backbone(folder)


def test_masked_pre_training_leaves_no_final_normalisation(hub_cache, seeded):
    some = tensors(seeded("convnextv2_atto", num_classes=0))
    some = {name: value for name, value in some.items() if not name.startswith("head.norm")}
    hub_cache("timm/convnextv2_atto.fcmae", model__safetensors=some)
    assert load_backbone("convnextv2_atto.fcmae").card.weights == "hub"


# names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet5", r"did you mean 'resnet50'"),
        ("resnet50.a1_in2k", r"has no weights 'a1_in2k'; there are a1_in1k, .*did you mean 'a1_in1k'"),
        ("xception", "timm calls it 'legacy_xception'"),
        ("test_mambaout", r"no pre-trained weights are published.*test_mambaout\.random"),
        ("./nowhere/test_resnet", "there is no such folder"),
        ("hf-hub:alone", "expected hf-hub:owner/name"),
        ("qqqq", "no timm network and no folder"),
    ],
)
def test_wrong_names_are_answered(name, expected):
    with pytest.raises(BackboneError, match=expected):
        load_backbone(name)


def test_names_lead_where_they_say(tmp_path, monkeypatch):
    assert (resolve("test_resnet").name, resolve("test_resnet").kind) == ("test_resnet.r160_in1k", "tag")
    assert (resolve("test_resnet.random_12").seed, resolve("test_resnet.random").seed) == (12, 0)
    assert resolve("hf-hub:a/b@c1").revision == "c1"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test_resnet").mkdir()
    assert resolve("test_resnet").kind == "tag"
    (tmp_path / "test_resnet" / "config.json").write_text("{}")
    with pytest.raises(BackboneError, match=r"write \./test_resnet for the folder"):
        resolve("test_resnet")
    assert resolve("./test_resnet").kind == "folder"


# folders


@pytest.fixture
def folder(seeded, tmp_path):
    return save_backbone(seeded("test_resnet", num_classes=4), tmp_path / "mine")


def rewrite(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(config))


def test_a_folder_keeps_its_own_preprocessing(folder):
    rewrite(
        folder,
        pretrained_cfg={
            "mean": [0.1, 0.2, 0.3],
            "std": [0.4, 0.5, 0.6],
            "input_size": [3, 96, 128],
            "interpolation": "bicubic",
            "crop_pct": 0.8,
        },
    )
    card = load_backbone(folder).card
    assert (card.mean, card.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (card.input_size, card.interpolation, card.crop_pct) == ((96, 128), "bicubic", 0.8)
    assert card.weights == "folder" and card.label == "mine (test_resnet, weights of a folder of yours)"


def test_preprocessing_where_timm_does_not_read_it_is_refused(folder):
    rewrite(folder, mean=[0.1, 0.2, 0.3])
    with pytest.raises(BackboneError, match="mean stands outside 'pretrained_cfg'"):
        load_backbone(folder)


def test_folders_that_are_not_whole_are_named(folder):
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BackboneError, match=r"model\.safetensors is cut short or damaged"):
        load_backbone(folder)
    weights.unlink()
    with pytest.raises(BackboneError, match=r"model\.safetensors is missing"):
        load_backbone(folder)
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(BackboneError, match=r"only as pytorch_model\.bin, a pickle"):
        load_backbone(folder)
    weights.write_bytes(whole)
    assert load_backbone(folder).card.width == 96  # the pickle beside it is not opened
    (folder / "config.json").unlink()
    with pytest.raises(BackboneError, match=r"config\.json is missing"):
        load_backbone(folder)


def test_a_folder_that_lacks_tensors_is_refused_and_not_left_random(folder):
    some = load_file(folder / "model.safetensors")
    some.pop("layer1.0.conv1.weight")
    save_file(some, folder / "model.safetensors")
    with pytest.raises(BackboneError, match=r"layer1\.0\.conv1\.weight"):
        load_backbone(folder)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"architecture": "test_resnett"}, "no architecture 'test_resnett'; did you mean 'test_resnet'"),
        ({"architecture": None}, "names no 'architecture'"),
        ({"architecture": "test_vit"}, "do not make the network"),
        ({"pretrained_cfg": {"custom_load": True}}, "foreign weight format"),
        ({"pretrained_cfg": {"nonsense": 1}}, "do not make the network"),
        ({"pretrained_cfg": {"interpolation": "lanczos"}}, "expected 'bilinear' or 'bicubic'"),
    ],
)
def test_wrong_configurations_are_named(folder, change, expected):
    rewrite(folder, **change)
    with pytest.raises(BackboneError, match=expected):
        load_backbone(folder)


def test_broken_json_is_named(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(BackboneError, match=r"config\.json: not valid JSON"):
        load_backbone(folder)


def test_networks_for_one_channel_are_refused(seeded, tmp_path):
    folder = save_backbone(
        seeded("test_resnet", in_chans=1), tmp_path / "grey", pretrained_cfg={"input_size": (1, 160, 160)}
    )
    with pytest.raises(BackboneError, match="takes 1 channel"):
        load_backbone(folder)


def test_arguments_in_the_configuration_are_used(seeded, tmp_path):
    native = seeded("test_vit", img_size=64, patch_size=8)
    model = load_backbone(save_backbone(native, tmp_path / "vit"))
    assert model.card.input_size == (64, 64) and model.patch_embed.patch_size == (8, 8)


def test_a_run_folder_gives_its_network(seeded, tmp_path):
    save_backbone(seeded("test_resnet"), tmp_path / "run" / "model")
    (tmp_path / "run" / "run.json").write_text("{}")
    card = load_backbone(tmp_path / "run").card
    assert (card.weights, card.label) == ("run", "run (test_resnet, weights of a run of yours)")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "run.json").write_text("{}")
    with pytest.raises(BackboneError, match="this run holds no network"):
        load_backbone(tmp_path / "bare")


# silence


def test_nothing_is_printed_and_timm_keeps_its_log(folder, capfd):
    logger = logging.getLogger("timm")
    before = (logger.level, logger.propagate, list(logger.handlers))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_backbone(folder, num_classes=7)
        load_backbone("test_mambaout.random")
    assert (logger.level, logger.propagate, logger.handlers) == before
    assert capfd.readouterr() == ("", "")


def test_a_process_that_loads_a_network_prints_nothing_else(folder):
    code = f"from offshelf.backbones.load import load_backbone; print(load_backbone({str(folder)!r}).card.width)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("96\n", "")


def test_features_are_numbers_of_their_pictures():
    """Random weights tell pictures apart; a network that did not would be useless as a feature extractor."""
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 3, 160, 160))).float()
    features = load_backbone("test_resnet.random")(x * torch.tensor([0.1, 1.0, 2.0, 4.0]).view(4, 1, 1, 1))
    assert torch.pdist(features).min() > 1e-3
