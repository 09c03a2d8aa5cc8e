"""A small training that is killed and gone on with: momentum twin, key queue, dropout, batch norm, random views."""

from __future__ import annotations

import copy
import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from offshelf.data.augment import random_flip, random_resized_crop
from offshelf.data.picture_views import PictureViews
from offshelf.engine.collective import gather
from offshelf.engine.draws import Draws
from offshelf.engine.launch import Launch
from offshelf.engine.recipe import Recipe
from offshelf.engine.train import Trained, Training, train


def two_views(pixels: torch.Tensor, draws: Draws) -> dict[str, torch.Tensor]:
    return {
        name: random_flip(random_resized_crop(pixels, draws, 12, scale=(0.4, 1.0)), draws) for name in ("one", "two")
    }


class Contrast(nn.Module):
    """Momentum contrast, as small as it gets."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 6),
        )
        self.twin = copy.deepcopy(self.net).requires_grad_(False)
        self.spare = nn.Linear(2, 2)  # no loss reaches it
        self.register_buffer("queue", F.normalize(torch.randn(32, 6), dim=1))
        self.register_buffer("fresh", torch.zeros(8, 6))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        query = F.normalize(self.net(batch["one"]).float(), dim=1)
        with torch.no_grad():
            key = F.normalize(self.twin(batch["two"]).float(), dim=1)
            self.fresh[: len(key) * _world()] = gather(key)
        logits = torch.cat([(query * key).sum(1, keepdim=True), query @ self.queue.clone().T], 1) / 0.2
        return {"loss": F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long)), "logit": logits.mean()}

    def after_step(self, step: int, total: int) -> None:
        with torch.no_grad():
            for mine, theirs in zip(self.twin.parameters(), self.net.parameters()):
                mine.lerp_(theirs, 0.1)
            first = int(self.place)
            self.queue[first : first + 8] = self.fresh
            self.place.copy_(torch.tensor((first + 8) % 32))

    def parameter_groups(self, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        trained = [p for p in self.parameters() if p.requires_grad]
        return [{"params": trained, "lr": learning_rate, "weight_decay": weight_decay}]


def _world() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (43, 3, 16, 16)).astype(np.uint8)


def run(
    folder: Path | None = None,
    *,
    steps: int = 60,
    devices: int = 1,
    accumulate: int = 1,
    bf16: bool = False,
    workers: int = 0,
    save_seconds: float = 0.0,
    module: nn.Module | None = None,
    **others: Any,
) -> tuple[Trained, str]:
    """Train, and return what came of it with a hash of all weights, buffers and averages."""
    torch.set_num_threads(1)
    module = module or Contrast()
    training = Training.of(
        Recipe(learning_rate=1e-2, batch_size=8, clip=1.0),
        43,
        steps=steps,
        batch_size=8,
        accumulate=accumulate,
        bf16=bf16,
        average=0.9,
        seed=3,
    )
    trained = train(
        module,
        PictureViews(pictures(), two_views, seed=3),
        training,
        launch=Launch("cpu", devices=devices),
        workers=workers,
        checkpoints=folder,
        identity={"data": "toy"},
        save_seconds=save_seconds,
        **others,
    )
    digest = hashlib.sha256()
    for name, value in [*module.state_dict().items(), *(trained.average or {}).items()]:
        digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return trained, digest.hexdigest()


if __name__ == "__main__":
    place, devices, accumulate, bf16, workers = sys.argv[1:]
    run(Path(place), devices=int(devices), accumulate=int(accumulate), bf16=bf16 == "True", workers=int(workers))
