"""Haloed attention against slow second writings: loops over queries, unfolded windows, and one matrix for all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers.halo_attn import HaloAttn

from offshelf.backbones.halo_attention import HaloAttention, global_attention, window_attention
from offshelf.errors import UsageError


def layer_of(seed: int = 0, **settings: Any) -> HaloAttention:
    """A small layer whose tables of positions matter."""
    torch.manual_seed(seed)
    made = HaloAttention(**({"dim": 8, "heads": 2, "block": 4, "halo": 1} | settings)).eval()
    torch.nn.init.normal_(made.pos_embed.height_rel)
    torch.nn.init.normal_(made.pos_embed.width_rel)
    return made


def pictures(height: int, width: int | None = None, channels: int = 8, batch: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, channels, height, width or height, generator=torch.Generator().manual_seed(seed))


def slow(layer: HaloAttention, x: torch.Tensor, mask: bool = False) -> torch.Tensor:
    """Every query by itself, in the words of the paper; positions by true offsets."""
    (b, h, w, s) = (layer.block_size, layer.halo_size, layer.win_size, layer.block_stride)
    n, d = layer.num_heads, layer.dim_head_qk
    height, width = x.shape[-2:]
    q = F.conv2d(x, layer.q.weight).unflatten(1, (n, d))  # of all positions: the stride is taken below
    k, v = F.conv2d(x, layer.kv.weight).unflatten(1, (n, -1)).split([d, layer.dim_head_v], dim=2)
    out = torch.zeros(len(x), n, layer.dim_head_v, -(-height // s), -(-width // s))
    for batch, head, i, j in product(range(len(x)), range(n), range(0, height, s), range(0, width, s)):
        top, left = i // b * b - h, j // b * b - h
        query, logits, values = q[batch, head, :, i, j], [], []
        for u, m in product(range(w), range(w)):
            row, column = top + u, left + m
            inside = 0 <= row < height and 0 <= column < width
            if mask and not inside:
                continue
            key = k[batch, head, :, row, column] if inside else torch.zeros(d)
            position = layer.pos_embed.height_rel[u - i % b + w - 1] + layer.pos_embed.width_rel[m - j % b + w - 1]
            logits.append(query @ key / d**0.5 + query @ position)
            values.append(v[batch, head, :, row, column] if inside else torch.zeros(layer.dim_head_v))
        out[batch, head, :, i // s, j // s] = torch.stack(logits).softmax(0) @ torch.stack(values)
    return out.flatten(1, 2)


@contextmanager
def softmaxes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Logits and weights of every softmax within the block."""
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    plain = torch.Tensor.softmax

    def noted(self: torch.Tensor, *args: Any, **more: Any) -> torch.Tensor:
        weights = plain(self, *args, **more)
        found.append((self, weights))
        return weights

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "softmax", noted)
        yield found


@torch.no_grad()
@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({}, (8, 8)),
        ({"block": 2, "halo": 2}, (4, 6)),
        ({"stride": 2}, (8, 8)),
        ({"dim_out": 16}, (4, 4)),
        ({"qk_dim": 4}, (4, 4)),
        ({"pad": True}, (5, 6)),
        ({"pad": True, "stride": 2}, (5, 7)),
    ],
)
def test_it_is_what_a_loop_over_queries_gives(settings: dict[str, Any], size: tuple[int, int], mask: bool) -> None:
    layer, x = layer_of(mask=mask, **settings), pictures(*size, batch=1)
    found, expected = layer(x), slow(layer, x, mask)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    if not mask:
        assert not torch.allclose(slow(layer, x, mask=True), expected, atol=1e-2), "the mask would make no difference"


