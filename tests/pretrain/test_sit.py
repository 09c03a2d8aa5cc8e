from __future__ import annotations

import copy
import math
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from offshelf.backbones.export import save_backbone
from offshelf.backbones.load import load_backbone
from offshelf.backbones.parameter_groups import parameter_groups
from offshelf.data.picture_views import PictureViews
from offshelf.engine.draws import Draws
from offshelf.engine.train import Training, train
from offshelf.errors import BackboneError, UsageError
from offshelf.pretrain.sit import (
    SiT,
    blocks,
    blurred,
    contrastive_loss,
    covered,
    needed,
    reconstruction_loss,
    rectangles,
    rotated,
    unit_noise,
    weighted,
    with_copies,
)
from offshelf.transfer.finetune import FineTune

SMALL: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
PLAIN_VIEWS: dict[str, Any] = {"max_replaced": 0.0, "grey_and_blur": False}


def network(name: str = "deit_tiny_distilled_patch16_224", seed: int = 0, **others: Any) -> Any:
    torch.manual_seed(seed)
    return timm.create_model(name, num_classes=0, **SMALL | others)


def small(name: str = "deit_tiny_distilled_patch16_224", seed: int = 0, **settings: Any) -> SiT:
    """A 4 x 4 grid of patches of 8 pixels."""
    return SiT(network(name, seed), 32, **{"projection_dim": 16} | settings)


def pixels(n: int = 6, side: int = 40) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, 3, side, side), dtype=np.uint8))


def batch_of(objective: SiT, n: int = 6, epoch: int = 0) -> dict[str, torch.Tensor]:
    return objective.views()(pixels(n), Draws(0, epoch, range(n)))


# ---- turns ----


def test_turns_are_clockwise_and_undone_by_the_rest_bit_for_bit() -> None:
    x = torch.randn(4, 3, 5, 5)
    turns = torch.arange(4)
    turned = rotated(x, turns)
    assert torch.equal(turned[0], x[0])
    assert torch.equal(turned[1], torch.rot90(x[1], -1, (1, 2)))
    assert torch.equal(turned[1, :, 0, -1], x[1, :, 0, 0])  # clockwise: the upper left corner comes to the upper right
    assert torch.equal(turned[2], x[2].flip(1, 2))
    assert torch.equal(turned[3], torch.rot90(x[3], 1, (1, 2)))
    assert torch.equal(rotated(turned, (4 - turns) % 4), x)


def test_all_four_turns_are_drawn_evenly_and_for_each_view_anew() -> None:
    turns = small(**PLAIN_VIEWS).views()(pixels(1).expand(800, -1, -1, -1), Draws(0, 0, range(800)))["turns"]
    assert turns.shape == (800, 2)
    shares = np.bincount((4 * turns[:, 0] + turns[:, 1]).numpy(), minlength=16) / 800
    assert (abs(shares - 1 / 16) < 4 * math.sqrt(1 / 16 * 15 / 16 / 800)).all()


# ---- corruption ----


@pytest.mark.parametrize(("side", "most", "sides"), [(32, 0.25, (2, 8)), (224, 0.25, (12, 56)), (32, 1.0, (2, 32))])
def test_rectangles_have_their_sides_and_lie_in_the_picture(side: int, most: float, sides: tuple[int, int]) -> None:
    boxes = rectangles(Draws(0, 0, range(50)), 200, side, most)
    assert (boxes[..., 2:].min(), boxes[..., 2:].max()) == sides
    assert boxes[..., :2].min() == 0
    assert (boxes[..., :2] + boxes[..., 2:]).max() == side


def test_blocks_until_the_area_is_reached_overlaps_counted_twice() -> None:
    boxes = np.array([[[0, 0, 2, 3], [0, 0, 2, 3], [4, 4, 1, 4], [0, 5, 2, 2]]])
    for area, expected in ((0.5, 1), (6.0, 1), (6.5, 2), (12.0, 2), (13.0, 3), (16.5, 4)):
        assert needed(boxes, np.array([area])).tolist() == [[True] * expected + [False] * (4 - expected)]
    lies = covered(boxes, needed(boxes, np.array([13.0])), 8)[0, 0]
    by_hand = torch.zeros(8, 8, dtype=torch.bool)
    by_hand[:2, :3] = True
    by_hand[4, 4:8] = True
    assert torch.equal(lies, by_hand)


