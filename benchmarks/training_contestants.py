"""What runs in a child process for the training benchmark: a bare loop, the engine, augmentations, one step many ways.

Pictures are noise: how long a step takes does not depend on them.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np

from benchmarks._process import Watch

LEARNING_RATE, WEIGHT_DECAY, CLIP = 1e-3, 0.05, 1.0
Answer = tuple[dict[str, Any], dict[str, np.ndarray]]


def table(n: int, side: int) -> np.ndarray:
    """``(n, 3, side, side)`` uint8 noise, the same for everybody."""
    return np.random.default_rng(0).integers(0, 256, (n, 3, side, side), dtype=np.uint8)


def views(pixels: Any, draws: Any) -> dict[str, Any]:
    """Shift and flip: what both loops do to a batch."""
    from offshelf.data.augment import normalised, random_flip, random_shift

    x = random_flip(random_shift(pixels, draws), draws)
    return {"picture": normalised(x.float() / 255, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))}


def classifier(backbone: str, image_size: int) -> Any:
    """A network with a linear head as a module of the engine: batch in, loss out."""
    import timm
    import torch
    import torch.nn.functional as F
    from torch import nn

    from offshelf.backbones.parameter_groups import parameter_groups

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            sized = {"img_size": image_size} if "vit" in backbone else {}
            self.backbone = timm.create_model(backbone, num_classes=10, **sized)

        def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {"loss": F.cross_entropy(self.backbone(batch["picture"]).float(), batch["label"])}

        def parameter_groups(self, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
            return parameter_groups(self, self.backbone, learning_rate, weight_decay)

    return Classifier()


def _data(backbone: str, side: int, batch: int, steps: int) -> tuple[Any, Any, Any]:
    from offshelf.data.picture_views import PictureViews
    from offshelf.engine.recipe import Recipe
    from offshelf.engine.train import Training

    n = 8 * batch
    data = PictureViews(table(n, side), views, 0, labels=np.arange(n) % 10)
    recipe = Recipe(learning_rate=LEARNING_RATE, weight_decay=WEIGHT_DECAY, batch_size=batch, clip=CLIP)
    return classifier(backbone, side), data, Training.of(recipe, n, steps=steps, batch_size=batch)


def bare_loop(watch: Watch, backbone: str, side: int, batch: int, steps: int) -> Answer:
    """The loop one writes by hand, over the same batches: forward, backward, clip, AdamW, a cosine by hand."""
    import torch

    from offshelf.engine.order import Order
    from offshelf.engine.recipe import rate_scale

    module, data, training = _data(backbone, side, batch, steps)
    module = module.to(memory_format=torch.channels_last).train()
    groups = module.parameter_groups(LEARNING_RATE, WEIGHT_DECAY)
    optimiser = torch.optim.AdamW(groups, lr=LEARNING_RATE, fused=True)
    bases = [group["lr"] for group in optimiser.param_groups]
    order = Order(len(data), batch, 0)
    taken = []
    watch.start()
    for step in range(steps):
        begun = time.perf_counter()
        for group, base in zip(optimiser.param_groups, bases):
            group["lr"] = base * rate_scale(step, steps, training.recipe.warmup, training.recipe.final_rate)
        got = data.__getitems__(order.keys(step))
        got["picture"] = got["picture"].contiguous(memory_format=torch.channels_last)
        loss = module(got)["loss"]
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), CLIP)
        optimiser.step()
        loss.item()
        taken.append(time.perf_counter() - begun)
    watch.stop()
    return {"step_seconds": statistics.median(taken[2:])}, {"loss": np.array([loss.item()])}


def engine(watch: Watch, backbone: str, side: int, batch: int, steps: int) -> Answer:
    """The same training by `offshelf.engine.train.train`, with a record every step, as its user gets it."""
    from dataclasses import replace

    from offshelf.engine.train import Watch as Told
    from offshelf.engine.train import train

    module, data, training = _data(backbone, side, batch, steps)
    moments: list[float] = []
    told = Told(log=lambda record: moments.append(time.perf_counter()))
    watch.start()
    done = train(module, data, replace(training, log_every=1), watch=told)
    watch.stop()
    taken = np.diff(moments)
    return {"step_seconds": float(np.median(taken[1:]))}, {"loss": np.array([done.history[-1]["loss"]])}


def augmentation(watch: Watch, route: str, recipe: str, side: int, batch: int, batches: int) -> Answer:
    """Pictures a second of one augmentation: ``route`` is one of ``pil``, ``v2`` (per sample) and ``offshelf``."""
    import torch

    torch.manual_seed(0)
    pictures = torch.from_numpy(table(batch, side))
    work = {"pil": _per_sample_pil, "v2": _per_sample_v2, "offshelf": _by_batch}[route](recipe, side)
    work(pictures, 0)
    watch.start()
    for number in range(batches):
        out = work(pictures, number)
    watch.stop()
    assert out.shape == (batch, 3, side, side)
    assert out.dtype == torch.float32
    differing = float((out[0] - out[1]).abs().mean())
    return {"pictures": batch * batches}, {"out": np.array([differing])}


def _torchvision(recipe: str, side: int) -> list[Any]:
    from torchvision.transforms import v2

    if recipe == "shift, flip":
        return [v2.RandomCrop(side, padding=round(0.125 * side), padding_mode="edge"), v2.RandomHorizontalFlip()]
    return [
        v2.RandomResizedCrop(side, (0.2, 1.0), interpolation=v2.InterpolationMode.BILINEAR, antialias=True),
        v2.RandomHorizontalFlip(),
        v2.ColorJitter(0.4, 0.4, 0.4),
        v2.RandomGrayscale(0.2),
    ]


def _per_sample_v2(recipe: str, side: int) -> Any:
    import torch
    from torchvision.transforms import v2

    steps = v2.Compose(
        [*_torchvision(recipe, side), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.25] * 3)]
    )
    return lambda pictures, number: torch.stack([steps(one) for one in pictures])


def _per_sample_pil(recipe: str, side: int) -> Any:
    import torch
    from torchvision.transforms import v2

    steps = v2.Compose(
        [
            *_torchvision(recipe, side),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5] * 3, [0.25] * 3),
        ]
    )
    kept: list[Any] = []

    def work(pictures: Any, number: int) -> Any:
        if not kept:
            kept.extend(v2.functional.to_pil_image(one) for one in pictures)
        return torch.stack([steps(one) for one in kept])

    return work


def _by_batch(recipe: str, side: int) -> Any:
    from offshelf.data import augment
    from offshelf.engine.draws import Draws

    def work(pictures: Any, number: int) -> Any:
        draws = Draws(0, number, np.arange(len(pictures)))
        if recipe == "shift, flip":
            return views(pictures, draws)["picture"]
        x = augment.random_resized_crop(pictures, draws, side, scale=(0.2, 1.0), interpolation="bilinear")
        x = augment.color_jitter(augment.random_flip(x, draws), draws, 0.4, 0.4, 0.4)
        return augment.normalised(augment.random_grayscale(x, draws, 0.2), (0.5,) * 3, (0.25,) * 3)

    return work


def step(
    watch: Watch,
    backbone: str,
    side: int,
    batch: int,
    steps: int,
    bf16: bool = False,
    channels_last: bool = False,
    compiled: bool = False,
) -> Answer:
    """Forward, backward and AdamW on one batch, over and over; the first steps (and compilation) are not timed."""
    import torch

    module = classifier(backbone, side).train()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    module = module.to(memory_format=layout)
    optimiser = torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE, fused=True)
    run = torch.compile(module) if compiled else module
    picture = torch.from_numpy(table(batch, side)).float() / 255
    got = {"picture": picture.contiguous(memory_format=layout), "label": torch.arange(batch) % 10}

    def once() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            loss = run(got)["loss"]
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    return _timed(watch, once, steps, batch)


def masked_step(watch: Watch, backbone: str, side: int, batch: int, steps: int, mask_ratio: float) -> Answer:
    """A step of masked autoencoding: the encoder sees the visible tokens alone."""
    import timm
    import torch

    from offshelf.engine.draws import Draws
    from offshelf.pretrain.mae_thorax import MAE

    torch.manual_seed(0)
    network = timm.create_model(backbone, num_classes=0, img_size=side)
    method = MAE(network, side, mask_ratio=mask_ratio, decoder_width=96, decoder_depth=1, decoder_heads=3).train()
    optimiser = torch.optim.AdamW(method.parameters(), lr=LEARNING_RATE, fused=True)
    got = method.views()(torch.from_numpy(table(batch, side)), Draws(0, 0, np.arange(batch)))

    def once() -> None:
        loss = method(got)["loss"]
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    return _timed(watch, once, steps, batch)


def _timed(watch: Watch, once: Any, steps: int, batch: int) -> Answer:
    for _ in range(3):
        once()
    taken = []
    watch.start()
    for _ in range(steps):
        begun = time.perf_counter()
        once()
        taken.append(time.perf_counter() - begun)
    watch.stop()
    return {"step_seconds": statistics.median(taken), "pictures": batch * steps}, {"none": np.zeros(1)}
