from __future__ import annotations

import numpy as np
import pytest
import torch

from offshelf.errors import UsageError
from offshelf.interpret.explanation_scores import confident_rows, draw_mosaics, grid_pointing_game

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