@pytest.mark.parametrize("side", [16, 32, 64])
def test_the_replaced_area_is_never_below_the_drawn_share(side: int) -> None:
    draws, again = Draws(3, 0, range(300)), Draws(3, 0, range(300))
    lies = blocks(draws, side, 0.3)
    share = again.uniform(high=0.3)
    boxes = rectangles(again, math.ceil(0.3 * side**2 / math.ceil(0.05 * side) ** 2), side, 0.25)
    used = needed(boxes, share * side**2)
    counted = (boxes[..., 2] * boxes[..., 3] * used).sum(1) / side**2
    assert (counted >= share).all()
    assert (counted <= share + 0.25**2).all()  # by less than one block more
    assert (lies.float().mean((1, 2, 3)).numpy() <= counted + 1e-6).all()
    assert 0.05 < lies.float().mean() < 0.2


def test_enough_blocks_even_if_all_are_the_smallest() -> None:
    boxes = np.tile([0, 0, 2, 2], (1, math.ceil(0.3 * 32**2 / 4), 1))
    assert (boxes[..., 2] * boxes[..., 3]).sum() >= 0.3 * 32**2


@pytest.mark.parametrize(("taps", "sigma"), [(3, 0.1), (7, 1.3), (15, 5.1)])
def test_blur_by_torchvision(taps: int, sigma: float) -> None:
    from torchvision.transforms.v2.functional import gaussian_blur

    x = torch.randn(2, 3, 20, 20)
    ours = blurred(x, torch.tensor([taps, 3]), torch.tensor([sigma, 0.5], dtype=torch.float64))
    torch.testing.assert_close(ours[:1], gaussian_blur(x[:1], [taps, taps], [sigma, sigma]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ours[1:], gaussian_blur(x[1:], [3, 3], [0.5, 0.5]), atol=1e-5, rtol=1e-4)
    assert blurred(torch.randn(1, 3, 4, 4), torch.tensor([15]), torch.tensor([5.0])).isfinite().all()  # tiny pictures


def test_noise_is_standard_normal_and_belongs_to_its_sample() -> None:
    noise = unit_noise(Draws(0, 0, range(40)), torch.Size((3, 16, 16)))
    assert noise.mean().abs() < 0.03 and abs(noise.std() - 1) < 0.03
    assert torch.equal(unit_noise(Draws(0, 0, [7]), torch.Size((3, 16, 16)))[0], noise[7])


def test_copies_come_from_the_same_place_and_view_of_the_drawn_picture() -> None:
    others = torch.arange(4 * 2 * 3 * 6 * 6, dtype=torch.float32).view(4, 2, 3, 6, 6)
    copied = torch.zeros(4, 2, 1, 6, 6, dtype=torch.bool)
    copied[:, :, :, 1:3, 2:5] = True
    donor = torch.tensor([[0.3, 0.99], [0.3, 0.0], [0.0, 0.5], [1.0, 0.8]])  # of 4: pictures 1 3, 1 0, 0 2, 3 3
    changed = with_copies(others, others, copied, donor)
    assert torch.equal(changed[0, 0, :, 1:3, 2:5], others[1, 0, :, 1:3, 2:5])
    assert torch.equal(changed[0, 1, :, 1:3, 2:5], others[3, 1, :, 1:3, 2:5])
    assert torch.equal(changed[1, 0], others[1, 0])  # itself: nothing changes
    assert torch.equal(changed[1, 1, :, 1:3, 2:5], others[0, 1, :, 1:3, 2:5])
    assert torch.equal(changed[3], others[3])
    kept = ~copied.expand_as(others)
    assert torch.equal(changed[kept], others[kept])


def test_without_corruption_pictures_are_clean() -> None:
    batch = batch_of(small(**PLAIN_VIEWS))
    assert torch.equal(batch["corrupted"], batch["clean"]) and not batch["copied"].any()
    assert not torch.equal(batch["clean"][:, 0], batch["clean"][:, 1])  # two views


def test_each_corruption_where_it_should_be() -> None:
    whole = {"jitter": 0.0, "flip": False, "crop_scale": (1.0, 1.0)}
    one = small(**whole, max_replaced=0.0).views()
    n = 200
    batch = one(pixels(1).expand(n, -1, -1, -1), Draws(0, 0, range(n)))
    changed = (batch["corrupted"] != batch["clean"]).any(2).flatten(2).float().mean(2)
    assert changed.min() > 0 and 0.3 < changed.mean() < 0.6  # two rectangles of a quarter of the picture on average
    other = small(**whole, grey_and_blur=False).views()
    batch = other(pixels(1).expand(n, -1, -1, -1), Draws(0, 0, range(n)))
    noisy = (batch["corrupted"] != batch["clean"]).any(2)
    values = batch["corrupted"][noisy[:, :, None].expand_as(batch["corrupted"])]
    assert abs(values.mean()) < 0.03 and abs(values.std() - 1) < 0.03  # unit normal, of normalised pictures
    assert 0.08 < noisy.float().mean() < 0.15 and 0.08 < batch["copied"].float().mean() < 0.15


# ---- losses ----


def test_contrast_by_hand() -> None:
    z = torch.eye(2, 5)
    assert contrastive_loss(z, 3 * z, 0.5).item() == pytest.approx(math.log(1 + 2 * math.exp(-2)), abs=1e-6)
    assert contrastive_loss(z, z, 0.5).item() == pytest.approx(0.239545, abs=1e-6)
    assert contrastive_loss(torch.randn(1, 5), torch.randn(1, 5), 0.5).item() == 0.0
    torch.manual_seed(0)
    a, b = torch.randn(3, 4), torch.randn(3, 4)
    everything = F.normalize(torch.cat([a, b]).double(), dim=1)
    terms = []
    for i in range(6):
        similar = [math.exp(float(everything[i] @ everything[j]) / 0.5) for j in range(6)]
        terms.append(-math.log(similar[(i + 3) % 6] / (sum(similar) - similar[i])))
    assert contrastive_loss(a, b, 0.5).item() == pytest.approx(sum(terms) / 6, rel=1e-5)


def test_weights_by_hand() -> None:
    one = torch.ones(())
    assert weighted(torch.tensor(math.log(4)), one).item() == pytest.approx(1.009989, abs=1e-6)
    assert weighted(torch.tensor(0.5), one, absolute=True).item() == pytest.approx(0.803265, abs=1e-6)
    for loss in (0.2, 1.7):
        for absolute, best in ((False, math.log(2 * loss)), (True, 2 * math.log(loss))):
            s = torch.tensor(best, requires_grad=True)
            (gradient,) = torch.autograd.grad(weighted(torch.tensor(loss), s, absolute), s)
            assert gradient.item() == pytest.approx(0, abs=1e-6)
            above = torch.tensor(best + 1, requires_grad=True)
            assert torch.autograd.grad(weighted(torch.tensor(loss), above, absolute), above)[0] > 0.05
    assert weighted(torch.tensor(0.01), torch.tensor(math.log(0.02))).item() < 0  # the whole may fall below 0


def test_reconstruction_counts_every_pixel_of_the_clean_turned_view(monkeypatch: pytest.MonkeyPatch) -> None:
    clean = torch.randn(2, 3, 8, 8)
    assert reconstruction_loss(clean, clean).item() == 0
    painted = clean.clone().requires_grad_(True)
    loss = reconstruction_loss(painted + 0.25, clean)
    assert loss.item() == pytest.approx(0.25, abs=1e-6)
    torch.testing.assert_close(torch.autograd.grad(loss, painted)[0], torch.full_like(painted, 1 / painted.numel()))

    objective = small(rotate=False, contrast=False)
    batch = batch_of(objective)
    truth = batch["clean"].transpose(0, 1).flatten(0, 1)
    monkeypatch.setattr(objective, "paint", lambda patches: truth)
    assert objective(batch)["loss"].item() == 0  # whatever the corrupted pictures look like
    plain = batch_of(small(**PLAIN_VIEWS))
    one = small(**PLAIN_VIEWS)
    monkeypatch.setattr(one, "paint", lambda patches: plain["corrupted"].transpose(0, 1).flatten(0, 1))
    assert one(plain)["reconstruction"].item() == 0  # a perfect autoencoder of pictures that are not corrupted


# ---- the network and its heads ----


def test_parameter_counts_of_the_paper() -> None:
    with torch.device("meta"):
        objective = SiT(timm.create_model("vit_base_patch16_224", num_classes=0), 224)
    heads = {
        name: sum(p.numel() for p in getattr(objective, name).parameters())
        for name in ("turn_head", "contrast_head", "pixel_head")
    }
    assert heads == {"turn_head": 3_076, "contrast_head": 393_728, "pixel_head": 589_827}
    assert objective.log_variances is not None and objective.log_variances.shape == (3,)


def test_a_distilled_network_is_read_as_timm_reads_it() -> None:
    objective = small().eval()
    assert objective.own_tokens is None and objective.backbone.pos_embed.shape[1] == 16 + 2
    x = torch.randn(2, 3, 32, 32)
    turn, contrast, patches = objective.encode(x)
    assert torch.equal(
        torch.cat([turn[:, None], contrast[:, None], patches], 1), objective.backbone.forward_features(x)
    )


@pytest.mark.parametrize(
    ("name", "others", "missing"),
    [
        ("deit_tiny_distilled_patch16_224", {}, 0),
        ("vit_tiny_patch16_224", {}, 1),
        ("vit_tiny_patch16_224", {"reg_tokens": 2}, 1),
        ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}, 2),
    ],
)
def test_tokens_that_a_network_lacks_are_added(name: str, others: dict[str, Any], missing: int) -> None:
    objective = SiT(network(name, **others), 32, projection_dim=8).eval()
    assert objective.missing == missing
    x = torch.randn(2, 3, 32, 32)
    turn, contrast, patches = objective.encode(x)
    assert turn.shape == contrast.shape == (2, 32) and patches.shape == (2, 16, 32)
    assert not torch.allclose(turn, contrast)
    # tokens that nobody could tell apart from others would change what the others see by their number alone
    if missing == 1:
        token = objective.own_tokens
        objective.own_tokens, objective.missing = None, 0
        alone = objective.backbone.fc_norm(objective.backbone.forward_features(x))
        assert torch.equal(objective.encode(x)[0], alone[:, 0])  # without it: the network itself, class token first
        objective.own_tokens, objective.missing = token, 1
    else:
        assert objective.no_weight_decay() == ({"own_tokens"} if missing else set())


