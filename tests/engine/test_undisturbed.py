from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from offshelf.engine.undisturbed import undisturbed


def network() -> nn.Sequential:
    """Training mode with one batch norm frozen on purpose."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.BatchNorm1d(6), nn.Linear(6, 2))
    module.train()
    module[1].eval()
    return module


def look(module: nn.Module) -> None:
    module(torch.randn(8, 4) * 100)
    np.random.rand(3)
    random.random()
    torch.rand(5)
    for _ in torch.utils.data.DataLoader(torch.arange(4), shuffle=True):
        pass


def trace(probe: bool) -> tuple[list[float], torch.Tensor]:
    """Losses and final weights of a training that draws from the global generators at each step."""
    module = network()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    losses = []
    for _ in range(5):
        batch = torch.randn(8, 4) + random.random() + np.random.rand()
        loss = module(batch).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        if probe:
            with undisturbed(module):
                look(module)
    return losses, torch.cat([value.flatten().float() for value in module.state_dict().values()])


def test_a_training_that_is_looked_at_has_the_same_trace_and_weights() -> None:
    plain, looked = trace(False), trace(True)
    assert plain[0] == looked[0]
    assert torch.equal(plain[1], looked[1])


def test_flags_gradients_and_modes() -> None:
    module = network()
    before = [part.training for part in module.modules()]
    assert before == [True, True, False, True, True, True]
    with undisturbed(module):
        assert not any(part.training for part in module.modules())
        assert not module(torch.ones(2, 4)).requires_grad
    assert [part.training for part in module.modules()] == before
    assert torch.is_grad_enabled()


def test_all_is_put_back_after_an_error() -> None:
    module = network()
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    with pytest.raises(RuntimeError, match="on purpose"), undisturbed(module):
        look(module)
        raise RuntimeError("on purpose")
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected
    assert module.training and not module[1].training and torch.is_grad_enabled()
