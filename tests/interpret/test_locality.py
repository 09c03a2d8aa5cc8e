from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from offshelf.backbones.convit import convit, convit_mini, gated_layers
from offshelf.backbones.load import load_backbone
from offshelf.data.sources import open_dataset
from offshelf.engine.recipe import Recipe
from offshelf.engine.train import Training, Watch, train
from offshelf.errors import ImageError, NotApplicable, UsageError
from offshelf.interpret.attention import attention_maps
from offshelf.interpret.locality import (
    LocalityProbe,
    centre_distance,
    locality_study,
    non_locality,
    patches_only,
    positional_maps,
    uniform_non_locality,
)
from offshelf.interpret.locality_look import hint, look, sentences
from offshelf.transfer.classification import Classification, ClassificationViews, LabelledPictures


def by_loops(attention: torch.Tensor, rows: int, columns: int) -> float:
    """Non-locality of one map (N, N), patch by patch."""
    total = 0.0
    for i in range(rows * columns):
        for j in range(rows * columns):
            total += float(attention[i, j]) * math.hypot(i // columns - j // columns, i % columns - j % columns)
    return total / (rows * columns)


# ---- arithmetic ------------------------------------------------------------------------------------------------------


def test_uniform_attention_by_hand() -> None:
    assert (
        uniform_non_locality((2, 2))
        == pytest.approx((0 + 1 + 1 + math.sqrt(2)) / 4)
        == pytest.approx(0.85355, abs=5e-6)
    )
    assert uniform_non_locality((8, 8)) == pytest.approx(4.1365, abs=5e-5)
    assert uniform_non_locality((14, 14)) == pytest.approx(7.2808, abs=5e-5)


def test_non_locality_of_known_maps() -> None:
    assert non_locality(torch.eye(16), (4, 4)) == 0
    across = torch.eye(4)[[1, 0, 3, 2]]  # each patch of a 2 x 2 grid sees its neighbour in the row
    assert non_locality(across, (2, 2)) == 1
    diagonal = torch.eye(4)[[3, 2, 1, 0]]
    assert float(non_locality(diagonal, (2, 2))) == pytest.approx(math.sqrt(2))


def test_non_locality_against_loops_on_a_grid_that_is_no_square() -> None:
    torch.manual_seed(0)
    attention = torch.randn(2, 3, 12, 12).softmax(-1)
    found = non_locality(attention, (3, 4))
    assert found.shape == (2, 3)
    expected = [[by_loops(head, 3, 4) for head in picture] for picture in attention]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


def test_a_class_token_is_left_out_and_rows_sum_to_one_again() -> None:
    torch.manual_seed(0)
    whole = torch.randn(2, 5, 5).softmax(-1)
    inner = patches_only(whole, 4)
    torch.testing.assert_close(inner.sum(-1), torch.ones(2, 4))
    torch.testing.assert_close(inner[0, 1], whole[0, 2, 1:] / whole[0, 2, 1:].sum())
    assert torch.equal(non_locality(whole, (2, 2)), non_locality(inner, (2, 2)))
    class_only = torch.zeros(5, 5)
    class_only[:, 0] = 1  # patches that look at the class token alone look at no patch
    assert non_locality(class_only, (2, 2)) == 0


@pytest.mark.parametrize("shape", [(4, 5), (3, 3), (4,)])
def test_maps_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"expected \(\.\.\., N, N\) with the 4 patches of a grid of 2 x 2"):
        non_locality(torch.ones(shape), (2, 2))


def test_positional_maps_are_those_of_the_layer() -> None:
    layer = next(layer for _, layer in gated_layers(convit_mini()))
    nn.init.normal_(layer.pos_proj.weight, std=0.3)
    layer.gating_param.data.fill_(30.0)
    expected = layer.get_attention(torch.zeros(1, 64, 72)).detach()[0]
    torch.testing.assert_close(
        positional_maps(layer.pos_proj.weight.detach(), 8).float(), expected, atol=1e-6, rtol=1e-4
    )


def test_centres() -> None:
    vectors = torch.tensor([[-2.0, -2.0, -1.0], [0.0, 0.0, -1.0], [3.0, 4.0, -0.5], [1.0, 0.0, 0.0]])
    assert centre_distance(vectors)[:3].tolist() == pytest.approx([math.sqrt(2), 0, 5])
    assert math.isinf(centre_distance(vectors)[3])


# ---- studies ---------------------------------------------------------------------------------------------------------