def test_a_patch_is_painted_from_its_own_token() -> None:
    objective = small()
    patches = torch.randn(1, 16, 32, requires_grad=True)
    painted = objective.paint(patches)
    assert painted.shape == (1, 3, 32, 32)
    (gradient,) = torch.autograd.grad(painted[0, :, 8:16, 24:32].square().sum(), patches)  # row 1, column 3
    assert (gradient[0].abs().sum(1) > 0).nonzero().flatten().tolist() == [1 * 4 + 3]


def test_tokens_positions_and_weights_do_not_decay() -> None:
    for name in ("deit_tiny_distilled_patch16_224", "vit_tiny_patch16_224"):
        objective = small(name)
        decay = {id(p): g["weight_decay"] for g in objective.parameter_groups(1e-3, 0.05) for p in g["params"]}
        trunk = {id(p): g["trunk"] for g in objective.parameter_groups(1e-3, 0.05) for p in g["params"]}
        still = [objective.backbone.pos_embed, objective.backbone.cls_token, objective.log_variances]
        still.append(objective.own_tokens if objective.missing else objective.backbone.dist_token)
        assert [decay[id(p)] for p in still] == [0.0] * 4
        assert [trunk[id(p)] for p in still] == [True, True, False, not objective.missing]
        assert decay[id(objective.backbone.blocks[0].mlp.fc1.weight)] == 0.05
        assert len(decay) == len(list(objective.parameters()))


