"""What runs in a child process for the benchmark of B-cos networks: forward pass, training step and explanation.

Each beside the ordinary network it was made of, and what one would take from that one: the gradient by the input.
Pictures are noise: how long a pass takes does not depend on them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks._process import Watch

Answer = tuple[dict[str, Any], dict[str, np.ndarray]]
CLASSES = 10


def network(backbone: str, kind: str, side: int) -> tuple[Any, Any]:
    """The ordinary network (``kind`` "plain") or its B-cos twin ("b-cos"), and a function that gives it pictures."""
    import timm
    import torch

    from offshelf.backbones.b_cosification import bcosify, refresh_statistics

    torch.manual_seed(0)
    sized = {"img_size": side} if "vit" in backbone else {}
    model = timm.create_model(backbone, num_classes=CLASSES, **sized)
    if kind == "b-cos":
        model = bcosify(model)
        refresh_statistics(model, [pictures(8, side)])
    return model.to(memory_format=torch.channels_last).eval(), pictures


def pictures(batch: int, side: int) -> Any:
    """Noise in [0, 1], ``(batch, 3, side, side)``, the same for everybody."""
    import torch

    noise = np.random.default_rng(0).random((batch, 3, side, side), dtype=np.float32)
    return torch.from_numpy(noise).contiguous(memory_format=torch.channels_last)


def forward(watch: Watch, backbone: str, kind: str, side: int, batch: int, repeats: int) -> Answer:
    """Logits of a batch, without gradients."""
    import torch

    model, made = network(backbone, kind, side)
    x = made(batch, side)

    def once() -> Any:
        with torch.inference_mode():
            return model(x)

    return _timed(watch, once, batch, repeats)


def step(watch: Watch, backbone: str, kind: str, side: int, batch: int, repeats: int) -> Answer:
    """Forward, backward and AdamW; the B-cos network by the loss and clipping of its recipe."""
    import torch
    import torch.nn.functional as F

    from offshelf.engine.optimise import adaptively_clip
    from offshelf.transfer.b_cos_recipe import b_cos_loss

    model, made = network(backbone, kind, side)
    model.train()
    x, target = made(batch, side), torch.arange(batch) % CLASSES
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0, fused=True)

    def once() -> Any:
        logits = model(x)
        loss = b_cos_loss(logits, target) if kind == "b-cos" else F.cross_entropy(logits, target)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if kind == "b-cos":
            adaptively_clip(model, 0.01)
        else:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        return logits.detach()

    return _timed(watch, once, batch, repeats)


def explanation(watch: Watch, backbone: str, kind: str, side: int, batch: int, repeats: int) -> Answer:
    """Maps of one class for a batch: contributions of the B-cos network, input x gradient of the ordinary one.

    ``remainder`` is the largest part of a logit that the map does not account for: rounding for the B-cos network.
    """
    import torch

    from offshelf.interpret.b_cos_explanation import explain_b_cos
    from offshelf.interpret.explanations import input_x_gradient

    model, made = network(backbone, kind, side)
    x, classes = made(batch, side), torch.arange(batch) % CLASSES

    def once() -> Any:
        if kind == "b-cos":
            return explain_b_cos(model, x, classes).contributions
        return input_x_gradient(model, x, classes)

    facts, arrays = _timed(watch, once, batch, repeats)
    with torch.inference_mode():
        logit = model(x).gather(1, classes[:, None])[:, 0].numpy()
    missed = logit - getattr(model, "offset", 0.0) - arrays["out"].sum(axis=(1, 2))
    return facts | {"remainder": float(np.abs(missed).max())}, arrays


def _timed(watch: Watch, once: Callable[[], Any], batch: int, repeats: int) -> Answer:
    for _ in range(2):
        once()
    taken = []
    watch.start()
    for _ in range(repeats):
        begun = time.perf_counter()
        out = once()
        taken.append(time.perf_counter() - begun)
    watch.stop()
    return {"batch_seconds": statistics.median(taken), "pictures": batch * repeats}, {"out": out.numpy()}
