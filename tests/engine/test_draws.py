"""Draws are a pure function of (seed, epoch, sample), and look random."""

from __future__ import annotations

import numpy as np
import pytest

from offshelf.engine.draws import Draws


def test_a_sample_draws_the_same_numbers_in_any_company() -> None:
    together, alone = Draws(3, 2, [5, 9, 1]), Draws(3, 2, [9])
    for method, arguments in (("uniform", (4,)), ("normal", (2, 3)), ("integers", (10, 5))):
        assert np.array_equal(getattr(together, method)(*arguments)[1:2], getattr(alone, method)(*arguments))
    assert np.array_equal(together.seeds()[1:2], alone.seeds())


@pytest.mark.parametrize("other", [(4, 2, [5]), (3, 1, [5]), (3, 2, [6])])
def test_seed_epoch_and_sample_each_change_the_numbers(other: tuple[int, int, list[int]]) -> None:
    assert not np.intersect1d(Draws(3, 2, [5]).uniform(100), Draws(*other).uniform(100)).size


def test_every_call_gives_further_numbers() -> None:
    draws = Draws(0, 0, [0])
    assert not np.intersect1d(draws.uniform(50), draws.uniform(50)).size


def test_moments_and_independence() -> None:
    draws = Draws(0, 0, range(2000))
    u = draws.uniform(50)
    assert u.min() >= 0 and u.max() < 1
    assert u.mean() == pytest.approx(0.5, abs=0.005) and u.var() == pytest.approx(1 / 12, abs=0.002)
    assert abs(np.corrcoef(u[:-1].ravel(), u[1:].ravel())[0, 1]) < 0.02  # neighbouring samples
    assert abs(np.corrcoef(u[:, :-1].ravel(), u[:, 1:].ravel())[0, 1]) < 0.02  # neighbouring numbers
    assert abs(np.corrcoef(u.ravel(), Draws(0, 1, range(2000)).uniform(50).ravel())[0, 1]) < 0.02  # epochs
    n = draws.normal(50)
    assert n.mean() == pytest.approx(0, abs=0.01) and n.std() == pytest.approx(1, abs=0.01)
    counts = np.bincount(draws.integers(5, 50).ravel(), minlength=5)
    assert len(counts) == 5 and abs(counts / counts.sum() - 0.2).max() < 0.005


def test_bounds() -> None:
    draws = Draws(1, 0, range(100))
    u = draws.uniform(20, low=-2.0, high=3.0)
    assert -2 <= u.min() < -1.9 and 2.9 < u.max() < 3
    below = np.array([[1], [3]] * 50)
    assert (draws.integers(below, 30) < below).all()