@torch.no_grad()
def test_blocks_of_one_pixel_are_centred_windows() -> None:
    """Against F.unfold (property 3)."""
    layer, x = window_attention(8, window=5, heads=2).eval(), pictures(6, 7)
    torch.nn.init.normal_(layer.pos_embed.height_rel)
    q = layer.q(x).unflatten(1, (2, 4)).flatten(3)  # (B, n, d, HW)
    kv = F.unfold(F.pad(layer.kv(x), [2] * 4), 5).unflatten(1, (2, 8, 25))  # (B, n, 2d, 25, HW)
    k, v = kv[:, :, :4], kv[:, :, 4:]
    rows, columns = (table[4:].T for table in (layer.pos_embed.height_rel, layer.pos_embed.width_rel))  # (d, 5)
    position = (rows[:, :, None] + columns[:, None, :]).flatten(1)  # (d, 25)
    logits = torch.einsum("bndp,bndkp->bnkp", q, k) / 2 + torch.einsum("bndp,dk->bnkp", q, position)
    expected = torch.einsum("bnkp,bndkp->bndp", logits.softmax(2), v).reshape(2, 8, 6, 7)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_block_as_large_as_the_map_is_global_attention() -> None:
    """Against one matrix of all positions with 2-D relative embeddings (property 2)."""
    layer, x = global_attention(8, size=6, heads=2).eval(), pictures(6)
    torch.nn.init.normal_(layer.pos_embed.width_rel)
    q = layer.q(x).unflatten(1, (2, 4)).flatten(3)
    k, v = layer.kv(x).unflatten(1, (2, 8)).flatten(3).split(4, dim=2)
    at = torch.arange(6)
    between = at[None, :] - at[:, None] + 5  # key minus query
    rows, columns = layer.pos_embed.height_rel[between], layer.pos_embed.width_rel[between]  # (6, 6, d)
    position = (rows[:, None, :, None] + columns[None, :, None, :]).reshape(36, 36, 4)
    logits = torch.einsum("bndp,bndk->bnpk", q, k) / 2 + torch.einsum("bndp,pkd->bnpk", q, position)
    expected = torch.einsum("bnpk,bndk->bndp", logits.softmax(-1), v).reshape(2, 8, 6, 6)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        small = global_attention(8, size=6, heads=2, pad=True)(pictures(4, 5))
    assert small.shape == (2, 8, 4, 5)


@torch.no_grad()
@pytest.mark.parametrize(("altered", "reached"), [(slice(5, 8), [4, 5, 6, 7]), (slice(4, 5), list(range(8)))])
def test_a_block_sees_its_window_and_nothing_else(altered: slice, reached: list[int]) -> None:
    """Property 4, worked on an 8 x 8 map with blocks of 4 and a halo of 1."""
    layer, x = layer_of(), pictures(8)
    other = x.clone()
    other[:, :, altered] += 1.0
    differ = (layer(x) - layer(other)).abs().amax((0, 1, 3))  # by row
    assert torch.nonzero(differ > 1e-4).flatten().tolist() == reached
    assert (differ[[row for row in range(8) if row not in reached]] < 1e-6).all()


@torch.no_grad()
def test_shifting_by_a_block_shifts_the_output_and_shifting_by_a_pixel_does_not() -> None:
    """Property 5: relaxed equivariance."""
    layer, x = layer_of(), 4 * pictures(16)
    out = layer(x)
    inner = (slice(None), slice(None), slice(8, 12), slice(8, 12))  # a block that is inside before and after
    by_block, by_pixel = (layer(x.roll((s, s), (2, 3))).roll((-s, -s), (2, 3)) for s in (4, 1))
    before = (slice(None), slice(None), slice(4, 8), slice(4, 8))
    torch.testing.assert_close(by_block[before], out[before], rtol=1e-5, atol=1e-6)
    assert float((by_pixel[inner] - out[inner]).abs().max()) > 1.0


@torch.no_grad()
@pytest.mark.parametrize("mask", [False, True])
def test_stride_two_is_every_second_position_of_the_plain_output(mask: bool) -> None:
    """Property 6, with the same weights and tables."""
    plain, strided = layer_of(mask=mask), layer_of(stride=2, mask=mask)
    strided.load_state_dict(plain.state_dict())
    x = pictures(8)
    torch.testing.assert_close(strided(x), plain(x)[..., ::2, ::2], rtol=1e-5, atol=1e-5)
    assert strided(x).shape == (2, 8, 4, 4)


@torch.no_grad()
@pytest.mark.parametrize("stride", [1, 2])
def test_timms_weights_and_numbers(stride: int) -> None:
    torch.manual_seed(0)
    theirs = HaloAttn(8, num_heads=2, block_size=4, halo_size=1, stride=stride)
    ours = layer_of(seed=3, stride=stride, compat="timm")
    ours.load_state_dict(theirs.state_dict())  # strictly
    x = pictures(8)
    torch.testing.assert_close(ours(x), theirs(x))
    true = layer_of(stride=stride)
    torch.nn.init.normal_(ours.pos_embed.height_rel)
    true.load_state_dict(ours.state_dict())
    assert torch.allclose(true(x), ours(x), atol=1e-5) is (stride == 1), "timm's offsets are others with stride 2"


@torch.no_grad()
def test_odd_blocks_average_with_stride_two_and_keep_the_last_row() -> None:
    layer = layer_of(block=5, stride=2)
    assert layer.block_stride == 1
    plain = layer_of(block=5)
    plain.load_state_dict(layer.state_dict())
    out, whole = layer(pictures(5)), plain(pictures(5))
    assert out.shape == (2, 8, 3, 3)
    torch.testing.assert_close(out[..., 0, 0], whole[..., :2, :2].mean((2, 3)))
    torch.testing.assert_close(out[..., 2, 2], whole[..., 4, 4])


