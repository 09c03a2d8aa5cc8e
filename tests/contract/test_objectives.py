"""Every listed pre-training method keeps the contract of `offshelf.pretrain.objective.Objective`."""

from __future__ import annotations

import copy
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from offshelf.backbones.load import load_backbone
from offshelf.data.picture_views import PictureViews
from offshelf.engine.collective import join_batch_norms
from offshelf.engine.draws import Draws
from offshelf.engine.optimise import freeze_unreached
from offshelf.engine.train import Training, train
from offshelf.errors import UsageError
from offshelf.methods import METHODS
from offshelf.pretrain.objective import Objective
from offshelf.pretrain.settings import settings_of

SLUGS = [slug for slug, method in METHODS.items() if method.part == "pretrain"]
# What makes a method small: backbone, side in pixels, settings.
SMALL: dict[str, tuple[str, int, dict[str, Any]]] = {
    "spark": ("test_resnet.random", 128, {"decoder_width": 32}),
    "selfie": ("test_resnet.random", 64, {"depth": 2, "dropout": 0.0}),
    "sit": ("test_vit.random", 64, {}),
    "mae-thorax": ("test_vit.random", 96, {"mask_ratio": 0.5, "decoder_width": 32, "decoder_heads": 2}),
}


def pixels(n: int = 8, side: int = 100) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 3, side, side)).astype(np.uint8)


def make(slug: str, seed: int = 0) -> Objective:
    name, size, settings = SMALL[slug]
    backbone: Any = load_backbone(name, num_classes=0).requires_grad_(True)
    if hasattr(backbone, "set_input_size"):
        backbone.set_input_size(img_size=(size, size))
    torch.manual_seed(seed)
    return METHODS[slug].load()(backbone, size, **settings)


def batch_of(objective: Objective, n: int = 8, epoch: int = 0) -> dict[str, torch.Tensor]:
    return objective.views()(torch.from_numpy(pixels(n)), Draws(0, epoch, range(n)))


def double(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}


def test_every_method_is_here() -> None:
    assert sorted(SMALL) == sorted(SLUGS)


@pytest.mark.parametrize("slug", SLUGS)
def test_loss_and_gradients_are_finite_and_reach_every_trained_parameter(slug: str) -> None:
    objective = make(slug).train()
    batch = batch_of(objective)
    assert all(len(value) == 8 for value in batch.values())
    unreached = set(freeze_unreached(objective, batch))
    assert len(unreached) < 0.5 * len(list(objective.parameters()))
    told = objective(batch)
    told["loss"].backward()
    assert all(value.ndim == 0 and torch.isfinite(value) for value in told.values())
    assert told["loss"].dtype == torch.float32
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        else:
            assert parameter.grad is None, name
    moved = [p for p in objective.backbone.parameters() if p.requires_grad and p.grad.abs().sum() > 0]
    assert len(moved) > 0.4 * len(list(objective.backbone.parameters()))


@pytest.mark.parametrize("slug", SLUGS)
def test_views_belong_to_samples_and_forward_draws_nothing(slug: str) -> None:
    objective = make(slug).train()
    views = pickle.loads(pickle.dumps(objective.views()))
    table = torch.from_numpy(pixels())
    together, other = views(table, Draws(0, 0, range(8))), views(table, Draws(0, 1, range(8)))
    alone = views(table[3:4], Draws(0, 0, [3]))
    assert any(not torch.equal(together[name], other[name]) for name in together), "views do not differ by epoch"
    for name, value in together.items():
        assert torch.allclose(value[3:4].double(), alone[name].double(), atol=1e-5), name
    twin = copy.deepcopy(objective)
    torch.manual_seed(1)
    one = objective(together)["loss"]
    torch.manual_seed(2)
    assert torch.equal(twin(together)["loss"], one)


@pytest.mark.parametrize("slug", SLUGS)
def test_all_state_is_in_the_state_dict(slug: str) -> None:
    objective, other = make(slug).train(), make(slug, seed=1).train()
    batch = batch_of(objective)
    for step in (1, 2):  # state that is kept elsewhere would now differ
        objective(batch)["loss"].backward()
        objective.after_step(step, 10)
    other.load_state_dict(objective.state_dict())
    assert torch.equal(other(batch)["loss"], objective(batch)["loss"])


