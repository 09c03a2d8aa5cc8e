"""What runs in a child process for haloed attention: one layer in all its forms, and a training step of H1.

The watch runs from before the first step, so that peak memory above the imports is the layer's or the network's own.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks._process import Watch

Answer = tuple[dict[str, Any], dict[str, np.ndarray]]


def layer(
    watch: Watch, form: str, batch: int, channels: int, side: int, heads: int, halo: int, steps: int, block: int = 1
) -> Answer:
    """Forward and backward of one layer; ``form`` is windows, shifted, blocks, timm or global.

    All forms but ``global`` have the same weights, as far as shapes allow, and ``windows`` and ``shifted`` the same
    output, whose mean square is handed back.
    """
    import torch
    from timm.layers.halo_attn import HaloAttn

    from offshelf.backbones.halo_attention import HaloAttention, global_attention
    from offshelf.backbones.halo_cost import haloing_cost, shifted_windows

    torch.manual_seed(0)
    x = torch.randn(batch, channels, side, side, requires_grad=True)
    if form == "timm":
        attention: Any = HaloAttn(channels, num_heads=heads, block_size=block, halo_size=halo)
    elif form == "global":
        block, halo = side, 0
        attention = global_attention(channels, side, heads=heads)
    else:
        attention = HaloAttention(channels, block=block, halo=halo, heads=heads)
    run: Callable[[torch.Tensor], torch.Tensor] = attention
    if form == "shifted":
        run = lambda x: shifted_windows(attention, x)  # noqa: E731

    def once() -> None:
        attention.zero_grad(set_to_none=True)
        x.grad = None
        run(x).sum().backward()

    facts = _timed(watch, once, steps)
    cost = haloing_cost(side, channels, block, halo, heads)
    gathered = "-" if form == "shifted" else f"{cost.gather_factor:.2f}"
    work = f"{batch * cost.macs / 1e6:.0f}"
    facts["columns"] = {"keys": str(cost.keys), "gathered": gathered, "MACs (million)": work}
    with torch.no_grad():
        return facts, {"square": np.array([float(run(x).square().mean())])}


def network(watch: Watch, form: str, batch: int, side: int, steps: int, width: float = 1.0) -> Answer:
    """Forward, backward and AdamW of H1, ``width`` times as wide; ``form`` is timm, ours, masked or hybrid.

    The first three have the same weights, and timm and ours the same loss.
    """
    import timm
    import torch
    import torch.nn.functional as F

    from offshelf.backbones import halonet

    torch.manual_seed(0)
    x, labels = torch.randn(batch, 3, side, side), torch.arange(batch)
    settings: dict[str, Any] = {
        "ours": {"compat": "timm"},
        "masked": {"mask": True},
        "hybrid": {"stages": ("convolution", "convolution", "attention", "attention")},
    }.get(form, {})
    model = timm.create_model("halonet_h1", width_factor=width)
    if form != "timm":
        weights = model.state_dict()
        model = halonet.network(width_factor=width, **settings)
        if form != "hybrid":
            model.load_state_dict(weights)
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    last = [0.0]

    def once() -> None:
        loss = F.cross_entropy(model(x), labels)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        last[0] = loss.item()

    facts = _timed(watch, once, steps)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    facts["columns"] = {"parameters (million)": f"{parameters / 1e6:.2f}"}
    return facts, {"loss": np.array(last)}


def _timed(watch: Watch, once: Callable[[], None], steps: int) -> dict[str, Any]:
    """The median of some steps; one step goes before them."""
    watch.start()
    once()
    taken = []
    for _ in range(steps):
        begun = time.perf_counter()
        once()
        taken.append(time.perf_counter() - begun)
    watch.stop()
    return {"step_seconds": statistics.median(taken)}
