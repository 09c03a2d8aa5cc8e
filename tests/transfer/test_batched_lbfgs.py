from __future__ import annotations

import numpy as np
import torch

from offshelf.transfer.batched_lbfgs import minimise


def test_each_quadratic_of_a_batch_reaches_its_own_minimum() -> None:
    random = np.random.default_rng(0)
    curvature = torch.from_numpy(10.0 ** random.uniform(-1, 2, (6, 8))).float()
    centre = torch.from_numpy(random.normal(size=(6, 8))).float()

    def objective(which: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        away = x - centre[which]
        return 0.5 * (curvature[which] * away**2).sum(dim=1, dtype=torch.float64), curvature[which] * away

    found, losses, steps = minimise(objective, torch.zeros(6, 8), max_iter=200, tol=1e-9)
    torch.testing.assert_close(found, centre, atol=1e-3, rtol=0)
    assert float(losses.max()) < 1e-7
    assert int(steps.max()) < 60


def test_a_problem_alone_walks_as_it_does_in_a_batch() -> None:
    weights = torch.tensor([[1.0, 30.0], [4.0, 0.2], [9.0, 9.0]])

    def objective(which: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        w = weights[which]
        return torch.log1p((w * (x - 1) ** 2).sum(dim=1)).double(), 2 * w * (x - 1) / (
            1 + (w * (x - 1) ** 2).sum(dim=1, keepdim=True)
        )

    together, _, steps = minimise(objective, torch.zeros(3, 2), max_iter=100, tol=1e-8)
    for i in range(3):

        def alone(which: torch.Tensor, x: torch.Tensor, i: int = i) -> tuple[torch.Tensor, torch.Tensor]:
            return objective(which + i, x)

        single, _, own_steps = minimise(alone, torch.zeros(1, 2), max_iter=100, tol=1e-8)
        torch.testing.assert_close(single[0], together[i])
        assert int(own_steps[0]) == int(steps[i])
