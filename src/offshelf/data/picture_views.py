"""A table of pictures as the training loop reads it: batches of views, each a pure function of (seed, epoch, row)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from offshelf.engine.draws import Draws

Views = Callable[[torch.Tensor, Draws], dict[str, torch.Tensor]]


class PictureViews(torch.utils.data.Dataset):
    """Stored pictures and the transform that makes a batch of them.

    Parameters
    ----------
    table : uint8 (n, 3, S, S)
        In memory or memory-mapped; data workers share it.
    views : ``(uint8 (B, 3, S, S), Draws) -> {name: tensor with B rows}``
    seed : int
    labels : (n,) integers or (n, K) floats, optional
        Handed on as ``batch["label"]``.
    """

    def __init__(self, table: np.ndarray, views: Views, seed: int = 0, labels: np.ndarray | None = None) -> None:
        self.table, self.views, self.seed = table, views, seed
        self.labels = None if labels is None else torch.as_tensor(np.asarray(labels))

    def __len__(self) -> int:
        return len(self.table)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> dict[str, torch.Tensor]:
        """The batch of ``(epoch, row)`` keys; a batch that spans two epochs is drawn in two parts."""
        epochs = [epoch for epoch, _ in keys]
        parts = []
        for epoch in sorted(set(epochs)):
            rows = np.array([row for e, row in keys if e == epoch])
            draws = Draws(self.seed, epoch, rows)
            batch = self.views(torch.from_numpy(np.ascontiguousarray(self.table[rows])), draws)
            if self.labels is not None:
                batch.setdefault("label", self.labels[torch.from_numpy(rows)])
            parts.append(batch)
        if len(parts) == 1:
            return parts[0]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def __getitem__(self, key: Any) -> dict[str, torch.Tensor]:
        return self.__getitems__([key if isinstance(key, tuple) else (0, int(key))])
