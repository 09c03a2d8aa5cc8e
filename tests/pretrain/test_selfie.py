from __future__ import annotations

import copy
import math
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from offshelf.backbones.export import save_backbone
from offshelf.backbones.load import load_backbone
from offshelf.data.picture_views import PictureViews
from offshelf.engine.draws import Draws
from offshelf.engine.optimise import freeze_unreached
from offshelf.engine.train import Training, train
from offshelf.errors import BackboneError, UsageError
from offshelf.pretrain.selfie import (
    AttentionPooling,
    Positions,
    Selfie,
    cut_patches,
    default_patch,
    hidden_count,
    join_patches,
    match,
    selection_loss,
    split,
)

SMALL: dict[str, Any] = {"layers": (1, 1, 1, 1), "channels": (16, 16, 32, 32), "output_stride": 8}


def small(seed: int = 0, network: dict[str, Any] | None = None, **settings: Any) -> Selfie:
    """An objective at 64 pixels: 16 patches of 16 pixels, a patch network of stride 8 with 32 channels."""
    torch.manual_seed(seed)
    backbone = timm.create_model("resnet18", num_classes=0, **SMALL | (network or {}))
    return Selfie(backbone, 64, **{"depth": 2, "num_heads": 4, "dropout": 0.0} | settings)


def batch_of(objective: Selfie, n: int = 4, epoch: int = 0) -> dict[str, torch.Tensor]:
    table = np.random.default_rng(0).integers(0, 256, (n, 3, 70, 70), dtype=np.uint8)
    return objective.views()(torch.from_numpy(table), Draws(0, epoch, range(n)))