@pytest.mark.parametrize("slug", SLUGS)
def test_it_runs_in_bf16_and_stays_near_fp32(slug: str) -> None:
    objective = make(slug).train()
    batch = batch_of(objective)
    full = objective(batch)["loss"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        told = objective(batch)
    assert told["loss"].dtype == torch.float32
    told["loss"].backward()
    assert told["loss"].item() == pytest.approx(full.item(), rel=0.1)


@pytest.mark.parametrize("slug", SLUGS)
def test_the_product_is_the_plain_network_and_has_learnt(slug: str, tmp_path: Path) -> None:
    import timm

    from offshelf.backbones.export import save_backbone

    objective = make(slug)
    before = {name: value.clone() for name, value in load_backbone(SMALL[slug][0], num_classes=0).state_dict().items()}
    data = PictureViews(pixels(), objective.views())
    trained = train(objective, data, Training.of(objective.recipe, 8, steps=3, batch_size=4))
    assert trained.status == "complete" and np.isfinite(trained.history[-1]["loss"])
    backbone = objective.export()
    assert backbone.state_dict().keys() == before.keys()
    save_backbone(backbone, tmp_path / "model")
    again = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    x = torch.rand(2, 3, SMALL[slug][1], SMALL[slug][1])
    with torch.no_grad():
        assert torch.allclose(again(x), backbone.eval()(x), atol=1e-5)
    assert any(not torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


@pytest.mark.parametrize("slug", SLUGS)
def test_pictures_for_the_report_are_pictures(slug: str) -> None:
    objective = make(slug).eval()
    with torch.no_grad():
        for name, shown in objective.illustrate(batch_of(objective, 2)).items():
            assert shown.shape[:2] == (2, 3), name
            assert shown.min() >= 0 and shown.max() <= 1, name


@pytest.mark.parametrize("slug", SLUGS)
def test_unknown_settings_are_refused(slug: str) -> None:
    with pytest.raises(UsageError, match="has no such setting"):
        settings_of(METHODS[slug].load(), ["no_such_setting=1"])


def work(rank: int, world: int, folder: str, slug: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    objective = make(slug).double().train()
    join_batch_norms(objective)
    whole = double(batch_of(objective))
    batch = {name: value.chunk(world)[rank] for name, value in whole.items()}
    freeze_unreached(objective, batch)
    loss = objective(batch)["loss"]
    loss.backward()
    loss = loss.detach().clone()
    dist.all_reduce(loss)
    grads = {}
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad:
            dist.all_reduce(parameter.grad)
            grads[name] = parameter.grad / world
    torch.save(
        {"loss": loss / world, "grads": grads, "buffers": dict(objective.named_buffers())}, f"{folder}/{rank}.pt"
    )
    dist.destroy_process_group()


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked")
@pytest.mark.parametrize("slug", SLUGS)
def test_two_processes_equal_one_in_loss_gradients_and_statistics(slug: str, tmp_path: Path) -> None:
    mp.start_processes(work, (2, str(tmp_path), slug), nprocs=2, start_method="fork")
    objective = make(slug).double().train()
    batch = double(batch_of(objective))
    freeze_unreached(objective, batch)
    loss = objective(batch)["loss"]
    loss.backward()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found["loss"].item() == pytest.approx(loss.item(), rel=1e-5)  # losses are computed in fp32
        largest = max(float(p.grad.abs().max()) for p in objective.parameters() if p.grad is not None)
        for name, parameter in objective.named_parameters():
            if parameter.requires_grad:
                apart = (found["grads"][name] - parameter.grad).abs().max()
                assert apart < 1e-5 * largest + 1e-4 * parameter.grad.abs().max(), name
        for name, value in objective.named_buffers():
            assert torch.allclose(value.double(), found["buffers"][name].double(), rtol=1e-5, atol=1e-7), name
