"""Backbones as the extractor sees them: what is done to a picture first, the route, the width, and the cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from offshelf.backbones.card import BackboneCard, card_of
from offshelf.backbones.input_size import set_input_size
from offshelf.backbones.load import load_backbone
from offshelf.backbones.preprocess import Resize
from offshelf.backbones.readout import Readout
from offshelf.backbones.route import FastNetwork, cpu_signature
from offshelf.engine.cache import VERSION, FeatureCache, cache_root
from offshelf.engine.files import read_json, write_json

GUARD_PIECES = 16  # pieces, spread over the first batch, on which bf16 is held against fp32; each costs two more passes


@dataclass(frozen=True)
class View:
    """What is done to a picture before a backbone sees it; a part of every cache key.

    grid : (rows, columns) of tiles; copies : 1, 2 or 16 jittered copies; resize : "squash" or "crop" (see
    `offshelf.backbones.preprocess.to_input`); blank_area : share of the picture blanked at its centre, or None;
    corruption : damage done to the picture, as `offshelf.data.corruptions.parse_corruption` writes it, or None;
    exact : decode at full size and compute in fp32; decode_at_least : the short side in pixels below which a JPEG is
    never decoded at reduced scale (None: always at full size).
    """

    grid: tuple[int, int] = (1, 1)
    copies: int = 1
    resize: Resize = "squash"
    blank_area: float | None = None
    exact: bool = False
    decode_at_least: int | None = None
    corruption: str | None = None

    @property
    def pieces(self) -> int:
        """Pieces of one picture: copies x tiles."""
        return self.copies * self.grid[0] * self.grid[1]


class Network:
    """One backbone with its cache: loaded, and its route decided, only when something must be computed."""

    def __init__(self, name: str, view: View, readout: Readout, input_size: int | None, root: Path | None) -> None:
        self.name, self.view, self.readout = name, view, readout
        self.root = root or cache_root()
        self.card, self.width = card_and_width(name, readout)
        self.resized = input_size is not None and tuple(self.card.input_size) != (input_size, input_size)
        if input_size is not None:
            self.card = replace(self.card, input_size=(input_size, input_size))
        self._fast: FastNetwork | None = None
        self._decision: dict[str, Any] | None = None
        self._cache: FeatureCache | None = None

    @property
    def row_width(self) -> int:
        """Numbers a picture: copies x tiles x channels."""
        return self.view.pieces * self.width

    @property
    def decision(self) -> dict[str, Any] | None:
        """The route taken for these weights on this kind of machine: decided once, then remembered on disk."""
        if self._decision is None:
            if self.view.exact:
                self._decision = {"route": "fp32", "cosine_median": None, "cosine_min": None}
            elif self._decision_path.is_file():
                self._decision = read_json(self._decision_path)
        return self._decision

    @property
    def _decision_path(self) -> Path:
        parts = [self.card.weights_hash, self.readout, list(self.card.input_size), cpu_signature()]
        name = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
        return self.root / VERSION / "routes" / f"{name}.json"

    @property
    def cache(self) -> FeatureCache | None:
        """The cache of this backbone's features; None until the route is decided."""
        if self._cache is None and self.decision is not None:
            space = {
                "weights": self.card.weights_hash,
                "input": [
                    list(self.card.input_size),
                    list(self.card.mean),
                    list(self.card.std),
                    self.card.interpolation,
                ],
                "crop_pct": self.card.crop_pct if self.view.resize == "crop" else None,
                "readout": self.readout,
                "grid": list(self.view.grid),
                "copies": self.view.copies,
                "resize": self.view.resize,
                "blank_area": self.view.blank_area,
                "decode_at_least": self.view.decode_at_least,
                "route": self.decision["route"],
            }
            if self.view.corruption is not None:  # whole pictures keep the key they always had
                space["corruption"] = self.view.corruption
            self._cache = FeatureCache(space, self.row_width, self.root)
        return self._cache

    @property
    def input_key(self) -> tuple[Any, ...]:
        """Backbones with equal keys see the same input tensors, which are then made once."""
        card = self.card
        crop = card.crop_pct if self.view.resize == "crop" else None
        return (tuple(card.input_size), tuple(card.mean), tuple(card.std), card.interpolation, crop)

    def features(self, batch: torch.Tensor) -> np.ndarray:
        """``batch (B, 3, H, W)`` -> ``(B, width)`` float32, by the decided route; the first batch decides."""
        if self._fast is None:
            model = load_backbone(self.name, num_classes=None if self.readout == "logits" else 0)
            if self.resized:  # position tables are made for one size
                set_input_size(model, *self.card.input_size)
                model.card = self.card  # type: ignore[assignment]  # it is probed at the size its card says
            if self.decision is None:
                self._fast = FastNetwork(model)
                spread = batch[:: max(1, len(batch) // GUARD_PIECES)][:GUARD_PIECES]
                self._fast.decide(spread, readout=self.readout)
                self._remember(self._fast)
            if self._fast is None or self._fast.route != self.decision["route"]:  # type: ignore[index]
                self._fast = FastNetwork.with_route(model, self.decision["route"])  # type: ignore[index]
        return self._fast.features(batch, readout=self.readout).numpy()

    def _remember(self, fast: FastNetwork) -> None:
        found = {"route": fast.route, "cosine_median": fast.cosine_median, "cosine_min": fast.cosine_min}
        if not self._decision_path.is_file():  # the first process to decide is followed by all
            write_json(self._decision_path, found | {"backbone": self.name, "cpu": cpu_signature()})
        self._decision = read_json(self._decision_path)


def networks_for(
    backbones: Sequence[str], view: View, readout: Readout, input_size: int | None = None, root: Path | None = None
) -> tuple[View, list[Network]]:
    """The backbones as networks over one view, with the scale of decoding settled for all of them."""
    networks = [Network(name, view, readout, input_size, root) for name in backbones]
    if not view.exact:
        # At twice the input's side a scaled JPEG decode moves pixels by less than a quarter of a level. The steps are
        # coarse, so that sets of backbones of like size share what the cache holds.
        scale = 640
        while scale < 2 * max(max(network.card.input_size) for network in networks):
            scale *= 2
        view = replace(view, decode_at_least=scale * max(view.grid))
        for network in networks:
            network.view = view
    return view, networks


_CARDS: dict[tuple[str, str, float], tuple[BackboneCard, int]] = {}


def card_and_width(name: str, readout: Readout) -> tuple[BackboneCard, int]:
    """A backbone's card and the measured width of its read-out; kept, so that clones of an estimator are cheap."""
    weights = Path(name) / "model.safetensors"
    changed = weights.stat().st_mtime if weights.is_file() else 0.0
    key = (name, readout, changed)
    if key not in _CARDS:
        model = load_backbone(name, num_classes=None if readout == "logits" else 0)
        card = card_of(model)
        _CARDS[key] = (card, card.width if readout == "pooled" else int(cast(int, model.num_classes)))
    return _CARDS[key]