def painted(pictures: torch.Tensor, numbers: torch.Tensor, side: int = 16) -> torch.Tensor:
    """``pictures`` with random pixels in patches ``numbers`` (B, k)."""
    patches = cut_patches(pictures, side)
    rows = torch.arange(len(patches))[:, None]
    patches[rows, numbers] = torch.randn_like(patches[rows, numbers])
    return join_patches(patches, pictures.shape[-1] // side)


# ---- patches and splits ----


@pytest.mark.parametrize(("size", "side"), [(32, 8), (48, 8), (64, 16), (96, 16), (128, 32), (160, 32), (224, 32)])
def test_patches_of_the_paper_and_between(size: int, side: int) -> None:
    assert default_patch(size) == side


@pytest.mark.parametrize(("patches", "hidden"), [(16, 4), (49, 12), (36, 9), (25, 6)])
def test_every_picture_hides_a_quarter(patches: int, hidden: int) -> None:
    assert hidden_count(patches, 0.25) == hidden
    seen, away = split(torch.rand(50, patches), hidden)
    assert seen.shape == (50, patches - hidden) and away.shape == (50, hidden)
    assert torch.equal(torch.cat([seen, away], 1).sort(1).values, torch.arange(patches).expand(50, -1))
    assert len({tuple(sorted(row)) for row in away.tolist()}) > 40  # drawn for each picture


def test_the_smallest_numbers_are_hidden() -> None:
    seen, hidden = split(torch.tensor([[0.9, 0.1, 0.5, 0.3]]), 2)
    assert (seen.tolist(), hidden.tolist()) == ([[2, 0]], [[1, 3]])


def test_patches_are_cut_row_by_row_and_joined_again() -> None:
    pictures = torch.arange(2 * 3 * 6 * 6, dtype=torch.float32).view(2, 3, 6, 6)
    patches = cut_patches(pictures, 2)
    assert patches.shape == (2, 9, 3, 2, 2)
    for row in range(3):
        for column in range(3):
            cell = pictures[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            assert torch.equal(patches[:, row * 3 + column], cell)
    assert torch.equal(join_patches(patches, 3), pictures)


def test_features_keep_the_order_of_patches() -> None:
    objective = small().eval()
    pictures = batch_of(objective)["pictures"]
    features = objective.encode(pictures)
    assert features.shape == (4, 16, 32)
    alone = pictures[2:3, :, 16:32, 48:64]  # row 1, column 3
    found = objective.backbone.forward_intermediates(alone, indices=[3], stop_early=True, intermediates_only=True)
    torch.testing.assert_close(features[2, 1 * 4 + 3], found[0].mean((2, 3))[0], rtol=1e-4, atol=1e-5)


# ---- the loss ----


@pytest.mark.parametrize(("m", "expected"), [(4, 1.386294), (12, 2.484907)])
def test_equal_features_score_at_chance(m: int, expected: float) -> None:
    scores = match(torch.randn(3, m, 8), torch.ones(3, m, 8))
    assert selection_loss(scores).item() == pytest.approx(expected, abs=2e-6)


def test_two_patches_by_hand() -> None:
    scores = match(torch.eye(2)[None], torch.eye(2)[None])
    assert torch.equal(scores, torch.eye(2)[None])
    assert selection_loss(scores).item() == pytest.approx(0.313262, abs=1e-6)  # ln(1 + 1/e); a second softmax: 0.488548


def test_a_loss_without_a_second_softmax_can_reach_zero() -> None:
    assert selection_loss(30 * torch.eye(4)[None]).item() < 1e-6  # with one it stays above 0.743668


def test_the_score_of_position_and_patch_stands_at_their_row_and_column() -> None:
    scores = match(torch.tensor([[[1.0, 0.0], [0.0, 2.0]]]), torch.tensor([[[3.0, 4.0], [5.0, 6.0]]]))
    assert scores.tolist() == [[[3.0, 5.0], [8.0, 12.0]]]


def test_order_of_hidden_patches_moves_rows_and_columns_together() -> None:
    objective = small().eval()
    batch = batch_of(objective)
    seen, hidden = split(batch["noise"], 4)
    order = torch.tensor([2, 0, 3, 1])
    scores = objective.scores(batch["pictures"], seen, hidden)
    moved = objective.scores(batch["pictures"], seen, hidden[:, order])
    torch.testing.assert_close(moved, scores[:, order][:, :, order])
    assert selection_loss(moved).item() == pytest.approx(selection_loss(scores).item(), rel=1e-5)


def test_two_equal_patches_cost_at_least_ln_2_each() -> None:
    objective = small().eval()
    batch = batch_of(objective)
    seen, hidden = split(batch["noise"], 4)
    patches, rows = cut_patches(batch["pictures"], 16), torch.arange(4)
    patches[rows, hidden[:, 1]] = patches[rows, hidden[:, 2]]
    scores = objective.scores(join_patches(patches, 4), seen, hidden)
    costs = -scores.log_softmax(-1).diagonal(dim1=1, dim2=2)
    assert (costs[:, 1:3] >= math.log(2) - 1e-5).all()


def test_a_single_hidden_patch_teaches_nothing() -> None:
    objective = small()
    batch = batch_of(objective)
    loss = selection_loss(objective.scores(batch["pictures"], *split(batch["noise"], 1)))
    loss.backward()
    assert loss.item() == 0.0
    assert all(p.grad is None or (p.grad == 0).all() for p in objective.parameters())


# ---- positions and pooling ----


def test_positions_of_rows_and_columns() -> None:
    torch.manual_seed(0)
    positions = Positions(7, 5, factorised=True)
    assert positions.vectors.shape == (14, 5)
    cells = positions().view(7, 7, 5)
    torch.testing.assert_close(cells[2, 3], positions.vectors[2] + positions.vectors[7 + 3])
    apart = cells[:, 1] - cells[:, 4]
    torch.testing.assert_close(apart, apart[:1].expand(7, -1))
    assert Positions(4, 5, factorised=False)().shape == (16, 5)


def test_grids_of_the_paper() -> None:
    table = small().positions
    assert (table.factorised, len(table.vectors)) == (False, 16)
    torch.manual_seed(0)
    axes = Selfie(load_backbone("test_resnet.random"), 224)
    assert (axes.patch, axes.grid, axes.hidden) == (32, 7, 12)
    assert (axes.positions.factorised, len(axes.positions.vectors)) == (True, 14)
    assert len(small(factorised_positions=True).positions.vectors) == 8


def test_pooling_of_the_paper() -> None:
    with torch.device("meta"):
        objective = Selfie(timm.create_model("resnet50", num_classes=0), 224)
    layers = objective.pooling.layers
    assert len(layers) == 3
    assert (layers[0].self_attn.num_heads, layers[0].self_attn.embed_dim) == (32, 1024)
    assert (layers[0].linear1.out_features, layers[0].dropout.p) == (640, 0.1)
    assert objective.pooling.summary.requires_grad  # learnt, not constant


def test_layers_of_the_pooling_start_apart_and_the_summary_small() -> None:
    torch.manual_seed(0)
    pooling = AttentionPooling(64, 2, 2, 5, 0.0)
    one, two = pooling.layers
    assert not torch.equal(one.linear1.weight, two.linear1.weight)
    assert pooling(torch.randn(50, 9, 64)).std().item() == pytest.approx(0.1, rel=0.02)
    assert Positions(8, 64, factorised=False).vectors.std().item() == pytest.approx(0.2, rel=0.05)


def test_hidden_pixels_do_not_reach_the_summary() -> None:
    objective = small().eval()
    batch = batch_of(objective)
    seen, hidden = split(batch["noise"], 4)
    summary = objective.summarise(objective.encode(batch["pictures"]), seen)
    other = objective.summarise(objective.encode(painted(batch["pictures"], hidden)), seen)
    assert torch.equal(summary, other)
    third = objective.summarise(objective.encode(painted(batch["pictures"], seen[:, :1])), seen)
    assert not torch.allclose(summary, third)


@pytest.mark.parametrize("with_positions", [True, False])
def test_the_summary_knows_places_by_positions_alone(with_positions: bool) -> None:
    objective = small(context_positions=with_positions).eval()
    batch = batch_of(objective)
    seen, _ = split(batch["noise"], 4)
    features = objective.encode(batch["pictures"])
    summary = objective.summarise(features, seen)
    torch.testing.assert_close(objective.summarise(features, seen.flip(1)), summary)  # the same set
    swapped = features.clone()
    rows = torch.arange(4)
    swapped[rows, seen[:, 0]], swapped[rows, seen[:, 1]] = features[rows, seen[:, 1]], features[rows, seen[:, 0]]
    moved = objective.summarise(swapped, seen)
    assert torch.allclose(moved, summary, rtol=1e-4, atol=1e-5) is not with_positions


def test_the_context_cannot_say_where_a_patch_belongs() -> None:
    """The query is a sum, so the context moves all rows of the scores alike."""
    objective = small().eval()
    batch = batch_of(objective)
    seen, hidden = split(batch["noise"], 4)
    scores = objective.scores(batch["pictures"], seen, hidden)
    other = objective.scores(painted(batch["pictures"], seen), seen, hidden)
    assert not torch.allclose(scores, other, atol=1e-2)
    torch.testing.assert_close(scores - scores[:, :1], other - other[:, :1], rtol=1e-3, atol=1e-4)


# ---- the objective ----


def test_gradients_reach_the_patch_network_through_queries_and_candidates() -> None:
    objective = small(network={"zero_init_last": False})
    batch = batch_of(objective)
    seen, hidden = split(batch["noise"], 4)
    kernel = objective.backbone.conv1.weight

    def reached(side: str) -> torch.Tensor:
        features = objective.encode(batch["pictures"])
        still = features.detach()
        context, patches = (features, still) if side == "queries" else (still, features)
        queries = objective.summarise(context, seen)[:, None] + objective.positions()[hidden]
        rows = torch.arange(4)[:, None]
        return torch.autograd.grad(selection_loss(match(queries, patches[rows, hidden])), kernel)[0]

    queries, candidates = reached("queries"), reached("candidates")
    assert (queries != 0).any() and (candidates != 0).any()
    whole = torch.autograd.grad(objective(batch)["loss"], kernel)[0]
    torch.testing.assert_close(whole, queries + candidates, rtol=1e-3, atol=1e-5)


def test_the_last_stage_is_neither_computed_nor_changed() -> None:
    objective = small(network={"zero_init_last": False})
    objective.backbone.layer4.register_forward_hook(lambda *_: pytest.fail("the last stage was computed"))
    before = copy.deepcopy(objective.backbone.state_dict())
    data = PictureViews(np.random.default_rng(0).integers(0, 256, (8, 3, 64, 64), dtype=np.uint8), objective.views())
    train(objective, data, Training.of(objective.recipe, n=8, steps=3, batch_size=4))
    for name, value in objective.export().state_dict().items():
        assert torch.equal(value, before[name]) is name.startswith("layer4."), name


def test_8_543_296_weights_of_a_resnet_50_are_learnt_and_carried_over() -> None:
    torch.manual_seed(0)
    backbone = timm.create_model("resnet50", num_classes=0)
    objective = Selfie(backbone, 64, patch_size=32, hidden_ratio=0.5, depth=1)
    freeze_unreached(objective, batch_of(objective, 2))
    assert sum(p.numel() for p in backbone.parameters() if p.requires_grad) == 8_543_296
    classifier = timm.create_model("resnet50", num_classes=1000)
    assert sum(p.numel() for p in classifier.parameters()) == 25_557_032
    before = copy.deepcopy(classifier.state_dict())
    learnt = {k: v for k, v in objective.export().state_dict().items() if not k.startswith("layer4.")}
    missing, unexpected = classifier.load_state_dict(learnt, strict=False)
    assert not unexpected and {name.split(".")[0] for name in missing} == {"layer4", "fc"}
    assert all(torch.equal(classifier.state_dict()[name], before[name]) for name in missing)


def test_loss_and_accuracy_belong_to_the_scores() -> None:
    objective = small()
    batch = batch_of(objective)
    state = copy.deepcopy(objective.state_dict())
    told = objective(batch)
    objective.load_state_dict(state)
    scores = objective.scores(batch["pictures"], *split(batch["noise"], 4))
    right = (scores.argmax(-1) == torch.arange(4)).float().mean()
    assert told["loss"].item() == pytest.approx(selection_loss(scores).item(), rel=1e-5)
    assert told["accuracy"].item() == right.item()
    assert told["score_spread"].item() == pytest.approx(scores.std(-1).mean().item(), rel=1e-5)


def test_bf16() -> None:
    objective = small()
    batch = batch_of(objective)
    exact = copy.deepcopy(objective)(batch)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(batch)["loss"]
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.03)


def test_views_are_the_same_one_by_one_and_pickle() -> None:
    views = pickle.loads(pickle.dumps(small().views()))
    table = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, 3, 70, 70), dtype=np.uint8))
    together = views(table, Draws(5, 2, [7, 8, 9]))
    assert together["pictures"].shape == (3, 3, 64, 64) and together["noise"].shape == (3, 16)
    for i in range(3):
        alone = views(table[i : i + 1], Draws(5, 2, [7 + i]))
        for key, value in together.items():
            assert torch.equal(value[i : i + 1], alone[key])
    assert not torch.equal(together["noise"], views(table, Draws(5, 3, [7, 8, 9]))["noise"])


