from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from offshelf.errors import UsageError
from offshelf.interpret.explanation_scores import (
    confident_rows,
    deletion_insertion,
    draw_mosaics,
    grid_pointing_game,
    weight_randomisation,
)

# Four classes of one picture each; class k is a picture of the value k + 1.
PICTURES = torch.arange(1, 5).float().view(4, 1, 1, 1).expand(4, 3, 8, 8).contiguous()
LABELS = np.arange(4)


def where_the_class_is(boards: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    return (boards[:, 0] == classes.view(-1, 1, 1) + 1).float()


def test_a_map_on_the_right_cell_scores_one_a_uniform_one_chance_and_an_empty_one_nothing() -> None:
    right = grid_pointing_game(where_the_class_is, PICTURES, LABELS, mosaics=5, smooth=1)
    assert right.shape == (5, 4)
    assert np.array_equal(right, np.ones((5, 4)))
    uniform = grid_pointing_game(lambda x, k: torch.full_like(x[:, 0], 0.3), PICTURES, LABELS, mosaics=5, smooth=3)
    np.testing.assert_allclose(uniform, 0.25, rtol=1e-12)
    against = grid_pointing_game(lambda x, k: -where_the_class_is(x, k), PICTURES, LABELS, mosaics=5, smooth=3)
    assert np.array_equal(against, np.zeros((5, 4)))


def test_what_smoothing_carries_over_the_edge() -> None:
    """By hand, 8 x 8 cells and squares of 3: the sum over rows is 8 inside and 1 / 3 beyond the inner edge, of which
    the outer edge loses 1 / 3; along one axis the right cell keeps 8 - 2/3 and 1/3 crosses over."""
    shares = grid_pointing_game(where_the_class_is, PICTURES, LABELS, mosaics=3, smooth=3)
    along = (8 - 2 / 3) / (8 - 1 / 3)  # 7 1/3 stay of the 7 2/3 that are left on the board
    np.testing.assert_allclose(shares, along**2, rtol=1e-12)
    # A map that keeps smooth // 2 pixels from the edges of its cell loses nothing.
    inner = torch.zeros(16, 16)
    for row in (1, 9):
        for column in (1, 9):
            inner[row : row + 6, column : column + 6] = 1
    shares = grid_pointing_game(lambda x, k: inner * where_the_class_is(x, k), PICTURES, LABELS, mosaics=3, smooth=3)
    np.testing.assert_allclose(shares, 1.0, rtol=1e-12)


def test_what_speaks_against_is_smoothed_before_it_is_cut() -> None:
    """A +1 beside a -1 within one square cancels: the mean is taken of the signed map, as in the paper's code."""

    def cancelling(boards: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        maps = torch.zeros(len(boards), 16, 16)
        maps[:, 3, 3], maps[:, 3, 4] = 1.0, -1.0  # cell 0: one column of 3 keeps the +1 alone
        maps[:, 12, 12] = 2.0  # cell 3: 9 pixels of 2/9
        return maps

    shares = grid_pointing_game(cancelling, PICTURES, LABELS, mosaics=1, smooth=3)[0]
    np.testing.assert_allclose(shares, [(3 / 9) / (3 / 9 + 2), 0, 0, 2 / (3 / 9 + 2)], rtol=1e-12)


def test_coarse_maps_are_enlarged_and_a_quarter_counts_as_a_quarter() -> None:
    shares = grid_pointing_game(lambda x, k: torch.ones(len(x), 2, 2), PICTURES, LABELS, mosaics=2, smooth=1)
    np.testing.assert_allclose(shares, 0.25, rtol=1e-12)


def test_the_same_seed_draws_the_same_mosaics_of_distinct_classes_in_the_order_given() -> None:
    labels = np.array([7, 7, 5, 3, 3, 3, 1, 9])
    drawn = draw_mosaics(labels, 2, 50, seed=3)
    assert np.array_equal(drawn, draw_mosaics(labels, 2, 50, seed=3))
    assert not np.array_equal(drawn, draw_mosaics(labels, 2, 50, seed=4))
    assert all(len(set(labels[row])) == 4 for row in drawn)
    of_three = [int(row) for row in drawn.flatten() if labels[row] == 3]
    assert of_three[:5] == [3, 4, 5, 3, 4]
    assert set(labels[drawn.flatten()]) == {7, 5, 3, 1, 9}


def test_a_slow_loop_agrees() -> None:
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn(10, 3, 6, 6, generator=generator)
    labels = np.arange(10) % 5
    weight = torch.randn(5, 3, generator=generator)

    def explain(boards: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bchw,bc->bhw", boards, weight[classes])

    found = grid_pointing_game(explain, pictures, labels, size=2, mosaics=20, smooth=3, seed=1)
    for mosaic, rows in enumerate(draw_mosaics(labels, 2, 20, seed=1)):
        a, b, c, d = pictures[rows]
        board = torch.cat([torch.cat([a, b], dim=2), torch.cat([c, d], dim=2)], dim=1)
        for cell, row in enumerate(rows):
            raw = np.pad(explain(board[None], torch.tensor([labels[row]]))[0].double().numpy(), 1)
            smooth = np.array([[raw[i : i + 3, j : j + 3].mean() for j in range(12)] for i in range(12)]).clip(0)
            top, left = 6 * (cell // 2), 6 * (cell % 2)
            assert found[mosaic, cell] == pytest.approx(smooth[top : top + 6, left : left + 6].sum() / smooth.sum())


def test_wrong_settings_are_answered() -> None:
    with pytest.raises(UsageError, match="3 classes among the pictures: a 2 x 2 mosaic needs 4"):
        grid_pointing_game(where_the_class_is, PICTURES[:3], LABELS[:3])
    with pytest.raises(UsageError, match="smooth=4: expected an odd number"):
        grid_pointing_game(where_the_class_is, PICTURES, LABELS, smooth=4)
    with pytest.raises(UsageError, match="mosaics=0"):
        draw_mosaics(LABELS, 2, 0)


def test_confident_rows_by_hand() -> None:
    probabilities = np.array([[0.6, 0.4], [0.1, 0.9], [0.3, 0.7], [0.5, 0.5]])
    assert confident_rows(probabilities, np.array([0, 1, 0, 0])).tolist() == [1, 0]


class Corner(nn.Module):
    """Two answers: the mean of the red in the upper left quarter, and nothing."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        corner = x[:, 0, : x.shape[2] // 2, : x.shape[3] // 2].mean(dim=(1, 2))
        return torch.stack([corner, torch.zeros_like(corner)], dim=1)


def test_deletion_and_insertion_by_hand() -> None:
    """One on the corner, nought elsewhere, mean 1/4. Deletion asks at 0, 1/4, ... 1: 1, 1/4, 1/4, 1/4, 1/4; insertion
    1/4, 1, 1, 1, 1. Areas by trapezoids: 5/32 + 6/32 = 11/32 and 5/32 + 24/32 = 29/32. A map that names the corner last
    has 29/32 and 11/32."""
    x = torch.zeros(2, 3, 8, 8)
    x[:, 0, :4, :4] = 1.0
    maps = torch.zeros(2, 4, 4)
    maps[0, :2, :2], maps[1, :2, :2] = 1.0, -1.0
    found = deletion_insertion(
        Corner(), x, maps, torch.tensor([0, 0]), steps=4, squares=2, orders=200, probability=lambda logits: logits
    )
    np.testing.assert_allclose(found.deletion, [11 / 32, 29 / 32])
    np.testing.assert_allclose(found.insertion, [29 / 32, 11 / 32])
    # The corner's turn is any of four with equal chance: areas 11, 17, 23 and 29 of 32, mean 20.
    np.testing.assert_allclose(found.random_deletion, 20 / 32, atol=0.03)
    np.testing.assert_allclose(found.random_deletion + found.random_insertion, 40 / 32)  # one is the other from behind


def test_deletion_asks_for_the_softmax_of_the_class_and_cuts_pictures_of_any_size() -> None:
    x = torch.rand(3, 3, 10, 7, generator=torch.Generator().manual_seed(0))
    maps = torch.rand(3, 10, 7, generator=torch.Generator().manual_seed(1))
    found = deletion_insertion(Corner(), x, maps, torch.tensor([1, 0, 1]), steps=9, squares=3)
    assert (found.deletion > 0).all() and (found.deletion < 1).all()
    assert found.deletion[0] < 0.5 < found.deletion[1]  # the answer of the corner has the larger logit
    assert np.array_equal(found.deletion, deletion_insertion(Corner(), x, maps, torch.tensor([1, 0, 1]), 9, 3).deletion)
    with pytest.raises(UsageError, match="steps=10: expected 1 to 9"):
        deletion_insertion(Corner(), x, maps, torch.tensor([1, 0, 1]), steps=10, squares=3)


def test_shuffled_weights_change_a_map_of_weights_and_no_map_of_edges() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 2))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x, classes = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 0, 1])

    def gradient(network: nn.Module, x: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        x = x.clone().requires_grad_(True)
        (found,) = torch.autograd.grad(network(x).gather(1, classes[:, None]).sum(), x)
        return (found * x).sum(dim=1)

    counts, correlations = weight_randomisation(model, gradient, x, classes, stages=3, seed=0)
    assert counts == [1, 2] and correlations.shape == (2, 4)  # two layers have no more stages
    assert (np.abs(correlations) < 0.6).all() and np.abs(correlations.mean()) < 0.3
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    _, edges = weight_randomisation(model, lambda network, x, classes: x.mean(dim=1), x, classes, stages=2)
    np.testing.assert_allclose(edges, 1.0)
    _, none = weight_randomisation(model, lambda network, x, classes: torch.ones(4, 2, 2), x, classes, stages=2)
    assert np.isnan(none).all()
    with pytest.raises(UsageError, match="no weights to shuffle"):
        weight_randomisation(nn.ReLU(), gradient, x, classes)


def test_the_cascade_begins_with_the_last_layer_and_keeps_every_weight() -> None:
    model = nn.Sequential(*[nn.Linear(6, 6) for _ in range(8)])
    seen: list[list[bool]] = []
    kept: list[bool] = []

    def watched(network: nn.Module, x: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        pairs = list(zip(network.children(), model.children()))
        seen.append([torch.equal(one.weight, other.weight) for one, other in pairs])
        kept.append(
            all(torch.equal(one.weight.flatten().sort()[0], other.weight.flatten().sort()[0]) for one, other in pairs)
        )
        return x

    counts, _ = weight_randomisation(model, watched, torch.randn(2, 6), torch.tensor([0, 1]), stages=4)
    assert counts == [1, 2, 4, 8]
    assert seen == [[True] * (8 - n) + [False] * n for n in (0, 1, 2, 4, 8)] and all(kept)


def test_the_rank_correlation_is_scipys() -> None:
    from scipy.stats import spearmanr

    a, b = np.random.default_rng(0).normal(size=(2, 3, 25)).round(1)
    maps = iter([torch.from_numpy(a), torch.from_numpy(b)])
    _, found = weight_randomisation(nn.Linear(2, 2), lambda *_: next(maps), torch.zeros(3, 2), torch.zeros(3), stages=1)
    np.testing.assert_allclose(found[0], [spearmanr(one, other)[0] for one, other in zip(a, b)])
