"""What a block and a halo cost: keys, multiply-adds, gathered memory and work in vain, by formula and by the clock.

Vaswani et al. 2021 (arXiv 2103.12731), section 3.1, counted for one layer. With ``w = block + 2 halo``, every position
sees ``w ** 2`` keys; a window of its own would have ``(2 halo + 1) ** 2``. ``block=1`` is such a window (no work in
vain, every key gathered ``w ** 2`` times); a block as large as the map is global attention (nothing gathered twice).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from offshelf.backbones.halo_attention import HaloAttention
from offshelf.errors import UsageError


@dataclass(frozen=True)
class HaloingCost:
    """Of one layer on one map, without its projections.

    keys : that a query sees.
    macs_per_position : multiply-adds of ``q k^T`` and of the sum of values, for one query.
    macs : of all queries; where blocks do not divide the map, of those in the fill too.
    gather_factor : gathered keys and values as a multiple of the map's own.
    wasted_work : keys seen over those of a centred window with the same halo.
    logits : numbers that the softmax works on, over all heads.
    """

    keys: int
    macs_per_position: int
    macs: int
    gather_factor: float
    wasted_work: float
    logits: int


def haloing_cost(
    map_size: int | tuple[int, int], channels: int, block: int, halo: int, heads: int = 8, stride: int = 1
) -> HaloingCost:
    """Count what a layer of `HaloAttention` costs on one map.

    Parameters
    ----------
    map_size : positions of a square map, or height and width. Sizes that blocks do not divide count as filled.
    channels : of the queries, which are as many as those of the keys and values.
    block, halo : positions.
    heads : of which only the number of logits depends.
    stride : 2 asks every second position of a block.

    Raises
    ------
    UsageError
        For sizes below 1, a halo below 0, or a block that the stride does not divide.
    """
    sides = (map_size, map_size) if isinstance(map_size, int) else tuple(map_size)
    if min(*sides, channels, block, heads, stride) < 1 or halo < 0 or block % stride:
        raise UsageError(
            f"map_size={map_size}, channels={channels}, block={block}, halo={halo}, heads={heads}, stride={stride}: "
            "expected positive numbers, a halo of 0 or more, and a block that the stride divides"
        )
    keys = (block + 2 * halo) ** 2
    blocks = -(-sides[0] // block) * -(-sides[1] // block)
    queries = blocks * (block // stride) ** 2
    return HaloingCost(
        keys=keys,
        macs_per_position=2 * channels * keys,
        macs=2 * channels * keys * queries,
        gather_factor=keys / block**2,
        wasted_work=keys / (2 * halo + 1) ** 2,
        logits=heads * keys * queries,
    )


def shifted_windows(layer: HaloAttention, x: torch.Tensor) -> torch.Tensor:
    """The output of a layer with ``block=1``, written without gathering: the whole map is shifted, window ** 2 times.

    The control for the cost of per-pixel windows, which need not gather on a processor that adds shifted maps well.

    Raises
    ------
    UsageError
        For a layer whose blocks are not single pixels, or that has a mask or a stride.
    """
    if layer.block_size != 1 or layer.mask or layer.stride != 1:
        raise UsageError(
            f"block={layer.block_size}, mask={layer.mask}, stride={layer.stride}: expected block=1, no mask, no stride"
        )
    batch, _, height, width = x.shape
    side, d = layer.win_size, layer.dim_head_qk
    q = layer.q(x).unflatten(1, (layer.num_heads, d))  # (B, n, d, H, W)
    kv = F.pad(layer.kv(x), [layer.halo_size] * 4).unflatten(1, (layer.num_heads, -1))
    shifts = [(u, v, kv[..., u : u + height, v : v + width]) for u in range(side) for v in range(side)]
    # the tables' entries for a query at 0 and keys at 0 to w - 1
    rows, columns = layer.pos_embed.height_rel[side - 1 :], layer.pos_embed.width_rel[side - 1 :]
    down, across = (torch.einsum("bndhw,ud->ubnhw", q, table) for table in (rows, columns))
    scaled = q * layer.scale
    factor = layer.scale if layer.scale_pos_embed else 1.0
    logits = [(scaled * part[:, :, :d]).sum(2) + factor * (down[u] + across[v]) for u, v, part in shifts]
    weights = torch.stack(logits).softmax(0)  # (w * w, B, n, H, W)
    out = sum(weight[:, :, None] * part[:, :, d:] for weight, (_, _, part) in zip(weights, shifts))
    assert isinstance(out, torch.Tensor)
    return out.reshape(batch, -1, height, width)


def kept_elements(run: Callable[[], torch.Tensor]) -> int:
    """Numbers that a forward pass keeps for its backward pass, each piece of memory counted once.

    Parameters
    ----------
    run : gives the output; parameters that it uses are counted too.
    """
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        memory = tensor.untyped_storage()
        kept[memory.data_ptr()] = (memory.nbytes() // tensor.element_size(), tensor)  # held, so that no address returns
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        run()
    return sum(count for count, _ in kept.values())


def time_layers(
    layers: Mapping[str, Callable[[torch.Tensor], torch.Tensor]], x: torch.Tensor, rounds: int, warmup: int = 1
) -> dict[str, np.ndarray]:
    """Seconds of a forward and a backward pass, in turn (A B C A B C), so that a busy moment meets all alike.

    Parameters
    ----------
    layers : name -> layer or function of the map.
    x : (B, C, H, W); a gradient is worked out for it too.
    rounds : timed; ``warmup`` rounds come before.

    Returns
    -------
    dict
        name -> (rounds,) seconds.
    """
    x = x.detach().requires_grad_(True)
    found: dict[str, list[float]] = {name: [] for name in layers}
    for number in range(warmup + rounds):
        for name, layer in layers.items():
            for parameter in layer.parameters() if isinstance(layer, nn.Module) else ():
                parameter.grad = None
            x.grad = None
            began = time.perf_counter()
            layer(x).sum().backward()
            if number >= warmup:
                found[name].append(time.perf_counter() - began)
    return {name: np.array(seconds) for name, seconds in found.items()}
