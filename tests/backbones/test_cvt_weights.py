from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from offshelf.backbones.architectures import register_architectures
from offshelf.backbones.cvt import CvT
from offshelf.backbones.cvt_transformers import cvt_from_transformers
from offshelf.backbones.cvt_weights import convert_cvt_weights, our_name
from offshelf.backbones.export import save_backbone
from offshelf.backbones.load import load_backbone
from offshelf.errors import BackboneError

register_architectures()
DESIGN = {
    "embed_dim": [8, 16, 24],
    "depth": [1, 2, 3],  # transformers takes no fewer: it looks a block's drop rate up by the number of its stage
    "num_heads": [1, 2, 3],
    "patch_sizes": [7, 3, 3],
    "patch_stride": [4, 2, 2],
    "patch_padding": [2, 1, 1],
}


def randomised(model: nn.Module) -> nn.Module:
    """Every number drawn anew, norms and their statistics too, so that none can be mistaken for another."""
    torch.manual_seed(1)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith("running_var") or ("norm" in name and name.endswith("weight")):
            tensor.data.uniform_(0.5, 1.5)
        elif tensor.is_floating_point():
            tensor.data.normal_(std=0.3)
    return model.eval()


def transformers_folder(folder: Path, labels: int | None = 4, **design: object) -> tuple[nn.Module, Path]:
    """A folder as transformers writes it, with or without a classifier; its network."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.CvtConfig(**(DESIGN | design))
    if labels is None:
        model = transformers.CvtModel(config)
    else:
        config.num_labels = labels
        model = transformers.CvtForImageClassification(config)
    randomised(model).save_pretrained(folder)
    return model, folder


def of_microsoft(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our names as the paper's code has them."""
    return {re.sub(r"^stages\.(\d)\.", r"stage\1.", name): tensor for name, tensor in state.items()}


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("stage0.patch_embed.proj.weight", "stages.0.patch_embed.proj.weight"),
        ("stage2.cls_token", "stages.2.cls_token"),
        ("stage1.blocks.3.attn.conv_proj_q.conv.weight", "stages.1.blocks.3.attn.conv_proj_q.conv.weight"),
        ("stage2.blocks.12.attn.conv_proj_v.bn.running_var", "stages.2.blocks.12.attn.conv_proj_v.bn.running_var"),
        ("stage0.blocks.0.attn.proj_k.bias", "stages.0.blocks.0.attn.proj_k.bias"),
        ("norm.weight", "norm.weight"),
        ("cvt.encoder.stages.2.cls_token", "stages.2.cls_token"),
        (
            "cvt.encoder.stages.0.embedding.convolution_embeddings.normalization.bias",
            "stages.0.patch_embed.norm.bias",
        ),
        (
            "encoder.stages.1.layers.10.attention.attention.convolution_projection_value.convolution_projection."
            "normalization.num_batches_tracked",
            "stages.1.blocks.10.attn.conv_proj_v.bn.num_batches_tracked",
        ),
        (
            "cvt.encoder.stages.1.layers.0.attention.attention.projection_query.weight",
            "stages.1.blocks.0.attn.proj_q.weight",
        ),
        ("cvt.encoder.stages.1.layers.0.attention.output.dense.weight", "stages.1.blocks.0.attn.proj.weight"),
        ("cvt.encoder.stages.1.layers.0.intermediate.dense.weight", "stages.1.blocks.0.mlp.fc1.weight"),
        ("cvt.encoder.stages.1.layers.0.output.dense.weight", "stages.1.blocks.0.mlp.fc2.weight"),
        ("cvt.encoder.stages.1.layers.0.layernorm_after.bias", "stages.1.blocks.0.norm2.bias"),
        ("layernorm.weight", "norm.weight"),
        ("classifier.bias", "head.bias"),
        ("stages.1.blocks.0.norm2.bias", "stages.1.blocks.0.norm2.bias"),
    ],
)
def test_names_one_by_one(theirs: str, ours: str) -> None:
    assert our_name(theirs) == ours


# ---- against transformers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (75, 50)])
def test_logits_and_maps_are_those_of_transformers(tmp_path: Path, size: tuple[int, int]) -> None:
    theirs, folder = transformers_folder(tmp_path)
    ours = cvt_from_transformers(folder)
    x = torch.randn(2, 3, *size)
    with torch.inference_mode():
        expected = theirs(x, output_hidden_states=True)
        torch.testing.assert_close(ours(x), expected.logits, atol=1e-4, rtol=1e-4)
        maps = ours.forward_intermediates(x, intermediates_only=True)
    assert expected.logits.abs().max() > 0.1 and expected.logits.std(0).min() > 1e-3
    for mine, their in zip(maps, expected.hidden_states, strict=True):
        torch.testing.assert_close(mine, their, atol=1e-4, rtol=1e-4)
    assert not any(parameter.requires_grad for parameter in ours.parameters()) and not ours.training


