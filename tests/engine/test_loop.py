from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from offshelf.engine.loop import Schedule, train
from offshelf.errors import OffshelfError


def test_every_epoch_sees_each_row_at_most_once_in_an_order_of_its_own() -> None:
    plan = Schedule(n=10, epochs=3, batch_size=3, seed=4)
    batches = list(plan.batches())
    assert [step for step, _ in batches] == list(range(9)) == list(range(plan.total))
    epochs = [np.concatenate([rows for _, rows in batches[i : i + 3]]) for i in (0, 3, 6)]
    assert all(len(set(rows)) == 9 for rows in epochs)
    assert not np.array_equal(epochs[0], epochs[1])
    again = [rows for _, rows in Schedule(n=10, epochs=3, batch_size=3, seed=4).batches()]
    assert all(np.array_equal(a, b) for (_, a), b in zip(batches, again))


def test_the_rate_rises_then_falls_as_half_a_cosine() -> None:
    plan = Schedule(n=100, epochs=10, batch_size=10, warmup=0.1)
    scales = [plan.scale(step) for step in range(100)]
    assert scales[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert scales[55] == pytest.approx(0.5 * (1 + math.cos(math.pi * 45 / 90)))
    assert scales[99] < 0.001


def _fit(seed: int = 0, rate: float = 0.1, **settings: object) -> tuple[torch.nn.Linear, list[dict[str, float]]]:
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32))
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]])
    torch.manual_seed(7)
    model = torch.nn.Linear(3, 1, bias=False)
    history = train(
        model,
        [{"params": list(model.parameters()), "lr": rate, "weight_decay": 0.0}],
        Schedule(64, 60, 16, seed=seed),
        lambda rows, draws: (x[rows], y[rows]),
        F.mse_loss,
        **settings,  # type: ignore[arg-type]
    )
    return model, history


def test_it_finds_the_weights_of_a_linear_problem() -> None:
    model, history = _fit()
    assert model.weight.detach().numpy().ravel() == pytest.approx([1.0, -2.0, 0.5], abs=0.01)
    assert len(history) == 60
    assert history[-1]["loss"] < 1e-4 < history[0]["loss"]
    assert not model.training


def test_random_draws_elsewhere_do_not_move_it() -> None:
    plain, _ = _fit()
    disturbed, _ = _fit(after_epoch=lambda epoch, numbers: torch.rand(3))
    assert torch.equal(plain.weight, disturbed.weight)
    assert not torch.equal(plain.weight, _fit(seed=1)[0].weight)


def test_a_loss_that_is_no_number_stops_with_the_step() -> None:
    with pytest.raises(OffshelfError, match=r"the loss became (nan|inf) at step \d+ of 240"):
        _fit(rate=1e30)