def test_convit_at_its_start_on_a_grid_of_fourteen() -> None:
    torch.manual_seed(0)
    model = convit(size="tiny", depth=2, local_up_to_layer=1)
    study = locality_study(model, torch.randn(2, 3, 224, 224))
    first, last = study["layers"]
    assert study["uniform"] == pytest.approx(7.2808, abs=5e-5) and study["grid"] == [14, 14]
    assert first["non_locality"] == pytest.approx(2.68, abs=0.005)
    head = first["heads"][0]
    assert head["positional_non_locality"] == pytest.approx(0.99, abs=0.005)
    share = 0.73106
    assert head["non_locality"] == pytest.approx(
        (1 - share) * 7.2808 + share * head["positional_non_locality"], abs=0.01
    )
    assert head["centre"] == [-0.5, -0.5] and head["centre_distance"] == pytest.approx(math.sqrt(0.5))
    assert head["gate"] == pytest.approx(share, abs=1e-5) and head["strength"] == 1.0
    assert last["kind"] == "ordinary" and last["gate"] is None
    assert last["non_locality"] == pytest.approx(7.28, abs=0.02)  # the class token is left out


def test_each_layer_is_read_at_its_true_input() -> None:
    torch.manual_seed(0)
    model, x = convit_mini().eval(), torch.randn(3, 3, 32, 32)
    for _, layer in gated_layers(model):
        nn.init.normal_(layer.qk.weight, std=0.5)
    study = locality_study(model, x)
    tokens = model.patch_embed(x) + model.pos_embed
    for number, block in enumerate(model.blocks[:3]):
        expected = block.attn.get_attention_map(block.norm1(tokens)).detach()  # timm's own, head by head
        found = [head["non_locality"] for head in study["layers"][number]["heads"]]
        np.testing.assert_allclose(found, expected, rtol=1e-4)
        tokens = block(tokens)


def test_the_published_reading_shows_every_layer_the_patch_embedding() -> None:
    torch.manual_seed(0)
    model, x = convit_mini().eval(), torch.randn(3, 3, 32, 32)
    for block in model.blocks:
        nn.init.normal_((block.attn.qk if block.use_gpsa else block.attn.qkv).weight, std=0.3)
    study, true = locality_study(model, x, official=True), locality_study(model, x)
    for layer, block in zip(study["layers"], model.blocks):
        expected = block.attn.get_attention_map(model.patch_embed(x)).detach()
        np.testing.assert_allclose([head["non_locality"] for head in layer["heads"]], expected, rtol=1e-4)
    assert (study["reading"], true["reading"]) == ("patch embedding", "true inputs")
    assert study["layers"][2]["non_locality"] != pytest.approx(true["layers"][2]["non_locality"], rel=1e-3)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "eva02_tiny_patch14_224"])
def test_any_plain_vision_transformer_can_be_studied(name: str) -> None:
    torch.manual_seed(0)
    side = 32 if "patch16" in name else 28
    model: Any = timm.create_model(name, img_size=side, depth=2).eval()
    x = torch.randn(5, 3, side, side)
    before = model(x)
    fused = [part.fused_attn for part in model.modules() if hasattr(part, "fused_attn")]
    study = locality_study(model.train(), x)
    assert [layer["kind"] for layer in study["layers"]] == ["ordinary"] * 2
    assert model.training and torch.equal(model.eval()(x), before)
    assert fused == [part.fused_attn for part in model.modules() if hasattr(part, "fused_attn")] and all(fused)
    assert all(0.7 < layer["non_locality"] < 1.0 for layer in study["layers"])  # 2 x 2 patches: 0.854 everywhere alike


def test_a_vision_transformers_map_is_its_softmax() -> None:
    torch.manual_seed(0)
    model: Any = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1).eval()
    nn.init.normal_(model.blocks[0].attn.qkv.weight, std=0.2)
    x = torch.randn(2, 3, 32, 32)
    with attention_maps(model) as maps:
        model(x)
    tokens = model.blocks[0].norm1(model._pos_embed(model.patch_embed(x)))
    q, k, _ = model.blocks[0].attn.qkv(tokens).reshape(2, 5, 3, 3, 64).unbind(2)
    expected = (torch.einsum("bihd,bjhd->bhij", q, k) / 8).softmax(-1)
    assert list(maps) == ["blocks.0.attn"]
    torch.testing.assert_close(maps["blocks.0.attn"], expected.detach(), atol=1e-6, rtol=1e-5)


def test_batches_do_not_change_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = convit_mini().eval(), torch.randn(5, 3, 32, 32)
    whole = locality_study(model, x)
    monkeypatch.setattr("offshelf.interpret.locality.BATCH", 2)
    parts = locality_study(model, x)
    assert parts["pictures"] == 5
    assert [layer["non_locality"] for layer in parts["layers"]] == pytest.approx(
        [layer["non_locality"] for layer in whole["layers"]], rel=1e-5
    )


def test_without_pictures_gates_and_positions_alone() -> None:
    model = convit_mini(gate=0.0)
    first = next(layer for _, layer in gated_layers(model))
    first.pos_proj.weight.data[1] = torch.tensor([1.0, 0.0, 0.5])  # looks away from itself: no centre
    first.pos_proj.weight.data[2] = torch.tensor([1.0, 0.0, 0.0])
    study = locality_study(model)
    assert study["pictures"] == 0 and len(study["layers"]) == 3
    heads = study["layers"][0]["heads"]
    assert [head["gate"] for head in heads] == [0.5] * 9 and heads[0]["non_locality"] is None
    assert heads[1]["centre"] is None and heads[1]["strength"] == -0.5 and heads[1]["centre_distance"] == 1.0
    assert heads[2]["centre_distance"] is None
    assert json.loads(json.dumps(study, allow_nan=False)) == study


