from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from offshelf.backbones.halo_attention import HaloAttention
from offshelf.backbones.halo_cost import haloing_cost, kept_elements, shifted_windows, time_layers
from offshelf.errors import UsageError


@pytest.mark.parametrize(
    ("block", "halo", "keys", "gather", "wasted"),
    [
        (8, 3, 196, 3.0625, 4.0),  # the numbers of the table
        (1, 3, 49, 49.0, 1.0),
        (32, 0, 1024, 1.0, 1024.0),
        (4, 1, 36, 2.25, 4.0),
    ],
)
def test_the_table(block: int, halo: int, keys: int, gather: float, wasted: float) -> None:
    cost = haloing_cost(32, 64, block, halo, heads=4)
    assert (cost.keys, cost.gather_factor, cost.wasted_work) == (keys, gather, wasted)
    assert cost.macs_per_position == 2 * 64 * keys
    assert cost.macs == cost.macs_per_position * 32 * 32
    assert cost.logits == 4 * keys * 32 * 32


def test_filled_maps_and_strides_count() -> None:
    assert haloing_cost(10, 8, block=8, halo=1).macs == haloing_cost(16, 8, block=8, halo=1).macs
    assert haloing_cost((8, 10), 8, block=8, halo=1).macs == haloing_cost((8, 16), 8, block=8, halo=1).macs
    assert haloing_cost(16, 8, block=8, halo=1).macs == 4 * haloing_cost(16, 8, block=8, halo=1, stride=2).macs


@pytest.mark.parametrize(("block", "halo", "stride"), [(4, 1, 1), (1, 2, 1), (8, 0, 1), (4, 1, 2)])
def test_the_formula_is_what_a_counter_counts(block: int, halo: int, stride: int) -> None:
    """Property 9: multiply-adds of the two products of attention, and the size of what ``unfold`` gathers."""
    layer = HaloAttention(8, block=block, halo=halo, heads=2, stride=stride)
    gathered: list[int] = []
    products: list[int] = []
    matmul, unfold = torch.Tensor.__matmul__, torch.Tensor.unfold

    def counted(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if a.ndim == 4 and b.ndim == 4:  # of queries and keys, and of weights and values; tables have two axes
            products.append(a.numel() * b.shape[-1])
        return matmul(a, b)

    def noted(x: torch.Tensor, *args: int) -> torch.Tensor:
        gathered.append(unfold(x, *args).numel())
        return unfold(x, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "__matmul__", counted)
        patch.setattr(torch.Tensor, "unfold", noted)
        layer(torch.randn(1, 8, 8, 8))
    cost = haloing_cost(8, 8, block, halo, heads=2, stride=stride)
    assert sum(products) == cost.macs
    assert gathered[-1] == cost.gather_factor * 16 * 8 * 8  # keys and values: 16 channels


def test_windows_by_shifts_are_windows_by_gathering() -> None:
    torch.manual_seed(0)
    layer, x = HaloAttention(8, block=1, halo=2, heads=2), torch.randn(2, 8, 6, 7)
    torch.nn.init.normal_(layer.pos_embed.width_rel)
    torch.testing.assert_close(shifted_windows(layer, x), layer(x), rtol=1e-4, atol=1e-5)
    layer.scale_pos_embed = True
    torch.testing.assert_close(shifted_windows(layer, x), layer(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match="block=2.*expected block=1"):
        shifted_windows(HaloAttention(8, block=2), x)


def test_what_is_kept_for_the_backward_pass() -> None:
    a, b = torch.randn(10, requires_grad=True), torch.randn(10, requires_grad=True)
    assert kept_elements(lambda: a * b) == 20
    assert kept_elements(lambda: (a * b) * (a * b)) == 40  # two products more
    assert kept_elements(lambda: a.view(2, 5) * a.view(2, 5)) == 10  # views share their memory
    x = torch.randn(1, 8, 8, 8, requires_grad=True)
    windows, blocks = (HaloAttention(8, block=b, halo=3, heads=2) for b in (1, 4))
    assert kept_elements(lambda: windows(x)) > 2 * kept_elements(lambda: blocks(x))
    assert kept_elements(lambda: shifted_windows(windows, x)) < kept_elements(lambda: windows(x))


def test_layers_are_timed_in_turn() -> None:
    called: list[str] = []

    def named(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda x: called.append(name) or x * 2  # type: ignore[func-returns-value]

    found = time_layers({"a": named("a"), "b": named("b")}, torch.ones(1, 1, 2, 2), rounds=2)
    assert called == ["a", "b"] * 3
    assert all(len(seconds) == 2 and (seconds > 0).all() for seconds in found.values())


@pytest.mark.parametrize("wrong", [{"block": 0}, {"halo": -1}, {"block": 3, "stride": 2}])
def test_costs_of_nothing_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="expected positive numbers"):
        haloing_cost(**({"map_size": 8, "channels": 8, "block": 4, "halo": 1} | wrong))