@torch.no_grad()
def test_logits_worked_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Property 7: q = (1, 0), k = (2, 0), d = 2 and empty tables give 2 / sqrt 2."""
    layer = HaloAttention(2, heads=1, block=1, halo=0)
    layer.q.weight.copy_(torch.eye(2)[..., None, None])
    layer.kv.weight.copy_(torch.cat([2 * torch.eye(2), torch.eye(2)])[..., None, None])
    for table in (layer.pos_embed.height_rel, layer.pos_embed.width_rel):
        table.zero_()
    with softmaxes(monkeypatch) as found:
        layer(torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1))
    assert found[0][0].item() == pytest.approx(1.4142, abs=1e-4)
    layer.scale_pos_embed = True
    layer.pos_embed.height_rel.fill_(3.0)
    with softmaxes(monkeypatch) as found:
        layer(torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1))
    assert found[0][0].item() == pytest.approx(5 / 2**0.5, abs=1e-4)  # (2 + 3) / sqrt 2


@torch.no_grad()
def test_weights_sum_to_one_and_masked_keys_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Property 8 on an 8 x 8 map in blocks of 4: of the upper left block's 6 x 6 keys, the first row and column."""
    for mask in (False, True):
        with softmaxes(monkeypatch) as found:
            layer_of(mask=mask)(pictures(8))
        weights = found[0][1]  # (B n, blocks, 16, 36)
        torch.testing.assert_close(weights.sum(-1), torch.ones(4, 4, 16))
        corner = weights[:, 0].unflatten(-1, (6, 6))
        outside = torch.cat([corner[:, :, 0].flatten(), corner[:, :, 1:, 0].flatten()])
        assert bool((outside == 0).all()) is mask
        assert (corner[:, :, 1:, 1:] > 0).all()


def test_maps_that_blocks_do_not_divide() -> None:
    """Property 10."""
    x = pictures(10)
    with pytest.raises(UsageError, match=r"10 x 10 positions: blocks of 8 x 8 do not divide it.*pad=True"):
        layer_of(block=8)(x)
    layer = layer_of(block=8, pad=True)
    out = layer(x)
    assert out.shape == (2, 8, 10, 10)
    by_hand = layer_of(block=8)
    by_hand.load_state_dict(layer.state_dict())
    torch.testing.assert_close(out, by_hand(F.pad(x, (0, 6, 0, 6)))[..., :10, :10])


def test_wide_values_leave_queries_and_keys_alone() -> None:
    """Property 11: r_v = 2."""
    plain, wide = layer_of(), layer_of(dim_out=16, qk_dim=8)
    assert (wide.dim_head_v, wide.dim_head_qk, wide.dim_out_qk) == (2 * plain.dim_head_v, 4, 8)
    assert wide.q.weight.shape == plain.q.weight.shape
    assert wide.kv.weight.shape[0] - plain.kv.weight.shape[0] == 8
    assert wide(pictures(4)).shape == (2, 16, 4, 4)


@pytest.mark.parametrize("settings", [{"mask": True, "pad": True}, {"stride": 2}])
def test_every_weight_learns_in_bfloat16_too(settings: dict[str, Any]) -> None:
    layer, x = layer_of(**settings), pictures(8)
    exact = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = layer(x)
    torch.testing.assert_close(rough.float(), exact, rtol=0.1, atol=0.05)
    rough.float().square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_unused_entries_of_the_tables() -> None:
    """The first 2 h entries of each table are never read: a key is at most block - 1 before its query's block."""
    layer = layer_of()
    layer(pictures(8)).square().sum().backward()
    rows = layer.pos_embed.height_rel.grad
    assert rows is not None
    assert torch.nonzero(rows.abs().sum(1) == 0).flatten().tolist() == [0, 1]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"block": 0}, "block=0: expected 1 or more"),
        ({"halo": -1}, "halo=-1: expected 0 or more"),
        ({"stride": 3}, "stride=3: expected 1 or 2"),
        ({"heads": 3}, "dim_out=8: expected a multiple of heads=3"),
        ({"qk_dim": 5}, "qk_dim=5: expected a multiple of heads=2"),
        ({"compat": "tim"}, "compat='tim': expected 'true' or 'timm'"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        layer_of(**settings)


def test_an_even_window_has_no_centre() -> None:
    with pytest.raises(UsageError, match="window=4: expected an odd number"):
        window_attention(8, window=4)