def test_learnt_vectors_do_not_decay() -> None:
    objective = small()
    assert objective.no_weight_decay() <= {name for name, _ in objective.named_parameters()}
    groups = objective.parameter_groups(0.1, 1e-4)
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert decay[id(objective.positions.vectors)] == decay[id(objective.pooling.summary)] == 0
    assert decay[id(objective.backbone.conv1.weight)] == 1e-4


def test_it_learns_where_patches_belong(tmp_path: Any) -> None:
    """Pictures that fade from top to bottom: a patch's grey tells its row, and a quarter is hidden at chance 1/4."""
    objective = small(flip=False, crop_scale=(1.0, 1.0))
    random = np.random.default_rng(0)
    fade = np.linspace(20, 200, 64)[None, None, :, None] + random.normal(0, 6, (64, 3, 64, 64))
    data = PictureViews(fade.clip(0, 255).astype(np.uint8), objective.views(), seed=0)
    recipe = replace(objective.recipe, batch_size=32)
    told = train(objective, data, Training.of(recipe, n=64, steps=60, seed=0, log_every=10)).history
    assert told[-1]["accuracy"] > 0.5 and told[-1]["loss"] < 1.15
    backbone = objective.export().eval()
    again = load_backbone(str(save_backbone(backbone, tmp_path / "net", model_args=SMALL)))
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(again(x), backbone(x))


