"""The order of samples: pure, whole epochs, and the same over processes and accumulated parts."""

from __future__ import annotations

import numpy as np
import pytest

from offshelf.engine.order import Order
from offshelf.errors import UsageError


def rows(order: Order, step: int, part: int = 0) -> list[int]:
    return [row for _, row in order.keys(step, part)]


def test_an_epoch_is_a_permutation_without_its_remainder() -> None:
    order = Order(103, 10, seed=1)
    seen = [row for step in range(10) for row in rows(order, step)]
    assert order.steps_an_epoch == 10 and len(set(seen)) == 100 and max(seen) < 103
    assert {epoch for epoch, _ in order.keys(10)} == {1}
    again = [row for step in range(10, 20) for row in rows(order, step)]
    assert seen != again and set(range(103)) - set(seen) != set(range(103)) - set(again)


def test_processes_and_parts_together_see_what_one_sees() -> None:
    whole = Order(64, 8, seed=2)
    for step in (0, 7, 8):
        joined = [
            row
            for part in range(2)
            for rank in range(2)
            for row in rows(Order(64, 8, seed=2, rank=rank, world=2, accumulate=2), step, part)
        ]
        assert joined == rows(whole, step)


def test_the_batches_of_a_resumed_training_are_those_of_the_first() -> None:
    order = Order(40, 4, seed=0, accumulate=2)
    whole = list(order.batches(0, 25))
    assert len(order.batches(13, 25)) == 24 and list(order.batches(13, 25)) == whole[26:]


def test_what_cannot_be_divided_is_refused_with_numbers_that_can() -> None:
    with pytest.raises(UsageError, match="9 samples for a batch of 10"):
        Order(9, 10)
    with pytest.raises(UsageError, match="multiple of 4, such as 8"):
        Order(100, 10, world=2, accumulate=2)


def test_the_order_depends_on_the_seed() -> None:
    assert not np.array_equal(rows(Order(50, 50, seed=0), 0), rows(Order(50, 50, seed=1), 0))
