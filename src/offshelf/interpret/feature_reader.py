"""Frozen backbones and a fitted head as one network from pixels to scores, which can be differentiated.

What `fit` and `predict` do in two steps with a cache between them is done here in one: the picture is cut into copies
and tiles, each goes through each backbone, and the features go through the head. Two things differ from them by a hair:
tiles are cut after the picture was brought to the size of all of them, and a backbone whose input is smaller than the
first one's gets the picture at that size made smaller.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from offshelf.backbones.card import BackboneCard, card_of
from offshelf.backbones.input_size import set_input_size
from offshelf.backbones.load import load_backbone
from offshelf.backbones.readout import read
from offshelf.data.geometry import copies, split_tiles
from offshelf.transfer.deep_features import DeepFeatures

# What explanations ask a timm network for; with one backbone over whole pictures the answers are that network's.
ASKED = (
    *("forward_intermediates", "card", "output_fmt", "num_prefix_tokens", "global_pool"),
    *("attn_pool", "pool_include_prefix", "head_dist"),
)


class FeatureReader(nn.Module):
    """Pictures ``(B, 3, rows * h, columns * w)``, normalised as the first backbone expects, to scores ``(B, K)``.

    Parameters
    ----------
    features : fitted (its backbones looked up).
    head : features ``(B, D)`` to scores, see `offshelf.interpret.differentiable_head`.
    """

    def __init__(self, features: DeepFeatures, head: nn.Module) -> None:
        super().__init__()
        self.grid, self.copies, self.pooling = features.grid, features.copies, features.copy_pooling
        self.readout = features.readout
        self.cards = [_resized(card, features.input_size) for card in features.cards_]
        names = [features.backbones] if isinstance(features.backbones, str) else list(features.backbones)
        self.networks = nn.ModuleList([_loaded(name, card, self.readout) for name, card in zip(names, self.cards)])
        self.head = head  # the last to be registered, and so the first that the weight randomisation shuffles
        self.requires_grad_(False).eval()

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the pictures it takes: all tiles, each at the size of the largest backbone's input."""
        height, width = (max(card.input_size[axis] for card in self.cards) for axis in (0, 1))
        return self.grid[0] * height, self.grid[1] * width

    @property
    def whole(self) -> bool:
        """Whether one backbone sees whole pictures, once each."""
        return len(self.networks) == 1 and self.grid == (1, 1) and self.copies == 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores ``(B, K)``."""
        pieces = [tile for copy in copies(x, self.copies) for tile in split_tiles(copy, self.grid)]
        blocks = [
            torch.stack([read(network, self._seen(piece, card), self.readout) for piece in pieces], dim=1)
            for network, card in zip(self.networks, self.cards)
        ]  # of each backbone (B, copies x tiles, width)
        table = torch.cat([block.reshape(len(x), self.copies, -1) for block in blocks], dim=2)  # (B, copies, D)
        return self.head(table.flatten(1) if self.pooling == "concatenate" else table.mean(dim=1))

    def forward_head(self, final: torch.Tensor) -> torch.Tensor:
        """Scores from the last map of the one backbone."""
        network: Any = self.networks[0]
        return self.head(network.forward_head(final, pre_logits=self.readout == "pooled"))

    def _seen(self, piece: torch.Tensor, card: BackboneCard) -> torch.Tensor:
        """A piece as one backbone expects it."""
        if tuple(piece.shape[-2:]) != tuple(card.input_size):
            piece = F.interpolate(piece, card.input_size, mode=card.interpolation, antialias=True)
        first = self.cards[0]
        if (card.mean, card.std) == (first.mean, first.std):
            return piece
        mean, std, own_mean, own_std = (
            piece.new_tensor(one).view(1, 3, 1, 1) for one in (first.mean, first.std, card.mean, card.std)
        )
        return (piece * std + mean - own_mean) / own_std

    def __getattr__(self, name: str) -> Any:
        if name in ASKED and self.whole:
            return getattr(self.networks[0], name)
        return super().__getattr__(name)


def _resized(card: BackboneCard, input_size: int | None) -> BackboneCard:
    return card if input_size is None else replace(card, input_size=(input_size, input_size))


def _loaded(name: str, card: BackboneCard, readout: str) -> nn.Module:
    model = load_backbone(name, num_classes=None if readout == "logits" else 0)
    if tuple(card.input_size) != tuple(card_of(model).input_size):  # position tables are made for one size
        set_input_size(model, *card.input_size)
    return model.float()