def test_illustrations_put_a_chosen_patch_at_every_hidden_place() -> None:
    objective = small().eval()
    batch = batch_of(objective)
    with torch.no_grad():
        shown = objective.illustrate(batch)
        scores = objective.scores(batch["pictures"], *split(batch["noise"], 4))
    picture, seen, back = (cut_patches(one, 16) for one in shown.values())
    for row in range(4):
        visible, hidden = (numbers[row] for numbers in split(batch["noise"], 4))
        assert torch.equal(seen[row, visible], picture[row, visible]) and (seen[row, hidden] == 0).all()
        assert torch.equal(back[row, visible], picture[row, visible])
        for place, choice in enumerate(scores[row].argmax(-1).tolist()):
            put = back[row, hidden[place]]
            assert torch.equal(put[:, 1:-1, 1:-1], picture[row, hidden[choice]][:, 1:-1, 1:-1])
            assert put[:, 0, 5].tolist() == pytest.approx([0.1, 0.8, 0.1] if choice == place else [0.9, 0.1, 0.1])


# ---- what is refused ----


@pytest.mark.parametrize(
    ("size", "settings", "told"),
    [
        (70, {}, "image_size=70.*64 and 80 work"),
        (66, {"patch_size": 32}, "image_size=66.*64 and 96 work"),
        (30, {"patch_size": 32}, "image_size=30.*64 works"),
        (32, {"patch_size": 32}, "image_size=32.*64 works"),
        (32, {"patch_size": 4}, "patch_size=4.*stride of 8.*patch_size=8"),
        (64, {"hidden_ratio": 0.05}, "hidden_ratio=0.05: of 16 patches 1 would be hidden"),
        (64, {"hidden_ratio": 1.0}, "hidden_ratio=1.0"),
        (64, {"num_heads": 5}, "num_heads=5.*32 channels"),
        (64, {"depth": 0}, "depth=0"),
        (64, {"dropout": 1.0}, "dropout=1.0"),
        (64, {"crop_scale": (0.9, 0.5)}, "crop_scale"),
    ],
)
def test_wrong_sizes_and_settings_name_right_ones(size: int, settings: dict[str, Any], told: str) -> None:
    backbone = timm.create_model("resnet18", num_classes=0, **SMALL)
    with pytest.raises(UsageError, match=told):
        Selfie(backbone, size, **settings)