@pytest.mark.parametrize(
    ("name", "pictures", "words"),
    [
        ("vit_tiny_patch16_224", False, "VisionTransformer has no gates: without pictures"),
        ("resnet18", True, "ResNet has no grid of patches"),
        ("swin_tiny_patch4_window7_224", True, r"SwinTransformer: layers.0.blocks.0.attn gives attention of shape"),
    ],
)
def test_what_cannot_be_studied_is_refused(name: str, pictures: bool, words: str) -> None:
    with pytest.raises(NotApplicable, match=words):
        locality_study(timm.create_model(name), torch.zeros(1, 3, 224, 224) if pictures else None)


def test_other_refusals() -> None:
    with pytest.raises(UsageError, match=r"pictures of shape \(2, 3, 24, 24\): expected \(B, 3, 32, 32\)"):
        locality_study(convit_mini(), torch.zeros(2, 3, 24, 24))
    with pytest.raises(NotApplicable, match="Linear has no attention"), attention_maps(nn.Linear(2, 2)):
        pass


# ---- in a training, and on a folder ----------------------------------------------------------------------------------


def test_a_probe_follows_a_training_and_changes_nothing() -> None:
    random = np.random.default_rng(0)
    pictures, labels = random.integers(0, 256, (16, 3, 16, 16), dtype=np.uint8), np.arange(16) % 2
    views = ClassificationViews(16, (0.5,) * 3, (0.5,) * 3, flip=True)

    def run(probe: LocalityProbe | None) -> Any:
        torch.manual_seed(0)
        model = convit_mini(img_size=16, num_classes=2, proj_drop_rate=0.1)
        watch = Watch() if probe is None else Watch(probe=probe, probe_every=2)
        recipe = Recipe(learning_rate=1e-2, batch_size=8)
        data = LabelledPictures(pictures, labels, views, 2)
        trained = train(Classification(model), data, Training(recipe, steps=4, batch_size=8), watch=watch)
        return model, trained

    probe = LocalityProbe(views.plain(pictures[:4]))
    (model, trained), (plain, _) = run(probe), run(None)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters()))
    assert [record["step"] for record in trained.probes] == [0, 2, 4]
    assert len(probe.rows) == 3 * 4 * 9
    last = probe.rows[-4 * 9]
    assert (last["step"], last["layer"], last["head"]) == (4, 0, 0)
    assert last["gate"] == pytest.approx(float(model.blocks[0].attn.gating_param.detach()[0].sigmoid()))
    assert probe.rows[0]["gate"] == pytest.approx(0.7310586) != last["gate"]
    means = trained.probes[-1]
    assert means["gate"][3] is None and len(means["non_locality"]) == 4


def test_looking_at_a_folder(folder: Path) -> None:
    dataset = open_dataset(folder)
    model = load_backbone("convit_mini.random")
    found = look(model, dataset, seed=0)
    assert found is not None
    assert found["pictures"] == 32 and found["unreadable"] == 0
    assert found["layers"][0]["non_locality"] == pytest.approx(1.98, abs=0.03)
    assert look(model, None, seed=0)["pictures"] == 0  # type: ignore[index]
    assert look(load_backbone("test_resnet.random"), dataset, seed=0) is None
    assert look(load_backbone("test_vit.random"), None, seed=0) is None
    assert "--data" in hint(load_backbone("test_vit.random"), None)
    assert hint(model, dataset) == hint(load_backbone("test_resnet.random"), None) == ""


def test_what_was_found_in_sentences() -> None:
    torch.manual_seed(0)
    model = convit_mini()
    (said,) = sentences({"net": locality_study(model, torch.randn(2, 3, 32, 32))})
    assert said == (
        "net: heads look 1.98 patches away in the first layer and 4.14 in the last (everywhere alike: 4.14), and gates "
        "give positions a share of 0.731 in the first layer, 0.731 at least."
    )
    assert sentences({"net": locality_study(model)})[0].startswith("net: gates give positions")
    assert len(sentences({str(number): locality_study(model) for number in range(6)})) == 4


def test_pictures_that_cannot_be_read_are_counted(folder: Path) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in paths[:6]:
        path.write_bytes(path.read_bytes()[:40])
    dataset, model = open_dataset(folder), load_backbone("convit_mini.random")
    found = look(model, dataset, seed=0)
    assert found is not None and found["pictures"] + found["unreadable"] == 32 and found["unreadable"] >= 2
    for path in paths:
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ImageError):
        look(model, dataset, seed=0)