# ---- the objective ----


def test_the_loss_is_the_weighted_sum_of_what_is_told() -> None:
    objective = small()
    told = objective(batch_of(objective))
    parts = {task: told[task].item() for task in ("reconstruction", "rotation", "contrast")}
    e, half = math.exp(-1), math.exp(-0.5)
    whole = half * parts["reconstruction"] + e * parts["rotation"] + e * parts["contrast"] + 1.5
    assert told["loss"].item() == pytest.approx(whole, rel=1e-6)
    assert [told[f"log_variance_{task}"].item() for task in parts] == [1.0] * 3
    assert 0 <= told["rotation_accuracy"] <= 1
    told["loss"].backward()
    expected = [0.5 - half / 2 * parts["reconstruction"], 0.5 - e * parts["rotation"], 0.5 - e * parts["contrast"]]
    torch.testing.assert_close(objective.log_variances.grad, torch.tensor(expected))  # type: ignore[union-attr]
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_single_tasks_are_the_methods_they_come_from() -> None:
    off = {"reconstruct": False, "rotate": False, "contrast": False}
    only = {task: small(**off | {task: True}, **PLAIN_VIEWS) for task in off}
    for task, objective in only.items():
        objective.backbone.load_state_dict(only["rotate"].backbone.state_dict())
        assert objective.tasks == [{"reconstruct": "reconstruction", "rotate": "rotation"}.get(task, task)]
        assert objective.log_variances is None
        batch = batch_of(objective)
        assert (batch["turns"].sum() > 0).item() is (task == "rotate")
        first, second = (batch["clean"][:, view] for view in (0, 1))
        features = [objective.backbone.forward_features(x) for x in (first, second)]
        if task == "reconstruct":  # a denoising autoencoder
            expected = sum(
                (objective.paint(f[:, 2:]) - x).abs().mean() for f, x in zip(features, (first, second), strict=True)
            )
            expected = expected / 2
        elif task == "rotate":  # RotNet
            logits = objective.turn_head(torch.cat([f[:, 0] for f in features]))  # type: ignore[misc]
            expected = F.cross_entropy(logits, batch["turns"].T.flatten())
        else:  # SimCLR with a token
            expected = contrastive_loss(*(objective.contrast_head(f[:, 1]) for f in features), 0.5)  # type: ignore[misc]
        assert objective(batch)["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert list(only["rotate"](batch_of(only["rotate"]))) == ["loss", "rotation_accuracy"]


def test_it_is_determined_by_the_batch_and_runs_in_bf16() -> None:
    objective = small()
    batch = batch_of(objective)
    exact = objective(batch)["loss"]
    torch.manual_seed(99)
    assert torch.equal(objective(batch)["loss"], exact)
    with torch.autocast("cpu", torch.bfloat16):
        told = objective(batch)
    assert all(value.dtype == torch.float32 for value in told.values())
    told["loss"].backward()
    assert told["loss"].item() == pytest.approx(exact.item(), rel=0.02)


def test_views_are_the_same_one_by_one_and_pickle() -> None:
    views = pickle.loads(pickle.dumps(small().views()))
    together = views(pixels(), Draws(5, 2, range(6)))
    shapes = {name: tuple(value.shape[1:]) for name, value in together.items()}
    assert shapes == {
        "clean": (2, 3, 32, 32),
        "corrupted": (2, 3, 32, 32),
        "turns": (2,),
        "copied": (2, 1, 32, 32),
        "donor": (2,),
    }
    for i in range(6):
        alone = views(pixels()[i : i + 1], Draws(5, 2, [i]))
        for name, value in together.items():
            torch.testing.assert_close(value[i : i + 1], alone[name], msg=name)


def two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    objective = small()
    batch = {name: value.chunk(2)[rank] for name, value in batch_of(objective).items()}
    told = objective(batch)
    told["loss"].backward()
    dist.all_reduce(objective.log_variances.grad)  # type: ignore[union-attr]
    dist.all_reduce(objective.contrast_head.weight.grad)  # type: ignore[union-attr]
    kept = {name: value.detach() for name, value in told.items()}
    kept |= {"s": objective.log_variances.grad / 2, "w": objective.contrast_head.weight.grad / 2}  # type: ignore
    torch.save(kept, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked")
def test_copies_and_contrast_cross_processes(tmp_path: Path) -> None:
    mp.start_processes(two, (str(tmp_path),), nprocs=2, start_method="fork")
    objective = small()
    batch = batch_of(objective)
    crossing = (batch["donor"] * 6).long() // 3 != (torch.arange(6) // 3)[:, None]
    assert crossing.any()  # some picture is copied from one of the other process
    told = objective(batch)
    told["loss"].backward()
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for task in ("reconstruction", "rotation", "contrast", "loss"):
        mean = (found[0][task] + found[1][task]).item() / 2
        assert mean == pytest.approx(told[task].item(), rel=1e-5), task
    assert abs(found[0]["contrast"] - found[1]["contrast"]) > 1e-4  # each has its own anchors
    torch.testing.assert_close(found[0]["s"], objective.log_variances.grad)  # type: ignore[union-attr]
    torch.testing.assert_close(found[0]["w"], objective.contrast_head.weight.grad, atol=1e-6, rtol=1e-4)  # type: ignore


def striped(n: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """Stripes across or down, each picture in its own colour, under a bright upper edge, which tells the turn."""
    labels, colours = np.arange(n) % 2, np.random.default_rng(0).uniform(-70, 70, (n, 3, 1, 1))
    places = np.arange(32)
    table = np.zeros((n, 3, 32, 32))
    for i, label in enumerate(labels):
        wave = 60 * np.sin(places / 2 + i)
        table[i] = 90 + colours[i] + (wave[:, None] if label else wave[None]) + np.where(places[:, None] < 10, 80, 0)
    return table.clip(0, 255).astype(np.uint8), labels


def test_training_learns_all_tasks_and_their_weights_and_the_export_is_plain(tmp_path: Path) -> None:
    table, labels = striped()
    easy: dict[str, Any] = {"crop_scale": (0.7, 1.0), "jitter": 0.0, "flip": False, "grey_and_blur": False}
    objective = small("vit_tiny_patch16_224", **easy, max_replaced=0.1)
    plan = Training.of(
        replace(objective.recipe, batch_size=24, learning_rate=3e-3), n=48, epochs=40, seed=0, log_every=1
    )
    told = train(objective, PictureViews(table, objective.views(), seed=0), plan).history
    early, late = ({k: np.mean([r[k] for r in part]) for k in told[0]} for part in (told[:6], told[-6:]))
    for task, least in (("loss", 0.3), ("reconstruction", 0.1), ("rotation", 0.1), ("contrast", 0.3)):
        assert late[task] < early[task] - least, task
    assert late["rotation_accuracy"] > 0.35  # 0.25 by chance
    assert late["log_variance_reconstruction"] < early["log_variance_reconstruction"]  # falls towards 2 ln L < 0
    assert late["log_variance_contrast"] > early["log_variance_contrast"]  # rises towards ln 2L

    backbone = objective.export()
    fresh = network("vit_tiny_patch16_224", seed=5)
    assert backbone.state_dict().keys() == fresh.state_dict().keys()
    again = load_backbone(str(save_backbone(backbone, tmp_path / "net", model_args=SMALL)))
    x = torch.randn(2, 3, 32, 32)
    learnt, loaded = backbone.state_dict(), again.state_dict()
    assert all(torch.equal(learnt[name], loaded[name]) for name in learnt)
    # equal weights at other places in memory may be multiplied by other kernels, which round otherwise
    torch.testing.assert_close(again(x), backbone.eval()(x), rtol=1e-5, atol=1e-5)


def test_fine_tuning_keeps_both_tokens_and_averages_their_logits(tmp_path: Path) -> None:
    table, labels = striped(24)
    objective = small()
    folder = str(save_backbone(objective.export(), tmp_path / "net", model_args=SMALL))
    fitted = FineTune(backbone=folder, image_size=32, epochs=2, batch_size=12).fit(table, labels)
    model: Any = fitted.model_
    features = model.forward_features(torch.randn(3, 3, 32, 32))
    one, two = model.head(features[:, 0]), model.head_dist(features[:, 1])
    assert not torch.allclose(one, two)
    torch.testing.assert_close(model.forward_head(features), (one + two) / 2)
    started = load_backbone(folder, num_classes=2)
    groups = parameter_groups(started.requires_grad_(True), started, 1e-3, 0.05)
    heads = {id(p) for part in (started.head, started.head_dist) for p in part.parameters()}  # type: ignore[union-attr]
    assert {id(p) for g in groups if not g["trunk"] for p in g["params"]} == heads  # all that a linear probe trains


def test_illustrations() -> None:
    objective = small().eval()
    batch = batch_of(objective)
    with torch.no_grad():
        shown = objective.illustrate(batch)
    assert list(shown) == ["picture", "corrupted", "reconstruction"]
    for picture in shown.values():
        assert picture.shape == (6, 3, 32, 32) and picture.min() >= 0 and picture.max() <= 1
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (objective.mean, objective.std))
    torch.testing.assert_close(shown["picture"], (batch["clean"][:, 0] * std + mean).clamp(0, 1))
    assert not torch.equal(shown["corrupted"], shown["picture"])
    assert list(small(reconstruct=False).illustrate(batch)) == ["picture", "corrupted"]


# ---- refusals ----


@pytest.mark.parametrize(
    ("size", "told"), [(30, "24 and 32 work"), (4, "8 works"), (68, "64 and 72 work"), (0, "8 works")]
)
def test_sizes_that_the_patch_does_not_divide_name_right_ones(size: int, told: str) -> None:
    with pytest.raises(UsageError, match=f"image_size={size}: .*the patch, 8 pixels; {told}"):
        SiT(network(), size)


def test_a_network_of_another_size_is_told_how_to_change() -> None:
    with pytest.raises(UsageError, match=r"built for 32 pixels; call set_input_size\(\(64, 64\)\)"):
        SiT(network(), 64)
    other = network()
    other.set_input_size(img_size=(64, 64))
    assert SiT(other, 64).grid == 8
    assert SiT(network(dynamic_img_size=True), 64).grid == 8


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_convolutional_networks_are_sent_on(name: str) -> None:
    backbone = timm.create_model(name, num_classes=0)
    with pytest.raises(BackboneError, match=f"{type(backbone).__name__}.*deit_tiny_distilled.*spark or selfie"):
        SiT(backbone, 64)


def test_other_transformers_are_refused() -> None:
    swin = timm.create_model("swin_tiny_patch4_window7_224", num_classes=0, depths=(1, 1), embed_dim=12)
    with pytest.raises(BackboneError, match="SwinTransformer: sit needs a plain vision transformer"):
        SiT(swin, 224)
    with pytest.raises(BackboneError, match="drops patches at random"):
        SiT(network(patch_drop_rate=0.5), 32)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"reconstruct": False, "rotate": False, "contrast": False}, "at least one task"),
        ({"max_replaced": 1.5}, "max_replaced=1.5"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"projection_dim": 0}, "projection_dim=0"),
        ({"crop_scale": (0.9, 0.5)}, "crop_scale"),
        ({"jitter": 2.0}, "jitter=2.0"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        small(**settings)


def test_all_state_is_parameters_and_copies_agree() -> None:
    objective = small("vit_tiny_patch16_224")
    twin = copy.deepcopy(objective)
    assert torch.equal(twin(batch_of(twin))["loss"], objective(batch_of(objective))["loss"])
    assert set(objective.state_dict()) == {name for name, _ in objective.named_parameters()}
