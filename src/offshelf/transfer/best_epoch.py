"""Choosing the epoch on pictures left out of the training part: which ones, and keeping the best epoch's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from offshelf.engine.files import write_through
from offshelf.errors import UsageError


def left_out(codes: np.ndarray, groups: np.ndarray | None, share: float, seed: int) -> np.ndarray:
    """Rows of a validation share, ascending: of each class about ``share``, groups whole, no class's last ones.

    Groups are visited in a drawn order; one is taken when that brings the classes' shares nearer to what is wanted.
    Without groups every class gives ``round(share * size)`` rows.

    Parameters
    ----------
    codes : (n,) class numbers from 0
    groups : (n,) rows of one group are never divided.

    Raises
    ------
    UsageError
        When nothing could be left out.
    """
    units = np.arange(len(codes)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    sizes = np.bincount(codes)
    wanted = share * sizes
    members = np.zeros((units.max() + 1, len(sizes)))
    np.add.at(members, (units, codes), 1)
    taken = np.zeros(len(sizes))
    chosen = []
    scale = 1 / np.maximum(sizes, 1)
    for unit in np.random.default_rng([seed, 2]).permutation(len(members)):
        after = taken + members[unit]
        nearer = (scale * (after - wanted)) @ (after - wanted) < (scale * (taken - wanted)) @ (taken - wanted) + 1e-12
        if nearer and (after < sizes)[sizes > 0].all():
            taken = after
            chosen.append(unit)
    rows = np.flatnonzero(np.isin(units, chosen))
    if not len(rows):
        raise UsageError(
            f"validation_share={share} of {len(codes)} pictures leaves none to choose the epoch on; give a larger "
            "share or more pictures, or have the last epoch kept (early_stopping=None; in a screening study a share "
            "of 0)."
        )
    return rows


def rarest_class(labels: np.ndarray) -> np.ndarray:
    """Of multi-hot rows (n, K), NaN unknown: the rarest class that a row has, K where it has none."""
    has = np.nan_to_num(labels) > 0.5
    cost = np.where(has, has.sum(axis=0)[None], np.inf)
    return np.where(has.any(axis=1), cost.argmin(axis=1), labels.shape[1])


class BestEpoch:
    """The lowest validation loss so far, with the weights that had it.

    With a folder it is kept in a file as well, so that a training that was killed and goes on from an earlier
    checkpoint ends with the same epoch: it meets the same losses again.

    Parameters
    ----------
    patience : epochs without a lower loss after which to stop.
    folder : where ``best.pt`` is kept, if anywhere.
    """

    def __init__(self, patience: int, folder: Path | None = None) -> None:
        self.patience = patience
        self.file = None if folder is None else Path(folder) / "best.pt"
        self.losses: dict[int, float] = {}
        self.epoch = 0
        self.weights: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.stopped = False

    def take_up(self) -> None:
        """Read what an earlier process kept."""
        import torch

        if self.file is not None and self.file.is_file():
            kept = torch.load(self.file, weights_only=True, map_location="cpu")
            self.losses, self.epoch, self.weights = kept["losses"], kept["epoch"], kept["weights"]
            self.stopped, self.history = kept["stopped"], kept["history"]

    def told(self, epoch: int, loss: float, weights: dict[str, Any], history: list[dict[str, Any]]) -> bool:
        """Take in the loss after ``epoch`` (from 1); returns whether to stop. What has stopped takes in no more."""
        if self.stopped:
            return True
        self.losses[epoch] = loss if loss == loss else float("inf")  # no number is no good epoch
        seen = {number: value for number, value in self.losses.items() if number <= epoch}
        best = min(seen, key=lambda number: (seen[number], number))
        if best == epoch:
            self.epoch = epoch
            self.weights = {name: value.detach().cpu().clone() for name, value in weights.items()}
        self.stopped = epoch - best >= self.patience
        if best == epoch or self.stopped:
            self.history = history
            self._keep()
        return self.stopped

    def _keep(self) -> None:
        import torch

        if self.file is None:
            return
        kept = {
            "losses": self.losses,
            "epoch": self.epoch,
            "weights": self.weights,
            "stopped": self.stopped,
            "history": self.history,
        }
        write_through(self.file, lambda temporary: torch.save(kept, temporary))