def test_the_activation_of_the_papers_code_is_another(tmp_path: Path) -> None:
    theirs, folder = transformers_folder(tmp_path)
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        difference = (cvt_from_transformers(folder, act_layer="quick_gelu")(x) - theirs(x).logits).abs().max()
    assert difference > 1e-3


def test_without_class_token_the_mean_is_read(tmp_path: Path) -> None:
    """transformers' own classifier fails here, looking for the token; its maps do not."""
    theirs, folder = transformers_folder(tmp_path, labels=None, cls_token=[False, False, False])
    x = torch.randn(2, 3, 64, 48)
    with torch.inference_mode():
        tokens = theirs(x).last_hidden_state.flatten(2).transpose(1, 2)
        expected = nn.functional.layer_norm(tokens, (24,)).mean(1)
        torch.testing.assert_close(cvt_from_transformers(folder)(x), expected, atol=1e-4, rtol=1e-4)


def test_a_network_without_classifier_gets_a_new_norm(tmp_path: Path) -> None:
    theirs, folder = transformers_folder(tmp_path, labels=None)
    ours = cvt_from_transformers(folder)
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = theirs(x)
        (last,) = ours.forward_intermediates(x, indices=1, intermediates_only=True)
        torch.testing.assert_close(last, expected.last_hidden_state, atol=1e-4, rtol=1e-4)
        token = nn.functional.layer_norm(expected.cls_token_value[:, 0], (24,))
        torch.testing.assert_close(ours(x), token, atol=1e-4, rtol=1e-4)
    assert ours.num_classes == 0


def test_preprocessing_and_class_names_come_along(tmp_path: Path) -> None:
    _, folder = transformers_folder(tmp_path / "theirs", id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1})
    settings = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7], "size": {"shortest_edge": 96}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | {"crop_pct": 0.9, "resample": 2}))
    state = load_file(folder / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        state[name] = state[name][:2].clone()
    save_file(state, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text()) | {"id2label": {"0": "cat", "1": "dog"}}
    (folder / "config.json").write_text(json.dumps(config))

    save_backbone(cvt_from_transformers(folder), tmp_path / "ours")
    model = load_backbone(tmp_path / "ours", num_classes=None)
    card = model.card
    assert (card.input_size, card.mean, card.crop_pct, card.interpolation) == (
        (96, 96),
        (0.1, 0.2, 0.3),
        0.9,
        "bilinear",
    )
    assert model.pretrained_cfg["label_names"] == ["cat", "dog"]
    x = torch.randn(1, 3, 96, 96)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), cvt_from_transformers(folder)(x))


def test_the_folder_is_read_without_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, folder = transformers_folder(tmp_path)
    x = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        expected = theirs(x).logits
        monkeypatch.setitem(__import__("sys").modules, "transformers", None)
        torch.testing.assert_close(cvt_from_transformers(folder)(x), expected, atol=1e-4, rtol=1e-4)


# ---- a folder in timm's format with foreign names --------------------------------------------------------------------


@pytest.fixture
def timm_folder(tmp_path: Path) -> tuple[CvT, Path]:
    """A small CvT with drawn weights, and its folder in timm's format."""
    settings = {"embed_dims": [8, 16, 24], "depths": [1, 2, 3], "heads": [1, 2, 3]}
    model = randomised(timm.create_model("cvt_tiny", num_classes=5, **settings))
    return model, save_backbone(model, tmp_path / "kept")  # type: ignore[return-value]


def rewrite(folder: Path, state: dict[str, torch.Tensor]) -> None:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors")


def test_names_of_the_papers_code_load_by_name(timm_folder: tuple[CvT, Path]) -> None:
    model, folder = timm_folder
    theirs = of_microsoft(model.state_dict())
    assert "stage2.blocks.1.attn.conv_proj_k.bn.running_mean" in theirs and not any("stages." in n for n in theirs)
    rewrite(folder, theirs)
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(load_backbone(folder, num_classes=None)(x), model(x))


