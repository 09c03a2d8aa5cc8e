"""Two processes equal one on the joined batch: losses, gradients and running statistics."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn

from offshelf.engine.collective import (
    batch_normalised,
    gather,
    join_batch_norms,
    joined_moments,
    masked_mean,
    part_batch_norms,
    reduce_sum,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked")


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    ).double()


def contrastive(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    z = F.normalize(model(x), dim=1)
    other = F.normalize(model(x.flip(-1)), dim=1)
    joined = gather(other)
    first = (dist.get_rank() if dist.is_initialized() else 0) * len(x)
    return F.cross_entropy(z @ joined.T / 0.2, torch.arange(len(x)) + first)


def masked(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    values = model(x)
    return masked_mean(values.square(), (x[:, :1, 0, :5] > 0.2).reshape(len(x), 5))


def work(rank: int, world: int, folder: str, loss_of: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    model = net()
    join_batch_norms(model)
    x = pictures().chunk(world)[rank]
    loss = loss_of(model, x)
    loss.backward()
    for parameter in model.parameters():
        dist.all_reduce(parameter.grad)
        parameter.grad /= world
    dist.all_reduce(loss.detach())
    state = {"grads": [p.grad for p in model.parameters()], "state": model.state_dict(), "loss": loss.detach() / world}
    torch.save(state, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def pictures() -> torch.Tensor:
    return torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("loss_of", [contrastive, masked])
def test_two_processes_equal_one(tmp_path: Path, loss_of: Any) -> None:
    mp.start_processes(work, (2, str(tmp_path), loss_of), nprocs=2, start_method="fork")
    model = net()
    loss = loss_of(model, pictures())
    loss.backward()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found["loss"].item() == pytest.approx(loss.item(), rel=1e-12)
        for ours, theirs in zip(model.parameters(), found["grads"]):
            assert torch.allclose(ours.grad, theirs, rtol=1e-9, atol=1e-12)
        for name, value in model.state_dict().items():
            assert torch.allclose(value, found["state"][name], rtol=1e-9), name


def test_in_one_process_they_are_the_identity() -> None:
    x = torch.arange(6.0)
    assert gather(x) is x and reduce_sum(x) is x
    assert masked_mean(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([1, 1, 0])) == 1.5
    assert masked_mean(x, torch.zeros(6)) == 0


def test_moments_are_exact_far_from_zero() -> None:
    x = 30 + 0.1 * torch.randn(8, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    _, var, count = joined_moments(x)
    exact = x.double().var((0, 2, 3), unbiased=False)
    assert count == 2048 and torch.allclose(var.double(), exact, rtol=1e-4)


def test_a_joined_norm_equals_torchs_in_training_and_evaluation() -> None:
    ours, theirs = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    assert join_batch_norms(ours) == [""]
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 3 + 1
    for _ in range(2):
        assert torch.allclose(ours(x), theirs(x), atol=1e-5)
    for name, value in theirs.state_dict().items():
        assert torch.allclose(ours.state_dict()[name].float(), value.float(), rtol=1e-5), name
    assert torch.allclose(ours.eval()(x), theirs.eval()(x), atol=1e-5)
    part_batch_norms(ours)
    assert type(ours) is nn.BatchNorm2d


def test_masked_norm_counts_visible_positions_only() -> None:
    norm = nn.BatchNorm2d(1, affine=False)
    x = torch.tensor([[[[2.0, 4.0], [100.0, 6.0]]]])
    mask = torch.tensor([[[[1.0, 1.0], [0.0, 1.0]]]])
    y = batch_normalised(x, norm, mask)
    assert norm.running_mean.item() == pytest.approx(0.4) and norm.running_var.item() == pytest.approx(0.9 + 0.4)
    assert y[0, 0, 1, 0] == 0 and y.sum().item() == pytest.approx(0, abs=1e-6)