def test_a_stride_that_is_too_large_is_told_with_pictures_that_work() -> None:
    with pytest.raises(UsageError, match="patch_size=8: .*stride of 16.*pictures of 64 pixels"):
        Selfie(timm.create_model("test_resnet", num_classes=0), 32)


def test_other_networks_are_sent_on() -> None:
    with pytest.raises(BackboneError, match="VisionTransformer: .*ResNet.*mae-thorax, sit"):
        Selfie(load_backbone("test_vit.random"), 160)
    with pytest.raises(BackboneError, match="Sequential"):
        Selfie(nn.Sequential(), 64)
    with pytest.raises(BackboneError, match="ByobNet: it cannot be run on a patch of 32 pixels"):
        Selfie(timm.create_model("botnet26t_256", num_classes=0), 128)


@pytest.mark.parametrize(
    "name",
    [
        *("test_resnet", "resnetv2_18", "legacy_seresnet18", "regnetx_002", "test_convnext", "inception_next_atto"),
        *("test_efficientnet", "mobilenetv4_conv_small", "ghostnet_050", "rexnet_100", "dpn48b", "dla46_c"),
        *("ese_vovnet19b_dw", "test_byobnet", "test_nfnet", "hgnetv2_b0", "repvit_m0_9", "starnet_s1", "test_mambaout"),
    ],
)
def test_families_learn_in_all_but_the_last_stage_and_keep_modes(name: str) -> None:
    backbone = timm.create_model(name, num_classes=0)
    state, modes = copy.deepcopy(backbone.state_dict()), [m.training for m in backbone.modules()]
    objective = Selfie(backbone, 64, patch_size=32, hidden_ratio=0.5, depth=1)
    assert [m.training for m in backbone.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in backbone.state_dict().items())
    info = backbone.feature_info if isinstance(backbone.feature_info, list) else backbone.feature_info.info
    assert objective.positions.vectors.shape == (4, info[-2]["num_chs"])
    frozen = freeze_unreached(objective.train(), batch_of(objective, 2))
    assert frozen and all(key.startswith("backbone.") for key in frozen)
    assert sum(p.requires_grad for p in backbone.parameters()) > 0.35 * len(list(backbone.parameters()))