def test_names_of_transformers_load_by_name(tmp_path: Path, timm_folder: tuple[CvT, Path]) -> None:
    _, kept = timm_folder
    theirs, folder = transformers_folder(
        tmp_path / "theirs", labels=5, patch_sizes=[3, 3, 3], patch_stride=[2, 2, 2],
        patch_padding=[1, 1, 1],
    )  # fmt: skip
    (kept / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    config = json.loads((kept / "config.json").read_text())
    config["model_args"]["act_layer"] = "gelu"
    (kept / "config.json").write_text(json.dumps(config))
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(load_backbone(kept, num_classes=None)(x), theirs(x).logits, atol=1e-4, rtol=1e-4)


def test_counts_of_batches_may_be_missing(timm_folder: tuple[CvT, Path]) -> None:
    model, folder = timm_folder
    rewrite(folder, {n: t for n, t in of_microsoft(model.state_dict()).items() if "num_batches" not in n})
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(load_backbone(folder, num_classes=None)(x), model(x))


def test_a_network_for_other_classes_takes_all_but_the_classifier(timm_folder: tuple[CvT, Path]) -> None:
    model, folder = timm_folder
    again = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=3)
    assert again.num_classes == 3
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(again.eval().forward_features(x), model.forward_features(x))


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_missing_tensors_are_named(timm_folder: tuple[CvT, Path]) -> None:
    model, folder = timm_folder
    state = of_microsoft(model.state_dict())
    lost = [name for name in state if name.startswith("stage1.blocks.0.mlp") or name.endswith("conv_proj_q.bn.bias")]
    rewrite(folder, {name: tensor for name, tensor in state.items() if name not in lost})
    assert len(lost) == 6 + 4
    with pytest.raises(BackboneError) as caught:
        load_backbone(folder)
    said = str(caught.value)
    assert "lack 10 (stages.0.blocks.0.attn.conv_proj_q.bn.bias, stages.1." in said and ", ...)" in said
    assert str(folder) in said and "which would be random; expected a complete file" in said and "model_args" in said


def test_tensors_of_another_network_are_named(timm_folder: tuple[CvT, Path]) -> None:
    model, folder = timm_folder
    extra = {
        n.replace("blocks.1", "blocks.3"): t.clone() for n, t in model.state_dict().items() if "stages.2.blocks.1." in n
    }
    rewrite(folder, of_microsoft(model.state_dict() | extra))
    with pytest.raises(BackboneError, match=f"hold {len(extra)} .stages.2.blocks.3.*that this network has not"):
        load_backbone(folder)


def test_tensors_of_another_shape_are_named(timm_folder: tuple[CvT, Path]) -> None:
    model, folder = timm_folder
    rewrite(folder, model.state_dict() | {"stages.1.blocks.0.norm1.weight": torch.ones(7)})
    with pytest.raises(BackboneError, match=r"stages.1.blocks.0.norm1.weight of \(7,\) instead of \(16,\)"):
        load_backbone(folder)


def test_a_missing_classifier_is_no_new_one(timm_folder: tuple[CvT, Path]) -> None:
    model, folder = timm_folder
    rewrite(folder, {n: t for n, t in model.state_dict().items() if not n.startswith(("head.", "norm."))})
    with pytest.raises(BackboneError, match="lack 4 .norm.weight, norm.bias, head.weight, head.bias"):
        load_backbone(folder)


def test_without_a_network_names_are_all_that_changes(timm_folder: tuple[CvT, Path]) -> None:
    model, _ = timm_folder
    assert convert_cvt_weights(of_microsoft(model.state_dict())).keys() == model.state_dict().keys()


def spoilt(folder: Path, **changes: object) -> Path:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value != "gone"}))
    return folder


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "vit"}, "model_type is 'vit'; expected 'cvt'"),
        ({"depth": "gone", "kernel_qkv": "gone"}, "depth, kernel_qkv missing; expected every setting"),
        ({"mlp_ratio": [4.0, 4.0, 2.0]}, "mlp_ratio is .4.0, 4.0, 2.0.; expected one value for all stages"),
        ({"cls_token": [False, True, True]}, "expected a class token in the last stage only"),
        ({"stride_q": [2, 1, 1]}, "stride_q is .2, 1, 1.; expected 1 in every stage"),
        ({"padding_kv": [0, 0, 0]}, "padding_kv is .0, 0, 0.; expected 1 in every stage"),
        ({"depth": [1, 1, 3]}, "hold .* .stages.1.blocks.1.*that this network has not"),
    ],
)
def test_designs_that_are_not_ours_are_refused(tmp_path: Path, changes: dict, words: str) -> None:
    _, folder = transformers_folder(tmp_path)
    with pytest.raises(BackboneError, match=words):
        cvt_from_transformers(spoilt(folder, **changes))


def test_folders_that_lack_something_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="config.json is missing; expected a folder as transformers"):
        cvt_from_transformers(tmp_path)
    _, folder = transformers_folder(tmp_path)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:500])
    with pytest.raises(BackboneError, match="model.safetensors is cut short or damaged"):
        cvt_from_transformers(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(BackboneError, match="model.safetensors is missing; expected the weights in one file"):
        cvt_from_transformers(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(BackboneError, match="pytorch_model.bin, a pickle, which can run code"):
        cvt_from_transformers(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(BackboneError, match="config.json"):
        cvt_from_transformers(folder)
